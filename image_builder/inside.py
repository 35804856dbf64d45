# SPDX-License-Identifier: Apache-2.0
"""What runs in the namespaces of a build, as their root: layers are built and trees are read here.

``python -m image_builder.inside JOB`` is started by :mod:`image_builder.privilege`; JOB is a JSON file with one of the
jobs below.  What it mounts is gone when it ends.  An error goes to the job's ``failure`` file.
"""

import ctypes
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chameleon_sites.sites import DiskFormat
from groundwork import files, process, products
from groundwork.errors import SageError
from image_builder import emulation
from image_builder.inventory import INVENTORY
from image_builder.manifest import ImageFile
from image_builder.software import PythonPackage, survey
from image_builder.variant import Arch

LAYER_FORMAT = 1
# Where in a mount's layers a file came from: of no use to other mounts.  (What hides a folder below stays.)
_MARKS_OF_A_MOUNT = {"user.overlay.origin", "user.overlay.impure"}
_GONE = "  404  Not Found"  # apt, of a package that its indexes name
_DEADLINE = 3 * 3600.0  # seconds for one layer; CUDA's packages take the longest
_LIBC = ctypes.CDLL(None, use_errno=True)
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")


@dataclass(frozen=True)
class LayerJob:
    """One layer to build: diskimage-builder's command and environment.

    ``place`` is where it is to stand.  ``packages``: ``name:arch`` -> version, as they were planned; only those
    versions may be in it.
    """

    name: str
    digest: str
    place: Path
    command: tuple[str, ...]
    environment: dict[str, str]
    packages: dict[str, str]


@dataclass(frozen=True)
class LayersJob:
    """Build layers, each over those before it.

    ``below``: trees of the layers that stand, the lowest first.  ``work``: a folder for things in the making.
    ``memory``: bytes of memory that may be used for them instead, or 0.  ``lists``: apt's indexes to begin with.
    ``epoch``: the time (seconds since 1970) of all that the build makes.  ``native``: the folder of native programs
    where the layers are for another architecture.
    """

    below: tuple[Path, ...]
    layers: tuple[LayerJob, ...]
    native: Path | None
    work: Path
    memory: int
    lists: Path | None
    epoch: int
    log: Path
    failure: Path


@dataclass(frozen=True)
class LayerRecord:
    """What is known of a layer that stands: ``layer.json`` beside its ``tree``.

    ``size``: bytes that it takes on disk.  ``format`` is :data:`LAYER_FORMAT` of the version that made it.
    """

    format: int
    name: str
    digest: str
    size: int
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why a job failed; ``of_program``: a program that it ran has failed; ``moved``: the archive has changed."""

    message: str
    hint: str | None = None
    of_program: bool = False
    moved: bool = False


class ArchiveMovedError(SageError):
    """While the build went on, the archive has got other packages than were planned."""


@dataclass(frozen=True)
class DiskJob:
    """Make a disk of layers.

    ``added``: path in the tree -> text of a file that is added to it.  ``disk_id``: what the disk's identifiers
    derive from.  The files appear in ``folder``, and what is known of them in ``result``.
    """

    layers: tuple[Path, ...]
    added: dict[str, str]
    disk_id: str
    epoch: int
    arch: str
    image_name: str
    formats: tuple[str, ...]
    folder: Path
    work: Path
    memory: int
    log: Path
    result: Path
    failure: Path


@dataclass(frozen=True)
class MadeDisk:
    """``disk_size``: the virtual disk's, in bytes; ``tree_size``: what the tree's files take, in bytes.

    ``python``: the tree's Python packages that are not the distribution's.  Its inventory lies beside the files.
    """

    disk_size: int
    tree_size: int
    inodes: int
    files: tuple[ImageFile, ...]
    python: tuple[PythonPackage, ...]


def build_layers(job: LayersJob) -> None:
    """Build the layers in order.  A layer is copied to its place while the next one is in the making."""
    area = _area(job.work, job.memory)
    lists = area / "lists"
    if job.lists:
        shutil.copytree(job.lists, lists)
    else:
        lists.mkdir()
    below = list(job.below)
    copies: list[_Copy] = []
    try:
        for number, layer in enumerate(job.layers):
            begin = time.time()
            here = area / str(number)
            root = here / "root"
            (here / "tmp").mkdir(parents=True)
            if below:
                upper = here / "upper"
                mount_overlay(below, upper, here / "overlay", root)
                mount("", root / "var/lib/apt/lists", bind=lists)
            else:
                upper = root
            try:
                _run_builder(layer, root, here / "tmp", job.log)
            except process.ProcessError:
                if _GONE in files.tail(job.log, 200):
                    raise ArchiveMovedError(
                        "the archive no longer has a package that was planned", hint="run this again with --refresh"
                    ) from None
                raise
            _check_packages(layer, root)
            if below:
                unmount(root)  # diskimage-builder has unmounted all within
            size = settle_times(upper, begin, job.epoch)
            record = LayerRecord(LAYER_FORMAT, layer.name, layer.digest, size, round(time.time() - begin, 2))
            copies.append(_Copy(upper, layer.place, record))
            below.append(upper)
    finally:
        for copy in copies:  # what is finished is kept, also where a later layer fails
            copy.finish()


def _run_builder(layer: LayerJob, root: Path, temporary: Path, log: Path) -> None:
    with log.open("ab") as output:
        output.write(f"=== layer {layer.name}\n".encode())
        output.flush()
        process.run(
            layer.command,
            env={**layer.environment, "SAGE_TREE": str(root), "TMPDIR": str(temporary), "TMP_DIR": str(temporary)},
            inherit=False,
            cwd=temporary,
            timeout=_DEADLINE,
            log=output,
        )
    if not (root / "etc/os-release").exists():
        raise SageError("diskimage-builder ended well, but left no root tree")


def _check_packages(layer: LayerJob, root: Path) -> None:
    found = installed(root / "var/lib/dpkg/status")
    others = [f"{name} {version}" for name, version in found.items() if layer.packages.get(name, version) != version]
    if others:
        raise ArchiveMovedError(
            f"the archive has other packages now than when the build began: {', '.join(others[:5])}",
            hint="run this again with --refresh",
        )


def installed(status: Path) -> dict[str, str]:
    """``name:arch`` -> version of the packages that are installed, from dpkg's database (deb-control(5))."""
    found = {}
    for paragraph in status.read_text().split("\n\n"):
        facts = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if facts.get("Status", "").endswith(" installed"):
            found[f"{facts['Package']}:{facts['Architecture']}"] = facts["Version"]
    return found


def make_disk(job: DiskJob) -> None:
    """Lay the layers over each other and make the disk of the whole."""
    from image_builder import disk

    begin = time.time()
    area = _area(job.work, job.memory)
    root = area / "root"
    mount_overlay(job.layers, area / "upper", area / "overlay", root)
    for name, text in job.added.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    settle_times(area / "upper", begin, job.epoch)
    tree_size, inodes = disk.measure(root)
    raw = area / "disk.raw"
    with ThreadPoolExecutor(1) as pool:
        surveying = pool.submit(survey, root, job.folder / INVENTORY)  # one second of CPU beside what others do
        size = disk.assemble(root, tree_size, inodes, Arch(job.arch), job.disk_id, job.epoch, raw)
        made = [disk.write(raw, DiskFormat.RAW, job.image_name, DiskFormat(form), job.folder) for form in job.formats]
        python = surveying.result()
    products.save(MadeDisk(size, tree_size, inodes, tuple(made), python), job.result)


class _Copy(threading.Thread):
    """Copies a finished layer to its place; it appears there by one rename.

    One that stands there (built anew, damaged, or of an older format) is renamed away only then, and its files stay
    until nobody can have them in use: see :func:`image_builder.layers.prune`.
    """

    def __init__(self, tree: Path, place: Path, record: LayerRecord) -> None:
        super().__init__(daemon=True)
        self._tree, self._place, self._record = tree, place, record
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        partial = self._place.with_name(f".{self._place.name}.{os.getpid()}.partial")
        try:
            partial.mkdir()
            # No extended attribute of the overlay's may be lost: they say which folders hide those below.
            process.run(["cp", "--archive", "--no-target-directory", self._tree, partial / "tree"], timeout=_DEADLINE)
            products.save(self._record, partial / "layer.json")
            if self._place.exists():
                self._place.rename(self._place.with_name(f".{self._place.name}.{time.time_ns()}.old"))
            partial.rename(self._place)
        except Exception as error:
            self._error = error

    def finish(self) -> None:
        self.join()
        if self._error:
            raise self._error


def _area(work: Path, memory: int) -> Path:
    """A folder for things in the making, in memory where that may be."""
    area = work / "area"
    area.mkdir()
    if memory:
        mount("tmpfs", area, kind="tmpfs", options=f"size={memory},mode=755,nr_inodes=0")
        try:
            os.setxattr(area, "user.overlay.probe", b"y")  # since Linux 6.6; layers need it
            os.removexattr(area, "user.overlay.probe")
        except OSError:
            unmount(area)
    return area


def mount_overlay(below: Sequence[Path], upper: Path, scratch: Path, target: Path) -> None:
    """Mount the trees ``below``, the lowest first, and ``upper`` as one at ``target``.

    Marks are kept in the user's extended attributes, as a user namespace must (Linux 5.11); so a layer is the same
    whoever made it.
    """
    for folder in (upper, scratch, target):
        folder.mkdir(parents=True)
    shutil.copystat(below[-1], upper)
    os.chown(upper, 0, 0)
    lower = ":".join(map(_escape, reversed(below)))
    options = f"userxattr,lowerdir={lower},upperdir={upper},workdir={scratch}"
    # Nothing of a layer in the making needs to outlive a crash: no syncs.
    mount("overlay", target, kind="overlay", options=f"{options},volatile")


def _escape(path: Path) -> str:
    """A path as overlayfs' options want it."""
    return re.sub(r"([\\\\:,])", r"\\\1", str(path))


def settle_times(top: Path, begin: float, epoch: int) -> int:
    """Give all that was changed since ``begin`` the time ``epoch``; returns the bytes that the tree takes on disk.

    What packages brought keeps its own time, for that is the same in every build.
    """
    size = 0
    for path, status in walk(top):
        size += status.st_blocks * 512
        if status.st_mtime >= begin - 1 and not stat.S_ISCHR(status.st_mode):
            os.utime(path, (epoch, epoch), follow_symlinks=False)
        for name in _MARKS_OF_A_MOUNT.intersection(os.listxattr(path, follow_symlinks=False)):
            os.removexattr(path, name, follow_symlinks=False)
    return size


def walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """All below ``top`` and itself, what a folder holds before the folder, in order of name."""
    with os.scandir(top) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from walk(Path(entry.path))
            else:
                yield entry.path, entry.stat(follow_symlinks=False)
    yield str(top), os.lstat(top)


def prepare(work: Path) -> None:
    """Give the namespace a /dev of its own, the same on every machine; ``work`` is a folder for it."""
    made = work / "dev"
    made.mkdir()
    mount("tmpfs", made, kind="tmpfs", options="mode=755,size=64k")
    for name in _DEVICES:
        (made / name).touch()
        mount("", made / name, bind=Path("/dev", name))
    for name in ("pts", "shm"):
        (made / name).mkdir()
    (made / "shm").chmod(0o1777)
    mount("devpts", made / "pts", kind="devpts", options="newinstance,ptmxmode=0666,mode=620,gid=5")
    for name, target in _LINKS.items():
        (made / name).symlink_to(target)
    mount("", Path("/dev"), bind=made)
    os.umask(0o022)


def mount(source: str, target: Path, *, kind: str = "", options: str = "", bind: Path | None = None) -> None:
    """mount(2); with ``bind`` that path and all mounted below it appear at ``target``."""
    flags = 0x1000 | 0x4000 if bind else 0  # MS_BIND | MS_REC
    words = [os.fsencode(bind or source), os.fsencode(target), kind.encode() or None, flags, options.encode() or None]
    if _LIBC.mount(*words) != 0:
        number = ctypes.get_errno()
        raise SageError(f"can't mount {kind or bind} at {target}: {os.strerror(number)}")


def unmount(target: Path) -> None:
    """umount2(2), at once or as soon as it is no longer used."""
    if _LIBC.umount2(os.fsencode(target), 2) != 0:  # MNT_DETACH
        raise SageError(f"can't unmount {target}: {os.strerror(ctypes.get_errno())}")


def main() -> int:
    """The program: does the job that its arguments name, kind and file."""
    kind, path = sys.argv[1], Path(sys.argv[2])
    job: LayersJob | DiskJob = products.load(LayersJob, path) if kind == "LayersJob" else products.load(DiskJob, path)
    try:
        prepare(job.work)
        if isinstance(job, LayersJob):
            if job.native:
                emulation.activate(job.native)
            build_layers(job)
        else:
            make_disk(job)
    except process.ProcessError as error:
        products.save(Failure(str(error), error.hint, of_program=True), job.failure)
    except ArchiveMovedError as error:
        products.save(Failure(str(error), error.hint, moved=True), job.failure)
    except SageError as error:
        products.save(Failure(str(error), error.hint), job.failure)
    except OSError as error:
        products.save(Failure(f"{error.strerror}: {error.filename}"), job.failure)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())

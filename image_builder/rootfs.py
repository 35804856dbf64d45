# SPDX-License-Identifier: Apache-2.0
"""Recipe -> RootTree: runs diskimage-builder, unmodified, over our elements.

Element ``root-tree`` has it leave the finished tree in a plain folder, so that no loop device is needed.  A tree
is built in a workspace of its own and renamed to its digest when it is whole.
"""

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from groundwork import console, files, process, products
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError
from image_builder import archive_errors, archive_keys, privilege
from image_builder.manifest import Package
from image_builder.recipe import PAYLOAD, Recipe

_DEADLINE = 3 * 3600.0  # seconds for a whole run of diskimage-builder; CUDA's packages take the longest
ROOT_LABEL = "sage-root"
PROGRAMS = ("debootstrap", "mmdebstrap", "dpkg-query", "fstrim", "unshare", "sudo")


@dataclass(frozen=True)
class RootTree:
    """A finished root tree in a folder.  ``size`` in bytes, as ext4 will need them; ``built_at`` UTC, RFC 3339."""

    recipe_digest: str
    build_id: str
    built_at: str
    root: Path
    packages: tuple[Package, ...]
    size: int
    inodes: int
    seconds: float


def standing(recipe: Recipe, cache: Path) -> RootTree | None:
    """The tree of this recipe, if it was built and is still there."""
    try:
        tree = products.load(RootTree, _place(recipe, cache) / "tree.json")
    except InputError:
        return None
    return tree if tree.root.is_dir() else None


def build(recipe: Recipe, cache: Path, log: Path, stage: console.Stage, provenance: dict[str, object]) -> RootTree:
    """Build the tree, with diskimage-builder's output in ``log``.

    ``provenance`` goes into the image as ``/opt/chameleon/provenance.json``, with build id and time added.
    Raises SageError that names the element script that failed.
    """
    begin = time.monotonic()
    now = datetime.now(timezone.utc).replace(microsecond=0)
    build_id = f"{now:%Y%m%dT%H%M%SZ}-{recipe.digest[:8]}"
    built_at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    with (
        workspace(cache) as work,
        files.lock(
            cache / "locks/packages.lock",  # apt's cache serves one build at a time
            wait=_DEADLINE,
            on_wait=lambda owner: stage.detail(f"waiting for another build (pid {owner})"),
        ),
    ):
        payload = files.make_folder(work / "payload")
        for package in PAYLOAD:
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, payload / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
        facts = {**provenance, "build_id": build_id, "built_at": built_at}
        files.write_text(work / "provenance.json", json.dumps(facts, indent=2) + "\n")
        root = work / "root"
        _run_builder(recipe, cache, work, root, log, stage)
        stage.detail("listing packages")
        tree = RootTree(
            recipe_digest=recipe.digest,
            build_id=build_id,
            built_at=built_at,
            root=_place(recipe, cache) / "root",
            packages=_packages(root),
            size=_needed_bytes(root),
            inodes=sum(len(folders) + len(names) for _, folders, names in os.walk(root)),
            seconds=time.monotonic() - begin,
        )
        finished = files.make_folder(work / "finished")
        root.rename(finished / "root")
        products.save(tree, finished / "tree.json")
        files.remove_tree(_place(recipe, cache))
        files.make_folder(_place(recipe, cache).parent)
        finished.rename(_place(recipe, cache))
    return tree


def remove(recipe: Recipe, cache: Path) -> None:
    """Drop the tree: 1 to 10 GB that nothing needs once the disk is made."""
    files.remove_tree(_place(recipe, cache))


@contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """A folder for things in the making, gone when the block ends; those of dead runs are removed first."""
    top = files.make_folder(cache / "work")
    work = top / f"{os.getpid()}-{time.monotonic_ns()}"
    with ExitStack() as stack:
        # One at a time: a lock that is made, but not yet held, must not look like a dead run's.
        with files.lock(cache / "locks/work.lock", wait=60.0):
            _sweep(top)
            stack.enter_context(files.lock(work.with_suffix(".lock")))
        try:
            yield files.make_folder(work)
        finally:
            files.remove_tree(work)
            work.with_suffix(".lock").unlink(missing_ok=True)


def _sweep(top: Path) -> None:
    """Remove what dead runs left in the workspaces' folder."""
    for held in top.glob("*.lock"):
        try:
            with files.lock(held):
                files.remove_tree(held.with_suffix(""))
                held.unlink(missing_ok=True)
        except SageError:
            continue  # its owner lives
        except OSError as error:
            console.warn(f"can't remove what a dead run left: {error}", hint=f"sudo rm -r {top}")
    files.sweep_removals(top)


def _place(recipe: Recipe, cache: Path) -> Path:
    return cache / "trees" / recipe.digest


def _run_builder(recipe: Recipe, cache: Path, work: Path, root: Path, log: Path, stage: console.Stage) -> None:
    archive = recipe.archive
    temporary = files.make_folder(work / "tmp")
    # Apt takes a package that it has kept for checked: those of an archive that a user's keyring vouches for stay apart.
    kept = files.make_folder(cache / (f"dib-{archive.keyring_digest[:12]}" if archive.keyring_digest else "dib"))
    environment = {
        "ARCH": str(recipe.arch),
        "DEBIAN_FRONTEND": "noninteractive",
        "DIB_APT_KEYRING": "",  # element archive-keys sees to it; this one takes apt-key, which is gone in trixie
        "DIB_DEBIAN_COMPONENTS": ",".join(archive.components),
        "DIB_DEBIAN_SECURITY_MIRROR": archive.security_mirror or "",
        "DIB_DISTRIBUTION_MIRROR": archive.mirror,
        "DIB_IMAGE_CACHE": str(kept),
        "DIB_LOCKFILES": str(files.make_folder(kept / "locks")),
        "DIB_NO_TIMESTAMP": "1",
        "DIB_NO_TMPFS": "1",  # the tree is renamed out of the workspace, and memory is for QEMU
        "DIB_PYTHON_EXEC": sys.executable,
        "DIB_RELEASE": recipe.release,
        "DIB_UBUNTU_MIRROR_DISTS": "updates,security",
        "ELEMENTS_PATH": ":".join(map(str, recipe.element_folders)),
        "HOME": str(files.make_folder(work / "home")),
        "LANG": "C.UTF-8",
        "SAGE_APT_SOURCES": archive.sources,
        "SAGE_ARCHIVE_KEYS": str(archive_keys.put(Path(archive.keyring), work / "archive-keys")),
        "SAGE_PAYLOAD": str(work / "payload"),
        "SAGE_PROVENANCE": str(work / "provenance.json"),
        "SAGE_ROOT_LABEL": ROOT_LABEL,
        "SAGE_TREE": str(root),
        "TMPDIR": str(temporary),
        "TMP_DIR": str(temporary),
        "USER": "root",
        # our own Python's folder first: disk-image-create calls its siblings by name
        "PATH": f"{Path(sys.executable).parent}:{process.search_path()}",
        **{name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ},
        **recipe.settings,
    }
    command: list[str | Path] = [
        builder_program(),
        "-n",
        "-a",
        str(recipe.arch),
        "-t",
        "raw",
        "-o",
        str(work / "image"),
    ]
    if recipe.packages:
        command += ["-p", ",".join(recipe.packages)]
    files.make_folder(log.parent)
    with log.open("ab") as output, _following(log, stage):
        files.give_to_owner_of(log.parent, log)
        try:
            process.run(
                privilege.namespaced([*command, *recipe.elements]),
                env=environment,
                inherit=False,
                cwd=work,
                timeout=_DEADLINE,
                log=output,
            )
        except ProcessError as error:
            if found := archive_errors.find(files.tail(log, 200), archive.keyring):
                raise SageError(found.message, hint=f"{found.hint}; the whole log: {log}") from None
            script = _last_script(log)
            at = f" in {script}" if script else ""
            how = f"with exit status {error.returncode}" if error.returncode is not None else "to end in time"
            raise SageError(
                f"diskimage-builder failed{at} {how}; the end of its log:\n\n{files.tail(log, 25)}\n",
                hint=f"the whole log: {log}",
            ) from None
    if not (root / "etc/os-release").exists():
        raise SageError(
            "diskimage-builder ended well, but left no root tree",
            hint="does the variant have the element 'root-tree'?",
        )


def builder_program() -> Path:
    """diskimage-builder's ``disk-image-create``: beside our Python, or on PATH.  InputError where there is none."""
    beside = Path(sys.executable).with_name("disk-image-create")
    found = beside if beside.exists() else process.find(beside.name)
    if not found:
        raise InputError("disk-image-create is not installed", hint="pip install diskimage-builder")
    return Path(found)


_SCRIPT = re.compile(r"dib-run-parts Running \S*/hooks?/?(\S+)|dib-run-parts Running \S*/in_target\.d/(\S+)")


def _last_script(log: Path) -> str | None:
    """The element script, as ``install.d/50-docker``, that ran last according to the log."""
    found = None
    for match in _SCRIPT.finditer(files.tail(log, 2000)):
        found = match[1] or match[2]
    return found


@contextmanager
def _following(log: Path, stage: console.Stage) -> Iterator[None]:
    """Show on the stage which element script is running."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(1.0):
            stage.detail(_last_script(log) or "base system")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _packages(root: Path) -> tuple[Package, ...]:
    """What dpkg says is installed in the tree."""
    text = process.run(
        [
            "dpkg-query",
            f"--admindir={root}/var/lib/dpkg",
            "--show",
            "--showformat=${Package}\t${Version}\t${Architecture}\n",
        ],
        timeout=60,
    )
    return tuple(Package(*line.split("\t")) for line in text.splitlines())


def _needed_bytes(root: Path) -> int:
    """Bytes that the tree's contents take in file system blocks of 4 KiB; a file with several names counts once."""
    total = 0
    seen: set[int] = set()
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            status = os.lstat(os.path.join(folder, name))
            if status.st_nlink == 1 or status.st_ino not in seen:
                seen.add(status.st_ino)
                total += (status.st_size + 4095) // 4096 * 4096
    return total

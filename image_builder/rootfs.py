# SPDX-License-Identifier: Apache-2.0
"""Recipe -> RootTree: runs diskimage-builder, unmodified, over our elements, once a layer.

Element ``root-tree`` has it leave the finished tree in a plain folder, so that no loop device is needed.  The work is
done by :mod:`image_builder.inside`, in namespaces; a layer that stands in the cache is not built again.
"""

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from groundwork import console, files, process, products
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError
from image_builder import archive_errors, archive_keys, emulation, inside, layers, privilege, sources
from image_builder.disk import ROOT_LABEL
from image_builder.manifest import Package
from image_builder.recipe import PAYLOAD, Layer, Recipe
from image_builder.wanted import link_elements, spare_update

_FULL = "No space left on device"
_DEADLINE = 12 * 3600.0  # seconds for all of a recipe's layers
_GIB = 1 << 30
PROGRAMS = ("debootstrap", "mmdebstrap", "dpkg-deb", "dpkg-query", "fstrim", "unshare", "zstd")


@dataclass(frozen=True)
class RootTree:
    """A finished root tree: its layers' trees, the lowest first, which are one when they are laid over each other."""

    recipe_digest: str
    layers: tuple[Path, ...]
    packages: tuple[Package, ...]
    built: tuple[str, ...]


def standing(recipe: Recipe, cache: Path) -> list[Path]:
    """The trees of the recipe's layers that stand in the cache, from the lowest to the first that does not."""
    found: list[Path] = []
    for layer in recipe.layers:
        tree = layers.standing(layer, cache)
        if tree is None:
            break
        found.append(tree)
    return found


def build(
    recipe: Recipe,
    cache: Path,
    log: Path,
    stage: console.Stage,
    *,
    anew: bool = False,
    keep: Collection[str] = frozenset(),
) -> RootTree:
    """Build the layers that do not stand, with diskimage-builder's output in ``log``.

    With ``anew`` also those that stand, but for the digests in ``keep``; each stands until the new one is there.

    The caller holds :func:`layers.in_use`.  Raises SageError that names the layer and element script that failed.
    """
    with (
        workspace(cache) as work,
        files.lock(
            cache / "locks/packages.lock",  # apt's cache serves one build at a time
            wait=_DEADLINE,
            on_wait=lambda owner: stage.detail(f"waiting for another build (pid {owner})"),
        ),
    ):
        below = standing(recipe, cache)
        if anew:
            below = below[: len(list(takewhile(lambda layer: layer.digest in keep, recipe.layers)))]
        missing = recipe.layers[len(below) :]
        if missing:
            _build_layers(recipe, below, missing, cache, work, log, stage)
        trees = tuple(layers.place(layer.digest, cache) / "tree" for layer in recipe.layers)
        return RootTree(recipe.digest, trees, _packages(trees), tuple(layer.name for layer in missing))


def _build_layers(
    recipe: Recipe,
    below: list[Path],
    missing: tuple[Layer, ...],
    cache: Path,
    work: Path,
    log: Path,
    stage: console.Stage,
) -> None:
    payload = files.make_folder(work / "payload")
    for package in PAYLOAD:
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, payload / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    sources.prepare(recipe.sources, cache, work / "sources", stage.detail)
    files.make_folder(cache / "layers")
    native = None
    if emulation.is_needed(recipe.arch):
        stage.detail("native programs")
        native = emulation.prepare(recipe, cache, work)
    job = inside.LayersJob(
        below=tuple(below),
        layers=tuple(_layer_job(recipe, layer, cache, work, native) for layer in missing),
        native=native,
        work=files.make_folder(work / "inside"),
        memory=memory_for(recipe),
        lists=recipe.indexes.lists if recipe.indexes else None,
        epoch=recipe.epoch,
        log=log,
        failure=work / "failure.json",
    )
    try:
        with _following(log, stage), emulation.registered(native) if native else nullcontext():
            enter(job, work)
    except ProcessError as error:
        if found := archive_errors.find(files.tail(log, 200), recipe.archive.keyring):
            raise SageError(found.message, hint=f"{found.hint}; the whole log: {log}") from None
        if _FULL in files.tail(log, 500):
            raise SageError(
                f"{_FULL}, while the layers were built ({_last_script(log) or 'base system'})",
                hint=f"they may take {recipe.space_gib} GiB: the variant's space_gib; the whole log: {log}",
            ) from None
        script = _last_script(log)
        at = f" in {script}" if script else ""
        raise SageError(
            f"diskimage-builder failed{at}: {error}; the end of its log:\n\n{_end_of(log)}\n",
            hint=f"the whole log: {log}",
        ) from None


def enter(job: inside.LayersJob | inside.DiskJob, work: Path) -> None:
    """Do a job in namespaces of its own, by the way that is open to this user.

    Raises ProcessError when a program failed that the job ran, SageError for all else.
    """
    way = privilege.find_way()
    if way is None:
        raise InputError(f"this needs root: {privilege.why_not()}")
    kind = type(job).__name__
    emulated = isinstance(job, inside.LayersJob) and job.native is not None
    words = emulation.namespaces(way) if emulated else privilege.namespaces(way)
    path = work / "job.json"
    products.save(job, path)
    files.make_folder(job.log.parent)
    with job.log.open("ab") as output:
        files.give_to_owner_of(job.log.parent, job.log)
        try:
            process.run(
                [*words, sys.executable, "-m", inside.__name__, kind, path],
                env={"PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path)))},
                timeout=_DEADLINE,
                log=output,
            )
        except ProcessError as error:
            try:
                failure = products.load(inside.Failure, job.failure)
            except InputError:
                raise SageError(f"{error}", hint=f"the log: {job.log}") from None
            if failure.moved:
                raise inside.ArchiveMovedError(failure.message, hint=failure.hint) from None
            if failure.of_program:
                raise ProcessError(failure.message, returncode=error.returncode) from None
            raise SageError(failure.message, hint=failure.hint) from None


def memory_for(recipe: Recipe) -> int:
    """Bytes of memory that a build may use for its files: none where it might not be enough."""
    needed = recipe.space_gib * _GIB
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if name == "MemAvailable":
            return needed if int(value.split()[0]) * 1024 > needed + 2 * _GIB else 0
    return 0


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
            privilege.remove_tree(work)
            work.with_suffix(".lock").unlink(missing_ok=True)


def _sweep(top: Path) -> None:
    """Remove what dead runs left in the workspaces' folder."""
    for held in top.glob("*.lock"):
        try:
            with files.lock(held):
                privilege.remove_tree(held.with_suffix(""))
                held.unlink(missing_ok=True)
        except SageError:
            continue  # its owner lives
        except OSError as error:
            console.warn(f"can't remove what a dead run left: {error}", hint=f"sudo rm -r {top}")
    files.sweep_removals(top)


def _layer_job(recipe: Recipe, layer: Layer, cache: Path, work: Path, native: Path | None) -> inside.LayerJob:
    """What runs diskimage-builder for one layer.  The environment is all that it gets from here."""
    archive = recipe.archive
    # Apt takes a package that it has kept for checked: those of an archive that a user's keyring vouches for lie apart.
    kept = files.make_folder(cache / (f"dib-{archive.keyring_digest[:12]}" if archive.keyring_digest else "dib"))
    elements = files.make_folder(work / "elements" / layer.digest)
    link_elements(recipe.element_folders, layer.done, elements)
    if recipe.indexes:
        spare_update(elements)
    programs = Path(__file__).with_name("programs")
    environment = {
        "ARCH": str(recipe.arch),
        "DEBIAN_FRONTEND": "noninteractive",
        "DIB_APT_KEYRING": "",  # element archive-keys sees to it; this one takes apt-key, which is gone in trixie
        "DIB_DEBIAN_COMPONENTS": ",".join(archive.components),
        "DIB_DEBIAN_SECURITY_MIRROR": archive.security_mirror or "",
        "DIB_DISTRIBUTION_MIRROR": archive.mirror,
        "DIB_IMAGE_CACHE": str(kept),
        "DIB_IMAGE_SIZE": "1",  # of an image that is not made: else the tree is counted
        "DIB_LOCKFILES": str(files.make_folder(kept / "locks")),
        "DIB_NO_TIMESTAMP": "1",
        "DIB_NO_TMPFS": "1",  # the tree is renamed out of its temporary folder
        "DIB_PYTHON_EXEC": str(programs / "python"),
        "DIB_RELEASE": recipe.release,
        "DIB_UBUNTU_MIRROR_DISTS": "updates,security",
        "ELEMENTS_PATH": str(elements),
        "HOME": str(files.make_folder(work / "home")),
        "LANG": "C.UTF-8",
        "SAGE_APT_LISTS": str(recipe.indexes.lists) if recipe.indexes else "",
        "SAGE_APT_SOURCES": archive.sources,
        "SAGE_ARCHIVE_KEYS": str(archive_keys.put(Path(archive.keyring), work / "archive-keys")),
        "SAGE_BASE_PACKAGES": " ".join(layer.installs),
        "SAGE_BUILD_SOURCES": archive.build_sources,
        "SAGE_DISTRO": recipe.os_name.lower(),
        "SAGE_PAYLOAD": str(work / "payload"),
        "SAGE_PYTHON": sys.executable,
        "SAGE_ROOT_LABEL": ROOT_LABEL,
        "SAGE_SOURCES": str(work / "sources"),
        "SOURCE_DATE_EPOCH": str(recipe.epoch),
        "TZ": "UTC",
        "USER": "root",
        # our own Python's folder early: disk-image-create calls its siblings by name
        "PATH": f"{programs}:{Path(sys.executable).parent}:{process.search_path()}",
        **{name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ},
        **layer.settings,
        **({"SAGE_NATIVE": str(native)} if native else {}),
    }
    command = [str(builder_program()), "-n", "-a", str(recipe.arch), "-t", "raw", "-o", str(work / "image")]
    if layer.packages:
        command += ["-p", ",".join(layer.packages)]
    return inside.LayerJob(
        name=layer.name,
        digest=layer.digest,
        place=layers.place(layer.digest, cache),
        command=(*command, *layer.elements, *([emulation.ELEMENT] if native else [])),
        environment=environment,
        packages=recipe.indexes.packages if recipe.indexes else {},
    )


def builder_program() -> Path:
    """diskimage-builder's ``disk-image-create``: beside our Python, or on PATH.  InputError where there is none."""
    beside = Path(sys.executable).with_name("disk-image-create")
    found = beside if beside.exists() else process.find(beside.name)
    if not found:
        raise InputError("disk-image-create is not installed", hint="pip install diskimage-builder")
    return Path(found)


# What diskimage-builder says while it takes away what it made; the lines that tell come before.
_CLEANING = re.compile(r"Unmount |umount: |(INFO|WARNING) diskimage_builder|\+\+? |dib-run-parts Sourcing")


def _end_of(log: Path) -> str:
    """The last lines of a log that tell why it ends."""
    lines = [line for line in files.tail(log, 500).splitlines() if not _CLEANING.match(line)]
    return "\n".join(lines[-25:])


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


def _packages(trees: tuple[Path, ...]) -> tuple[Package, ...]:
    """What dpkg says is installed: its database is whole in the highest layer that has one."""
    database = next(tree / "var/lib/dpkg" for tree in reversed(trees) if (tree / "var/lib/dpkg/status").exists())
    text = process.run(
        [
            "dpkg-query",
            f"--admindir={database}",
            "--show",
            "--showformat=${db:Status-Status}\t${Package}\t${Version}\t${Architecture}"
            "\t${source:Package}\t${source:Version}\n",
        ],
        timeout=60,
    )
    rows = (line.split("\t") for line in text.splitlines())
    return tuple(Package(*row[1:]) for row in rows if row[0] == "installed")

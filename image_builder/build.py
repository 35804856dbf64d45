# SPDX-License-Identifier: Apache-2.0
"""Recipe -> finished build: root tree, disk, check, manifest; what stands already is passed over.

Products in the making lie in the cache, by the recipe's digest; a finished build appears in the output folder by
one rename, as ``<image name>/<build id>/``.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeGuard

import groundwork
from chameleon_sites.sites import DiskFormat
from groundwork import console, files, process, products
from groundwork.errors import InputError
from groundwork.process import ProcessError
from image_builder import (
    archive_keys,
    budget,
    disk,
    emulation,
    inside,
    inventory,
    machine,
    manifest,
    papers,
    privilege,
    rootfs,
    sources,
    verify,
)
from image_builder.disk import Disk
from image_builder.manifest import CheckReport, ImageFile, Manifest
from image_builder.papers import Circumstances
from image_builder.recipe import Recipe
from image_builder.software import Software, containers
from image_builder.trees import Trees, log_of

_GIB = 1 << 30
_QCOW2_SPACE = 1 * _GIB
_RAW_SPACE = 4 * _GIB
_SCRATCH = ".scratch"
_LOCK_DEADLINE = 6 * 3600.0
_PLAIN = Circumstances()


@dataclass(frozen=True)
class Build:
    """A finished build and its folder; ``fresh`` when this run made it or added to it."""

    manifest: Manifest
    folder: Path
    fresh: bool


@dataclass(frozen=True)
class Places:
    """``output`` for finished builds, ``cache`` for all else."""

    output: Path
    cache: Path


def find(recipe: Recipe, output: Path) -> Build | None:
    """The newest finished build of this very recipe."""
    for path in sorted(output.glob(f"{recipe.image_name}/*-{recipe.digest[:8]}/{manifest.MANIFEST}"), reverse=True):
        try:
            found, folder = manifest.read(path)
        except InputError as error:
            console.warn(f"passing over a damaged build: {error}")
            continue
        if found.recipe_digest == recipe.digest:
            return Build(found, folder, fresh=False)
    return None


def drop_old(folder: Path, keep: int) -> None:
    """Remove of an image's finished builds all but the newest ``keep``."""
    if folder.is_dir():
        files.sweep_removals(folder)
        # Names begin with the time; what is in the making has a dot before it.
        for old in sorted(path.parent for path in folder.glob(f"[0-9]*/{manifest.MANIFEST}"))[:-keep]:
            files.remove_tree(old)


def is_complete(build: Build, recipe: Recipe, formats: Iterable[DiskFormat], *, verified: bool) -> bool:
    """Whether the build has all formats and, where asked for, a good report of the recipe's checks."""
    have = {file.format for file in build.manifest.files}
    return set(formats) <= have and (not verified or _is_checked(build.manifest, recipe))


def imagine(recipe: Recipe, found: Build | None, formats: Sequence[DiskFormat]) -> Manifest:
    """The manifest of what a build would make, for a rehearsal: files that are not there have no size and digest."""
    have = found.manifest.files if found else ()
    coming = [form for form in formats if form not in {file.format for file in have}]
    files_then = have + tuple(
        ImageFile(form, disk.file_name(recipe.image_name, form), 0, "", "", "") for form in coming
    )
    if found:
        return replace(found.manifest, files=files_then)
    now = datetime.now(timezone.utc)
    return Manifest(
        build_id=f"{now:%Y%m%dT%H%M%SZ}-{recipe.digest[:8]}",
        image_name=recipe.image_name,
        variant=recipe.variant,
        release=recipe.release,
        os_name=recipe.os_name,
        os_version=recipe.os_version,
        arch=str(recipe.arch),
        recipe_digest=recipe.digest,
        checks_digest=recipe.checks_digest,
        built_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        project_version=groundwork.__version__,
        commit=None,
        clean=None,
        elements=recipe.element_digests,
        packages=(),
        disk_size=0,
        files=files_then,
        checks=None,
        stage_seconds={},
        sources=sources.record(recipe.sources),
    )


def needs_root(recipe: Recipe, places: Places, *, force: bool) -> bool:
    """Whether making this build takes a new root tree, or reading one."""
    return force or (find(recipe, places.output) is None and _standing_disk(recipe, places.cache) is None)


def check_machine(recipe: Recipe, formats: Sequence[DiskFormat], places: Places, *, verified: bool, tree: bool) -> None:
    """Raise InputError for what this machine lacks, before any work is done."""
    arch = recipe.arch
    if tree:
        emulation.check(arch)
    needed = set(disk.PROGRAMS)
    if tree:
        rootfs.builder_program()
        archive_keys.check(recipe.archive.keyring, recipe.os_name, recipe.archive.keyring_package)
        needed |= set(rootfs.PROGRAMS) | sources.programs(recipe.sources)
    if verified:
        needed |= set(machine.programs(arch))
    process.require(*sorted(needed))
    if verified:
        machine.uefi_files(arch)
    per_format = sum(_RAW_SPACE if form is DiskFormat.RAW else _QCOW2_SPACE for form in formats)
    in_cache = (recipe.space_gib * _GIB if tree else 0) + per_format
    _check_space([(places.cache, in_cache), (places.output, per_format)])


def build(
    recipe: Recipe,
    formats: Sequence[DiskFormat],
    places: Places,
    trees: Trees,
    *,
    checking: verify.Options | None,
    force: bool = False,
    circumstances: Circumstances = _PLAIN,
) -> Build:
    """Make the build, or what it lacks.  Without ``checking`` the image is not booted.

    ``force`` builds the tree again.  A second build of one recipe at the same time waits for the first and takes
    its result.
    """
    begin = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def usable() -> Build | None:
        """The build that stands and counts: with ``force`` only one that was made since this run began."""
        found = find(recipe, places.output)
        return found if found is not None and (not force or found.manifest.built_at >= begin) else None

    def is_done(found: Build | None) -> TypeGuard[Build]:
        if found is None or not is_complete(found, recipe, formats, verified=checking is not None):
            return False
        return circumstances.sign_key is None or papers.is_signed_by(found.folder, circumstances.sign_key)

    if is_done(found := usable()):
        return found
    waiting = f"another build of {recipe.image_name} goes on; waiting for its result (pid "
    with files.lock(
        places.cache / f"locks/{recipe.digest}.lock",
        wait=_LOCK_DEADLINE,
        on_wait=lambda owner: console.say(waiting + owner + ")"),
    ):
        if is_done(found := usable()):
            return found
        _sweep(recipe, places)
        disk_stands = found is not None or (not force and _standing_disk(recipe, places.cache) is not None)
        check_machine(recipe, formats, places, verified=checking is not None, tree=not disk_stands)
        with rootfs.workspace(places.cache) as scratch:
            if found is not None:
                return _complete(found, recipe, formats, checking, scratch, circumstances.sign_key)
            return _make(recipe, formats, places, checking, scratch, trees, circumstances, force=force)


def _sweep(recipe: Recipe, places: Places) -> None:
    """Remove what killed runs of this recipe left.  Its lock is held, so none of them lives."""
    for left in places.output.glob(f"{recipe.image_name}/.*-{recipe.digest[:8]}.partial"):
        files.remove_tree(left)
    for left in places.output.glob(f"{recipe.image_name}/*-{recipe.digest[:8]}/{_SCRATCH}"):
        files.remove_tree(left)
    for folder in (places.output / recipe.image_name, places.cache / "disks"):
        files.sweep_removals(folder)


def _make(
    recipe: Recipe,
    formats: Sequence[DiskFormat],
    places: Places,
    checking: verify.Options | None,
    scratch: Path,
    trees: Trees,
    circumstances: Circumstances,
    *,
    force: bool,
) -> Build:
    """Tree, disk, check, manifest."""
    seconds: dict[str, float] = {}
    logs = log_of(recipe, places.cache).parent
    place = places.cache / "disks" / recipe.digest
    finished = None if force else _standing_disk(recipe, places.cache)
    commit, clean = project_state()
    if finished is None:
        with _stage("root tree", seconds) as stage:
            tree = trees.get(recipe, stage)
            built = f"built {', '.join(tree.built)}" if tree.built else "all layers stand already"
            way = f", {privilege.find_way()}" if tree.built else ""
            stage.note = f"{len(tree.packages)} packages; {built}{way}"
        with _stage("disk", seconds) as stage:
            log = log_of(recipe, places.cache)
            finished = _disk(recipe, tree, formats, place, scratch, log, places.output)
            stage.note = _sizes(finished)
    else:
        console.say("= disk: stands already")
        os.utime(place)  # in use: see layers.prune
        if not set(formats) <= {file.format for file in finished.files}:
            with _stage("formats", seconds) as stage:
                finished = disk.more_formats(finished, recipe.image_name, formats, place, scratch)
                products.save(finished, place / "disk.json")
                stage.note = _sizes(finished)
    facts = products.load(_Facts, place / "facts.json")
    report = None
    if checking is not None:
        report = _verify(recipe, place / finished.files[0].name, logs, scratch, checking, seconds)
    made = replace(
        imagine(recipe, None, ()),
        build_id=facts.build_id,
        built_at=facts.built_at,
        commit=commit,
        clean=clean,
        packages=facts.software.packages,
        disk_size=finished.disk_size,
        files=finished.files,
        checks=report,
        stage_seconds=seconds,
    )
    made = papers.write(recipe, made, facts.software, place, circumstances)
    folder = _put_out(made, place, logs, places.output, circumstances.sign_key)
    return Build(made, folder, fresh=True)


def _complete(
    standing: Build,
    recipe: Recipe,
    formats: Sequence[DiskFormat],
    checking: verify.Options | None,
    scratch: Path,
    sign_key: Path | None,
) -> Build:
    """Add to a finished build the formats, the check and the signatures that it lacks."""
    old = standing.manifest
    seconds = dict(old.stage_seconds)
    have = Disk(old.disk_size, 0, old.files)
    if not set(formats) <= {file.format for file in old.files}:
        scratch_here = files.make_folder(standing.folder / _SCRATCH)  # beside, so that a rename is enough
        try:
            with _stage("formats", seconds) as stage:
                have = disk.more_formats(have, recipe.image_name, formats, standing.folder, scratch_here)
                stage.note = _sizes(have)
        finally:
            files.remove_tree(scratch_here)
    report, checks_digest = old.checks, old.checks_digest
    if checking is not None and not _is_checked(old, recipe):
        image = standing.folder / have.files[0].name
        report = _verify(recipe, image, standing.folder, scratch, checking, seconds)
        checks_digest = recipe.checks_digest
    made = replace(old, files=have.files, checks=report, checks_digest=checks_digest, stage_seconds=seconds)
    if made != old:
        if papers.unsign(standing.folder) and sign_key is None:
            console.warn(
                f"{standing.folder}: its signatures were for what it was before, and are removed",
                hint="sign it again: sage-image sign BUILD --sign-key FILE",
            )
        made = papers.add_files(made, standing.folder)
        manifest.write(made, standing.folder)
    if sign_key is not None:
        papers.sign(standing.folder, sign_key)
    return Build(made, standing.folder, fresh=True)


@dataclass(frozen=True)
class _Facts:
    """What is known of a disk in the cache beside its files."""

    build_id: str
    built_at: str
    software: Software


def _disk(
    recipe: Recipe,
    tree: rootfs.RootTree,
    formats: Sequence[DiskFormat],
    place: Path,
    scratch: Path,
    log: Path,
    output: Path,
) -> Disk:
    """Make the disk's files and put them, by one rename, where :func:`_standing_disk` looks."""
    now = datetime.now(timezone.utc)
    fresh = files.make_folder(scratch / "disk")
    job = inside.DiskJob(
        layers=tree.layers,
        added={"opt/chameleon/provenance.json": json.dumps(_provenance(recipe), indent=2) + "\n"},
        disk_id=recipe.digest,
        epoch=recipe.epoch,
        arch=str(recipe.arch),
        image_name=recipe.image_name,
        formats=tuple(formats),
        folder=fresh,
        work=files.make_folder(scratch / "inside"),
        memory=rootfs.memory_for(recipe),
        log=log,
        result=scratch / "made.json",
        failure=scratch / "failure.json",
    )
    rootfs.enter(job, scratch)
    result = products.load(inside.MadeDisk, job.result)
    made = Disk(result.disk_size, result.tree_size, result.files)
    budget.check(recipe, inventory.read(fresh / inventory.INVENTORY), output)
    software = Software(tree.packages, result.python, containers(tree.layers))
    facts = _Facts(f"{now:%Y%m%dT%H%M%SZ}-{recipe.digest[:8]}", now.strftime("%Y-%m-%dT%H:%M:%SZ"), software)
    products.save(facts, fresh / "facts.json")
    products.save(made, fresh / "disk.json")
    files.remove_tree(place)
    files.make_folder(place.parent)
    fresh.rename(place)
    return made


def _sizes(made: Disk) -> str:
    return ", ".join(f"{file.format} {console.mebibytes(file.size)}" for file in made.files)


def _standing_disk(recipe: Recipe, cache: Path) -> Disk | None:
    """The disk in the cache, if it is there whole."""
    place = cache / "disks" / recipe.digest
    try:
        found = products.load(Disk, place / "disk.json")
        products.load(_Facts, place / "facts.json")  # not so in a cache of an older version
        (place / inventory.INVENTORY).stat()
        sizes = {file.name: (place / file.name).stat().st_size for file in found.files}
    except (InputError, OSError):
        return None
    return found if sizes == {file.name: file.size for file in found.files} else None


def _verify(
    recipe: Recipe, image: Path, logs: Path, scratch: Path, checking: verify.Options, seconds: dict[str, float]
) -> CheckReport:
    checking = replace(checking, settings=recipe.settings)
    with _stage("verify", seconds) as stage:
        report = verify.verify(image, recipe.arch, recipe.checks, logs, scratch, checking, stage)
        if not report.passed:
            error = verify.explain(report, logs)
            error.hint = (
                f"{error.hint}; the image is kept ({image}) and booted again by the next run; --force builds it anew"
            )
            raise error
        boots = ", ".join(f"{name} up in {time:.0f} s" for name, time in report.boot_seconds.items())
        stage.note = f"{len(report.results)} checks passed; {boots}"
    return report


def _put_out(made: Manifest, place: Path, logs: Path, output: Path, sign_key: Path | None = None) -> Path:
    """Put image, documents and logs into the output folder, write the manifest, sign; all appears by one rename.

    The cache keeps its files until then, so that nothing is lost to an interruption.
    """
    folder = files.make_folder(output / made.image_name) / made.build_id
    partial = files.make_folder(folder.with_name(f".{made.build_id}.partial"))
    try:
        for source in [*(place / name for name in made.digests), *sorted(logs.iterdir())]:
            target = partial / source.name
            try:
                target.hardlink_to(source)
            except OSError:  # another file system
                shutil.copyfile(source, target)
            files.give_to_owner_of(partial, target)
        manifest.write(made, partial)
        if sign_key is not None:
            papers.sign(partial, sign_key)
        files.remove_tree(folder)
        partial.rename(folder)
    finally:
        files.remove_tree(partial)
    files.remove_tree(place)
    files.remove_tree(logs)
    return folder


def _is_checked(made: Manifest, recipe: Recipe) -> bool:
    return made.checks is not None and made.checks.passed and made.checks_digest == recipe.checks_digest


def _check_space(needs: Sequence[tuple[Path, int]]) -> None:
    """Raise InputError unless each folder's file system has room for all that is to be written to it."""
    for folder, _ in needs:
        needed = sum(size for other, size in needs if _device(other) == _device(folder))
        free = files.free_bytes(folder)
        if free < needed:
            raise InputError(
                f"{folder} has {free / _GIB:.1f} GiB free; this needs {needed / _GIB:.1f} GiB",
                hint="make room, or name another disk with --cache-dir and --output-dir",
            )


def _device(path: Path) -> int:
    """The file system that a path lies on, or will lie on."""
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def _provenance(recipe: Recipe) -> dict[str, object]:
    """What the image itself says of its making, in ``/opt/chameleon/provenance.json``: the same for the same bits."""
    return {
        "project": "sage-chameleon",
        "version": groundwork.__version__,
        "image_name": recipe.image_name,
        "variant": recipe.variant,
        "release": recipe.release,
        "arch": str(recipe.arch),
        "recipe_digest": recipe.digest,
    }


def project_state() -> tuple[str | None, bool | None]:
    """The commit this program runs from and whether nothing was changed since; None, None outside a clone."""
    top = Path(groundwork.__file__).parents[1]
    if not (top / ".git").exists() or process.find("git") is None:
        return None, None
    # No optional locks: as root it would leave an index that is not the user's.
    git: list[str | Path] = ["git", "--no-optional-locks", "-c", f"safe.directory={top}", "-C", top]
    try:
        commit = process.run([*git, "rev-parse", "HEAD"], timeout=30).strip()
        return commit, not process.run([*git, "status", "--porcelain"], timeout=60).strip()
    except ProcessError:  # a repository without a commit
        return None, None


@contextmanager
def _stage(title: str, seconds: dict[str, float]) -> Iterator[console.Stage]:
    with console.stage(title) as stage:
        yield stage
        seconds[title] = round(stage.elapsed, 2)

# SPDX-License-Identifier: Apache-2.0
"""The cache of layers, and of what comes before and after them: what stands, how much it takes, what to drop.

A layer is ``<cache>/layers/<digest>/`` with ``tree`` and ``layer.json``; it appears there by one rename.  Who reads
layers holds :func:`in_use`; layers are dropped only when nobody does.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from groundwork import console, files, products
from groundwork.errors import InputError, SageError
from image_builder import privilege
from image_builder.inside import LAYER_FORMAT, LayerRecord, walk
from image_builder.recipe import Layer

_RECORD = "layer.json"


@dataclass(frozen=True)
class _Format:
    """The one field that is the same in every version's records."""

    format: int


def place(digest: str, cache: Path) -> Path:
    """Where the layer with that digest stands, or will stand."""
    return cache / "layers" / digest


def standing(layer: Layer, cache: Path) -> Path | None:
    """The tree of the layer, if it was built and is still there; it then counts as just used.

    Raises InputError for one that a newer version of this program made.
    """
    record = _read(place(layer.digest, cache))
    if record is None:
        return None
    os.utime(place(layer.digest, cache) / _RECORD)
    return place(layer.digest, cache) / "tree"


def _read(folder: Path) -> LayerRecord | None:
    path = folder / _RECORD
    if not path.exists():
        return None
    try:
        record = products.load(LayerRecord, path)
    except InputError as error:
        newer = _newer(path)
        if newer:
            raise newer from None
        console.warn(f"passing over a damaged layer: {error}")
        return None
    if record.format != LAYER_FORMAT:
        newer = _newer(path)
        if newer:
            raise newer
        return None
    # A tree of root's is of no use in a user's namespace, nor the other way round.
    tree = folder / "tree"
    return record if tree.is_dir() and tree.stat().st_uid == os.geteuid() else None


def _newer(path: Path) -> InputError | None:
    """The error for a layer that a newer version wrote; its format is all that is read of it."""
    try:
        form = products.load(_Format, path).format
    except InputError:
        return None
    if form <= LAYER_FORMAT:
        return None
    return InputError(
        f"{path} was written by a newer version of this program (format {form}; this one knows {LAYER_FORMAT})",
        hint="update this program, or give it a cache of its own with --cache-dir",
    )


@contextmanager
def in_use(cache: Path) -> Iterator[None]:
    """While the block runs, no layer is dropped."""
    with files.lock(cache / "locks/layers.lock", wait=600.0, shared=True):
        yield


def prune(cache: Path, limit: int, keep: Collection[str]) -> list[str]:
    """Drop what was not used for longest, until all takes no more than ``limit`` bytes.

    That is layers, disks of builds that were never finished, native programs and further sources.  Layers in ``keep``
    stay; whoever uses a layer uses those below it too, so these go last.  Does nothing while another run uses layers,
    and passes over a disk that another run is at.  Returns the names of what was dropped, which are digests.
    """
    if not (cache / "layers").is_dir():
        return []
    dropped = []
    try:
        with files.lock(cache / "locks/layers.lock"):
            standing = _layers(cache) + _disks(cache) + _ingredients(cache)
            total = sum(kept.size for kept in standing)
            for kept in sorted(standing, key=lambda kept: kept.used):
                if total <= limit:
                    break
                if kept.path.name not in keep and _drop(kept):
                    total -= kept.size
                    dropped.append(kept.path.name)
    except SageError:
        return dropped  # another run uses them, or is at this
    return dropped


@dataclass(frozen=True)
class _Kept:
    """What stands in the cache: bytes that it takes, when it was used last (seconds since 1970), how to remove it.

    ``lock``: who uses it holds this one, or, where it is None, the layers'.  ``log``: a folder that goes with it.
    """

    path: Path
    size: int
    used: float
    remove: Callable[[Path], None]
    lock: Path | None = None
    log: Path | None = None


def _layers(cache: Path) -> list[_Kept]:
    """The layers that stand; what is none is removed."""
    top = cache / "layers"
    for left in top.glob(".*"):
        privilege.remove_tree(left)  # replaced, or of a run that was killed
    found = []
    for folder in top.iterdir():
        record = _read(folder)
        if record is None:
            privilege.remove_tree(folder)
        else:
            found.append(_Kept(folder, record.size, (folder / _RECORD).stat().st_mtime, privilege.remove_tree))
    return found


def _disks(cache: Path) -> list[_Kept]:
    """Disks of builds that failed their checks, or were interrupted: a finished build takes its own along."""
    found = []
    for path in (cache / "disks").glob("*"):
        lock, log = cache / f"locks/{path.name}.lock", cache / "logs" / path.name[:16]
        with suppress(FileNotFoundError):  # another run has just finished it
            found.append(_Kept(path, _size(path), path.stat().st_mtime, files.remove_tree, lock, log))
    return found


def _ingredients(cache: Path) -> list[_Kept]:
    """Native programs and further sources: whoever uses them is making layers."""
    return [
        _Kept(path, _size(path), path.stat().st_mtime, files.remove_tree if path.is_dir() else Path.unlink)
        for name in ("native", "sources")
        for path in (cache / name).glob("*")
    ]


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(status.st_blocks * 512 for _, status in walk(path))


def _drop(kept: _Kept) -> bool:
    """Remove it, unless another run is at it."""
    try:
        with files.lock(kept.lock) if kept.lock else nullcontext():
            kept.remove(kept.path)
            if kept.log:
                files.remove_tree(kept.log)
    except files.Locked:
        return False
    return True

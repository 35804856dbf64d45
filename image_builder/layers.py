# SPDX-License-Identifier: Apache-2.0
"""The cache of layers: which stand, how much they take, which to drop.

A layer is ``<cache>/layers/<digest>/`` with ``tree`` and ``layer.json``; it appears there by one rename.  Who reads
layers holds :func:`in_use`; layers are dropped only when nobody does.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from groundwork import console, files, products
from groundwork.errors import InputError, SageError
from image_builder import privilege
from image_builder.inside import LAYER_FORMAT, LayerRecord
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
    """Drop the layers that were not used for longest, until all take no more than ``limit`` bytes.

    Those in ``keep`` stay; whoever uses a layer uses those below it too, so these go last.  Does nothing while another
    run uses layers.  Returns the digests of those dropped.
    """
    top = cache / "layers"
    if not top.is_dir():
        return []
    dropped = []
    try:
        with files.lock(cache / "locks/layers.lock"):
            for left in top.glob(".*"):
                privilege.remove_tree(left)  # replaced, or of a run that was killed
            records = {}
            for folder in top.iterdir():
                record = _read(folder)
                if record is None:
                    privilege.remove_tree(folder)
                else:
                    records[folder] = record, (folder / _RECORD).stat().st_mtime
            total = sum(record.size for record, _ in records.values())
            for folder, (record, _) in sorted(records.items(), key=lambda item: item[1][1]):
                if total <= limit:
                    break
                if record.digest not in keep:
                    privilege.remove_tree(folder)
                    total -= record.size
                    dropped.append(record.digest)
    except SageError:
        return dropped  # another run uses them, or is at this
    return dropped

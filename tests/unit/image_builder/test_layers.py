# SPDX-License-Identifier: Apache-2.0
"""The cache keeps to its limit: what was not used for longest goes first, and nothing that is in use."""

import os
from pathlib import Path

import pytest

from groundwork import files, products
from image_builder import inside, layers, privilege

DAY = 86400.0


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests make belongs to whoever runs them."""
    monkeypatch.setattr(privilege, "remove_tree", files.remove_tree)


def layer(cache: Path, digest: str, size: int, day: int) -> None:
    folder = layers.place(digest, cache)
    (folder / "tree").mkdir(parents=True)
    products.save(inside.LayerRecord(inside.LAYER_FORMAT, "base", digest, size, 1.0), folder / "layer.json")
    os.utime(folder / "layer.json", (day * DAY, day * DAY))


def product(cache: Path, name: str, day: int) -> None:
    """A folder of 1 MiB, last used on that day."""
    folder = files.make_folder(cache / name)
    (folder / "content").write_bytes(bytes(1 << 20))
    os.utime(folder, (day * DAY, day * DAY))


def test_all_of_the_cache_keeps_to_the_limit_the_longest_unused_first(tmp_path: Path) -> None:
    layer(tmp_path, "a" * 64, 1 << 20, day=1)
    product(tmp_path, "disks/" + "b" * 64, day=2)
    product(tmp_path, "logs/" + "b" * 16, day=2)
    product(tmp_path, "native/" + "c" * 64, day=3)
    product(tmp_path, "sources/" + "d" * 40, day=4)
    (tmp_path / "sources" / ("e" * 64)).write_bytes(bytes(1 << 20))
    os.utime(tmp_path / "sources" / ("e" * 64), (5 * DAY, 5 * DAY))
    product(tmp_path, "disks/" + "f" * 64, day=6)
    assert layers.prune(tmp_path, 8 << 20, ()) == []
    some = (2 << 20) + (1 << 19)
    assert layers.prune(tmp_path, some, ()) == ["a" * 64, "b" * 64, "c" * 64, "d" * 40]
    left = {str(path.relative_to(tmp_path)) for name in ("layers", "disks", "native", "sources", "logs")
            for path in (tmp_path / name).iterdir()}  # fmt: skip
    assert left == {"sources/" + "e" * 64, "disks/" + "f" * 64}
    assert layers.prune(tmp_path, 0, ()) == ["e" * 64, "f" * 64]


def test_a_disk_that_another_run_is_at_stays(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    product(tmp_path, "disks/" + "b" * 64, day=1)
    product(tmp_path, "disks/" + "c" * 64, day=2)
    with files.lock(tmp_path / "locks" / ("b" * 64 + ".lock")):
        assert layers.prune(tmp_path, 0, ()) == ["c" * 64]
    assert layers.prune(tmp_path, 0, ()) == ["b" * 64]


def test_layers_of_this_run_stay_and_nothing_goes_while_layers_are_used(tmp_path: Path) -> None:
    layer(tmp_path, "a" * 64, 1 << 20, day=1)
    product(tmp_path, "disks/" + "b" * 64, day=2)
    with layers.in_use(tmp_path):
        assert layers.prune(tmp_path, 0, ()) == []
    assert layers.prune(tmp_path, 0, {"a" * 64}) == ["b" * 64]
    assert layers.prune(tmp_path, 0, ()) == ["a" * 64]

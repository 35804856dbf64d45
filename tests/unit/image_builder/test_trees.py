# SPDX-License-Identifier: Apache-2.0
"""The layers of a run's trees stay until its last disk is made, and no longer."""

from pathlib import Path
from typing import Any

import pytest

from groundwork import console, files, process, products
from image_builder import inside, layers, privilege, recipe, rootfs, variant
from image_builder.recipe import Recipe
from image_builder.rootfs import RootTree
from image_builder.trees import Trees
from image_builder.variant import Arch
from tests.unit.image_builder.conftest import BASE, Folders


@pytest.fixture
def recipes(folders: Folders) -> list[Recipe]:
    folders.variant("base", BASE)
    folders.variant("more", "extends: base\nimage_name: More\nelements: [two]\n")
    folders.element("one", settings="SAGE_KEY: {type: string}\n")
    folders.element("two")
    return [
        recipe.make(variant.load(name, [folders.variants]), "bookworm", Arch.AMD64, element_folders=[folders.elements])
        for name in ("base", "more")
    ]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def build(wanted: Recipe, cache: Path, *_: Any, **more: Any) -> RootTree:
        """Layers without anything in them."""
        for layer in wanted.layers:
            files.make_folder(layers.place(layer.digest, cache) / "tree")
            record = inside.LayerRecord(inside.LAYER_FORMAT, layer.name, layer.digest, 100, 1.0)
            products.save(record, layers.place(layer.digest, cache) / "layer.json")
        return RootTree(wanted.digest, tuple(rootfs.standing(wanted, cache)), (), ())

    monkeypatch.setattr(rootfs, "build", build)
    monkeypatch.setattr(privilege, "remove_tree", files.remove_tree)  # all belongs to whoever runs this
    return tmp_path / "cache"


def test_a_tree_built_beside_is_not_dropped_by_another_run_before_its_disk_is_made(
    recipes: list[Recipe], cache: Path
) -> None:
    first, second = recipes
    stage = console.Stage("root tree")
    with Trees(recipes, cache, anew=False) as trees:
        trees.get(first, stage)
        for _ in process.poll_until(5, interval=0.01):  # built while the first one's disk is checked
            if len(rootfs.standing(second, cache)) == len(second.layers):
                break
        assert layers.prune(cache, 0, ()) == []  # another run
        tree = trees.get(second, stage)
        assert all(path.is_dir() for path in tree.layers)
        assert layers.prune(cache, 0, ()) == []
    assert set(layers.prune(cache, 0, ())) == {layer.digest for layer in second.layers}


def test_where_no_tree_is_taken_nothing_is_held(recipes: list[Recipe], cache: Path) -> None:
    with Trees(recipes, cache, anew=False):
        assert not cache.exists()

# SPDX-License-Identifier: Apache-2.0
"""A tree over its variant's budget ends the build, and what grew is named."""

from pathlib import Path

import pytest

from groundwork import products
from groundwork.errors import InputError, SageError
from image_builder import budget, build, cli, inside, inventory, recipe, rootfs, variant
from image_builder.inventory import INVENTORY, Entry
from image_builder.recipe import Recipe
from image_builder.variant import Arch
from tests.unit.image_builder.conftest import BASE, Folders
from tests.unit.image_builder.trees import file, put

MIB = 1 << 20
TREE = [
    file("usr/bin/a", 2 * MIB, package="app"),
    file("usr/lib/firmware/f", 5 * MIB, package="firmware"),
    file("etc/passwd", 100),
]


def a_recipe(folders: Folders, text: str, release: str = "bookworm") -> Recipe:
    if not (folders.elements / "one").exists():
        folders.element("one")
    folders.variant("base", BASE.replace("SAGE_KEY: abc", "DIB_KEY: abc") + text)
    found = variant.load("base", [folders.variants])
    return recipe.make(found, release, Arch.AMD64, element_folders=[folders.elements, cli.project_folder("elements")])


def earlier(output: Path, made: Recipe, build_id: str, entries: list[Entry]) -> None:
    folder = output / made.image_name / build_id
    put(folder, "manifest.json")
    inventory.write(entries, folder / INVENTORY)


@pytest.mark.parametrize(
    ("text", "release", "expected"),
    [
        ("", "bookworm", None),
        ("size_budget_mib: 900\n", "noble", 900),
        ("size_budget_mib: {noble: 2000, default: 900}\n", "noble", 2000),
        ("size_budget_mib: {noble: 2000, default: 900}\n", "jammy", 900),
        ("size_budget_mib: {noble: 2000}\n", "jammy", None),
    ],
)
def test_the_budget_is_the_releases_own_or_the_default(
    folders: Folders, text: str, release: str, expected: int | None
) -> None:
    assert a_recipe(folders, text, release).size_budget_mib == expected


def test_a_child_replaces_its_parents_budget(folders: Folders) -> None:
    folders.variant("base", BASE + "size_budget_mib: 900\n")
    folders.variant("same", "extends: base\n")
    folders.variant("more", "extends: base\nsize_budget_mib: {jammy: 3000}\n")
    assert variant.load("same", [folders.variants]).size_budget_mib == {"default": 900}
    assert variant.load("more", [folders.variants]).size_budget_mib == {"jammy": 3000}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size_budget_mib: {bokworm: 9}\n", r"base.yaml:12: size_budget_mib.bokworm: unknown release"),
        ("size_budget_mib: much\n", r"base.yaml:12: size_budget_mib"),
        ("size_budget_mib: 0\n", r"base.yaml:12: size_budget_mib"),
        ("size_budget_mib: {}\n", r"base.yaml:12: size_budget_mib"),
    ],
)
def test_a_wrong_budget_is_named_with_its_place(folders: Folders, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        a_recipe(folders, text)


def test_the_budget_is_no_part_of_the_image(folders: Folders) -> None:
    without = a_recipe(folders, "")
    assert a_recipe(folders, "size_budget_mib: 5\n").digest == without.digest


def test_a_tree_within_its_budget_passes(folders: Folders, tmp_path: Path) -> None:
    budget.check(a_recipe(folders, "size_budget_mib: 8\n"), TREE, tmp_path)
    budget.check(a_recipe(folders, ""), TREE, tmp_path)


def test_over_the_budget_what_grew_since_the_newest_build_is_named(folders: Folders, tmp_path: Path) -> None:
    made = a_recipe(folders, "size_budget_mib: 5\n")
    earlier(tmp_path, made, "20260101T000000Z-aaaaaaaa", TREE)
    earlier(tmp_path, made, "20260201T000000Z-aaaaaaaa", [TREE[0]._replace(size=MIB)])
    put(tmp_path, f"{made.image_name}/20260301T000000Z-aaaaaaaa/manifest.json")  # without an inventory
    with pytest.raises(SageError) as caught:
        budget.check(made, TREE, tmp_path)
    text = str(caught.value)
    assert caught.value.exit_code == 1
    assert "takes 7.0 MiB: 2.0 MiB more than its budget of 5 MiB, and 6.0 MiB more than build 20260201T000000Z" in text
    grew = text[text.index("packages that grew most") :].splitlines()
    assert grew[1].split() == ["+", "5.0", "MiB", "firmware", "(new)"]
    assert grew[2].split() == ["+", "1.0", "MiB", "app"]
    assert "/usr/lib/firmware (new)" in text
    assert caught.value.hint is not None
    assert "size_budget_mib of variant base" in caught.value.hint


@pytest.mark.parametrize("smaller", [False, True])
def test_where_nothing_grew_the_largest_are_named(folders: Folders, tmp_path: Path, smaller: bool) -> None:
    made = a_recipe(folders, "size_budget_mib: 5\n")
    if smaller:
        earlier(tmp_path, made, "20260101T000000Z-aaaaaaaa", [*TREE, file("var/log/x", MIB)])
    with pytest.raises(SageError) as caught:
        budget.check(made, TREE, tmp_path)
    text = str(caught.value)
    assert ("1.0 MiB less than build 20260101T000000Z-aaaaaaaa" in text) == smaller
    largest = text[text.index("the largest packages") :].splitlines()
    assert largest[1].split() == ["5.0", "MiB", "firmware"]
    assert "the largest folders" in text


def test_no_disk_of_a_tree_that_is_too_large_is_kept(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = a_recipe(folders, "size_budget_mib: 5\n")

    def enter(job: inside.DiskJob, work: Path) -> None:
        inventory.write(TREE, job.folder / INVENTORY)
        products.save(inside.MadeDisk(1 << 30, 7 * MIB, 5, (), ()), job.result)

    monkeypatch.setattr(rootfs, "enter", enter)
    tree = rootfs.RootTree(made.digest, (), (), ())
    place = tmp_path / "cache/disks" / made.digest
    with pytest.raises(SageError, match="more than its budget of 5 MiB"):
        build._disk(made, tree, [], place, tmp_path / "scratch", tmp_path / "log", tmp_path / "out")
    assert not place.exists()


def test_our_variants_have_budgets_for_every_release() -> None:
    for name in variant.available([cli.project_folder("variants")]):
        found = variant.load(name, [cli.project_folder("variants")])
        assert "default" in found.size_budget_mib or set(recipe.releases()) <= set(found.size_budget_mib), name

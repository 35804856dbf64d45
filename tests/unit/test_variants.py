# SPDX-License-Identifier: Apache-2.0
"""Our variants make recipes for every release and architecture, and their checks can fail."""

import re

import pytest

from image_builder import recipe, variant
from image_builder.cli import project_folder
from image_builder.variant import Arch

VARIANTS = sorted(variant.available([project_folder("variants")]))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("release", ["noble", "jammy", "resolute", "bookworm"])
def test_a_recipe_comes_of_it(name: str, release: str) -> None:
    found = variant.load(name, [project_folder("variants")])
    for arch in found.arches:
        made = recipe.make(found, release, arch, element_folders=[project_folder("elements")])
        assert re.fullmatch(r"Sage-(Ubuntu2\d\.04|Debian1\d)(-Base)?(-CUDA)?(-ARM64)?", made.image_name)


@pytest.mark.parametrize("name", ["base", "sage"])
def test_arm64_under_a_name_of_its_own_is_the_same_image(name: str) -> None:
    folders = [project_folder("elements")]
    plain = recipe.make(variant.load(name, [project_folder("variants")]), "noble", Arch.ARM64, element_folders=folders)
    named = recipe.make(
        variant.load(f"{name}-arm64", [project_folder("variants")]), "noble", Arch.ARM64, element_folders=folders
    )
    assert named.image_name == plain.image_name
    assert (named.layers, named.checks) == (plain.layers, plain.checks)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_command_of_a_check_fails_unseen(name: str) -> None:
    for check in variant.load(name, [project_folder("variants")]).checks:
        for line in (check.run or "").splitlines():
            # bash's errexit passes over a command that begins with "!": it must stand in parentheses
            assert not line.strip().startswith("! "), f"{check.name}: {line}"

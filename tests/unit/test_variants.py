# SPDX-License-Identifier: Apache-2.0
"""Our variants make recipes for every release and architecture, and their checks can fail."""

import re

import pytest

from image_builder import recipe, variant
from image_builder.cli import project_folder
from image_builder.variant import Arch

VARIANTS = sorted(variant.available([project_folder("variants")]))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("release", ["noble", "jammy", "bookworm", "trixie"])
@pytest.mark.parametrize("arch", list(Arch))
def test_a_recipe_comes_of_it(name: str, release: str, arch: Arch) -> None:
    found = variant.load(name, [project_folder("variants")])
    if arch not in found.arches:
        pytest.skip(f"{name} is not for {arch}")
    made = recipe.make(found, release, arch, element_folders=[project_folder("elements")])
    assert re.fullmatch(r"Sage-(Ubuntu2\d\.04|Debian1\d)(-Base)?(-CUDA)?(-ARM64)?", made.image_name)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_command_of_a_check_fails_unseen(name: str) -> None:
    for check in variant.load(name, [project_folder("variants")]).checks:
        for line in (check.run or "").splitlines():
            # bash's errexit passes over a command that begins with "!": it must stand in parentheses
            assert not line.strip().startswith("! "), f"{check.name}: {line}"

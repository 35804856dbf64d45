# SPDX-License-Identifier: Apache-2.0
"""The CUDA versions that can be asked for are those whose packages are known; nothing foreign is trusted unasked."""

from typing import Any

import pytest
import yaml

from groundwork.errors import InputError
from image_builder import planning, recipe, variant
from image_builder.cli import project_folder
from image_builder.recipe import Recipe
from image_builder.variant import Arch

ELEMENT = project_folder("elements") / "cuda"
SETTINGS: dict[str, Any] = yaml.safe_load((ELEMENT / "settings.yaml").read_text())
KEY = "sha256:" + "0f" * 32


def make(name: str = "sage-cuda", release: str = "bookworm", **overrides: str) -> Recipe:
    return recipe.make(
        variant.load(name, [project_folder("variants")]),
        release,
        Arch.AMD64,
        element_folders=[project_folder("elements")],
        overrides={key: ("--flag", value) for key, value in overrides.items()},
    )


def test_every_release_that_images_are_built_of_has_cuda() -> None:
    assert set(recipe.releases()) == set(SETTINGS["SAGE_CUDA_VERSION"]["releases"])


def test_the_archives_further_components_are_for_the_cuda_layer() -> None:
    assert make().more_components == ("contrib", "non-free", "non-free-firmware")
    assert make().archive.components == ("main",)
    assert make("sage").more_components == ()
    for source in planning.sources(make()):
        assert source.components == ("main", "contrib", "non-free", "non-free-firmware")
    assert make(release="noble").more_components == ()  # Ubuntu's are there already
    for script in ("pre-install.d/20-cuda", "cleanup.d/81-cuda"):
        assert f" {' '.join(make().more_components)}/" in (ELEMENT / script).read_text()


def test_a_version_that_the_release_lacks_is_answered_with_those_it_has() -> None:
    assert make(SAGE_CUDA_VERSION="11.8").settings["SAGE_CUDA_VERSION"] == "11.8"
    with pytest.raises(InputError, match=r"bookworm does not have '12\.4'") as caught:
        make(SAGE_CUDA_VERSION="12.4")
    assert caught.value.hint == "it has: 11.8"
    assert caught.value.exit_code == 2
    assert make(release="resolute", SAGE_CUDA_VERSION="12.4").digest != make(release="resolute").digest


def test_the_layers_below_are_those_of_base_and_sage() -> None:
    for name in ("base", "sage"):
        below = make(name).layers
        layers = make(f"{name}-cuda").layers
        assert [layer.digest for layer in layers[:-1]] == [layer.digest for layer in below]
        assert layers[-1].elements[-1] == "cuda"


def test_the_container_toolkit_comes_of_nothing_but_a_key_given_whole() -> None:
    assert SETTINGS["SAGE_NVIDIA_CONTAINER_TOOLKIT"]["default"] == ""
    assert "SAGE_NVIDIA_CONTAINER_TOOLKIT" not in make().settings
    make(SAGE_NVIDIA_CONTAINER_TOOLKIT=f"https://a.example/deb/amd64 https://a.example/gpgkey {KEY}")
    for wrong in ("https://a.example/deb", f"https://a.example/deb {KEY}", "https://a.example/deb https://k sha256:00"):
        with pytest.raises(InputError, match="does not match"):
            make(SAGE_NVIDIA_CONTAINER_TOOLKIT=wrong)

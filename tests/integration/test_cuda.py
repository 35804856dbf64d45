# SPDX-License-Identifier: Apache-2.0
"""CUDA: NVIDIA's container toolkit is taken from an archive with one key; the whole image is built and booted."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder import manifest, recipe, variant
from image_builder.cli import project_folder
from image_builder.recipe import Recipe
from image_builder.variant import Arch
from image_builder.wanted import wanted
from tests.integration import commands, tiny_archive, toolkit_archive
from tests.integration.toolkit_archive import PACKAGE, Foreign
from tests.package_names import CUDA_ASKED_FOR

ELEMENT = project_folder("elements") / "cuda"


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    with toolkit_archive.serving(tmp_path) as made:
        yield made


def fetch_key(setting: str, root: Path) -> "subprocess.CompletedProcess[str]":
    """What the element does outside the image."""
    env = {**os.environ, "SAGE_NVIDIA_CONTAINER_TOOLKIT": setting, "TMP_MOUNT_PATH": str(root)}
    return subprocess.run([ELEMENT / "extra-data.d/50-cuda"], env=env, capture_output=True, text=True)


def update(setting: str, root: Path) -> "subprocess.CompletedProcess[str]":
    """What the element and apt do inside, with ``root``'s /etc in the place of this machine's.

    There is no other ``apt-get update``: layers are built of the indexes that they were planned by.
    """
    for name in ("apt/sources.list.d", "dpkg/dpkg.cfg.d"):
        (root / "etc" / name).mkdir(parents=True, exist_ok=True)
    for name in ("group", "nsswitch.conf", "passwd"):
        shutil.copy(Path("/etc", name), root / "etc")
    shutil.copytree("/etc/alternatives", root / "etc/alternatives", symlinks=True, dirs_exist_ok=True)
    for name in ("lists/partial", "cache/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    (root / "apt.conf").write_text(
        f'Dir::State "{root}"; Dir::State::status "{root}/status"; Dir::Cache "{root}/cache";\n'
        'APT::Sandbox::User "root"; Acquire::Languages "none";\n'
    )
    script = (
        f"mount --bind {root}/etc /etc && export APT_CONFIG={root}/apt.conf && {ELEMENT}/pre-install.d/20-cuda && "
        f"apt-get --simulate install {PACKAGE}"
    )
    env = {**os.environ, "SAGE_NVIDIA_CONTAINER_TOOLKIT": setting, "DISTRO_NAME": "ubuntu", "LC_ALL": "C.UTF-8"}
    words = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script]
    return subprocess.run(words, env=env, capture_output=True, text=True)


def test_the_container_toolkit_is_taken_with_the_key_that_was_named(foreign: Foreign, tmp_path: Path) -> None:
    setting = foreign.setting()
    assert fetch_key(setting, tmp_path).returncode == 0
    done = update(setting, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Inst {PACKAGE} (1.0" in done.stdout


def test_another_key_than_the_one_named_is_not_taken(foreign: Foreign, tmp_path: Path) -> None:
    done = fetch_key(foreign.setting(digest="0f" * 32), tmp_path)
    assert done.returncode == 1
    assert "is not the one expected: sha256:" in done.stderr
    assert not (tmp_path / "etc/apt/keyrings/nvidia-container-toolkit.asc").exists()


def test_an_archive_signed_by_another_key_stops_the_build(foreign: Foreign, tmp_path: Path) -> None:
    foreign.publish(tiny_archive.new_key(tmp_path, "other"))
    assert fetch_key(foreign.setting(), tmp_path).returncode == 0
    done = update(foreign.setting(), tmp_path)
    assert done.returncode != 0
    assert "is not signed" in done.stdout + done.stderr
    assert "Inst " not in done.stdout


def test_without_the_setting_nothing_foreign_is_trusted(tmp_path: Path) -> None:
    assert fetch_key("", tmp_path).returncode == 0
    assert "Unable to locate package" in update("", tmp_path).stderr
    assert [path for path in (tmp_path / "etc/apt").rglob("*") if path.is_file()] == []


def _recipe(release: str) -> Recipe:
    found = variant.load("base-cuda", [project_folder("variants")])
    return recipe.make(found, release, Arch.AMD64, element_folders=[project_folder("elements")])


def names(release: str) -> set[str]:
    layer = _recipe(release).layers[-1]
    distribution = recipe.releases()[release]["os"].lower()
    asked = wanted(
        layer.elements,
        [project_folder("elements")],
        os_name=distribution,
        release=release,
        arch=Arch.AMD64,
        settings={"SAGE_ARCHIVE_KEYS": "", "SAGE_DISTRO": distribution},
        done=layer.done,
    )
    return {one.name for one in asked if one.element == "cuda"}


@pytest.mark.parametrize("release", sorted(CUDA_ASKED_FOR))
def test_driver_and_toolkit_are_the_distributions(release: str) -> None:
    assert names(release) == CUDA_ASKED_FOR[release]


@pytest.mark.long
def test_the_cuda_image_is_built_over_sage_and_keeps_its_promises(tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("cuda")
    places = ("--output-dir", top / "build", "--cache-dir", top / "cache")
    done = commands.run("create-image", "-v", "sage-cuda", "-n", "bookworm", *places, "--json", timeout=5400)
    assert done.code == 0, done.err
    (image,) = json.loads(done.out)["images"]
    made, _ = manifest.read(Path(image["manifest"]).parent)
    assert made.image_name == "Sage-Debian12-CUDA"
    assert made.checks is not None
    passed = {result.name for result in made.checks.results if result.passed}
    assert {
        "NVIDIA's modules are built for every installed kernel, in the version of its libraries",
        "nvcc compiles and links a kernel",
        "no key and nothing of the modules' build is in the image",
        "no unit of systemd has failed",
        "cc runs a container without sudo",
    } <= passed


def test_a_version_that_the_release_lacks_is_told_before_anything_is_built(tmp_path: Path) -> None:
    places = ("--output-dir", tmp_path / "build", "--cache-dir", tmp_path / "cache")
    done = commands.run("create-image", "-v", "sage-cuda", "-n", "bookworm", "-c", "9.2", *places, timeout=60)
    assert done.code == 2
    assert "--cuda-version: bookworm does not have '9.2'" in done.err
    assert "it has: 11.8" in done.err
    assert list(tmp_path.iterdir()) == []

# SPDX-License-Identifier: Apache-2.0
"""Each release's archive is asked only for names that it has: diskimage-builder's own code over all elements."""

import json
import runpy
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import diskimage_builder.paths
import pytest
import yaml
from diskimage_builder import element_dependencies

from image_builder import recipe, variant
from tests.package_names import ASKED_FOR, CUDA_ASKED_FOR, IN_CONTAINERS
from virtual_waggle.containers import definition

ROOT = Path(__file__).parents[2]
STOCK = Path(diskimage_builder.paths.get_path("elements"))


@cache
def program(name: str) -> dict[str, Any]:
    """The functions of one of diskimage-builder's scripts."""
    return runpy.run_path(str(STOCK / name))


def pkg_map(folder: Path, names: list[str], distro: str, release: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What diskimage-builder's pkg-map makes of names that an element asks for."""
    found = folder / "pkg-map"
    if folder.name == "ubuntu-minimal" and not found.exists():
        found = ROOT / "elements/initramfs/pkg-maps/ubuntu-minimal"  # hook extra-data.d/50-initramfs puts it there
    if not found.exists():
        return set(names)
    words = ["pkg-map", "--pkg-map", str(found), "--distro", distro, "--release", release, "--missing-ok", *names]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", words)
        program("pkg-map/bin/pkg-map")["main"]()
    assert ended.value.code == 0
    return set(capsys.readouterr().out.split())


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("ARCH", "amd64")
    monkeypatch.setenv("DIB_UBUNTU_KERNEL", "linux-image-generic")
    monkeypatch.setenv("SAGE_LAYER_ABOVE", "0")
    return monkeypatch


@pytest.mark.slow
@pytest.mark.parametrize("release", sorted(ASKED_FOR))
def test_only_names_are_asked_for_that_the_release_has(
    release: str, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = recipe.releases()[release]
    distro = row["os"].lower()
    environment.setenv("DIB_RELEASE", release)
    sage = variant.load("sage", [ROOT / "variants"])
    path = f"{ROOT / 'elements'}:{STOCK}"
    asked = set(sage.packages)
    by_phase: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    folders = {
        name: Path(folder)
        for name, folder in element_dependencies.get_elements([row["element"], "layer", *sage.elements], path)
    }
    for name, folder in sorted(folders.items()):
        listed = folder / "package-installs.yaml"
        if listed.exists():
            objects = yaml.safe_load(listed.read_text())
            program("package-installs/bin/package-installs-squash")["collect_data"](by_phase, objects, name)
    by_element: dict[str, list[str]] = defaultdict(list)
    for phase in by_phase.values():
        for package, name in phase["install"]:
            by_element[name].append(package)
    for name, packages in by_element.items():
        asked |= pkg_map(folders[name], packages, distro, release, capsys)
    # What element quick-packages and scripts of the stock elements name besides.
    asked |= {"apt", "busybox", "lsb-release", "python3", "sudo", "systemd-sysv", "tzdata"}
    asked |= {"gnupg2"} if distro == "debian" else set()
    assert asked == ASKED_FOR[release], "look the name up in each release's archive, then add it to the list"


def test_defaults_of_package_maps_are_not_debians_alone() -> None:
    """A release of Ubuntu that no map names yet is asked for what the newest one has, as far as maps know."""
    for path in (ROOT / "elements").glob("*/pkg-map"):
        maps = json.loads(path.read_text())
        for package, name in maps["default"].items():
            known = ASKED_FOR["noble"] | CUDA_ASKED_FOR["noble"]
            ubuntu = {**maps["default"], **maps.get("distro", {}).get("ubuntu", {})}[package]
            assert ubuntu == "" or ubuntu in known, f"{path}: {package} -> {name}"


def test_containers_are_made_of_names_that_all_releases_have() -> None:
    made = yaml.safe_load(definition.STANDARD.read_text())
    asked = {package for one in (made["base"], *made["images"].values()) for package in one.get("packages", ())}
    assert asked == IN_CONTAINERS, "look the name up in each release's archive, then add it to the list"

# SPDX-License-Identifier: Apache-2.0
"""Which elements there are, and what a pkg-map makes of a name."""

import json
from pathlib import Path

import pytest

from groundwork.errors import InputError
from image_builder import wanted
from image_builder.variant import Arch
from image_builder.wanted import Wanted
from tests.unit.image_builder.conftest import Folders


def pkg_map(folder: Path, data: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pkg-map").write_text(json.dumps(data))
    return folder


def test_elements_come_with_all_that_they_depend_on(folders: Folders) -> None:
    folders.element("one", deps="two\ndpkg\n")
    folders.element("two")
    known = wanted.expand(["debian-minimal", "one"], [folders.elements], Arch.AMD64)
    assert {"one", "two", "dpkg", "debootstrap", "package-installs"} <= set(known)
    assert list(known) == sorted(known)
    assert known["two"] == folders.elements / "two"


def test_own_element_takes_the_place_of_a_stock_one(folders: Folders) -> None:
    folders.element("docker")
    assert (
        wanted.expand(["debian-minimal", "docker"], [folders.elements], Arch.AMD64)["docker"].parent == folders.elements
    )


def test_stock_vm_brings_the_boot_partitions_of_its_architecture() -> None:
    assert "block-device-efi" in wanted.expand(["debian-minimal", "vm"], [], Arch.ARM64)
    assert "block-device-mbr" in wanted.expand(["debian-minimal", "vm"], [], Arch.AMD64)


def test_unknown_element_and_missing_base_system_are_told() -> None:
    with pytest.raises(InputError, match="'nowhere' not found"):
        wanted.expand(["debian-minimal", "nowhere"], [], Arch.AMD64)
    with pytest.raises(InputError, match="base system"):
        wanted.expand(["dpkg"], [], Arch.AMD64)


@pytest.mark.parametrize(
    ("distro", "release", "expected"),
    [
        ("debian", "trixie", "of-release"),
        ("debian", "bookworm", "of-distro"),
        ("ubuntu", "noble", "of-family"),
        ("fedora", "40", "of-default"),
    ],
)
def test_most_particular_name_counts(tmp_path: Path, distro: str, release: str, expected: str) -> None:
    folder = pkg_map(
        tmp_path / "element",
        {
            "default": {"it": "of-default"},
            "family": {"debian": {"it": "of-family"}},
            "distro": {"debian": {"it": "of-distro"}},
            "release": {"debian": {"trixie": {"it": "of-release"}}},
        },
    )
    assert wanted.mapped("it", folder, {"DISTRO_NAME": distro, "DIB_RELEASE": release}) == [expected]


def test_name_may_stand_for_several_packages_or_none(tmp_path: Path) -> None:
    folder = pkg_map(tmp_path / "element", {"default": {"many": "one two", "none": ""}})
    environment = {"DISTRO_NAME": "debian", "DIB_RELEASE": "bookworm"}
    assert wanted.mapped("many", folder, environment) == ["one", "two"]
    assert wanted.mapped("none", folder, environment) == []
    assert wanted.mapped("unmentioned", folder, environment) == ["unmentioned"]
    assert wanted.mapped("anything", tmp_path, environment) == ["anything"]


def test_broken_pkg_map_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "pkg-map").write_text("{")
    with pytest.raises(InputError, match=r"pkg-map: not JSON"):
        wanted.mapped("it", tmp_path, {"DISTRO_NAME": "debian", "DIB_RELEASE": "bookworm"})


def test_who_asks_is_told_with_file_and_line() -> None:
    here = Path("/elements/docker/package-installs.yaml")
    assert str(Wanted("it", "docker", here, 3)) == f"element 'docker' asks for it ({here}:3)"
    assert str(Wanted("it", None, None, None)) == "the variant asks for it"


def test_the_element_is_whole_but_for_its_update(tmp_path: Path) -> None:
    wanted.spare_update(tmp_path)
    assert not (tmp_path / "dpkg/pre-install.d/99-apt-get-update").exists()
    assert (tmp_path / "dpkg/pre-install.d/00-disable-apt-recommends").exists()
    assert (tmp_path / "dpkg/bin/install-packages").exists()


def test_a_dpkg_of_the_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / "dpkg").mkdir()
    wanted.spare_update(tmp_path)
    assert list((tmp_path / "dpkg").iterdir()) == []

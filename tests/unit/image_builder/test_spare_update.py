# SPDX-License-Identifier: Apache-2.0
"""Layers fetch no indexes anew, and a user's own element stays as it is."""

from pathlib import Path

from image_builder import wanted


def test_the_element_is_whole_but_for_its_update(tmp_path: Path) -> None:
    wanted.spare_update(tmp_path)
    assert not (tmp_path / "dpkg/pre-install.d/99-apt-get-update").exists()
    assert (tmp_path / "dpkg/pre-install.d/00-disable-apt-recommends").exists()
    assert (tmp_path / "dpkg/bin/install-packages").exists()


def test_a_dpkg_of_the_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / "dpkg").mkdir()
    wanted.spare_update(tmp_path)
    assert list((tmp_path / "dpkg").iterdir()) == []

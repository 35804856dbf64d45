# SPDX-License-Identifier: Apache-2.0
"""The journal: written before a site is changed, gone when all is done, and what is left of it tells who died."""

import errno
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites.sites import Site, SiteKind
from groundwork import products
from groundwork.errors import SageError
from image_builder import journal, publisher

SITE = Site("CHI@UC", "https://x/v3", SiteKind.BAREMETAL, ())


def entry(state: Path) -> journal.Entry:
    return products.load(journal.Entry, state / "journal/chi_uc-Sage-X.json")


def test_what_is_about_to_be_done_is_written_and_goes_when_it_is_done(tmp_path: Path) -> None:
    with journal.opened(tmp_path, SITE, "Sage-X") as opened:
        opened.write(["hide a", "give the name to b"], "b")
        noted = entry(tmp_path)
        assert (noted.site, noted.image_name, noted.image_id) == ("CHI@UC", "Sage-X", "b")
        assert noted.steps == ("hide a", "give the name to b")
        assert noted.publisher == publisher.identity()
        opened.clear()
    assert list((tmp_path / "journal").glob("*.json")) == []


def test_one_run_at_a_time_works_on_a_name_at_a_site(tmp_path: Path) -> None:
    with journal.opened(tmp_path, SITE, "Sage-X") as opened:
        opened.write(["upload"])
        with pytest.raises(SageError, match="another run"), journal.opened(tmp_path, SITE, "Sage-X", wait=0.0):
            pass
        assert journal.left_at(tmp_path, SITE, "Sage-X") is None, "it is not left, its run lives"
        with journal.opened(tmp_path, SITE, "Sage-Y", wait=0.0):
            pass
    assert journal.left_at(tmp_path, SITE, "Sage-X") is not None


def test_whoever_wrote_what_is_left_is_dead_and_so_are_those_before(tmp_path: Path) -> None:
    for number, name in enumerate(["first", "second", "third"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publisher, "identity", lambda name=name: name)
            with journal.opened(tmp_path, SITE, "Sage-X") as opened:
                assert opened.dead == set(["first", "second", "third"][:number])
                opened.write([f"work of the {name}"])
    with journal.opened(tmp_path, SITE, "Sage-X") as opened:
        assert "work of the third" in str(opened.left)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"site": 1}'])
def test_a_journal_that_can_not_be_read_is_as_good_as_lost(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/chi_uc-Sage-X.json").write_text(text)
    with journal.opened(tmp_path, SITE, "Sage-X") as opened:
        assert opened.left is None
        assert opened.dead == set()


def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with journal.opened(tmp_path, SITE, "Sage-X") as opened:
        monkeypatch.setattr(products, "save", full)
        with pytest.raises(SageError, match=r"No space left on device.*nothing is done") as caught:
            opened.write(["upload"])
    assert "--state-dir" in str(caught.value.hint)

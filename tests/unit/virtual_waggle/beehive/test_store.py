# SPDX-License-Identifier: Apache-2.0
"""What store.py promises before any database is reached."""

from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle.beehive import store
from virtual_waggle.message import Measurement


@pytest.mark.parametrize("address", ["", "mysql://host/db", "sqlite:///x", "/var/lib/beehive"])
def test_an_address_that_is_no_store_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="BEEHIVE_STORE"):
        store.open_store(address, Path())


@pytest.mark.parametrize(
    "address", ["postgresql://me:hush@host/db", "postgres://:hush@host/db", "postgresql://host/db?password=hush"]
)
def test_a_password_in_the_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(InputError) as refusal:
        store.open_store(address, Path())
    assert "hush" not in f"{refusal.value} {refusal.value.hint}"


def test_the_password_is_in_a_file_which_may_be_empty_or_absent(tmp_path: Path) -> None:
    assert store.read_password(tmp_path) is None
    (tmp_path / "store-password").write_text("")
    assert store.read_password(tmp_path) is None
    (tmp_path / "store-password").write_text("hush\n")
    assert store.read_password(tmp_path) == "hush"


def test_of_two_measurements_of_one_identity_the_last_counts() -> None:
    rows = [
        Measurement("a", 1, 1, {"x": "1", "y": "2"}),
        Measurement("a", 1, 2, {"x": "1"}),
        Measurement("a", 1, 3, {"y": "2", "x": "1"}),
    ]
    grouped = store.by_series(rows)
    assert list(grouped.values()) == [{1: 3}, {1: 2}]


def test_the_text_and_the_digest_of_a_meta_do_not_depend_on_its_order() -> None:
    one, two = frozenset({"b": "ä", "a": '"'}.items()), frozenset({"a": '"', "b": "ä"}.items())
    assert store.canonical_meta(one) == store.canonical_meta(two) == '{"a":"\\"","b":"ä"}'
    assert store.series_digest("n", "{}") != store.series_digest("n{", "}")


def test_how_far_a_series_reaches_is_at_least_its_last_point() -> None:
    for timestamp in (0, store.HOUR - 1, store.HOUR, store.LATEST):
        assert timestamp <= store.hour_after(timestamp) <= store.LATEST

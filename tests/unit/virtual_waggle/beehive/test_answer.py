# SPDX-License-Identifier: Apache-2.0
"""An answer comes in pieces, and also while nothing is found yet whoever waits for it hears of the search."""

import json
from collections.abc import Sequence

import pytest

from virtual_waggle.beehive import answer
from virtual_waggle.beehive import query as queries
from virtual_waggle.beehive.query import Func, Query
from virtual_waggle.beehive.store import Point, Series


class Counted:
    """A store of so many series, each of so many reads of three points; it counts what it was asked."""

    def __init__(self, series: int, reads: int) -> None:
        self._series = [Series(number + 1, f"s{number}", "{}") for number in range(series)]
        self._last = reads * 3 - 1
        self.asked = 0

    def series(self, names: Sequence[str] | None, since: int, after: int, most: int) -> list[Series]:
        return self._series[after : after + most]

    def read(self, series: int, start: int, end: int, most: int) -> tuple[list[Point], bool]:
        self.asked += 1
        return [(time, 1) for time in range(start, start + 3)], start + 2 < self._last

    def last(self, series: int, start: int, end: int, count: int) -> int | None:
        return None

    def check(self) -> None: ...


@pytest.mark.parametrize(
    "query",
    [
        Query(start=0, func=Func.COUNT),
        Query(start=0, func=Func.MEAN, window=1 << 60),
        Query(start=0, func=Func.SUM, head=1 << 40),
        Query(start=0),
    ],
    ids=str,
)
def test_however_long_it_is_added_up_whoever_waits_hears_of_it(query: Query) -> None:
    store = Counted(series=1, reads=1 << 60)  # no end of it in a lifetime
    made = answer.pieces(store, query, "")
    for number in range(1, 5):
        next(made)
        assert store.asked <= number * 60


def test_a_search_that_finds_nothing_is_heard_of_too() -> None:
    query = Query(start=0, patterns=queries.parse_patterns({"name": "none*"}))
    found = list(answer.pieces(Counted(series=5000, reads=1), query, ""))
    assert len(found) > 5
    assert b"".join(found) == b""


@pytest.mark.parametrize(("series", "reads"), [(1, 1), (1, 120), (120, 1), (7, 50)])
def test_what_was_heard_of_on_the_way_changes_nothing_of_the_answer(series: int, reads: int) -> None:
    lines = b"".join(answer.pieces(Counted(series, reads), Query(start=0), "")).splitlines()
    told = [(line["name"], line["timestamp"][-5:-1]) for line in map(json.loads, lines)]
    assert told == [(f"s{number}", f"{time:04d}") for number in range(series) for time in range(reads * 3)]
    counts = b"".join(answer.pieces(Counted(series, reads), Query(start=0, func=Func.COUNT), "")).splitlines()
    assert [json.loads(line)["value"] for line in counts] == [reads * 3] * series

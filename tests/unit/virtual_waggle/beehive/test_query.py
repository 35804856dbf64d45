# SPDX-License-Identifier: Apache-2.0
"""What query.py promises: the data API's query contract, and a plain word about whatever is none of it."""

import json
import math
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from virtual_waggle.beehive import query as queries
from virtual_waggle.beehive.query import BadQuery, Query, Stamps
from virtual_waggle.beehive.store import LATEST, Point

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
HOUR = 3600 * SECOND


def parse(**fields: Any) -> Query:
    return queries.parse(json.dumps({"start": "-1h", **fields}).encode(), NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1h", NOW - HOUR),
        ("+1h", NOW + HOUR),
        ("-4s", NOW - 4 * SECOND),
        ("-30m", NOW - HOUR // 2),
        ("-1h30m", NOW - 3 * HOUR // 2),
        ("-1d", NOW - 24 * HOUR),
        ("-2w", NOW - 14 * 24 * HOUR),
        ("-5ms", NOW - 5_000_000),
        ("-5us", NOW - 5_000),
        ("-5µs", NOW - 5_000),
        ("-5ns", NOW - 5),
        ("1970-01-01", 0),
        ("1970-01-02", 24 * HOUR),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14t22:13:20z", NOW),
        ("2023-11-14 22:13:20Z", NOW),
        ("2023-11-14T22:13:20.5Z", NOW + SECOND // 2),
        ("2023-11-14T22:13:20.123456789Z", NOW + 123_456_789),
        ("2023-11-14T22:13:20.1234567899Z", NOW + 123_456_789),
        ("2023-11-15T00:13:20+02:00", NOW),
        ("2023-11-14T16:43:20-05:30", NOW),
        ("2016-12-31T23:59:60Z", 1_483_228_800 * SECOND),
        ("0001-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59Z", LATEST),
        ("-999999999999999999w", 0),
    ],
)
def test_times_are_absolute_or_relative(text: str, expected: int) -> None:
    assert parse(start=text).start == expected


def test_the_end_does_not_count() -> None:
    assert parse(end="2023-11-14T22:13:20Z").last == NOW - 1
    assert parse().last == parse(end="9999-12-31").last == LATEST


@given(some.datetimes(datetime(1970, 1, 1), datetime(2262, 1, 1), timezones=some.just(timezone.utc)))
def test_any_time_as_sage_data_client_writes_it_is_read(when: datetime) -> None:
    whole = round((when - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds() * 1_000_000)
    found = parse(start=when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")).start
    assert abs(found // 1000 - whole) <= 1000  # total_seconds is a float
    assert found % SECOND == when.microsecond * 1000


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"start": None},
        {"start": ""},
        {"start": 5},
        {"start": "1h"},
        {"start": "now"},
        {"start": "-"},
        {"start": "-h"},
        {"start": "-1y"},
        {"start": "-1.5h"},
        {"start": "-1h "},
        {"start": "-1h\n"},
        {"start": "2023-02-29"},
        {"start": "2023-13-01T00:00:00Z"},
        {"start": "2023-01-01T24:00:00Z"},
        {"start": "2023-01-01T00:00:61Z"},
        {"start": "2023-01-01T00:00:00"},
        {"start": "2023-01-01T00:00:00+24:00"},
        {"start": "\u0662\u0660\u0662\u0663-01-01"},
        {"start": "-1h", "end": "tomorrow"},
        {"start": "-1h", "head": 0},
        {"start": "-1h", "head": -1},
        {"start": "-1h", "head": 1.5},
        {"start": "-1h", "head": True},
        {"start": "-1h", "head": "1"},
        {"start": "-1h", "tail": 1 << 63},
        {"start": "-1h", "head": 1, "tail": 1},
        {"start": "-1h", "filter": []},
        {"start": "-1h", "filter": {"name": 1}},
        {"start": "-1h", "filter": {"name": None}},
        {"start": "-1h", "filter": {"name": ["a"]}},
        {"start": "-1h", "bucket": "_internal"},
        {"start": "-1h", "bucket": "other"},
        {"start": "-1h", "bucket": 1},
        {"start": "-1h", "experimental_func": "median"},
        {"start": "-1h", "experimental_func": ""},
        {"start": "-1h", "experimental_func": 1},
        {"start": "-1h", "experimental_window": "1m"},
        {"start": "-1h", "experimental_func": "mean", "experimental_window": "0s"},
        {"start": "-1h", "experimental_func": "mean", "experimental_window": "-1m"},
        {"start": "-1h", "experimental_func": "mean", "experimental_window": "x"},
        {"start": "-1h", "experimental_func": "mean", "experimental_window": "999999999999999999w"},
        {"start": "-1h", "limit": 5},
        {"start": "-1h", "Start": "-1h"},
        {"start": "-1h", "x\ud800" * 100: 1},
        [],
        "text",
        None,
        1,
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_what_is_no_query_is_refused_with_a_plain_word(body: Any) -> None:
    with pytest.raises(BadQuery) as refusal:
        queries.parse(json.dumps(body).encode(), NOW)
    assert 0 < len(str(refusal.value)) < 400
    str(refusal.value).encode()


@pytest.mark.parametrize(
    "body", [b"", b"  ", b"{", b"\xff", b'{"start": "-1h"} {}', b"[" * 4000, b'{"start":"-1h"}' + b" " * 4096]
)
def test_so_is_what_is_no_json_or_too_large(body: bytes) -> None:
    with pytest.raises(BadQuery):
        queries.parse(body, NOW)


@given(some.binary(max_size=200))
def test_garbage_is_refused_and_breaks_nothing(garbage: bytes) -> None:
    with pytest.raises(BadQuery):
        queries.parse(garbage, NOW)


SCALARS = some.one_of(some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=9))
ANY_JSON = some.one_of(SCALARS, some.lists(SCALARS, max_size=2), some.dictionaries(some.text(max_size=3), SCALARS))


@given(some.dictionaries(some.sampled_from([*queries._FIELDS, "other"]), ANY_JSON | some.just("-1h"), max_size=8))
def test_any_object_is_a_query_or_refused(fields: dict[str, Any]) -> None:
    try:
        query = queries.parse(json.dumps(fields).encode(), NOW)
    except BadQuery as refusal:
        str(refusal).encode()
    else:
        assert 0 <= query.start <= LATEST
        assert queries.matches(query, "a", {}) in (True, False)


def test_null_is_as_good_as_nothing() -> None:
    fields = dict.fromkeys(("end", "head", "tail", "filter", "bucket", "experimental_func", "experimental_window"))
    assert parse(**fields) == parse()


META = {"node": "0000000000000001", "vsn": "W069", "plugin": "registry.org/a/plugin:1.2.3", "größe": "ß*|"}


@pytest.mark.parametrize(
    ("given_filter", "expected"),
    [
        ({}, True),
        ({"name": "env.temperature"}, True),
        ({"name": "env.temp"}, False),
        ({"name": "env.humidity|env.temperature"}, True),
        ({"name": "env.humidity|env.pressure"}, False),
        ({"name": "env.*"}, True),
        ({"name": "env.temp.*"}, True),  # as a regular expression, which people have in mind
        ({"name": "env*"}, True),
        ({"name": "*"}, True),
        ({"name": ".*"}, True),
        ({"name": ".*.*"}, True),
        ({"name": "sys.*"}, False),
        ({"name": "sys.*|env.*"}, True),
        ({"name": "*temp*"}, True),
        ({"name": "e*v*t*re"}, True),
        ({"name": "e*v*v*re"}, False),
        ({"name": "env.temperature*"}, True),
        ({"name": "env.temperature*env.temperature"}, False),
        ({"name": "ENV.*"}, False),
        ({"name": ""}, False),
        ({"name": "envxtemperature"}, False),
        ({"name": "env.temperature\n"}, False),
        ({"vsn": "W069"}, True),
        ({"vsn": "W069|W097"}, True),
        ({"vsn": "W097"}, False),
        ({"vsn": "W06"}, False),
        ({"plugin": ".*plugin.*"}, True),
        ({"plugin": "*:1.2.3"}, True),
        ({"plugin": "*:1.2.?"}, False),
        ({"größe": "ß*"}, True),
        ({"sensor": "bme680"}, False),
        ({"sensor": "*"}, False),
        ({"sensor": ""}, False),
        ({"vsn": "W069", "sensor": "*"}, False),
        ({"vsn": "W069", "node": "0*"}, True),
        ({"vsn": "W069", "node": "1*"}, False),
    ],
)
def test_filters_take_alternatives_and_wildcards_on_any_key(given_filter: dict[str, str], expected: bool) -> None:
    assert queries.matches(parse(filter=given_filter), "env.temperature", META) is expected


def test_a_hard_pattern_takes_no_time() -> None:
    query = parse(filter={"plugin": "a*" * 1900 + "b"})
    assert not queries.matches(query, "a", {"plugin": "a" * 256})


def test_names_without_wildcards_are_known_beforehand() -> None:
    assert queries.names(parse(filter={"name": "b|a|b"})) == ["a", "b"]
    assert queries.names(parse(filter={"name": "a|b*"})) is None
    assert queries.names(parse(filter={"vsn": "a"})) is None


def test_names_that_no_measurement_can_have_are_not_asked_for() -> None:
    assert queries.names(parse(filter={"name": "a\0|a\ud800|ä|A|a|"})) == ["a"]


def made(query: Query, points: list[Point], size: int = 2) -> list[Point]:
    chunks = [points[number : number + size] for number in range(0, len(points), size)]
    return [point for part in queries.aggregate(query, chunks) for point in part]


POINTS: list[Point] = [(10, 1), (20, 2.5), (30, True), (40, "x"), (50, math.nan), (60, b"y"), (70, -4)]


@pytest.mark.parametrize(
    ("func", "expected"), [("mean", -0.5 / 3), ("min", -4), ("max", 2.5), ("sum", -0.5), ("count", 7)]
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_function_of_a_series_looks_at_its_numbers_and_count_at_all(func: str, expected: float, size: int) -> None:
    query = parse(experimental_func=func)
    ((begin, value),) = made(query, POINTS, size)
    assert begin == query.start
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("func", ["mean", "min", "max", "sum"])
def test_of_no_numbers_nothing_is_made(func: str) -> None:
    query = parse(experimental_func=func)
    assert made(query, [(1, "x"), (2, False), (3, math.nan)]) == []
    assert made(query, []) == []


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_windows_are_aligned_and_cut_to_the_range(size: int) -> None:
    query = Query(start=105, func=queries.Func.SUM, window=10)
    points: list[Point] = [(105, 1), (109, 2), (110, 4), (119, 8), (140, 16), (149, 32), (150, 64)]
    assert made(query, points, size) == [(105, 3), (110, 12), (140, 48), (150, 64)]


def test_whole_numbers_stay_whole_and_do_not_overflow() -> None:
    query = parse(experimental_func="sum")
    assert made(query, [(1, LATEST), (2, LATEST), (3, 1)]) == [(query.start, 2 * LATEST + 1)]
    ((_, total),) = made(query, [(1, math.inf), (2, -math.inf)])
    assert math.isnan(float(total))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (-(1 << 63), "-9223372036854775808"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (math.nan, "null"),
        (math.inf, "1e999"),
        (-math.inf, "-1e999"),
        ('ä"\n\u2028', '"ä\\"\\n\u2028"'),
        (b"\x00\xff", '"AP8="'),
    ],
)
def test_values_are_json(value: Any, text: str) -> None:
    assert queries.encode(value) == text
    json.loads(text)


@given(some.integers(0, LATEST))
def test_timestamps_have_all_nine_digits(timestamp: int) -> None:
    stamp = Stamps()
    assert stamp(0) == "1970-01-01T00:00:00.000000000Z"
    text = stamp(timestamp)
    assert queries.parse_time("start", text, NOW) == timestamp
    assert len(text) == 30

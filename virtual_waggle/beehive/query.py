# SPDX-License-Identifier: Apache-2.0
"""What a query to the data API may say and what it means; pure.

The contract is that of Sage's own data API (its service.go and influx_backend.go), with what its users rely on:

- ``start`` and ``end``: RFC 3339, or relative to now as ``-1h30m``; points with start <= timestamp < end count.
- ``filter``: patterns by key; ``name`` is the measurement's name, any other key is one of meta.  In a pattern ``|``
  divides alternatives and ``*`` (or ``.*``, as people write it for a regular expression) stands for any text.  A series
  without a key matches no pattern for it.
- ``head`` or ``tail``: so many points of each series.
- ``experimental_func``: mean, min, max, sum or count of each series, or of each ``experimental_window`` of it.  Of what
  ``head`` or ``tail`` leave.  All but count look at numbers alone (NaN is none).  Windows are aligned at 1970; a result
  has the time at which its window, cut to the query's range, begins.
"""

import json
import math
import re
from base64 import b64encode
from calendar import timegm
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from groundwork.compat import StrEnum
from virtual_waggle.beehive.store import LATEST, Point
from virtual_waggle.message import UPLOAD, Value, is_name

LARGEST = 4096  # bytes of a query
BUCKET = "waggle"  # the one there is

_FIELDS = ("start", "end", "head", "tail", "filter", "bucket", "experimental_func", "experimental_window")
_TIME = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})(?:[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d{2}:\d{2}))?", re.ASCII
)
_SPAN = re.compile(r"(\d{1,18})(ns|us|µs|ms|s|m|h|d|w)", re.ASCII)
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}


class BadQuery(ValueError):
    """A query that can't be answered; the text says why, for whoever sent it."""


class Func(StrEnum):
    """What can be made of many values."""

    MEAN = "mean"
    MIN = "min"
    MAX = "max"
    SUM = "sum"
    COUNT = "count"


@dataclass(frozen=True)
class Query:
    """A query.  ``start`` and ``last`` are the first and last timestamp that count, in nanoseconds since 1970.

    ``patterns`` are, by key, alternatives, each the texts between its wildcards.  ``window`` is in nanoseconds.
    """

    start: int
    last: int = LATEST
    head: int | None = None
    tail: int | None = None
    patterns: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = ()
    func: Func | None = None
    window: int | None = None


def parse(body: bytes, now: int) -> Query:
    """The query of a request's body.  ``now`` in nanoseconds since 1970.  Raises BadQuery."""
    if len(body) > LARGEST:
        raise BadQuery(f"query is too large: at most {LARGEST} bytes")
    if not body.strip():
        raise BadQuery("no query provided")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadQuery("query is no JSON") from None
    if type(data) is not dict:
        raise BadQuery("query is no JSON object")
    for key in data:
        if key not in _FIELDS:
            raise BadQuery(f"unknown field {json.dumps(key[:80])}; known are: {', '.join(_FIELDS)}")
    if data.get("head") is not None and data.get("tail") is not None:
        raise BadQuery("only one of head and tail can be given")
    bucket = _text(data, "bucket")
    if bucket is not None and bucket != BUCKET:
        raise BadQuery(f"unknown bucket {json.dumps(bucket[:80])}; there is: {BUCKET}")
    func = _func(_text(data, "experimental_func"))
    window = _text(data, "experimental_window")
    if window is not None and func is None:
        raise BadQuery("experimental_window needs experimental_func")
    start, end = _text(data, "start"), _text(data, "end")
    if not start:
        raise BadQuery("missing start field")
    return Query(
        start=min(max(parse_time("start", start, now), 0), LATEST),
        last=LATEST if not end else min(parse_time("end", end, now) - 1, LATEST),
        head=_count(data, "head"),
        tail=_count(data, "tail"),
        patterns=_patterns(data.get("filter")),
        func=func,
        window=None if window is None else _window(window),
    )


def names(query: Query) -> list[str] | None:
    """The only names that can match, or None where a wildcard allows for more.  None that no measurement can have."""
    for key, alternatives in query.patterns:
        if key == "name":
            if all(len(parts) == 1 for parts in alternatives):
                return sorted({parts[0] for parts in alternatives if is_name(parts[0])})
            return None
    return None


def matches(query: Query, name: str, meta: dict[str, str]) -> bool:
    """Whether a series is one that the query asks for."""
    for key, alternatives in query.patterns:
        text = name if key == "name" else meta.get(key)
        if text is None or not any(_fits(text, parts) for parts in alternatives):
            return False
    return True


def parse_patterns(given: dict[str, str]) -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
    """Patterns by key, as Query has them."""
    return tuple((key, tuple(tuple(_WILDCARD.split(part)) for part in text.split("|"))) for key, text in given.items())


def aggregate(query: Query, chunks: Iterable[Sequence[Point]]) -> Iterator[list[Point]]:
    """What the query's function makes of a series, whose points come in order and in chunks."""
    assert query.func is not None
    begin: int | None = None  # of the window that is gathered; of the first one no earlier than the query's start
    made = _EMPTY
    for chunk in chunks:
        results: list[Point] = []
        for window, values in _windows(query, chunk):
            if window != begin:
                if begin is not None:
                    results += _result(query.func, begin, made)
                begin, made = window, _EMPTY
            made = _gather(made, values)
        yield results
    if begin is not None:
        yield _result(query.func, begin, made)


def encode(value: Value) -> str:
    """A value as JSON.  What JSON lacks: bytes are base64, NaN is null, infinite numbers are beyond all doubles."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "null" if math.isnan(value) else "1e999" if value > 0 else "-1e999"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f'"{b64encode(value).decode()}"'


class Stamps:
    """Timestamps as RFC 3339 in UTC with nine decimals.  Remembers the last second, which many share."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, timestamp: int) -> str:
        second, rest = divmod(timestamp, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._text}.{rest:09d}Z"


_EPOCH = datetime(1970, 1, 1)
_WILDCARD = re.compile(r"\.?\*+(?:\.?\*+)*")


def parse_time(field: str, text: str, now: int) -> int:
    """Nanoseconds since 1970, which may be before it, of an absolute or relative time."""
    absolute = _TIME.fullmatch(text)
    if absolute is not None:
        return _absolute(field, text, absolute)
    if text[:1] in ("-", "+"):
        length = parse_span(text[1:])
        if length is not None:
            return now - length if text[0] == "-" else now + length
    raise BadQuery(
        f"{field}: {json.dumps(text[:80])} is no time; "
        "expected RFC 3339, as 2024-05-01T10:30:00Z, or a time relative to now, as -1h"
    )


def _absolute(field: str, text: str, match: "re.Match[str]") -> int:
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        date = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), min(int(second or 0), 59))
        if int(second or 0) > 60 or (zone and len(zone) > 1 and (int(zone[1:3]) > 23 or int(zone[4:]) > 59)):
            raise ValueError
    except ValueError:
        raise BadQuery(f"{field}: {json.dumps(text[:80])} is no time") from None
    seconds = timegm(date.timetuple()) + (1 if second == "60" else 0)
    if zone and len(zone) > 1:
        offset = int(zone[1:3]) * 3600 + int(zone[4:]) * 60
        seconds += offset if zone[0] == "-" else -offset
    return seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def parse_span(text: str) -> int | None:
    """Nanoseconds of a length of time as ``1h30m``; None where it is none."""
    total = position = 0
    while match := _SPAN.match(text, position):
        total += int(match[1]) * _UNITS[match[2]]
        position = match.end()
    return total if position == len(text) and position else None


def _text(data: dict[str, Any], field: str) -> str | None:
    found = data.get(field)
    if found is not None and type(found) is not str:
        raise BadQuery(f"{field}: expected a text")
    return found


def _count(data: dict[str, Any], field: str) -> int | None:
    found = data.get(field)
    if found is None:
        return None
    if type(found) is not int or not 1 <= found <= LATEST:
        raise BadQuery(f"{field}: expected a whole number of at least 1")
    return found


def _func(text: str | None) -> Func | None:
    if text is None:
        return None
    try:
        return Func(text)
    except ValueError:
        raise BadQuery(f"experimental_func: expected one of {', '.join(map(str, Func))}") from None


def _window(text: str) -> int:
    length = parse_span(text)
    if not length or length > LATEST:
        raise BadQuery("experimental_window: expected a length of time, as 5m")
    return length


def _patterns(given: Any) -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
    if given is None:
        return ()
    if type(given) is not dict or not all(type(value) is str for value in given.values()):
        raise BadQuery("filter: expected an object of texts")
    return parse_patterns(given)


def _fits(text: str, parts: tuple[str, ...]) -> bool:
    """Whether a text consists of these parts with anything between them; in time linear in its length for each part."""
    first, *between = parts
    if not between:
        return text == first
    last = between.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    for part in between:
        found = text.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def _windows(query: Query, points: Sequence[Point]) -> Iterator[tuple[int, list[Value]]]:
    """The values of each window that these points lie in, and where it begins."""
    if query.window is None:
        if points:
            yield query.start, [value for _, value in points]
        return
    values: list[Value] = []
    begin = end = -1
    for timestamp, value in points:
        if timestamp >= end:
            if values:
                yield max(begin, query.start), values
            begin = timestamp // query.window * query.window
            end = begin + query.window
            values = []
        values.append(value)
    if values:
        yield max(begin, query.start), values


@dataclass(frozen=True)
class _Gathered:
    """``count`` is of all values, ``numbers`` of those that are numbers; ``total`` is exact where all are whole."""

    count: int = 0
    numbers: int = 0
    total: int | float = 0
    least: int | float = math.inf
    most: int | float = -math.inf


_EMPTY = _Gathered()


def _gather(made: _Gathered, values: Sequence[Value]) -> _Gathered:
    found = [value for value in values if (type(value) is float and value == value) or type(value) is int]
    if not found:
        return _Gathered(made.count + len(values), made.numbers, made.total, made.least, made.most)
    return _Gathered(
        made.count + len(values),
        made.numbers + len(found),
        sum(found, made.total),
        min(found) if not made.numbers else min(made.least, min(found)),
        max(found) if not made.numbers else max(made.most, max(found)),
    )


_RESULTS: dict[Func, Callable[[_Gathered], int | float]] = {
    Func.MEAN: lambda made: made.total / made.numbers,
    Func.MIN: lambda made: made.least,
    Func.MAX: lambda made: made.most,
    Func.SUM: lambda made: made.total,
    Func.COUNT: lambda made: made.count,
}


def _result(func: Func, begin: int, made: _Gathered) -> list[Point]:
    if func is not Func.COUNT and not made.numbers:
        return []
    return [(begin, _RESULTS[func](made))]


_UPLOADED = re.compile(r"\d{1,19}-[0-9a-f]{40}", re.ASCII)


def is_uploaded(name: str, value: Value) -> bool:
    """Whether this is what pywaggle's upload_file publishes: ``<timestamp>-<SHA-1>`` under the name ``upload``."""
    return name == UPLOAD and isinstance(value, str) and _UPLOADED.fullmatch(value) is not None

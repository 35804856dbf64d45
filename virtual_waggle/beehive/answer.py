# SPDX-License-Identifier: Apache-2.0
"""What a query is answered: lines of JSON out of a store, a bounded piece at a time."""

import json
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import quote

from virtual_waggle.beehive import query as queries
from virtual_waggle.beehive.query import Query, Stamps
from virtual_waggle.beehive.store import Point, Readable, Series, all_series
from virtual_waggle.message import UPLOAD, Value

_ROWS = 5000  # of one read
_PIECE = 1 << 17  # bytes, about, that are handed on at once
_LOOK_UP = 500  # series after which whoever waits is told, be it of nothing
_MOST_READS = 50  # likewise, reads of the store


def pieces(store: Readable, query: Query, api: str) -> Iterator[bytes]:
    """The answer to a query, in pieces; an empty one where much was looked at and nothing found.

    A line is ``{"timestamp":...,"name":...,"value":...,"meta":{...}}``.  Each series is in order of time.  ``api`` is
    the address that links to uploaded files begin with.
    """
    lines: list[str] = []
    size = reads = 0
    for number, series in enumerate(all_series(store, queries.names(query), query.start)):
        if number % _LOOK_UP == _LOOK_UP - 1:
            yield b""
        meta = json.loads(series.meta)
        if not queries.matches(query, series.name, meta):
            continue
        write = line_writer(series.name, series.meta, meta, api)
        for chunk in _points(store, query, series):
            made = write(chunk)
            lines += made
            size += sum(map(len, made))
            reads += 1
            if size >= _PIECE or reads == _MOST_READS:
                yield "".join(lines).encode()
                lines, size, reads = [], 0, 0
    yield "".join(lines).encode()


def compressed(plain: Iterator[bytes]) -> Iterator[bytes]:
    """The same by gzip: quick rather than small, as the reader waits for it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for piece in plain:
        yield packer.compress(piece)
    yield packer.flush()


def line_writer(name: str, meta_text: str, meta: dict[str, str], api: str) -> Callable[[list[Point]], list[str]]:
    """What makes lines of a series' points."""
    stamp = Stamps()
    begin, middle, end = '{"timestamp":"', f'","name":{json.dumps(name)},"value":', f',"meta":{meta_text}}}\n'

    def write(points: list[Point]) -> list[str]:
        return [f"{begin}{stamp(time)}{middle}{queries.encode(value)}{end}" for time, value in points]

    def write_uploads(points: list[Point]) -> list[str]:
        return write([(time, _link(name, time, value, meta, api)) for time, value in points])

    return write_uploads if name == UPLOAD else write


def _points(store: Readable, query: Query, series: Series) -> Iterator[list[Point]]:
    chunks = _raw_points(store, query, series)
    return chunks if query.func is None else queries.aggregate(query, chunks)


def _raw_points(store: Readable, query: Query, series: Series) -> Iterator[list[Point]]:
    start: int = query.start
    left = query.head or query.tail
    if query.tail is not None:
        start = store.last(series.id, query.start, query.last, query.tail) or query.start
    more = True
    while more and start <= query.last and left != 0:
        chunk, more = store.read(series.id, start, query.last, _ROWS if left is None else min(left, _ROWS))
        yield chunk
        if more:
            start = chunk[-1][0] + 1
        if left is not None:
            left -= len(chunk)


def _link(name: str, timestamp: int, value: Value, meta: dict[str, str], api: str) -> Value:
    """The address of an uploaded file, as Sage's data API gives it; any other value stays as it is."""
    parts = [meta.get(key, "") for key in ("job", "task", "node", "filename")]
    if not all(parts) or not queries.is_uploaded(name, value):
        return value
    job, task, node, filename = (quote(part, safe="") for part in parts)
    return f"{api}/api/v1/data/{job}/{task}/{node}/{timestamp}-{filename}"

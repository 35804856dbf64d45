# SPDX-License-Identifier: Apache-2.0
"""The store of a Beehive on one machine: an SQLite database.

Write-ahead log, so that readers and the writer never wait for each other; each commit is synced (``synchronous=FULL``).
The table of points is its own index (WITHOUT ROWID), so that a series lies together in order of time.
"""

import contextlib
import math
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError
from virtual_waggle.beehive.store import (
    READ_SIZE,
    SERIES_A_STEP,
    Point,
    Series,
    SeriesKey,
    StoreUnavailable,
    Writing,
    by_series,
    canonical_meta,
    hour_after,
    remember,
    series_digest,
)
from virtual_waggle.message import Measurement, Value

_PATIENCE = 5.0  # seconds to wait for another writer
_TRUTH = 1  # points.kind of a truth value; else NULL, and the value has SQLite's own type (NULL stands for NaN)

_SCHEMA = """\
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    meta TEXT NOT NULL,
    until INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS series_by_name ON series (name, until);
CREATE TABLE IF NOT EXISTS points (
    series INTEGER NOT NULL,
    ts INTEGER NOT NULL,
    value,
    kind INTEGER,
    PRIMARY KEY (series, ts)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (generation INTEGER NOT NULL);
INSERT INTO state SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM state);
PRAGMA user_version = 1;
"""
_VERSION = 1


class SQLiteStore:
    """See :class:`virtual_waggle.beehive.store.Store`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[SeriesKey, Writing] = {}
        self._generation = -1
        files.make_folder(path.parent)
        with self._telling():
            self._database = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            self._prepare()

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA cache_size = -4096")  # KiB; a reader has little use of it
        execute("PRAGMA wal_autocheckpoint = 8192")  # pages: a page that changes often is copied once for many commits
        execute("PRAGMA journal_size_limit = 67108864")  # bytes that the log keeps
        (version,) = execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise InputError(f"{self._path} was made by a later version of this program", hint="run that one")
        if version == 0:
            with self._transaction():
                for statement in _SCHEMA.split(";\n"):
                    execute(statement)
            files.give_to_owner_of(self._path.parent, self._path)

    def write(self, measurements: Sequence[Measurement]) -> None:
        if self._generation < 0:
            with self._telling():
                # The ends of all series are written to again and again.
                self._database.execute("PRAGMA cache_size = -65536")  # KiB
        grouped = by_series(measurements)
        new: dict[SeriesKey, Writing] = {}
        with self._telling(), self._transaction():
            self._heed_generation()
            rows = []
            for key, points in grouped.items():
                until = hour_after(max(points))
                known = self._known.get(key)
                if known is None or known.until < until:
                    known = new[key] = self._reach(key, until)
                rows += [(known.id, timestamp, *_stored(value)) for timestamp, value in points.items()]
            rows.sort(key=_identity)
            self._database.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?)", rows)
        remember(self._known, new)

    def _heed_generation(self) -> None:
        """Forget what series there are when some were removed, by whomever."""
        (generation,) = self._database.execute("SELECT generation FROM state").fetchone()
        if generation != self._generation:
            self._known.clear()
            self._generation = generation

    def _reach(self, key: SeriesKey, until: int) -> Writing:
        """The series, made where there is none, with points up to ``until``."""
        name, meta = key[0], canonical_meta(key[1])
        row = self._database.execute(
            "INSERT INTO series (digest, name, meta, until) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (digest) DO UPDATE SET until = max(until, excluded.until) RETURNING id, until",
            (series_digest(name, meta), name, meta, until),
        ).fetchone()
        return Writing(*row)

    def series(self, names: Sequence[str] | None, since: int, after: int, most: int) -> list[Series]:
        where = "" if names is None else f"AND name IN ({','.join('?' * len(names))})"
        with self._telling():
            rows = self._database.execute(
                f"SELECT id, name, meta FROM series WHERE id > ? AND until >= ? {where} ORDER BY id LIMIT ?",  # noqa: S608
                (after, since, *(names or ()), most),
            )
            return [Series(*row) for row in rows]

    def read(self, series: int, start: int, end: int, most: int) -> tuple[list[Point], bool]:
        points: list[Point] = []
        size = 0
        with self._telling():
            rows = self._database.execute(
                "SELECT ts, value, kind FROM points WHERE series = ? AND ts BETWEEN ? AND ? ORDER BY ts LIMIT ?",
                (series, start, end, most + 1),
            )
            for timestamp, value, kind in rows:
                if len(points) == most or size >= READ_SIZE:
                    rows.close()
                    return points, True
                if kind is not None or value is None:
                    value = math.nan if kind is None else bool(value)
                elif type(value) is str or type(value) is bytes:
                    size += len(value)
                points.append((timestamp, value))
        return points, False

    def last(self, series: int, start: int, end: int, count: int) -> int | None:
        with self._telling():
            row = self._database.execute(
                "SELECT ts FROM points WHERE series = ? AND ts BETWEEN ? AND ? ORDER BY ts DESC LIMIT 1 OFFSET ?",
                (series, start, end, count - 1),
            ).fetchone()
        return row[0] if row else None

    def expire(self, before: int, after_series: int, most: int) -> tuple[int, int | None]:
        gone = 0
        empty = []
        with self._telling(), self._transaction():
            execute = self._database.execute
            page = execute(
                "SELECT id, until FROM series WHERE id > ? ORDER BY id LIMIT ?", (after_series, SERIES_A_STEP)
            ).fetchall()
            for series, until in page:
                left = most - gone
                bound = execute(
                    "SELECT ts FROM points WHERE series = ? AND ts < ? ORDER BY ts LIMIT 1 OFFSET ?",
                    (series, before, left),
                ).fetchone()
                gone += execute(
                    "DELETE FROM points WHERE series = ? AND ts < ?", (series, bound[0] if bound else before)
                ).rowcount
                if bound:
                    break  # there is more of this one
                after_series = series
                if until < before:
                    empty.append((series, series))
            if empty:
                execute("UPDATE state SET generation = generation + 1")
                self._database.executemany(
                    "DELETE FROM series WHERE id = ? AND NOT EXISTS (SELECT 1 FROM points WHERE series = ?)", empty
                )
        done = len(page) < SERIES_A_STEP and (not page or after_series == page[-1][0])
        return gone, None if done else after_series

    def check(self) -> None:
        with self._telling():
            self._database.execute("SELECT generation FROM state").fetchone()

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite ends some itself, as where the disk is full
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(f"{self._path}: {error}", hint=_hint(str(error))) from error


def _identity(row: tuple[int, int, object, object]) -> tuple[int, int]:
    return row[0], row[1]


def _stored(value: Value) -> tuple[object, int | None]:
    if value is True or value is False:
        return int(value), _TRUTH
    return value, None  # SQLite makes NULL of NaN


def _hint(text: str) -> str:
    if "full" in text:
        return "make room on its disk; what was not stored stays in the broker's queue"
    if "not a database" in text or "malformed" in text:
        return "the file is damaged: move it away, or restore a backup"
    return "see that its folder and disk can be written"

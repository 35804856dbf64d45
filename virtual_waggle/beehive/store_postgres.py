# SPDX-License-Identifier: Apache-2.0
"""The store of a Beehive of several machines: a PostgreSQL database (13 or later), for any number of loaders at once.

Rows go by COPY into a table of the session and from there into the points.  All that several loaders could wait for
each other over is done in one order (series by digest, then series by id, then points by key), so that none waits in a
circle.  Series are removed under a lock that no writer holds at the same time.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg2
from psycopg2 import errorcodes

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

# keys of advisory locks: whoever writes points shares the first, whoever removes series has it alone
_WRITING, _EXPIRING = 0x5A6E0001, 0x5A6E0002

_SCHEMA = """\
CREATE TABLE series (
    id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    digest bytea NOT NULL UNIQUE,
    name text NOT NULL,
    meta text NOT NULL,
    until bigint NOT NULL
);
CREATE INDEX series_by_name ON series (name, until);
CREATE TABLE points (
    ts bigint NOT NULL,
    series integer NOT NULL,
    truth boolean,
    whole bigint,
    real double precision,
    text text,
    bytes bytea,
    PRIMARY KEY (series, ts)
);
CREATE TABLE state (generation integer NOT NULL);
INSERT INTO state VALUES (0);
"""
_INCOMING = """\
CREATE TEMPORARY TABLE incoming (
    series integer, ts bigint, truth boolean, whole bigint, real double precision, text text, bytes bytea
) ON COMMIT DELETE ROWS
"""
_MERGE = """\
INSERT INTO points (series, ts, truth, whole, real, text, bytes)
SELECT series, ts, truth, whole, real, text, bytes FROM incoming ORDER BY series, ts
ON CONFLICT (series, ts) DO UPDATE SET truth = excluded.truth, whole = excluded.whole, real = excluded.real,
    text = excluded.text, bytes = excluded.bytes
"""
# The last column is the size of all texts and bytes up to this row.
_READ = f"""\
SELECT * FROM (
    SELECT ts, truth, whole, real, text, bytes, sum(size) OVER (ORDER BY ts ROWS UNBOUNDED PRECEDING)::bigint AS sum
    FROM (
        SELECT *, coalesce(octet_length(text), octet_length(bytes), 0) AS size
        FROM points WHERE series = %s AND ts BETWEEN %s AND %s ORDER BY ts LIMIT %s
    ) AS sized
) AS summed
WHERE sum - coalesce(octet_length(text), octet_length(bytes), 0) < {READ_SIZE}
"""  # noqa: S608
_DEADLINES = {  # milliseconds; a transaction that no one ends must not hold its locks for ever
    "statement_timeout": 60_000,
    "lock_timeout": 20_000,
    "idle_in_transaction_session_timeout": 60_000,
}
_ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class PostgresStore:
    """See :class:`virtual_waggle.beehive.store.Store`.  A connection that was lost is made anew by the next call."""

    def __init__(self, address: str, password: str | None = None) -> None:
        self._address = address
        self._password = password
        self._connection: Any = None
        self._known: dict[SeriesKey, Writing] = {}
        self._generation = -1
        with self._session():
            pass

    def write(self, measurements: Sequence[Measurement]) -> None:
        grouped = by_series(measurements)
        with self._session() as cursor:
            # A series without points harms nobody, so this is a transaction of its own; at most one more round where
            # series were removed between the two.
            for _ in range(3):
                self._reach(cursor, grouped)
                if self._store(cursor, grouped):
                    return
        raise StoreUnavailable(f"{self._shown}: series were removed again and again while points were written")

    def _reach(self, cursor: Any, grouped: dict[SeriesKey, dict[int, Value]]) -> None:
        """Know the ids of all these series; make those that there are not."""
        wanted = {}
        for key in grouped:
            if key not in self._known:
                name, meta = key[0], canonical_meta(key[1])
                wanted[series_digest(name, meta)] = (key, name, meta)
        if not wanted:
            return
        digests = sorted(wanted)
        with _transaction(cursor):
            cursor.execute(
                "INSERT INTO series (digest, name, meta, until) "
                "SELECT new.digest, new.name, new.meta, 0 "
                "FROM unnest(%s::bytea[], %s::text[], %s::text[]) AS new (digest, name, meta) "
                "WHERE NOT EXISTS (SELECT 1 FROM series WHERE series.digest = new.digest) ORDER BY new.digest "
                "ON CONFLICT (digest) DO NOTHING",
                (digests, [wanted[digest][1] for digest in digests], [wanted[digest][2] for digest in digests]),
            )
            cursor.execute("SELECT digest, id, until FROM series WHERE digest = ANY (%s::bytea[])", (digests,))
            found = {wanted[bytes(digest)][0]: Writing(id_, until) for digest, id_, until in cursor.fetchall()}
        remember(self._known, found)

    def _store(self, cursor: Any, grouped: dict[SeriesKey, dict[int, Value]]) -> bool:
        """Write the points; False where series were removed since their ids were learnt, and nothing is written."""
        with _transaction(cursor):
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (_WRITING,))
            cursor.execute("SELECT generation FROM state")
            (generation,) = cursor.fetchone()
            if generation != self._generation or any(key not in self._known for key in grouped):
                self._known.clear()
                self._generation = generation
                return False
            farther = {}
            rows = []
            for key, points in grouped.items():
                known = self._known[key]
                until = hour_after(max(points))
                if until > known.until:
                    farther[key] = Writing(known.id, until)
                rows += [(known.id, timestamp, value) for timestamp, value in points.items()]
            if farther:
                moved = sorted(farther.values())
                cursor.execute(
                    "UPDATE series SET until = greatest(series.until, new.until) FROM ("
                    "  SELECT series.id, new.until FROM unnest(%s::integer[], %s::bigint[]) AS new (id, until)"
                    "  JOIN series ON series.id = new.id ORDER BY series.id FOR UPDATE OF series"
                    ") AS new WHERE series.id = new.id",
                    ([one.id for one in moved], [one.until for one in moved]),
                )
            rows.sort(key=_identity)
            cursor.copy_from(io.StringIO("".join(_lines(rows))), "incoming")
            cursor.execute(_MERGE)
        remember(self._known, farther)
        return True

    def series(self, names: Sequence[str] | None, since: int, after: int, most: int) -> list[Series]:
        where = "" if names is None else "AND name = ANY (%s)"
        with self._session() as cursor:
            cursor.execute(
                f"SELECT id, name, meta FROM series WHERE id > %s AND until >= %s {where} ORDER BY id LIMIT %s",  # noqa: S608
                (after, since, *([list(names)] if names is not None else []), most),
            )
            return [Series(*row) for row in cursor.fetchall()]

    def read(self, series: int, start: int, end: int, most: int) -> tuple[list[Point], bool]:
        with self._session() as cursor:
            cursor.execute(_READ, (series, start, end, most + 1))
            rows = cursor.fetchall()
        points = [_point(*row[:-1]) for row in rows]
        if len(points) > most:
            return points[:most], True
        return points, bool(rows) and rows[-1][-1] >= READ_SIZE

    def last(self, series: int, start: int, end: int, count: int) -> int | None:
        with self._session() as cursor:
            cursor.execute(
                "SELECT ts FROM points WHERE series = %s AND ts BETWEEN %s AND %s ORDER BY ts DESC LIMIT 1 OFFSET %s",
                (series, start, end, count - 1),
            )
            row = cursor.fetchone()
        return row[0] if row else None

    def expire(self, before: int, after_series: int, most: int) -> tuple[int, int | None]:
        gone = 0
        empty = []
        with self._session() as cursor, _transaction(cursor):
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (_EXPIRING,))
            if cursor.fetchone() == (False,):
                return 0, None  # another loader is at it
            cursor.execute(
                "SELECT id, until FROM series WHERE id > %s ORDER BY id LIMIT %s", (after_series, SERIES_A_STEP)
            )
            page = cursor.fetchall()
            for series, until in page:
                left = most - gone
                cursor.execute(
                    "DELETE FROM points WHERE series = %s AND ts IN ("
                    "  SELECT ts FROM points WHERE series = %s AND ts < %s ORDER BY ts LIMIT %s FOR UPDATE)",
                    (series, series, before, left),
                )
                gone += cursor.rowcount
                if gone == most:
                    break  # there may be more of this one
                after_series = series
                if until < before:
                    empty.append(series)
        if empty:
            self._remove(empty)
        done = len(page) < SERIES_A_STEP and (not page or after_series == page[-1][0])
        return gone, None if done else after_series

    def _remove(self, empty: Sequence[int]) -> None:
        """Remove those of these series that have no points.  Not now, where writers keep it waiting."""
        with self._session() as cursor, contextlib.suppress(psycopg2.errors.LockNotAvailable), _transaction(cursor):
            cursor.execute("SET LOCAL lock_timeout = 1000")
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_WRITING,))
            cursor.execute("UPDATE state SET generation = generation + 1")
            cursor.execute(
                "DELETE FROM series WHERE id = ANY (%s) AND NOT EXISTS (SELECT 1 FROM points WHERE series = series.id)",
                (list(empty),),
            )

    def check(self) -> None:
        with self._session() as cursor:
            cursor.execute("SELECT generation FROM state")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _shown(self) -> str:
        return re.sub(r"\?.*", "", self._address)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        """A cursor.  What goes wrong in the block ends the session, so that nothing of it is left over."""
        try:
            if self._connection is None or self._connection.closed:
                self._connect()
            with self._connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            self._known.clear()
            with contextlib.suppress(psycopg2.Error):
                self.close()
            text = str(error).strip() or type(error).__name__
            raise StoreUnavailable(f"{self._shown}: {' '.join(text.split())}", hint=_hint(error)) from error

    def _connect(self) -> None:
        given: dict[str, Any] = {} if self._password is None else {"password": self._password}
        try:
            self._connection = psycopg2.connect(
                self._address,
                connect_timeout=5,
                tcp_user_timeout=30_000,
                keepalives_idle=15,
                keepalives_interval=5,
                keepalives_count=3,
                fallback_application_name="beehive",
                client_encoding="UTF8",
                options=" ".join(f"-c {name}={value}" for name, value in _DEADLINES.items())
                + " -c synchronous_commit=on",
                **given,
            )
        except psycopg2.ProgrammingError as error:
            raise InputError(f"BEEHIVE_STORE: {str(error).strip()}") from None
        self._connection.autocommit = True
        self._known.clear()
        self._generation = -1
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW server_encoding")
            if cursor.fetchone() != ("UTF8",):
                self.close()
                raise InputError(
                    f"{self._shown}: the database's texts are not UTF-8",
                    hint="create it with: createdb -E UTF8 -T template0",
                )
            if not _is_there(cursor):
                with _transaction(cursor):
                    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_WRITING,))
                    if not _is_there(cursor):  # another may have been quicker
                        cursor.execute(_SCHEMA)
            cursor.execute(_INCOMING)


def _is_there(cursor: Any) -> bool:
    cursor.execute("SELECT to_regclass('state')")
    return bool(cursor.fetchone() != (None,))


@contextlib.contextmanager
def _transaction(cursor: Any) -> Iterator[None]:
    cursor.execute("BEGIN")
    try:
        yield
        cursor.execute("COMMIT")
    except BaseException:
        if not cursor.connection.closed:
            with contextlib.suppress(psycopg2.Error):
                cursor.execute("ROLLBACK")
        raise


def _identity(row: tuple[int, int, Value]) -> tuple[int, int]:
    return row[0], row[1]


def _lines(rows: Iterable[tuple[int, int, Value]]) -> Iterator[str]:
    """Rows as COPY reads them: the columns series, ts, truth, whole, real, text, bytes."""
    for series, timestamp, value in rows:
        if isinstance(value, bool):
            yield f"{series}\t{timestamp}\t{'t' if value else 'f'}\t\\N\t\\N\t\\N\t\\N\n"
        elif isinstance(value, float):
            yield f"{series}\t{timestamp}\t\\N\t\\N\t{value!r}\t\\N\t\\N\n"
        elif isinstance(value, int):
            yield f"{series}\t{timestamp}\t\\N\t{value}\t\\N\t\\N\t\\N\n"
        elif isinstance(value, str):
            yield f"{series}\t{timestamp}\t\\N\t\\N\t\\N\t{value.translate(_ESCAPED)}\t\\N\n"
        else:
            yield f"{series}\t{timestamp}\t\\N\t\\N\t\\N\t\\N\t\\\\x{value.hex()}\n"


def _point(
    timestamp: int, truth: bool | None, whole: int | None, real: float | None, text: str | None, data: memoryview | None
) -> Point:
    if real is not None:
        return timestamp, real
    if whole is not None:
        return timestamp, whole
    if text is not None:
        return timestamp, text
    return (timestamp, bytes(data)) if data is not None else (timestamp, bool(truth))


def _hint(error: psycopg2.Error) -> str:
    if error.pgcode == errorcodes.DISK_FULL:
        return "make room on its disk; what was not stored stays in the broker's queue"
    return "see that PostgreSQL runs, can be reached and knows the user"

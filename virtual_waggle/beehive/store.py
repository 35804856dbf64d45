# SPDX-License-Identifier: Apache-2.0
"""The Beehive's store of measurements: what every store can do, and what is the same in all of them.

A series is a name and its meta; a point's identity is its series and its timestamp.  What is written again replaces
itself, so a message that is delivered twice leaves one point.  Values keep their types.

A store is used by one thread at a time.  What is written is on the disk when :meth:`Store.write` returns, whole or not
at all.  A store that can't be reached or has no room raises StoreUnavailable; the same call may go well later.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from groundwork.errors import InputError, SageError
from virtual_waggle.message import Measurement, Value

HOUR = 3_600_000_000_000  # nanoseconds
LATEST = (1 << 63) - 1  # nanoseconds since 1970, in 2262: the last timestamp there is
READ_SIZE = 1 << 20  # bytes
SERIES_A_STEP = 200  # that one step of expire looks at

_PAGE_OF_SERIES = 1000
_MOST_CACHED = 200_000  # series whose numbers a writer keeps in mind, some 100 bytes each and their texts

Point = tuple[int, Value]  # timestamp, value
SeriesKey = tuple[str, frozenset[tuple[str, str]]]  # name, the meta's keys and values


class StoreUnavailable(SageError):
    """The store can't be reached, has no room, or is at work for another; nothing was changed."""


class Series(NamedTuple):
    """A series of the store.  ``meta`` is the JSON text of an object of texts, its keys in order."""

    id: int
    name: str
    meta: str


class Writing(NamedTuple):
    """A series as its writers know it.  None of its points lies after ``until`` (nanoseconds since 1970)."""

    id: int
    until: int


class Readable(Protocol):
    """What whoever answers queries asks of a store."""

    def series(self, names: Sequence[str] | None, since: int, after: int, most: int) -> list[Series]:
        """The first ``most`` series of these names (None: of any) that have or had a point since then.

        Of those whose ids are above ``after``, in the order of their ids.
        """

    def read(self, series: int, start: int, end: int, most: int) -> tuple[list[Point], bool]:
        """The first points of a series with start <= timestamp <= end, in order of time, and whether there are more.

        At most ``most``, and no more than the first of which the texts and bytes come to READ_SIZE.
        """

    def last(self, series: int, start: int, end: int, count: int) -> int | None:
        """The timestamp of the first of the last ``count`` points with start <= timestamp <= end.

        None where there are fewer.
        """

    def check(self) -> None:
        """Raise StoreUnavailable where the store does not answer."""


class Store(Readable, Protocol):
    """What the Beehive asks of a store."""

    def write(self, measurements: Sequence[Measurement]) -> None:
        """Keep these measurements for good.  Of two of one identity the last counts."""

    def expire(self, before: int, after_series: int, most: int) -> tuple[int, int | None]:
        """One small step of removing what is older than ``before``: at most ``most`` points.

        Looks at the series whose ids are above ``after_series``.  How many points are gone, and the ``after_series`` of
        the next step: None when all have been looked at.
        """

    def close(self) -> None:
        """Let go of it."""


def open_store(address: str, folder: Path, password: str | None = None) -> Store:
    """The store at an address: ``sqlite`` (in this folder) or ``postgresql://user@host/database``.

    What a store needs is made where it is missing.  Raises InputError for an address that is none, StoreUnavailable.
    """
    if address == "sqlite":
        from virtual_waggle.beehive.store_sqlite import SQLiteStore

        return SQLiteStore(folder / "data.db")
    if re.match(r"postgres(ql)?://", address):
        if re.match(r"[a-z]+://[^/@]*:[^/@]*@", address) or re.search(r"[?&]password=", address):
            raise InputError(
                "BEEHIVE_STORE holds a password",
                hint="leave it out there and put it into the file store-password among the secrets",
            )
        from virtual_waggle.beehive.store_postgres import PostgresStore

        return PostgresStore(address, password)
    raise InputError(
        f"BEEHIVE_STORE: {address.partition(':')[0][:40]!r} is no store",
        hint="give sqlite or postgresql://user@host/database",
    )


def read_password(secrets: Path) -> str | None:
    """The password of the store's user, out of the file store-password; None where that is empty or absent.

    Compose wants a file in any case.
    """
    try:
        return (secrets / "store-password").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read {secrets}/store-password: {error}") from None


def all_series(store: Readable, names: Sequence[str] | None, since: int) -> Iterator[Series]:
    """All that :meth:`Store.series` gives."""
    after = 0
    while page := store.series(names, since, after, _PAGE_OF_SERIES):
        yield from page
        after = page[-1].id


def canonical_meta(meta: frozenset[tuple[str, str]]) -> str:
    """The one JSON text of a series' meta."""
    return json.dumps(dict(sorted(meta)), ensure_ascii=False, separators=(",", ":"))


def series_digest(name: str, meta: str) -> bytes:
    """16 bytes that stand for a series, for stores whose keys must be short; ``meta`` as canonical_meta has it."""
    return hashlib.blake2b(f"{name}\0{meta}".encode(), digest_size=16).digest()


def hour_after(timestamp: int) -> int:
    """The full hour after a timestamp, no later than LATEST: how far a series reaches is noted once an hour."""
    return min((timestamp // HOUR + 1) * HOUR, LATEST)


def by_series(measurements: Sequence[Measurement]) -> dict[SeriesKey, dict[int, Value]]:
    """Values by timestamp by series; the last one of each identity."""
    found: dict[SeriesKey, dict[int, Value]] = {}
    for name, timestamp, value, meta in measurements:
        key = (name, frozenset(meta.items()))
        points = found.get(key)
        if points is None:
            points = found[key] = {}
        points[timestamp] = value
    return found


def remember(known: dict[SeriesKey, Writing], new: dict[SeriesKey, Writing]) -> None:
    """Add to a writer's cache of series; one that grows too large begins anew."""
    if len(known) + len(new) > _MOST_CACHED:
        known.clear()
    known.update(new)

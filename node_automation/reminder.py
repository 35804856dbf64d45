# SPDX-License-Identifier: Apache-2.0
"""A reminder before a lease ends: a command, run once for each lease and end, which finds both in its environment."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from groundwork import files, process, products
from groundwork.errors import InputError
from groundwork.process import ProcessError
from node_automation import ledger
from node_automation.ledger import Entry, Kind

_WITHIN = 60.0  # seconds for the command
_WAIT = 30.0


@dataclass(frozen=True)
class Reminded:
    """Which ends were told: lease id -> its end; UTC, RFC 3339."""

    ends: dict[str, str]


@dataclass(frozen=True)
class Reminder:
    """One lease that ends soon, and whether its command was run; ``problem`` "" where it was."""

    lease_id: str
    name: str
    site: str
    experiment: str
    ends_at: str
    problem: str = ""


def due(entries: Iterable[Entry], reminded: Mapping[str, str], before: timedelta, now: datetime) -> tuple[Entry, ...]:
    """The leases that end within ``before`` and whose end nobody was reminded of; pure.

    ``reminded``: lease id -> the end that was told.
    """
    return tuple(
        entry
        for entry in entries
        if entry.open
        and entry.kind is Kind.LEASE
        and entry.id is not None
        and entry.ends_at is not None
        and now <= ledger.read_time(entry.ends_at) <= now + before
        and reminded.get(entry.id) != entry.ends_at
    )


def remind(state: Path, before: timedelta, command: Sequence[str], now: datetime) -> tuple[Reminder, ...]:
    """Run the command for each lease of the ledger that ends within ``before``, once.

    One whose command fails is told again the next time.
    """
    path = state / "nodes/reminded.json"
    results = []
    with files.lock(path.with_suffix(".lock"), wait=_WAIT):
        told = _read(path)
        entries = ledger.read(state)
        for entry in due(entries, told, before, now):
            assert entry.id is not None
            assert entry.ends_at is not None
            problem = _call(command, entry, now)
            if not problem:
                told[entry.id] = entry.ends_at
            results.append(Reminder(entry.id, entry.name, entry.site, entry.experiment, entry.ends_at, problem))
        known = {entry.id for entry in entries if entry.open}
        if results:
            products.save(Reminded({key: end for key, end in told.items() if key in known}), path)
    return tuple(results)


def environment(entry: Entry, now: datetime) -> Mapping[str, str]:
    """What the command finds in its environment; pure."""
    left = ledger.seconds_left(entry, now) or 0.0
    return {
        "SAGE_LEASE_ID": entry.id or "",
        "SAGE_LEASE_NAME": entry.name,
        "SAGE_LEASE_SITE": entry.site,
        "SAGE_LEASE_EXPERIMENT": entry.experiment,
        "SAGE_LEASE_ENDS_AT": entry.ends_at or "",
        "SAGE_LEASE_MINUTES_LEFT": str(int(left // 60)),
    }


def _call(command: Sequence[str], entry: Entry, now: datetime) -> str:
    try:
        process.run(command, env=environment(entry, now), timeout=_WITHIN)
    except (ProcessError, InputError, OSError) as error:
        return str(error)
    return ""


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        return dict(products.load(Reminded, path).ends)
    except InputError:  # a hand's; at worst somebody is reminded twice
        return {}

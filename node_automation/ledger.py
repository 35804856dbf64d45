# SPDX-License-Identifier: Apache-2.0
"""What was made at the sites, by which run: written before it is made, so that a killed run leaves nothing unknown.

One JSON document in the state folder, changed under a lock and replaced by one rename, for any number of runs and
threads at once.  What another machine made is told by names and tags at the sites (:mod:`node_automation.tagged`);
the words for those are made and read here.  All but the functions that take a folder are pure.
"""

import contextlib
import dataclasses
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from groundwork import files, products
from groundwork.compat import StrEnum
from groundwork.errors import InputError, SageError

TAG = "sage_run"  # a server's metadata key; a floating IP's tag begins with it, and '='
PREFIX = "sage-"  # of names of all that is made here, where there are no tags
_WAIT = 30.0  # seconds for another run to write
_TURN = 5.0  # seconds for another run of the same experiment
_LONGEST_LEASE = 76  # letters of a lease's name: Blazar keeps 80, and one of floating IPs has four more
_KEPT = timedelta(days=90)  # how long what was released is remembered
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")  # an experiment's; part of host names and of leases' names
_RUN_ID = re.compile(r"[0-9a-f]{8}")
_WRITING = threading.Lock()  # threads of this run take turns at once; only other runs are polled for


class Kind(StrEnum):
    """What was made."""

    LEASE = "lease"
    SERVER = "server"
    FLOATING_IP = "floating-ip"  # one that is ours by itself; a lease's own goes with the lease
    SECURITY_GROUP = "security-group"
    IMAGE = "image"  # a snapshot


@dataclass(frozen=True)
class Run:
    """One use of an experiment: all that is made carries both words.  ``id``: eight hexadecimal digits."""

    experiment: str
    id: str

    def __str__(self) -> str:
        return f"{self.experiment}/{self.id}"


@dataclass(frozen=True)
class Entry:
    """One thing at one site.

    ``key`` is the ledger's own; ``id`` the site's, None while it is being made (it may be there or not; its name and
    tag tell).  ``node`` is the node it is for, "" where it is for several.  ``reservation`` is the reservation's id
    that it uses.  A lease has ``starts_at``, ``ends_at`` and ``hosts``, how many nodes it holds.  Times are UTC,
    RFC 3339.
    """

    key: str
    site: str
    project_id: str
    kind: Kind
    name: str
    experiment: str
    run_id: str
    made_at: str
    id: str | None = None
    node: str = ""
    node_type: str = ""
    reservation: str | None = None
    starts_at: str | None = None
    ends_at: str | None = None
    hosts: int = 0
    released_at: str | None = None

    @property
    def run(self) -> Run:
        return Run(self.experiment, self.run_id)

    @property
    def open(self) -> bool:
        """Whether it may still stand at the site."""
        return self.released_at is None


@dataclass(frozen=True)
class _Ledger:
    """The file.  ``version`` rises with each change that an older program could not read."""

    entries: tuple[Entry, ...] = ()
    version: int = 1


def new_run(experiment: str) -> Run:
    """A run of its own.  Raises InputError where the experiment's name is not fit for names of hosts and leases."""
    return Run(check_name(experiment), secrets.token_hex(4))


def check_name(experiment: str) -> str:
    """An experiment's name as it was given.  Raises InputError where it is none."""
    if not _NAME.fullmatch(experiment):
        raise InputError(
            f"{experiment!r} is no name for an experiment",
            hint="use up to 40 lower-case letters, digits and hyphens, with no hyphen at either end",
        )
    return experiment


def new_entry(
    run: Run,
    site: str,
    project_id: str,
    kind: Kind,
    name: str,
    *,
    node: str = "",
    node_type: str = "",
    reservation: str | None = None,
    starts_at: str | None = None,
    ends_at: str | None = None,
    hosts: int = 0,
    now: datetime | None = None,
) -> Entry:
    """An entry for what is about to be made; :func:`begin` writes it down."""
    return Entry(
        key=secrets.token_hex(8),
        site=site,
        project_id=project_id,
        kind=kind,
        name=name,
        experiment=run.experiment,
        run_id=run.id,
        made_at=written(now or datetime.now(timezone.utc)),
        node=node,
        node_type=node_type,
        reservation=reservation,
        starts_at=starts_at,
        ends_at=ends_at,
        hosts=hosts,
    )


def lease_name(run: Run, site_slug: str, part: str = "") -> str:
    """The name of a run's lease at a site; ``part`` tells several of one site apart (a node type).

    A part that is too long for Blazar is told by its first letters and a digest.
    """
    name = f"{PREFIX}{run.experiment}-{site_slug}-{run.id}"
    room = _LONGEST_LEASE - len(name) - 1
    if len(part) > room:
        part = f"{part[: room - 5]}-{files.digest_text(part)[:4]}"
    return f"{name}-{part}" if part else name


def run_of_lease(name: str, site_slug: str) -> Run | None:
    """Whose lease has this name; None where it is none of ours."""
    pattern = rf"{PREFIX}({_NAME.pattern})-{re.escape(site_slug)}-({_RUN_ID.pattern})(-.*)?"
    found = re.fullmatch(pattern, name)
    return Run(found[1], found[3]) if found else None


def tag(run: Run) -> str:
    """The tag of what takes tags: ``sage_run=<experiment>/<run id>``."""
    return f"{TAG}={run}"


def run_of_tag(text: str) -> Run | None:
    """Whose tag, or value of the metadata key ``sage_run``, this is; None where it is none of ours."""
    found = re.fullmatch(rf"(?:{TAG}=)?({_NAME.pattern})/({_RUN_ID.pattern})", text)
    return Run(found[1], found[3]) if found else None


def open_entries(
    entries: Iterable[Entry],
    *,
    experiment: str | None = None,
    run_id: str | None = None,
    site: str | None = None,
    kind: Kind | None = None,
) -> tuple[Entry, ...]:
    """Those of ``entries`` that may still stand, and have the given words."""
    return tuple(
        entry
        for entry in entries
        if entry.open
        and (experiment is None or entry.experiment == experiment)
        and (run_id is None or entry.run_id == run_id)
        and (site is None or entry.site == site)
        and (kind is None or entry.kind is kind)
    )


def together(ours: Iterable[Entry], told: Iterable[Entry]) -> tuple[Entry, ...]:
    """The ledger's entries, and those that only the sites tell of (:func:`node_automation.tagged.find_tagged`).

    One that the ledger does not know the id of is the site's of that kind and name, if the site has it.
    """
    told = list(told)
    found = []
    for entry in ours:
        same = next((other for other in told if _same(entry, other)), None)
        if same is not None:
            told.remove(same)
            entry = dataclasses.replace(entry, id=same.id)
        found.append(entry)
    return (*found, *told)


def _same(entry: Entry, other: Entry) -> bool:
    if not entry.open or (entry.site, entry.kind) != (other.site, other.kind):
        return False
    if entry.id is not None:
        return entry.id == other.id
    return (entry.run, entry.name) == (other.run, other.name)


def node_hours(entry: Entry, now: datetime) -> float:
    """What a lease has cost up to now: its hosts times the hours that it has held them; 0.0 for all else."""
    if entry.kind is not Kind.LEASE or entry.starts_at is None:
        return 0.0
    end = min([now, *(read_time(text) for text in (entry.ends_at, entry.released_at) if text is not None)])
    return entry.hosts * max(0.0, (end - read_time(entry.starts_at)).total_seconds() / 3600)


def seconds_left(entry: Entry, now: datetime) -> float | None:
    """How long a lease has yet to run, 0.0 when it is over; None where that is not known."""
    return None if entry.ends_at is None else max(0.0, (read_time(entry.ends_at) - now).total_seconds())


def read(folder: Path) -> tuple[Entry, ...]:
    """All entries of the state folder's ledger, in the order in which they were made."""
    path = _path(folder)
    return products.load(_Ledger, path).entries if path.exists() else ()


def begin(folder: Path, entry: Entry) -> Entry:
    """Write down what is about to be made.  Raises SageError where that can't be; then it must not be made."""

    def add(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        oldest = written(datetime.now(timezone.utc) - _KEPT)
        return (*(kept for kept in entries if kept.released_at is None or kept.released_at >= oldest), entry)

    _change(folder, add)
    return entry


def change(folder: Path, key: str, **fields: Any) -> Entry:
    """Set fields of an entry: the ``id`` once the site has told it, ``ends_at`` after an extension."""
    changed: list[Entry] = []

    def replace(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        rows = [dataclasses.replace(entry, **fields) if entry.key == key else entry for entry in entries]
        changed.extend(entry for entry in rows if entry.key == key)
        return tuple(rows)

    _change(folder, replace)
    if not changed:
        raise SageError(f"the ledger {_path(folder)} has lost an entry ({key})", hint="`fab gc` asks the sites")
    return changed[0]


def release(folder: Path, keys: Sequence[str], *, now: datetime | None = None) -> None:
    """Note that what these entries tell of is no more, or was never made."""
    at = written(now or datetime.now(timezone.utc))
    _change(
        folder,
        lambda entries: tuple(
            dataclasses.replace(entry, released_at=at) if entry.key in keys and entry.open else entry
            for entry in entries
        ),
    )


@contextlib.contextmanager
def turn(folder: Path, experiment: str) -> Iterator[None]:
    """Be alone with an experiment on this machine.  Raises SageError where another run stays at it."""
    with files.lock(folder / f"nodes/experiment-{experiment}.lock", wait=_TURN):
        yield


def written(moment: datetime) -> str:
    """A time as it stands in the ledger: UTC, RFC 3339, to the second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_time(text: str) -> datetime:
    """A time of the ledger."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def _path(folder: Path) -> Path:
    return folder / "nodes/ledger.json"


def _change(folder: Path, changed: Callable[[tuple[Entry, ...]], tuple[Entry, ...]]) -> None:
    path = _path(folder)
    try:
        with _WRITING, files.lock(path.with_suffix(".lock"), wait=_WAIT):
            products.save(_Ledger(changed(read(folder))), path)
    except OSError as error:
        raise SageError(
            f"the ledger {path} can't be written ({error.strerror}), so nothing is made",
            hint="make room there, or name another folder by SAGE_STATE_DIR",
        ) from None

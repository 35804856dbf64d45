# SPDX-License-Identifier: Apache-2.0
"""What `virtual-waggle report` tells of a node: its parts, queues and rates, registration, uploads, last values.

Everything that can't be asked is itself a finding: the report comes also where nothing runs.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from groundwork import console, files
from groundwork.errors import InputError, SageError
from virtual_waggle import broker
from virtual_waggle.forms import Row
from virtual_waggle.message import UPLOAD
from virtual_waggle.node.state import NodeState

MANY = 50_000  # messages in a queue, above which its reader is behind
LATE_UPLOAD = 3600.0  # seconds that a file may wait for its upload
LEAST_FREE = 1 << 30  # bytes of disk
_RECENT = 3600 * 10**9  # nanoseconds in which a measurement counts as one of the last
_MOST_SERIES = 2000  # that are looked at for the last measurements
_MOST_LAST = 20
_OWN = ("sys.", "tegra_")  # names of what the node measures of itself
_MOST_FILES = 100_000  # of uploads that are counted


@dataclass(frozen=True)
class Queue:
    """A queue of the node's broker; rates are messages a second, as the broker has them of late."""

    name: str
    ready: int
    unacknowledged: int
    incoming: float
    outgoing: float


@dataclass(frozen=True)
class Last:
    """The last value under a name; ``value`` is as the data API gives it, ``timestamp`` RFC 3339."""

    name: str
    timestamp: str
    value: Any
    meta: Mapping[str, str]


@dataclass(frozen=True)
class Uploads:
    """Files that wait to be uploaded; ``oldest`` is how many seconds the first has waited."""

    files: int
    bytes: int
    oldest: float


@dataclass(frozen=True)
class Report:
    """A node at one moment.  ``registration`` and ``shovel`` are words; ``problems`` are sentences."""

    node_id: str
    vsn: str
    services: Sequence[Row]
    queues: Sequence[Queue]
    beehive: str
    registration: str
    shovel: str
    uploads: Uploads
    apps: int
    free_bytes: int
    last: Sequence[Last]
    problems: Sequence[str]


def gather(state: NodeState, services: Sequence[Row], address: tuple[str, int], now: float) -> Report:
    """Ask all there is to ask.  ``address`` is the management API's, ``now`` in seconds since 1970."""
    problems = [f"{row.service} is {row.health or row.state}" for row in services if not row.ready]
    queues: list[Queue] = []
    shovel = ""
    try:
        queues, shovel = _ask_broker(state, address)
    except SageError as error:
        problems.append(str(error))
    problems += [f"{queue.name}: {queue.ready} messages wait" for queue in queues if queue.ready > MANY]
    registration = _registration(state, now)
    if state.settings.beehive_host and registration != "registered":
        problems.append(f"the Beehive {state.settings.beehive_host}: {registration}")
    elif state.registered and queues and shovel != "running":
        problems.append(f"the shovel to {state.settings.beehive_host} is {shovel or 'not there'}")
    uploads = _uploads(state.uploads, now)
    if state.settings.beehive_host and uploads.oldest > LATE_UPLOAD:
        problems.append(f"a file waits for its upload since {uploads.oldest / 3600:.1f} h")
    free = files.free_bytes(state.folder)
    if free < LEAST_FREE:
        problems.append(f"{console.mebibytes(free)} of disk are left at {state.folder}")
    last: Sequence[Last] = []
    try:
        last = _last(database(state), int(now * 1e9))
    except SageError as error:
        problems.append(str(error))
    return Report(
        state.settings.node_id,
        state.settings.vsn,
        services,
        queues,
        state.settings.beehive_host,
        registration,
        shovel,
        uploads,
        len(list(state.apps.glob("*.json"))),
        free,
        last,
        problems,
    )


def as_data(report: Report) -> dict[str, Any]:
    """The report for JSON."""
    return asdict(report)


def show(report: Report) -> None:
    """The report for people."""
    where = f"Beehive {report.beehive}: {report.registration}" if report.beehive else "no Beehive: data stay here"
    console.result(f"node {report.node_id} ({report.vsn}), {where}")
    if report.shovel:
        console.result(f"shovel to the Beehive: {report.shovel}")
    rows = [[row.service, row.state, row.health, row.since, str(row.restarts)] for row in report.services]
    console.table(["service", "state", "health", "since", "restarts"], rows, title="\nServices")
    if report.queues:
        rows = [
            [
                queue.name,
                *map(str, (queue.ready, queue.unacknowledged)),
                f"{queue.incoming:.1f}",
                f"{queue.outgoing:.1f}",
            ]
            for queue in report.queues
        ]
        console.table(["queue", "ready", "under way", "in a second", "out a second"], rows, title="\nQueues")
    if report.last:
        rows = [[last.name, last.timestamp, str(last.value)[:40], last.meta.get("plugin", "")] for last in report.last]
        console.table(["measurement", "last at", "value", "plugin"], rows, title="\nLast measurements")
    elif report.beehive:
        console.result(f"\nlast measurements: ask the data API of {report.beehive}")
    console.result(
        f"\nuploads that wait: {report.uploads.files} ({console.mebibytes(report.uploads.bytes)}); "
        f"apps: {report.apps}; free disk: {console.mebibytes(report.free_bytes)}"
    )
    for problem in report.problems:
        console.result(f"! {problem}")


def _ask_broker(state: NodeState, address: tuple[str, int]) -> tuple[list[Queue], str]:
    from virtual_waggle import broker_client

    secret = broker_client.read_secret(state.private / broker.NODE_USERS[broker.ADMIN])
    management = broker_client.Management(f"http://{address[0]}:{address[1]}", secret)
    found = broker_client.request(management, "GET", "queues") or []
    queues = [
        Queue(
            str(row.get("name", "")),
            int(row.get("messages_ready", 0)),
            int(row.get("messages_unacknowledged", 0)),
            _rate(row, "publish"),
            _rate(row, "deliver_get"),
        )
        for row in found
    ]
    return sorted(queues, key=lambda queue: queue.name), broker_client.shovel_state(management)


def _rate(row: Mapping[str, Any], what: str) -> float:
    return float(row.get("message_stats", {}).get(f"{what}_details", {}).get("rate", 0.0))


def _registration(state: NodeState, now: float) -> str:
    if not state.settings.beehive_host:
        return "none"
    if not state.registered:
        return "not registered"
    from virtual_waggle.node import registering

    moment = datetime.fromtimestamp(now, timezone.utc)
    if registering.is_registered(state.private, state.settings.node_id, moment):
        return "registered"
    return "its certificate is damaged, or near its end"


def _uploads(folder: Path, now: float) -> Uploads:
    """Of folders that are complete: ``meta`` comes last."""
    count = size = 0
    oldest = 0.0
    for meta in folder.glob("*/*/meta"):
        try:
            size += meta.with_name("data").stat().st_size
            oldest = max(oldest, now - meta.stat().st_mtime)
        except OSError:  # uploaded just now
            continue
        count += 1
        if count == _MOST_FILES:
            break
    return Uploads(count, size, oldest)


# ----------------------------------------------------------------------------------------------------- the node's data


def database(state: NodeState) -> Path:
    """Where the recorder keeps a node's measurements."""
    from virtual_waggle.node import recorder

    return state.folder / "data" / recorder.FILE


def query(
    state: NodeState,
    *,
    start: str,
    end: str | None = None,
    head: int | None = None,
    tail: int | None = None,
    patterns: Mapping[str, str],
) -> Iterator[dict[str, Any]]:
    """What the data API would answer of a node's own measurements, row by row; an upload's value is the file's path.

    Raises InputError for a query that the API would refuse, and where there are no measurements.
    """
    from virtual_waggle.beehive import answer
    from virtual_waggle.beehive import query as queries
    from virtual_waggle.beehive.store_sqlite import SQLiteStore

    path = database(state)
    if not path.is_file():
        raise InputError(f"there are no measurements in {path.parent}", hint="with a Beehive they are there, not here")
    fields: dict[str, Any] = {"start": start, "end": end, "head": head, "tail": tail, "filter": dict(patterns)}
    body = json.dumps({key: value for key, value in fields.items() if value not in (None, {})})
    try:
        asked = queries.parse(body.encode(), time.time_ns())
    except queries.BadQuery as error:
        raise InputError(str(error)) from None
    store = SQLiteStore(path)
    try:
        rest = b""
        for piece in answer.pieces(store, asked, ""):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                row = json.loads(line)
                if row["name"] == UPLOAD:
                    row["value"] = _file(state.uploads, str(row["value"]))
                yield row
    finally:
        store.close()


def _file(uploads: Path, link: str) -> str:
    """The path of the file that a link of the data API means, if it is here."""
    timestamp, dash, _ = link.rpartition("/")[2].partition("-")
    found = next(uploads.glob(f"*/{timestamp}-*/data"), None) if dash and timestamp.isdigit() else None
    return str(found) if found else link


def _last(path: Path, now: int) -> list[Last]:
    """The last value under each name, plugins' before the node's own, the newest first."""
    if not path.is_file():
        return []
    from virtual_waggle.beehive import query as queries
    from virtual_waggle.beehive.store import LATEST, all_series
    from virtual_waggle.beehive.store_sqlite import SQLiteStore

    newest: dict[str, tuple[int, Any, dict[str, str]]] = {}
    store = SQLiteStore(path)
    try:
        for number, series in enumerate(all_series(store, None, now - _RECENT)):
            if number == _MOST_SERIES:
                break
            moment = store.last(series.id, 0, LATEST, 1)
            if moment is None or moment <= newest.get(series.name, (0,))[0]:
                continue
            points, _ = store.read(series.id, moment, moment, 1)
            newest[series.name] = moment, json.loads(queries.encode(points[0][1])), json.loads(series.meta)
    finally:
        store.close()
    stamp = queries.Stamps()
    rows = sorted(newest.items(), key=lambda item: (item[0].startswith(_OWN), -item[1][0]))[:_MOST_LAST]
    return [Last(name, stamp(moment), value, meta) for name, (moment, value, meta) in rows]

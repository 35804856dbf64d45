# SPDX-License-Identifier: Apache-2.0
"""The nodes that a Beehive knows: one file each, ``nodes/<node id>.json``; what a node was given is beside it.

Written by the operator's commands (admit, remove) and by the registration service, each under the node's lock.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from groundwork import files
from groundwork.compat import StrEnum
from groundwork.errors import InputError
from virtual_waggle import message
from virtual_waggle.beehive.store import HOUR, Readable, Series

_LARGEST = 1 << 14  # bytes
DAY = 24 * HOUR
_PAGE = 1000  # series
_LOCK_WAIT = 20.0  # seconds


class Status(StrEnum):
    """How far a node has come."""

    ADMITTED = "admitted"  # may register
    REGISTERED = "registered"
    REMOVED = "removed"  # may not come in until it is admitted again


@dataclass(frozen=True)
class Node:
    """A node; times are RFC 3339, UTC, or "" where it has not come to that.

    ``generation`` is another each time a node registers after it was admitted: keys of an earlier one open nothing.
    ``until`` is when its certificates end.  ``at_broker``: the broker knows it, or no longer knows a removed one.
    """

    id: str
    status: Status
    changed: str
    registered: str = ""
    until: str = ""
    generation: str = ""
    at_broker: bool = False


def check_id(node_id: str) -> str:
    """The id, lower case.  Raises InputError."""
    if not message.is_node_id(node_id.lower()):
        raise InputError(f"{node_id[:40]!r} is no node id", hint="expected 16 hexadecimal digits")
    return node_id.lower()


def read(folder: Path, node_id: str) -> Node | None:
    """The node, if it is known.  Raises InputError where its file is damaged."""
    path = _file(folder, node_id)
    try:
        with path.open("rb") as stream:
            data: Any = json.loads(stream.read(_LARGEST))
        node = Node(**{**data, "status": Status(data["status"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: can't be read: {error}", hint="restore it, or take it away and admit it") from None
    texts = (node.changed, node.registered, node.until, node.generation)
    if node.id != node_id or type(node.at_broker) is not bool or not all(type(text) is str for text in texts):
        raise InputError(f"{path}: does not describe node {node_id}")
    return node


def every(folder: Path) -> list[Node]:
    """All nodes, by id."""
    ids = sorted(path.stem for path in folder.glob("*.json") if message.is_node_id(path.stem))
    return [node for node in (read(folder, node_id) for node_id in ids) if node is not None]


def write(folder: Path, node: Node) -> None:
    """Put down what is known of a node."""
    files.write_text(_file(folder, node.id), json.dumps(asdict(node), indent=2) + "\n", mode=0o600)


@contextlib.contextmanager
def changing(folder: Path, node_id: str) -> Iterator[None]:
    """Keep others from changing this node.  Raises files.Locked after 20 s."""
    with files.lock(folder / f".{node_id}.lock", wait=_LOCK_WAIT):
        yield


def given_to(folder: Path, node_id: str) -> Path:
    """The folder of what a node was given: its keys and certificates."""
    return folder / node_id


def admit(folder: Path, node_id: str, *, now: datetime) -> Node:
    """Let a node register.  One that may, or has, stays as it is."""
    node_id = check_id(node_id)
    with changing(folder, node_id):
        node = read(folder, node_id)
        if node is None or node.status == Status.REMOVED:
            # until: the TLS certificate that it had, should someone still have it, works again
            node = Node(node_id, Status.ADMITTED, time_text(now), until=node.until if node else "")
            write(folder, node)
        return node


def remove(folder: Path, node_id: str, *, now: datetime) -> Node:
    """Shut a node out: its SSH certificate is refused from now on, its user at the broker is deleted by the
    registration service, which sees this within seconds; its data stay."""
    node_id = check_id(node_id)
    with changing(folder, node_id):
        node = read(folder, node_id)
        if node is None:
            raise InputError(f"no node {node_id} is known here", hint="`beehive-server nodes` lists them")
        if node.status != Status.REMOVED:
            known = node.status == Status.REGISTERED
            node = replace(node, status=Status.REMOVED, changed=time_text(now), generation="", at_broker=not known)
            write(folder, node)
        shutil.rmtree(given_to(folder, node_id), ignore_errors=True)
        return node


def new_generation() -> str:
    """A word for the keys that a node gets now."""
    return secrets.token_hex(4)


def principal(node: Node) -> str:
    """What an SSH certificate must name beside the node's user, to be of this generation."""
    return f"{user(node.id)}-{node.generation}"


def user(node_id: str) -> str:
    """A node's user, at the broker and at the upload server."""
    return f"node-{node_id}"


def listing(known: list[Node], last_seen: Mapping[str, datetime]) -> list[list[str]]:
    """Rows for people: id, status, since when, certificates' end, last measurement."""
    rows = []
    for node in known:
        seen = last_seen.get(node.id)
        rows.append([node.id, str(node.status), node.changed, node.until, time_text(seen) if seen else ""])
    return rows


def last_seen(store: Readable, ids: Collection[str], *, now: datetime) -> dict[str, datetime]:
    """When each of these nodes last measured something, as far as the store knows.

    Looks at what was measured within the hour first, then further back for those that are missing.
    """
    found: dict[str, int] = {}
    end = int(now.timestamp()) * 1_000_000_000 + DAY  # a node's clock may be ahead
    for span in (HOUR, 30 * DAY, end):
        missing = set(ids) - set(found)
        if not missing:
            break
        for series in _every_series(store, end - DAY - span if span != end else 0):
            node = json.loads(series.meta).get("node")
            if node in missing:
                last = store.last(series.id, 0, end, 1)
                if last is not None:
                    found[node] = max(last, found.get(node, 0))
    return {node: datetime.fromtimestamp(last // 1_000_000_000, timezone.utc) for node, last in found.items()}


def _every_series(store: Readable, since: int) -> Iterator[Series]:
    after = 0
    while page := store.series(None, since, after, _PAGE):
        yield from page
        after = page[-1].id


def time_text(moment: datetime) -> str:
    """RFC 3339, UTC, to the second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _file(folder: Path, node_id: str) -> Path:
    return folder / f"{node_id}.json"

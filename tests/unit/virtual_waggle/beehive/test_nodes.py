# SPDX-License-Identifier: Apache-2.0
"""Who may be a node: admitted, registered, removed; and files that are damaged."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle.beehive import nodes
from virtual_waggle.beehive.nodes import Status
from virtual_waggle.beehive.store_sqlite import SQLiteStore
from virtual_waggle.message import Measurement

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
LATER = NOW + timedelta(hours=1)
NODE = "00000000000000aa"


def test_a_node_is_admitted_once(tmp_path: Path) -> None:
    first = nodes.admit(tmp_path, NODE.upper(), now=NOW)
    assert (first.id, first.status, first.changed) == (NODE, Status.ADMITTED, "2026-11-21T12:00:00Z")
    assert nodes.admit(tmp_path, NODE, now=LATER) == first
    assert nodes.every(tmp_path) == [first]


def test_admitting_leaves_a_registered_node_as_it_is(tmp_path: Path) -> None:
    registered = replace(nodes.admit(tmp_path, NODE, now=NOW), status=Status.REGISTERED, generation="abcd")
    nodes.write(tmp_path, registered)
    assert nodes.admit(tmp_path, NODE, now=LATER) == registered


def test_a_removed_node_is_remembered_and_what_it_was_given_is_gone(tmp_path: Path) -> None:
    registered = replace(
        nodes.admit(tmp_path, NODE, now=NOW), status=Status.REGISTERED, generation="abcd", at_broker=True
    )
    nodes.write(tmp_path, registered)
    given = nodes.given_to(tmp_path, NODE)
    given.mkdir()
    (given / "node-key.pem").touch()
    removed = nodes.remove(tmp_path, NODE, now=LATER)
    assert (removed.status, removed.generation, removed.at_broker) == (Status.REMOVED, "", False)
    assert nodes.read(tmp_path, NODE) == removed
    assert not given.exists()
    assert nodes.remove(tmp_path, NODE, now=LATER) == removed
    assert nodes.admit(tmp_path, NODE, now=LATER).status == Status.ADMITTED


def test_an_unknown_node_is_not_removed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no node {NODE} is known here"):
        nodes.remove(tmp_path, NODE, now=NOW)


@pytest.mark.parametrize("node_id", ["", "1", "../../etc/passwd", "g" * 16, f"{NODE}0", "\uff10" * 16])
def test_what_is_no_node_id_is_refused(tmp_path: Path, node_id: str) -> None:
    with pytest.raises(InputError, match="is no node id"):
        nodes.admit(tmp_path, node_id, now=NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"id": "00000000000000aa", "status": "king", "changed": ""}',
        '{"id": "00000000000000bb", "status": "admitted", "changed": ""}',
        '{"id": "00000000000000aa", "status": "admitted", "changed": 5}',
        '{"id": "00000000000000aa", "status": "admitted", "changed": "", "more": 1}',
    ],
)
def test_a_damaged_file_is_told_by_name_and_lets_nobody_in(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{NODE}.json").write_text(text)
    with pytest.raises(InputError, match=rf"{NODE}\.json"):
        nodes.read(tmp_path, NODE)


def test_principals_differ_from_one_registration_to_the_next(tmp_path: Path) -> None:
    node = nodes.admit(tmp_path, NODE, now=NOW)
    found = {nodes.principal(replace(node, generation=nodes.new_generation())) for _ in range(20)}
    assert len(found) == 20
    assert all(name.startswith(f"node-{NODE}-") for name in found)


def test_the_list_tells_when_a_node_was_last_heard_of(tmp_path: Path) -> None:
    nodes.admit(tmp_path, NODE, now=NOW)
    nodes.admit(tmp_path, "00000000000000bb", now=NOW)
    rows = nodes.listing(nodes.every(tmp_path), {NODE: LATER})
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        (NODE, "admitted", "2026-11-21T13:00:00Z"),
        ("00000000000000bb", "admitted", ""),
    ]


def test_the_store_tells_when_each_node_last_measured(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "data.db")
    moment = int(NOW.timestamp()) * 10**9
    ids = ["00000000000000a1", "00000000000000a2", "00000000000000a3", "00000000000000a4"]
    ages = {ids[0]: [10, 5000], ids[1]: [90_000, 95_000], ids[2]: [40 * 86_400]}  # seconds
    store.write(
        [
            Measurement(name, moment - age * 10**9, 1, {"node": node, "age": str(age)})
            for node, given in ages.items()
            for age in given
            for name in ("env.temperature", "env.humidity")
        ]
    )
    seen = nodes.last_seen(store, ids, now=NOW)
    store.close()
    assert seen == {
        ids[0]: NOW - timedelta(seconds=10),
        ids[1]: NOW - timedelta(seconds=90_000),
        ids[2]: NOW - timedelta(days=40),
    }

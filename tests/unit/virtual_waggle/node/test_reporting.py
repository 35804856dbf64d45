# SPDX-License-Identifier: Apache-2.0
"""What a report finds wrong, and what it tells of data that lie on the node."""

import json
import time
from pathlib import Path

import pytest

from groundwork.errors import InputError, SageError
from virtual_waggle.beehive.store_sqlite import SQLiteStore
from virtual_waggle.forms import Row
from virtual_waggle.message import Measurement
from virtual_waggle.node import reporting, state
from virtual_waggle.node.reporting import Queue, Report
from virtual_waggle.node.state import NodeState

NOW = 1_700_000_000.0
WELL = [Row("rabbitmq", "running", "healthy"), Row("sharing", "running")]
QUEUES = [Queue("to-beehive", 0, 0, 1.0, 1.0), Queue("to-validator", 3, 1, 1.0, 1.0)]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeState:
    monkeypatch.setattr(reporting, "_ask_broker", lambda state, address: (QUEUES, ""))
    monkeypatch.setattr(reporting, "LEAST_FREE", 0)
    return state.make_ready(tmp_path / "state")


def report(node: NodeState, rows: list[Row] = WELL) -> Report:
    return reporting.gather(node, rows, ("127.0.0.1", 1), NOW)


def put(node: NodeState, *measurements: Measurement) -> None:
    store = SQLiteStore(reporting.database(node))
    store.write(measurements)
    store.close()


def with_beehive(node: NodeState) -> NodeState:
    path = node.folder / "waggle-node.env"
    path.write_text(f"WAGGLE_NODE_ID={node.settings.node_id}\nWAGGLE_BEEHIVE_HOST=beehive.example.org\n")
    return state.read(node.folder)


def test_a_node_that_is_well_has_no_problems(node: NodeState) -> None:
    found = report(node)
    assert found.problems == []
    assert (found.beehive, found.registration, found.queues) == ("", "none", QUEUES)
    assert json.loads(json.dumps(reporting.as_data(found)))["queues"][1]["ready"] == 3


def test_services_that_are_not_ready(node: NodeState) -> None:
    rows = [*WELL, Row("playback", "running", "unhealthy"), Row("metrics", "exited", exit_code=1)]
    assert report(node, rows).problems == ["playback is unhealthy", "metrics is exited"]


def test_a_broker_that_does_not_answer(node: NodeState, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(state: NodeState, address: tuple[str, int]) -> tuple[list[Queue], str]:
        raise SageError("the broker is away")

    monkeypatch.setattr(reporting, "_ask_broker", away)
    assert report(node).problems == ["the broker is away"]


def test_a_queue_that_is_not_read_fast_enough(node: NodeState, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [Queue("to-validator", reporting.MANY + 1, 0, 9.0, 1.0)]
    monkeypatch.setattr(reporting, "_ask_broker", lambda state, address: (full, ""))
    assert report(node).problems == [f"to-validator: {reporting.MANY + 1} messages wait"]


def test_a_node_that_is_not_registered(node: NodeState) -> None:
    assert report(with_beehive(node)).problems == ["the Beehive beehive.example.org: not registered"]


def test_files_that_wait_too_long_for_their_upload(node: NodeState) -> None:
    folder = node.uploads / "app/1-abc"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"12345")
    assert report(node).uploads.files == 0  # not complete
    (folder / "meta").write_text("{}")
    now = (folder / "meta").stat().st_mtime + 2 * reporting.LATE_UPLOAD
    node = with_beehive(node)
    found = reporting.gather(node, WELL, ("127.0.0.1", 1), now)
    assert (found.uploads.files, found.uploads.bytes) == (1, 5)
    assert "a file waits for its upload since 2.0 h" in found.problems


def test_a_full_disk(node: NodeState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "LEAST_FREE", 1 << 60)
    assert ["of disk are left" in problem for problem in report(node).problems] == [True]


def test_the_last_value_of_each_name_plugins_before_the_nodes_own(node: NodeState) -> None:
    moment = int(NOW * 1e9)
    put(
        node,
        Measurement("sys.load1", moment - 1, 0.5, {"node": "x"}),
        Measurement("env.temp", moment - 30, 20, {"plugin": "a:1"}),
        Measurement("env.temp", moment - 20, b"\xff", {"plugin": "a:1"}),
        Measurement("env.temp", moment - 25, 22, {"plugin": "b:1"}),
        Measurement("env.old", moment - 10 * 3600 * 10**9, 1, {}),
    )
    rows = report(node).last
    assert [(last.name, last.value, last.timestamp[-11:]) for last in rows] == [
        ("env.temp", "/w==", ".999999980Z"),
        ("sys.load1", 0.5, ".999999999Z"),
    ]


def test_data_are_as_the_data_api_gives_them_but_files_by_their_paths(node: NodeState) -> None:
    moment = time.time_ns()
    meta = {"job": "j", "task": "t", "node": "n", "filename": "a.jpg"}
    name = f"{moment}-{'0' * 40}"
    put(node, Measurement("upload", moment, name, meta), Measurement("env.temp", moment, 20.5, {"task": "t"}))
    (row,) = reporting.query(node, start="-1h", patterns={"name": "env.*", "task": "t|u"})
    assert (row["name"], row["value"], row["meta"]) == ("env.temp", 20.5, {"task": "t"})
    (gone,) = reporting.query(node, start="-1h", patterns={"name": "upload"})
    assert gone["value"] == f"/api/v1/data/j/t/n/{moment}-a.jpg"
    (node.uploads / "app" / name).mkdir(parents=True)
    (node.uploads / "app" / name / "data").touch()
    (here,) = reporting.query(node, start="-1h", patterns={"name": "upload"})
    assert here["value"] == str(node.uploads / "app" / name / "data")


def test_what_the_data_api_would_refuse_is_refused(node: NodeState) -> None:
    with pytest.raises(InputError, match="there are no measurements"):
        list(reporting.query(node, start="-1h", patterns={}))
    put(node, Measurement("env.temp", 1, 1, {}))
    with pytest.raises(InputError, match="start"):
        list(reporting.query(node, start="yesterday", patterns={}))
    with pytest.raises(InputError, match="head and tail"):
        list(reporting.query(node, start="-1h", head=1, tail=1, patterns={}))

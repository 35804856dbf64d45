# SPDX-License-Identifier: Apache-2.0
"""A Beehive and a node by their commands, as plain processes: from unmodified pywaggle to the data API."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sage_data_client

from groundwork import process
from tests.integration.waggle import by_commands
from tests.integration.waggle.by_commands import NODE, call

ENOUGH = 90.0  # seconds
PLUGIN = """
import time
from waggle.plugin import Plugin

with Plugin() as plugin:
    for number in range(100):
        plugin.publish("count.up", number, timestamp=10**18 + number)
    with open("note.txt", "w") as stream:
        stream.write("hello")
    plugin.upload_file("note.txt", timestamp=10**18)
"""


@dataclass(frozen=True)
class Both:
    """A Beehive and a node registered there."""

    beehive: Path
    node: Path
    api: str

    def values(self) -> list[int]:
        found = sage_data_client.query(
            start="2001-09-09T00:00:00Z", filter={"name": "count.up"}, endpoint=f"{self.api}/api/v1/query"
        )
        return [] if found.empty else list(found["value"])


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with by_commands.both_up() as (beehive, node, told):
        yield Both(beehive, node, told["addresses"]["data API"])


def test_measurements_and_files_of_a_plugin_come_to_the_data_api(both: Both, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(PLUGIN)
    call("virtual-waggle", both.node, "run", "--native", tmp_path)
    for _ in process.poll_until(ENOUGH, 0.5):
        if len(both.values()) == 100:
            break
    assert both.values() == list(range(100))
    query = {"start": "2001-09-09T00:00:00Z", "filter": {"name": "upload"}}
    link = ""
    for _ in process.poll_until(ENOUGH, 0.5):
        request = urllib.request.Request(f"{both.api}/api/v1/query", json.dumps(query).encode())  # noqa: S310
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            rows = [json.loads(line) for line in answer]
        if rows and list(both.beehive.glob(f"uploads/node-{NODE}/*/*/*/data")):
            link = rows[0]["value"]
            break
    with urllib.request.urlopen(link, timeout=20) as answer:  # noqa: S310
        assert answer.read() == b"hello"


def test_the_nodes_report_is_clean_and_its_data_are_not_here(both: Both) -> None:
    report = json.loads(call("virtual-waggle", both.node, "report", "--json").stdout)
    assert (report["registration"], report["shovel"], report["problems"]) == ("registered", "running", [])
    assert "with a Beehive they are there" in call("virtual-waggle", both.node, "data", check=2).stderr


def test_the_beehives_commands_tell_what_there_is(both: Both) -> None:
    rows = json.loads(call("beehive-server", both.beehive, "status", "--json").stdout)["services"]
    assert {row["service"] for row in rows} == {"rabbitmq", "registration", "upload-server", "loader", "api"}
    (node,) = json.loads(call("beehive-server", both.beehive, "nodes", "--json").stdout)["nodes"]
    assert (node["id"], node["status"]) == (NODE, "registered")
    assert "loading" in call("beehive-server", both.beehive, "logs", "loader").stdout
    assert json.loads(call("beehive-server", both.beehive, "deploy", "--json").stdout)["changed"] == []


def test_a_backup_becomes_a_beehive_elsewhere_and_not_over_one_that_runs(both: Both, tmp_path: Path) -> None:
    archive = tmp_path / "beehive.tar.gz"
    call("beehive-server", both.beehive, "backup", archive, "--uploads")
    said = call("beehive-server", both.beehive, "restore", archive, "--force", check=2).stderr
    assert "services are not stopped" in said
    told: dict[str, Any] = json.loads(call("beehive-server", tmp_path / "copy", "restore", archive, "--json").stdout)
    assert told["head"]["uploads"] is True
    (node,) = json.loads(call("beehive-server", tmp_path / "copy", "nodes", "--json").stdout)["nodes"]
    assert node["id"] == NODE
    assert [path.read_text() for path in (tmp_path / "copy").glob("uploads/*/*/*/*/data")] == ["hello"]


def test_a_node_that_is_removed_is_out(both: Both) -> None:
    other = "00000000000000bb"
    assert (
        json.loads(call("beehive-server", both.beehive, "nodes", "admit", other, "--json").stdout)["status"]
        == "admitted"
    )
    assert "removed" in call("beehive-server", both.beehive, "nodes", "remove", other).stdout
    assert "is no node id" in call("beehive-server", both.beehive, "nodes", "admit", "xyz", check=2).stderr
    assert "expected a node's id" in call("beehive-server", both.beehive, "nodes", "admit", check=2).stderr


def test_a_node_registers_when_it_can_without_anyone_at_its_keyboard(both: Both) -> None:
    settings, key = both.node / "waggle-node.env", both.node / "private/register.pem"
    before, handed = settings.read_text(), key.read_text()

    def renew(check: int = 0) -> "tuple[bool, bool]":
        told = json.loads(call("virtual-waggle", both.node, "renew", "--json", check=check).stdout)
        return told["registered"], told["renewed"]

    assert renew() == (True, False)
    # another Beehive, whose operator has handed out no key yet: what the first one gave does not count there
    settings.write_text(before.replace("WAGGLE_BEEHIVE_HOST=localhost", "WAGGLE_BEEHIVE_HOST=127.0.0.1"))
    key.unlink()
    done = call("virtual-waggle", both.node, "up", "--native", "--json")
    assert not json.loads(done.stdout)["registered"]
    assert "not registered: can't read" in done.stderr
    assert renew(check=1) == (False, False)
    settings.write_text(before)
    key.write_text(handed)
    key.chmod(0o600)
    (both.node / "private/registered-as").unlink()
    assert renew() == (True, True)
    assert renew() == (True, False)
    for _ in process.poll_until(ENOUGH, 0.5):
        report = json.loads(call("virtual-waggle", both.node, "report", "--json", check=None).stdout)
        if report["shovel"] == "running":
            break
    assert (report["registration"], report["shovel"]) == ("registered", "running")
    # one that its user stopped stays so
    call("virtual-waggle", both.node, "down")
    (both.node / "private/node-cert.pem").unlink()
    assert renew() == (False, False)
    rows = json.loads(call("virtual-waggle", both.node, "status", "--json", check=1).stdout)["services"]
    assert {row["state"] for row in rows} == {"stopped"}
    assert json.loads(call("virtual-waggle", both.node, "up", "--native", "--json").stdout)["registered"]


def test_a_node_that_leaves_its_beehive_keeps_its_data(both: Both, tmp_path: Path) -> None:
    settings = both.node / "waggle-node.env"
    before = settings.read_text()
    settings.write_text(before.replace("WAGGLE_BEEHIVE_HOST=localhost", "WAGGLE_BEEHIVE_HOST="))
    call("virtual-waggle", both.node, "up", "--native")
    try:
        assert json.loads(call("virtual-waggle", both.node, "report", "--json").stdout)["shovel"] == ""
        (tmp_path / "main.py").write_text(PLUGIN.replace("count.up", "count.alone"))
        call("virtual-waggle", both.node, "run", "--native", tmp_path)
        words = ["--name", "count.alone", "--start", "2001-09-09T00:00:00Z", "--json"]
        for _ in process.poll_until(ENOUGH, 0.5):
            rows = call("virtual-waggle", both.node, "data", *words).stdout.splitlines()
            if len(rows) == 100:
                break
        assert [json.loads(row)["value"] for row in rows] == list(range(100))
    finally:
        settings.write_text(before)

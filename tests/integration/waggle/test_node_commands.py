# SPDX-License-Identifier: Apache-2.0
"""A node by its commands, as plain processes: unmodified pywaggle publishes, subscribes and uploads in a plugin."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest

from groundwork import process
from tests.integration.waggle import brokers
from virtual_waggle import broker_client, message
from virtual_waggle.message import Measurement
from virtual_waggle.node import apps
from virtual_waggle.node.apps import App

ENOUGH = 60.0  # seconds
LOCAL = ("BROKER", "MANAGEMENT", "PLAYBACK", "PROMETHEUS", "RECORDER", "EPMD", "DISTRIBUTION")
PLUGIN = """
import json, math, os, sys, time
from waggle.plugin import Plugin

with Plugin() as plugin:
    plugin.subscribe("kind.#")
    time.sleep(2)  # the subscription is made in the background
    for number, (value, scope) in enumerate(
        [(1, "all"), (2.5, "all"), ("\\u00fc\\U0001f41d", "all"), (True, "all"), (7, "node"), (8, "beehive")]
    ):
        plugin.publish(f"kind.k{number}", value, meta={"who": "caf\\u00e9"}, timestamp=10**18 + number, scope=scope)
    with open("picture.bin", "wb") as stream:
        stream.write(bytes(range(256)))
    plugin.upload_file("picture.bin", meta={"camera": "top"}, timestamp=10**18 + 99)
    received = sorted(plugin.get(timeout=30).name for _ in range(5))
    print(json.dumps({"received": received, "module": sys.modules["waggle.plugin"].__file__, "words": sys.argv[1:]}))
sys.exit(3)
"""
WAITS = """
import signal, sys, time
from waggle.plugin import Plugin

class Stop(Exception):
    pass

def stop(*_):
    raise Stop

signal.signal(signal.SIGTERM, stop)
with Plugin() as plugin:
    plugin.publish("waits.begin", 1)
    try:
        print("waiting", flush=True)
        while True:  # a signal just before a long sleep would be seen after it
            time.sleep(0.1)
    except Stop:
        plugin.publish("waits.end", 2)
"""


@dataclass(frozen=True)
class Node:
    """The state folder of a node that is up."""

    folder: Path

    def call(self, *words: str | Path, check: int | None = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=300, cwd=self.folder.parent)
        assert check is None or done.returncode == check, done.stderr
        return done

    def command(self, *words: str | Path) -> list[str | Path]:
        first, *rest = words
        return [Path(sys.executable).with_name("virtual-waggle"), first, "--state-dir", self.folder, *rest]

    def rows(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.call("data", "--json", *words).stdout.splitlines()]

    def until_rows(self, count: int, *words: str) -> list[dict[str, Any]]:
        """The rows of a query, when there are so many."""
        rows = []
        for _ in process.poll_until(ENOUGH, 0.5):
            rows = self.rows(*words)
            if len(rows) >= count:
                return rows
        raise AssertionError(f"only {len(rows)} rows: {rows}")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node") / "state"
    folder.mkdir()
    lines = [f"WAGGLE_{name}_PORT={port}" for name, port in zip(LOCAL, brokers.free_ports(len(LOCAL)), strict=True)]
    (folder / "waggle-node.env").write_text("\n".join([*lines, "WAGGLE_METRICS_INTERVAL=1\n"]))
    made = Node(folder)
    try:
        made.call("up", "--native")
        yield made
    finally:
        made.call("down")


def test_up_again_changes_nothing_and_tells_what_runs_where(node: Node) -> None:
    told = json.loads(node.call("up", "--native", "--json").stdout)
    settings = (node.folder / "waggle-node.env").read_text()
    assert told["addresses"]["broker"].replace("127.0.0.1:", "WAGGLE_BROKER_PORT=") in settings
    assert f"WAGGLE_NODE_ID={told['node']}" in settings
    assert {row["service"]: row["restarts"] for row in told["services"]} == dict.fromkeys(
        ("rabbitmq", "sharing", "uploader", "playback", "metrics", "recorder"), 0
    )
    assert "PASSWORD" not in settings.upper()


def test_a_plugin_with_unmodified_pywaggle(node: Node, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(PLUGIN)
    words = ("--job", "my-job", "--name", "kinds:1.0", "--", "--count", "3")
    done = node.call("run", "--native", tmp_path, *words, check=3)
    told = json.loads(done.stdout)
    assert "site-packages/waggle" in told["module"]
    assert told["received"] == [f"kind.k{number}" for number in range(5)]
    assert told["words"] == ["--count", "3"]
    rows = node.until_rows(6, "--start", "2001-09-09T00:00:00Z", "--filter", "job=my-job")
    assert {row["name"]: row["value"] for row in rows if row["name"] != "upload"} == {
        "kind.k0": 1,
        "kind.k1": 2.5,
        "kind.k2": "ü🐝",
        "kind.k3": True,
        "kind.k5": 8,
    }
    assert rows[0]["timestamp"] == "2001-09-09T01:46:40.000000000Z"
    meta = rows[0]["meta"]
    assert (meta["who"], meta["plugin"], meta["task"]) == ("café", "kinds:1.0", "kinds")
    upload = next(row for row in rows if row["name"] == "upload")
    assert Path(upload["value"]).read_bytes() == bytes(range(256))
    assert upload["meta"]["camera"] == "top"


def test_a_plugin_that_is_interrupted_ends_in_good_order(node: Node, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    command = node.command("run", "--native", tmp_path / "waits.py")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "waiting\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(ENOUGH) == 128 + signal.SIGINT
    assert [row["value"] for row in node.until_rows(2, "--name", "waits.*")] == [1, 2]
    app = next(path for path in node.folder.glob("apps/waits-*.json"))
    assert json.loads(app.read_text())["closed"] > time.time() - 600


def test_a_new_plugin_publishes_as_it_stands_by_pywaggle_and_by_the_stand_in(node: Node, tmp_path: Path) -> None:
    subprocess.run([node.command("x")[0], "newplugin", "sky", "--folder", tmp_path], check=True, timeout=60)
    subprocess.run([sys.executable, tmp_path / "sky/test_main.py"], check=True, timeout=60)
    for job in ("pywaggle", "stand-in"):
        if job == "stand-in":
            main = tmp_path / "sky/main.py"
            main.write_text(main.read_text().replace("from waggle.plugin", "from no_waggle.plugin"))
        node.call("run", "--native", tmp_path / "sky", "--job", job, "--", "--count", "3", "--interval", "0")
        rows = node.until_rows(3, "--filter", f"job={job}")
        assert [(row["name"], row["value"]) for row in rows] == [("example.count", number) for number in (1, 2, 3)]


def test_the_example_plugins_publish_and_see_the_cameras(node: Node) -> None:
    address = json.loads(node.call("up", "--native", "--json").stdout)["addresses"]["playback"]
    examples = Path(__file__).parents[3] / "elements/edge-plugins/edge-plugins-files"
    node.call("run", "--native", examples / "system-load", "--", "--count", "1")
    camera = f"http://{address}/bottom/image.jpg"
    node.call("run", "--native", examples / "camera-brightness", "--", "--count", "1", "--camera", camera)
    assert len(node.until_rows(6, "--name", "system.*")) == 6
    assert {row["name"] for row in node.until_rows(2, "--name", "image.*")} == {"image.brightness", "image.contrast"}


def test_what_waits_in_the_broker_is_taken_however_long_ago_its_plugin_ended(node: Node, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("")
    app = node.folder / "apps/late-1.json"
    apps.add(app.parent, "late-1", App("late:1", "late", "late"))
    apps.close(app.parent, "late-1", now=1.0)
    addresses = json.loads(node.call("up", "--native", "--json").stdout)["addresses"]
    secrets = {user: (node.folder / f"private/{user}-password").read_text() for user in ("plugin", "admin")}
    management = broker_client.Management(f"http://{addresses['management']}", secrets["admin"])
    broker = broker_client.parse_address(addresses["broker"], "broker")

    def until_waiting(holds: Callable[[int], bool]) -> None:
        for _ in process.poll_until(ENOUGH, 0.5):
            if holds(broker_client.queue(management, "to-validator").get("messages", -1)):
                return
        raise AssertionError("the queue to-validator did not get so")

    sharing = int((node.folder / "native/sharing.pid").read_text().split()[0])
    os.kill(sharing, signal.SIGSTOP)
    try:
        with broker_client.connect(
            broker_client.by_password(broker, "plugin", secrets["plugin"]), deadline=30
        ) as open_:
            body = message.encode(Measurement("late.value", time.time_ns(), 5, {}))
            properties = pika.BasicProperties(delivery_mode=2, user_id="plugin", app_id="late-1")
            open_.channel().basic_publish("to-validator", "all", body, properties)
        until_waiting(lambda count: count > 0)
        node.call("run", "--native", tmp_path)
        node.call("up", "--native")
    finally:
        os.kill(sharing, signal.SIGCONT)
    assert [row["value"] for row in node.until_rows(1, "--name", "late.value")] == [5]
    until_waiting(lambda count: count == 0)
    node.call("run", "--native", tmp_path)
    assert not app.exists()


def test_a_file_that_can_not_be_handed_over_is_told_and_none_is_left(node: Node, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    before = set(node.folder.glob("uploads/*/*"))
    for meta in ("note=" + "x" * 300, "y" * 65 + "=1", "note=a\udc80"):
        assert "meta" in node.call("upload", tmp_path / "note.txt", "--meta", meta, check=2).stderr
    assert set(node.folder.glob("uploads/*/*")) == before


def test_a_file_is_handed_over_by_command(node: Node, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    made = json.loads(node.call("upload", tmp_path / "note.txt", "--meta", "by=hand", "--json").stdout)["upload"]
    assert (Path(made) / "data").read_text() == "hello"
    assert (tmp_path / "note.txt").exists()
    (row,) = node.until_rows(1, "--name", "upload", "--filter", "by=hand")
    assert row["value"] == f"{made}/data"
    assert row["meta"]["filename"] == "note.txt"


def test_the_report_tells_of_all_parts(node: Node) -> None:
    node.until_rows(1, "--name", "sys.load1")
    report = json.loads(node.call("report", "--json").stdout)
    assert report["problems"] == []
    assert {queue["name"] for queue in report["queues"]} >= {"to-validator", "to-beehive"}
    services = {"rabbitmq", "sharing", "uploader", "playback", "metrics", "recorder"}
    assert {row["service"] for row in report["services"]} == services
    assert "sys.load1" in {last["name"] for last in report["last"]}


def test_no_password_stands_in_a_command_line_or_a_log(node: Node, tmp_path: Path) -> None:
    secrets = [path.read_text().strip() for path in node.folder.glob("private/*-password")]
    assert len(secrets) == 5
    (tmp_path / "main.py").write_text("import time; print('runs', flush=True); time.sleep(1000)\n")
    with subprocess.Popen(node.command("run", "--native", tmp_path), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        running.stdout.readline()
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
        running.terminate()
    logs = [path.read_bytes() for path in node.folder.glob("native/logs/*")]
    plan = (node.folder / "native/plan.json").read_bytes()
    assert not [secret for secret in secrets for text in [*lines, *logs, plan] if secret.encode() in text]


def readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:  # it has ended
        return False


def test_what_can_not_be_asked_is_told(node: Node) -> None:
    assert "start" in node.call("data", "--start", "yesterday", check=2).stderr
    assert "unknown service 'shaving'" in node.call("logs", "shaving", check=2).stderr
    assert "sharing" in node.call("logs", "sharing").stdout
    assert "has neither main.py" in node.call("run", "--native", node.folder, check=2).stderr

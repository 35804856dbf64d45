# SPDX-License-Identifier: Apache-2.0
"""The sharing service as a process that can be started again, and what tests send and read at its broker."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika

from groundwork import files, process
from tests.integration.waggle.brokers import Broker
from virtual_waggle import broker_client
from virtual_waggle.node import apps
from virtual_waggle.node.apps import App

NODE = "00000000000000a1"
APP_ID = "plugin-1"
APP = App("waggle/plugin-test:1.0", "a-job", "a-task")
ADDED = {  # what the node adds to the meta of a message of that app
    "node": NODE,
    "vsn": "V0A1",
    "host": "machine",
    "job": APP.job,
    "task": APP.task,
    "plugin": APP.plugin,
}


@dataclass
class Service:
    """A service as a process; ``log`` is the file of what it said."""

    module: str
    env: Mapping[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = process.start([sys.executable, "-m", self.module], stdout=log, stderr=log, env=self.env)

    def end(self) -> int:
        """End it as an operator would; its exit status."""
        assert self.process is not None
        return process.stop(self.process, patience=10)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        process.stop(self.process, patience=0)


def of(folder: Path, node: Broker) -> Service:
    """The sharing service of a node, not started yet; the app ``APP_ID`` may publish."""
    secrets = files.make_folder(folder / "secrets")
    files.write_text(secrets / "sharing-password", node.passwords["sharing"], mode=0o600)
    apps.add(files.make_folder(folder / "apps"), APP_ID, APP)
    env = {
        "WAGGLE_BROKER": f"127.0.0.1:{node.port}",
        "WAGGLE_SECRETS": str(secrets),
        "WAGGLE_APPS": str(folder / "apps"),
        "WAGGLE_NODE_ID": NODE,
        "WAGGLE_NODE_VSN": ADDED["vsn"],
        "WAGGLE_NODE_HOST": ADDED["host"],
    }
    return Service("virtual_waggle.node.sharing", env, folder / "sharing.log")


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    try:
        service.start()
        yield service
    finally:
        service.kill()


@contextlib.contextmanager
def channel_of(node: Broker, user: str) -> Iterator[Any]:
    """A channel, with confirms, of a user of a node's broker."""
    parameters = broker_client.by_password(node.address, user, node.passwords[user])
    connection = broker_client.connect(parameters, deadline=30)
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()


def body(number: int, name: str = "env.test", **more: Any) -> bytes:
    """A message as pywaggle writes it; its number is its value and the end of its timestamp."""
    return json.dumps({"name": name, "ts": 1_700_000_000 * 10**9 + number, "meta": {}, "val": number, **more}).encode()


def from_plugin(user: str = "plugin", app_id: str | None = APP_ID) -> pika.BasicProperties:
    """The properties that pywaggle gives a message."""
    return pika.BasicProperties(delivery_mode=2, user_id=user, app_id=app_id)


def taken(channel: Any, queue: str, count: int, seconds: float = 60) -> list[tuple[str, dict[str, Any]]]:
    """Routing key and decoded body of the next messages of a queue, acknowledged; fewer when the time is over."""
    found: list[tuple[str, dict[str, Any]]] = []
    end = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        method, _, text = channel.basic_get(queue, auto_ack=True)
        if method is None:
            channel.connection.sleep(0.05)
        else:
            found.append((method.routing_key, json.loads(text)))
    return found


def depth(channel: Any, queue: str) -> int:
    """Messages that are ready in a queue."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def wait_until(promise: Callable[[], Any], seconds: float = 60) -> None:
    for _ in process.poll_until(seconds, 0.1):
        if promise():
            return
    raise AssertionError(f"did not come true within {seconds:g} s")

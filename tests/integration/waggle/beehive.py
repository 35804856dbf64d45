# SPDX-License-Identifier: Apache-2.0
"""Services of a Beehive as processes of their own, on free ports of loopback."""

import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundwork import files, process
from tests.integration.waggle.brokers import Broker, beehive_broker, free_ports
from tests.integration.waggle.certificates import Authority
from virtual_waggle import broker_client

START_UP = 60.0  # seconds, on a busy machine


@dataclass
class Service:
    """A running service; ``url`` is where it serves, ``log`` what it said."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    @property
    def endpoint(self) -> str:
        """What sage-data-client takes."""
        return f"{self.url}/api/v1/query"

    def said(self) -> str:
        return self.log.read_text()

    def memory(self) -> int:
        """The most bytes that it had resident so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


@contextlib.contextmanager
def running(module: str, folder: Path, port: int, env: dict[str, str]) -> Iterator[Service]:
    """A module of virtual_waggle for the block, once /healthz answers at this port of loopback."""
    log = files.make_folder(folder) / f"{module}.log"
    with log.open("ab") as stream:
        started = process.start(
            [sys.executable, "-m", f"virtual_waggle.{module}"], stdout=stream, stderr=stream, env=env
        )
    service = Service(started, f"http://127.0.0.1:{port}", log)
    try:
        wait_for(service)
        yield service
    finally:
        process.stop(started, patience=10)


def wait_for(service: Service) -> None:
    """Return when the service answers, be it that it is not well."""
    for _ in process.poll_until(START_UP, 0.05):
        with contextlib.suppress(OSError):
            fetch(f"{service.url}/healthz")
            return
        if service.process.poll() is not None:
            break
    raise RuntimeError(f"the service did not start:\n{files.tail(service.log, 40)}")


def fetch(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    request = urllib.request.Request(url, data, headers or {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextlib.contextmanager
def api(folder: Path, **more: str) -> Iterator[Service]:
    """A data API; without a broker, if none is given.  The store lies in ``folder``/store."""
    (port,) = free_ports(1)
    env = {
        "BEEHIVE_API_LISTEN": f"127.0.0.1:{port}",
        "BEEHIVE_STORE_FOLDER": str(folder / "store"),
        "BEEHIVE_UPLOADS": str(folder / "uploads"),
        "WAGGLE_BROKER": "",
        **more,
    }
    with running("beehive.api", folder, port, env) as service:
        yield service


@dataclass
class Hive:
    """A Beehive's broker, and the folders of those who may come to it: ``private/``, ``node-<id>/``."""

    folder: Path
    broker: Broker

    @property
    def private(self) -> Path:
        return self.folder / "private"

    def as_node(self, node_id: str) -> Any:
        """A connection of a node."""
        folder = self.folder / f"node-{node_id}"
        parameters = broker_client.by_certificate(
            ("localhost", self.broker.port),
            folder / "beehive-ca.pem",
            folder / "node-cert.pem",
            folder / "node-key.pem",
        )
        return broker_client.connect(parameters, deadline=30)

    def environment(self, store: Path, **more: str) -> dict[str, str]:
        """What a service is told; its SQLite store lies in ``store``."""
        return {
            "WAGGLE_BROKER": f"localhost:{self.broker.port}",
            "WAGGLE_SECRETS": str(self.private),
            "BEEHIVE_STORE_FOLDER": str(store),
            **more,
        }


@contextlib.contextmanager
def hive(folder: Path, *nodes: str) -> Iterator[Hive]:
    """A Beehive's broker that knows these nodes."""
    authority = Authority()
    private = authority.server(files.make_folder(folder / "private"))
    for user in ("loader", "api"):
        authority.client(private, user, user)
    for node in nodes:
        authority.node(files.make_folder(folder / f"node-{node}"), node)
    with beehive_broker(folder / "broker", tls=private, nodes=nodes) as running_broker:
        yield Hive(folder, running_broker)


@contextlib.contextmanager
def loader(hive: Hive, store: Path, **more: str) -> Iterator[Service]:
    """A loader of this Beehive."""
    (port,) = free_ports(1)
    env = hive.environment(store, **{"BEEHIVE_LOADER_LISTEN": f"127.0.0.1:{port}", **more})
    with running("beehive.loader", store.parent, port, env) as service:
        yield service


def health(service: Service) -> dict[str, Any]:
    """What a service says of itself."""
    return dict(json.loads(fetch(f"{service.url}/healthz")[1]))


def counted(service: Service, name: str) -> float:
    """A metric of a service, by its name with its labels."""
    for line in fetch(f"{service.url}/metrics")[1].splitlines():
        if line.rpartition(" ")[0] == name:
            return float(line.rpartition(" ")[2])
    return 0.0

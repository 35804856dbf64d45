# SPDX-License-Identifier: Apache-2.0
"""Real brokers: Debian's RabbitMQ as a plain process on loopback, on ports of its own, with its data in a folder.

Each has an epmd of its own, in the foreground, so that none is left behind; both die with the test's process.
"""

import contextlib
import random
import secrets
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groundwork import files, process
from virtual_waggle import broker, broker_client
from virtual_waggle.broker import Place, QueueType, ToBeehive
from virtual_waggle.broker_client import Management

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
START_UP = 120.0  # seconds, on a busy machine


@dataclass
class Broker:
    """A broker in a folder: ``private/`` has its files, ``rabbitmq/`` its data, ``log`` what it said.

    ``port`` is that of AMQP (a node's: plain; a Beehive's: TLS); ``passwords`` are those of its users by name.
    """

    folder: Path
    place: Place
    passwords: Mapping[str, str]
    name: str = "waggle@localhost"
    more: Mapping[str, str] = field(default_factory=dict)
    _names: Mapping[str, str] = field(default_factory=dict)
    _processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.place.port

    @property
    def address(self) -> tuple[str, int]:
        return self.place.address, self.place.port

    @property
    def private(self) -> Path:
        return self.folder / "private"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def management(self) -> Management:
        address = f"http://{self.place.management_address}:{self.place.management_port}"
        return Management(address, self.passwords[broker.ADMIN])

    def start(self, *, wait: bool = True) -> None:
        """Start it; with ``wait``, return when it takes connections."""
        # Not those that it listens at: after a kill the kernel keeps ports of closed connections for a while.
        names, distribution = free_ports(2)
        self._names = {
            "HOME": str(files.make_folder(self.folder / "home")),  # Erlang makes its cookie there
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
        }
        env = {
            **self._names,
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.private / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.private / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "rabbitmq"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{broker.ERLANG_ARGUMENTS} {ON_LOOPBACK}",
            "RUNNING_UNDER_SYSTEMD": "true",  # no shell between us and the broker
            **self.more,
        }
        with self.log.open("ab") as log:
            epmd = process.start(
                ["epmd", "-address", "127.0.0.1", "-port", str(names)], stdout=log, stderr=log, env=env
            )
            self._processes = [epmd]
            for _ in process.poll_until(20):
                if reachable(names):
                    break
            server = process.start([PROGRAMS / "rabbitmq-server"], stdout=log, stderr=log, env=env, cwd=self.folder)
        self._processes.append(server)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when it takes connections."""
        for _ in process.poll_until(START_UP, 0.3):
            if broker_client.is_healthy(self.management, port=self.port):
                return
            if self._processes[-1].poll() is not None:
                break
        raise RuntimeError(f"the broker did not start:\n{files.tail(self.log, 40)}")

    def ctl(self, *words: str) -> None:
        """``rabbitmqctl`` at this broker."""
        process.run([PROGRAMS / "rabbitmqctl", "-n", self.name, *words], env=self._names, timeout=60)

    def stop(self) -> None:
        """End it as an operator would."""
        for running in reversed(self._processes):
            process.stop(running, patience=60)
        self._processes = []

    def kill(self) -> None:
        """End it as a power cut would."""
        for running in reversed(self._processes):
            process.stop(running, patience=0)
        self._processes = []


@contextlib.contextmanager
def node_broker(folder: Path, *, beehive: ToBeehive | None = None, tls: Path | None = None) -> Iterator[Broker]:
    """A node's broker, with all users and queues.

    With ``beehive`` there is a shovel; ``tls`` is then the folder of beehive-ca.pem, node-cert.pem and node-key.pem.
    """
    passwords = {name: secrets.token_hex(20) for name in broker.NODE_USERS}
    place = _place(folder, tls)
    definitions = broker.node_definitions(passwords, place, beehive)
    configuration = _defined_in(folder, broker.node_configuration(place), place)
    _write(folder, configuration, definitions, broker.enabled_plugins(beehive=False))
    with _running(Broker(folder, place, passwords)) as running:
        yield running


@contextlib.contextmanager
def beehive_broker(
    folder: Path,
    *,
    tls: Path,
    nodes: Iterable[str] = (),
    queue_type: QueueType = QueueType.CLASSIC,
    cluster: Sequence[str] = (),
) -> Iterator[Broker]:
    """A Beehive's broker.  ``tls`` is the folder of ca-cert.pem, server-cert.pem (for localhost) and server-key.pem."""
    passwords = {broker.ADMIN: secrets.token_hex(20)}
    place = _place(folder, tls)
    definitions = broker.beehive_definitions(passwords[broker.ADMIN], nodes, queue_type=queue_type)
    configuration = _defined_in(folder, broker.beehive_configuration(place, cluster=cluster), place)
    _write(folder, configuration, definitions, broker.enabled_plugins(beehive=True))
    with _running(Broker(folder, place, passwords)) as running:
        yield running


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now, below those that the kernel gives to clients."""
    found: list[int] = []
    for port in random.sample(range(12000, 32000), 200):
        if not reachable(port):
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def reachable(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _place(folder: Path, tls: Path | None) -> Place:
    amqp, management, prometheus = free_ports(3)
    return Place(
        secrets=str(tls or folder / "private"),
        address="127.0.0.1",
        port=amqp,
        management_address="127.0.0.1",
        management_port=management,
        prometheus_port=prometheus,
    )


def _defined_in(folder: Path, configuration: str, place: Place) -> str:
    """The definitions lie in the broker's own folder, wherever its certificates lie."""
    return configuration.replace(f"{place.secrets}/definitions.json", f"{folder}/private/definitions.json")


def _write(folder: Path, configuration: str, definitions: str, plugins: str) -> None:
    files.write_text(folder / "private/rabbitmq.conf", configuration, mode=0o600)
    files.write_text(folder / "private/definitions.json", definitions, mode=0o600)
    files.write_text(folder / "private/enabled_plugins", plugins)


@contextlib.contextmanager
def _running(given: Broker) -> Iterator[Broker]:
    try:
        given.start()
        yield given
    finally:
        given.kill()

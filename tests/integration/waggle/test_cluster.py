# SPDX-License-Identifier: Apache-2.0
"""A Beehive on three machines: what its nodes sent survives one of them.

The machines are network namespaces on this one, each with the services of ``beehive-server up``: RabbitMQ, a loader and
a data API.  They share one PostgreSQL.  A node's own broker and shovel send, its keys come by registering.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pika
import pytest
import sage_data_client

from groundwork import process
from tests.integration.waggle import beehives, brokers, machines, postgres
from tests.integration.waggle.brokers import Broker
from tests.integration.waggle.machines import Machine
from virtual_waggle import broker, broker_client, message
from virtual_waggle.broker import ToBeehive
from virtual_waggle.message import Measurement
from virtual_waggle.node import registering

pytestmark = [
    pytest.mark.long,  # three machines start
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

NODE = "00000000000000c1"
COUNT = 6000  # measurements
BEGIN, LATER = 1_700_000_000_000_000_000, 1_800_000_000_000_000_000  # ns; of one test's measurements, of another's
ENOUGH = 240.0  # seconds, on a busy machine


@dataclass(frozen=True)
class Member:
    """One machine of the cluster, and its state folder."""

    machine: Machine
    folder: Path

    @property
    def broker(self) -> str:
        return broker.name_in_cluster(self.machine.address)

    @property
    def loader(self) -> int:
        """The pid of this machine's loader."""
        return int((self.folder / "native/loader.pid").read_text().split()[0])

    def call(self, verb: str, *words: str | Path, check: int | None = 0) -> Any:
        """The JSON that a command of beehive-server gives there."""
        program = Path(sys.executable).with_name("beehive-server")
        command = self.machine.words(program, verb, "--json", "--state-dir", self.folder, *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=ENOUGH * 2, cwd=self.folder.parent)
        assert check is None or done.returncode == check, done.stderr + self.said()
        return json.loads(done.stdout) if done.stdout else {}

    def said(self) -> str:
        log = self.folder / "native/logs/rabbitmq.log"
        return log.read_text()[-4000:] if log.exists() else ""

    def stored(self, begin: int) -> pandas.DataFrame:
        """A test's measurements, as a reader gets them from this machine's data API."""
        endpoint = f"http://{self.machine.address}:8080/api/v1/query"
        start, end = (pandas.Timestamp(begin + hours * 3_600_000_000_000, tz="UTC").isoformat() for hours in (0, 1))
        found = sage_data_client.query(start=start, end=end, filter={"name": "n*"}, endpoint=endpoint)
        return found.sort_values(["timestamp", "name"]).reset_index(drop=True) if len(found) else found


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Member]]:
    """Three machines that are up."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(beehives.open_folder())
        try:
            found = stack.enter_context(machines.network(3))
        except process.ProcessError as error:
            pytest.skip(f"network namespaces can't be made: {error}")
        store = stack.enter_context(postgres.running()).address
        members = [Member(machine, folder / machine.address) for machine in found]
        addresses = ",".join(machine.address for machine in found)
        first, *others = members
        settings = {"QUEUE_TYPE": "quorum", "CLUSTER": addresses, "STORE": store}
        words = [word for name, value in settings.items() for word in ("--set", f"BEEHIVE_{name}={value}")]

        def up(member: Member, *more: str) -> None:
            member.call("up", "--native", "--set", f"BEEHIVE_MEMBER={member.machine.address}", *more)

        up(first, "--host", addresses, *words)
        for member in others:
            shutil.copytree(first.folder / "private", member.folder / "private")
            shutil.copy(first.folder / "beehive.env", member.folder)
        with ThreadPoolExecutor() as both:
            list(both.map(up, others))
        yield members


@pytest.fixture
def node(cluster: list[Member], tmp_path: Path) -> Iterator[Broker]:
    """A registered node's broker, whose shovel tries the broker first that has the queue's leader."""
    first = cluster[0]
    private = tmp_path / "registered"
    first.call("register", NODE, "--out", private)
    registering.register(private, NODE, registering.Beehive(first.machine.address), deadline=ENOUGH)
    hosts = tuple(member.machine.address for member in leader_first(cluster))
    with brokers.node_broker(tmp_path / "node", beehive=ToBeehive(NODE, hosts), tls=private) as running:
        for _ in process.poll_until(ENOUGH, 0.5):
            if broker_client.shovel_state(running.management) == "running":
                break
        yield running


def leader_first(cluster: list[Member]) -> list[Member]:
    """The machines, the one with the queue's leader before the others."""
    leader = cluster[0].call("status")["cluster"]["leader"]
    return sorted(cluster, key=lambda member: member.broker != leader)


def send(node: Broker, numbers: range, begin: int = BEGIN) -> None:
    """Give measurements to the node's broker, as its sharing service does; when it returns the broker has them."""
    parameters = broker_client.by_password(node.address, "sharing", node.passwords["sharing"])
    with broker_client.connect(parameters, deadline=60) as connection:
        channel = connection.channel()
        channel.tx_select()
        for number in numbers:
            body = message.encode(Measurement(f"n{number % 7}", begin + number, number, {"node": NODE, "vsn": "V0C1"}))
            channel.basic_publish(broker.SHARED_ALL, "n", body, pika.BasicProperties(delivery_mode=2))
        channel.tx_commit()


def until(promise: Callable[[], bool]) -> None:
    for _ in process.poll_until(ENOUGH, 1.0):
        if promise():
            return
    raise AssertionError(f"did not come true within {ENOUGH:g} s")


def until_stored(member: Member, count: int, begin: int = BEGIN) -> pandas.DataFrame:
    """What a machine's data API gives, once that is so much."""
    found = pandas.DataFrame()
    for _ in process.poll_until(ENOUGH, 1.0):
        found = member.stored(begin)
        if len(found) >= count:
            return found
    raise AssertionError(f"only {len(found)} of {count} measurements came; {member.said()}")


def assert_each_once(found: pandas.DataFrame, count: int, begin: int = BEGIN) -> None:
    assert list(found["value"]) == list(range(count))
    assert list(found["timestamp"].astype("int64")) == [begin + number for number in range(count)]
    assert list(found["name"]) == [f"n{number % 7}" for number in range(count)]


def test_each_machine_has_a_copy_of_the_queue_and_nodes_register_at_the_first(cluster: list[Member]) -> None:
    names = sorted(member.broker for member in cluster)
    # A copy that was made just now is not at once up to date.
    until(lambda: all(member.call("status", check=None)["cluster"]["online"] == names for member in cluster))
    for member in cluster:
        told = member.call("status")
        assert told["cluster"]["running"] == told["cluster"]["copies"] == told["cluster"]["online"] == names
        services = {row["service"] for row in told["services"]}
        assert services >= {"rabbitmq", "loader", "api"}
        assert ("registration" in services) == (member is cluster[0])
    cluster[1].call("register", NODE, check=2)


def test_a_machine_that_dies_takes_no_confirmed_measurement_with_it_and_doubles_none(
    cluster: list[Member], node: Broker
) -> None:
    send(node, range(COUNT // 2))
    until_stored(cluster[0], COUNT // 2)
    dying, *left = leader_first(cluster)
    os.kill(dying.loader, signal.SIGSTOP)  # it takes a third of what comes, and has not written it when it dies
    send(node, range(COUNT // 2, COUNT * 3 // 4))
    assert len(until_stored(left[0], COUNT * 5 // 8)) < COUNT * 3 // 4
    send(node, range(COUNT * 3 // 4, COUNT * 7 // 8))
    dying.machine.kill()  # with what the shovel had just sent there
    send(node, range(COUNT * 7 // 8, COUNT))
    answers = [until_stored(member, COUNT) for member in left]
    assert_each_once(answers[0], COUNT)
    pandas.testing.assert_frame_equal(answers[0], answers[1])
    told = left[0].call("status", check=1)["cluster"]
    assert told["online"] == sorted(member.broker for member in left)
    assert told["leader"] in told["online"]

    # It comes back, with its copy, and as a reader's and a node's way in.
    dying.call("up", "--native")
    assert len(dying.call("status")["cluster"]["online"]) == 3
    send(node, range(COUNT, COUNT + 500))
    assert_each_once(until_stored(dying, COUNT + 500), COUNT + 500)


def test_a_machine_that_is_cut_off_waits_and_comes_back_while_the_others_go_on(
    cluster: list[Member], node: Broker
) -> None:
    send(node, range(COUNT // 2), LATER)
    until_stored(cluster[0], 1, LATER)
    lonely, *left = leader_first(cluster)
    lonely.machine.cut_off()
    send(node, range(COUNT // 2, COUNT), LATER)
    answers = [until_stored(member, COUNT, LATER) for member in left]
    assert_each_once(answers[0], COUNT, LATER)
    pandas.testing.assert_frame_equal(answers[0], answers[1])
    # It takes no messages, for it can't know whether the others do.
    until(lambda: not lonely.machine.listens_at(5671))
    lonely.machine.connect()
    until(lambda: lonely.machine.listens_at(5671))
    until(lambda: len(lonely.call("status", check=None).get("cluster", {"online": ()})["online"]) == 3)
    send(node, range(COUNT, COUNT + 500), LATER)
    assert_each_once(until_stored(lonely, COUNT + 500, LATER), COUNT + 500, LATER)


def test_a_machine_that_lost_its_brokers_data_is_forgotten_and_joins_anew(cluster: list[Member]) -> None:
    first, second, lost = cluster
    first.call("forget", lost.machine.address, check=1)  # not while it runs
    lost.machine.kill()
    shutil.rmtree(lost.folder / "rabbitmq")
    first.call("forget", "nowhere", check=2)
    until(lambda: lost.broker not in first.call("status", check=1)["cluster"]["running"])
    first.call("forget", lost.machine.address)
    left = sorted([first.broker, second.broker])
    until(lambda: second.call("status", check=None)["cluster"]["known"] == left)
    lost.call("up", "--native")
    told = lost.call("status")["cluster"]
    assert told["known"] == told["online"] == sorted(member.broker for member in cluster)

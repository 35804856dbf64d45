# SPDX-License-Identifier: Apache-2.0
"""What the shovel promises: what is to leave the node comes to the Beehive, in order, whoever is away for a while."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.waggle import brokers, sharing_service
from tests.integration.waggle.brokers import Broker
from tests.integration.waggle.certificates import Authority
from tests.integration.waggle.sharing_service import ADDED, NODE, channel_of, depth, wait_until
from virtual_waggle import broker, broker_client
from virtual_waggle.broker import ToBeehive
from virtual_waggle.broker_stream import BrokerStream

OTHER = "00000000000000b2"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def beehive(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("beehive")
    authority.client(folder / "loader", "loader", "client")
    with brokers.beehive_broker(folder, tls=authority.server(folder / "tls"), nodes=[NODE, OTHER]) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_waits(beehive: Broker) -> None:
    """What came twice in the test before is still there when that test has seen all it waited for."""
    broker_client.request(beehive.management, "DELETE", f"queues/%2F/{broker.TO_LOADER}/contents")


def publish(node: Broker, count: int, *, every: float) -> None:
    """Publish numbered messages as the sharing service does, with a pause after each hundred."""
    parameters = broker_client.by_password(node.address, "sharing", node.passwords["sharing"])
    with BrokerStream(parameters, None) as stream:
        for number in range(count):
            stream.publish(broker.TO_BEEHIVE, "env.test", sharing_service.body(number, meta=ADDED))
            if number % 100 == 99:
                stream.step(0)
                time.sleep(every)
        while stream.unconfirmed:
            stream.step(1)


def read_all(beehive: Broker, count: int) -> list[int]:
    """The values that came to the Beehive, until ``count`` different ones are there."""
    tls = beehive.folder / "loader"
    parameters = broker_client.by_certificate(
        ("localhost", beehive.port), tls / "beehive-ca.pem", tls / "client-cert.pem", tls / "client-key.pem"
    )
    connection = broker_client.connect(parameters, deadline=30)
    channel: Any = connection.channel()
    values: list[int] = []
    seen: set[int] = set()
    for _, properties, text in channel.consume(broker.TO_LOADER, auto_ack=True, inactivity_timeout=40):
        assert text is not None, f"only {len(seen)} of {count} came"
        assert properties.user_id == f"node-{NODE}"
        values.append(json.loads(text)["val"])
        seen.add(values[-1])
        if len(seen) == count:
            break
    connection.close()
    return values


def test_a_beehive_that_is_killed_and_restarted_loses_nothing(
    tmp_path: Path, authority: Authority, beehive: Broker
) -> None:
    count = 20_000
    tls = authority.node(tmp_path / "tls", NODE)
    with brokers.node_broker(tmp_path / "node", beehive=ToBeehive(NODE, ("localhost",), beehive.port), tls=tls) as node:
        wait_until(lambda: broker_client.shovel_state(node.management) == "running")
        publisher = threading.Thread(target=publish, args=(node, count), kwargs={"every": 0.05})
        publisher.start()
        time.sleep(1)
        beehive.kill()
        time.sleep(2)
        beehive.start()
        time.sleep(6)
        beehive.stop()
        beehive.start()
        publisher.join()
        values = read_all(beehive, count)
    # What was under way comes twice, under the same name, meta and timestamp.
    assert list(dict.fromkeys(values)) == list(range(count))


def test_a_node_that_is_killed_sends_the_rest_when_it_is_back(
    tmp_path: Path, authority: Authority, beehive: Broker
) -> None:
    count = 10_000
    tls = authority.node(tmp_path / "tls", NODE)
    with brokers.node_broker(tmp_path / "node", beehive=ToBeehive(NODE, ("localhost",), beehive.port), tls=tls) as node:
        publish(node, count, every=0)
        node.kill()
        node.start()
        values = read_all(beehive, count)
    assert list(dict.fromkeys(values)) == list(range(count))


@pytest.mark.parametrize("kind", ["another node's", "expired", "another authority's", "none"])
def test_without_its_own_valid_certificate_nothing_comes_through_and_nothing_is_lost(
    tmp_path: Path, authority: Authority, beehive: Broker, kind: str
) -> None:
    tls = tmp_path / "tls"
    good = authority.node(tmp_path / "good", NODE)
    if kind == "another node's":
        authority.node(tls, OTHER)
    elif kind == "expired":
        authority.node(tls, NODE, expired=True)
    elif kind == "another authority's":
        Authority().node(tls, NODE)
        (tls / "beehive-ca.pem").write_bytes((good / "beehive-ca.pem").read_bytes())
    else:
        tls.mkdir()
        (tls / "beehive-ca.pem").write_bytes((good / "beehive-ca.pem").read_bytes())
    with brokers.node_broker(tmp_path / "node", beehive=ToBeehive(NODE, ("localhost",), beehive.port), tls=tls) as node:
        publish(node, 100, every=0)
        time.sleep(8)  # longer than the shovel waits before it tries again
        assert sum(broker_client.queue_depth(beehive.management, broker.TO_LOADER)) == 0
        broker_client.delete_shovel(node.management)
        with channel_of(node, "admin") as channel:
            wait_until(lambda: depth(channel, broker.TO_BEEHIVE) == 100)
        # With its own certificate the same messages come through, without a restart of the broker.
        authority.node(tls, NODE)
        broker_client.put_shovel(
            node.management, broker.shovel(ToBeehive(NODE, ("localhost",), beehive.port), node.place)
        )
        assert sorted(set(read_all(beehive, 100))) == list(range(100))


def test_messages_the_loader_left_are_there_after_a_restart(
    tmp_path: Path, authority: Authority, beehive: Broker
) -> None:
    tls = authority.node(tmp_path / "tls", NODE)
    with brokers.node_broker(tmp_path / "node", beehive=ToBeehive(NODE, ("localhost",), beehive.port), tls=tls) as node:
        publish(node, 500, every=0)
        wait_until(lambda: sum(broker_client.queue_depth(beehive.management, broker.TO_LOADER)) == 500)
    beehive.kill()
    beehive.start()
    assert sorted(set(read_all(beehive, 500))) == list(range(500))

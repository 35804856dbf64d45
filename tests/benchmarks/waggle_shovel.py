# SPDX-License-Identifier: Apache-2.0
"""How many messages a second go from a node's broker to a Beehive's over mutual TLS, for a minute, none lost."""

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from groundwork import console
from tests.benchmarks.figures import Figure
from tests.integration.waggle import brokers, sharing_service
from tests.integration.waggle.brokers import Broker
from tests.integration.waggle.certificates import Authority
from tests.integration.waggle.sharing_service import ADDED, NODE
from virtual_waggle import broker, broker_client
from virtual_waggle.broker import ToBeehive
from virtual_waggle.broker_stream import BrokerStream

SECONDS = 60
GOAL = 10_000  # messages a second
OFFERED = 12_000
_MOST_WAITING = 50_000  # messages of the node's queue; a longer one tells that the shovel is no longer with it


def shovel() -> list[Figure]:
    """Messages offered to the node's queue at 12,000/s, or as they are taken, for a minute; then all are looked at."""
    authority = Authority()
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        tls, own = authority.server(top / "tls"), authority.node(top / "node-tls", NODE)
        authority.client(top / "loader", "loader", "client")
        with brokers.beehive_broker(top / "beehive", tls=tls, nodes=[NODE]) as beehive:
            to = ToBeehive(NODE, ("localhost",), beehive.port)
            with brokers.node_broker(top / "node", beehive=to, tls=own) as node:
                sharing_service.wait_until(lambda: broker_client.shovel_state(node.management) == "running")
                with console.stage("shovel: a minute over mutual TLS") as stage:
                    published, moved, took = minute(node, beehive)
                    stage.note = f"{moved / took:,.0f}/s"
            with console.stage(f"shovel: reading {published:,} messages"):
                values = read_all(beehive, top / "loader", published)
    lost, doubled = published - len(set(values)), len(values) - len(set(values))
    in_order = values == sorted(values)
    if lost or doubled or not in_order:
        raise SystemExit(f"of {published} messages {lost} were lost, {doubled} doubled; in order: {in_order}")
    how = (
        f"{moved:,} messages in {took:.1f} s into the Beehive's queue, offered at {OFFERED:,}/s, both brokers and the "
        f"publisher on this machine; of {published:,} published none was lost, none doubled, all in order"
    )
    return [Figure("node to Beehive over mutual TLS", moved / took, "messages/s", GOAL, how, at_least=True)]


def minute(node: Broker, beehive: Broker) -> tuple[int, int, float]:
    """Messages published, those of them that had come to the Beehive by the end, and the seconds it took."""
    waiting = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal waiting
        while not ended.wait(1):
            waiting = sum(broker_client.queue_depth(node.management, broker.TO_BEEHIVE))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    parameters = broker_client.by_password(node.address, "sharing", node.passwords["sharing"])
    number = 0
    with BrokerStream(parameters, None) as stream:
        begin = time.monotonic()
        while (gone := time.monotonic() - begin) < SECONDS:
            if number < gone * OFFERED and waiting < _MOST_WAITING and stream.unconfirmed < 10_000:
                for _ in range(100):
                    stream.publish(broker.TO_BEEHIVE, "env.test", sharing_service.body(number, meta=dict(ADDED)))
                    number += 1
                stream.step(0)
            else:
                stream.step(0.005)
        moved = arrived(beehive)
        took = time.monotonic() - begin
        while stream.unconfirmed:
            stream.step(1)
    ended.set()
    sharing_service.wait_until(lambda: arrived(beehive) >= number, 120)
    watcher.join()
    return number, moved, took


def arrived(beehive: Broker) -> int:
    """Messages in the Beehive's queue, as the management API has counted them."""
    return sum(broker_client.queue_depth(beehive.management, broker.TO_LOADER))


def read_all(beehive: Broker, tls: Path, count: int) -> list[int]:
    """The values of all messages in the Beehive's queue."""
    parameters = broker_client.by_certificate(
        ("localhost", beehive.port), tls / "beehive-ca.pem", tls / "client-cert.pem", tls / "client-key.pem"
    )
    values: list[int] = []
    connection = broker_client.connect(parameters, deadline=30)
    channel: Any = connection.channel()
    channel.basic_qos(prefetch_count=2000)
    for method, _, text in channel.consume(broker.TO_LOADER, inactivity_timeout=10):
        if method is None:
            break
        values.append(json.loads(text)["val"])
        if len(values) % 1000 == 0 or len(values) >= count:
            channel.basic_ack(method.delivery_tag, multiple=True)
    connection.close()
    return values

# SPDX-License-Identifier: Apache-2.0
"""What the brokers promise: who may do what, and that the shovel moves what is to leave the node."""

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest

from groundwork import process
from tests.integration.waggle import brokers
from tests.integration.waggle.brokers import Broker
from tests.integration.waggle.certificates import Authority
from virtual_waggle import broker, broker_client
from virtual_waggle.broker import ToBeehive

NODE, OTHER = "00000000000000a1", "00000000000000b2"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def beehive(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("beehive")
    with brokers.beehive_broker(folder, tls=authority.server(folder / "tls"), nodes=[NODE, OTHER]) as running:
        authority.client(folder / "loader", "loader", "client")
        yield running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, authority: Authority, beehive: Broker) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("node")
    tls = authority.node(folder / "tls", NODE)
    with brokers.node_broker(folder, beehive=ToBeehive(NODE, ("localhost",), beehive.port), tls=tls) as running:
        yield running


def as_user(running: Broker, user: str) -> pika.BlockingConnection:
    """A connection to a node's broker."""
    return broker_client.connect(broker_client.by_password(running.address, user, running.passwords[user]), deadline=20)


def by_certificate(running: Broker, folder: Path, kind: str = "client") -> pika.BlockingConnection:
    """A connection to a Beehive's broker."""
    parameters = broker_client.by_certificate(
        ("localhost", running.port),
        folder / "beehive-ca.pem",
        folder / f"{kind}-cert.pem",
        folder / f"{kind}-key.pem",
    )
    return broker_client.connect(parameters, deadline=5)


def wait_until(promise: Callable[[], Any], seconds: float = 30) -> None:
    for _ in process.poll_until(seconds):
        if promise():
            return
    raise AssertionError(f"did not come true within {seconds:g} s")


def test_the_shovel_moves_messages_under_the_nodes_name(node: Broker, beehive: Broker) -> None:
    wait_until(lambda: broker_client.shovel_state(node.management) == "running")
    with as_user(node, "sharing") as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for number in range(10):
            channel.basic_publish(broker.SHARED_ALL, "env.test", str(number).encode())
    with by_certificate(beehive, beehive.folder / "loader") as connection:
        channel = connection.channel()
        found = []
        for method, properties, body in channel.consume(broker.TO_LOADER, inactivity_timeout=20):
            assert method is not None, "nothing came"
            assert properties.user_id == f"node-{NODE}"
            assert method.routing_key == "env.test"
            channel.basic_ack(method.delivery_tag)
            found.append(body)
            if len(found) == 10:
                break
        assert found == [str(number).encode() for number in range(10)]


@pytest.mark.parametrize(
    ("user", "attempt"),
    [
        ("plugin", lambda channel: channel.basic_get("to-validator")),
        ("plugin", lambda channel: channel.basic_get("to-beehive")),
        ("plugin", lambda channel: channel.basic_publish("data.topic", "a", b"x")),
        ("plugin", lambda channel: channel.basic_publish("shared.all", "a", b"x")),
        ("plugin", lambda channel: channel.basic_publish("to-beehive", "", b"x")),
        ("plugin", lambda channel: channel.basic_publish("", "to-beehive", b"x")),
        ("plugin", lambda channel: channel.basic_publish("amq.fanout", "", b"x")),
        ("plugin", lambda channel: channel.queue_declare("mine")),
        ("plugin", lambda channel: channel.exchange_declare("mine")),
        ("plugin", lambda channel: channel.queue_delete("to-beehive")),
        ("plugin", lambda channel: channel.queue_purge("to-validator")),
        ("plugin", lambda channel: channel.exchange_delete("data.topic")),
        ("plugin", lambda channel: channel.queue_bind("to-beehive", "data.topic", "#")),
        (
            "plugin",
            lambda channel: channel.basic_publish("to-validator", "all", b"x", pika.BasicProperties(user_id="admin")),
        ),
        ("sharing", lambda channel: channel.basic_get("to-beehive")),
        ("sharing", lambda channel: channel.basic_publish("to-validator", "all", b"x")),
        ("recorder", lambda channel: channel.basic_get("to-validator")),
        ("metrics", lambda channel: channel.basic_get("to-validator")),
        ("metrics", lambda channel: channel.basic_publish("data.topic", "a", b"x")),
    ],
)
def test_a_user_of_the_node_may_do_no_more_than_it_must(
    node: Broker, user: str, attempt: Callable[[Any], object]
) -> None:
    with as_user(node, user) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            attempt(channel)
    # 403: no permission; 406: a user_id that is not one's own
    assert refused.value.reply_code in (403, 406)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda channel: channel.basic_get("to-loader"),
        lambda channel: channel.queue_declare("", exclusive=True),
        lambda channel: channel.basic_publish("amq.topic", "a", b"x"),
        lambda channel: channel.basic_publish("", "to-loader", b"x"),
        lambda channel: channel.basic_publish("waggle.msg", "a", b"x", pika.BasicProperties(user_id=f"node-{OTHER}")),
    ],
)
def test_a_node_may_write_to_one_exchange_of_the_beehive_under_its_own_name_alone(
    beehive: Broker, authority: Authority, tmp_path: Path, attempt: Callable[[Any], object]
) -> None:
    with by_certificate(beehive, authority.node(tmp_path, NODE), "node") as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker):
            attempt(channel)


def test_an_expired_certificate_a_strangers_and_none_are_turned_away(
    beehive: Broker, authority: Authority, tmp_path: Path
) -> None:
    by_certificate(beehive, authority.node(tmp_path / "good", NODE), "node").close()
    with pytest.raises(broker_client.BrokerError):
        by_certificate(beehive, authority.node(tmp_path / "expired", NODE, expired=True), "node")
    stranger = Authority("test authority").node(tmp_path / "stranger", NODE)
    (stranger / "beehive-ca.pem").write_bytes((tmp_path / "good/beehive-ca.pem").read_bytes())
    with pytest.raises(broker_client.BrokerError):
        by_certificate(beehive, stranger, "node")
    context = ssl.create_default_context(cafile=str(tmp_path / "good/beehive-ca.pem"))
    bare = pika.ConnectionParameters(
        "localhost",
        beehive.port,
        ssl_options=pika.SSLOptions(context, "localhost"),
        credentials=pika.PlainCredentials("admin", beehive.passwords["admin"]),
        connection_attempts=1,
    )
    with pytest.raises(broker_client.BrokerError):
        broker_client.connect(bare, deadline=3)


def test_a_node_that_is_not_registered_or_no_more_is_turned_away(
    beehive: Broker, authority: Authority, tmp_path: Path
) -> None:
    tls = authority.node(tmp_path, "00000000000000c3")
    with pytest.raises(broker_client.Refused):
        by_certificate(beehive, tls, "node")
    broker_client.put_node(beehive.management, "00000000000000c3")
    broker_client.put_node(beehive.management, "00000000000000c3")
    by_certificate(beehive, tls, "node").close()
    broker_client.delete_user(beehive.management, "node-00000000000000c3")
    broker_client.delete_user(beehive.management, "node-00000000000000c3")
    with pytest.raises(broker_client.Refused):
        by_certificate(beehive, tls, "node")


def test_a_wrong_password_and_a_wrong_authority_are_told_at_once(node: Broker, beehive: Broker, tmp_path: Path) -> None:
    with pytest.raises(broker_client.Refused, match="refuses this user"):
        broker_client.connect(broker_client.by_password(node.address, "plugin", "wrong"), deadline=600)
    with pytest.raises(broker_client.Refused, match="not trusted"):
        by_certificate(beehive, Authority("another").node(tmp_path, NODE), "node")
    with pytest.raises(broker_client.Refused):
        broker_client.users(broker_client.Management(node.management.url, "wrong"))


def test_there_is_no_user_beside_ours(node: Broker, beehive: Broker) -> None:
    assert sorted(broker_client.users(node.management)) == sorted(broker.NODE_USERS)
    assert sorted(broker_client.users(beehive.management)) == [
        "admin",
        "api",
        "loader",
        f"node-{NODE}",
        f"node-{OTHER}",
    ]


def test_what_a_plugin_subscribes_to_and_does_not_read_is_bounded(node: Broker) -> None:
    with as_user(node, "plugin") as connection:
        name = connection.channel().queue_declare("", exclusive=True).method.queue
        wait_until(lambda: broker_client.request(node.management, "GET", f"queues/%2F/{name}").get("policy"))
        assert broker_client.request(node.management, "GET", f"queues/%2F/{name}")["policy"] == "subscribers"
        policy = broker_client.request(node.management, "GET", "policies/%2F/subscribers")
        assert policy["definition"]["max-length-bytes"] > 0


def test_no_password_stands_in_what_a_broker_logs(node: Broker, beehive: Broker) -> None:
    for running in (node, beehive):
        text = running.log.read_text()
        assert not [name for name, password in running.passwords.items() if password in text]
        definitions = (running.private / "definitions.json").read_text()
        assert json.loads(definitions)["users"]
        assert not [name for name, password in running.passwords.items() if password in definitions]

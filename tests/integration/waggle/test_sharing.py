# SPDX-License-Identifier: Apache-2.0
"""What the sharing service promises, at a real broker: all that is fit is shared by its scope, in order, whoever is
killed; what is not fit is dropped and told of; nothing that a plugin sends ends it."""

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from tests.integration.waggle import brokers, sharing_service
from tests.integration.waggle.brokers import Broker
from tests.integration.waggle.sharing_service import (
    ADDED,
    APP,
    APP_ID,
    Service,
    body,
    channel_of,
    from_plugin,
    wait_until,
)
from virtual_waggle import broker, broker_client, message
from virtual_waggle.node import apps


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with brokers.node_broker(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
def sharing(tmp_path: Path, node: Broker) -> Iterator[Service]:
    """The service, at a broker whose queues are empty."""
    with channel_of(node, "admin") as channel:
        for queue in (broker.TO_VALIDATOR, broker.TO_BEEHIVE):
            channel.queue_purge(queue)
    with sharing_service.running(sharing_service.of(tmp_path, node)) as service:
        yield service


@contextlib.contextmanager
def subscribed(node: Broker, *patterns: str) -> Iterator[tuple[Any, str]]:
    """A queue as a plugin's subscriber has it: its channel and its name."""
    with channel_of(node, "plugin") as channel:
        queue = channel.queue_declare("", exclusive=True).method.queue
        for pattern in patterns:
            channel.queue_bind(queue, broker.DATA_TOPIC, pattern)
        yield channel, queue


def publish(channel: Any, text: bytes, scope: str = "all", properties: Any = None) -> None:
    channel.basic_publish(broker.TO_VALIDATOR, scope, text, properties or from_plugin())


def test_scopes_lead_where_they_say_and_the_node_adds_where_it_comes_from(node: Broker, sharing: Service) -> None:
    with subscribed(node, "#") as (reader, queue), channel_of(node, "recorder") as recorder:
        with channel_of(node, "plugin") as channel:
            for number, scope in enumerate(("all", "node", "beehive")):
                publish(channel, body(number, meta={"sensor": "x", "node": "a lie"}), scope)
        here = sharing_service.taken(reader, queue, 2)
        away = sharing_service.taken(recorder, broker.TO_BEEHIVE, 2)
    assert [found["val"] for _, found in here] == [0, 1]
    assert [found["val"] for _, found in away] == [0, 2]
    for key, found in (*here, *away):
        assert key == "env.test"
        assert found["meta"] == {"sensor": "x", **ADDED}


def test_a_subscriber_gets_what_it_asked_for(node: Broker, sharing: Service) -> None:
    names = ["env.temperature", "env.wind.speed", "raw.x"]
    with subscribed(node, "env.*", "raw.#") as (reader, queue):
        with channel_of(node, "plugin") as channel:
            for number, name in enumerate(names):
                publish(channel, body(number, name))
        assert [key for key, _ in sharing_service.taken(reader, queue, 2)] == ["env.temperature", "raw.x"]


def test_what_is_not_fit_is_dropped_and_told_of_and_the_rest_goes_on(node: Broker, sharing: Service) -> None:
    deep = b"[" * 100_000
    unfit = [
        (b"", "all", from_plugin()),
        (b"\xff\x00garbage", "all", from_plugin()),
        (b"{", "all", from_plugin()),
        (deep, "all", from_plugin()),
        (b'{"name": "a", "ts": 1, "meta": ' + b'{"a":' * 50_000, "all", from_plugin()),
        (b"x" * (message.LARGEST + 1), "all", from_plugin()),
        (body(1, "x" * 10, val="y" * (3 << 20)), "all", from_plugin()),
        (body(1, "Not.A.Name"), "all", from_plugin()),
        (body(1, val=[1, 2]), "all", from_plugin()),
        (body(1, val=None), "all", from_plugin()),
        (body(1, ts=-1), "all", from_plugin()),
        (body(1, ts="now"), "all", from_plugin()),
        (body(1, meta={"a": 1}), "all", from_plugin()),
        (body(1, meta={f"k{number}": "x" for number in range(60)}), "all", from_plugin()),
        (body(1), "everywhere", from_plugin()),
        (body(1), "", from_plugin()),
        (body(1), "all", from_plugin(app_id=None)),
        (body(1), "all", from_plugin(app_id="")),
        (body(1), "all", from_plugin(app_id="unknown")),
        (body(1), "all", from_plugin(app_id="../../etc/passwd")),
        (body(1), "all", pika.BasicProperties(app_id=APP_ID)),
        (body(1, "n" * 65), "beehive", from_plugin()),
    ]
    with channel_of(node, "plugin") as channel, channel_of(node, "recorder") as recorder:
        for text, scope, properties in unfit:
            publish(channel, text, scope, properties)
        publish(channel, body(7))
        assert [found["val"] for _, found in sharing_service.taken(recorder, broker.TO_BEEHIVE, 1)] == [7]
        assert sharing_service.depth(recorder, broker.TO_BEEHIVE) == 0
    with channel_of(node, "admin") as admin:
        wait_until(lambda: sharing_service.depth(admin, broker.TO_VALIDATOR) == 0)
    assert sharing.end() == 0
    log = sharing.log.read_text()
    assert f"dropped {len(unfit)} messages" in log
    for reason in ("unknown app", "no JSON", "no app_id", "no user_id", "body of more than"):
        assert reason in log, log


def test_fuzzed_bodies_and_properties_neither_end_it_nor_get_through(node: Broker, sharing: Service) -> None:
    chance = random.Random(5)  # noqa: S311
    good = body(1, meta={"sensor": "x"})
    with channel_of(node, "plugin") as channel, channel_of(node, "recorder") as recorder:
        for _ in range(1500):
            text = bytearray(good)
            for _ in range(chance.randrange(1, 8)):
                at = chance.randrange(len(text))
                text[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
            properties = from_plugin()
            if chance.random() < 0.2:
                properties.headers = {"CC": ["to-beehive"], "x": [{"y": chance.randrange(1 << 30)}]}
                properties.expiration = str(chance.randrange(1, 10_000_000))
                properties.content_type = chance.choice(["", "text/plain", "\u00e9" * 40])
                properties.priority = chance.randrange(256)
            publish(channel, bytes(text), chance.choice(["all", "beehive", "node"]), properties)
        publish(channel, body(123456, "the.last"))
        last = None
        for key, found in iter(lambda: (sharing_service.taken(recorder, broker.TO_BEEHIVE, 1) or [("", {})])[0], None):
            assert key, "the last one did not come"
            measurement = message.decode(json.dumps(found).encode())
            assert {name: measurement.meta[name] for name in ADDED} == ADDED
            if key == "the.last":
                last = found
                break
    assert last is not None
    assert last["val"] == 123456


def test_a_name_too_long_for_the_beehive_stays_on_the_node(node: Broker, sharing: Service) -> None:
    with subscribed(node, "#") as (reader, queue), channel_of(node, "recorder") as recorder:
        with channel_of(node, "plugin") as channel:
            publish(channel, body(1, "n" * 65))
            publish(channel, body(2, "n" * 64))
        assert [found["val"] for _, found in sharing_service.taken(reader, queue, 2)] == [1, 2]
        assert [found["val"] for _, found in sharing_service.taken(recorder, broker.TO_BEEHIVE, 1)] == [2]


def test_apps_come_and_go_without_a_restart(node: Broker, sharing: Service, tmp_path: Path) -> None:
    folder = tmp_path / "apps"
    with channel_of(node, "plugin") as channel, channel_of(node, "recorder") as recorder:
        apps.add(folder, "another", apps.App("waggle/other:2", "j", "t"))
        publish(channel, body(1), properties=from_plugin(app_id="another"))
        ((_, found),) = sharing_service.taken(recorder, broker.TO_BEEHIVE, 1)
        assert found["meta"]["plugin"] == "waggle/other:2"
        apps.add(folder, "another", apps.App("waggle/other:3", "j", "t"))
        time.sleep(1.5)
        publish(channel, body(2), properties=from_plugin(app_id="another"))
        ((_, found),) = sharing_service.taken(recorder, broker.TO_BEEHIVE, 1)
        assert found["meta"]["plugin"] == "waggle/other:3"
        apps.remove(folder, "another")
        time.sleep(1.5)
        publish(channel, body(3), properties=from_plugin(app_id="another"))
        publish(channel, body(4))
        ((_, found),) = sharing_service.taken(recorder, broker.TO_BEEHIVE, 1)
        assert found["val"] == 4


def test_large_bodies_pass_up_to_the_limit(node: Broker, sharing: Service) -> None:
    with channel_of(node, "plugin") as channel, channel_of(node, "recorder") as recorder:
        texts = ["x" * (message.LARGEST - 1000), "世" * ((message.LARGEST - 1000) // 3), "y" * 131_072, "w"]
        for text in texts:
            publish(channel, json.dumps(json.loads(body(1, val=text)), ensure_ascii=False).encode())
        assert [found["val"] for _, found in sharing_service.taken(recorder, broker.TO_BEEHIVE, 4)] == texts


def published_while(node: Broker, count: int, disturb: Any) -> None:
    """Publish numbered messages with confirms, again after a lost connection, while ``disturb`` runs beside."""
    done = threading.Event()

    def publish_all() -> None:
        number = 0
        end = time.monotonic() + 120
        while number < count and time.monotonic() < end:
            try:
                with channel_of(node, "plugin") as channel:
                    while number < count:
                        publish(channel, body(number))
                        number += 1
                        if number % 200 == 0:
                            time.sleep(0.05)
            except (pika.exceptions.AMQPError, broker_client.BrokerError):
                time.sleep(0.2)
        if number == count:
            done.set()

    publisher = threading.Thread(target=publish_all)
    publisher.start()
    # Here, for a process dies with the thread that started it.
    disturb()
    publisher.join()
    assert done.is_set()


def read_all(node: Broker, count: int) -> list[int]:
    """The values that went to the Beehive's queue, until ``count`` different ones are there."""
    values: list[int] = []
    with channel_of(node, "recorder") as recorder:
        for _, _, text in recorder.consume(broker.TO_BEEHIVE, auto_ack=True, inactivity_timeout=30):
            assert text is not None, f"only {len(set(values))} of {count} came"
            values.append(json.loads(text)["val"])
            if len(set(values)) == count:
                return values
    raise AssertionError("unreachable")


def first_seen(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))


def test_killed_again_and_again_it_loses_nothing_and_keeps_the_order(node: Broker, sharing: Service) -> None:
    count = 5_000

    def kill() -> None:
        chance = random.Random(7)  # noqa: S311
        for _ in range(6):
            time.sleep(chance.uniform(0.4, 1.2))
            sharing.kill()
            sharing.start()

    published_while(node, count, kill)
    values = read_all(node, count)
    # What was under way at a kill comes twice: with the same name, meta and timestamp, so it is the same point.
    assert first_seen(values) == list(range(count))


def test_the_brokers_restart_and_its_kill_lose_nothing(tmp_path: Path) -> None:
    count = 4_000
    with brokers.node_broker(tmp_path / "node") as own:

        def trouble() -> None:
            time.sleep(1)
            own.stop()
            own.start()
            time.sleep(1)
            own.kill()
            own.start()

        with sharing_service.running(sharing_service.of(tmp_path, own)) as service:
            published_while(own, count, trouble)
            values = read_all(own, count)
            assert service.end() == 0
    assert sorted(set(values)) == list(range(count))


def test_it_ends_within_five_seconds_with_nothing_lost_and_nothing_twice(node: Broker, sharing: Service) -> None:
    count = 6_000
    with channel_of(node, "plugin") as channel:
        for number in range(count):
            channel.basic_publish(broker.TO_VALIDATOR, "all", body(number), from_plugin())
            if number == count // 2:
                begin = time.monotonic()
                assert sharing.end() == 0
                assert time.monotonic() - begin < 5
    sharing.start()
    assert read_all(node, count) == list(range(count))


def test_a_full_disk_makes_everyone_wait_and_loses_nothing(tmp_path: Path) -> None:
    count = 2_000
    with brokers.node_broker(tmp_path / "node") as own:
        service = sharing_service.of(tmp_path, own)
        with channel_of(own, "plugin") as channel:
            for number in range(count):
                publish(channel, body(number))
        own.ctl("set_disk_free_limit", "1000000GB")
        with sharing_service.running(service), channel_of(own, "recorder") as recorder:
            time.sleep(4)
            # At most what the broker had read before it stopped reading.
            assert sharing_service.depth(recorder, broker.TO_BEEHIVE) < count
            begin = time.monotonic()
            assert service.end() == 0
            assert time.monotonic() - begin < 5
        own.ctl("set_disk_free_limit", "1MB")
        with sharing_service.running(service):
            assert sorted(set(read_all(own, count))) == list(range(count))


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("WAGGLE_BROKER", "", "WAGGLE_BROKER is not set"),
        ("WAGGLE_BROKER", "rabbitmq", "WAGGLE_BROKER: expected host:port"),
        ("WAGGLE_SECRETS", "/nowhere", "can't read the secret /nowhere/sharing-password"),
        ("WAGGLE_APPS", "/nowhere", "WAGGLE_APPS: /nowhere is no folder"),
        ("WAGGLE_NODE_ID", "12", "WAGGLE_NODE_ID: expected 16 hexadecimal digits"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(
    tmp_path: Path, node: Broker, variable: str, value: str, told: str
) -> None:
    service = sharing_service.of(tmp_path, node)
    service.env = {**service.env, variable: value}
    with sharing_service.running(service):
        assert service.process is not None
        assert service.process.wait(30) == 2
    assert told in service.log.read_text()


def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path, node: Broker) -> None:
    service = sharing_service.of(tmp_path, node)
    (tmp_path / "secrets/sharing-password").write_text("not-this-one")
    with sharing_service.running(service):
        assert service.process is not None
        assert service.process.wait(30) == 1
    assert "refuses this user" in service.log.read_text()
    assert "not-this-one" not in service.log.read_text()


def test_no_loop_arises_where_a_plugin_binds_the_validators_queue_to_what_is_shared(
    node: Broker, sharing: Service
) -> None:
    with channel_of(node, "plugin") as channel, channel_of(node, "recorder") as recorder:
        channel.queue_bind(broker.TO_VALIDATOR, broker.DATA_TOPIC, "#")
        try:
            publish(channel, body(1))
            assert len(sharing_service.taken(recorder, broker.TO_BEEHIVE, 1)) == 1
            assert sharing_service.taken(recorder, broker.TO_BEEHIVE, 1, seconds=2) == []
        finally:
            channel.queue_unbind(broker.TO_VALIDATOR, broker.DATA_TOPIC, "#")
    assert APP.plugin

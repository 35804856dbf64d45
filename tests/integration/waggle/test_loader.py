# SPDX-License-Identifier: Apache-2.0
"""What the Beehive's loader promises: nothing is lost and nothing is there twice, whatever dies in between."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from groundwork import process
from tests.integration.waggle import beehive, postgres
from tests.integration.waggle.beehive import Hive
from virtual_waggle import broker, broker_client, message
from virtual_waggle.beehive.store import LATEST, all_series, open_store
from virtual_waggle.message import Measurement, Value

NODE, OTHER = "0000000000000001", "0000000000000002"
META = {"node": NODE, "vsn": "V001", "sensor": "bme680"}
WRITTEN = "beehive_loader_messages_total"


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with beehive.hive(tmp_path_factory.mktemp("hive"), NODE, OTHER) as running:
        yield running


@pytest.fixture(autouse=True)
def with_an_empty_queue(hive: Hive) -> None:
    broker_client.request(hive.broker.management, "DELETE", f"queues/%2F/{broker.TO_LOADER}/contents")


@contextlib.contextmanager
def sending(hive: Hive, node: str = NODE) -> Iterator[Callable[[bytes], None]]:
    """What sends a body as a node; when the block ends the broker has confirmed all of them."""
    connection = hive.as_node(node)
    try:
        channel = connection.channel()
        properties = pika.BasicProperties(user_id=f"node-{node}", delivery_mode=2)
        channel.tx_select()
        yield lambda body: channel.basic_publish(broker.WAGGLE_MSG, "a", body, properties)
        channel.tx_commit()
    finally:
        connection.close()


def body(number: int, value: Any = None, **meta: str) -> bytes:
    value = number if value is None else value
    return message.encode(Measurement(f"n{number % 7}", number, value, {**META, **meta}))


def wait_until(promise: Callable[[], Any], seconds: float = 60) -> None:
    for _ in process.poll_until(seconds, 0.1):
        if promise():
            return
    raise AssertionError(f"did not come true within {seconds:g} s")


def stored(address: str, folder: Path) -> list[tuple[str, int, Any]]:
    """Name, timestamp and value of all points."""
    with contextlib.closing(open_store(address, folder)) as store:
        found = []
        for series in all_series(store, None, 0):
            points, more = store.read(series.id, 0, LATEST, 1_000_000)
            assert not more
            found += [(series.name, time, value) for time, value in points]
    return found


def wait_for_count(count: int, address: str, folder: Path) -> None:
    wait_until(lambda: len(stored(address, folder)) >= count, 120)


def drained(hive: Hive) -> bool:
    connection = hive.broker
    return broker_client.queue_depth(connection.management, broker.TO_LOADER) == (0, 0)


def all_once(count: int) -> list[tuple[str, int, int]]:
    return [(f"n{number % 7}", number, number) for number in range(count)]


def test_what_a_node_sends_is_stored_with_its_type_and_meta(hive: Hive, tmp_path: Path) -> None:
    values: list[Value] = [1, -2.5, "Grüße", b"\x00\xff", True, False]
    with beehive.loader(hive, tmp_path / "store") as service:
        with sending(hive) as send:
            for number, value in enumerate(values):
                send(message.encode(Measurement("a", number, value, {**META, "größe": "世界"})))
        wait_for_count(len(values), "sqlite", tmp_path / "store")
        wait_until(lambda: drained(hive) and beehive.health(service)["healthy"])
    found = stored("sqlite", tmp_path / "store")
    assert found == [("a", number, value) for number, value in enumerate(values)]
    assert [type(value) for _, _, value in found] == [type(value) for value in values]


def test_what_is_not_the_nodes_own_is_rejected_counted_and_does_not_stop_the_rest(hive: Hive, tmp_path: Path) -> None:
    wrong = [
        b"",
        b"garbage",
        b"[" * 100_000,
        b"\x00\xff" * 1000,
        body(1, node=OTHER),
        body(1, node="x"),
        json.dumps({"name": "a", "ts": 1, "val": 1}).encode(),
        message.encode(Measurement("a" * 65, 1, 1, META)),
        message.encode(Measurement("a", 1, 1, {**META, "key": "x" * 257})),
        b'{"name":"a","ts":1e30,"val":1}',
        b'{"name":"a","ts":1,"val":{}}',
        b"x" * (message.LARGEST + 1),
    ]
    with beehive.loader(hive, tmp_path / "store") as service:
        with sending(hive) as send:
            for number, garbage in enumerate(wrong * 20):
                send(garbage)
                send(body(number))
        wait_until(lambda: beehive.counted(service, WRITTEN) == len(wrong) * 20)
        rejected = {
            reason: beehive.counted(service, f'beehive_loader_rejected_total{{reason="{reason}"}}')
            for reason in ("json", "node", "name", "meta", "timestamp", "value", "size")
        }
        assert rejected == {
            "json": 80,
            "node": 60,
            "name": 20,
            "meta": 20,
            "timestamp": 20,
            "value": 20,
            "size": 20,
        }
        said = service.said()
    assert said.count("rejected") == len(rejected), "one line a reason and minute"
    assert stored("sqlite", tmp_path / "store") == sorted(all_once(len(wrong) * 20), key=lambda row: (row[0], row[1]))


SCALARS = some.one_of(some.none(), some.integers(), some.floats(), some.text(max_size=9), some.just("b64"))
BODIES = some.one_of(
    some.binary(max_size=300),
    some.dictionaries(
        some.sampled_from(["name", "ts", "val", "meta", "enc"]),
        some.one_of(SCALARS, some.dictionaries(some.text(max_size=9), SCALARS, max_size=3)),
    ).map(lambda data: json.dumps(data).encode()),
)


def test_a_good_message_comes_through_behind_any_garbage(hive: Hive, tmp_path: Path) -> None:
    with beehive.loader(hive, tmp_path / "store") as service:

        @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(some.lists(BODIES, max_size=20))
        def send_behind(garbage: list[bytes]) -> None:
            before = beehive.counted(service, WRITTEN)
            with sending(hive) as send:
                for one in garbage:
                    send(one)
                send(body(time.time_ns()))
            wait_until(lambda: beehive.counted(service, WRITTEN) > before)

        send_behind()


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_loader_killed_at_any_moment_loses_nothing_and_doubles_nothing(
    hive: Hive, tmp_path: Path, store: str
) -> None:
    count = 40_000
    chance = random.Random(store)  # noqa: S311
    with contextlib.ExitStack() as stack:
        address = "sqlite" if store == "sqlite" else stack.enter_context(postgres.running()).address
        with sending(hive) as send:
            for number in range(count):
                send(body(number))
        kills = 0
        while len(stored(address, tmp_path / "store")) < count and kills < 30:
            with beehive.loader(hive, tmp_path / "store", BEEHIVE_STORE=address) as service:
                time.sleep(chance.uniform(0, 0.4))
                service.process.send_signal(signal.SIGKILL)
                service.process.wait()
            kills += 1
        assert kills > 2
        with beehive.loader(hive, tmp_path / "store", BEEHIVE_STORE=address):
            wait_for_count(count, address, tmp_path / "store")
        assert sorted(stored(address, tmp_path / "store"), key=lambda row: row[1]) == all_once(count)


def test_several_loaders_share_the_work_on_postgresql_and_one_may_die(hive: Hive, tmp_path: Path) -> None:
    count = 30_000
    with postgres.running() as server, contextlib.ExitStack() as stack:
        loaders = [
            stack.enter_context(beehive.loader(hive, tmp_path / f"{number}/store", BEEHIVE_STORE=server.address))
            for number in range(3)
        ]
        with sending(hive) as send:
            for number in range(count):
                send(body(number))
                if number % 3 == 0:
                    send(body(number))  # as if it had been delivered twice, perhaps to two of them
        time.sleep(0.3)
        loaders[0].process.send_signal(signal.SIGKILL)
        wait_for_count(count, server.address, tmp_path)
        assert sorted(stored(server.address, tmp_path), key=lambda row: row[1]) == all_once(count)
        assert all(beehive.counted(one, "beehive_loader_write_failures_total") == 0 for one in loaders[1:])


def test_a_broker_that_comes_back_is_loaded_from_again(tmp_path: Path) -> None:
    with beehive.hive(tmp_path / "hive", NODE) as hive, beehive.loader(hive, tmp_path / "store") as service:
        with sending(hive) as send:
            for number in range(1000):
                send(body(number))
        hive.broker.kill()
        wait_until(lambda: beehive.health(service)["broker"] != "ok")
        assert not beehive.health(service)["healthy"]
        hive.broker.start()
        with sending(hive) as send:
            for number in range(1000, 2000):
                send(body(number))
        wait_for_count(2000, "sqlite", tmp_path / "store")
        wait_until(lambda: beehive.health(service)["healthy"])
        assert sorted(stored("sqlite", tmp_path / "store"), key=lambda row: row[1]) == all_once(2000)


def test_a_queue_that_is_taken_away_and_comes_back_is_loaded_from_again(hive: Hive, tmp_path: Path) -> None:
    management, path = hive.broker.management, f"queues/%2F/{broker.TO_LOADER}"
    with beehive.loader(hive, tmp_path / "store") as service:
        wait_until(lambda: beehive.health(service)["broker"] == "ok")
        broker_client.request(management, "DELETE", path)
        try:
            wait_until(lambda: "the broker is gone" in service.said())
        finally:
            broker_client.request(management, "PUT", path, {"durable": True})
            binding = {"routing_key": "#"}
            broker_client.request(
                management, "POST", f"bindings/%2F/e/{broker.WAGGLE_MSG}/q/{broker.TO_LOADER}", binding
            )
        with sending(hive) as send:
            send(body(1))
        wait_for_count(1, "sqlite", tmp_path / "store")


def test_while_the_database_is_away_messages_wait_and_health_says_so(hive: Hive, tmp_path: Path) -> None:
    with (
        postgres.running() as server,
        beehive.loader(hive, tmp_path / "store", BEEHIVE_STORE=server.address) as service,
    ):
        server.kill()
        with sending(hive) as send:
            for number in range(1000):
                send(body(number))
        wait_until(lambda: beehive.health(service)["store"] != "ok")
        server.start()
        wait_for_count(1000, server.address, tmp_path)
        wait_until(lambda: beehive.health(service)["healthy"])
        assert "can't be written, messages wait in the queue" in service.said()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_keeps_messages_in_the_queue_until_there_is_room(hive: Hive, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], timeout=10)
    try:
        filler = folder / "filler"
        filler.write_bytes(bytes(4 << 20))
        count = 40_000
        with beehive.loader(hive, folder / "store") as service:
            with sending(hive) as send:
                for number in range(count):
                    send(body(number))
            wait_until(lambda: beehive.health(service)["store"] != "ok")
            assert "full" in beehive.health(service)["store"]
            assert "make room on its disk" in service.said()
            process.run(["mount", "-o", "remount,size=200m", folder], timeout=10)
            wait_for_count(count, "sqlite", folder / "store")
            wait_until(lambda: beehive.health(service)["healthy"])
        assert sorted(stored("sqlite", folder / "store"), key=lambda row: row[1]) == all_once(count)
    finally:
        process.run(["umount", folder], timeout=10)


def test_it_ends_at_once_when_told_to_and_what_it_had_taken_is_still_there(hive: Hive, tmp_path: Path) -> None:
    count = 20_000
    with sending(hive) as send:
        for number in range(count):
            send(body(number))
    with beehive.loader(hive, tmp_path / "store") as service:
        service.process.terminate()
        assert service.process.wait(5) == 0
    with beehive.loader(hive, tmp_path / "store"):
        wait_for_count(count, "sqlite", tmp_path / "store")
    assert sorted(stored("sqlite", tmp_path / "store"), key=lambda row: row[1]) == all_once(count)


def test_large_messages_do_not_fill_the_memory(hive: Hive, tmp_path: Path) -> None:
    with sending(hive) as send:
        for number in range(300):
            send(body(number, "x" * 1_000_000))
    with beehive.loader(hive, tmp_path / "store") as service:
        wait_until(lambda: beehive.counted(service, WRITTEN) == 300)
        assert service.memory() < 250 << 20


def test_what_is_too_old_is_removed(hive: Hive, tmp_path: Path) -> None:
    now = time.time_ns()
    with contextlib.closing(open_store("sqlite", tmp_path / "store")) as store:
        old = [Measurement("a", now - (number + 25) * 3_600_000_000_000, number, META) for number in range(10_000)]
        store.write([*old, Measurement("a", now, 1, META)])
    with beehive.loader(hive, tmp_path / "store", BEEHIVE_RETENTION="1d") as service:
        wait_until(lambda: beehive.counted(service, "beehive_loader_expired_total") == 10_000)
    assert stored("sqlite", tmp_path / "store") == [("a", now, 1)]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WAGGLE_BROKER", "nowhere"),
        ("BEEHIVE_STORE", "mysql://host/db"),
        ("BEEHIVE_RETENTION", "soon"),
        ("BEEHIVE_LOADER_LISTEN", "x"),
        ("WAGGLE_SECRETS", "/nonexistent"),
    ],
)
def test_a_wrong_setting_is_named(hive: Hive, tmp_path: Path, variable: str, value: str) -> None:
    with (
        pytest.raises(RuntimeError, match=value if variable == "WAGGLE_SECRETS" else variable),
        beehive.loader(hive, tmp_path / "store", **{variable: value}),
    ):
        pass

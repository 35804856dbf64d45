# SPDX-License-Identifier: Apache-2.0
"""The node's own measurements reach its broker, also one that was away."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from groundwork import files
from tests.integration.waggle import brokers, services
from tests.integration.waggle.brokers import Broker
from virtual_waggle import broker, broker_client, message
from virtual_waggle.message import Measurement
from virtual_waggle.node import metrics

ENOUGH = 60.0  # seconds


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Broker]:
    with brokers.node_broker(tmp_path / "broker") as running:
        files.write_text(tmp_path / "secrets/metrics-password", running.passwords["metrics"], mode=0o600)
        yield running


def environment(node: Broker, tmp_path: Path) -> dict[str, str]:
    return {
        "WAGGLE_BROKER": f"127.0.0.1:{node.port}",
        "WAGGLE_SECRETS": str(tmp_path / "secrets"),
        "WAGGLE_METRICS_INTERVAL": "1",
    }


def arrived(node: Broker, rounds: int) -> list[Measurement]:
    """What arrives until so many rounds of measurements are there."""
    parameters = broker_client.by_password(node.address, "sharing", node.passwords["sharing"])
    found: list[Measurement] = []
    with broker_client.connect(parameters, deadline=ENOUGH) as connection:
        channel = connection.channel()
        deadline = time.monotonic() + ENOUGH
        for method, properties, body in channel.consume(broker.TO_VALIDATOR, inactivity_timeout=1):
            if method is not None:
                check(properties, method.routing_key)
                found.append(message.decode(body))
                channel.basic_ack(method.delivery_tag)
            if len({measurement.timestamp for measurement in found}) > rounds:
                return [measurement for measurement in found if measurement.timestamp != found[-1].timestamp]
            assert time.monotonic() < deadline, f"{len(found)} measurements arrived"
    raise AssertionError("the broker went away")


def check(properties: pika.BasicProperties, key: str) -> None:
    assert (properties.user_id, properties.app_id, properties.delivery_mode, key) == (
        *("metrics", metrics.APP_ID, 2, "all"),
    )


def test_they_arrive_as_a_plugins_do(node: Broker, tmp_path: Path) -> None:
    with services.running("node.metrics", tmp_path, environment(node, tmp_path)) as service:
        found = arrived(node, 2)
        assert service.end() == 0
    names = {measurement.name for measurement in found}
    assert {
        "sys.boot_time",
        "sys.load1",
        "sys.cpu_seconds",
        "sys.mem.avail",
        "sys.fs.avail",
        "sys.net.rx_bytes",
    } <= names
    times = [measurement.timestamp for measurement in found]
    assert times == sorted(times)
    assert abs(times[-1] / 1e9 - time.time()) < ENOUGH


def test_a_broker_that_was_away_gets_what_was_measured_meanwhile(node: Broker, tmp_path: Path) -> None:
    with services.running("node.metrics", tmp_path, environment(node, tmp_path)) as service:
        before = arrived(node, 1)[-1].timestamp
        node.kill()
        gone = time.time_ns()
        while "measurements are kept" not in service.said():
            assert time.time_ns() - gone < ENOUGH * 1e9
            time.sleep(0.2)
        time.sleep(3)
        back = time.time_ns()
        node.start()
        times = sorted({measurement.timestamp for measurement in arrived(node, 12)})
    assert times[0] > before
    assert len([moment for moment in times if gone < moment < back]) >= 2
    assert node.passwords["metrics"] not in service.said()


def test_it_ends_soon_while_no_broker_answers(tmp_path: Path) -> None:
    files.write_text(tmp_path / "secrets/metrics-password", "secret", mode=0o600)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        env = {"WAGGLE_BROKER": f"127.0.0.1:{silent.getsockname()[1]}", "WAGGLE_SECRETS": str(tmp_path / "secrets")}
        with services.running("node.metrics", tmp_path, env) as service:
            silent.settimeout(ENOUGH)
            client, _ = silent.accept()
            with client:
                assert service.end() == 0

# SPDX-License-Identifier: Apache-2.0
"""A node without a Beehive keeps what its plugins publish itself."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundwork import files
from tests.integration.waggle import beehive, brokers, sharing_service
from tests.integration.waggle.beehive import Service
from tests.integration.waggle.brokers import Broker, free_ports
from tests.integration.waggle.sharing_service import ADDED
from virtual_waggle import broker
from virtual_waggle.beehive.store import LATEST, all_series
from virtual_waggle.beehive.store_sqlite import SQLiteStore
from virtual_waggle.node import recorder

BEGIN = 1_700_000_000 * 10**9


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Broker]:
    with (
        brokers.node_broker(tmp_path / "node") as running,
        sharing_service.running(sharing_service.of(tmp_path, running)),
    ):
        yield running


@contextlib.contextmanager
def recording(node: Broker, folder: Path) -> Iterator[Service]:
    (port,) = free_ports(1)
    secrets = files.make_folder(folder / "recorder-secrets")
    files.write_text(secrets / "recorder-password", node.passwords["recorder"], mode=0o600)
    env = {
        "WAGGLE_BROKER": f"127.0.0.1:{node.port}",
        "WAGGLE_SECRETS": str(secrets),
        "WAGGLE_DATA": str(folder / "data"),
        "WAGGLE_RECORDER_LISTEN": f"127.0.0.1:{port}",
    }
    with beehive.running("node.recorder", folder, port, env) as service:
        yield service


def publish(node: Broker, numbers: range, scope: str = "all") -> None:
    with sharing_service.channel_of(node, "plugin") as channel:
        for number in numbers:
            body = sharing_service.body(number, meta={"sensor": "bme680"})
            channel.basic_publish(broker.TO_VALIDATOR, scope, body, sharing_service.from_plugin())


def test_what_plugins_publish_is_kept_with_the_nodes_meta_though_the_recorder_is_killed(
    node: Broker, tmp_path: Path
) -> None:
    publish(node, range(500))
    publish(node, range(500, 600), "node")  # which is for the node's own plugins alone
    with recording(node, tmp_path) as service:
        sharing_service.wait_until(lambda: beehive.counted(service, "beehive_loader_messages_total") >= 500)
        publish(node, range(600, 1100), "beehive")
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()
    with recording(node, tmp_path), contextlib.closing(SQLiteStore(tmp_path / "data" / recorder.FILE)) as store:
        (series,) = all_series(store, None, 0)
        sharing_service.wait_until(lambda: len(store.read(series.id, 0, LATEST, 5000)[0]) >= 1000)
        points, _ = store.read(series.id, 0, LATEST, 5000)
    expected = [*range(500), *range(600, 1100)]
    assert points == [(BEGIN + number, number) for number in expected]
    for key, value in {**ADDED, "sensor": "bme680"}.items():
        assert f'"{key}":"{value}"' in series.meta

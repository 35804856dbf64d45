# SPDX-License-Identifier: Apache-2.0
"""Unmodified pywaggle, from PyPI, at the node's broker and sharing service."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wagglemsg
from waggle.plugin import Plugin
from waggle.plugin.config import PluginConfig

from tests.integration.waggle import brokers, sharing_service
from tests.integration.waggle.brokers import Broker
from tests.integration.waggle.sharing_service import ADDED, APP_ID, channel_of
from virtual_waggle import broker


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("node")
    with brokers.node_broker(folder) as own, sharing_service.running(sharing_service.of(folder, own)):
        yield own


@pytest.fixture
def plugin(node: Broker) -> Iterator[Any]:
    with Plugin(config_of(node)) as opened:
        yield opened


def config_of(node: Broker) -> PluginConfig:
    return PluginConfig(
        host="127.0.0.1", port=node.port, username="plugin", password=node.passwords["plugin"], app_id=APP_ID
    )


def sent_away(node: Broker, count: int) -> list[wagglemsg.Message]:
    """The next messages of the queue to the Beehive, as pywaggle's own library reads them."""
    with channel_of(node, "recorder") as recorder:
        found = sharing_service.taken(recorder, broker.TO_BEEHIVE, count)
    assert len(found) == count
    return [wagglemsg.load(json.dumps(text)) for _, text in found]


VALUES: list[Any] = [
    0,
    -(1 << 63),
    (1 << 63) - 1,
    1.5,
    -0.0,
    5e-324,
    1.7976931348623157e308,
    "",
    "text",
    "\u00e4\u6e2c\U0001f41d",
    "x" * 100_000,
    True,
    False,
]


def test_every_kind_of_value_comes_through_as_it_was(node: Broker, plugin: Any) -> None:
    for number, value in enumerate(VALUES):
        plugin.publish("env.value", value, timestamp=1_700_000_000_000_000_001 + number)
    for number, found in enumerate(sent_away(node, len(VALUES))):
        assert found.value == VALUES[number]
        assert type(found.value) is type(VALUES[number])
        assert found.timestamp == 1_700_000_000_000_000_001 + number
        assert found.meta == ADDED


def test_numbers_that_are_none_come_through(node: Broker, plugin: Any) -> None:
    for value in (math.nan, math.inf, -math.inf):
        plugin.publish("env.value", value)
    first, second, third = (found.value for found in sent_away(node, 3))
    assert math.isnan(first)
    assert (second, third) == (math.inf, -math.inf)


def test_meta_of_any_script_comes_through_and_names_up_to_the_limit(node: Broker, plugin: Any) -> None:
    meta = {"sensor": "bme680", "\u5834\u6240": "\u5c4b\u6839", "note": "\u00fc" * 256, "k" * 64: ""}
    name = ".".join(["abc_9"] * 10) + ".z_12"
    assert len(name) == 64
    plugin.publish(name, 1, meta=meta)
    (found,) = sent_away(node, 1)
    assert (found.name, found.meta) == (name, {**meta, **ADDED})


def test_scopes(node: Broker, plugin: Any) -> None:
    for scope in ("node", "beehive", "all"):
        plugin.publish("env.scope", scope, scope=scope)
    assert [found.value for found in sent_away(node, 2)] == ["beehive", "all"]


def test_a_plugin_that_subscribes_gets_what_others_publish(node: Broker, plugin: Any) -> None:
    with Plugin(config_of(node)) as reader:
        reader.subscribe("env.sub.*", "raw.#")
        # Its queue is made in the background.
        for number in range(100):
            plugin.publish("raw.ready", number, scope="node")
            try:
                reader.get(timeout=1)
                break
            except TimeoutError:
                pass
        plugin.publish("env.other", 1, scope="node")
        plugin.publish("env.sub.a", 2, scope="all")
        plugin.publish("env.sub.b", 3, scope="beehive")
        plugin.publish("raw.a.b.c", 4, scope="node")
        found: list[Any] = []
        while len(found) < 2:
            got = reader.get(timeout=20)
            if got.name != "raw.ready":
                found.append(got)
    assert [(got.name, got.value) for got in found] == [("env.sub.a", 2), ("raw.a.b.c", 4)]
    assert found[0].meta == ADDED
    assert [got.value for got in sent_away(node, 2)] == [2, 3]


def test_a_plugin_as_a_program_of_its_own_with_the_environment_alone(node: Broker, tmp_path: Path) -> None:
    program = (
        "from waggle.plugin import Plugin\n"
        "with Plugin() as plugin:\n"
        "    plugin.publish('env.program', 42)\n"
        "    open('picture.jpg', 'wb').write(b'x')\n"
        "    plugin.upload_file('picture.jpg', timestamp=1700000000000000005)\n"
    )
    env = {
        "WAGGLE_PLUGIN_HOST": "127.0.0.1",
        "WAGGLE_PLUGIN_PORT": str(node.port),
        "WAGGLE_PLUGIN_USERNAME": "plugin",
        "WAGGLE_PLUGIN_PASSWORD": node.passwords["plugin"],
        "WAGGLE_APP_ID": APP_ID,
        "WAGGLE_PLUGIN_UPLOAD_PATH": str(tmp_path / "uploads"),
    }
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **env}, cwd=tmp_path, check=True, timeout=60)
    first, second = sent_away(node, 2)
    assert (first.name, first.value) == ("env.program", 42)
    assert (second.name, second.meta["filename"]) == ("upload", "picture.jpg")
    assert second.value == next((tmp_path / "uploads").iterdir()).name


def test_a_hundred_thousand_are_neither_lost_nor_doubled_and_stay_in_order(node: Broker) -> None:
    count, series = 100_000, 20
    with Plugin(config_of(node)) as plugin:
        for number in range(count):
            plugin.publish("env.many", number, meta={"series": str(number % series)}, timestamp=10**18 + number)
        while not plugin.send.empty():  # leaving the block flushes for a second alone
            time.sleep(0.1)
    values: list[int] = []
    with channel_of(node, "recorder") as recorder:
        for _, _, text in recorder.consume(broker.TO_BEEHIVE, auto_ack=True, inactivity_timeout=60):
            assert text is not None, f"only {len(values)} came"
            found = wagglemsg.load(text)
            assert found.timestamp == 10**18 + found.value
            assert found.meta == {"series": str(found.value % series), **ADDED}
            values.append(found.value)
            if len(values) == count:
                break
        assert values == list(range(count))
        assert sharing_service.depth(recorder, broker.TO_BEEHIVE) == 0

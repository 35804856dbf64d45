# SPDX-License-Identifier: Apache-2.0
"""How long a measurement takes from a plugin's publish() until the Beehive's data API gives it."""

import contextlib
import http.client
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

from groundwork import console, process
from tests.benchmarks.figures import Figure
from tests.integration.waggle import beehive, brokers, sharing_service
from tests.integration.waggle.sharing_service import APP_ID, NODE
from virtual_waggle import broker_client
from virtual_waggle.beehive.query import Stamps, parse_time
from virtual_waggle.broker import ToBeehive

RATE = 100  # messages a second
SECONDS = 60
_LOOK = 0.002  # seconds between two queries
_NAME = "bench.latency"

# pywaggle as it is, in a process of its own
_PLUGIN = """
import sys, time
from waggle.plugin import Plugin
rate, count = int(sys.argv[1]), int(sys.argv[2])
with Plugin() as plugin:
    plugin.publish("bench.begin", 0)
    time.sleep(2)
    begin = time.monotonic()
    for number in range(count):
        time.sleep(max(0, begin + number / rate - time.monotonic()))
        plugin.publish("bench.latency", number)
"""


def latency() -> list[Figure]:
    """One plugin at 100 messages/s for a minute; another process asks the data API for what is new, again and again."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        top = Path(scratch)
        hive = stack.enter_context(beehive.hive(top, NODE))
        to = ToBeehive(NODE, ("localhost",), hive.broker.port)
        node = stack.enter_context(brokers.node_broker(top / "broker-node", beehive=to, tls=top / f"node-{NODE}"))
        sharing_service.wait_until(lambda: broker_client.shovel_state(node.management) == "running")
        stack.enter_context(sharing_service.running(sharing_service.of(top, node)))
        stack.enter_context(beehive.loader(hive, top / "store"))
        api = stack.enter_context(beehive.api(top, **hive.environment(top / "store")))
        environment = {
            "WAGGLE_PLUGIN_HOST": "127.0.0.1",
            "WAGGLE_PLUGIN_PORT": str(node.port),
            "WAGGLE_PLUGIN_USERNAME": "plugin",
            "WAGGLE_PLUGIN_PASSWORD": node.passwords["plugin"],
            "WAGGLE_APP_ID": APP_ID,
            "WAGGLE_PLUGIN_UPLOAD_PATH": str(top / "plugin-uploads"),
        }
        with console.stage(f"{RATE} messages/s from a plugin to the data API, for {SECONDS} s") as stage:
            words = [sys.executable, "-c", _PLUGIN, str(RATE), str(RATE * SECONDS)]
            plugin = process.start(words, env=environment)
            try:
                delays = watch(urlsplit(api.url).netloc)
            finally:
                process.stop(plugin)
            middle, high = median(delays), quantiles(delays, n=100)[98]
            stage.note = f"median {middle:.0f} ms, 99 % within {high:.0f} ms"
    how = (
        f"{len(delays):,} messages of a plugin with pywaggle at {RATE}/s, over sharing service, shovel (mutual TLS), "
        f"loader and SQLite, until an answer of the data API has them; all on this machine; {min(delays):.0f} to "
        f"{max(delays):.0f} ms"
    )
    return [
        Figure("plugin to queryable, median", middle, "ms", 50.0, how),
        Figure("plugin to queryable, 99 %", high, "ms", 250.0, how),
    ]


def watch(place: str) -> list[float]:
    """Milliseconds from each message's timestamp until it was seen."""
    delays: dict[int, float] = {}
    connection = http.client.HTTPConnection(place, timeout=30)
    start = "1970-01-01"
    deadline = time.monotonic() + SECONDS + 120
    while len(delays) < RATE * SECONDS:
        if time.monotonic() > deadline:
            raise SystemExit(f"of {RATE * SECONDS} messages {len(delays)} came")
        time.sleep(_LOOK)
        connection.request("POST", "/api/v1/query", json.dumps({"start": start, "filter": {"name": _NAME}}))
        answer = connection.getresponse().read()
        now = time.time_ns()
        for line in answer.splitlines():
            row = json.loads(line)
            if row["value"] not in delays:
                delays[row["value"]] = (now - nanoseconds(row["timestamp"])) / 1e6
                if row["value"] >= 50:
                    start = earlier(row["timestamp"])
    connection.close()
    return list(delays.values())


def nanoseconds(timestamp: str) -> int:
    """Of a time as the data API writes it."""
    return parse_time("start", timestamp, 0)


def earlier(timestamp: str) -> str:
    """Half a second before: what comes out of order is seen too."""
    return Stamps()(nanoseconds(timestamp) - 500_000_000)

# SPDX-License-Identifier: Apache-2.0
"""How many messages a second the sharing service moves, beside what the broker itself moves on the same way."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from groundwork import console, process
from tests.benchmarks.figures import Figure
from tests.integration.waggle import brokers, sharing_service
from tests.integration.waggle.brokers import Broker
from tests.integration.waggle.sharing_service import channel_of, depth
from virtual_waggle import broker, broker_client
from virtual_waggle.broker_stream import BrokerStream

MESSAGES = 100_000
ROUNDS = 5
BASELINE = 6460  # messages a second, of the first throwaway proof
_OWN = "own-limit"


def sharing() -> list[Figure]:
    """The service against the broker's own shovel, from the same queue to the same exchange, in turns."""
    own: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, brokers.node_broker(Path(scratch) / "node") as node:
        service = sharing_service.of(Path(scratch), node)
        for number in range(ROUNDS):
            with console.stage(f"sharing: round {number + 1} of {ROUNDS}") as stage:
                for side in (own, ours) if number % 2 else (ours, own):
                    if side is ours:
                        ours.append(rate(node, service.start))
                        assert service.end() == 0
                    else:
                        own.append(rate(node, lambda: broker_client.put_shovel(node.management, own_shovel())))
                        broker_client.request(node.management, "DELETE", f"parameters/shovel/%2F/{_OWN}")
                stage.note = f"{ours[-1]:,.0f}/s against {own[-1]:,.0f}/s"
    ratios = [mine / min(3 * BASELINE, limit) for mine, limit in zip(ours, own, strict=True)]
    how = (
        f"median of {ROUNDS} rounds of {MESSAGES:,} messages: {median(ours):,.0f} messages/s ({min(ours):,.0f} to "
        f"{max(ours):,.0f}) against, in each round, the lower of 3 x {BASELINE:,} and what RabbitMQ's own shovel moves "
        f"in the same broker from the same queue to the same exchange, with confirms: {median(own):,.0f}/s "
        f"({min(own):,.0f} to {max(own):,.0f})"
    )
    return [Figure("sharing service / its goal", median(ratios), "ratio", 1.0, how, at_least=True)]


def own_shovel() -> dict[str, Any]:
    """RabbitMQ's own way from to-validator to where messages of scope all go; within its process, with confirms."""
    return {
        "component": "shovel",
        "vhost": broker.VHOST,
        "name": _OWN,
        "value": {
            "src-protocol": "amqp091",
            "src-uri": "amqp://",
            "src-queue": broker.TO_VALIDATOR,
            "src-prefetch-count": 2000,
            "dest-protocol": "amqp091",
            "dest-uri": "amqp://",
            "dest-exchange": broker.SHARED_ALL,
            "dest-exchange-key": "env.test",
            "dest-add-forward-headers": False,
            "ack-mode": "on-confirm",
        },
    }


def rate(node: Broker, start: Callable[[], object]) -> float:
    """Messages a second that come to the queue to-beehive, from the first tenth of them to the last."""
    parameters = broker_client.by_password(node.address, "plugin", node.passwords["plugin"])
    with BrokerStream(parameters, None, properties=sharing_service.from_plugin()) as stream:
        for number in range(MESSAGES):
            stream.publish(broker.TO_VALIDATOR, "all", sharing_service.body(number, meta={"sensor": "bme680"}))
            while stream.unconfirmed > 5000:
                stream.step(1)
        while stream.unconfirmed:
            stream.step(1)
    with channel_of(node, "admin") as channel:
        start()
        passed: dict[int, float] = {}
        for _ in process.poll_until(300, 0.02):
            found = depth(channel, broker.TO_BEEHIVE)
            for part in (1, 9):
                if found >= MESSAGES * part // 10:
                    passed.setdefault(part, time.perf_counter())
                    passed.setdefault(-part, found)
            if found >= MESSAGES:
                break
        else:
            raise SystemExit(f"only {depth(channel, broker.TO_BEEHIVE)} of {MESSAGES} messages were moved")
        channel.queue_purge(broker.TO_BEEHIVE)
    return (passed[-9] - passed[-1]) / (passed[9] - passed[1])

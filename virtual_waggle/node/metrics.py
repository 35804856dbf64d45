# SPDX-License-Identifier: Apache-2.0
"""Publishes the node's own measurements (node/machine.py) to its broker, as any plugin would.

While the broker is away the last ones are kept, the oldest go first.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections import deque
from pathlib import Path

import pika
import pika.exceptions

from groundwork.program import run_program
from groundwork.settings import whole_number
from virtual_waggle import broker, broker_client, env_file, message
from virtual_waggle.broker_client import BrokerError
from virtual_waggle.env_file import Variable
from virtual_waggle.node import machine
from virtual_waggle.node.machine import Past, Roots

logger = logging.getLogger(__name__)

USER = "metrics"
APP_ID = "node-metrics"
MOST_KEPT = 20_000  # measurements; some hours of a machine with four processors
_SLICE = 1.0  # seconds between looks at the connection
_PAUSE = 2.0  # seconds between attempts to connect
_ANSWER = 3.0  # seconds that a broker may keep us waiting, so that a signal is soon heeded

TABLE = (
    Variable(
        "WAGGLE_BROKER",
        "the node's broker, as host:port",
        lambda text: broker_client.parse_address(text, "address"),
        "rabbitmq:5672",
    ),
    Variable("WAGGLE_SECRETS", "the folder of passwords", Path, "/run/secrets"),
    Variable("WAGGLE_METRICS_INTERVAL", "seconds between two looks at the machine", whole_number(1, 86400), "30"),
    Variable("WAGGLE_PROC", "where the machine's /proc is seen", Path, "/proc"),
    Variable("WAGGLE_SYS", "where the machine's /sys is seen", Path, "/sys"),
    Variable("WAGGLE_ROOT", "where the machine's / is seen", Path, "/"),
)


def main() -> int:
    """Measure and publish until a signal comes."""
    given = env_file.from_environment(os.environ, TABLE)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    password = broker_client.read_secret(given["WAGGLE_SECRETS"] / broker.NODE_USERS[USER])
    parameters = broker_client.by_password(
        given["WAGGLE_BROKER"],
        USER,
        password,
        blocked_connection_timeout=_ANSWER,
        socket_timeout=_ANSWER,
        stack_timeout=_ANSWER,
    )
    roots = Roots(given["WAGGLE_PROC"], given["WAGGLE_SYS"], given["WAGGLE_ROOT"])
    run(parameters, roots, given["WAGGLE_METRICS_INTERVAL"], stop)
    return 0


def run(parameters: pika.ConnectionParameters, roots: Roots, interval: int, stop: threading.Event) -> None:
    """Measure every ``interval`` seconds and publish, until ``stop`` is set."""
    kept: deque[bytes] = deque(maxlen=MOST_KEPT)
    past = Past()
    connection: pika.BlockingConnection | None = None
    away = False
    while not stop.is_set():
        due = time.monotonic() + interval
        found = machine.measure(roots, time.time_ns(), past)
        if len(kept) + len(found) > MOST_KEPT:
            logger.warning("the broker is away for long: the oldest measurements are dropped")
        kept.extend(message.encode(measurement) for measurement in found)
        while not stop.is_set() and (left := due - time.monotonic()) > 0:
            try:
                if connection is None:
                    connection = broker_client.connect(parameters, deadline=0)
                _send(connection, kept, stop)
                if away:
                    logger.warning("the broker is back")
                    away = False
                connection.process_data_events(min(left, _SLICE))
            except (BrokerError, pika.exceptions.AMQPError, OSError) as error:
                if not away:
                    logger.warning("the broker is away, measurements are kept: %s", str(error) or repr(error))
                    away = True
                _close(connection)
                connection = None
                stop.wait(min(left, _PAUSE))
    _close(connection)


def _send(connection: pika.BlockingConnection, kept: "deque[bytes]", stop: threading.Event) -> None:
    """Publish what is kept; the broker confirms each before it is forgotten."""
    if not kept:
        return
    with connection.channel() as channel:
        channel.confirm_delivery()
        properties = pika.BasicProperties(delivery_mode=2, user_id=USER, app_id=APP_ID)
        while kept and not stop.is_set():
            channel.basic_publish(broker.TO_VALIDATOR, "all", kept[0], properties)
            kept.popleft()


def _close(connection: pika.BlockingConnection | None) -> None:
    if connection is not None and connection.is_open:
        with contextlib.suppress(pika.exceptions.AMQPError, OSError):
            connection.close()


if __name__ == "__main__":
    run_program(main)

# SPDX-License-Identifier: Apache-2.0
"""The sharing service: what plugins publish is checked, told where it comes from, and shared by its scope.

It takes messages from the queue to-validator and publishes each once; a message is acknowledged when the broker has
confirmed what became of it.  So nothing is lost whoever is killed, and what was under way then is published again: the
same series and timestamp, which is the same point.

Environment: WAGGLE_BROKER (host:port), WAGGLE_SECRETS (folder of the file sharing-password), WAGGLE_APPS (folder of the
apps that may publish), WAGGLE_NODE_ID, WAGGLE_NODE_VSN, WAGGLE_NODE_HOST.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pika

from groundwork.errors import InputError, SageError
from virtual_waggle import broker, broker_client, message
from virtual_waggle.broker_stream import BrokerStream, Delivery
from virtual_waggle.message import Unfit
from virtual_waggle.node import apps

logger = logging.getLogger(__name__)

_PREFETCH = 2000  # messages under way; more brought no more a second
_APPS_KEPT = 1.0  # seconds: how long what was read of an app's file is believed
_MOST_APPS = 1000  # unknown ids may come from anyone
_MOST_REASONS = 20
_TELL_DROPS = 10.0  # seconds between lines about dropped messages
_CONNECT = 600.0  # seconds to wait for the broker
_END = 3.0  # seconds for the last confirms

_EXCHANGES = {"all": broker.SHARED_ALL, "node": broker.DATA_TOPIC, "beehive": broker.TO_BEEHIVE}


@dataclass(frozen=True)
class Node:
    """What of the node goes into the meta of each measurement."""

    node: str
    vsn: str
    host: str


class Apps:
    """The apps of a folder, each read again when what is known of it is a second old."""

    def __init__(self, folder: Path, node: Node) -> None:
        self._folder = folder
        self._node = {"node": node.node, "vsn": node.vsn, "host": node.host}
        self._known: dict[str, dict[str, str] | None] = {}
        self._until = 0.0

    def meta(self, app_id: str) -> dict[str, str] | None:
        """What is added to the meta of this app's measurements; None for an app that may not publish."""
        now = time.monotonic()
        if now > self._until or len(self._known) > _MOST_APPS:
            self._known.clear()
            self._until = now + _APPS_KEPT
        if app_id not in self._known:
            self._known[app_id] = self._read(app_id)
        return self._known[app_id]

    def _read(self, app_id: str) -> dict[str, str] | None:
        if not apps.is_id(app_id):
            return None
        path = apps.path_of(self._folder, app_id)
        if not path.exists():
            return None
        try:
            app = apps.read(path)
        except InputError as error:
            logger.warning("%s", error)
            return None
        return {**self._node, "job": app.job, "task": app.task, "plugin": app.plugin}


def share(delivery: Delivery, known: Apps) -> tuple[str, str, bytes]:
    """Exchange, routing key and body of what is to be published for a message.  Raises Unfit."""
    if not delivery.user_id:
        raise Unfit("no user_id")
    if not delivery.app_id:
        raise Unfit("no app_id")
    exchange = _EXCHANGES.get(delivery.routing_key)
    if exchange is None:
        raise Unfit(f"scope {delivery.routing_key[:32]!r}, none of {', '.join(_EXCHANGES)}")
    added = known.meta(delivery.app_id)
    if added is None:
        raise Unfit("unknown app")
    if delivery.body is None:
        raise Unfit(f"body of more than {message.LARGEST} bytes")
    measurement = message.decode(delivery.body)
    measurement.meta.update(added)
    if len(measurement.meta) > message.MOST_META:
        raise Unfit(f"meta: more than {message.MOST_META} keys with those that the node adds")
    if len(measurement.name) > message.BEEHIVE_NAME and exchange != broker.DATA_TOPIC:
        if exchange == broker.TO_BEEHIVE:
            raise Unfit(f"name of {len(measurement.name)} characters, at most {message.BEEHIVE_NAME} at the Beehive")
        exchange = broker.DATA_TOPIC  # the Beehive would refuse it
    body = message.encode(measurement)
    if len(body) > message.LARGEST:  # the Beehive would refuse it, its broker over and over
        raise Unfit(f"body of more than {message.LARGEST} bytes with what the node adds")
    return exchange, measurement.name, body


class Drops:
    """What was dropped: counted by reason, told of now and then."""

    def __init__(self) -> None:
        self.total = 0
        self._since: Counter[str] = Counter()
        self._last: dict[str, str] = {}  # reason -> the app
        self._told = -_TELL_DROPS

    def add(self, delivery: Delivery, reason: str) -> None:
        """Count one; tell of the first at once."""
        self.total += 1
        reason = reason[:200]
        if reason in self._since or len(self._since) < _MOST_REASONS:
            self._since[reason] += 1
            self._last[reason] = str(delivery.app_id)[:64]
        else:
            self._since["other reasons"] += 1
        self.tell()

    def tell(self, *, now: bool = False) -> None:
        """A line a reason, for the most frequent ones, if it is time for them."""
        if self._since and (now or time.monotonic() - self._told >= _TELL_DROPS):
            for reason, count in self._since.most_common():
                logger.warning("dropped %d: %s (the last of app %r)", count, reason, self._last.get(reason))
            self._since.clear()
            self._last.clear()
            self._told = time.monotonic()


def run(parameters: pika.ConnectionParameters, known: Apps, stop: threading.Event) -> None:
    """Share until ``stop`` is set.  Raises BrokerError when the broker can't be reached for 10 minutes."""
    drops = Drops()
    while not stop.is_set():
        with _connected(parameters, stop) as stream:
            logger.info("sharing")
            try:
                _share_all(stream, known, drops, stop)
            except broker_client.BrokerError as error:
                logger.warning("%s", error)
        drops.tell(now=True)
    logger.info("ended; dropped %d messages", drops.total)


def _connected(parameters: pika.ConnectionParameters, stop: threading.Event) -> BrokerStream:
    where = f"the broker at {parameters.host}:{parameters.port}"
    for _ in broker_client.attempts(where, _CONNECT, stop):
        try:
            return BrokerStream(parameters, broker.TO_VALIDATOR, prefetch=_PREFETCH, largest=message.LARGEST)
        except broker_client.Refused:
            raise
        except broker_client.BrokerError as error:
            logger.debug("%s", error)
    raise AssertionError("attempts ends by an error")


def _share_all(stream: BrokerStream, known: Apps, drops: Drops, stop: threading.Event) -> None:
    while not stop.is_set():
        for delivery in stream.step(1.0):
            try:
                stream.publish(*share(delivery, known))
            except Unfit as error:
                drops.add(delivery, str(error))
            stream.settle(delivery)
        drops.tell()
    # What has come since is not settled: the broker keeps it.
    end = time.monotonic() + _END
    while stream.unsettled and time.monotonic() < end:
        stream.step(0.1)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The service."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        node_id = broker_client.variable(environment, "WAGGLE_NODE_ID")
        vsn, host = environment.get("WAGGLE_NODE_VSN", ""), environment.get("WAGGLE_NODE_HOST", "")
        address = broker_client.parse_address(broker_client.variable(environment, "WAGGLE_BROKER"), "WAGGLE_BROKER")
        password = broker_client.read_secret(
            Path(broker_client.variable(environment, "WAGGLE_SECRETS"), broker.NODE_USERS["sharing"])
        )
        folder = Path(broker_client.variable(environment, "WAGGLE_APPS"))
        if not message.is_node_id(node_id):
            raise InputError(f"WAGGLE_NODE_ID: expected 16 hexadecimal digits, found {node_id!r}")
        if not folder.is_dir():
            raise InputError(f"WAGGLE_APPS: {folder} is no folder")
        run(broker_client.by_password(address, "sharing", password), Apps(folder, Node(node_id, vsn, host)), stop)
    except SageError as error:
        if stop.is_set():
            return 0
        logger.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

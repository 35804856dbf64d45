# SPDX-License-Identifier: Apache-2.0
"""The stream of measurements as they come in: one consumer of the broker, any number of readers.

A thread takes messages from a queue of its own, as long as somebody reads; what it took goes to the readers' own
queues on the event loop.  A reader whose queue is full is dropped.  The broker drops what the thread is too slow for.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.exceptions

from virtual_waggle import broker, broker_client, message
from virtual_waggle.beehive import query as queries
from virtual_waggle.beehive.answer import line_writer
from virtual_waggle.beehive.query import Query
from virtual_waggle.beehive.store import canonical_meta
from virtual_waggle.broker_client import BrokerError
from virtual_waggle.message import Measurement, Unfit

logger = logging.getLogger(__name__)

_LINGER = 10.0  # seconds that the queue stays after its last reader
_BATCH = 500  # messages handed to the loop at once
_LARGEST_QUEUE = 4 << 20  # bytes waiting for one reader
_MOST_WAITING = 10_000  # messages at the broker


@dataclass(eq=False)
class Reader:
    """One who reads the stream: lines wait in ``queue``, ``waiting`` bytes of them; ``dropped`` where too many were.

    The last thing in the queue of one who is dropped is None.  ``api`` is the address that links to files begin with.
    """

    query: Query
    api: str
    queue: "asyncio.Queue[str | None]" = field(default_factory=asyncio.Queue)
    waiting: int = 0
    dropped: bool = False

    def take(self, line: str) -> str:
        """Say that a line was taken from the queue."""
        self.waiting -= len(line)
        return line


@dataclass(eq=False)
class Hub:
    """Those who read the stream.  Used on the event loop alone, but for ``wanted`` and ``bound``."""

    readers: set[Reader] = field(default_factory=set)
    wanted: threading.Event = field(default_factory=threading.Event)  # somebody reads
    bound: threading.Event = field(default_factory=threading.Event)  # and the broker gives us what comes in

    def add(self, reader: Reader) -> None:
        self.readers.add(reader)
        self.wanted.set()

    def remove(self, reader: Reader) -> None:
        self.readers.discard(reader)
        if not self.readers:
            self.wanted.clear()

    async def spread(self, measurements: Sequence[Measurement]) -> None:
        """Give these to all readers that asked for them."""
        for measurement in measurements:
            lines: dict[str, str] = {}
            for reader in list(self.readers):
                if not queries.matches(reader.query, measurement.name, measurement.meta):
                    continue
                line = lines.get(reader.api)
                if line is None:
                    line = lines[reader.api] = _line(measurement, reader.api)
                if reader.waiting + len(line) > _LARGEST_QUEUE:
                    self.remove(reader)
                    reader.dropped = True
                    reader.queue.put_nowait(None)
                else:
                    reader.waiting += len(line)
                    reader.queue.put_nowait(line)
        await asyncio.sleep(0)  # between batches it is the readers' turn


def _line(measurement: Measurement, api: str) -> str:
    name, timestamp, value, meta = measurement
    text = canonical_meta(frozenset(meta.items()))
    return line_writer(name, text, meta, api)([(timestamp, value)])[0].rstrip("\n")


def listen(
    brokers: Sequence[pika.ConnectionParameters],
    hub: Hub,
    loop: asyncio.AbstractEventLoop,
    stop: threading.Event,
) -> None:
    """The thread's work, until ``stop``: consume while somebody reads; a connection that was lost is made anew.

    It is made to the first of these brokers (of one cluster) that can be reached.
    """
    while not stop.is_set():
        if not hub.wanted.wait(0.2):
            continue
        try:
            connection = broker_client.connect(*brokers, deadline=60, stop=stop)
        except BrokerError as error:
            logger.warning("stream: %s", error)
            stop.wait(2)
            continue
        try:
            _consume(connection, hub, loop, stop)
        except (pika.exceptions.AMQPError, OSError) as error:
            if not stop.is_set():
                logger.warning("stream: the broker is gone: %s", error or type(error).__name__)
                stop.wait(1)
        finally:
            hub.bound.clear()
            if connection.is_open:
                connection.close()


def _consume(
    connection: pika.BlockingConnection, hub: Hub, loop: asyncio.AbstractEventLoop, stop: threading.Event
) -> None:
    batch: list[Measurement] = []

    def take(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        try:
            measurement = message.decode(body)
            message.check_for_beehive(measurement, properties.user_id)
        except Unfit:
            return  # the loader counts and tells of these
        batch.append(measurement)

    channel = connection.channel()
    # The broker drops the oldest where we are too slow; so memory stays bounded there, too.
    queue = channel.queue_declare(
        "", exclusive=True, auto_delete=True, arguments={"x-max-length": _MOST_WAITING, "x-overflow": "drop-head"}
    ).method.queue
    channel.queue_bind(queue, broker.WAGGLE_MSG, "#")
    channel.basic_qos(prefetch_count=_BATCH)
    channel.basic_consume(queue, _acknowledged(take))
    hub.bound.set()
    unread_since = None
    while not stop.is_set():
        connection.process_data_events(time_limit=0.1)
        if batch:
            taken, batch[:] = list(batch), []
            asyncio.run_coroutine_threadsafe(hub.spread(taken), loop).result()
        if hub.wanted.is_set():
            unread_since = None
        else:
            unread_since = unread_since or time.monotonic()
            if time.monotonic() - unread_since > _LINGER:
                return


def _acknowledged(take: Any) -> Any:
    """Acknowledge each message, for without it the broker would send all it has at once."""

    def taken(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        take(channel, method, properties, body)
        channel.basic_ack(method.delivery_tag)

    return taken

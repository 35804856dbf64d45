# SPDX-License-Identifier: Apache-2.0
"""From the broker's queue into the store: ``python3 -m virtual_waggle.beehive.loader``.

Messages are taken as they come, written in batches and acknowledged after the commit.  So one that is under way when
the loader, the broker or the store dies comes again, and what comes again replaces itself in the store: none is lost,
none is there twice.  While the store can't be written the loader holds one batch, lets go of the broker and tries
again; all else waits in the queue.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pika.exceptions

from groundwork.errors import SageError
from groundwork.program import run_program
from virtual_waggle import broker, broker_client, message, status_server
from virtual_waggle.beehive import settings
from virtual_waggle.beehive.store import Store, StoreUnavailable, open_store, read_password
from virtual_waggle.broker_client import BrokerError
from virtual_waggle.env_file import Variable, from_environment
from virtual_waggle.message import Measurement, Unfit
from virtual_waggle.prometheus import Metrics

logger = logging.getLogger("virtual_waggle.loader")

_BATCH = 5000  # messages of one commit
_BATCH_SIZE = 16 << 20  # bytes of one commit
_PREFETCH = 2 * _BATCH  # the next batch comes in while one is written
_LINGER = 0.005  # seconds that the first message of a batch waits for others
_IDLE = 0.2  # seconds between looks at whether to end
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between attempts to write
_LOST_PAUSE = 0.5  # seconds after a connection was lost
_TELL_EVERY = 60.0  # seconds between lines of the log about the same thing
_SWEEP_EVERY = 600.0  # seconds between looks for what is too old
_SWEEP_STEP = _BATCH  # points that are removed between two batches: no fewer than may have come

_HELPS = {
    "beehive_loader_messages_total": "Messages written to the store and acknowledged.",
    "beehive_loader_rejected_total": "Messages that are no measurement of the node that sent them, by reason.",
    "beehive_loader_batches_total": "Commits.",
    "beehive_loader_write_seconds_total": "Time that the commits took.",
    "beehive_loader_write_failures_total": "Attempts to write that failed; what was to be written was kept.",
    "beehive_loader_expired_total": "Points that were removed for their age.",
}
# How Unfit's texts begin -> the reason as it is counted.
_REASONS = {
    "body of": "size",
    "no JSON": "json",
    "name": "name",
    "ts": "timestamp",
    "val": "value",
    "enc": "value",
    "meta.node": "node",
    "meta": "meta",
}

Check = Callable[[Measurement, "str | None"], None]


@dataclass(eq=False)
class Loader:
    """A loader at work.  ``check`` raises Unfit for what the store is not to have; ``retention`` is in nanoseconds."""

    queue: str
    check: Check
    store: Store
    retention: int | None
    stop: threading.Event = field(default_factory=threading.Event)
    metrics: Metrics = field(default_factory=lambda: Metrics(_HELPS))
    parts: dict[str, str] = field(default_factory=lambda: {"broker": "not reached yet", "store": status_server.OK})
    told: dict[str, tuple[float, int]] = field(default_factory=dict)  # what was logged: when, and how often unlogged
    swept: float = -_SWEEP_EVERY  # when the last sweep began, by the monotonic clock
    sweep: int | None = None  # the series after which it goes on; None: it is done

    def tell(self, what: str, text: str) -> None:
        """Log a warning, but the same ``what`` only once a minute."""
        now = time.monotonic()
        last, unlogged = self.told.get(what, (-_TELL_EVERY, 0))
        if now - last < _TELL_EVERY:
            self.told[what] = (last, unlogged + 1)
            return
        logger.warning("%s%s", text, f" (and {unlogged} times more since the last such line)" if unlogged else "")
        self.told[what] = (now, 0)


def load(loader: Loader, brokers: Sequence[pika.ConnectionParameters]) -> None:
    """Load until ``loader.stop``, from the first of these brokers (of one cluster) that can be reached.

    What was taken and not written then is still in the queue.
    """
    while not loader.stop.is_set():
        try:
            connection = broker_client.connect(*brokers, deadline=30, stop=loader.stop)
        except BrokerError as error:
            loader.parts["broker"] = "not reached"
            if not loader.stop.wait(1):
                loader.tell("broker", str(error))
            continue
        loader.parts["broker"] = status_server.OK
        unwritten: list[Measurement] = []
        try:
            unwritten = _consume(loader, connection)
        except (pika.exceptions.AMQPError, OSError) as error:
            loader.parts["broker"] = "lost"
            loader.tell("broker", f"the broker is gone: {error or type(error).__name__}")
            loader.stop.wait(_LOST_PAUSE)
        finally:
            if connection.is_open:
                connection.close()
        _write_at_last(loader, unwritten)


def _consume(loader: Loader, connection: pika.BlockingConnection) -> list[Measurement]:
    """Take, write, acknowledge; until ``loader.stop``, or until the store can't be written: what it did not take."""
    batch: list[tuple[int, str | None, bytes]] = []

    def take(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        batch.append((method.delivery_tag, properties.user_id, body))

    channel = connection.channel()
    cancelled: list[Any] = []
    channel.add_on_cancel_callback(cancelled.append)
    channel.basic_qos(prefetch_count=_PREFETCH)
    channel.basic_consume(loader.queue, take)
    logger.info("loading from %s", loader.queue)
    while not loader.stop.is_set():
        connection.process_data_events(time_limit=0 if loader.sweep is not None else _IDLE)
        if cancelled:
            raise pika.exceptions.ConsumerCancelled(cancelled[0])  # the queue moved, or is gone
        if batch:
            _gather(connection, batch)
        while batch:
            part = batch[:_BATCH]
            del batch[:_BATCH]
            measurements = _measurements(loader, part)
            try:
                _write(loader, measurements)
            except StoreUnavailable as error:
                _complain(loader, error)
                return measurements
            channel.basic_ack(part[-1][0], multiple=True)
        _sweep(loader)
    return []


def _gather(connection: pika.BlockingConnection, batch: list[tuple[int, str | None, bytes]]) -> None:
    """Wait a moment for more messages."""
    end = time.monotonic() + _LINGER
    while len(batch) < _BATCH and (left := end - time.monotonic()) > 0:
        if sum(len(body) for _, _, body in batch) > _BATCH_SIZE:
            return
        connection.process_data_events(time_limit=left)


def _measurements(loader: Loader, batch: list[tuple[int, str | None, bytes]]) -> list[Measurement]:
    """What the messages say; those that are not to be loaded are counted."""
    found = []
    for _, user, body in batch:
        try:
            measurement = message.decode(body)
            loader.check(measurement, user)
        except Unfit as error:
            text = str(error)
            reason = next((reason for begin, reason in _REASONS.items() if text.startswith(begin)), "other")
            loader.metrics.add("beehive_loader_rejected_total", reason=reason)
            loader.tell(f"rejected {reason}", f"rejected a message of {str(user)[:80]!r}: {text[:200]}")
        else:
            found.append(measurement)
    return found


def _write(loader: Loader, measurements: list[Measurement]) -> None:
    if not measurements:
        return
    begin = time.perf_counter()
    loader.store.write(measurements)
    loader.metrics.add("beehive_loader_write_seconds_total", time.perf_counter() - begin)
    loader.metrics.add("beehive_loader_batches_total")
    loader.metrics.add("beehive_loader_messages_total", len(measurements))
    loader.parts["store"] = status_server.OK


def _complain(loader: Loader, error: SageError) -> None:
    loader.metrics.add("beehive_loader_write_failures_total")
    loader.parts["store"] = f"can't be written: {error}"
    loader.tell("store", f"the store can't be written, messages wait in the queue: {error}; {error.hint}")


def _write_at_last(loader: Loader, measurements: list[Measurement]) -> None:
    """Try to write until it goes well.  The same messages come again from the broker, and change nothing then."""
    pause = _FIRST_PAUSE
    while measurements and not loader.stop.wait(pause):
        try:
            _write(loader, measurements)
        except StoreUnavailable as error:
            _complain(loader, error)
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            logger.info("the store can be written again")
            return


def _sweep(loader: Loader) -> None:
    """One step of removing what is too old, if there is one to be done."""
    if loader.retention is None:
        return
    if loader.sweep is None:
        if time.monotonic() - loader.swept < _SWEEP_EVERY:
            return
        loader.swept = time.monotonic()
        loader.sweep = 0
    try:
        before = max(0, time.time_ns() - loader.retention)
        gone, loader.sweep = loader.store.expire(before, loader.sweep, _SWEEP_STEP)
        loader.metrics.add("beehive_loader_expired_total", gone)
    except StoreUnavailable as error:
        loader.sweep = None
        loader.tell("sweep", f"old points could not be removed, this is tried again later: {error}")


TABLE = (
    Variable(
        "WAGGLE_BROKER",
        "host:port of the Beehive's broker; of a cluster's brokers with commas between",
        lambda text: broker_client.parse_addresses(text, "broker"),
        "rabbitmq:5671",
    ),
    Variable(
        "WAGGLE_SECRETS",
        "folder of ca-cert.pem, loader-cert.pem, loader-key.pem and store-password",
        Path,
        "/run/secrets",
    ),
    *settings.of_names("BEEHIVE_STORE", "BEEHIVE_RETENTION"),
    Variable("BEEHIVE_STORE_FOLDER", "folder of the SQLite store", Path, "/var/lib/beehive/store"),
    Variable(
        "BEEHIVE_LOADER_LISTEN",
        "address and port of /metrics and /healthz",
        lambda text: broker_client.parse_address(text, "address"),
        "0.0.0.0:8081",
    ),
)


def run(
    queue: str,
    check: Check,
    brokers: Sequence[pika.ConnectionParameters],
    new_store: Callable[[], Store],
    retention: int | None,
    listen: tuple[str, int],
) -> None:
    """Load from a queue until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = _opened(new_store, stop)
    if store is None:
        return
    loader = Loader(queue, check, store, retention, stop)
    server = status_server.serve(listen, loader.metrics, lambda: dict(loader.parts))
    try:
        load(loader, brokers)
        logger.info("told to end")
    finally:
        server.shutdown()
        store.close()


def _opened(new_store: Callable[[], Store], stop: threading.Event) -> Store | None:
    """The store, as soon as it can be reached; None where ``stop`` came first."""
    pause = _FIRST_PAUSE
    while True:
        try:
            return new_store()
        except StoreUnavailable as error:
            logger.warning("waiting for the store: %s; %s", error, error.hint)
            if stop.wait(pause):
                return None
            pause = min(pause * 2, _LONGEST_PAUSE)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The service."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it says of a lost broker is said here
    given = from_environment(environment, TABLE)
    secrets = given["WAGGLE_SECRETS"]
    brokers = [
        broker_client.by_certificate(
            address, secrets / "ca-cert.pem", secrets / "loader-cert.pem", secrets / "loader-key.pem"
        )
        for address in given["WAGGLE_BROKER"]
    ]
    password = read_password(secrets)
    run(
        broker.TO_LOADER,
        message.check_for_beehive,
        brokers,
        lambda: open_store(given["BEEHIVE_STORE"], given["BEEHIVE_STORE_FOLDER"], password),
        given["BEEHIVE_RETENTION"],
        given["BEEHIVE_LOADER_LISTEN"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

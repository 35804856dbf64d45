# SPDX-License-Identifier: Apache-2.0
"""A stand-in of pywaggle's ``waggle.plugin`` for plugins that are built where PyPI can't be reached.

It reads the same environment, has the same calls, and sends the same messages.  Where there is pywaggle, use that.
Unlike there, leaving the block waits until the broker has confirmed every message, for up to 30 s, and raises
BrokerError where it has not.
"""

import hashlib
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pika
import pika.exceptions

from virtual_waggle import broker, broker_client, message
from virtual_waggle.broker_client import BrokerError
from virtual_waggle.message import Measurement, Value

_LAST = 30.0  # seconds for what is left when the block ends
_SLICE = 0.2  # seconds between looks at queues


class Plugin:
    """What a plugin publishes and subscribes by; a context.

    With PYWAGGLE_LOG_DIR all goes into that folder too: ``data.ndjson`` and ``uploads/``.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        given = environment.get
        address = given("WAGGLE_PLUGIN_HOST", "rabbitmq"), int(given("WAGGLE_PLUGIN_PORT", "5672"))
        self._user = given("WAGGLE_PLUGIN_USERNAME", "plugin")
        self._parameters = broker_client.by_password(address, self._user, given("WAGGLE_PLUGIN_PASSWORD", "plugin"))
        self._app_id = given("WAGGLE_APP_ID") or None
        self._log = Path(given("PYWAGGLE_LOG_DIR", "")) if given("PYWAGGLE_LOG_DIR") else None
        self._uploads: Path | None = Path(given("WAGGLE_PLUGIN_UPLOAD_PATH", "/run/waggle/uploads"))
        if self._log is not None and not given("WAGGLE_PLUGIN_UPLOAD_PATH"):
            self._uploads = None
        self._outgoing: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._received: queue.Queue[Measurement] = queue.Queue()
        self._ended = threading.Event()
        self._unsent = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Plugin":
        self._begin(self._publish_all)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(_LAST + 10)
        # without a broker the log is all that was wanted
        if self._unsent and self._log is None and error is None:
            raise BrokerError(f"{self._unsent} messages did not reach the broker")

    def publish(
        self,
        name: str,
        value: Value,
        meta: Mapping[str, str] | None = None,
        timestamp: int | None = None,
        scope: str = "all",
    ) -> None:
        """Publish a measurement; ``timestamp`` in nanoseconds since 1970.  Raises ValueError for what is none."""
        if name == message.UPLOAD:
            raise ValueError("the name 'upload' is for files")
        self._send(Measurement(name, timestamp or time.time_ns(), value, dict(meta or {})), scope)

    def upload_file(
        self, path: str | Path, meta: Mapping[str, str] | None = None, timestamp: int | None = None, keep: bool = False
    ) -> Path | None:
        """Hand a file over for upload; it is removed, unless ``keep`` is set.

        Gives the folder in which it waits, if it does.  Raises ValueError for a ``meta`` that no message can hold.
        """
        path, timestamp = Path(path), timestamp or time.time_ns()
        labels = {**(meta or {}), "filename": path.name}
        _checked(Measurement(message.UPLOAD, timestamp, "", labels))
        if self._log is not None:
            copy = self._log / "uploads" / f"{timestamp}-{path.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            self._write_log(Measurement(message.UPLOAD, timestamp, str(copy.absolute()), labels))
        if self._uploads is not None:
            folder = put_upload(self._uploads, path, labels, timestamp)
            if not keep:
                path.unlink()
            self._send(Measurement(message.UPLOAD, timestamp, folder.name, labels), "all")
            return folder
        return None

    def subscribe(self, *topics: str) -> None:
        """Receive what the node's other plugins publish under names of these patterns (``env.#``)."""
        self._begin(lambda: self._consume(topics))

    def get(self, timeout: float | None = None) -> Measurement:
        """The next measurement received.  Raises TimeoutError after ``timeout`` seconds."""
        try:
            return self._received.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("plugin get timed out") from None

    @contextmanager
    def timeit(self, name: str) -> Iterator[None]:
        """Publish how many nanoseconds the block takes."""
        begin = time.perf_counter_ns()
        yield
        self.publish(name, time.perf_counter_ns() - begin)

    def _send(self, measurement: Measurement, scope: str) -> None:
        if not self._threads:
            raise RuntimeError("a Plugin is used in a `with` block")
        body = _checked(measurement)
        if self._log is not None and measurement.name != message.UPLOAD:
            self._write_log(measurement)
        self._outgoing.put((scope, body))

    def _write_log(self, measurement: Measurement) -> None:
        assert self._log is not None
        self._log.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(measurement.timestamp, 10**9)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09}Z"
        row: dict[str, Any] = json.loads(message.encode(measurement))
        row = {"name": row["name"], "value": row["val"], "meta": row["meta"], "timestamp": stamp}
        with (self._log / "data.ndjson").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n")

    def _begin(self, work: Any) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _publish_all(self) -> None:
        """Send what is to be sent; when the block has ended, what is left."""
        properties = pika.BasicProperties(delivery_mode=2, user_id=self._user, app_id=self._app_id)
        under_way: tuple[str, bytes] | None = None
        deadline = float("inf")
        while time.monotonic() < deadline:
            try:
                with pika.BlockingConnection(self._parameters) as connection:
                    channel = connection.channel()
                    channel.confirm_delivery()
                    while under_way or not self._outgoing.empty() or not self._ended.is_set():
                        if under_way is None:
                            try:
                                under_way = self._outgoing.get(timeout=_SLICE)
                            except queue.Empty:
                                connection.process_data_events(0)
                                continue
                        channel.basic_publish(broker.TO_VALIDATOR, under_way[0], under_way[1], properties)
                        under_way = None
                    return
            except (pika.exceptions.AMQPError, OSError):
                if self._ended.wait(1):
                    # a log without a broker need not wait for one
                    deadline = min(deadline, time.monotonic() + (0 if self._log is not None else _LAST))
                    time.sleep(0 if self._log is not None else 1)
        self._unsent = self._outgoing.qsize() + (under_way is not None)

    def _consume(self, topics: tuple[str, ...]) -> None:
        while not self._ended.is_set():
            try:
                with pika.BlockingConnection(self._parameters) as connection:
                    channel = connection.channel()
                    name = channel.queue_declare("", exclusive=True).method.queue
                    for topic in topics:
                        channel.queue_bind(name, broker.DATA_TOPIC, topic)
                    for method, _, body in channel.consume(name, auto_ack=True, inactivity_timeout=_SLICE):
                        if self._ended.is_set():
                            return
                        if method is not None:
                            self._take(body)
            except (pika.exceptions.AMQPError, OSError):
                self._ended.wait(1)

    def _take(self, body: bytes) -> None:
        with suppress(message.Unfit):
            self._received.put(message.decode(body))


def _checked(measurement: Measurement) -> bytes:
    """The body of the message for a measurement.  Raises Unfit, a ValueError."""
    body = message.encode(measurement)
    message.decode(body)
    return body


def put_upload(root: Path, path: Path, labels: Mapping[str, str], timestamp: int) -> Path:
    """Put a copy of a file where the uploader finds it: ``<root>/<timestamp>-<sha1>/`` with ``data`` and ``meta``.

    ``meta`` comes last: what has none is not complete yet.
    """
    total = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    folder = root / f"{timestamp}-{total.hexdigest()}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / "data")
    meta = {"timestamp": timestamp, "shasum": total.hexdigest(), "labels": dict(labels)}
    (folder / "meta").write_text(json.dumps(meta, separators=(",", ":"), sort_keys=True))
    return folder

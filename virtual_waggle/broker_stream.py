# SPDX-License-Identifier: Apache-2.0
"""A connection that takes many small messages from a queue and publishes as many, with confirms.

In the sharing service a message takes 12 us of processor by this, 49 by pika, 85 by py-amqp, 390 by aiormq, on
machines whose broker takes 80.  So frames that come once are pika's; the three frames of a message (AMQP 0-9-1, 4.2)
are read and written here, many in one read or write of the socket.
"""

import contextlib
import select
import socket
import struct
import time
from collections import deque
from types import TracebackType
from typing import Any, NamedTuple

import pika
import pika.exceptions
from pika import frame, spec

from virtual_waggle.broker_client import BrokerError, Refused

_CHANNEL = 1
_READ = 1 << 18  # bytes of one read
_MOST_TO_SEND = 4 << 20  # bytes: with more than these unsent nothing is read, for it would only make more of them
_FRAME_MAX = 131072  # bytes
_PROTOCOL = b"AMQP\x00\x00\x09\x01"
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_BASIC, _DELIVER, _ACK = 60, 60, 80  # class and methods
_END = b"\xce"
_NO_MESSAGE, _NO_HEADER = -2, -1  # instead of bytes that are missing: what comes next is a delivery, its header

# what reading senseless bytes raises, here and in pika
_UNREADABLE = (struct.error, LookupError, ValueError, ArithmeticError, RecursionError, pika.exceptions.AMQPError)

_frame_head = struct.Struct(">BHI")  # type, channel, size
_two_shorts = struct.Struct(">HH")
_long = struct.Struct(">Q")

_CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}


class Delivery(NamedTuple):
    """A message that came.  ``body`` is None where it is larger than asked for; then it was not kept."""

    tag: int
    routing_key: str
    user_id: str | None
    app_id: str | None
    body: bytes | None


class BrokerStream:
    """One connection, one channel.  Raises BrokerError when the connection is lost: make another then.

    What was not settled comes again at the next connection.
    """

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        queue: str | None,
        *,
        prefetch: int = 1,
        largest: int = 0,
        properties: pika.BasicProperties | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Connect, and begin to consume unless ``queue`` is None.

        ``prefetch``: messages that may be unsettled; ``largest``: bytes of a body that is kept; ``timeout``: seconds of
        each of the greetings; ``properties``: of all that is published, by default that it survives a restart.
        """
        if parameters.ssl_options is not None:
            raise ValueError("no TLS here: this is for the node's own broker")
        self._where = f"the broker at {parameters.host}:{parameters.port}"
        self._largest = largest
        self._received = bytearray()
        self._to_send: list[bytes] = []
        self._sent_now = time.monotonic()
        self._heard = self._sent_now
        self._heartbeat = 0.0
        self._frame_max = _FRAME_MAX
        # The message that is being read.
        self._tag, self._key, self._missing = 0, "", _NO_MESSAGE
        self._sender: tuple[str | None, str | None] = None, None
        self._parts: list[bytes] | None = []
        self._keys: dict[bytes, str] = {}
        self._senders: dict[bytes, tuple[str | None, str | None]] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        # What was published and is not confirmed, what came and is not acknowledged.
        self._published = 0
        self._confirmed = 0  # all up to here
        self._confirmed_above: set[int] = set()
        self._unsettled: deque[tuple[int, int]] = deque()  # delivery's tag, the last publish before it was settled
        header = frame.Header(_CHANNEL, 0, properties or pika.BasicProperties(delivery_mode=2)).marshal()
        self._header_begin, self._header_end = header[:11], header[19:]
        try:
            self._socket = socket.create_connection((parameters.host, parameters.port), timeout)
        except OSError as error:
            raise BrokerError(f"{self._where}: {error}") from None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open(parameters, queue, prefetch)
            self._early = self._read_frames()  # what came in one read with the last greeting
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "BrokerStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, BrokerError):
            if kind is None:
                self._to_send.append(frame.Method(0, spec.Connection.Close(200, "", 0, 0)).marshal())
                self._socket.settimeout(1)
                self._socket.sendall(b"".join(self._to_send))
        self._socket.close()

    @property
    def unconfirmed(self) -> int:
        """How many of the published messages the broker has not confirmed yet."""
        return self._published - self._confirmed - len(self._confirmed_above)

    @property
    def unsettled(self) -> bool:
        """Whether there is something to send still, or to be confirmed."""
        return bool(self._unsettled or self._to_send)

    def publish(self, exchange: str, routing_key: str, body: bytes) -> None:
        """Publish a message; it is sent by the next :meth:`step`."""
        head = self._heads.get((exchange, routing_key))
        if head is None:
            if len(self._heads) > 10_000:  # names may come from anyone
                self._heads.clear()
            method = frame.Method(_CHANNEL, spec.Basic.Publish(exchange=exchange, routing_key=routing_key)).marshal()
            head = self._heads[exchange, routing_key] = method + self._header_begin
        size = len(body)
        send = self._to_send
        send += (head, _long.pack(size), self._header_end)
        if size + 8 <= self._frame_max:
            send += (_frame_head.pack(_BODY, _CHANNEL, size), body, _END)
        else:
            most = self._frame_max - 8
            for begin in range(0, size, most):
                part = body[begin : begin + most]
                send += (_frame_head.pack(_BODY, _CHANNEL, len(part)), part, _END)
        self._published += 1

    def settle(self, delivery: Delivery) -> None:
        """Acknowledge a message as soon as all that was published until now is confirmed."""
        self._unsettled.append((delivery.tag, self._published))

    def step(self, timeout: float) -> list[Delivery]:
        """Send what there is to send, and return what has come; waits up to ``timeout`` seconds for it."""
        if self._early:
            early, self._early = self._early, []
            return early
        self._acknowledge()
        if self._to_send:
            data = b"".join(self._to_send)
            self._to_send = [data[self._send(data) :]]
            if not self._to_send[0]:
                self._to_send = []
        unsent = sum(map(len, self._to_send))
        now = time.monotonic()
        if self._heartbeat:
            if now - self._heard > 2 * self._heartbeat:
                raise BrokerError(f"{self._where} fell silent")
            if now - self._sent_now > self._heartbeat / 2 and not unsent:
                self._to_send.append(_frame_head.pack(_HEARTBEAT, 0, 0) + _END)
                unsent = 1
            timeout = min(timeout, self._heartbeat / 2)
        wanted = [self._socket] if unsent < _MOST_TO_SEND else []
        readable, _, _ = select.select(wanted, [self._socket] if unsent else [], [], timeout)
        if not readable:
            return []
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return []
        except OSError as error:
            raise BrokerError(f"{self._where}: {error}") from None
        if not data:
            raise BrokerError(f"{self._where} closed the connection")
        self._heard = time.monotonic()
        self._received += data
        return self._read_frames()

    def _send(self, data: bytes) -> int:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise BrokerError(f"{self._where}: {error}") from None
        if sent:
            self._sent_now = time.monotonic()
        return sent

    def _acknowledge(self) -> None:
        unsettled, confirmed, last = self._unsettled, self._confirmed, 0
        while unsettled and unsettled[0][1] <= confirmed:
            last = unsettled.popleft()[0]
        if last:
            self._to_send.append(frame.Method(_CHANNEL, spec.Basic.Ack(last, multiple=True)).marshal())

    def _read_frames(self) -> list[Delivery]:
        """Take all whole frames out of what was received.  Raises BrokerError also for what is no frame of AMQP."""
        try:
            return self._whole_frames()
        except _UNREADABLE as error:
            raise self._senseless(str(error)) from None

    def _senseless(self, what: str) -> BrokerError:
        return BrokerError(f"{self._where} does not speak AMQP as it should: {what[:200]}")

    def _whole_frames(self) -> list[Delivery]:
        data = self._received
        found: list[Delivery] = []
        begin, end = 0, len(data)
        while end - begin >= 8:
            kind, channel, size = _frame_head.unpack_from(data, begin)
            if size > self._frame_max:
                raise BrokerError(f"{self._where} sent a frame of {size} bytes")
            following = begin + size + 8
            if following > end:
                break
            at = begin + 7
            if data[following - 1] != 0xCE:
                raise BrokerError(f"{self._where} sent a frame without an end")
            if kind == _BODY:
                self._missing -= size
                if self._missing < 0:
                    raise self._senseless("a body that is longer than its header says, or has none")
                if self._parts is not None:
                    self._parts.append(bytes(data[at : following - 1]))
                if not self._missing:
                    self._append(found)
            elif kind == _HEADER:
                if self._missing != _NO_HEADER or size < 14:
                    raise self._senseless("a header without a delivery, or a part of one")
                (self._missing,) = _long.unpack_from(data, at + 4)
                self._sender = self._sender_of(bytes(data[at + 12 : following - 1]))
                self._parts = [] if self._missing <= self._largest else None
                if not self._missing:
                    self._append(found)
            elif kind == _METHOD:
                what = _two_shorts.unpack_from(data, at)
                if what == (_BASIC, _DELIVER):
                    if self._missing != _NO_MESSAGE:
                        raise self._senseless("a delivery within another")
                    self._missing = _NO_HEADER
                    after_consumer = at + 5 + data[at + 4]
                    (self._tag,) = _long.unpack_from(data, after_consumer)
                    self._key = self._key_of(bytes(data[after_consumer + 9 : following - 1]))
                elif what == (_BASIC, _ACK):
                    (tag,) = _long.unpack_from(data, at + 4)
                    self._confirm(tag, multiple=bool(data[at + 12] & 1))
                else:
                    self._other(channel, frame.decode_frame(bytes(data[begin:following]))[1].method)
            begin = following
        del data[:begin]
        return found

    def _append(self, found: list[Delivery]) -> None:
        parts = self._parts
        body = None if parts is None else parts[0] if len(parts) == 1 else b"".join(parts)
        self._missing = _NO_MESSAGE
        found.append(Delivery(self._tag, self._key, *self._sender, body))

    def _confirm(self, tag: int, *, multiple: bool) -> None:
        above = self._confirmed_above
        if tag > self._published:
            raise self._senseless("a confirm of what was not published")
        if multiple:
            self._confirmed = max(self._confirmed, tag)
            if above:
                above.difference_update([number for number in above if number <= self._confirmed])
        else:
            above.add(tag)
        while above and self._confirmed + 1 in above:
            self._confirmed += 1
            above.remove(self._confirmed)

    def _other(self, channel: int, method: Any) -> None:
        """What comes seldom, and mostly at the end."""
        if isinstance(method, spec.Channel.Close | spec.Connection.Close):
            raise BrokerError(f"{self._where} closed the connection: {method.reply_code} {method.reply_text}")
        if isinstance(method, spec.Basic.Cancel):
            raise BrokerError(f"{self._where} took the queue away")
        if isinstance(method, spec.Basic.Nack):
            raise BrokerError(f"{self._where} could not keep a message")

    def _key_of(self, rest: bytes) -> str:
        """The routing key out of a delivery's exchange and key."""
        key = self._keys.get(rest)
        if key is None:
            if len(self._keys) > 10_000:
                self._keys.clear()
            begin = 1 + rest[0]
            key = self._keys[rest] = rest[begin + 1 : begin + 1 + rest[begin]].decode(errors="replace")
        return key

    def _sender_of(self, properties: bytes) -> tuple[str | None, str | None]:
        """User and app id out of a message's properties: the same bytes for all of a plugin's messages."""
        sender = self._senders.get(properties)
        if sender is None:
            if len(self._senders) > 10_000:
                self._senders.clear()
            try:
                given = pika.BasicProperties()
                given.decode(properties)
                sender = given.user_id, given.app_id
            except Exception:  # pika raises whatever its reading of bytes raises
                sender = None, None
            self._senders[properties] = sender
        return sender

    def _open(self, parameters: pika.ConnectionParameters, queue: str | None, prefetch: int) -> None:
        """AMQP's greetings, up to the queue's consumer."""
        self._socket.sendall(_PROTOCOL)
        self._await(spec.Connection.Start)
        mechanism, answer = parameters.credentials.response_for(
            spec.Connection.Start(mechanisms=b"PLAIN", server_properties={})
        )
        self._ask(
            0,
            spec.Connection.StartOk(
                {"product": "virtual-waggle", "capabilities": _CAPABILITIES}, mechanism, answer, "en_US"
            ),
        )
        tune = self._await(spec.Connection.Tune)
        self._frame_max = min(tune.frame_max or _FRAME_MAX, _FRAME_MAX)
        self._heartbeat = float(parameters.heartbeat or 0)
        self._ask(0, spec.Connection.TuneOk(1, self._frame_max, int(self._heartbeat)))
        self._ask(0, spec.Connection.Open(parameters.virtual_host))
        self._await(spec.Connection.OpenOk)
        methods = [(spec.Channel.Open(), spec.Channel.OpenOk), (spec.Confirm.Select(), spec.Confirm.SelectOk)]
        if queue is not None:
            methods.append((spec.Basic.Qos(prefetch_count=prefetch), spec.Basic.QosOk))
            methods.append((spec.Basic.Consume(queue=queue, consumer_tag="c"), spec.Basic.ConsumeOk))
        for method, reply in methods:
            self._ask(_CHANNEL, method)
            self._await(reply)

    def _first_frame(self) -> bytes:
        """As much of the first frame as was received."""
        size = _frame_head.unpack_from(self._received)[2]
        if size > self._frame_max:
            raise BrokerError(f"{self._where} sent a frame of {size} bytes")
        return bytes(self._received[: size + 8])

    def _ask(self, channel: int, method: Any) -> None:
        try:
            self._socket.sendall(frame.Method(channel, method).marshal())
        except OSError as error:
            raise BrokerError(f"{self._where}: {error}") from None

    def _await(self, expected: type[Any]) -> Any:
        """The next method, which must be the expected one; what comes behind it stays for later."""
        while True:
            if len(self._received) >= 8:
                try:
                    consumed, got = frame.decode_frame(self._first_frame())
                except _UNREADABLE as error:
                    raise self._senseless(str(error) or type(error).__name__) from None
                if got is not None:
                    del self._received[:consumed]
                    if isinstance(got, frame.Heartbeat):
                        continue
                    method = getattr(got, "method", None)
                    if isinstance(method, spec.Connection.Close) and method.reply_code == 403:
                        raise Refused(f"{self._where} refuses this user", hint="is its password of this broker?")
                    if not isinstance(method, expected):
                        self._other(0, method)
                        raise BrokerError(f"{self._where}: expected {expected.NAME}, got {got}")
                    return method
            try:
                data = self._socket.recv(_READ)
            except OSError as error:
                raise BrokerError(f"{self._where}: {error}") from None
            if not data:
                raise BrokerError(f"{self._where} closed the connection")
            self._received += data

# SPDX-License-Identifier: Apache-2.0
"""What the stream makes of a broker's bytes, however they come and whatever they are; no broker is asked here.

The broker's end is a socket of the test, into which the greetings are written before the stream is made.
"""

import contextlib
import select
import socket
import struct
from collections.abc import Iterator

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from virtual_waggle.broker_client import BrokerError
from virtual_waggle.broker_stream import BrokerStream, Delivery

LARGEST = 300_000
FRAME_MAX = 131_072
GREETINGS = b"".join(
    frame.Method(channel, method).marshal()
    for channel, method in (
        (0, spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US")),
        (0, spec.Connection.Tune(channel_max=10, frame_max=FRAME_MAX, heartbeat=60)),
        (0, spec.Connection.OpenOk()),
        (1, spec.Channel.OpenOk()),
        (1, spec.Confirm.SelectOk()),
        (1, spec.Basic.QosOk()),
        (1, spec.Basic.ConsumeOk(consumer_tag="c")),
    )
)


def part(kind: int, content: bytes, *, size: int | None = None, end: bytes = b"\xce") -> bytes:
    """A frame of channel 1."""
    return struct.pack(">BHI", kind, 1, len(content) if size is None else size) + content + end


def method(sent: "spec.amqp_object.Method") -> bytes:
    return bytes(frame.Method(1, sent).marshal())


def deliver(tag: int = 1, key: str = "env.a") -> bytes:
    return method(spec.Basic.Deliver("c", tag, exchange="to-validator", routing_key=key))


def header(size: int, user: str = "plugin", app: str = "app-1") -> bytes:
    return bytes(frame.Header(1, size, pika.BasicProperties(user_id=user, app_id=app)).marshal())


def came(body: bytes, tag: int = 1, key: str = "env.a") -> bytes:
    """A message as a broker sends it."""
    most = FRAME_MAX - 8
    return (
        deliver(tag, key)
        + header(len(body))
        + b"".join(part(3, body[begin : begin + most]) for begin in range(0, len(body), most))
    )


def delivery(body: bytes | None, tag: int = 1, key: str = "env.a") -> Delivery:
    return Delivery(tag, key, "plugin", "app-1", body)


class Ours(socket.socket):
    """The stream's end: a pair's, which has none of TCP's options."""

    def setsockopt(self, *words: object) -> None: ...


class Ends:
    """A stream, and the broker's end of its connection."""

    def __init__(self, greetings: bytes = GREETINGS, timeout: float = 5.0) -> None:
        first, self.broker = socket.socketpair()
        for end in (first, self.broker):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours = Ours(fileno=first.detach())
        self.broker.sendall(greetings)
        self.broker.settimeout(1)
        with pytest.MonkeyPatch.context() as patch:
            ours.settimeout(timeout)
            patch.setattr(socket, "create_connection", lambda address, timeout: ours)
            try:
                self.stream = BrokerStream(
                    pika.ConnectionParameters("broker", heartbeat=60), "queue", largest=LARGEST, timeout=timeout
                )
            except BaseException:
                self.broker.close()
                raise
        self.said()

    def give(self, data: bytes) -> list[Delivery]:
        """Let the broker send this; what the stream makes of it."""
        self.broker.sendall(data)
        found = self.stream.step(0)
        while select.select([self.stream._socket], [], [], 0)[0]:
            found += self.stream.step(0)
        return found

    def said(self) -> bytes:
        """What the stream has sent since."""
        self.broker.setblocking(False)
        try:
            return self.broker.recv(1 << 20)
        except BlockingIOError:
            return b""
        finally:
            self.broker.settimeout(1)

    def close(self) -> None:
        self.broker.close()
        self.stream.__exit__(BrokerError, None, None)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_a_message_is_the_same_wherever_it_is_cut(ends: Ends) -> None:
    data = came(b'{"val":1}', tag=7)
    for at in range(1, len(data)):
        assert ends.give(data[:at]) == []
        assert ends.give(data[at:]) == [delivery(b'{"val":1}', tag=7)]


def test_messages_that_come_byte_by_byte_are_whole(ends: Ends) -> None:
    data = came(b"first", 1) + part(8, b"") + came(b"", 2, "b") + came(b"third", 3, "c.d")
    found = [one for at in range(len(data)) for one in ends.give(data[at : at + 1])]
    assert found == [delivery(b"first", 1), delivery(b"", 2, "b"), delivery(b"third", 3, "c.d")]


def test_many_messages_of_one_read_come_in_their_order(ends: Ends) -> None:
    data = b"".join(came(b"%d" % number, number, f"k{number}") for number in range(1, 500))
    assert ends.give(data) == [delivery(b"%d" % number, number, f"k{number}") for number in range(1, 500)]


def test_what_comes_with_the_last_greeting_is_not_lost() -> None:
    made = Ends(GREETINGS + came(b"early", 1) + came(b"cut", 2)[:-3])
    assert made.give(came(b"cut", 2)[-3:]) == [delivery(b"early", 1), delivery(b"cut", 2)]
    made.close()


def test_a_body_of_several_frames_is_one(ends: Ends) -> None:
    body = bytes(range(256)) * 1000
    assert ends.give(came(body)) == [delivery(body)]


def test_of_a_body_that_is_too_large_nothing_is_kept_and_the_next_message_is_whole(ends: Ends) -> None:
    assert ends.give(came(bytes(LARGEST))) == [delivery(bytes(LARGEST))]
    assert ends.give(came(bytes(LARGEST + 1), 2) + came(b"next", 3)) == [delivery(None, 2), delivery(b"next", 3)]
    assert ends.give(deliver(4) + header((1 << 64) - 1) + part(3, bytes(100_000))) == []
    assert ends.stream._parts is None
    assert not ends.stream._received


def test_who_sent_it_is_nobody_where_the_properties_make_no_sense(ends: Ends) -> None:
    for properties in (b"", b"\xff", b"\xff\xff" + b"\xff" * 30, b"\x00\x10\xff"):
        data = deliver() + part(2, struct.pack(">HHQ", 60, 0, 1) + properties.ljust(2, b"\0")) + part(3, b"x")
        (found,) = ends.give(data)
        assert not found.user_id
        assert not found.app_id


def test_a_message_is_acknowledged_when_all_that_came_of_it_is_confirmed(ends: Ends) -> None:
    first, second = ends.give(came(b"1", 1) + came(b"2", 2))
    ends.stream.publish("a", "k", b"x")
    ends.stream.publish("b", "k", b"x")
    ends.stream.settle(first)
    ends.stream.publish("a", "k", b"y")
    ends.stream.settle(second)
    ends.stream.step(0)
    ends.said()
    ends.give(method(spec.Basic.Ack(2)))  # the first one is missing yet
    ends.stream.step(0)
    assert (ends.said(), ends.stream.unconfirmed) == (b"", 2)
    ends.give(method(spec.Basic.Ack(1)))
    ends.stream.step(0)
    assert ends.said() == method(spec.Basic.Ack(1, multiple=True))
    ends.give(method(spec.Basic.Ack(3, multiple=True)))
    ends.stream.step(0)
    assert ends.said() == method(spec.Basic.Ack(2, multiple=True))
    assert not ends.stream.unsettled


SENSELESS = {
    "a frame that is too large": part(3, b"", size=FRAME_MAX + 1),
    "the largest size there is": part(1, b"", size=(1 << 32) - 1),
    "another end": part(8, b"", end=b"\x00"),
    "an end too late": part(8, b"x", size=0),
    "a body alone": part(3, b"x"),
    "an empty body alone": part(3, b""),
    "a body without a header": deliver() + part(3, b"x"),
    "a body that is too long": deliver() + header(1) + part(3, b"xx"),
    "a body that goes on": came(b"x") + part(3, b"x"),
    "a header alone": header(1),
    "two headers": deliver() + header(1) + header(1),
    "two deliveries": deliver() + deliver(),
    "a delivery within another": deliver() + header(2) + part(3, b"x") + deliver(),
    "a part of a header": deliver() + part(2, struct.pack(">HHI", 60, 0, 1)),
    "an empty header": deliver() + part(2, b""),
    "an empty method": part(1, b""),
    "a part of a method's number": part(1, b"\x00\x3c\x00"),
    "a delivery without anything": part(1, struct.pack(">HH", 60, 60)),
    "a delivery whose consumer is longer": part(1, struct.pack(">HHB", 60, 60, 255) + b"c"),
    "a delivery without a key": part(1, struct.pack(">HHBcQ?B", 60, 60, 1, b"c", 1, False, 3) + b"abc"),
    "a confirm without a number": part(1, struct.pack(">HH", 60, 80)),
    "a confirm of what was not published": method(spec.Basic.Ack(1)),
    "a method that there is not": part(1, struct.pack(">HH", 999, 999)),
    "a part of a close": part(1, struct.pack(">HHHB", 10, 50, 320, 200)),
    "the end": method(spec.Channel.Close(404, "no such queue", 0, 0)),
    "a lost queue": method(spec.Basic.Cancel("c")),
    "a message that could not be kept": method(spec.Basic.Nack(1)),
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("data", SENSELESS.values(), ids=SENSELESS)
def test_what_makes_no_sense_is_the_brokers_fault_and_told_as_such(data: bytes, ends: Ends) -> None:
    with pytest.raises(BrokerError, match="the broker at broker:5672"):
        ends.give(data)


@pytest.mark.parametrize("data", SENSELESS.values(), ids=SENSELESS)
def test_the_same_among_the_greetings(data: bytes) -> None:
    for number in range(3):
        begin = GREETINGS.split(b"\xce")[:number]
        with pytest.raises(BrokerError, match="the broker at broker:5672"):
            Ends(b"".join(one + b"\xce" for one in begin) + data, timeout=0.01)


def test_a_frame_of_the_largest_size_is_taken(ends: Ends) -> None:
    assert ends.give(deliver() + header(FRAME_MAX) + part(3, bytes(FRAME_MAX))) == [delivery(bytes(FRAME_MAX))]


def test_a_connection_that_ends_in_a_message_is_lost_and_no_message_comes_of_it() -> None:
    data = came(b'{"val":1}')
    for at in range(0, len(data), 7):
        ends = Ends()
        assert ends.give(data[:at]) == []
        ends.broker.close()
        with pytest.raises(BrokerError):
            ends.stream.step(1)
        ends.close()


def test_a_broker_that_greets_and_says_no_more_is_given_up() -> None:
    for at in (0, 5, 8, 60, len(GREETINGS) - 1):
        with pytest.raises(BrokerError):
            Ends(GREETINGS[:at], timeout=0.01)


@given(st.lists(st.sampled_from([*SENSELESS.values(), came(b"x"), part(8, b"")]) | st.binary(max_size=60), max_size=4))
def test_whatever_comes_it_is_deliveries_or_a_lost_connection(parts: list[bytes]) -> None:
    ends = Ends()
    with contextlib.suppress(BrokerError):
        assert all(isinstance(one, Delivery) for one in ends.give(b"".join(parts)))
        assert len(ends.stream._received) < FRAME_MAX + 8
    ends.close()


@given(kind=st.integers(0, 255), content=st.binary(max_size=80))
def test_whatever_a_frame_holds_it_is_read_or_told_of(kind: int, content: bytes) -> None:
    for before in (b"", deliver(), deliver() + header(5)):
        ends = Ends()
        with contextlib.suppress(BrokerError):
            ends.give(before + part(kind, content))
        ends.close()


def test_memory_for_names_is_bounded(ends: Ends) -> None:
    for begin in range(0, 12_000, 1000):
        ends.give(b"".join(came(b"", 1, f"key{begin + number}") for number in range(1000)))
    assert len(ends.stream._keys) <= 10_001

# SPDX-License-Identifier: Apache-2.0
"""What message.py promises: pywaggle's messages are read as they are meant, all else is refused with a reason."""

import json
import math
from typing import Any

import pytest
import wagglemsg
from hypothesis import given
from hypothesis import strategies as some

from virtual_waggle import message
from virtual_waggle.message import Measurement, Unfit

NODE = "0000000000000001"
GOOD = {"name": "env.temperature", "ts": 1_700_000_000_123_456_789, "meta": {"sensor": "bme680"}, "val": 1.5}
TEXTS = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=64)


def body(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


@given(
    value=some.one_of(
        some.integers(-(1 << 63), (1 << 63) - 1), some.floats(allow_nan=False), TEXTS, some.binary(), some.booleans()
    ),
    meta=some.dictionaries(TEXTS.filter(bool), TEXTS, max_size=5),
)
def test_what_wagglemsg_writes_is_read_and_what_is_written_wagglemsg_reads(value: Any, meta: dict[str, str]) -> None:
    theirs = wagglemsg.Message("a.b_1", value, 1, meta)
    text = wagglemsg.dump(theirs)
    ours = message.decode(text.encode() if isinstance(text, str) else text)
    assert ours == Measurement("a.b_1", 1, value, meta)
    assert type(ours.value) is type(value)
    assert wagglemsg.load(message.encode(ours)) == theirs


def test_numbers_that_are_none_stay_so() -> None:
    assert math.isnan(message.decode(body(val=math.nan)).value)  # type: ignore[arg-type]
    assert message.decode(body(val=-math.inf)).value == -math.inf


@pytest.mark.parametrize("length", [1, 128])
def test_names_up_to_the_limit_are_taken(length: int) -> None:
    assert len(message.decode(body(name="a" * length)).name) == length


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b" " * (message.LARGEST + 1),
        body(name="A"),
        body(name=""),
        body(name="a..b"),
        body(name="a\n"),
        body(name="a" * 129),
        body(name=None),
        body(ts=-1),
        body(ts=1 << 63),
        body(ts=True),
        body(ts=1.5),
        body(ts="1"),
        body(val=None),
        body(val=[1]),
        body(val=1 << 63),
        body(val="a\0"),
        body(val="ä\0"),
        body(val="\ud800"),
        body(val="%", enc="b64"),
        body(val=1, enc="b64"),
        body(val="YQ==", enc="hex"),
        body(meta=[]),
        body(meta={"a": 1}),
        body(meta={"": "a"}),
        body(meta={"a" * 65: "a"}),
        body(meta={"a": "a" * 257}),
        body(meta={str(number): "" for number in range(65)}),
    ],
    ids=lambda wrong: repr(wrong[:40]),
)
def test_all_else_is_refused(wrong: bytes) -> None:
    with pytest.raises(Unfit):
        message.decode(wrong)


@given(some.binary(max_size=200))
def test_garbage_is_refused_and_breaks_nothing(garbage: bytes) -> None:
    with pytest.raises(Unfit):
        message.decode(garbage)


def test_a_message_without_meta_has_an_empty_one() -> None:
    assert message.decode(b'{"name":"a","ts":1,"val":2}').meta == {}


def test_the_beehive_takes_a_nodes_own_measurements() -> None:
    message.check_for_beehive(Measurement("a" * 64, 1, 2, {"node": NODE}), f"node-{NODE}")


@pytest.mark.parametrize(
    ("name", "meta", "user"),
    [
        ("a", {"node": NODE}, "node-0000000000000002"),
        ("a", {"node": NODE}, None),
        ("a", {}, f"node-{NODE}"),
        ("a", {"node": "x"}, "node-x"),
        ("a" * 65, {"node": NODE}, f"node-{NODE}"),
    ],
)
def test_and_no_others(name: str, meta: dict[str, str], user: str | None) -> None:
    with pytest.raises(Unfit):
        message.check_for_beehive(Measurement(name, 1, 2, meta), user)

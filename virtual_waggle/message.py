# SPDX-License-Identifier: Apache-2.0
"""A measurement on its way: what plugins, the node's services and the Beehive send each other.

The body of a message is the JSON object that pywaggle writes (wagglemsg 0.4): ``name``, ``ts`` (nanoseconds since
1970), ``meta`` (texts by text), ``val`` (number, truth value or text) and, where ``val`` is bytes, ``"enc": "b64"``.
A message may come from anyone who got at a broker, so nothing about it is taken for granted.
"""

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Any, NamedTuple

LARGEST = 1 << 20  # bytes of a body, wherever it is on its way; pictures and sound go as uploads
MOST_META = 64  # keys
UPLOAD = "upload"  # the name that pywaggle keeps for files
SCOPES = ("all", "node", "beehive")

NODE_NAME = 128  # characters of a name, as pywaggle has it
BEEHIVE_NAME = 64  # characters, as the Beehive's loader has it
META_KEY = 64  # characters
META_VALUE = 256  # characters

Value = bool | int | float | str | bytes

_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_NODE_ID = re.compile(r"[0-9a-f]{16}")
_INT64 = 1 << 63
# A text takes no more bytes than it took: four for a letter would be twelve as \uD83D\uDE00.
_as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Unfit(ValueError):
    """A body that is no measurement, or one beyond the limits; the text says why."""


class Measurement(NamedTuple):
    """One measured value.  ``timestamp`` is in nanoseconds since 1970-01-01T00:00:00Z.

    Its series is its name and its meta; series and timestamp are its identity: one that arrives again replaces itself.
    """

    name: str
    timestamp: int
    value: Value
    meta: dict[str, str]


def decode(body: bytes) -> Measurement:
    """The measurement of a message's body.  Raises Unfit."""
    if len(body) > LARGEST:
        raise Unfit(f"body of {len(body)} bytes, at most {LARGEST}")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"no JSON: {error}") from None
    if type(data) is not dict:
        raise Unfit("no JSON object")
    name, timestamp, value, meta = data.get("name"), data.get("ts"), data.get("val"), data.get("meta")
    if type(name) is not str or not is_name(name):
        raise Unfit(f"name: expected parts of a-z, 0-9 and _ joined by dots, at most {NODE_NAME} characters")
    if type(timestamp) is not int or not 0 <= timestamp < _INT64:
        raise Unfit("ts: expected nanoseconds since 1970")
    return Measurement(name, timestamp, _value(value, data.get("enc")), {} if meta is None else _meta(meta))


def encode(measurement: Measurement) -> bytes:
    """The body of the message for a measurement.  Raises Unfit for half of a surrogate pair."""
    data: dict[str, Any] = {"name": measurement.name, "ts": measurement.timestamp, "meta": measurement.meta}
    if isinstance(measurement.value, bytes):
        data["enc"], data["val"] = "b64", b64encode(measurement.value).decode()
    else:
        data["val"] = measurement.value
    try:
        return _as_json(data).encode()
    except UnicodeEncodeError:
        raise Unfit("val or meta: holds half of a surrogate pair") from None


def check_for_beehive(measurement: Measurement, user: str | None) -> None:
    """Raise Unfit where the Beehive takes no such measurement from this user of its broker (``node-<node id>``)."""
    node = measurement.meta.get("node", "")
    if user != f"node-{node}" or not is_node_id(node):
        raise Unfit(f"meta.node is {node[:32]!r}, sent by {user!r}")
    if len(measurement.name) > BEEHIVE_NAME:
        raise Unfit(f"name of {len(measurement.name)} characters, at most {BEEHIVE_NAME}")


def is_name(text: str) -> bool:
    """Whether this can be a measurement's name."""
    return len(text) <= NODE_NAME and _NAME.fullmatch(text) is not None


def is_node_id(text: str) -> bool:
    """Whether this is a node's id: 16 hexadecimal digits, lower case."""
    return _NODE_ID.fullmatch(text) is not None


def _value(value: Any, encoding: Any) -> Value:
    kind = type(value)
    if encoding == "b64":
        if kind is not str:
            raise Unfit("val: expected text in base64")
        try:
            return b64decode(value, validate=True)
        except (Base64Error, ValueError) as error:
            raise Unfit(f"val: {error}") from None
    if encoding is not None:
        raise Unfit("enc: expected b64")
    if kind is str:
        _check_text("val", value)
    elif kind is int:
        if not -_INT64 <= value < _INT64:
            raise Unfit("val: expected a whole number of 64 bits")
    elif kind is not float and kind is not bool:
        raise Unfit("val: expected a number, text or bytes")
    return value  # type: ignore[no-any-return]


def _meta(meta: Any) -> dict[str, str]:
    if type(meta) is not dict or len(meta) > MOST_META:
        raise Unfit(f"meta: expected at most {MOST_META} texts by text")
    for key, value in meta.items():
        if type(value) is not str or len(value) > META_VALUE or len(key) > META_KEY or not key:
            raise Unfit(f"meta: expected texts of at most {META_VALUE} characters by names of at most {META_KEY}")
        _check_text("meta", key)
        _check_text("meta", value)
    return meta


def _check_text(what: str, text: str) -> None:
    """JSON can spell half of a surrogate pair, which no UTF-8 can; and stores know no NUL."""
    if text.isascii():
        if "\0" in text:
            raise Unfit(f"{what}: holds a NUL")
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unfit(f"{what}: holds half of a surrogate pair") from None
    if "\0" in text:
        raise Unfit(f"{what}: holds a NUL")

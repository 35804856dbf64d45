# SPDX-License-Identifier: Apache-2.0
"""What becomes of one message in the sharing service; the service at a broker is in the integration tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from virtual_waggle import message
from virtual_waggle.broker_stream import Delivery
from virtual_waggle.message import Unfit
from virtual_waggle.node import apps, sharing
from virtual_waggle.node.sharing import Apps, Node

NODE = Node("00000000000000a1", "V0A1", "machine")
ADDED = {"node": NODE.node, "vsn": NODE.vsn, "host": NODE.host, "job": "j", "task": "t", "plugin": "p:1"}


@pytest.fixture
def known(tmp_path: Path) -> Apps:
    apps.add(tmp_path, "plugin-1", apps.App("p:1", "j", "t"))
    (tmp_path / "broken.json").write_text("{")
    return Apps(tmp_path, NODE)


def delivery(scope: str = "all", **changes: Any) -> Delivery:
    text = {"name": "env.test", "ts": 1, "meta": {}, "val": 1, **changes}
    return Delivery(1, scope, "plugin", "plugin-1", json.dumps(text).encode())


@pytest.mark.parametrize(
    ("scope", "exchange"), [("all", "shared.all"), ("node", "data.topic"), ("beehive", "to-beehive")]
)
def test_a_scope_is_an_exchange_and_the_name_the_key(known: Apps, scope: str, exchange: str) -> None:
    found = sharing.share(delivery(scope), known)
    assert found[:2] == (exchange, "env.test")


def test_what_the_node_adds_counts_more_than_what_the_plugin_says(known: Apps) -> None:
    _, _, body = sharing.share(delivery(meta={"node": "f" * 16, "plugin": "other", "sensor": "x"}), known)
    assert message.decode(body).meta == {"sensor": "x", **ADDED}


@pytest.mark.parametrize("timestamp", [0, 946_706_400_000_000_000, 1_700_000_000_123_456_789, (1 << 63) - 1])
def test_a_clock_that_jumped_changes_nothing_about_a_measurement(known: Apps, timestamp: int) -> None:
    _, _, body = sharing.share(delivery(ts=timestamp), known)
    assert message.decode(body).timestamp == timestamp


@pytest.mark.parametrize("value", ["YWJj", "", "/+8="])
def test_bytes_stay_bytes(known: Apps, value: str) -> None:
    _, _, body = sharing.share(delivery(val=value, enc="b64"), known)
    assert json.loads(body)["enc"] == "b64"
    assert json.loads(body)["val"] == value


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (delivery("All"), "scope 'All'"),
        (delivery()._replace(user_id=None), "no user_id"),
        (delivery()._replace(app_id=None), "no app_id"),
        (delivery()._replace(app_id="broken"), "unknown app"),
        (delivery()._replace(app_id="../plugin-1"), "unknown app"),
        (delivery()._replace(app_id="\0"), "unknown app"),
        (delivery()._replace(body=None), "body of more than"),
        (delivery()._replace(body=b"\x00\xff"), "no JSON"),
        (delivery(meta={f"k{number}": "" for number in range(59)}), "meta: more than"),
        (delivery("beehive", name="n" * 65), "name of 65 characters"),
    ],
)
def test_what_is_dropped_has_a_reason(known: Apps, changed: Delivery, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        sharing.share(changed, known)


def test_names_too_long_for_the_beehive_stay_on_the_node(known: Apps) -> None:
    assert sharing.share(delivery(name="n" * 64), known)[0] == "shared.all"
    assert sharing.share(delivery(name="n" * 65), known)[0] == "data.topic"


def of_size(text: str, size: int, *, escaped: bool = False) -> bytes:
    """A body of so many bytes, whose value is this text over and over."""
    whole = {"name": "env.test", "ts": 1, "meta": {}, "val": ""}
    empty = json.dumps(whole, separators=(",", ":"))
    piece = json.dumps(text, ensure_ascii=escaped)[1:-1].encode()
    many, rest = divmod(size - len(empty), len(piece))
    return empty[:-2].encode() + piece * many + b"x" * rest + empty[-2:].encode()


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("text", ["x", "é", "世", "😀", "\x01", '"', "\x7f", "\u2028"])
def test_what_is_passed_on_is_never_over_the_limit_of_those_that_take_it(known: Apps, text: str, escaped: bool) -> None:
    room = len(json.dumps(ADDED))
    _, _, body = sharing.share(delivery()._replace(body=of_size(text, message.LARGEST - room, escaped=escaped)), known)
    assert len(body) <= message.LARGEST
    assert message.decode(body).meta == ADDED


@pytest.mark.parametrize("text", ["x", "世"])
def test_what_the_nodes_words_put_over_the_limit_is_dropped_with_that_reason(known: Apps, text: str) -> None:
    whole = of_size(text, message.LARGEST)
    message.decode(whole)  # is fit as it came
    with pytest.raises(Unfit, match="with what the node adds"):
        sharing.share(delivery()._replace(body=whole), known)


def test_another_encoding_of_json_does_not_get_round_the_limit(known: Apps) -> None:
    text = json.dumps({"name": "env.test", "ts": 1, "meta": {}, "val": "世" * 500_000}, ensure_ascii=False)
    with pytest.raises(Unfit, match="with what the node adds"):
        sharing.share(delivery()._replace(body=text.encode("utf-16")), known)


def test_drops_are_told_of_at_a_bounded_rate(caplog: pytest.LogCaptureFixture) -> None:
    drops = sharing.Drops()
    for number in range(10_000):
        drops.add(delivery(), f"reason {number}")
    assert len(caplog.records) == 1
    drops.tell(now=True)
    assert len(caplog.records) < 30
    assert drops.total == 10_000
    assert "other reasons" in caplog.text

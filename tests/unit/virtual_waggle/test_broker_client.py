# SPDX-License-Identifier: Apache-2.0
"""What broker_client promises before there is a broker: addresses and secrets are checked, waiting ends."""

import threading
from pathlib import Path

import pika
import pika.exceptions
import pytest

from groundwork.errors import InputError
from virtual_waggle import broker_client


@pytest.mark.parametrize(
    ("text", "address"),
    [("rabbitmq:5672", ("rabbitmq", 5672)), ("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:5671", ("::1", 5671))],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert broker_client.parse_address(text, "WAGGLE_BROKER") == address


@pytest.mark.parametrize("text", ["", "rabbitmq", "rabbitmq:", ":5672", "rabbitmq:0", "rabbitmq:65536", "rabbitmq:x"])
def test_what_is_no_address_is_told_with_where_it_came_from(text: str) -> None:
    with pytest.raises(InputError, match="WAGGLE_BROKER: expected host:port"):
        broker_client.parse_address(text, "WAGGLE_BROKER")


def test_several_brokers_stand_with_commas_between() -> None:
    found = broker_client.parse_addresses("localhost:5671, hive2:5671", "WAGGLE_BROKER")
    assert found == [("localhost", 5671), ("hive2", 5671)]
    with pytest.raises(InputError, match="WAGGLE_BROKER: expected host:port, found ''"):
        broker_client.parse_addresses("hive1:5671,", "WAGGLE_BROKER")


def test_the_next_broker_is_tried_where_one_is_away_or_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    behaviour: dict[str, Exception] = {
        "away": ConnectionRefusedError(),
        "strict": pika.exceptions.ProbableAuthenticationError(),
    }

    def connection(parameters: pika.ConnectionParameters) -> str:
        tried.append(parameters.host)
        if parameters.host in behaviour:
            raise behaviour[parameters.host]
        return f"connected to {parameters.host}"

    def connect(*hosts: str) -> object:
        tried.clear()
        places = [broker_client.by_password((host, 1), "user", "secret") for host in hosts]
        return broker_client.connect(*places, deadline=0)

    monkeypatch.setattr(pika, "BlockingConnection", connection)
    assert connect("away", "strict", "good", "other") == "connected to good"
    assert tried == ["away", "strict", "good"]
    with pytest.raises(broker_client.Refused, match="strict:1 refuses this user"):
        connect("strict", "strict")
    with pytest.raises(broker_client.BrokerError, match="away:1 or strict:1 did not answer"):
        connect("away", "strict")


def test_a_secret_is_the_files_text_and_a_missing_or_empty_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(InputError, match=f"{path}: No such file"):
        broker_client.read_secret(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        broker_client.read_secret(path)
    path.write_text("abc\n")
    assert broker_client.read_secret(path) == "abc"


def test_waiting_ends_at_the_deadline_and_when_told_to() -> None:
    tries = 0
    with pytest.raises(broker_client.BrokerError, match=r"within 0\.3 s"):
        for _ in broker_client.attempts("the broker", 0.3):
            tries += 1
    assert tries > 1
    stop = threading.Event()
    stop.set()
    with pytest.raises(broker_client.BrokerError, match="told to end"):
        for _ in broker_client.attempts("the broker", 3600, stop):
            pass


def test_a_password_is_not_shown_with_the_management_api() -> None:
    assert "secret" not in repr(broker_client.Management("http://127.0.0.1:1", "secret"))

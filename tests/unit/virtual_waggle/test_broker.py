# SPDX-License-Identifier: Apache-2.0
"""What broker.py promises of a broker's files: the same text of the same, no password in them, no right beside those
that are needed."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from virtual_waggle import broker
from virtual_waggle.broker import Place, QueueType, ToBeehive

NODE = "00000000000000a1"
PASSWORDS = {name: f"secret-of-{name}" for name in broker.NODE_USERS}
PLACE = Place("/run/secrets", "127.0.0.1", "127.0.0.1")


def lines(configuration: str) -> dict[str, str]:
    told = (line.partition(" = ") for line in configuration.splitlines() if not line.startswith("#"))
    return {key: value for key, _, value in told}


def of_user(definitions: dict[str, Any], user: str) -> dict[str, str]:
    (found,) = (entry for entry in definitions["permissions"] if entry["user"] == user)
    return {key: found[key] for key in ("configure", "write", "read")}


def test_a_passwords_hash_is_rabbitmqs() -> None:
    raw = base64.b64decode(broker.password_hash("plugin", "secret"))
    assert raw[4:] == hashlib.sha256(raw[:4] + b"secret").digest()
    assert broker.password_hash("plugin", "secret") != broker.password_hash("admin", "secret")


def test_the_same_is_told_in_the_same_words_and_without_passwords() -> None:
    text = broker.node_definitions(PASSWORDS, PLACE, ToBeehive(NODE, ("beehive.example",)))
    assert text == broker.node_definitions(PASSWORDS, PLACE, ToBeehive(NODE, ("beehive.example",)))
    assert "secret-of" not in text
    assert "secret-of" not in broker.beehive_definitions("secret-of-admin", [NODE])


def test_every_user_of_the_node_is_one_whose_rights_are_told() -> None:
    definitions = json.loads(broker.node_definitions(PASSWORDS, PLACE))
    assert {user["name"] for user in definitions["users"]} == {entry["user"] for entry in definitions["permissions"]}
    assert [user["name"] for user in definitions["users"] if user["tags"]] == ["admin"]
    assert not [user for user in definitions["users"] if not user["password_hash"]]


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("to-validator", "write"),
        ("amq.gen-x", "configure"),
        ("amq.gen-x", "write"),
        ("amq.gen-x", "read"),
        ("data.topic", "read"),
    ],
)
def test_a_plugin_may_publish_and_subscribe_and_no_more(name: str, right: str) -> None:
    rights = of_user(json.loads(broker.node_definitions(PASSWORDS, PLACE)), "plugin")
    assert re.search(rights[right], name)
    assert not re.search(rights[right], name.replace(".", "-") + "-2" if name != "amq.gen-x" else "amq-gen-x")
    others = {"to-beehive", "shared.all", "amq.topic", "amq.default", "to-validator", "data.topic"} - {name}
    allowed = {other for other in others if re.search(rights[right], other)}
    assert allowed <= {"data.topic"} if right == "read" else allowed <= {"to-validator"}


def test_without_a_beehive_there_is_no_shovel() -> None:
    assert json.loads(broker.node_definitions(PASSWORDS, PLACE))["parameters"] == []


@pytest.mark.parametrize(
    ("host", "uri"),
    [("beehive.example", "amqps://beehive.example:5671?"), ("2001:db8::1", "amqps://[2001:db8::1]:5671?")],
)
def test_the_shovel_shows_the_nodes_certificate_and_checks_the_beehives(host: str, uri: str) -> None:
    value = broker.shovel(ToBeehive(NODE, (host,)), PLACE)["value"]
    assert value["dest-uri"].startswith(uri)
    for part in (
        "verify=verify_peer",
        "auth_mechanism=external",
        "certfile=/run/secrets/node-cert.pem",
        f"server_name_indication={host}",
    ):
        assert part in value["dest-uri"]
    assert value["dest-publish-properties"]["user_id"] == f"node-{NODE}"
    assert value["ack-mode"] == "on-confirm"


def test_the_shovel_has_the_address_of_each_broker_and_checks_each_ones_name() -> None:
    addresses = broker.shovel(ToBeehive(NODE, ("hive1", "hive2", "hive3")), PLACE)["value"]["dest-uri"]
    assert [address.partition("?")[0] for address in addresses] == [f"amqps://hive{n}:5671" for n in (1, 2, 3)]
    assert all(f"server_name_indication=hive{n}" in address for n, address in enumerate(addresses, 1))


def test_the_beehives_broker_asks_everyone_for_a_certificate() -> None:
    told = lines(broker.beehive_configuration(PLACE))
    assert told["listeners.tcp"] == "none"
    assert told["ssl_options.verify"] == "verify_peer"
    assert told["ssl_options.fail_if_no_peer_cert"] == "true"
    assert [value for key, value in told.items() if key.startswith("auth_mechanisms")] == ["EXTERNAL"]


def test_a_node_may_write_to_one_exchange_of_the_beehive() -> None:
    rights = of_user(json.loads(broker.beehive_definitions("x", [NODE])), f"node-{NODE}")
    assert rights == {"configure": "^$", "write": "^waggle\\.msg$", "read": "^$"}
    (user,) = (user for user in json.loads(broker.beehive_definitions("x", [NODE]))["users"] if NODE in user["name"])
    assert user["password_hash"] == ""


def test_a_cluster_knows_its_brokers_and_keeps_copies_of_the_queue() -> None:
    told = lines(broker.beehive_configuration(PLACE, cluster=["beehive@a", "beehive@b", "beehive@c"], patience=120))
    assert told["cluster_formation.classic_config.nodes.3"] == "beehive@c"
    assert told["cluster_formation.discovery_retry_limit"] == "120"
    assert told["cluster_partition_handling"] == "pause_minority"
    definitions = json.loads(broker.beehive_definitions("x", queue_type=QueueType.QUORUM))
    assert definitions["queues"][0]["arguments"] == {"x-queue-type": "quorum"}


@pytest.mark.parametrize("half", ["node", "beehive"])
def test_the_stacks_start_erlang_as_it_is_tested(half: str) -> None:
    path = Path(broker.__file__).parent / f"stacks/{half}/compose.yaml"
    assert broker.ERLANG_ARGUMENTS in path.read_text()


def test_a_place_is_where_the_broker_listens() -> None:
    place = Place("/somewhere", "127.0.0.1", "127.0.0.2", 10001, 10002)
    told = lines(broker.node_configuration(place))
    assert told["listeners.tcp.1"] == "127.0.0.1:10001"
    assert (told["management.tcp.ip"], told["management.tcp.port"]) == ("127.0.0.2", "10002")
    assert told["load_definitions"] == "/somewhere/definitions.json"

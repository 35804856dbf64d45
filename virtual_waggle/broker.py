# SPDX-License-Identifier: Apache-2.0
"""What a RabbitMQ broker of the node or of the Beehive is told: rabbitmq.conf, enabled_plugins and definitions.json.

Pure: the files' texts are made of what is given, the same of the same.  Written for RabbitMQ 3.10 (Debian 12) to 3.12
(Ubuntu 24.04).

    node        to-validator (fanout) -> queue to-validator -> the sharing service
                    scope all       -> shared.all (topic) -> data.topic and to-beehive
                    scope node      -> data.topic (topic, key: the measurement's name) -> queues of subscribers
                    scope beehive   -> to-beehive (fanout) -> queue to-beehive -> shovel, or the recorder
    Beehive     waggle.msg (topic, key: the measurement's name) -> queue to-loader
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundwork.compat import StrEnum

VHOST = "/"
TO_VALIDATOR = "to-validator"  # exchange and queue: what plugins publish
DATA_TOPIC = "data.topic"  # exchange: what plugins of the node may read
TO_BEEHIVE = "to-beehive"  # exchange and queue: what is to leave the node
SHARED_ALL = "shared.all"  # exchange: to both; one publish where there would be two
WAGGLE_MSG = "waggle.msg"  # exchange of the Beehive: what comes from nodes
TO_LOADER = "to-loader"  # its queue
SHOVEL = "to-beehive"

# Users of the node's broker, each with the file of its password in the folder of secrets.
NODE_USERS = {
    "plugin": "plugin-password",
    "sharing": "sharing-password",
    "recorder": "recorder-password",
    "metrics": "metrics-password",
    "admin": "admin-password",
}
ADMIN = "admin"
LOADER, API = "loader", "api"  # users of the Beehive's broker, by certificate

# For RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: Erlang's schedulers do not spin while they wait; others need the processor.
# Certificates are read at each connection, so that new ones count at once.
ERLANG_ARGUMENTS = "+sbwt none +sbwtdcpu none +sbwtdio none -ssl bypass_pem_cache true"

_PLUGINS_OF_NODE = ("rabbitmq_management", "rabbitmq_prometheus", "rabbitmq_shovel", "rabbitmq_shovel_management")
_PLUGINS_OF_BEEHIVE = ("rabbitmq_auth_mechanism_ssl", "rabbitmq_management", "rabbitmq_prometheus")

# The sharing service drops what is over message.LARGEST, or would be when it is passed on, and tells why.  A broker
# closes the channel, with all that is under way in it, and would do so each time the shovel tries; so both limits lie
# above: the node's far, the Beehive's above what the sharing service lets through.
_LARGEST_AT_NODE = 16 << 20  # bytes
_LARGEST_AT_BEEHIVE = 2 << 20  # bytes
_SUBSCRIBER = {
    "max-length-bytes": 32 << 20,
    "overflow": "drop-head",
    "expires": 3_600_000,
}  # bytes; ms without a reader
_USER_LIMITS = {"max-connections": 20, "max-channels": 100}  # of one node at the Beehive


def name_in_cluster(machine: str) -> str:
    """The Erlang name of the broker of a cluster's machine.  Its data belong to this name."""
    return f"beehive@{machine}"


class QueueType(StrEnum):
    """What a queue of the Beehive is: on one broker, or with copies on several (a cluster)."""

    CLASSIC = "classic"
    QUORUM = "quorum"


@dataclass(frozen=True)
class Place:
    """Where a broker listens, and where it sees its files.

    ``secrets`` is the folder of its definitions and certificates.  The management API is plain HTTP: its address is
    one that only this machine or this stack reaches.  ``free_disk`` (bytes) is what it leaves free: below, publishers
    wait.  ``memory`` (bytes): above, they wait too.
    """

    secrets: str
    address: str
    management_address: str
    port: int = 5672
    management_port: int = 15672
    prometheus_port: int = 15692
    free_disk: int = 512 << 20
    memory: int = 512 << 20


@dataclass(frozen=True)
class ToBeehive:
    """Where a registered node's shovel goes.  ``prefetch`` messages may be under way without a confirm.

    ``hosts`` are the Beehive's brokers: where one is not there, the next is tried.
    """

    node_id: str
    hosts: tuple[str, ...]
    port: int = 5671
    prefetch: int = 2000


def enabled_plugins(*, beehive: bool) -> str:
    """The file enabled_plugins."""
    return f"[{','.join(_PLUGINS_OF_BEEHIVE if beehive else _PLUGINS_OF_NODE)}].\n"


def node_configuration(place: Place) -> str:
    """The rabbitmq.conf of a node: AMQP without TLS, for the node's own network."""
    return _configuration(
        place,
        {
            "listeners.tcp.1": f"{place.address}:{place.port}",
            "auth_mechanisms.1": "PLAIN",
            "max_message_size": _LARGEST_AT_NODE,
        },
    )


def beehive_configuration(place: Place, *, cluster: Sequence[str] = (), patience: int = 5) -> str:
    """The rabbitmq.conf of a Beehive: AMQP over TLS alone, users by the common name of their certificate.

    ``cluster``: the Erlang names (``beehive@host``) of all brokers of a cluster.  A broker that starts for the first
    time looks for the others for ``patience`` seconds; then it begins a cluster of its own.
    """
    given: dict[str, Any] = {
        "listeners.tcp": "none",
        "listeners.ssl.1": f"{place.address}:{place.port}",
        "ssl_options.cacertfile": f"{place.secrets}/ca-cert.pem",
        "ssl_options.certfile": f"{place.secrets}/server-cert.pem",
        "ssl_options.keyfile": f"{place.secrets}/server-key.pem",
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
        "ssl_options.depth": 1,
        "ssl_options.versions.1": "tlsv1.3",
        "ssl_options.versions.2": "tlsv1.2",
        "ssl_cert_login_from": "common_name",
        "auth_mechanisms.1": "EXTERNAL",
        "max_message_size": _LARGEST_AT_BEEHIVE,
    }
    if cluster:
        given["cluster_formation.peer_discovery_backend"] = "classic_config"
        given["cluster_formation.discovery_retry_limit"] = patience
        given["cluster_formation.discovery_retry_interval"] = 1000  # ms
        # Those that see less than half of the others wait for them: no two halves go on apart.
        given["cluster_partition_handling"] = "pause_minority"
        for number, name in enumerate(cluster, 1):
            given[f"cluster_formation.classic_config.nodes.{number}"] = name
    return _configuration(place, given)


def node_definitions(passwords: Mapping[str, str], place: Place, beehive: ToBeehive | None = None) -> str:
    """The definitions.json of a node.  ``passwords``: of each of NODE_USERS.

    With ``beehive`` there is a shovel, which shows the certificate that registration gave.
    """
    write = f"^{TO_VALIDATOR}$"
    permissions = [
        # A subscriber of pywaggle declares a queue without a name, binds it to data.topic and reads it.
        _permission(
            "plugin",
            "^amq\\.gen-",
            f"^({TO_VALIDATOR}|amq\\.gen-.*)$",
            f"^({_literal(DATA_TOPIC)}|amq\\.gen-.*)$",
        ),
        _permission(
            "sharing", "^$", f"^({_literal(SHARED_ALL)}|{_literal(DATA_TOPIC)}|{TO_BEEHIVE})$", f"^{TO_VALIDATOR}$"
        ),
        _permission("recorder", "^$", "^$", f"^{TO_BEEHIVE}$"),
        _permission("metrics", "^$", write, "^$"),
        _permission(ADMIN, ".*", ".*", ".*"),
    ]
    definitions = {
        "vhosts": [{"name": VHOST}],
        "users": [user(name, passwords[name], admin=name == ADMIN) for name in NODE_USERS],
        "permissions": permissions,
        "exchanges": [
            _exchange(TO_VALIDATOR, "fanout"),
            _exchange(DATA_TOPIC, "topic"),
            _exchange(TO_BEEHIVE, "fanout"),
            _exchange(SHARED_ALL, "topic"),
        ],
        "queues": [_queue(TO_VALIDATOR), _queue(TO_BEEHIVE)],
        "bindings": [
            _binding(TO_VALIDATOR, TO_VALIDATOR),
            _binding(TO_BEEHIVE, TO_BEEHIVE),
            _binding(SHARED_ALL, DATA_TOPIC, kind="exchange", key="#"),
            _binding(SHARED_ALL, TO_BEEHIVE, kind="exchange", key="#"),
        ],
        "policies": _policies(),
        "parameters": [shovel(beehive, place)] if beehive else [],
    }
    return _text(definitions)


def beehive_definitions(
    admin_password: str, nodes: Iterable[str] = (), *, queue_type: QueueType = QueueType.CLASSIC
) -> str:
    """The definitions.json of a Beehive.  ``nodes``: ids of those registered."""
    logins = [node_login(node_id) for node_id in sorted(set(nodes))]
    definitions = {
        "vhosts": [{"name": VHOST}],
        "users": [
            user(ADMIN, admin_password, admin=True),
            user(LOADER),
            user(API),
            *(login.user for login in logins),
        ],
        "permissions": [
            _permission(ADMIN, ".*", ".*", ".*"),
            _permission(LOADER, "^$", "^$", f"^{TO_LOADER}$"),
            _permission(API, "^amq\\.gen-", "^amq\\.gen-", f"^({_literal(WAGGLE_MSG)}|amq\\.gen-.*)$"),
            *(login.permission for login in logins),
        ],
        "exchanges": [_exchange(WAGGLE_MSG, "topic")],
        # A quorum queue without x-delivery-limit gives a message out as often as it takes: a loader that is killed over
        # and over loses none.
        "queues": [_queue(TO_LOADER, {"x-queue-type": str(queue_type)})],
        "bindings": [_binding(WAGGLE_MSG, TO_LOADER, key="#")],
        "policies": _policies(),
    }
    return _text(definitions)


@dataclass(frozen=True)
class NodeLogin:
    """A node at the Beehive's broker: ``user`` and ``permission`` as definitions and management API have them."""

    name: str
    user: dict[str, Any]
    permission: dict[str, str]


def node_login(node_id: str) -> NodeLogin:
    """A node may write to waggle.msg, and nothing else."""
    name = f"node-{node_id}"
    return NodeLogin(
        name,
        {**user(name), "limits": dict(_USER_LIMITS)},
        _permission(name, "^$", f"^{_literal(WAGGLE_MSG)}$", "^$"),
    )


def user(name: str, password: str | None = None, *, admin: bool = False) -> dict[str, Any]:
    """A user as definitions and management API have it.  One without a password comes in by certificate alone."""
    return {
        "name": name,
        "password_hash": "" if password is None else password_hash(name, password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"] if admin else [],
    }


def password_hash(name: str, password: str) -> str:
    """RabbitMQ's form: base64 of four bytes of salt and the SHA-256 of salt and password.

    The salt comes of name and password, so that the same definitions are the same text: ours are 160 random bits, which
    no table of hashes holds.
    """
    salt = hashlib.sha256(f"{name}\0{password}".encode()).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def shovel(beehive: ToBeehive, place: Place) -> dict[str, Any]:
    """The parameter that makes RabbitMQ's shovel move to-beehive's messages to the Beehive's exchange waggle.msg.

    A message leaves the queue when the Beehive has confirmed it.
    """
    addresses = [_shovel_address(host, beehive.port, place) for host in beehive.hosts]
    return {
        "component": "shovel",
        "vhost": VHOST,
        "name": SHOVEL,
        "value": {
            "src-protocol": "amqp091",
            "src-uri": "amqp://",
            "src-queue": TO_BEEHIVE,
            "src-prefetch-count": beehive.prefetch,
            "dest-protocol": "amqp091",
            "dest-uri": addresses[0] if len(addresses) == 1 else addresses,
            "dest-exchange": WAGGLE_MSG,
            "dest-publish-properties": {"user_id": f"node-{beehive.node_id}"},
            "dest-add-forward-headers": False,
            "ack-mode": "on-confirm",
            "reconnect-delay": 5,
        },
    }


def _shovel_address(host: str, port: int, place: Place) -> str:
    options = {
        "cacertfile": f"{place.secrets}/beehive-ca.pem",
        "certfile": f"{place.secrets}/node-cert.pem",
        "keyfile": f"{place.secrets}/node-key.pem",
        "verify": "verify_peer",
        "server_name_indication": host,
        "auth_mechanism": "external",
        "heartbeat": "30",
        "connection_timeout": "10000",
    }
    query = "&".join(f"{key}={value}" for key, value in options.items())
    in_uri = f"[{host}]" if ":" in host else host  # an address of six
    return f"amqps://{in_uri}:{port}?{query}"


def _configuration(place: Place, given: Mapping[str, Any]) -> str:
    lines = {
        **given,
        "management.tcp.ip": place.management_address,
        "management.tcp.port": place.management_port,
        "prometheus.tcp.ip": place.management_address,
        "prometheus.tcp.port": place.prometheus_port,
        "load_definitions": f"{place.secrets}/definitions.json",
        "heartbeat": 60,
        "vm_memory_high_watermark.absolute": place.memory,
        "disk_free_limit.absolute": place.free_disk,
        "log.console": "true",
        "log.console.level": "info",
        "log.file": "false",
    }
    return "# Made by this project's commands, which write it anew.\n" + "".join(
        f"{key} = {value}\n" for key, value in lines.items()
    )


def _permission(name: str, configure: str, write: str, read: str) -> dict[str, str]:
    return {"user": name, "vhost": VHOST, "configure": configure, "write": write, "read": read}


def _exchange(name: str, kind: str) -> dict[str, Any]:
    return {
        "name": name,
        "vhost": VHOST,
        "type": kind,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": {},
    }


def _queue(name: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "vhost": VHOST, "durable": True, "auto_delete": False, "arguments": dict(arguments or {})}


def _binding(source: str, destination: str, *, kind: str = "queue", key: str = "") -> dict[str, Any]:
    return {
        "source": source,
        "vhost": VHOST,
        "destination": destination,
        "destination_type": kind,
        "routing_key": key,
        "arguments": {},
    }


def _policy(name: str, pattern: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "vhost": VHOST,
        "pattern": pattern,
        "apply-to": "queues",
        "priority": 0,
        "definition": dict(definition),
    }


def _policies() -> list[dict[str, Any]]:
    return [
        _policy("subscribers", "^amq\\.gen-", _SUBSCRIBER),
        # Messages wait on disk, so that days without a Beehive take no memory; with 3.10 it is faster, too.
        _policy("waiting", "^to-", {"queue-mode": "lazy"}),
    ]


def _literal(name: str) -> str:
    return re.escape(name).replace("\\-", "-")


def _text(definitions: Mapping[str, Any]) -> str:
    return json.dumps(definitions, indent=2) + "\n"

# SPDX-License-Identifier: Apache-2.0
"""waggle-node.env: what this node is, and where its Beehive is; lines of ``KEY=value`` as in 2020's virtual-waggle."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from groundwork.errors import InputError
from groundwork.settings import whole_number
from virtual_waggle import env_file, message
from virtual_waggle.beehive.settings import retention
from virtual_waggle.env_file import Variable, size

FILE = "waggle-node.env"
NODE_ID = "WAGGLE_NODE_ID"


@dataclass(frozen=True)
class NodeSettings:
    """A node's settings.  ``beehive_hosts`` is empty where there is no Beehive."""

    node_id: str
    vsn: str
    host: str
    beehive_hosts: tuple[str, ...]
    beehive_port: int
    registration_port: int
    upload_port: int

    @property
    def beehive_host(self) -> str:
        """Where the node registers and brings its files; "" where there is no Beehive."""
        return self.beehive_hosts[0] if self.beehive_hosts else ""


def _id(text: str) -> str:
    if text and not message.is_node_id(text.lower()):
        raise InputError(f"expected 16 hexadecimal digits, found {text!r}", hint="leave it empty: one is made")
    return text.lower()


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise InputError(f"expected {expected}, found {text!r}")
        return text

    return parse


_PORT = whole_number(1, 65535)
_HOST = _matching(r"[A-Za-z0-9.:_-]{0,253}", "the name or the address of a machine")


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(_HOST(part.strip()) for part in text.split(",") if part.strip())


TABLE = (
    Variable(NODE_ID, "this node's id: 16 hexadecimal digits; empty: made at random, once", _id, ""),
    Variable(
        "WAGGLE_NODE_VSN",
        "its short name in data; empty: V and the end of its id",
        _matching(r"[A-Za-z0-9_-]{0,32}", "letters and digits"),
        "",
    ),
    Variable("WAGGLE_NODE_HOST", "the machine's name in data; empty: <id>.ws-virtual", _HOST, ""),
    Variable("WAGGLE_SUB_ID", "stands in files of 2020; nothing takes it", _id, ""),
    Variable(
        "WAGGLE_BEEHIVE_HOST",
        "the Beehive's name or address; of one on several machines all, with commas between; empty: data stay here",
        _hosts,
        "",
    ),
    Variable("WAGGLE_BEEHIVE_PORT", "port of its broker", _PORT, "5671"),
    Variable("WAGGLE_BEEHIVE_REGISTRATION_PORT", "port of its registration", _PORT, "20022"),
    Variable("WAGGLE_BEEHIVE_UPLOAD_PORT", "port where it takes files", _PORT, "20023"),
)
# What of the services may differ from machine to machine; the environment of the command counts too.
LOCAL = (
    Variable("WAGGLE_BROKER_PORT", "port of the node's broker, on loopback", _PORT, "5672"),
    Variable("WAGGLE_MANAGEMENT_PORT", "port of its management API, on loopback", _PORT, "15672"),
    Variable("WAGGLE_PLAYBACK_PORT", "port of the playback server, on loopback", _PORT, "8090"),
    Variable("WAGGLE_PROMETHEUS_PORT", "port of the broker's metrics, on loopback, without containers", _PORT, "15692"),
    Variable("WAGGLE_RECORDER_PORT", "port of the recorder's metrics likewise", _PORT, "8081"),
    Variable("WAGGLE_EPMD_PORT", "port of Erlang's names likewise", _PORT, "14369"),
    Variable("WAGGLE_DISTRIBUTION_PORT", "port of Erlang's nodes likewise", _PORT, "25682"),
    Variable(
        "WAGGLE_METRICS_INTERVAL", "seconds between measurements of the node itself", whole_number(1, 86400), "30"
    ),
    Variable("WAGGLE_PLAYBACK_RATE", "pictures a second of the camera stand-ins", whole_number(1, 30), "10"),
    Variable(
        "WAGGLE_RETENTION", "how long a node without a Beehive keeps data, as 90d; empty: for ever", retention, ""
    ),
    env_file.health_interval("WAGGLE_HEALTH_INTERVAL"),
    Variable("WAGGLE_UPLOADS_MOST", "how much of plugins' files may lie here, as 4g; then the oldest go", size, "4g"),
)


def read(path: Path) -> NodeSettings:
    """The settings of a file.  Raises InputError, which names file, line and key."""
    values = env_file.read(path, (*TABLE, *LOCAL))
    node_id = values[NODE_ID]
    if not node_id:
        raise InputError(f"{path}: {NODE_ID} is not set", hint="`virtual-waggle up` makes one")
    return NodeSettings(
        node_id=node_id,
        vsn=values["WAGGLE_NODE_VSN"] or f"V{node_id[-3:].upper()}",
        host=values["WAGGLE_NODE_HOST"] or f"{node_id}.ws-virtual",
        beehive_hosts=values["WAGGLE_BEEHIVE_HOST"],
        beehive_port=values["WAGGLE_BEEHIVE_PORT"],
        registration_port=values["WAGGLE_BEEHIVE_REGISTRATION_PORT"],
        upload_port=values["WAGGLE_BEEHIVE_UPLOAD_PORT"],
    )

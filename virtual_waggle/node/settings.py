# SPDX-License-Identifier: Apache-2.0
"""waggle-node.env: what this node is, and where its Beehive is; lines of ``KEY=value`` as in 2020's virtual-waggle."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundwork.errors import InputError, nearest
from groundwork.settings import Setting, whole_number
from virtual_waggle import message

FILE = "waggle-node.env"
NODE_ID = "WAGGLE_NODE_ID"

_LARGEST = 64 << 10  # bytes
_VSN = re.compile(r"[A-Za-z0-9_-]{1,32}")
_HOST = re.compile(r"[A-Za-z0-9.:_-]{1,253}")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


@dataclass(frozen=True)
class NodeSettings:
    """A node's settings.  ``beehive_host`` is "" where there is no Beehive."""

    node_id: str
    vsn: str
    host: str
    sub_id: str
    beehive_host: str
    beehive_port: int
    registration_port: int
    upload_port: int


def _node_id(text: str) -> str:
    if not message.is_node_id(text.lower()):
        raise InputError(f"expected 16 hexadecimal digits, found {text!r}", hint="leave it empty: one is made")
    return text.lower()


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text and not pattern.fullmatch(text):
            raise InputError(f"expected {expected}, found {text!r}")
        return text

    return parse


_port = whole_number(1, 65535)
_host = _matching(_HOST, "the name or the address of a machine")

SETTINGS = (
    Setting("waggle-node-id", "the node's id: 16 hexadecimal digits", _node_id, "", shown="made at random, once"),
    Setting(
        "waggle-node-vsn",
        "the node's short name in data",
        _matching(_VSN, "letters and digits"),
        "",
        shown="V and the id's end",
    ),
    Setting("waggle-node-host", "the machine's name in data", _host, "", shown="<id>.ws-virtual"),
    Setting(
        "waggle-sub-id",
        "the part of a node of several, as in 2020: 16 hexadecimal digits",
        _node_id,
        "",
        shown="the id",
    ),
    Setting("waggle-beehive-host", "the Beehive's name or address; empty: data stay on the node", _host, ""),
    Setting("waggle-beehive-port", "its broker's port", _port, 5671),
    Setting("waggle-beehive-registration-port", "its registration's port", _port, 20022),
    Setting("waggle-beehive-upload-port", "its port for uploads", _port, 20023),
)
_BY_KEY = {setting.key.upper(): setting for setting in SETTINGS}


def read(path: Path) -> NodeSettings:
    """The settings of a file.  Raises InputError, which names file, line and key."""
    return _settings(path, read_lines(path, _BY_KEY))


def read_lines(path: Path, known: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Key -> its value and the line it stands in, of a file of ``KEY=value``.

    Blank lines and those that begin with # are passed over; a value may stand in quotes.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST >> 10} KiB; expected lines of KEY=value")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None
    found: dict[str, tuple[str, int]] = {}
    known = tuple(known)
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if not match:
            raise InputError(f"{path}:{number}: expected KEY=value, found {line[:60]!r}")
        key, value = match.groups()
        if key not in known:
            raise InputError(f"{path}:{number}: {key}: unknown key", hint=nearest(key, known))
        if key in found:
            raise InputError(f"{path}:{number}: {key}: stands in line {found[key][1]} too")
        found[key] = _unquoted(value), number
    return found


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()


def _settings(path: Path, lines: Mapping[str, tuple[str, int]]) -> NodeSettings:
    values: dict[str, Any] = {}
    for key, setting in _BY_KEY.items():
        text, number = lines.get(key, ("", 0))
        try:
            values[key] = setting.parse(text) if text else setting.default
        except InputError as error:
            raise InputError(f"{path}:{number}: {key}: {error}", hint=error.hint) from None
    node_id = values[NODE_ID]
    if not node_id:
        raise InputError(f"{path}: {NODE_ID} is not set", hint="`virtual-waggle up` makes one")
    return NodeSettings(
        node_id=node_id,
        vsn=values["WAGGLE_NODE_VSN"] or f"V{node_id[-3:].upper()}",
        host=values["WAGGLE_NODE_HOST"] or f"{node_id}.ws-virtual",
        sub_id=values["WAGGLE_SUB_ID"] or node_id,
        beehive_host=values["WAGGLE_BEEHIVE_HOST"],
        beehive_port=values["WAGGLE_BEEHIVE_PORT"],
        registration_port=values["WAGGLE_BEEHIVE_REGISTRATION_PORT"],
        upload_port=values["WAGGLE_BEEHIVE_UPLOAD_PORT"],
    )


def has_node_id(path: Path) -> bool:
    """Whether a file of settings names the node's id."""
    return bool(read_lines(path, _BY_KEY).get(NODE_ID, ("", 0))[0])


def text_of_new(node_id: str) -> str:
    """What a new waggle-node.env holds: every key, with what it sets."""
    lines = ["# What this Waggle node is. `virtual-waggle up` reads it."]
    for key, setting in _BY_KEY.items():
        lines.append(f"# {setting.help}")
        if key == NODE_ID:
            lines.append(f"{key}={node_id}")
        elif key == "WAGGLE_BEEHIVE_HOST":
            lines.append(f"{key}=")
        else:
            default = setting.default_text
            lines.append(f"#{key}={default}" if not setting.shown else f"#{key}=")
    return "\n".join(lines) + "\n"


def with_node_id(text: str, node_id: str) -> str:
    """The text of a file of settings, with the node's id set in it."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match and match[1] == NODE_ID:
            lines[number] = f"{NODE_ID}={node_id}"
            break
    else:
        lines.append(f"{NODE_ID}={node_id}")
    return "\n".join(lines) + "\n"

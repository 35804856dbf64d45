# SPDX-License-Identifier: Apache-2.0
"""A role: what a node of an experiment is, as data.

``roles/<name>.yaml`` names the image and the node types, what is put on the node and started there, how it is seen that
it does well, what it takes from other nodes and gives to them, and what is collected at the end.  With ``extends`` it
adds to another role.  People's own roles lie in a folder of their own and may extend ours.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from groundwork import documents
from groundwork.documents import Document
from groundwork.errors import InputError, unknown
from image_builder.variant import Arch

BLANK = "blank"
_LARGEST = 1 << 20  # bytes of a file that is put on a node; what is larger is fetched by a command of the role's

# What every script finds in its environment, and what stands for ${NAME} in paths and URLs.
VARIABLES = {
    "SAGE_EXPERIMENT": "the experiment's name",
    "SAGE_NODE": "the node's name, <experiment>-<role>-<number>",
    "SAGE_ROLE": "its role",
    "SAGE_NUMBER": "its number among the nodes of its role, from 1",
    "SAGE_COUNT": "how many nodes of its role there are",
    "SAGE_SITE": "its site",
    "SAGE_ADDRESS": "the address by which others reach it: its floating IP, or else its fixed address",
    "SAGE_FIXED_ADDRESS": "its address in its site's network",
    "SAGE_NODE_ID": "16 hexadecimal digits, its own and the same in each run of this experiment",
}
# In an offer's script alone: whom it is for.
TAKER_VARIABLES = {"SAGE_TAKER": "the name of the node that takes it", "SAGE_TAKER_ID": "that node's SAGE_NODE_ID"}


@dataclass(frozen=True)
class File:
    """What is put on a node at the path ``to``, below its user's home folder unless it is absolute.

    Either ``content``, a text, or ``source``, a file of this machine with its digest (SHA-256): it may be a secret, so
    nothing of it is kept elsewhere.  ``owner`` other than the role's user takes sudo.
    """

    to: str
    mode: int
    owner: str
    content: str | None
    source: Path | None
    sha256: str


@dataclass(frozen=True)
class Command:
    """A bash script (``-euo pipefail``), which must exit with 0 within ``deadline`` seconds.

    Scripts that start something are run again whenever a node is repaired: run twice they must do as run once.
    """

    name: str
    run: str
    deadline: float


@dataclass(frozen=True)
class Health:
    """What must hold within ``deadline`` seconds: a script on the node exits with 0, or a URL answers, asked from here.

    Just one of ``run`` and ``url``; an answer is a status below 400.
    """

    name: str
    run: str | None
    url: str | None
    deadline: float


@dataclass(frozen=True)
class Offer:
    """What a node hands out to another: ``run`` makes it, on the node that offers; ``files``: name -> path there."""

    run: str
    files: dict[str, str]
    deadline: float


@dataclass(frozen=True)
class Need:
    """What a node takes from another's offer of the same kind; ``files``: the offer's name -> path on this node."""

    files: dict[str, str]


@dataclass(frozen=True)
class Collect:
    """What is brought home: files and folders by their paths, and what commands print."""

    paths: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True)
class Role:
    """A role with all that it extends carried in.

    ``image`` is a name, an id, or ``sha512:<digest>``; None leaves it, and ``node_types``, to the experiment.
    ``ports`` (TCP) are opened in the node's firewall.  ``offers`` and ``needs`` are by kind.
    """

    name: str
    description: str
    image: str | None
    node_types: tuple[str, ...]
    arch: Arch
    user: str
    variables: dict[str, str]
    ports: tuple[int, ...]
    files: tuple[File, ...]
    start: tuple[Command, ...]
    health: tuple[Health, ...]
    offers: dict[str, Offer]
    needs: dict[str, Need]
    collect: Collect


_NAME = {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,31}$", "description": "lower-case letters, digits, hyphens"}
_PATH = {"type": "string", "pattern": "^[^\\s\\x00]+$", "description": "a path on the node, without blanks"}
_DEADLINE = {"type": "number", "exclusiveMinimum": 0, "maximum": 86400, "description": "seconds"}
_SCRIPT = {"type": "string", "minLength": 1, "description": "a bash script"}
_LINE = {"type": "string", "pattern": "^[^\\n]+$", "maxLength": 200, "description": "a text of one line"}
_PATHS = {"type": "object", "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"}, "additionalProperties": _PATH}
_FILE_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$", "description": "a file's name"}
IMAGE = {
    "type": "string",
    "pattern": "^[^\\s/]+$",
    "description": "an image's name, its id, or sha512: and the digest of its data",
}
NODE_TYPES = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"},
    "description": "node types, or at KVM sites flavors, the preferred one first",
}
VALUES = {
    "type": "object",
    "propertyNames": {"pattern": "^[A-Z][A-Z0-9_]*$"},
    "additionalProperties": {"type": ["string", "number", "boolean"]},
    "description": "NAME: value, names in capital letters",
}
COLLECT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "paths": {"type": "array", "items": _PATH},
        "commands": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "run"],
                "properties": {"name": _FILE_NAME, "run": _SCRIPT, "deadline": _DEADLINE},
            },
        },
    },
}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "description": {"type": "string"},
        "extends": {**_NAME, "description": "another role's name"},
        "image": IMAGE,
        "node_types": NODE_TYPES,
        "arch": {"enum": [str(arch) for arch in Arch]},
        "user": {"type": "string", "pattern": "^[a-z_][a-z0-9_-]*$", "description": "who logs in"},
        "variables": VALUES,
        "ports": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}},
        "files": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["to"],
                "properties": {
                    "to": _PATH,
                    "content": {"type": "string"},
                    "from": {"type": "string", "description": "a file's path, from the role's file on"},
                    "mode": {"type": "string", "pattern": "^0?[0-7]{3}$", "description": 'a mode, as "0600"'},
                    "owner": {"type": "string", "pattern": "^[a-z_][a-z0-9_-]*$"},
                },
            },
        },
        "start": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["run"],
                "properties": {"name": _LINE, "run": _SCRIPT, "deadline": _DEADLINE},
            },
        },
        "health": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name"],
                "properties": {
                    "name": _LINE,
                    "run": _SCRIPT,
                    "url": {"type": "string", "pattern": "^https?://[^\\s]+$", "description": "a URL"},
                    "deadline": _DEADLINE,
                },
            },
        },
        "offers": {
            "type": "object",
            "propertyNames": {"pattern": _NAME["pattern"]},
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"run": _SCRIPT, "files": _PATHS, "deadline": _DEADLINE},
            },
        },
        "needs": {
            "type": "object",
            "propertyNames": {"pattern": _NAME["pattern"]},
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"files": _PATHS},
            },
        },
        "collect": COLLECT,
    },
}
_SCALARS = ("description", "image", "node_types", "arch", "user")
_USER = "cc"  # of Chameleon's images and ours
_START, _HEALTH, _OFFER, _COLLECT = 600.0, 120.0, 120.0, 120.0  # seconds


def our_folder() -> Path:
    """Where the roles lie that come along."""
    return Path(__file__).with_name("roles")


def available(folders: Sequence[Path]) -> dict[str, Path]:
    """Role's name -> its file; in several folders of the same name the first folder's counts, ours at last."""
    found: dict[str, Path] = {}
    for folder in (*folders, our_folder()):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def load(name: str, folders: Sequence[Path] = ()) -> Role:
    """Read the role of that name, with what it extends.

    Raises InputError for an unknown name, and, with file, line and key, for whatever is wrong in a file.
    """
    known = available(folders)
    if name not in known:
        raise unknown("role", name, known)
    return _merge(name, _chain(known[name], known, ()))


def taken_variables(kind: str) -> dict[str, str]:
    """What scripts of a node find in their environment of the node that it takes an offer of this kind from."""
    word = kind.upper().replace("-", "_")
    return {
        f"SAGE_{word}_HOST": "the address by which this node reaches it",
        f"SAGE_{word}_NODE": "its name",
    }


def known_variables(role: Role) -> set[str]:
    """All names that a role's scripts, paths and URLs may use (in offers there are TAKER_VARIABLES too)."""
    return {*VARIABLES, *role.variables, *(name for kind in role.needs for name in taken_variables(kind))}


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """``text`` with a value for each ``${NAME}``; ``$$`` is a dollar sign."""
    return Template(text).substitute(values)


def read_values(given: Mapping[str, Any]) -> dict[str, str]:
    """Variables as scripts find them: all are texts, yes and no are 1 and 0."""
    return {name: ("1" if value else "0") if isinstance(value, bool) else str(value) for name, value in given.items()}


def read_collect(given: Mapping[str, Any]) -> Collect:
    """What stands under a key ``collect`` that was checked against :data:`COLLECT`."""
    return Collect(
        tuple(given.get("paths", ())),
        tuple(
            Command(row["name"], row["run"], float(row.get("deadline", _COLLECT))) for row in given.get("commands", ())
        ),
    )


def joined(one: Collect, other: Collect) -> Collect:
    """Both; of two commands of one name the other's."""
    commands = {command.name: command for command in (*one.commands, *other.commands)}
    return Collect(tuple(dict.fromkeys((*one.paths, *other.paths))), tuple(commands.values()))


def _chain(path: Path, known: Mapping[str, Path], heirs: tuple[Path, ...]) -> list[Document]:
    """The role's file, then that of the role it extends, and so on."""
    document = documents.load(path, SCHEMA)
    parent = document.data.get("extends")
    if parent is None:
        return [document]
    if parent not in known:
        raise document.error(["extends"], f"there is no role {parent!r}", hint=unknown("role", parent, known).hint)
    line = (*heirs, path)
    if known[parent] in line:
        names = " -> ".join([*(seen.stem for seen in line), parent])
        raise document.error(["extends"], f"goes round in a circle: {names}")
    return [document, *_chain(known[parent], known, line)]


def _merge(name: str, chain: Sequence[Document]) -> Role:
    """Carry the parents' data into one role; ``chain`` begins with the role itself."""
    scalars: dict[str, Any] = {}
    variables: dict[str, str] = {}
    ports: dict[int, None] = {}
    put: dict[str, File] = {}
    start: list[Command] = []
    health: dict[str, Health] = {}
    offers: dict[str, Offer] = {}
    needs: dict[str, Need] = {}
    collect = Collect()
    for document in reversed(chain):
        data = document.data
        scalars.update({key: data[key] for key in _SCALARS if key in data})
        variables |= read_values(data.get("variables", {}))
        ports |= dict.fromkeys(data.get("ports", []))
        for position, row in enumerate(data.get("files", [])):
            put[row["to"]] = _file(document, position, row, scalars.get("user", _USER))
        for row in data.get("start", []):
            words = row.get("name") or row["run"].strip().splitlines()[0][:60]
            start.append(Command(words, row["run"], float(row.get("deadline", _START))))
        for position, row in enumerate(data.get("health", [])):
            if ("run" in row) == ("url" in row):
                raise document.error(["health", position], f"{row['name']!r} needs either 'run' or 'url'", of_key=False)
            deadline = float(row.get("deadline", _HEALTH))
            health[row["name"]] = Health(row["name"], row.get("run"), row.get("url"), deadline)
        for kind, row in data.get("offers", {}).items():
            offers[kind] = Offer(row.get("run", ""), row.get("files", {}), float(row.get("deadline", _OFFER)))
        needs |= {kind: Need(row.get("files", {})) for kind, row in data.get("needs", {}).items()}
        collect = joined(collect, read_collect(data.get("collect", {})))
    made = Role(
        name=name,
        description=scalars.get("description", ""),
        image=scalars.get("image"),
        node_types=tuple(scalars.get("node_types", ())),
        arch=Arch(scalars.get("arch", Arch.AMD64)),
        user=scalars.get("user", _USER),
        variables=variables,
        ports=tuple(ports),
        files=tuple(put.values()),
        start=tuple(start),
        health=tuple(health.values()),
        offers=offers,
        needs=needs,
        collect=collect,
    )
    for document in chain:
        _check_names(document, made)
    return made


def _file(document: Document, position: int, row: Mapping[str, Any], user: str) -> File:
    keys = ("files", position)
    if ("content" in row) == ("from" in row):
        raise document.error(keys, f"{row['to']} needs either 'content' or 'from'", of_key=False)
    mode, owner = int(row.get("mode", "0644"), 8), row.get("owner", user)
    if "content" in row:
        return File(row["to"], mode, owner, row["content"], None, digest_of_source(row["content"].encode()))
    path = document.path.parent / Path(row["from"]).expanduser()
    try:
        return File(row["to"], mode, owner, None, path.absolute(), digest_of_source(read_source(path)))
    except InputError as error:
        raise document.error((*keys, "from"), str(error), hint=error.hint) from None


def read_source(path: Path) -> bytes:
    """What a file of this machine holds that is to be put on a node.  Raises InputError."""
    try:
        if path.stat().st_size > _LARGEST:
            hint = "have a command of the role's fetch it"
            raise InputError(f"{path} is larger than {_LARGEST >> 20} MiB", hint=hint)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None


def digest_of_source(content: bytes) -> str:
    """SHA-256 of what is put on a node."""
    return hashlib.sha256(content).hexdigest()


def _check_names(document: Document, made: Role) -> None:
    """Raise InputError for the first ``${NAME}`` in a path or a URL of this file that nothing gives a value to."""
    own = known_variables(made)
    texts: list[tuple[Sequence[str | int], str, set[str]]] = []
    data = document.data
    texts += [(["files", at, "to"], row["to"], own) for at, row in enumerate(data.get("files", []))]
    texts += [(["health", at, "url"], row.get("url", ""), own) for at, row in enumerate(data.get("health", []))]
    for part, names in (("offers", own | set(TAKER_VARIABLES)), ("needs", own)):
        for kind, row in data.get(part, {}).items():
            texts += [([part, kind, "files", name], path, names) for name, path in row.get("files", {}).items()]
    texts += [(["collect", "paths", at], path, own) for at, path in enumerate(data.get("collect", {}).get("paths", []))]
    for keys, text, names in texts:
        for word in used_names(text):
            if word is None:
                raise document.error(keys, f"{text!r} has a $ without a name", hint="$$ is a dollar sign")
            if word not in names:
                raise document.error(keys, f"nothing gives ${{{word}}} a value", hint=unknown("name", word, names).hint)


def used_names(text: str) -> Iterable[str | None]:
    """The names in ``text`` that :func:`fill_in` wants a value for; None for a dollar sign with no name."""
    for found in re.finditer(Template.pattern, text):
        if found["invalid"] is not None:
            yield None
        elif found["escaped"] is None:
            yield found["named"] or found["braced"]

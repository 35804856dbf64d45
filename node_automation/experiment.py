# SPDX-License-Identifier: Apache-2.0
"""An experiment: which nodes, of which roles, for how long, and who reports to whom; a YAML file of the user's.

It is read with the roles that it names into one value, which can be written to and read from JSON.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from chameleon_sites.sites import Site, SiteKind
from groundwork import documents
from groundwork.documents import Document
from groundwork.errors import InputError, nearest, unknown
from node_automation import ledger, role
from node_automation.lease import parse_length
from node_automation.role import Collect, Role

_MOST_NODES = 200
_LONGEST = 7 * 86400  # seconds; a bare-metal lease of Chameleon's
_SHORTEST = 600
DURATION = 4 * 3600
_HOOK_DEADLINE = 30.0


@dataclass(frozen=True)
class Image:
    """An image that a site has.  ``digest``: SHA-512 of its data."""

    id: str
    name: str
    digest: str | None


@dataclass(frozen=True)
class Group:
    """The nodes of one role.

    ``sites`` and ``node_types`` are in order of preference: at each site each type is tried, then the next site is.
    ``image`` is a name, an id, or ``sha512:<digest>``; ``images`` has the id to take at a site, where that is settled
    already (a replay).
    """

    role: Role
    number: int
    sites: tuple[str, ...]
    node_types: tuple[str, ...]
    image: str
    images: dict[str, str]
    variables: dict[str, str]
    collect: Collect


@dataclass(frozen=True)
class Link:
    """The nodes of role ``taker`` take what those of role ``giver`` offer of this ``kind``."""

    taker: str
    giver: str
    kind: str


@dataclass(frozen=True)
class Notify:
    """A command that gets the report, JSON, on its standard input when ``up`` or ``down`` ends; deadline in seconds."""

    words: tuple[str, ...]
    deadline: float


@dataclass(frozen=True)
class Experiment:
    """An experiment with its roles.  ``seconds``: how long its leases are asked for.  Givers stand before takers."""

    name: str
    seconds: int
    groups: tuple[Group, ...]
    links: tuple[Link, ...]
    notify: Notify | None

    def group(self, role_name: str) -> Group:
        """The nodes of this role."""
        return next(group for group in self.groups if group.role.name == role_name)


@dataclass(frozen=True)
class Node:
    """One node that an experiment wants; ``name`` is ``<experiment>-<role>-<number>``."""

    name: str
    role: str
    number: int


_SITES = {"type": "array", "minItems": 1, "items": {"type": "string"}, "description": "sites, the preferred one first"}
_NUMBER = {"type": "integer", "minimum": 1, "maximum": _MOST_NODES, "description": "how many nodes"}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "nodes"],
    "properties": {
        "name": {"type": "string"},
        "duration": {"type": "string", "description": "how long, as 90m, 4h or 2d"},
        "sites": _SITES,
        "node_types": role.NODE_TYPES,
        "image": role.IMAGE,
        "variables": role.VALUES,
        "roles": {"type": "string", "description": "a folder with roles of your own, from this file on"},
        "nodes": {
            "type": "object",
            "minProperties": 1,
            "description": "role: number, or role: {number: ...}",
            "additionalProperties": {
                "anyOf": [
                    _NUMBER,
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "number": _NUMBER,
                            "sites": _SITES,
                            "node_types": role.NODE_TYPES,
                            "image": role.IMAGE,
                            "variables": role.VALUES,
                        },
                    },
                ],
            },
        },
        "links": {
            "type": "object",
            "description": "role: the role that it takes from, or a list of such",
            "additionalProperties": {
                "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]
            },
        },
        "collect": {
            "type": "object",
            "description": "role: what to bring home besides",
            "additionalProperties": role.COLLECT,
        },
        "notify": {
            "type": "object",
            "additionalProperties": False,
            "required": ["command"],
            "properties": {
                "command": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "deadline": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600, "description": "seconds"},
            },
        },
    },
}


def load(path: Path, known_sites: Mapping[str, Site], role_folders: Sequence[Path] = ()) -> Experiment:
    """Read an experiment's file and the roles that it names.

    Raises InputError, with file, line and key, for the first thing that is wrong.
    """
    document = documents.load(path, SCHEMA)
    data = document.data
    try:
        ledger.check_name(data["name"])
    except InputError as error:
        raise document.error(["name"], str(error), hint=error.hint) from None
    folders = list(role_folders)
    if "roles" in data:
        own = path.parent / Path(data["roles"]).expanduser()
        if not own.is_dir():
            raise document.error(["roles"], f"there is no folder {own}")
        folders.insert(0, own)
    groups = [_group(document, name, folders, known_sites) for name in data["nodes"]]
    if sum(group.number for group in groups) > _MOST_NODES:
        raise document.error(["nodes"], f"these are more than {_MOST_NODES} nodes")
    _check_variables(document, groups)
    links = tuple(_links(document, groups))
    for name in data.get("collect", {}):
        if name not in data["nodes"]:
            raise document.error(["collect", name], "no node has this role", hint=nearest(name, data["nodes"]))
    notify = data.get("notify")
    return Experiment(
        name=data["name"],
        seconds=_seconds(document),
        groups=_in_order(document, groups, links),
        links=links,
        notify=Notify(tuple(notify["command"]), float(notify.get("deadline", _HOOK_DEADLINE))) if notify else None,
    )


def name_in(path: Path) -> str:
    """The name that stands in an experiment's file."""
    name: str = documents.load(path, SCHEMA).data["name"]
    return ledger.check_name(name)


def of_role(
    name: str,
    role_name: str,
    known_sites: Mapping[str, Site],
    *,
    sites: Sequence[str],
    node_types: Sequence[str] = (),
    number: int = 1,
    image: str | None = None,
    seconds: int = DURATION,
    role_folders: Sequence[Path] = (),
) -> Experiment:
    """An experiment without a file: nodes of one role."""
    chosen = role.load(role_name, role_folders)
    if chosen.needs:
        needed = ", ".join(chosen.needs)
        raise InputError(
            f"a node of the role {role_name!r} takes something of another ({needed})",
            hint="write an experiment's file with both, and a link between them",
        )
    for site in sites:
        _check_site(site, known_sites)
    if not sites:
        raise InputError("no site is named", hint=f"--site, one of: {', '.join(_with_nodes(known_sites))}")
    if not 1 <= number <= _MOST_NODES:
        raise InputError(f"expected 1 to {_MOST_NODES} nodes, found {number}")
    found = image or chosen.image
    if found is None:
        raise InputError(f"the role {role_name!r} names no image", hint="--image NAME")
    types = tuple(node_types) or chosen.node_types
    if not types:
        raise InputError(
            f"the role {role_name!r} names no node type", hint="--node-type NAME; `fab nodes.free` lists them"
        )
    group = Group(chosen, number, tuple(sites), types, found, {}, {}, Collect())
    return Experiment(ledger.check_name(name), seconds, (group,), (), None)


def nodes(experiment: Experiment) -> tuple[Node, ...]:
    """All nodes that an experiment wants, givers before takers."""
    return tuple(
        Node(node_name(experiment.name, group.role.name, number), group.role.name, number)
        for group in experiment.groups
        for number in range(1, group.number + 1)
    )


def node_name(experiment: str, role_name: str, number: int) -> str:
    return f"{experiment}-{role_name}-{number}"


def node_id(name: str) -> str:
    """A Waggle node's id for the node of this name: 16 hexadecimal digits, the same in each run."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def givers_of(experiment: Experiment, node: Node) -> dict[str, Node]:
    """Whom a node takes its offers from, by their kind; of several nodes that give each in turn."""
    found = {}
    for link in experiment.links:
        if link.taker == node.role:
            number = (node.number - 1) % experiment.group(link.giver).number + 1
            found[link.kind] = Node(node_name(experiment.name, link.giver, number), link.giver, number)
    return found


def _group(document: Document, name: str, folders: Sequence[Path], known_sites: Mapping[str, Site]) -> Group:
    data = document.data
    at = ["nodes", name]
    try:
        chosen = role.load(name, folders)
    except InputError as error:
        if name in role.available(folders):
            raise
        raise document.error(at, f"there is no role {name!r}", hint=error.hint) from None
    row = data["nodes"][name]
    if isinstance(row, int):
        row = {"number": row}

    def place(key: str) -> list[str | int]:
        """Where this key stands that counts for these nodes."""
        return [*at, key] if key in row else [key]

    longest = len(node_name(data["name"], name, row.get("number", 1)))
    if longest > 63:
        raise document.error(at, f"the nodes' names would have {longest} characters; hosts' names have 63 at most")
    sites = row.get("sites") or data.get("sites", [])
    if not sites:
        raise document.error(at, "no site is named for these nodes", hint="sites: [CHI@UC, CHI@TACC]")
    for position, site in enumerate(sites):
        try:
            _check_site(site, known_sites)
        except InputError as error:
            raise document.error([*place("sites"), position], str(error), hint=error.hint, of_key=False) from None
    image = row.get("image") or data.get("image") or chosen.image
    if image is None:
        raise document.error(at, "no image is named for these nodes", hint="image: Sage-Ubuntu24.04")
    types = row.get("node_types") or data.get("node_types") or chosen.node_types
    if not types:
        raise document.error(at, "no node type is named for these nodes", hint="node_types: [compute_skylake]")
    # The experiment's variables are for whichever role knows them; a role's own line must be known to it.
    values = {key: value for key, value in data.get("variables", {}).items() if key in chosen.variables}
    for key in row.get("variables", {}):
        if key not in chosen.variables:
            raise document.error(
                [*at, "variables", key],
                f"the role {name!r} has no such variable",
                hint=nearest(key, chosen.variables) or "its key 'variables' lists those that it has",
            )
    collect = role.read_collect(data.get("collect", {}).get(name, {}))
    for position, path in enumerate(collect.paths):
        for word in role.used_names(path):
            if word is None or word not in role.known_variables(chosen):
                where: list[str | int] = ["collect", name, "paths", position]
                raise document.error(where, f"nothing gives ${{{word or ''}}} a value", of_key=False)
    return Group(
        role=chosen,
        number=row.get("number", 1),
        sites=tuple(dict.fromkeys(sites)),
        node_types=tuple(dict.fromkeys(types)),
        image=image,
        images={},
        variables=role.read_values({**values, **row.get("variables", {})}),
        collect=collect,
    )


def _check_site(name: str, known_sites: Mapping[str, Site]) -> None:
    if name not in known_sites:
        raise unknown("site", name, _with_nodes(known_sites))
    if known_sites[name].kind is SiteKind.EDGE:
        raise InputError(f"{name} has containers, and no nodes", hint="name another site")


def _with_nodes(known_sites: Mapping[str, Site]) -> list[str]:
    return [name for name, site in known_sites.items() if site.kind is not SiteKind.EDGE]


def _check_variables(document: Document, groups: Sequence[Group]) -> None:
    known = {name for group in groups for name in group.role.variables}
    for name in document.data.get("variables", {}):
        if name not in known:
            raise document.error(
                ["variables", name],
                "no role of this experiment has such a variable",
                hint=nearest(name, known) or "a role's key 'variables' lists those that it has",
            )


def _links(document: Document, groups: Sequence[Group]) -> Iterator[Link]:
    """The links, as they stand; raises InputError for one that gives nothing, and for a need that nobody meets."""
    roles = {group.role.name: group.role for group in groups}
    given = document.data.get("links", {})
    met: dict[tuple[str, str], str] = {}
    for taker, value in given.items():
        if taker not in roles:
            raise document.error(["links", taker], "no node has this role", hint=nearest(taker, roles))
        for position, giver in enumerate([value] if isinstance(value, str) else value):
            keys = ["links", taker] if isinstance(value, str) else ["links", taker, position]
            if giver not in roles:
                raise document.error(keys, f"no node has the role {giver!r}", hint=nearest(giver, roles), of_key=False)
            kinds = [kind for kind in roles[taker].needs if kind in roles[giver].offers]
            if not kinds:
                needs = ", ".join(roles[taker].needs) or "nothing"
                offers = ", ".join(roles[giver].offers) or "nothing"
                raise document.error(
                    keys,
                    f"{taker!r} takes nothing that {giver!r} gives",
                    hint=f"{taker!r} needs: {needs}; {giver!r} offers: {offers}",
                    of_key=False,
                )
            for kind in kinds:
                if (taker, kind) in met:
                    raise document.error(keys, f"{taker!r} takes its {kind!r} of {met[taker, kind]!r}", of_key=False)
                lacking = roles[taker].needs[kind].files.keys() - roles[giver].offers[kind].files.keys()
                if lacking:
                    names = ", ".join(sorted(lacking))
                    raise document.error(keys, f"the {kind!r} of {giver!r} has no {names}", of_key=False)
                met[taker, kind] = giver
                yield Link(taker, giver, kind)
    for taker, found in roles.items():
        for kind in found.needs:
            if (taker, kind) not in met:
                who = [name for name, other in roles.items() if kind in other.offers and name != taker]
                raise document.error(
                    ["nodes", taker],
                    f"these nodes need a {kind!r} of another's, and no link says whose",
                    hint=f"links: {{{taker}: {who[0]}}}"
                    if who
                    else f"add nodes of a role that offers {kind!r}, and a link",
                )


def _in_order(document: Document, groups: Sequence[Group], links: Sequence[Link]) -> tuple[Group, ...]:
    """Givers before takers, else as they stand in the file."""
    wants: dict[str, list[str]] = {group.role.name: [] for group in groups}
    for link in links:
        wants[link.taker].append(link.giver)
    try:
        order = list(TopologicalSorter(wants).static_order())
    except CycleError as error:
        names = " -> ".join(reversed(error.args[1]))
        raise document.error(["links"], f"goes round in a circle: {names}") from None
    return tuple(sorted(groups, key=lambda group: order.index(group.role.name)))


def read_duration(text: str) -> int:
    """Seconds of ``90m``, ``4h``, ``1d12h``.  Raises InputError."""
    seconds = int(parse_length(text).total_seconds())
    if not _SHORTEST <= seconds <= _LONGEST:
        raise InputError(f"expected from 10m to 7d, found {text!r}", hint="extend the leases later: fab lease.extend")
    return seconds


def _seconds(document: Document) -> int:
    try:
        return read_duration(document.data["duration"]) if "duration" in document.data else DURATION
    except InputError as error:
        raise document.error(["duration"], str(error), hint=error.hint) from None


def on_same_images(experiment: Experiment, images: Mapping[str, Mapping[str, Image]]) -> Experiment:
    """The experiment on images that are settled, role -> site -> image; the nodes of a role go to these sites alone."""

    def pinned(group: Group) -> Group:
        found = images.get(group.role.name, {})
        if not found:
            raise InputError(f"nothing tells on which image the {group.role.name} nodes ran")
        return replace(group, sites=tuple(found), images={site: image.id for site, image in found.items()})

    return replace(experiment, groups=tuple(pinned(group) for group in experiment.groups))

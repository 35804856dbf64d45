# SPDX-License-Identifier: Apache-2.0
"""Pure: an experiment and what stands of it -> the steps that make it whole.

A plan is a value: it can be printed as text and JSON, and carried out (:mod:`node_automation.up`).  Made anew after a
run that was killed, it has what is missing, and nothing twice.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from groundwork import products
from groundwork.compat import StrEnum
from groundwork.errors import SageError
from image_builder.variant import Arch
from node_automation import experiment as experiments
from node_automation import ledger
from node_automation.experiment import Experiment, Group, Image, Node
from node_automation.ledger import Run

_ARCHES = {Arch.AMD64: "x86_64", Arch.ARM64: "aarch64"}
_GONE = {"DELETED", "SOFT_DELETED"}
_COMING = {"BUILD", "REBUILD", "REBOOT", "HARD_REBOOT"}
_WELL = {"ACTIVE"}
_LEASE_COMING = {"PENDING", "CREATING", "STARTING", "UPDATING"}
_LEASE_WELL = {"ACTIVE"}


class StepKind(StrEnum):
    """What a step does."""

    DROP_NODE = "drop node"
    DROP_ADDRESS = "drop floating IP"
    DROP_GROUP = "drop security group"
    DROP_LEASE = "drop lease"
    LEASE = "lease"
    WAIT_LEASE = "wait for lease"
    LAUNCH = "launch"
    WAIT_NODE = "wait for node"
    ADDRESS = "address"
    REACH = "reach"
    PUT = "put"
    TAKE = "take"
    START = "start"
    CHECK = "check"


@dataclass(frozen=True)
class StandingLease:
    """A lease of the experiment's as its site has it.  ``hosts``: how many nodes it holds; ``status`` is Blazar's."""

    site: str
    id: str
    name: str
    status: str
    node_type: str
    hosts: int
    ends_at: str | None


@dataclass(frozen=True)
class StandingNode:
    """A server of the experiment's as its site has it.  ``status`` is Nova's; ``lease`` the id of its lease, if told.

    ``started``: the digest (:func:`digest_of`) of what was last started on it, "" for nothing.
    """

    site: str
    id: str
    name: str
    status: str
    lease: str | None
    image_id: str
    started: str
    address: str | None
    fixed_address: str | None


@dataclass(frozen=True)
class Standing:
    """What stands, and what there is to be had.

    ``free``: (site, node type) -> nodes that are free for the whole time; one that is not named there is not at that
    site.  ``arches``: the same -> ``x86_64``, ``aarch64``, where the site tells.  ``images``: (site, the experiment's
    word for it) -> the image.  ``troubles``: site -> why it can't be used.
    """

    run: Run
    leases: tuple[StandingLease, ...] = ()
    nodes: tuple[StandingNode, ...] = ()
    free: Mapping[tuple[str, str], int] = field(default_factory=dict)
    arches: Mapping[tuple[str, str], str] = field(default_factory=dict)
    images: Mapping[tuple[str, str], Image] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeasePlan:
    """A lease that is asked for.  ``part`` of its name tells it from the run's others at the site."""

    key: str
    site: str
    node_type: str
    hosts: int
    part: str


@dataclass(frozen=True)
class NodePlan:
    """Where a node is or goes.

    ``lease`` is the id of one that stands, or the key of one of the plan's.  ``server_id`` is None where it is yet to
    be launched.  ``digest``: of what is to be started on it.
    """

    name: str
    role: str
    number: int
    site: str
    node_type: str
    lease: str
    from_image: Image
    server_id: str | None
    givers: dict[str, str]
    digest: str


@dataclass(frozen=True)
class Step:
    """One step.  ``about`` is the name of a node or the key of a lease; ``after``: the keys of steps that come first,
    and that must be done unless it is tried ``anyway``.

    A check that ``repairs`` puts, takes and starts all anew where it finds that the node does not do well.
    """

    key: str
    kind: StepKind
    site: str
    about: str
    text: str
    after: tuple[str, ...] = ()
    repairs: bool = False
    anyway: bool = False


@dataclass(frozen=True)
class Plan:
    """All that is to be done, in an order in which it could be done one by one; ``notes`` are for people."""

    experiment: str
    run_id: str
    leases: tuple[LeasePlan, ...]
    nodes: tuple[NodePlan, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]

    def node(self, name: str) -> NodePlan:
        return next(node for node in self.nodes if node.name == name)

    def lease(self, key: str) -> LeasePlan:
        return next(lease for lease in self.leases if lease.key == key)


class NoPlace(SageError):
    """No site of those named has room for some nodes."""


def make(
    experiment: Experiment,
    standing: Standing,
    *,
    slugs: Mapping[str, str],
    full: Mapping[tuple[str, str], str] | None = None,
) -> Plan:
    """What is to be done so that ``experiment`` stands.

    ``slugs``: site -> its slug, for leases' names.  ``full``: (site, node type) where no lease was to be had, whatever
    the listing says -> why.  Raises NoPlace.
    """
    wanted = experiments.nodes(experiment)
    notes: list[str] = []
    usable = {lease.id: lease for lease in standing.leases if lease.status in _LEASE_WELL | _LEASE_COMING}
    staying, drops = _sorted_out(standing, {node.name for node in wanted}, usable, notes)
    room = _room(standing, usable, {stands.id for stands in drops})
    search = _Search(standing, usable, room, dict(standing.free), full or {}, slugs)
    places: dict[str, NodePlan] = {}
    for group in experiment.groups:
        members = [node for node in wanted if node.role == group.role.name]
        for node in members:
            if node.name in staying:
                places[node.name] = _stays(experiment, group, node, staying[node.name], standing, notes)
        missing = [node for node in members if node.name not in staying]
        for node, (site, node_type, lease) in zip(missing, _find_room(search, group, len(missing)), strict=True):
            image = standing.images[site, group.image]
            places[node.name] = _placed(experiment, node, site, node_type, lease, image, None)

    steps = [_step_about(lease) for lease in standing.leases if lease.status not in _LEASE_WELL]
    dropped: dict[str, str] = {}  # node -> the step that makes room for it
    for stands, why in drops.items():
        key = f"{StepKind.DROP_NODE} {stands.name} {stands.id}"
        dropped[stands.name] = key
        text = f"delete {stands.name} at {stands.site} ({why})"
        steps.append(Step(key, StepKind.DROP_NODE, stands.site, stands.id, text))
    for asked in search.asked.values():
        after = tuple(step.key for step in steps if step.kind is StepKind.DROP_LEASE and step.site == asked.site)
        hosts = f"{asked.hosts} node{'s' if asked.hosts > 1 else ''}"
        text = f"lease {hosts} of type {asked.node_type} at {asked.site} for {experiment.seconds / 3600:g} h"
        steps.append(Step(asked.key, StepKind.LEASE, asked.site, asked.key, text, after))
    anew: set[str] = set()  # nodes on which something is started for certain
    for node in wanted:
        steps += _node_steps(experiment, places[node.name], staying.get(node.name), usable, dropped, anew)
    return Plan(
        experiment=experiment.name,
        run_id=standing.run.id,
        leases=tuple(search.asked.values()),
        nodes=tuple(places[node.name] for node in wanted),
        steps=tuple(steps),
        notes=tuple(notes),
    )


def digest_of(experiment: Experiment, node: Node) -> str:
    """Of all that makes a node what it is once it runs: what is put, taken and started there, and its variables."""
    group = experiment.group(node.role)
    role = group.role
    content = [
        node.name,
        [(put.to, put.mode, put.owner, put.sha256) for put in role.files],
        [command.run for command in role.start],
        products.to_data(role.needs),
        {kind: giver.name for kind, giver in experiments.givers_of(experiment, node).items()},
        sorted(({**role.variables, **group.variables}).items()),
        role.user,
        role.ports,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def text_of(plan: Plan) -> list[str]:
    """The plan for people, a line a step."""
    lines = [step.text for step in plan.steps]
    return [*(lines or ["nothing is to be done"]), *(f"note: {note}" for note in plan.notes)]


def _step_about(lease: StandingLease) -> Step:
    """What is to be done about a lease that is not active."""
    kind, words = StepKind.DROP_LEASE, "delete"
    if lease.status in _LEASE_COMING:
        kind, words = StepKind.WAIT_LEASE, "wait for"
    text = f"{words} lease {lease.name} at {lease.site} ({lease.status})"
    return Step(f"{kind} {lease.name}", kind, lease.site, lease.id, text)


def _sorted_out(
    standing: Standing, names: Collection[str], usable: Collection[str], notes: list[str]
) -> tuple[dict[str, StandingNode], dict[StandingNode, str]]:
    """Of the servers that stand, by name those that stay, and those that are to go, with the reason."""
    staying: dict[str, StandingNode] = {}
    drops: dict[StandingNode, str] = {}
    for stands in standing.nodes:
        if stands.status in _GONE:
            continue
        if stands.name not in names:
            notes.append(
                f"{stands.name} stands at {stands.site} and is not in the experiment; `fab node.delete` drops it"
            )
        elif stands.lease is not None and stands.lease not in usable:
            drops[stands] = "its lease is over"
        elif stands.status not in _WELL | _COMING:
            drops[stands] = stands.status
        elif stands.name in staying:
            drops[stands] = "there are two"
        else:
            staying[stands.name] = stands
    return staying, drops


def _room(standing: Standing, usable: Mapping[str, StandingLease], leaving: Collection[str]) -> dict[str, int]:
    """Lease's id -> how many of its hosts have no server, once those that leave are gone."""
    room = {lease.id: lease.hosts for lease in usable.values()}
    for stands in standing.nodes:
        if stands.lease in room and stands.status not in _GONE and stands.id not in leaving:
            room[stands.lease] -= 1
    return room


def _stays(
    experiment: Experiment, group: Group, node: Node, stands: StandingNode, standing: Standing, notes: list[str]
) -> NodePlan:
    """The plan of a node that stands; notes an image that is not what it would be launched from now."""
    node_type = next((lease.node_type for lease in standing.leases if lease.id == stands.lease), "")
    now = standing.images.get((stands.site, group.image))
    if now is not None and now.id == stands.image_id:
        image = now
    else:
        image = Image(stands.image_id, group.image, None)
        if now is not None:
            notes.append(f"{node.name} stands on the image {stands.image_id}; {group.image} is {now.id} now")
    return _placed(experiment, node, stands.site, node_type, stands.lease or "", image, stands.id)


def _placed(
    experiment: Experiment, node: Node, site: str, node_type: str, lease: str, image: Image, server_id: str | None
) -> NodePlan:
    return NodePlan(
        name=node.name,
        role=node.role,
        number=node.number,
        site=site,
        node_type=node_type,
        lease=lease,
        from_image=image,
        server_id=server_id,
        givers={kind: giver.name for kind, giver in experiments.givers_of(experiment, node).items()},
        digest=digest_of(experiment, node),
    )


@dataclass
class _Search:
    """Where there is room; what is found is taken off ``room`` and ``free``.  ``asked``: leases to be asked for."""

    standing: Standing
    usable: Mapping[str, StandingLease]
    room: dict[str, int]
    free: dict[tuple[str, str], int]
    full: Mapping[tuple[str, str], str]
    slugs: Mapping[str, str]
    asked: dict[tuple[str, str], LeasePlan] = field(default_factory=dict)


def _find_room(search: _Search, group: Group, number: int) -> list[tuple[str, str, str]]:
    """(site, node type, lease) for each of so many nodes.

    First what stands leased and is not used, then the first place with room for all of the rest.
    """
    found: list[tuple[str, str, str]] = []
    places = [(site, node_type) for site in group.sites for node_type in group.node_types]
    for site, node_type in places:
        for lease in search.usable.values():
            if (lease.site, lease.node_type) == (site, node_type) and (site, group.image) in search.standing.images:
                spare = min(search.room[lease.id], number - len(found))
                search.room[lease.id] -= spare
                found += [(site, node_type, lease.id)] * spare
    rest = number - len(found)
    if not rest:
        return found
    reasons: dict[str, None] = {}
    for place in places:
        reason = _why_not(search, group, place, rest)
        if reason is None:
            search.free[place] -= rest
            return found + [(*place, _ask_for(search, place, rest))] * rest
        reasons[reason] = None
    nodes = f"{rest} node{'s' if rest > 1 else ''} of the role {group.role.name!r}"
    raise NoPlace(
        f"there is no room for {nodes}: {'; '.join(reasons)}",
        hint="name more sites or node types, or begin later; `fab nodes.free` shows what is free",
    )


def _why_not(search: _Search, group: Group, place: tuple[str, str], number: int) -> str | None:
    """Why so many nodes of the group can't be had there; None where they can."""
    site, node_type = place
    standing, arch = search.standing, _ARCHES[group.role.arch]
    if site in standing.troubles:
        return f"{site}: {standing.troubles[site]}"
    if (site, group.image) not in standing.images:
        return f"{site} has no image {group.image}"
    if place in search.full:
        return search.full[place]
    if place not in search.free:
        return f"{site} has no nodes of type {node_type}"
    if standing.arches.get(place, arch) != arch:
        return f"{site}: {node_type} is {standing.arches[place]}, the role is for {arch}"
    if search.free[place] < number:
        return f"{site} has {search.free[place]} of type {node_type} free"
    return None


def _ask_for(search: _Search, place: tuple[str, str], number: int) -> str:
    """The key of the lease that is asked for at a place, so many nodes larger."""
    site, node_type = place
    asked = search.asked.get(place)
    if asked is None:
        taken = {lease.name for lease in search.standing.leases}
        part, count = node_type, 1
        while ledger.lease_name(search.standing.run, search.slugs[site], part) in taken:
            count += 1
            part = f"{node_type}-{count}"
        asked = LeasePlan(f"{StepKind.LEASE} {site} {part}", site, node_type, 0, part)
    search.asked[place] = replace(asked, hosts=asked.hosts + number)
    return asked.key


def _node_steps(
    experiment: Experiment,
    place: NodePlan,
    stands: StandingNode | None,
    usable: Mapping[str, StandingLease],
    dropped: Mapping[str, str],
    anew: set[str],
) -> list[Step]:
    """What is to be done about one node; adds to ``anew`` one on which something is started."""
    name, site = place.name, place.site
    steps: list[Step] = []

    def add(kind: StepKind, text: str, *after: str, what: str = "", repairs: bool = False) -> None:
        before = (steps[-1].key,) if steps else ()
        steps.append(Step(f"{kind} {name}{what}", kind, site, name, text, (*before, *after), repairs))

    if stands is None:
        waits = [dropped[name]] if name in dropped else []
        lease = usable.get(place.lease)
        if lease is None:
            waits.append(place.lease)  # the key of a step of this plan
        elif lease.status in _LEASE_COMING:
            waits.append(f"{StepKind.WAIT_LEASE} {lease.name}")
        what = f"{place.from_image.name} ({place.from_image.id})"
        add(StepKind.LAUNCH, f"launch {name} at {site} on {place.node_type}, image {what}", *waits)
    elif stands.status in _COMING:
        add(StepKind.WAIT_NODE, f"wait for {name} at {site} ({stands.status})")
    if stands is None or stands.address is None:
        add(StepKind.ADDRESS, f"give {name} a floating IP")
    role = experiment.group(place.role).role
    add(StepKind.REACH, f"wait until {name} answers by ssh")
    fresh = stands is None or stands.started != place.digest or any(giver in anew for giver in place.givers.values())
    if fresh:
        anew.add(name)
        if role.files or role.ports:
            add(StepKind.PUT, f"put {_counted(role.files, 'file')} on {name}" + _opening(role.ports))
        for kind, giver in place.givers.items():
            text = f"take the {kind} of {giver} for {name}"
            add(StepKind.TAKE, text, f"{StepKind.CHECK} {giver}", what=f" {kind}")
        add(StepKind.START, f"start {place.role} on {name}")
        add(StepKind.CHECK, f"check that {name} does well")
    else:
        givers = [f"{StepKind.CHECK} {giver}" for giver in place.givers.values()]
        add(StepKind.CHECK, f"check that {name} does well, or else start it anew", *givers, repairs=True)
    return steps


def _counted(rows: Sequence[object], word: str) -> str:
    return f"{len(rows)} {word}{'' if len(rows) == 1 else 's'}"


def _opening(ports: Sequence[int]) -> str:
    return f", open {_counted(ports, 'port')}" if ports else ""

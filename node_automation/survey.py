# SPDX-License-Identifier: Apache-2.0
"""What a plan has to know: what stands of an experiment, what is free at its sites, which images they have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site, SiteKind
from groundwork.errors import InputError, SageError
from image_builder import catalog
from node_automation import api, free, ledger, parallel, tagged
from node_automation.blazar import Lease
from node_automation.experiment import Experiment, Image
from node_automation.ledger import Entry, Kind, Run
from node_automation.plan import Standing, StandingLease, StandingNode
from node_automation.server import Server
from node_automation.tagged import Things

if TYPE_CHECKING:
    from openstack.connection import Connection

STARTED = "sage_started"  # metadata of a server: the digest of what was last started on it
DIGEST = "sha512:"  # begins an image that is named by its data
LOOK = 2.0  # seconds between two looks at what may yet appear
_SETTLED_AFTER = timedelta(seconds=30)  # an answer to a request takes less, and then what it made is listed
_UNTOLD = 10_000  # nodes that are free where a site does not tell; asking for a lease tells then


@dataclass(frozen=True)
class SiteFacts:
    """What one site tells.  ``free``: node type -> number; ``flavors``: a KVM site's flavors, by name their ids."""

    things: Things
    free: dict[str, int]
    arches: dict[str, str]
    flavors: dict[str, str]
    images: dict[str, Image]


def make(
    experiment: Experiment,
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    noted: Sequence[Entry],
) -> tuple[Standing, dict[str, Things]]:
    """What stands and what there is to be had; and what each site that answered has of ours.

    Asks ``sites``, all at once.  Raises the sites' own errors where none answers, and SageError where it can't be told
    what stands, for a site does not answer at which the ledger says that something may be.
    """
    found = parallel.at_most(len(sites), [partial(_ask, experiment, site, connections[site.name]) for site in sites])
    told = {site.name: facts for site, facts in zip(sites, found, strict=True) if isinstance(facts, SiteFacts)}
    troubles = {site.name: error for site, error in zip(sites, found, strict=True) if isinstance(error, SageError)}
    if not told:
        raise next(iter(troubles.values()))
    for entry in ledger.open_entries(noted, experiment=experiment.name):
        if entry.site in troubles:
            raise SageError(
                f"{entry.site} can't tell what stands there of {experiment.name}: {troubles[entry.site]}",
                hint="something of it may; run this again when the site answers",
            )
    run = choose_run(experiment.name, noted, [(site, told[site.name].things) for site in sites if site.name in told])
    leases: list[StandingLease] = []
    nodes: list[StandingNode] = []
    for site in sites:
        if site.name in told:
            some_leases, some_nodes = _standing(site, told[site.name], run)
            leases += some_leases
            nodes += some_nodes
    standing = Standing(
        run=run,
        leases=tuple(leases),
        nodes=tuple(nodes),
        free={(name, kind): number for name, facts in told.items() for kind, number in facts.free.items()},
        arches={(name, kind): arch for name, facts in told.items() for kind, arch in facts.arches.items()},
        images={(name, word): image for name, facts in told.items() for word, image in facts.images.items()},
        troubles={name: str(error) for name, error in troubles.items()},
    )
    return standing, {name: facts.things for name, facts in told.items()}


def unsettled(
    experiment: str, noted: Iterable[Entry], things: Iterable[tuple[Site, Things]], now: datetime
) -> tuple[Entry, ...]:
    """What a run that was killed had asked for a moment ago: it may yet appear at its site.  Pure."""
    answered = list(things)
    told = [entry for site, found in answered for entry in found.entries(site)]
    asked = {site.name for site, _ in answered}
    since = ledger.written(now - _SETTLED_AFTER)
    return tuple(
        entry
        for entry in ledger.together(noted, told)
        if entry.open
        and entry.id is None
        and entry.experiment == experiment
        and entry.site in asked
        and entry.made_at > since
    )


def set_right(state: Path, experiment: str, sites: Iterable[Site], things: Mapping[str, Things]) -> None:
    """Note the ids of what a killed run had asked for, and strike what never came to be; when all is settled."""
    noted = ledger.read(state)
    told = [entry for site in sites if site.name in things for entry in things[site.name].entries(site)]
    unknown = {entry.key for entry in noted if entry.id is None}
    for entry in ledger.together(noted, told):
        if entry.key in unknown and entry.open and entry.experiment == experiment and entry.site in things:
            if entry.id is not None:
                ledger.change(state, entry.key, id=entry.id)
            else:
                ledger.release(state, [entry.key])


def stands(experiment: str, noted: Iterable[Entry], things: Iterable[tuple[Site, Things]]) -> bool:
    """Whether anything of an experiment stands, or may stand.  Pure."""
    told = [entry for site, found in things for entry in found.entries(site)]
    return any(
        entry.open and entry.experiment == experiment and entry.kind is not Kind.IMAGE
        for entry in ledger.together(noted, told)
    )


def choose_run(experiment: str, noted: Iterable[Entry], things: Iterable[tuple[Site, Things]]) -> Run:
    """The run that goes on: the one of which most stands, of the ledger's or of another machine's; else a new one."""
    told = [entry for site, found in things for entry in found.entries(site)]
    count: dict[Run, int] = {}
    for entry in ledger.together(noted, told):
        if entry.open and entry.experiment == experiment:
            count[entry.run] = count.get(entry.run, 0) + 1
    return max(count, key=lambda run: (count[run], run.id)) if count else ledger.new_run(experiment)


def find_image(connection: "Connection", word: str) -> Image | None:
    """The image that a site has by this name, id, or ``sha512:`` and digest; None where it has none that is active.

    Raises InputError where it has several by that name.
    """
    if word.startswith(DIGEST):
        found = catalog.with_digest(connection, word.removeprefix(DIGEST))
    else:
        found = (*catalog.find(connection, word), *catalog.name_holders(connection, word))
    usable = {image.id: image for image in found if image.status == "active"}
    if len(usable) > 1 and not word.startswith(DIGEST):  # of the same data any will do
        raise InputError(
            f"{api.site_of(connection)} has several images {word!r}", hint=f"name one by its id: {', '.join(usable)}"
        )
    return next((_image(image) for image in usable.values()), None)


def _image(image: catalog.SiteImage) -> Image:
    return Image(image.id, image.name, image.os_hash_value if image.os_hash_algo == "sha512" else None)


def _ask(experiment: Experiment, site: Site, connection: "Connection | SageError") -> SiteFacts:
    if isinstance(connection, SageError):
        raise connection
    groups = [group for group in experiment.groups if site.name in group.sites]
    wanted = {node_type for group in groups for node_type in group.node_types}
    words = {group.image: group.images.get(site.name, group.image) for group in groups}
    flavors = {}
    if site.kind is SiteKind.KVM:
        rows = api.rows(connection, api.Service.COMPUTE, "/flavors?limit=1000", "flavors")
        flavors = {str(row.get("name")): str(row.get("id")) for row in rows}
    numbers, arches = _free(connection, site, wanted, experiment.seconds, flavors)
    images = {}
    for name, word in words.items():
        image = find_image(connection, word)
        if image is not None:
            images[name] = image
    return SiteFacts(tagged.look(connection, site), numbers, arches, flavors, images)


def _free(
    connection: "Connection", site: Site, wanted: Iterable[str], seconds: int, flavors: Mapping[str, str]
) -> tuple[dict[str, int], dict[str, str]]:
    if site.kind is SiteKind.KVM:
        return {name: _UNTOLD for name in wanted if name in flavors}, {}
    try:
        rows = free.ask(connection, site, datetime.now(timezone.utc), timedelta(seconds=seconds))
    except SageError as error:
        if not isinstance(error.__cause__, api.Refused):
            raise
        return dict.fromkeys(wanted, _UNTOLD), {}
    return {row.node_type: row.free for row in rows}, {row.node_type: row.arch for row in rows if row.arch}


def _standing(site: Site, facts: SiteFacts, run: Run) -> tuple[list[StandingLease], list[StandingNode]]:
    names_of = {flavor_id: name for name, flavor_id in facts.flavors.items()}
    lease_of: dict[str, str] = {}
    leases = []
    for lease in facts.things.leases:
        if ledger.run_of_lease(lease.name, site.slug) == run:
            lease_of |= {part.id: lease.id for part in lease.reservations}
            leases.append(_lease(site, lease, names_of))
    nodes = [_node(site, one, lease_of) for one in facts.things.servers if one.run == run]
    return leases, nodes


def _lease(site: Site, lease: Lease, names_of: Mapping[str, str]) -> StandingLease:
    kind = lease.nodes[0].node_type if lease.nodes else ""
    return StandingLease(
        site=site.name,
        id=lease.id,
        name=lease.name,
        status=lease.status,
        node_type=names_of.get(kind, kind),
        hosts=lease.hosts,
        ends_at=lease.ends_at,
    )


def _node(site: Site, one: Server, lease_of: Mapping[str, str]) -> StandingNode:
    # A reservation that no lease has any more is named as it is: the node stands on what is over.
    lease = lease_of.get(one.reservation, one.reservation) if one.reservation else None
    return StandingNode(
        site=site.name,
        id=one.id,
        name=one.name,
        status="DELETED" if one.task == "deleting" else one.status,
        lease=lease,
        image_id=one.image_id,
        started=one.metadata.get(STARTED, ""),
        address=one.floating_ip,
        fixed_address=one.fixed_ip,
    )

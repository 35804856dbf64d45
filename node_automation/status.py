# SPDX-License-Identifier: Apache-2.0
"""What stands at the sites, asked of all at once: leases, nodes, floating IPs, time left, and node hours."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site
from groundwork.errors import SageError
from image_builder.publication import Problem
from node_automation import ledger, parallel, tagged
from node_automation.blazar import Lease
from node_automation.ledger import Entry, Kind
from node_automation.server import Server
from node_automation.steps import problem_of
from node_automation.tagged import Things

if TYPE_CHECKING:
    from openstack.connection import Connection

ROLE = "sage_role"  # metadata of a server


@dataclass(frozen=True)
class NodeRow:
    """A node, as ``fab status`` tells it.  ``seconds_left``: of its lease, None where that is not known."""

    experiment: str
    run_id: str
    node: str
    role: str
    site: str
    node_type: str
    status: str
    fault: str
    address: str | None
    fixed_address: str | None
    seconds_left: float | None


@dataclass(frozen=True)
class LeaseRow:
    """A lease, with what it has cost up to now: hosts times the hours for which they were held."""

    experiment: str
    run_id: str
    lease: str
    site: str
    node_type: str
    hosts: int
    status: str
    ends_at: str | None
    seconds_left: float | None
    node_hours: float


@dataclass(frozen=True)
class OtherRow:
    """What else stands, or may stand.  ``id`` is None where the ledger does not know it; ``state`` is for people."""

    experiment: str
    run_id: str
    kind: Kind
    name: str
    site: str
    id: str | None
    state: str


@dataclass(frozen=True)
class SiteProblem:
    """A site that could not be asked."""

    site: str
    problem: Problem


@dataclass(frozen=True)
class Status:
    """What stands at all sites that were asked.  ``node_hours``: of ended runs too, while the ledger has them."""

    nodes: tuple[NodeRow, ...]
    leases: tuple[LeaseRow, ...]
    others: tuple[OtherRow, ...]
    problems: tuple[SiteProblem, ...]
    node_hours: float


def look(sites: Sequence[Site], connections: "Mapping[str, Connection | SageError]") -> dict[str, Things | SageError]:
    """All that is ours at each of ``sites``, which are asked at the same time; the error where one does not tell."""

    def ask(site: Site) -> Things:
        connection = connections[site.name]
        if isinstance(connection, SageError):
            raise connection
        return tagged.look(connection, site)

    found = parallel.at_most(len(sites), [partial(ask, site) for site in sites]) if sites else []
    return {site.name: things for site, things in zip(sites, found, strict=True)}


def of(
    sites: Sequence[Site],
    things: Mapping[str, Things | SageError],
    noted: Iterable[Entry],
    now: datetime,
    experiment: str | None = None,
) -> Status:
    """Pure: the status out of what the sites tell (:func:`look`) and the ledger has; of one experiment, or all."""
    answers = [(site, found) for site in sites if isinstance(found := things[site.name], Things)]
    told = [entry for site, found in answers for entry in found.entries(site)]
    every = [entry for entry in ledger.together(noted, told) if experiment in (None, entry.experiment)]
    by_id = {entry.id: entry for entry in reversed(every) if entry.open}  # the ledger's stand first, and know more
    nodes: list[NodeRow] = []
    leases: list[LeaseRow] = []
    for _, found in answers:
        ends = {part.id: lease.ends_at for lease in found.leases for part in lease.reservations}
        leases += (_lease_row(lease, by_id[lease.id], now) for lease in found.leases if lease.id in by_id)
        for one in found.servers:
            if one.id in by_id:
                nodes.append(_node_row(one, by_id[one.id], ends.get(one.reservation or ""), now))
    return Status(
        nodes=tuple(sorted(nodes, key=lambda row: (row.experiment, row.run_id, row.node))),
        leases=tuple(sorted(leases, key=lambda row: (row.experiment, row.run_id, row.lease))),
        others=tuple(_others(every, {site.name for site, _ in answers}, {entry.id for entry in told})),
        problems=tuple(
            SiteProblem(name, problem_of(error)) for name, error in things.items() if isinstance(error, SageError)
        ),
        node_hours=round(sum(ledger.node_hours(entry, now) for entry in every if entry.id is not None), 2),
    )


def _lease_row(lease: Lease, entry: Entry, now: datetime) -> LeaseRow:
    entry = replace(entry, starts_at=lease.starts_at, ends_at=lease.ends_at, hosts=lease.hosts)
    return LeaseRow(
        experiment=entry.experiment,
        run_id=entry.run_id,
        lease=lease.name,
        site=entry.site,
        node_type=entry.node_type,
        hosts=lease.hosts,
        status=lease.status,
        ends_at=lease.ends_at,
        seconds_left=ledger.seconds_left(entry, now),
        node_hours=round(ledger.node_hours(entry, now), 2),
    )


def _node_row(one: Server, entry: Entry, ends_at: str | None, now: datetime) -> NodeRow:
    return NodeRow(
        experiment=entry.experiment,
        run_id=entry.run_id,
        node=one.name,
        role=one.metadata.get(ROLE, ""),
        site=entry.site,
        node_type=one.node_type or entry.node_type,
        status=one.status,
        fault=one.fault,
        address=one.floating_ip,
        fixed_address=one.fixed_ip,
        seconds_left=ledger.seconds_left(replace(entry, ends_at=ends_at), now),
    )


def _others(every: Iterable[Entry], answered: set[str], standing: set[str | None]) -> Iterator[OtherRow]:
    for entry in every:
        if not entry.open or entry.kind is Kind.IMAGE:
            continue
        state = "stands"
        if entry.site not in answered:
            state = "perhaps: its site was not asked, or does not answer"
        elif entry.id not in standing:
            state = "noted, but not at the site; `fab gc` strikes it out"
        elif entry.kind in (Kind.LEASE, Kind.SERVER):
            continue  # it has a row of its own
        yield OtherRow(entry.experiment, entry.run_id, entry.kind, entry.name, entry.site, entry.id, state)


def tables(status: Status) -> list[tuple[str, list[str], list[list[str]]]]:
    """What people read: a title, headings and rows for each table that has any."""
    found = []
    if status.nodes:
        rows = [
            [
                row.node,
                row.role,
                row.site,
                row.node_type,
                row.status + (f": {row.fault}" if row.fault else ""),
                row.address or row.fixed_address or "",
                span(row.seconds_left),
            ]
            for row in status.nodes
        ]
        found.append(("nodes", ["node", "role", "site", "type", "state", "address", "time left"], rows))
    if status.leases:
        rows = [
            [
                row.lease,
                row.site,
                row.node_type,
                str(row.hosts),
                row.status,
                span(row.seconds_left),
                f"{row.node_hours:.1f}",
            ]
            for row in status.leases
        ]
        found.append(("leases", ["lease", "site", "type", "nodes", "state", "time left", "node hours"], rows))
    if status.others:
        rows = [[str(row.kind), row.name, row.site, row.id or "", row.state] for row in status.others]
        found.append(("besides", ["kind", "name", "site", "id", "state"], rows))
    return found


def span(seconds: float | None) -> str:
    """A length of time for people: ``2 d 3 h``, ``3 h 20 min``, ``7 min``."""
    if seconds is None:
        return ""
    minutes = int(seconds // 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"

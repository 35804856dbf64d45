# SPDX-License-Identifier: Apache-2.0
"""What is free where, by site and node type: the hosts that Blazar has, less those that are leased at that time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site, SiteKind
from groundwork.errors import InputError, SageError
from image_builder.publication import Problem
from node_automation import api, blazar, ledger, parallel
from node_automation.api import Refused, Service
from node_automation.blazar import Allocation, Host

if TYPE_CHECKING:
    from openstack.connection import Connection


@dataclass(frozen=True)
class FreeNodes:
    """One node type at one site: how many there are, how many are free for the whole span that was asked for.

    ``next_at``: when the next one becomes free; UTC, RFC 3339, or None where one is free, or that is not known.
    """

    site: str
    node_type: str
    arch: str
    total: int
    free: int
    next_at: str | None


@dataclass(frozen=True)
class SiteNodes:
    """What one site has; ``problem`` where it does not tell."""

    site: str
    nodes: tuple[FreeNodes, ...]
    problem: Problem | None


def count(
    site: str,
    hosts: Iterable[Host],
    allocations: Iterable[Allocation],
    begin: datetime,
    length: timedelta,
    node_type: str | None = None,
) -> tuple[FreeNodes, ...]:
    """What is free at a site from ``begin`` on for ``length``, by node type; pure."""
    first, last = ledger.written(begin), ledger.written(begin + length)
    taken: dict[str, list[Allocation]] = {}
    for allocation in allocations:
        if allocation.starts_at < last and allocation.ends_at > first:
            taken.setdefault(allocation.host_id, []).append(allocation)
    by_type: dict[tuple[str, str], list[Host]] = {}
    for host in hosts:
        if host.reservable and node_type in (None, host.node_type):
            by_type.setdefault((host.node_type, host.arch), []).append(host)
    found = []
    for (kind, arch), group in sorted(by_type.items()):
        busy = [host for host in group if host.id in taken]
        ends = [max(allocation.ends_at for allocation in taken[host.id]) for host in busy]
        free = len(group) - len(busy)
        found.append(FreeNodes(site, kind, arch, len(group), free, min(ends) if ends and not free else None))
    return tuple(found)


def ask(
    connection: "Connection", site: Site, begin: datetime, length: timedelta, node_type: str | None = None
) -> tuple[FreeNodes, ...]:
    """What is free at a site.  At a KVM site: its flavors, of which it does not tell how many are free."""
    if site.kind is SiteKind.KVM:
        rows = api.rows(connection, Service.COMPUTE, "/flavors?limit=1000", "flavors")
        flavors = sorted(str(row.get("name")) for row in rows)
        return tuple(
            FreeNodes(site.name, name, "", 0, 0, None)
            for name in flavors
            if node_type in (None, name) and not name.startswith("reservation:")
        )
    try:
        hosts, allocations = blazar.list_hosts(connection), blazar.list_allocations(connection)
    except Refused as refused:
        if refused.code != 403:
            raise
        raise SageError(
            f"{site.name} does not tell this project which nodes are leased", hint="its web page has a host calendar"
        ) from refused
    return count(site.name, hosts, allocations, begin, length, node_type)


def at_all_sites(
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    begin: datetime,
    length: timedelta,
    node_type: str | None = None,
) -> tuple[SiteNodes, ...]:
    """What is free at each site, in their order; a site's problem stands in its row."""

    def work(site: Site) -> tuple[FreeNodes, ...]:
        connection = connections[site.name]
        if isinstance(connection, SageError):
            raise connection
        return ask(connection, site, begin, length, node_type)

    answers = parallel.at_most(len(sites), [partial(work, site) for site in sites])
    return tuple(
        SiteNodes(site.name, (), Problem(str(answer), answer.hint, isinstance(answer, InputError)))
        if isinstance(answer, SageError)
        else SiteNodes(site.name, answer, None)
        for site, answer in zip(sites, answers, strict=True)
    )

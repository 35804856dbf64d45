# SPDX-License-Identifier: Apache-2.0
"""What stands at a site and is ours, told by names and tags: for when the ledger is lost, or on another machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chameleon_sites.sites import Site
from node_automation import address, api, blazar, ledger, server
from node_automation.address import FloatingIP
from node_automation.api import Service
from node_automation.blazar import Lease, LeaseStatus
from node_automation.ledger import Entry, Kind, Run
from node_automation.server import Server

if TYPE_CHECKING:
    from openstack.connection import Connection


@dataclass(frozen=True)
class Things:
    """What one site lists of this project: all servers and leases of ours, all floating IPs and security groups."""

    project_id: str
    leases: tuple[Lease, ...] = ()
    servers: tuple[Server, ...] = ()
    addresses: tuple[FloatingIP, ...] = ()
    groups: tuple[dict[str, Any], ...] = ()

    def entries(self, site: Site) -> tuple[Entry, ...]:
        """What is ours of it, as entries of a ledger."""
        return entries(
            site,
            self.project_id,
            leases=self.leases,
            servers=self.servers,
            addresses=self.addresses,
            groups=self.groups,
        )


def look(connection: "Connection", site: Site) -> Things:
    """Ask a site.  Raises SiteError where a list can't be had; then nothing is known."""
    groups = api.rows(connection, Service.NETWORK, "/security-groups", "security_groups")
    return Things(
        str(connection.current_project_id or ""),
        leases=tuple(
            lease for lease in blazar.list_leases(connection) if ledger.run_of_lease(lease.name, site.slug) is not None
        ),
        servers=server.list_ours(connection),
        addresses=address.list_all(connection),
        groups=tuple(row for row in groups if str(row.get("name", "")).startswith(ledger.PREFIX)),
    )


def find_tagged(connection: "Connection", site: Site) -> tuple[Entry, ...]:
    """All that stands at the site and was made here, by whichever machine, as entries of a ledger.

    Leases that are over are none.  Snapshots are not told: they are the user's.  Raises as :func:`look` does.
    """
    return look(connection, site).entries(site)


def entries(
    site: Site,
    project_id: str,
    *,
    leases: Iterable[Lease] = (),
    servers: Iterable[Server] = (),
    addresses: Iterable[FloatingIP] = (),
    groups: Iterable[dict[str, Any]] = (),
) -> tuple[Entry, ...]:
    """The entries for what was listed; pure.  A key is the thing's own id, so that it is the same each time."""
    found: list[Entry] = []

    def add(run: Run, kind: Kind, name: str, thing_id: str, made_at: str, **more: Any) -> None:
        found.append(
            Entry(
                f"site:{thing_id}", site.name, project_id, kind, name, run.experiment, run.id, made_at, thing_id, **more
            )
        )

    for lease in leases:
        run = ledger.run_of_lease(lease.name, site.slug)
        if run is not None and lease.status != LeaseStatus.TERMINATED:
            node_type = lease.nodes[0].node_type if lease.nodes else ""
            add(
                run,
                Kind.LEASE,
                lease.name,
                lease.id,
                lease.starts_at,
                node_type=node_type,
                starts_at=lease.starts_at,
                ends_at=lease.ends_at,
                hosts=lease.hosts,
            )
    for one in servers:
        if one.run is not None:
            add(
                one.run,
                Kind.SERVER,
                one.name,
                one.id,
                one.created_at,
                node=one.name,
                node_type=one.node_type,
                reservation=one.reservation,
            )
    for ip in addresses:
        if ip.run is not None:
            add(ip.run, Kind.FLOATING_IP, ledger.tag(ip.run), ip.id, "")
    for group in groups:
        run = ledger.run_of_tag(str(group.get("description") or ""))
        if run is not None:
            add(run, Kind.SECURITY_GROUP, str(group["name"]), str(group["id"]), "")
    return tuple(found)

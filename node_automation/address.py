# SPDX-License-Identifier: Apache-2.0
"""Floating IPs: those of a lease, those of the common pool, bound to a server and given back.

A lease's own carry the tag ``reservation:<id>`` and go with the lease.  One of the common pool is ours by its
description and its tag, ``sage_run=<experiment>/<run id>``, and stands in the ledger before it is made.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_sites.cloud import SiteError
from groundwork import files
from groundwork.errors import SageError
from node_automation import api, ledger, names
from node_automation.api import Gone, Refused, Service
from node_automation.blazar import NoFloatingIP
from node_automation.ledger import Kind, Run

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_CHOOSING = 60.0  # seconds for another run of this machine to choose and bind one


class NotBound(SiteError):
    """A floating IP that can't be bound to a server."""


@dataclass(frozen=True)
class FloatingIP:
    """A floating IP of this project.  ``port_id``: where it is bound, or None."""

    id: str
    address: str
    port_id: str | None
    fixed_address: str | None
    status: str
    tags: tuple[str, ...]
    description: str

    @property
    def reservation(self) -> str | None:
        """The id of the reservation that it is part of."""
        return next((tag.partition(":")[2] for tag in self.tags if tag.startswith("reservation:")), None)

    @property
    def run(self) -> Run | None:
        """The run that it was made by; None where it is none of ours, or a lease's."""
        return next((run for text in (*self.tags, self.description) if (run := ledger.run_of_tag(text))), None)


def list_all(connection: "Connection") -> tuple[FloatingIP, ...]:
    """All floating IPs of this project."""
    found = api.rows(
        connection, Service.NETWORK, f"/floatingips?project_id={connection.current_project_id}", "floatingips"
    )
    return tuple(read(row) for row in found)


def read(row: dict[str, Any]) -> FloatingIP:
    """A floating IP out of Neutron's document."""
    return FloatingIP(
        id=str(row["id"]),
        address=str(row.get("floating_ip_address") or ""),
        port_id=row.get("port_id") or None,
        fixed_address=row.get("fixed_ip_address") or None,
        status=str(row.get("status") or ""),
        tags=tuple(map(str, row.get("tags") or ())),
        description=str(row.get("description") or ""),
    )


def choose(addresses: Iterable[FloatingIP], reservation: str | None, run: Run) -> FloatingIP | None:
    """A free one: of the reservation, else one of the common pool that this run made; pure."""
    free = [address for address in addresses if address.port_id is None]
    for address in free:
        if reservation is not None and address.reservation == reservation:
            return address
    return next((address for address in free if address.run == run), None)


def give(
    connection: "Connection",
    server_id: str,
    *,
    run: Run,
    node: str,
    state: Path,
    reservation: str | None = None,
    ad_hoc: bool = True,
) -> FloatingIP:
    """A floating IP for a server: the one that it has, a free one of the lease, or one of the common pool.

    ``ad_hoc``: whether the common pool may be asked.  Raises NoFloatingIP and NotBound.
    """
    site = api.site_of(connection)
    port = _port(connection, server_id, node)
    # Neutron would take a bound one from its server without a word: one at a time chooses and binds.
    with files.lock(state / f"nodes/addresses-{site.replace('@', '_').lower()}.lock", wait=_CHOOSING):
        addresses = list_all(connection)
        bound = next((address for address in addresses if address.port_id == port), None)
        if bound is not None:
            return bound
        chosen = choose(addresses, reservation, run)
        if chosen is None:
            if not ad_hoc:
                raise NoFloatingIP(
                    f"{site}: the lease has no free floating IP for {node}",
                    hint="ask for more with the lease (--floating-ips), or allow one of the common pool",
                )
            chosen = make(connection, run=run, node=node, state=state)
        return bind(connection, chosen, port, node)


def make(connection: "Connection", *, run: Run, node: str, state: Path) -> FloatingIP:
    """One of the common pool.  Raises NoFloatingIP where it has none, or the project may have no more."""
    site = api.site_of(connection)
    network = names.public_network_id(connection)
    tag = ledger.tag(run)
    entry = ledger.begin(
        state,
        ledger.new_entry(run, site, str(connection.current_project_id or ""), Kind.FLOATING_IP, tag, node=node),
    )
    # The description is there from the first moment on; tags take a second request.
    wanted = {"floatingip": {"floating_network_id": network, "description": tag}}
    try:
        found = api.ask(connection, Service.NETWORK, "POST", "/floatingips", wanted)
    except Refused as refused:
        ledger.release(state, [entry.key])
        raise explain(site, refused) from refused
    made = read(found["floatingip"])
    ledger.change(state, entry.key, id=made.id)
    api.ask(connection, Service.NETWORK, "PUT", f"/floatingips/{made.id}/tags", {"tags": [tag]})
    return made


def bind(connection: "Connection", chosen: FloatingIP, port: str, node: str) -> FloatingIP:
    """Bind a floating IP to a port.  Raises NotBound."""
    site = api.site_of(connection)
    try:
        found = api.ask(
            connection, Service.NETWORK, "PUT", f"/floatingips/{chosen.id}", {"floatingip": {"port_id": port}}
        )
    except Refused as refused:
        unreachable = "not reachable from subnet" in refused.said.lower()
        raise NotBound(
            f"{site}: the floating IP {chosen.address} can't be bound to {node}: {refused.said}",
            hint="its network needs a router to the public network; sharednet1 has one"
            if unreachable
            else "`fab node.delete` and launch it again, or bind one by hand",
        ) from refused
    return read(found["floatingip"])


def release(connection: "Connection", address_id: str, state: Path) -> None:
    """Give back one of the common pool; one that is gone already is no error."""
    try:
        api.ask(connection, Service.NETWORK, "DELETE", f"/floatingips/{address_id}")
    except Gone:
        logger.debug("the floating IP %s is gone already", address_id)
    ledger.release(state, [entry.key for entry in ledger.read(state) if entry.id == address_id])


def explain(site: str, refused: Refused) -> SageError:
    """Our error for one of Neutron's about a floating IP."""
    words = refused.said.lower()
    if "quota" in words:
        return NoFloatingIP(
            f"{site}: the project may have no more floating IPs: {refused.said}",
            hint="release some (`fab gc` gives back those of ended experiments), or ask for them with the lease",
        )
    if "no more ip addresses" in words or "no available" in words or "not enough" in words:
        return NoFloatingIP(
            f"{site} has no floating IP left: {refused.said}",
            hint="ask for them with the lease (--floating-ips): leased ones are another pool; or try another site",
        )
    return refused


def ports_of(connection: "Connection", server_id: str) -> Sequence[dict[str, Any]]:
    """The server's ports, as Neutron tells them."""
    return api.rows(connection, Service.NETWORK, f"/ports?device_id={server_id}", "ports")


def _port(connection: "Connection", server_id: str, node: str) -> str:
    for port in ports_of(connection, server_id):
        if port.get("fixed_ips"):
            return str(port["id"])
    raise NotBound(
        f"{api.site_of(connection)}: {node} has no port with an address",
        hint="wait until the server is ACTIVE; if it is, delete it and launch it again",
    )

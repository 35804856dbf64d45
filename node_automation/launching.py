# SPDX-License-Identifier: Apache-2.0
"""Nodes from a lease: server, floating IP, first login; several at once, at most three of a site."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site
from groundwork.compat import StrEnum
from groundwork.errors import SageError
from node_automation import address, parallel, reach, server
from node_automation.server import Resolved, Server, ServerRequest
from node_automation.ssh import Target

if TYPE_CHECKING:
    from openstack.connection import Connection


class AddressFrom(StrEnum):
    """Where a node's floating IP comes from."""

    LEASE = "lease"  # from the lease alone
    ANY = "any"  # from the lease, or where it has none free, from the common pool
    AD_HOC = "ad-hoc"  # from the common pool
    NONE = "none"


@dataclass(frozen=True)
class Launched:
    """A node that stands.  ``address`` None: it has no floating IP; ``target`` None: no login was tried."""

    node: str
    site: str
    server_id: str
    address: str | None
    target: Target | None


@dataclass(frozen=True)
class Wishes:
    """What is done of each server.  ``reservation``: that of the lease's floating IPs.  ``identity``: whom to log in
    with, None: no login is tried."""

    address_from: AddressFrom = AddressFrom.ANY
    reservation: str | None = None
    identity: Path | None = None


def launch_all(
    connection: "Connection",
    site: Site,
    requests: Sequence[ServerRequest],
    wishes: Wishes,
    *,
    state: Path,
    tell: Callable[[str, str], None] = lambda node, state: None,
    stop: threading.Event | None = None,
) -> list[Launched | SageError]:
    """Launch nodes; each one's result or error, in their order.  ``tell`` gets a node's name and how far it is."""
    stopped = stop if stop is not None else threading.Event()
    ids = server.resolver(connection, site)
    works = [
        partial(
            _launch, connection, site, request, wishes, ids, state=state, tell=partial(tell, request.node), stop=stopped
        )
        for request in requests
    ]
    return parallel.at_most(parallel.LAUNCHES, works, stop=stopped, where=site.name)


def _launch(
    connection: "Connection",
    site: Site,
    request: ServerRequest,
    wishes: Wishes,
    ids: Callable[[ServerRequest], Resolved],
    *,
    state: Path,
    tell: Callable[[str], None],
    stop: threading.Event,
) -> Launched:
    one = server.launch(connection, site, request, state=state, ids=ids, tell=tell, stop=stop)
    where = None
    if wishes.address_from is not AddressFrom.NONE:
        tell("floating IP")
        where = address.give(
            connection,
            one.id,
            run=request.run,
            node=request.node,
            state=state,
            reservation=None if wishes.address_from is AddressFrom.AD_HOC else wishes.reservation,
            ad_hoc=wishes.address_from is not AddressFrom.LEASE,
        ).address
    target = None
    if wishes.identity is not None and where is not None:
        target = reach.reach(
            connection,
            one.id,
            wishes.identity,
            deadline=reach.WITHIN.get(site.kind, 300.0),
            address=where,
            tell=tell,
            stop=stop,
        )
    return Launched(request.node, site.name, one.id, where, target)


def take_away(connection: "Connection", one: Server, *, state: Path) -> None:
    """Delete a node's server, and give back the floating IP that it has of the common pool."""
    ports = {str(port.get("id")) for port in address.ports_of(connection, one.id)}
    own = [ip.id for ip in address.list_all(connection) if ip.run is not None and ip.port_id in ports]
    server.delete(connection, one.id, state=state)
    for address_id in own:
        address.release(connection, address_id, state)

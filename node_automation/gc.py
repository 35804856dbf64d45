# SPDX-License-Identifier: Apache-2.0
"""What no run can use any more, and how it is given back: by the ledger, and by names and tags at the sites.

A run lives at a site while it has a lease there that is neither over nor in ERROR, or, without leases, a server that is
not in ERROR.  What is of a run that does not live is garbage, and so is each lease and server in ERROR.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site
from groundwork.errors import SageError
from image_builder.publication import Problem
from node_automation import address, blazar, ledger, server
from node_automation import lease as leases
from node_automation.api import Gone
from node_automation.blazar import LeaseStatus
from node_automation.ledger import Entry, Kind, Run
from node_automation.tagged import Things

if TYPE_CHECKING:
    from openstack.connection import Connection

# In this order: a floating IP is free once its server is gone, and a security group when no server has it.
ORDER = (Kind.SERVER, Kind.FLOATING_IP, Kind.SECURITY_GROUP, Kind.LEASE)
_YOUNG = timedelta(minutes=30)  # what a run may just be making
_OVER = {LeaseStatus.ERROR, LeaseStatus.TERMINATED, LeaseStatus.TERMINATING, LeaseStatus.DELETING}


@dataclass(frozen=True)
class Sweep:
    """What is to be done at a site.  ``give_back``: in this order; ``vanished``: entries of what is there no more."""

    site: str
    give_back: tuple[Entry, ...]
    vanished: tuple[Entry, ...]


@dataclass(frozen=True)
class Swept:
    """What came of one entry; ``problem`` None where it is given back."""

    entry: Entry
    problem: Problem | None


def plan(
    site: Site,
    things: Things,
    noted: Iterable[Entry],
    *,
    experiment: str | None = None,
    everything: bool = False,
    now: datetime | None = None,
) -> Sweep:
    """What to give back at a site, of one experiment or of all; pure.

    ``noted``: the ledger's entries.  ``everything``: also what a living run has.
    """
    told = [entry for entry in things.entries(site) if experiment in (None, entry.experiment)]
    alive = living(site, things)
    broken = {one.id for one in things.servers if one.status == "ERROR"}
    broken |= {one.id for one in things.leases if one.status in _OVER}
    doomed = [entry for entry in told if everything or entry.run not in alive or entry.id in broken]
    here = {entry.id for entry in things.entries(site)}
    names = {(entry.kind, entry.name, entry.run) for entry in things.entries(site)}
    young = ledger.written((now or datetime.now(timezone.utc)) - _YOUNG)
    vanished = [
        entry
        for entry in ledger.open_entries(noted, site=site.name, experiment=experiment)
        if entry.kind in ORDER
        and (
            entry.id not in here
            if entry.id is not None
            else (entry.kind, entry.name, entry.run) not in names and entry.made_at < young
        )
    ]
    ordered = sorted(doomed, key=lambda entry: (ORDER.index(entry.kind), entry.name))
    return Sweep(site.name, tuple(ordered), tuple(vanished))


def living(site: Site, things: Things) -> set[Run]:
    """The runs that live at a site; pure."""
    alive = {
        run
        for lease in things.leases
        if lease.status not in _OVER and (run := ledger.run_of_lease(lease.name, site.slug)) is not None
    }
    leased = {run for lease in things.leases if (run := ledger.run_of_lease(lease.name, site.slug)) is not None}
    # At a KVM site a server may have no lease; one that names a reservation lives by it.
    alive |= {
        one.run
        for one in things.servers
        if one.run is not None and one.run not in leased and one.reservation is None and one.status != "ERROR"
    }
    return alive


def carry_out(
    connection: "Connection", sweep: Sweep, state: Path, *, tell: Callable[[str], None] = lambda text: None
) -> tuple[Swept, ...]:
    """Give it all back; what fails stops nothing else."""
    ledger.release(state, [entry.key for entry in sweep.vanished])
    results = []
    for entry in sweep.give_back:
        tell(f"{entry.kind} {entry.name}")
        try:
            give_back(connection, entry, state)
            results.append(Swept(entry, None))
        except SageError as problem:
            results.append(Swept(entry, Problem(str(problem), problem.hint, False)))
    return tuple(results)


def give_back(connection: "Connection", entry: Entry, state: Path) -> None:
    """Give back what an entry with an id tells of, and note it."""
    assert entry.id is not None, "the site tells of it"
    if entry.kind is Kind.SERVER:
        server.delete(connection, entry.id, state=state)
    elif entry.kind is Kind.FLOATING_IP:
        address.release(connection, entry.id, state)
    elif entry.kind is Kind.SECURITY_GROUP:
        server.delete_security_group(connection, entry.id, state=state)
    elif entry.kind is Kind.LEASE:
        try:
            lease = blazar.get_lease(connection, entry.id)
        except Gone:
            leases.note_released(state, entry.id)
        else:
            leases.give_back(connection, lease, state)

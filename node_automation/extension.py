# SPDX-License-Identifier: Apache-2.0
"""Leases that are to run longer: each is extended for itself, and what could not be is told with its reason."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from groundwork.errors import InputError, SageError
from node_automation import api, blazar, ledger
from node_automation.blazar import Lease, LeaseStatus, NoFloatingIP
from node_automation.lease import Part, minute, raise_if_failed
from node_automation.ledger import Kind

if TYPE_CHECKING:
    from openstack.connection import Connection


@dataclass(frozen=True)
class Extension:
    """What came of extending one lease.  ``problem`` and ``hint`` are "" where it is done."""

    lease_id: str
    name: str
    part: Part
    ends_at: str
    problem: str = ""
    hint: str = ""


def extend(connection: "Connection", leases: Sequence[Lease], until: datetime, *, state: Path) -> tuple[Extension, ...]:
    """Extend leases, each for itself; what came of each, in their order.  Raises InputError for a time in the past.

    Blazar extends all parts of one lease or none; the answer tells which part could not be.
    """
    known = {entry.id: entry for entry in ledger.read(state) if entry.kind is Kind.LEASE and entry.open}
    results = []
    for lease in leases:
        part = Part.FLOATING_IPS if not lease.nodes else Part.BOTH if lease.floating_ips else Part.NODES
        if until <= ledger.read_time(lease.ends_at):
            raise InputError(f"the lease {lease.name} already runs until {lease.ends_at}")
        try:
            raise_if_failed(api.site_of(connection), lease)
            changed = blazar.update_lease(connection, lease.id, {"end_date": minute(until)})
        except SageError as problem:
            results.append(_not_extended(connection, lease, part, problem))
        else:
            if lease.id in known:
                ledger.change(state, known[lease.id].key, ends_at=changed.ends_at)
            results.append(Extension(lease.id, lease.name, part, changed.ends_at))
    return tuple(results)


def _not_extended(connection: "Connection", lease: Lease, part: Part, problem: SageError) -> Extension:
    """What is told of a lease that could not be extended, and which part of it was the reason."""
    text = str(problem)
    if part is Part.BOTH and isinstance(problem, NoFloatingIP):
        part, text = Part.FLOATING_IPS, f"{text}; its nodes are not extended either, for one lease holds both"
    elif part is Part.BOTH and isinstance(problem, blazar.Full):
        part, text = Part.NODES, f"{text}; its floating IPs are not extended either, for one lease holds both"
    with contextlib.suppress(SageError):
        # Blazar 15 puts a lease in ERROR for some refusals, that of a floating IP among them.
        after = blazar.get_lease(connection, lease.id)
        if after.status == LeaseStatus.ERROR and lease.status != LeaseStatus.ERROR:
            text += f"; the site has put the lease in ERROR by it: its nodes run until {after.ends_at}"
    return Extension(lease.id, lease.name, part, lease.ends_at, text, problem.hint or "")

# SPDX-License-Identifier: Apache-2.0
"""Leases: what is asked for, where it is tried, one of ours that fits, waiting, giving back.

What is asked for is a value; the body for Blazar, the order of tries and the choice of a lease that stands are pure.
A lease is in the ledger before it is asked for.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site, SiteKind
from groundwork.compat import StrEnum
from groundwork.errors import InputError, SageError
from node_automation import api, blazar, ledger, names
from node_automation.api import Gone
from node_automation.blazar import Busy, Lease, LeaseStatus, NameTaken
from node_automation.ledger import Kind, Run
from node_automation.waiting import Seen, wait_for

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

LONGEST = timedelta(days=7)  # of a bare-metal lease; https://chameleoncloud.readthedocs.io, "Reservations"
_SHORTEST = timedelta(minutes=2)  # Blazar counts in minutes
_MOST = 100  # nodes of one lease; more is a slip of the finger
_USUAL_LEFT = timedelta(hours=1)  # that a lease must yet run to be used again
_ACTIVE_WITHIN = 300.0  # seconds from a lease's start
_GONE_WITHIN = 300.0
_LET_GO_WITHIN = 30.0  # for one in ERROR: Blazar's own tasks for it are over by then
_COMING = {LeaseStatus.PENDING, LeaseStatus.CREATING, LeaseStatus.STARTING, LeaseStatus.UPDATING}
_ADDRESSES = "ips"  # ends the name of a lease of floating IPs alone
_MINUTE = "%Y-%m-%d %H:%M"


class Part(StrEnum):
    """The parts of a lease that are extended apart where they are leases of their own."""

    NODES = "nodes"
    FLOATING_IPS = "floating IPs"
    BOTH = "nodes and floating IPs"


class Failed(SiteError):
    """A lease in ERROR, or one that ended while it was waited for."""


@dataclass(frozen=True)
class LeaseRequest:
    """What is asked for.  ``starts_at`` None: now.  ``arch``: ``x86_64`` or ``aarch64``, None for any.

    ``apart``: the floating IPs get a lease of their own, so that either can be extended when the other can't.
    ``part`` tells several leases of a run at one site apart.  ``at_least``: how long a lease of ours must yet run to
    be used again.
    """

    run: Run
    count: int = 1
    arch: str | None = None
    starts_at: datetime | None = None
    length: timedelta = timedelta(hours=24)
    floating_ips: int = 0
    apart: bool = False
    part: str = ""
    at_least: timedelta | None = None


@dataclass(frozen=True)
class Try:
    """One place where it is tried.  ``node_type``: a node type of bare metal, or the name of a flavor of a KVM site."""

    site: Site
    node_type: str

    def __str__(self) -> str:
        return f"{self.node_type} at {self.site.name}"


@dataclass(frozen=True)
class Held:
    """A lease that is ours.  ``addresses``: the one of its floating IPs, where they have their own."""

    site: str
    node_type: str
    lease: Lease
    addresses: Lease | None = None
    reused: bool = False

    @property
    def reservation(self) -> str:
        """The id of the part that servers are made on."""
        return self.lease.nodes[0].id

    @property
    def address_reservation(self) -> str | None:
        """The id of the part with floating IPs, or None."""
        parts = (self.addresses or self.lease).floating_ips
        return parts[0].id if parts else None


def check(request: LeaseRequest, sites: Sequence[Site]) -> LeaseRequest:
    """The request as it is.  Raises InputError for one that no site would grant."""
    if not 1 <= request.count <= _MOST:
        raise InputError(f"a lease is of 1 to {_MOST} nodes, not of {request.count}")
    if request.floating_ips < 0:
        raise InputError("the number of floating IPs can't be negative")
    if request.length < _SHORTEST:
        raise InputError("a lease lasts at least 2 minutes", hint="give its length as 90m, 24h or 3d")
    metal = [site.name for site in sites if site.kind is SiteKind.BAREMETAL]
    if request.length > LONGEST and metal:
        raise InputError(
            f"a lease of bare metal lasts 7 days at most, and {_span(request.length)} are asked for at {metal[0]}",
            hint="ask for 7 days (7d), and extend it in its last two days",
        )
    for site in sites:
        if site.kind is SiteKind.EDGE:
            raise InputError(f"{site.name} runs containers and leases no nodes", hint="name another site")
    return request


def tries(sites: Sequence[Site], node_types: Sequence[str]) -> tuple[Try, ...]:
    """Where it is tried, in order: at each site each type."""
    return tuple(Try(site, node_type) for site in sites for node_type in node_types)


def body(
    request: LeaseRequest,
    where: Try,
    name: str,
    *,
    now: datetime,
    flavor: str | None = None,
    network: str | None = None,
    operator: str = "=",
    parts: Part = Part.BOTH,
) -> dict[str, Any]:
    """The document that Blazar takes.  ``flavor`` and ``network`` are ids; ``network`` that of the floating IPs."""
    begin = request.starts_at or now
    reservations: list[dict[str, Any]] = []
    if parts is not Part.FLOATING_IPS:
        if where.site.kind is SiteKind.KVM:
            reservations.append(
                {"resource_type": blazar.FLAVOR, "flavor_id": flavor, "amount": request.count, "affinity": None}
            )
        else:
            reservations.append(
                {
                    "resource_type": blazar.HOST,
                    "resource_properties": properties(where.node_type, request.arch, operator),
                    "hypervisor_properties": "",
                    "min": request.count,
                    "max": request.count,
                }
            )
    if request.floating_ips and parts is not Part.NODES:
        reservations.append(
            {"resource_type": blazar.FLOATING_IP, "network_id": network, "amount": request.floating_ips}
        )
    return {
        "name": name,
        "start_date": "now" if request.starts_at is None else minute(begin),
        "end_date": minute(begin + request.length),
        "before_end_date": None,
        "events": [],
        "reservations": reservations,
    }


def properties(node_type: str, arch: str | None, operator: str) -> str:
    """Blazar's ``resource_properties``: JSON as a text, terms of three texts, joined by a top-level ``and`` alone."""
    terms = [[operator, "$node_type", node_type]]
    if arch is not None:
        terms.append([operator, "$architecture.platform_type", arch])
    return json.dumps(["and", *terms] if len(terms) > 1 else terms[0])


def find_fitting(leases: Iterable[Lease], request: LeaseRequest, where: Try, now: datetime) -> Held | None:
    """A lease of this experiment that can be used as it stands, the one that ends last; None where there is none.

    It is healthy (active, or about to begin), has nodes of that type, as many, with as many floating IPs, and runs
    long enough.
    """
    left = request.at_least if request.at_least is not None else min(request.length, _USUAL_LEFT)
    until = ledger.written((request.starts_at or now) + left)
    ours = []
    for lease in leases:
        run = ledger.run_of_lease(lease.name, where.site.slug)
        healthy = lease.status == LeaseStatus.ACTIVE or lease.status in _COMING
        if run is not None and run.experiment == request.run.experiment and healthy and lease.ends_at >= until:
            ours.append(lease)
    nodes = [lease for lease in ours if _has_nodes(lease, request, where) and not lease.failed]
    for lease in sorted(nodes, key=lambda lease: (lease.status == LeaseStatus.ACTIVE, lease.ends_at), reverse=True):
        if not request.floating_ips or _floating_ips(lease) >= request.floating_ips:
            return Held(where.site.name, where.node_type, lease, None, reused=True)
        run = ledger.run_of_lease(lease.name, where.site.slug)
        for other in ours:
            same = ledger.run_of_lease(other.name, where.site.slug) == run
            if same and not other.nodes and _floating_ips(other) >= request.floating_ips and not other.failed:
                return Held(where.site.name, where.node_type, lease, other, reused=True)
    return None


def _has_nodes(lease: Lease, request: LeaseRequest, where: Try) -> bool:
    if lease.hosts < request.count or not lease.nodes:
        return False
    if where.site.kind is SiteKind.KVM:
        return lease.nodes[0].resource_type == blazar.FLAVOR
    return lease.nodes[0].node_type == where.node_type


def _floating_ips(lease: Lease) -> int:
    return sum(part.amount for part in lease.floating_ips)


def obtain(
    request: LeaseRequest,
    places: Sequence[Try],
    connections: "Mapping[str, Connection | SageError]",
    *,
    state: Path,
    note: Callable[[str], None] = lambda text: None,
    reuse: bool = True,
) -> Held:
    """A lease, at the first of ``places`` that has one: one of ours that fits, or a new one; not waited for.

    ``note`` is told why a place was passed over.  Where none has one, the error tells each place's reason; a wrong
    input that is the same everywhere is raised as it is.
    """
    problems: list[tuple[Try, SageError]] = []
    for where in places:
        found = connections[where.site.name]
        try:
            if isinstance(found, SageError):
                raise found
            held = standing(found, request, where) if reuse else None
            return held if held is not None else _create(found, request, where, state)
        except SageError as problem:
            problems.append((where, problem))
            if len(places) > 1:
                note(f"{where}: {problem}")
    if not problems:
        raise InputError("no place to try", hint="name sites and node types")
    if len(problems) == 1:
        raise problems[0][1]
    kind = InputError if all(isinstance(problem, InputError) for _, problem in problems) else SiteError
    reasons = "; ".join(f"{where}: {problem}" for where, problem in problems)
    raise kind(f"no lease to be had: {reasons}", hint=problems[-1][1].hint)


def foresee(
    request: LeaseRequest,
    places: Sequence[Try],
    connections: "Mapping[str, Connection | SageError]",
    *,
    reuse: bool = True,
) -> tuple[str, ...]:
    """What :func:`obtain` would do: a line a place, up to the first that has a lease of ours that fits."""
    lines = []
    for where in places:
        found = connections[where.site.name]
        if isinstance(found, SageError):
            lines.append(f"passes over {where}: {found}")
            continue
        held = standing(found, request, where) if reuse else None
        if held is not None:
            lines.append(f"uses {held.lease.name} at {held.site} again, until {held.lease.ends_at}")
            break
        name = ledger.lease_name(request.run, where.site.slug, request.part)
        lines.append(f"asks for {name}: {request.count} x {where}, for {_span(request.length)}")
    return tuple(lines)


def with_addresses(leases: Iterable[Lease], lease: Lease) -> tuple[Lease, ...]:
    """A lease, and the one of its floating IPs where they have their own; pure."""
    return (lease, *(other for other in leases if other.name == f"{lease.name}-{_ADDRESSES}"))


def address_reservation(leases: Iterable[Lease], lease: Lease) -> str | None:
    """The id of the reservation of floating IPs that goes with a lease, or None; pure."""
    parts = [part for one in with_addresses(leases, lease) for part in one.floating_ips]
    return parts[0].id if parts else None


def standing(connection: "Connection", request: LeaseRequest, where: Try) -> Held | None:
    """The lease of ours that fits, as the site has it now; see :func:`find_fitting`."""
    return find_fitting(blazar.list_leases(connection), request, where, datetime.now(timezone.utc))


def _create(connection: "Connection", request: LeaseRequest, where: Try, state: Path) -> Held:
    flavor = names.flavor_id(connection, where.node_type) if where.site.kind is SiteKind.KVM else None
    network = names.public_network_id(connection) if request.floating_ips else None
    name = ledger.lease_name(request.run, where.site.slug, request.part)
    if not (request.apart and request.floating_ips):
        return Held(
            where.site.name,
            where.node_type,
            _create_one(connection, request, where, state, name, Part.BOTH, flavor, network),
        )
    nodes = _create_one(connection, request, where, state, name, Part.NODES, flavor, None)
    ips = f"{name}-{_ADDRESSES}"
    try:
        addresses = _create_one(connection, request, where, state, ips, Part.FLOATING_IPS, None, network)
    except SageError:
        give_back(connection, nodes, state)  # nodes that nobody can reach are of no use
        raise
    return Held(where.site.name, where.node_type, nodes, addresses)


def _create_one(
    connection: "Connection",
    request: LeaseRequest,
    where: Try,
    state: Path,
    name: str,
    parts: Part,
    flavor: str | None,
    network: str | None,
) -> Lease:
    now = datetime.now(timezone.utc)
    begin = request.starts_at or now
    entry = ledger.begin(
        state,
        ledger.new_entry(
            request.run,
            where.site.name,
            str(connection.current_project_id or ""),
            Kind.LEASE,
            name,
            node_type=where.node_type,
            starts_at=ledger.written(begin),
            ends_at=ledger.written(begin + request.length),
            hosts=request.count if parts is not Part.FLOATING_IPS else 0,
            now=now,
        ),
    )

    def document(operator: str) -> dict[str, Any]:
        return body(request, where, name, now=now, flavor=flavor, network=network, operator=operator, parts=parts)

    try:
        try:
            lease = blazar.create_lease(connection, document("="))
        except SageError as problem:
            if where.site.kind is SiteKind.KVM or parts is Part.FLOATING_IPS or not blazar.is_about_operator(problem):
                raise
            logger.debug("%s does not take '=' in resource_properties; trying '=='", where.site.name)
            lease = blazar.create_lease(connection, document("=="))
    except SiteUnreachable:
        raise  # nobody knows whether there is one; the entry stays, and its name tells
    except NameTaken:  # names hold the run's id: it is ours, asked for by an answer that got lost
        lease = pick(blazar.list_leases(connection), name, where.site.name)
        raise_if_failed(where.site.name, lease)
    except SageError:
        ledger.release(state, [entry.key])
        raise
    ledger.change(state, entry.key, id=lease.id, starts_at=lease.starts_at, ends_at=lease.ends_at)
    return lease


def wait_active(
    connection: "Connection",
    lease_id: str,
    *,
    deadline: float = _ACTIVE_WITHIN,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> Lease:
    """The lease once it is active; ``deadline`` in seconds, from now or from its start where that is later.

    Raises Failed at once where it is in ERROR, over or gone, and TimedOut.
    """
    site = api.site_of(connection)
    first = blazar.get_lease(connection, lease_id)
    until_start = (ledger.read_time(first.starts_at) - datetime.now(timezone.utc)).total_seconds()

    def look() -> Seen[Lease]:
        try:
            lease = blazar.get_lease(connection, lease_id)
        except Gone:
            raise Failed(
                f"{site}: the lease {first.name} is no more", hint="somebody gave it back; ask for a new one"
            ) from None
        raise_if_failed(site, lease)
        return Seen(lease, lease.status, lease.status == LeaseStatus.ACTIVE)

    return wait_for(
        f"{site}: the lease {first.name} becoming active",
        look,
        deadline=deadline + max(0.0, until_start),
        tell=tell,
        stop=stop,
        hint="`fab lease.show` tells its events; `fab lease.delete` gives it back",
    )


def raise_if_failed(site: str, lease: Lease) -> None:
    """Raise Failed for a lease that is in ERROR or over."""
    if lease.status == LeaseStatus.ERROR:
        why = f" ({', '.join(lease.failed)})" if lease.failed else ""
        raise Failed(
            f"{site}: the lease {lease.name} is in ERROR{why}",
            hint="give it back (`fab lease.delete`) and ask for another; its hosts may need the operators",
        )
    if lease.status in (LeaseStatus.TERMINATED, LeaseStatus.TERMINATING, LeaseStatus.DELETING):
        raise blazar.Expired(
            f"{site}: the lease {lease.name} is over ({lease.status}, {lease.ends_at})", hint="ask for a new one"
        )


def give_back(
    connection: "Connection",
    lease: Lease,
    state: Path,
    *,
    deadline: float = _GONE_WITHIN,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> None:
    """Delete a lease, wait until it is gone, and note it; one that is gone already is no error.

    Raises Failed where it comes to ERROR on its way, or is in ERROR and Blazar does not let it go; and TimedOut.
    """
    site = api.site_of(connection)
    refused_since: float | None = None  # while it is in ERROR

    def look() -> Seen[None]:
        try:
            seen = blazar.get_lease(connection, lease.id)
        except Gone:
            return Seen(None, "gone", True)
        if seen.status == LeaseStatus.ERROR and lease.status != LeaseStatus.ERROR:
            raise Failed(f"{site}: the lease {lease.name} came to ERROR while it was given back")
        if seen.status not in (LeaseStatus.DELETING, LeaseStatus.TERMINATING):
            ask(seen.status)
        return Seen(None, seen.status, False)

    def ask(status: str) -> None:
        nonlocal refused_since
        try:
            blazar.delete_lease(connection, lease.id)
        except Gone:
            pass
        except Busy as busy:  # one that is about to start is asked again
            if status != LeaseStatus.ERROR:
                return
            refused_since = refused_since or time.monotonic()
            if time.monotonic() - refused_since >= _LET_GO_WITHIN:
                raise Failed(
                    f"{site}: the lease {lease.name} is in ERROR, and the site does not let it go: {busy}",
                    hint=f"its help desk can; its id is {lease.id}. What it holds is free again when its time is over",
                ) from busy

    ask(lease.status)
    wait_for(f"{site}: the lease {lease.name} given back", look, deadline=deadline, tell=tell, stop=stop)
    note_released(state, lease.id)


def note_released(state: Path, lease_id: str) -> None:
    """Note in the ledger that a lease is no more."""
    ledger.release(state, [entry.key for entry in ledger.read(state) if entry.id == lease_id])


def find_ours(connection: "Connection", site: Site, experiment: str | None = None) -> tuple[Lease, ...]:
    """This project's leases that were made here, by this machine or another; of one experiment, or all."""
    found = []
    for lease in blazar.list_leases(connection):
        run = ledger.run_of_lease(lease.name, site.slug)
        if run is not None and experiment in (None, run.experiment):
            found.append(lease)
    return tuple(found)


def pick(leases: Iterable[Lease], word: str, site: str) -> Lease:
    """The one lease with this id or name.  Raises InputError where it is none, or not one."""
    found = [lease for lease in leases if word in (lease.id, lease.name)]
    if not found:
        raise InputError(f"{site} has no lease {word!r}", hint="`fab lease.list` shows those that there are")
    if len(found) > 1:
        ids = ", ".join(lease.id for lease in found)
        raise InputError(f"{site} has several leases {word!r}", hint=f"name one by its id: {ids}")
    return found[0]


def parse_length(text: str) -> timedelta:
    """A length as people write it: ``90m``, ``24h``, ``3d``, or ``1d12h``."""
    units = {"d": "days", "h": "hours", "m": "minutes"}
    given: dict[str, int] = {}
    digits = ""
    for letter in text.strip().lower():
        if letter.isdigit():
            digits += letter
        elif letter in units and digits and units[letter] not in given:
            given[units[letter]] = int(digits)
            digits = ""
        else:
            given = {}
            break
    if not given or digits or not text.isascii():
        raise InputError(f"{text!r} is no length of time", hint="expected for example 90m, 24h, 3d or 1d12h")
    try:
        return timedelta(**given)
    except OverflowError:
        raise InputError(f"{text!r} is longer than can be counted") from None


def parse_start(text: str) -> datetime | None:
    """A start as people write it: ``now``, or a time in UTC, ``2026-12-24T18:00``."""
    if text.strip() == "now":
        return None
    try:
        moment = datetime.fromisoformat(text.strip().rstrip("Zz"))
    except ValueError:
        raise InputError(
            f"{text!r} is no time", hint="expected now, or a time in UTC such as 2026-12-24T18:00"
        ) from None
    moment = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
    if moment < datetime.now(timezone.utc):
        raise InputError(f"the start {text} is past", hint="times are UTC; leave --start out for now")
    return moment


def minute(moment: datetime) -> str:
    """A time as Blazar takes it: UTC, to the minute."""
    return moment.astimezone(timezone.utc).strftime(_MINUTE)


def _span(length: timedelta) -> str:
    hours = length.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"

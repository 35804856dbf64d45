# SPDX-License-Identifier: Apache-2.0
"""Fabric tasks ``lease.*``.  Exit codes as in :mod:`node_automation.task`."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from invoke.collection import Collection

from chameleon_sites.sites import Site
from groundwork import console, products
from groundwork.errors import InputError
from groundwork.settings import one_of
from node_automation import blazar, extension, ledger, reminder, status
from node_automation import lease as leases
from node_automation.blazar import Lease
from node_automation.lease import LeaseRequest
from node_automation.session import Session, open_session, state_folder, words
from node_automation.task import command, parted, raise_first, told

_LEASE = "a lease's name or id"


@command(
    "create",
    node_type="node types of bare metal, or flavors of a KVM site, in the order in which they are tried",
    name="the experiment that it is for; a healthy lease of it that fits is used again",
    count="how many nodes",
    arch="x86_64 or aarch64; any, if left out",
    start="now, or a time in UTC: 2026-12-24T18:00",
    length="90m, 24h, 3d or 1d12h; at most 7d on bare metal",
    floating_ips="how many floating IPs the lease holds",
    apart="floating IPs in a lease of their own, so that either can be extended when the other can't",
    new="ask for a new lease even where one of ours fits",
    wait="wait until it is active (--no-wait: only ask for it)",
)
def lease_create(
    context: Any,
    node_type: str,
    site: str = "",
    name: str = "lease",
    count: int = 1,
    arch: str = "",
    start: str = "now",
    length: str = "24h",
    floating_ips: int = 0,
    apart: bool = False,
    new: bool = False,
    wait: bool = True,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Lease nodes: at the first site, and of the first type, that has them."""
    request = LeaseRequest(
        run=ledger.new_run(name),
        count=count,
        arch=one_of("architecture", ("x86_64", "aarch64"))(arch) if arch else None,
        starts_at=leases.parse_start(start),
        length=leases.parse_length(length),
        floating_ips=floating_ips,
        apart=apart,
    )
    session = open_session(words(site))
    leases.check(request, session.sites)
    places = leases.tries(session.sites, words(node_type))
    if dry_run:
        steps = leases.foresee(request, places, session.connections, reuse=not new)
        for step in steps:
            console.result(step)
        console.result_json({"plan": list(steps)})
        return
    with console.stage(f"lease {count} x {node_type}") as stage:
        held = leases.obtain(request, places, session.connections, state=session.state, note=console.say, reuse=not new)
        stage.note = f"{held.lease.name} at {held.site}" + (" (stood already)" if held.reused else "")
    if wait:
        for lease in [held.lease, *([held.addresses] if held.addresses else [])]:
            with console.stage(f"{lease.name} becomes active", brief=True) as stage:
                leases.wait_active(session.connection(held.site), lease.id, tell=stage.detail)
    found = blazar.get_lease(session.connection(held.site), held.lease.id)
    _tell_leases({held.site: [found]})
    console.result_json({"site": held.site, "reused": held.reused, "lease": products.to_data(found)})


@command("list", name="only those of this experiment", everyone="also those of the project that were not made here")
def lease_list(context: Any, site: str = "", name: str = "", everyone: bool = False, json: bool = False) -> int:
    """List leases, with the time that is left."""
    session = open_session(words(site))

    def ask(connection: Any, where: Site) -> tuple[Lease, ...]:
        if everyone:
            return blazar.list_leases(connection)
        return leases.find_ours(connection, where, name or None)

    found, problems = parted(session.each(ask))
    _tell_leases(found)
    console.result_json(
        {
            "leases": [{"site": place, **products.to_data(lease)} for place, rows in found.items() for lease in rows],
            "problems": products.to_data(problems),
        }
    )
    return told(problems, len(session.sites))


@command("show", lease=_LEASE)
def lease_show(context: Any, lease: str, site: str = "", json: bool = False) -> None:
    """Show one lease: its parts, and what is wrong with it."""
    session = open_session(words(site))
    where, found = find_lease(session, lease)
    console.result(f"{found.name} at {where.name}: {found.status}, {found.starts_at} to {found.ends_at}")
    console.table(
        ["part", "state", "amount", "node type or flavor", "reservation"],
        [[part.resource_type, part.status, str(part.amount), part.node_type, part.id] for part in found.reservations],
    )
    for text in found.failed:
        console.warn(f"in error: {text}")
    if found.degraded:
        console.warn("degraded: a host of it has failed, and the site has put no other in its place")
    console.result_json({"site": where.name, **products.to_data(found)})


@command(
    "extend",
    lease=_LEASE,
    by="how much longer: 12h, 1d",
    until="until when, in UTC: 2026-12-24T18:00; instead of --by",
)
def lease_extend(
    context: Any, lease: str, by: str = "", until: str = "", site: str = "", dry_run: bool = False, json: bool = False
) -> int:
    """Extend a lease; one of its floating IPs alone goes with it, each for itself."""
    if bool(by) == bool(until):
        raise InputError("either --by or --until is needed", hint="for example --by=12h")
    session = open_session(words(site))
    where, found = find_lease(session, lease)
    end = leases.parse_start(until) if until else ledger.read_time(found.ends_at) + leases.parse_length(by)
    if end is None:
        raise InputError("a lease can't be extended until now", hint="`fab lease.delete` gives it back")
    both = leases.with_addresses(blazar.list_leases(session.connection(where.name)), found)
    if dry_run:
        for one in both:
            console.result(f"{one.name} at {where.name}: from {one.ends_at} to {ledger.written(end)}")
        console.result_json({"plan": [{"lease": one.name, "until": ledger.written(end)} for one in both]})
        return 0
    results = extension.extend(session.connection(where.name), both, end, state=session.state)
    for result in results:
        if result.problem:
            console.complain(f"{result.name}: {result.part} not extended: {result.problem}", hint=result.hint or None)
        else:
            console.result(f"{result.name}: {result.part} until {result.ends_at}")
    console.result_json({"site": where.name, "extended": products.to_data(results)})
    return 1 if any(result.problem for result in results) else 0


@command("delete", lease=_LEASE)
def lease_delete(context: Any, lease: str, site: str = "", dry_run: bool = False, json: bool = False) -> None:
    """Give a lease back; its servers and floating IPs go with it."""
    session = open_session(words(site))
    where, found = find_lease(session, lease)
    both = leases.with_addresses(blazar.list_leases(session.connection(where.name)), found)
    for one in both:
        if dry_run:
            console.result(f"gives back {one.name} at {where.name}")
            continue
        with console.stage(f"give back {one.name}") as stage:
            leases.give_back(session.connection(where.name), one, session.state, tell=stage.detail)
    console.result_json({"site": where.name, "leases": [one.id for one in both], "dry_run": dry_run})


@command("wait", lease=_LEASE, timeout="seconds, from now or from its start")
def lease_wait(context: Any, lease: str, timeout: int = 300, site: str = "", json: bool = False) -> None:
    """Wait until a lease is active; ends at once where it comes to ERROR."""
    session = open_session(words(site))
    where, found = find_lease(session, lease)
    with console.stage(f"{found.name} becomes active") as stage:
        active = leases.wait_active(
            session.connection(where.name), found.id, deadline=float(timeout), tell=stage.detail
        )
    console.result_json({"site": where.name, **products.to_data(active)})


@command(
    "remind",
    before="how long before the end",
    run="the command; it finds SAGE_LEASE_NAME, _SITE, _EXPERIMENT, _ENDS_AT and _MINUTES_LEFT in its environment",
)
def lease_remind(context: Any, run: str, before: str = "1h", json: bool = False) -> int:
    """Run a command for each lease that ends soon, once; for a timer."""
    try:
        line = shlex.split(run)
    except ValueError as error:
        raise InputError(f"{run!r} is no command line: {error}") from None
    if not line:
        raise InputError("--run is empty", hint="name a command, for example --run='notify-send lease'")
    told = reminder.remind(state_folder(), leases.parse_length(before), line, datetime.now(timezone.utc))
    for one in told:
        if one.problem:
            console.complain(f"{one.name} ends at {one.ends_at}, and the command failed: {one.problem}")
        else:
            console.result(f"{one.name} at {one.site} ends at {one.ends_at}: told")
    console.result_json(products.to_data(told))
    return 1 if any(one.problem for one in told) else 0


# Nodes


def find_lease(session: Session, word: str) -> tuple[Site, Lease]:
    """The lease of this name or id, and its site.  Raises InputError where it is none, or not one."""
    found, problems = parted(session.each(lambda connection, where: blazar.list_leases(connection)))
    matching = {place: rows for place, rows in found.items() if any(word in (row.id, row.name) for row in rows)}
    if not matching:
        raise_first(problems)
        raise InputError(f"there is no lease {word!r}", hint="`fab lease.list --everyone` shows those that there are")
    if len(matching) > 1:
        raise InputError(f"there are leases {word!r} at {', '.join(matching)}", hint="name the site with --site")
    place, rows = next(iter(matching.items()))
    return session.site(place), leases.pick(rows, word, place)


def _tell_leases(found: Mapping[str, Sequence[Lease]]) -> None:
    now = datetime.now(timezone.utc)
    rows = []
    for place, some in found.items():
        for one in some:
            seconds = (ledger.read_time(one.ends_at) - now).total_seconds()
            left = status.span(seconds) if seconds > 0 else "over"
            types = ", ".join(dict.fromkeys(part.node_type for part in one.nodes if part.node_type))
            ips = sum(part.amount for part in one.floating_ips)
            rows.append([one.name, place, one.status, types, str(one.hosts), str(ips), one.ends_at, left])
    console.table(["lease", "site", "state", "node type", "nodes", "floating IPs", "ends at", "left"], rows)


collection = Collection(
    "lease", lease_create, lease_list, lease_show, lease_extend, lease_delete, lease_wait, lease_remind
)

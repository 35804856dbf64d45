# SPDX-License-Identifier: Apache-2.0
"""Fabric tasks: words in, tables or JSON out.  What they do is done by the modules that they call.

Each ends with the project's exit codes: 0 done, 1 failed, 2 wrong input, 3 some sites failed.
"""

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from fabric import task
from invoke.collection import Collection
from invoke.exceptions import Exit

from chameleon_sites import cloud
from chameleon_sites.sites import Site, SiteKind
from groundwork import console, products
from groundwork.errors import InputError, SageError
from groundwork.program import outcome
from groundwork.settings import one_of, whole_number
from image_builder.cli import tell_problems
from image_builder.publication import Problem
from node_automation import blazar, diagnose, free, gc, launching, ledger, parallel, reach, reminder, server, ssh
from node_automation import lease as leases
from node_automation.blazar import Lease
from node_automation.launching import AddressFrom, Wishes
from node_automation.lease import LeaseRequest
from node_automation.server import Server, ServerRequest
from node_automation.session import Session, all_sites, open_session, state_folder, words
from node_automation.ssh import Target
from node_automation.tagged import look

SOME_FAILED = 3
Found = TypeVar("Found")

_SITE = "sites by their regions' names, CHI@UC,CHI@TACC; all that clouds.yaml has entries for, if left out"
_JSON = "print the result as JSON"
_DRY_RUN = "print what would be done, and do nothing"
_USER = "whom the image lets in"
_NODE = "a node's name"
_NODES = "names of nodes, separated by commas"
_LEASE = "a lease's name or id"


def command(name: str, /, **explained: str) -> Callable[[Callable[..., int | None]], Any]:
    """A task of this name; ``explained`` has a text for each of its arguments.

    Errors are told once, as by this project's programs, and become exit codes.
    """
    usual = {"site": _SITE, "json": _JSON, "dry_run": _DRY_RUN, "user": _USER}

    def decorate(function: Callable[..., int | None]) -> Any:
        @functools.wraps(function)
        def body(context: Any, *arguments: Any, **named: Any) -> None:
            def main() -> int:
                console.configure(json_output=bool(named.get("json", False)))
                return function(context, *arguments, **named) or 0

            code = outcome(main)
            if code:
                raise Exit(code=code)

        known = function.__code__.co_varnames[1 : function.__code__.co_argcount]
        texts = {**{key: text for key, text in usual.items() if key in known}, **explained}
        return task(body, name=name, help={_dashed(key): text for key, text in texts.items()}, auto_shortflags=False)

    return decorate


def _dashed(key: str) -> str:
    return key.replace("_", "-")


# Leases


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
    _tell_leases({held.site: [found]}, [])
    console.result_json({"site": held.site, "reused": held.reused, "lease": products.to_data(found)})


@command("list", name="only those of this experiment", everyone="also those of the project that were not made here")
def lease_list(context: Any, site: str = "", name: str = "", everyone: bool = False, json: bool = False) -> int:
    """List leases, with the time that is left."""
    session = open_session(words(site))

    def ask(connection: Any, where: Site) -> tuple[Lease, ...]:
        if everyone:
            return blazar.list_leases(connection)
        return leases.find_ours(connection, where, name or None)

    found, problems = _parted(session.each(ask))
    _tell_leases(found, ledger.read(session.state))
    console.result_json(
        {
            "leases": [{"site": place, **products.to_data(lease)} for place, rows in found.items() for lease in rows],
            "problems": products.to_data(problems),
        }
    )
    return _told(problems, len(session.sites))


@command("show", lease=_LEASE)
def lease_show(context: Any, lease: str, site: str = "", json: bool = False) -> None:
    """Show one lease: its parts, and what is wrong with it."""
    session = open_session(words(site))
    where, found = _find_lease(session, lease)
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
    where, found = _find_lease(session, lease)
    end = leases.parse_start(until) if until else ledger.read_time(found.ends_at) + leases.parse_length(by)
    if end is None:
        raise InputError("a lease can't be extended until now", hint="`fab lease.delete` gives it back")
    both = leases.with_addresses(blazar.list_leases(session.connection(where.name)), found)
    if dry_run:
        for one in both:
            console.result(f"{one.name} at {where.name}: from {one.ends_at} to {ledger.written(end)}")
        console.result_json({"plan": [{"lease": one.name, "until": ledger.written(end)} for one in both]})
        return 0
    results = leases.extend(session.connection(where.name), both, end, state=session.state)
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
    where, found = _find_lease(session, lease)
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
    where, found = _find_lease(session, lease)
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


@command(
    "launch",
    name="the node's name; of several: the name and a number",
    lease=_LEASE,
    image="an image's name or id",
    count="how many nodes",
    floating_ip="where it comes from: lease, ad-hoc, any (the lease, else ad hoc) or none",
    key_name="a key pair at the site that may log in too",
    network="the network that it is attached to",
    login="wait until it lets us in, and give it a host key of its own (--no-login: only until it is ACTIVE)",
)
def node_launch(
    context: Any,
    name: str,
    lease: str,
    image: str,
    count: int = 1,
    site: str = "",
    user: str = ssh.USER,
    floating_ip: str = "any",
    key_name: str = "",
    network: str = "sharednet1",
    login: bool = True,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Launch nodes on a lease, with a floating IP each, and wait until they let us in."""
    ledger.check_name(name)
    whole_number(1, 100)(str(count))
    source = AddressFrom(one_of("place", list(AddressFrom))(floating_ip))
    session = open_session(words(site))
    where, found = _find_lease(session, lease)
    leases.raise_if_failed(where.name, found)
    if not found.nodes:
        raise InputError(f"the lease {found.name} holds no nodes", hint="name the one that does")
    connection = session.connection(where.name)
    run = ledger.run_of_lease(found.name, where.slug) or ledger.new_run(name)
    key, public = session.identity()
    group = None
    requests = [
        ServerRequest(
            run=run,
            node=name if count == 1 else f"{name}-{number}",
            image=image,
            node_type=found.nodes[0].node_type,
            reservation=found.nodes[0].id,
            network=network,
            authorized=(public,),
            key_name=key_name or None,
        )
        for number in range(1, count + 1)
    ]
    if dry_run:
        for request in requests:
            server.resolve(connection, where, request)
            console.result(f"launches {request.node} with {image} on {found.name} at {where.name}")
        console.result_json({"plan": [request.node for request in requests]})
        return 0
    if where.kind is SiteKind.KVM:
        group = server.open_security_group(connection, run, (), state=session.state)
    wishes = Wishes(source, leases.address_reservation(blazar.list_leases(connection), found), key if login else None)
    with console.stage(f"launch {name} at {where.name}") as stage:
        results = launching.launch_all(
            connection,
            where,
            [_with_group(request, group) for request in requests],
            wishes,
            state=session.state,
            tell=lambda node, text: stage.detail(f"{node}: {text}"),
        )
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, SageError):
            console.complain(f"{request.node}: {result}", hint=result.hint)
        else:
            console.result(f"{result.node} at {result.site}: {result.address or 'no floating IP'}")
    _write_ssh_files(session, where, server.list_ours(connection), key)
    done = [result for result in results if not isinstance(result, SageError)]
    console.result_json({"site": where.name, "nodes": products.to_data(done), "failed": len(results) - len(done)})
    return 0 if len(done) == len(results) else 1


@command("list", name="only those of this experiment")
def node_list(context: Any, site: str = "", name: str = "", json: bool = False) -> int:
    """List nodes, and write the ssh config file for them."""
    session = open_session(words(site))
    found, problems = _parted(session.each(lambda connection, where: server.list_ours(connection, name or None)))
    key, _ = session.identity()
    rows = []
    for place, nodes in found.items():
        if not name:
            _write_ssh_files(session, session.site(place), nodes, key)
        rows += [
            [one.name, place, one.status, one.node_type, one.floating_ip or one.fixed_ip or "", str(one.run or "")]
            for one in nodes
        ]
    console.table(["node", "site", "state", "node type", "address", "run"], rows)
    if not name:
        console.say(f"ssh -F {session.state / 'nodes/ssh_config'} NODE")
    console.result_json(
        {
            "nodes": [{"site": place, **products.to_data(one)} for place, nodes in found.items() for one in nodes],
            "problems": products.to_data(problems),
        }
    )
    return _told(problems, len(session.sites))


@command("ssh", node=_NODE, address="where it is, if not at its floating IP")
def node_ssh(context: Any, node: str, site: str = "", user: str = ssh.USER, address: str = "") -> int:
    """Log in to a node, its host key checked."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    target = _reached(session, where, one, user, address)
    nodes = server.list_ours(session.connection(where.name))
    path = _write_ssh_files(session, where, nodes, session.identity()[0], known=target)
    return ssh.interactive(target, path)


@command(
    "run",
    node=_NODES,
    line="the command, as one word of the shell: 'uptime -p'",
    sudo="as root",
    timeout="seconds",
)
def node_run(
    context: Any,
    node: str,
    line: str,
    sudo: bool = False,
    timeout: int = 600,
    site: str = "",
    user: str = ssh.USER,
    json: bool = False,
) -> int:
    """Run a command at nodes, at once; fails where it fails at one."""
    session = open_session(words(site))
    nodes = [_find_node(session, name) for name in words(node)]

    def one(where: Site, found: Server) -> Any:
        shell, _ = ssh.connect(_reached(session, where, found, user, ""))
        with shell:
            return ssh.run(shell, line, sudo=sudo, timeout=float(timeout), check=False)

    results = parallel.at_most(16, [functools.partial(one, where, found) for where, found in nodes])
    told: list[dict[str, Any]] = []
    for (_, found), result in zip(nodes, results, strict=True):
        if isinstance(result, SageError):
            console.complain(f"{found.name}: {result}", hint=result.hint)
            told.append({"node": found.name, "problem": str(result)})
            continue
        for text in f"{result.stdout}{result.stderr}".splitlines():
            console.result(f"{found.name}: {text}" if len(nodes) > 1 else text)
        told.append(
            {"node": found.name, "exit_code": result.return_code, "stdout": result.stdout, "stderr": result.stderr}
        )
        if not result.ok:
            console.complain(f"{found.name}: exit status {result.return_code}")
    console.result_json({"nodes": told})
    return 0 if all(row.get("exit_code") == 0 for row in told) else 1


@command("put", node=_NODE, local="a file here", remote="where it goes at the node")
def node_put(context: Any, node: str, local: str, remote: str = "", site: str = "", user: str = ssh.USER) -> None:
    """Copy a file to a node."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    shell, _ = ssh.connect(_reached(session, where, one, user, ""))
    with shell:
        ssh.put(shell, local, remote)
    console.result(f"{local} is at {node}")


@command("get", node=_NODE, remote="a file at the node", local="where it goes here; this folder, if left out")
def node_get(context: Any, node: str, remote: str, local: str = "", site: str = "", user: str = ssh.USER) -> None:
    """Copy a file from a node."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    shell, _ = ssh.connect(_reached(session, where, one, user, ""))
    with shell:
        path = ssh.get(shell, remote, local)
    console.result(f"{remote} of {node} is {path}")


@command("reboot", node=_NODE, hard="as by the power button", wait="wait until it lets us in again (--no-wait)")
def node_reboot(
    context: Any, node: str, hard: bool = False, wait: bool = True, site: str = "", dry_run: bool = False
) -> None:
    """Reboot a node, and wait until it lets us in again."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    if dry_run:
        console.result(f"reboots {one.name} at {where.name}" + (", hard" if hard else ""))
        return
    connection = session.connection(where.name)
    with console.stage(f"reboot {one.name}") as stage:
        reach.reboot(
            connection,
            where,
            one,
            session.identity()[0] if wait and one.floating_ip else None,
            hard=hard,
            tell=stage.detail,
        )


@command("console", node=_NODE, lines="how many lines, from the end")
def node_console(context: Any, node: str, lines: int = 60, site: str = "", json: bool = False) -> None:
    """Show the end of a node's console."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    text = server.console(session.connection(where.name), one, lines=lines)
    console.result(text)
    console.result_json({"node": one.name, "site": where.name, "console": text})


@command("diagnose", node=_NODE, address="where it is, if not at its floating IP")
def node_diagnose(
    context: Any, node: str, site: str = "", user: str = ssh.USER, address: str = "", json: bool = False
) -> int:
    """Find out why a node does not answer: stage by stage, up to the first that fails."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    target = None
    if address or one.floating_ip:
        target = ssh.target_of(one, session.identity()[0], address=address or None, user=user)
    with console.stage(f"examine {one.name}", brief=True):
        found = diagnose.diagnose(session.connection(where.name), one, target)
    console.table(
        ["", "stage", "what was seen"],
        [["passed" if row.passed else "FAILED", str(row.stage), row.said] for row in found.findings],
        title=str(found),
    )
    if found.failed is not None:
        console.result("the console's last lines:")
        console.result("\n".join(f"  {text}" for text in found.console.splitlines()) or "  (it is empty)")
        if found.failed.next:
            console.result(f"next: {found.failed.next}")
    console.result_json(products.to_data(found))
    return 1 if found.failed is not None else 0


@command("snapshot", node=_NODE, name="the image's name")
def node_snapshot(
    context: Any, node: str, name: str, site: str = "", dry_run: bool = False, json: bool = False
) -> None:
    """Keep a node's disk as an image of the project."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    if dry_run:
        console.result(f"makes the image {name} of {one.name} at {where.name}")
        return
    with console.stage(f"snapshot of {one.name}") as stage:
        image_id = server.snapshot(session.connection(where.name), one, name, state=session.state, tell=stage.detail)
    console.result(f"{name} at {where.name}: {image_id}")
    console.result_json({"site": where.name, "name": name, "image_id": image_id})


@command("delete", node=_NODES)
def node_delete(context: Any, node: str, site: str = "", dry_run: bool = False, json: bool = False) -> int:
    """Delete nodes; floating IPs of the common pool are given back, the lease stays."""
    session = open_session(words(site))
    nodes = [_find_node(session, name, broken=True) for name in words(node)]
    if dry_run:
        for where, one in nodes:
            console.result(f"deletes {one.name} at {where.name}")
        return 0
    with console.stage(f"delete {node}"):
        works = [
            functools.partial(launching.take_away, session.connection(where.name), one, state=session.state)
            for where, one in nodes
        ]
        results = parallel.at_most(8, works)
    failed = [(one, result) for (_, one), result in zip(nodes, results, strict=True) if isinstance(result, SageError)]
    for one, result in failed:
        console.complain(f"{one.name}: {result}", hint=result.hint)
    console.result_json({"deleted": [one.name for _, one in nodes if one not in [broken for broken, _ in failed]]})
    return 1 if failed else 0


@command(
    "free",
    node_type="only this node type",
    start="from when on: now, or a time in UTC",
    length="for how long",
)
def nodes_free(
    context: Any, node_type: str = "", site: str = "", start: str = "now", length: str = "24h", json: bool = False
) -> int:
    """Show what is free where, by site and node type."""
    begin = leases.parse_start(start) or datetime.now(timezone.utc)
    span: timedelta = leases.parse_length(length)
    session = open_session(words(site))
    found = free.at_all_sites(session.sites, session.connections, begin, span, node_type or None)
    console.table(
        ["site", "node type", "arch", "free", "of", "next at"],
        [
            [
                row.site,
                row.node_type,
                row.arch,
                str(row.free) if row.total else "?",
                str(row.total or "?"),
                row.next_at or "",
            ]
            for place in found
            for row in place.nodes
        ],
    )
    problems = {place.site: place.problem for place in found if place.problem is not None}
    console.result_json(products.to_data(found))
    return _told(problems, len(session.sites))


@command("sites")
def sites(context: Any, json: bool = False) -> None:
    """Show the sites that are known, and whether clouds.yaml leads to them."""
    known = all_sites()
    try:
        entries = {site.name for site in cloud.with_entry(known)}
    except InputError:
        entries = set()
    connections = cloud.connect_all([site for site in known if site.name in entries])
    rows = []
    for site in known:
        found = connections.get(site.name)
        state = "no entry" if found is None else str(found) if isinstance(found, SageError) else "answers"
        rows.append({"site": site.name, "kind": str(site.kind), "auth_url": site.auth_url, "state": state})
    console.table(["site", "kind", "identity", "clouds.yaml"], [list(row.values()) for row in rows])
    console.result_json(rows)


@command(
    "gc",
    name="all that this experiment has, at use or not",
    everything="all that was made here, of all experiments, at use or not",
)
def collect_garbage(
    context: Any,
    site: str = "",
    name: str = "",
    everything: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Give back what no run can use any more, whichever machine made it."""
    session = open_session(words(site))
    noted = ledger.read(session.state)

    def sweep(connection: Any, where: Site) -> tuple[gc.Swept, ...]:
        whole = everything or bool(name)
        planned = gc.plan(where, look(connection, where), noted, experiment=name or None, everything=whole)
        if dry_run:
            return tuple(gc.Swept(entry, None) for entry in planned.give_back)
        return gc.carry_out(connection, planned, session.state)

    with console.stage("look for what is left" if dry_run else "give back what is left"):
        found, problems = _parted(session.each(sweep))
    rows = []
    for place, swept in found.items():
        for one in swept:
            state = one.problem.message if one.problem else "would go" if dry_run else "is gone"
            rows.append([place, str(one.entry.kind), one.entry.name, str(one.entry.run), state])
    failed = any(one.problem for swept in found.values() for one in swept)
    console.table(["site", "what", "name", "run", ""], rows)
    things = [dict(zip(("site", "kind", "name", "run", "state"), row, strict=True)) for row in rows]
    console.result_json({"things": things, "problems": products.to_data(problems)})
    return _told(problems, len(session.sites)) or (1 if failed else 0)


# What they share


def _parted(answers: Mapping[str, Found | SageError]) -> tuple[dict[str, Found], dict[str, Problem]]:
    """What the sites gave, and the problems of the others."""
    found: dict[str, Found] = {}
    problems: dict[str, Problem] = {}
    for place, answer in answers.items():
        if isinstance(answer, SageError):
            problems[place] = Problem(str(answer), answer.hint, isinstance(answer, InputError))
        else:
            found[place] = answer
    return found, problems


def _told(problems: Mapping[str, Problem], asked: int) -> int:
    """Tell the problems, and give the exit code."""
    tell_problems(problems)
    if not problems:
        return 0
    if len(problems) < asked:
        return SOME_FAILED
    return 2 if all(problem.bad_input for problem in problems.values()) else 1


def _raise_first(problems: Mapping[str, Problem]) -> None:
    for problem in problems.values():
        raise (InputError if problem.bad_input else SageError)(problem.message, hint=problem.hint)


def _find_lease(session: Session, word: str) -> tuple[Site, Lease]:
    found, problems = _parted(session.each(lambda connection, where: blazar.list_leases(connection)))
    matching = {place: rows for place, rows in found.items() if any(word in (row.id, row.name) for row in rows)}
    if not matching:
        _raise_first(problems)
        raise InputError(f"there is no lease {word!r}", hint="`fab lease.list --everyone` shows those that there are")
    if len(matching) > 1:
        raise InputError(f"there are leases {word!r} at {', '.join(matching)}", hint="name the site with --site")
    place, rows = next(iter(matching.items()))
    return session.site(place), leases.pick(rows, word, place)


def _find_node(session: Session, word: str, *, broken: bool = False) -> tuple[Site, Server]:
    found, problems = _parted(session.each(lambda connection, where: server.list_ours(connection)))
    everywhere = [(place, one) for place, nodes in found.items() for one in nodes if word in (one.id, one.name)]
    healthy = [(place, one) for place, one in everywhere if one.status != "ERROR"]
    candidates = everywhere if broken or not healthy else healthy
    if not candidates:
        _raise_first(problems)
    one = server.pick([one for _, one in candidates], word)
    place = next(place for place, other in candidates if other.id == one.id)
    return session.site(place), one


def _reached(session: Session, where: Site, one: Server, user: str, address: str) -> Target:
    """The node, let in and with a host key of its own."""
    return reach.reach(
        session.connection(where.name), one.id, session.identity()[0], deadline=60.0, address=address or None, user=user
    )


def _with_group(request: ServerRequest, group: str | None) -> ServerRequest:
    return dataclasses.replace(request, security_group=group)


def _write_ssh_files(
    session: Session, where: Site, nodes: Iterable[Server], key: Path, *, known: Target | None = None
) -> Path:
    """Write the ssh files for a site's nodes; ``known``: one that is reached otherwise than the site tells."""
    targets = [known] if known is not None else []
    for one in nodes:
        if one.floating_ip is not None and one.status != "ERROR" and (known is None or one.id != known.server_id):
            with contextlib.suppress(InputError):  # not launched by this program
                targets.append(ssh.target_of(one, key))
    return ssh.write_files(session.state, where.slug, targets)


def _tell_leases(found: Mapping[str, Sequence[Lease]], entries: Sequence[ledger.Entry]) -> None:
    now = datetime.now(timezone.utc)
    rows = []
    for place, some in found.items():
        for one in some:
            left = ledger.read_time(one.ends_at) - now
            types = ", ".join(dict.fromkeys(part.node_type for part in one.nodes if part.node_type))
            ips = sum(part.amount for part in one.floating_ips)
            rows.append([one.name, place, one.status, types, str(one.hosts), str(ips), one.ends_at, _left(left)])
    console.table(["lease", "site", "state", "node type", "nodes", "floating IPs", "ends at", "left"], rows)


def _left(left: timedelta) -> str:
    minutes = int(left.total_seconds() // 60)
    if minutes <= 0:
        return "over"
    return f"{minutes // 1440} d {minutes // 60 % 24} h" if minutes >= 1440 else f"{minutes // 60} h {minutes % 60} min"


namespace = Collection()
for _name, _tasks in {
    "lease": (lease_create, lease_list, lease_show, lease_extend, lease_delete, lease_wait, lease_remind),
    "node": (
        node_launch,
        node_list,
        node_ssh,
        node_run,
        node_put,
        node_get,
        node_reboot,
        node_console,
        node_diagnose,
        node_snapshot,
        node_delete,
    ),
    "nodes": (nodes_free,),
}.items():
    _collection = Collection(_name)
    for _task in _tasks:
        _collection.add_task(_task)
    namespace.add_collection(_collection)
for _task in (sites, collect_garbage):
    namespace.add_task(_task)

# SPDX-License-Identifier: Apache-2.0
"""Fabric tasks ``node.*``.  Exit codes as in :mod:`node_automation.task`."""

import dataclasses
import functools
from typing import Any

from invoke.collection import Collection

from chameleon_sites.sites import Site, SiteKind
from groundwork import console, products
from groundwork.errors import InputError, SageError
from groundwork.settings import one_of, whole_number
from node_automation import blazar, diagnose, launching, ledger, parallel, reach, server, ssh
from node_automation import lease as leases
from node_automation.launching import AddressFrom, Wishes
from node_automation.lease_tasks import find_lease
from node_automation.server import Server, ServerRequest
from node_automation.session import Session, open_session, words
from node_automation.ssh import Target
from node_automation.task import command, parted, raise_first, told

_NODE = "a node's name"
_NODES = "names of nodes, separated by commas"


@command(
    "launch",
    name="the node's name; of several: the name and a number",
    lease="a lease's name or id",
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
    user: str = "",
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
    where, found = find_lease(session, lease)
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
            metadata={server.USER: user} if user else {},
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
    ssh.write_site(session.state, where.slug, server.list_ours(connection), key)
    done = [result for result in results if not isinstance(result, SageError)]
    console.result_json({"site": where.name, "nodes": products.to_data(done), "failed": len(results) - len(done)})
    return 0 if len(done) == len(results) else 1


@command("list", name="only those of this experiment")
def node_list(context: Any, site: str = "", name: str = "", json: bool = False) -> int:
    """List nodes, and write the ssh config file for them."""
    session = open_session(words(site))
    found, problems = parted(session.each(lambda connection, where: server.list_ours(connection, name or None)))
    key, _ = session.identity()
    rows = []
    for place, nodes in found.items():
        if not name:
            ssh.write_site(session.state, session.site(place).slug, nodes, key)
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
    return told(problems, len(session.sites))


@command("ssh", node=_NODE, address="where it is, if not at its floating IP")
def node_ssh(context: Any, node: str, site: str = "", user: str = "", address: str = "") -> int:
    """Log in to a node, its host key checked."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    target = _reached(session, where, one, user, address)
    nodes = server.list_ours(session.connection(where.name))
    path = ssh.write_site(session.state, where.slug, nodes, session.identity()[0], known=target)
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
    user: str = "",
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
def node_put(context: Any, node: str, local: str, remote: str = "", site: str = "", user: str = "") -> None:
    """Copy a file to a node."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    shell, _ = ssh.connect(_reached(session, where, one, user, ""))
    with shell:
        ssh.put(shell, local, remote)
    console.result(f"{local} is at {node}")


@command("get", node=_NODE, remote="a file at the node", local="where it goes here; this folder, if left out")
def node_get(context: Any, node: str, remote: str, local: str = "", site: str = "", user: str = "") -> None:
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
    context: Any, node: str, site: str = "", user: str = "", address: str = "", json: bool = False
) -> int:
    """Find out why a node does not answer: stage by stage, up to the first that fails."""
    session = open_session(words(site))
    where, one = _find_node(session, node)
    target = None
    if address or one.floating_ip:
        target = ssh.target_of(one, session.identity()[0], address=address or None, user=user or None)
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


def _find_node(session: Session, word: str, *, broken: bool = False) -> tuple[Site, Server]:
    found, problems = parted(session.each(lambda connection, where: server.list_ours(connection)))
    everywhere = [(place, one) for place, nodes in found.items() for one in nodes if word in (one.id, one.name)]
    healthy = [(place, one) for place, one in everywhere if one.status != "ERROR"]
    candidates = everywhere if broken or not healthy else healthy
    if not candidates:
        raise_first(problems)
    one = server.pick([one for _, one in candidates], word)
    place = next(place for place, other in candidates if other.id == one.id)
    return session.site(place), one


def _reached(session: Session, where: Site, one: Server, user: str, address: str) -> Target:
    """The node, let in and with a host key of its own."""
    return reach.reach(
        session.connection(where.name),
        one.id,
        session.identity()[0],
        deadline=60.0,
        address=address or None,
        user=user or None,
    )


def _with_group(request: ServerRequest, group: str | None) -> ServerRequest:
    return dataclasses.replace(request, security_group=group)


collection = Collection(
    "node",
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
)

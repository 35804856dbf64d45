# SPDX-License-Identifier: Apache-2.0
"""Fabric tasks of whole sites: what is free, which sites there are, what is left over.  Exit codes as in
:mod:`node_automation.task`."""

from datetime import datetime, timedelta, timezone
from typing import Any

from invoke.collection import Collection

from chameleon_sites import cloud
from chameleon_sites.sites import Site
from groundwork import console, products
from groundwork.errors import InputError, SageError
from node_automation import free, gc, ledger
from node_automation import lease as leases
from node_automation.session import all_sites, open_session, words
from node_automation.tagged import look
from node_automation.task import command, parted, told


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
    return told(problems, len(session.sites))


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
        found, problems = parted(session.each(sweep))
    rows = []
    for place, swept in found.items():
        for one in swept:
            state = one.problem.message if one.problem else "would go" if dry_run else "is gone"
            rows.append([place, str(one.entry.kind), one.entry.name, str(one.entry.run), state])
    failed = any(one.problem for swept in found.values() for one in swept)
    console.table(["site", "what", "name", "run", ""], rows)
    things = [dict(zip(("site", "kind", "name", "run", "state"), row, strict=True)) for row in rows]
    console.result_json({"things": things, "problems": products.to_data(problems)})
    return told(problems, len(session.sites)) or (1 if failed else 0)


nodes = Collection("nodes", nodes_free)

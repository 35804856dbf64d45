# SPDX-License-Identifier: Apache-2.0
"""The commands of beehive-server: flags in, results out; the work is done in ``beehive/``.

What a command does not need is not imported: the machines that run it may be slow.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from virtual_waggle import forms

if TYPE_CHECKING:
    from virtual_waggle.beehive.cluster import Cluster
    from virtual_waggle.beehive.state import State
    from virtual_waggle.forms import Deployment
    from virtual_waggle.stack import Form

_AT_REST = ("stopped", "exited")  # states of a service that does nothing and will do nothing by itself
_TROUBLED = 1  # exit code of status where something is not as it should be


def add(commands: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the commands to the parser; each sets ``act`` to what does it."""

    def command(name: str, act: Callable[[Namespace], int], text: str) -> ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        made.add_argument("--state-dir", metavar="DIR", help="the Beehive's folder (default: $BEEHIVE_STATE_DIR)")
        made.add_argument("--json", action="store_true", help="the result as JSON")
        return made

    for name, act, text in (
        ("deploy", deploy, "make a Beehive's keys, certificates and settings, or repair them; nothing is started"),
        ("up", up, "deploy, and start the services"),
    ):
        made = command(name, act, text)
        made.add_argument(
            "--host", metavar="NAME", help="names and addresses that nodes reach it by; with a comma between"
        )
        made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting in beehive.env")
        made.add_argument("--native", action="store_true", help="as plain processes instead of containers")
    command("down", down, "stop the services; all data stay")
    command("status", status, "how each service does; exit code 1 where one does not do well")

    made = command("register", register, "let a node register, and give what it needs for that")
    made.add_argument("node", metavar="NODE_ID")
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="write register.pem and known_hosts there, for the node's private/"
    )

    made = command("nodes", nodes, "the nodes, and how far each has come; or admit or remove one")
    made.add_argument("what", nargs="?", choices=("list", "admit", "remove"), default="list", metavar="admit|remove")
    made.add_argument("node", nargs="?", metavar="NODE_ID")

    made = command("backup", backup, "keys, settings, nodes and store in one file, made while the Beehive runs")
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument("--uploads", action="store_true", help="uploaded files too")
    made = command("restore", restore, "make a Beehive of a backup, as a whole or not at all")
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument("--force", action="store_true", help="where one stands already: what was there is kept beside")

    made = command("forget", forget, "take a machine that is lost for good out of a cluster; run on another one")
    made.add_argument("machine", metavar="MACHINE", help="its name in BEEHIVE_CLUSTER")

    made = command("logs", logs, "what the services said")
    made.add_argument("service", nargs="*", metavar="SERVICE")
    made.add_argument("--follow", "-f", action="store_true", help="go on with what they say from now on")
    made.add_argument("--lines", type=int, default=100, metavar="N", help="of each (default: %(default)s)")


def deploy(given: Namespace) -> int:
    """Make the state folder; tell what changed."""
    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.beehive import deployment
    from virtual_waggle.beehive import state as states

    folder = states.chosen(given.state_dir).folder
    given.native |= stack.form_of(folder) == stack.Form.NATIVE
    state, changed = _deployed(given)
    console.result_json({"state_dir": str(state.folder), "changed": changed, "addresses": deployment.addresses(state)})
    for name in changed:
        console.result(f"made {name}")
    console.result(f"a Beehive is in {state.folder}; start it: beehive-server up")
    return 0


def up(given: Namespace) -> int:
    """Deploy, start, tell where it is reached."""
    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.beehive import deployment, settings

    state, changed = _deployed(given)
    rows = stack.up(state.folder, _making(state))
    if settings.read(state.settings_file).cluster:
        with console.stage("cluster", brief=True):
            deployment.join_cluster(state)
    addresses = deployment.addresses(state)
    form = str(stack.form_of(state.folder))
    console.result_json(
        {
            "state_dir": str(state.folder),
            "form": form,
            "changed": changed,
            "addresses": addresses,
            "services": forms.as_data(rows),
        }
    )
    forms.print_table(rows)
    console.result(f"the Beehive is up; its folder is {state.folder}")
    for name, place in addresses.items():
        console.result(f"  {name:12} {place}")
    return 0


def down(given: Namespace) -> int:
    """Stop the services."""
    from groundwork import console
    from virtual_waggle import stack

    state = _state(given)
    stack.down(state.folder, _making(state))
    console.result_json({"services": forms.as_data(stack.status(state.folder, _making(state)))})
    console.result("the Beehive's services are stopped; its data stay")
    return 0


def status(given: Namespace) -> int:
    """How each service does, and each broker of a cluster."""
    from dataclasses import asdict

    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.beehive import settings

    state = _state(given)
    rows = stack.status(state.folder, _making(state))
    known = settings.read(state.settings_file)
    found = _cluster(state) if known.cluster else None
    data = {"form": str(stack.form_of(state.folder)), "services": forms.as_data(rows)}
    console.result_json({**data, "cluster": asdict(found)} if found else data)
    forms.print_table(rows)
    if known.cluster:
        _cluster_table(known.cluster, found)
    whole = not known.cluster or (found is not None and len(found.online) == len(known.cluster))
    return 0 if whole and all(row.ready for row in rows) else _TROUBLED


def logs(given: Namespace) -> int:
    """What the services said, line by line."""
    import sys

    from virtual_waggle import stack

    state = _state(given)
    for line in stack.logs(state.folder, _making(state), given.service, follow=given.follow, lines=given.lines):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


def register(given: Namespace) -> int:
    """Admit a node, and hand out what it registers with."""
    from dataclasses import asdict
    from datetime import datetime, timezone

    from groundwork import console, files
    from virtual_waggle.beehive import nodes as known
    from virtual_waggle.beehive import state as states

    state = _at_first(_state(given))
    node = known.admit(state.nodes, given.node, now=datetime.now(timezone.utc))
    handed = states.handout(state)
    if given.out:
        for name, text in handed.items():
            files.write_text(given.out / name, text, mode=0o600)
    console.result_json({**asdict(node), "files": [str(given.out / name) for name in handed] if given.out else []})
    console.result(f"node {node.id} is {node.status}")
    if given.out:
        console.result(f"for the node's folder private/: {', '.join(str(given.out / name) for name in handed)}")
    else:
        console.result(
            f"it needs {' and '.join(handed)} of {state.private} in its folder private/; --out DIR copies them"
        )
    return 0


def nodes(given: Namespace) -> int:
    """All nodes; or admit or remove one."""
    from dataclasses import asdict
    from datetime import datetime, timezone

    from groundwork import console
    from groundwork.errors import InputError
    from virtual_waggle.beehive import nodes as known

    state = _at_first(_state(given))
    if (given.what == "list") != (given.node is None):
        raise InputError(f"nodes {given.what}: expected {'no' if given.what == 'list' else 'a'} node's id")
    if given.what == "list":
        found = known.every(state.nodes)
        seen = _last_seen(state, [node.id for node in found])
        texts = {node_id: known.time_text(moment) for node_id, moment in seen.items()}
        console.result_json({"nodes": [{**asdict(node), "last_seen": texts.get(node.id, "")} for node in found]})
        console.table(["node", "status", "since", "certificates until", "last measurement"], known.listing(found, seen))
        return 0
    change = known.remove if given.what == "remove" else known.admit
    node = change(state.nodes, given.node, now=datetime.now(timezone.utc))
    console.result_json(asdict(node))
    console.result(f"node {node.id} is {node.status}")
    return 0


def _last_seen(state: "State", ids: "Sequence[str]") -> Mapping[str, datetime]:
    """When nodes last measured something; nothing where the store can't be asked."""
    from datetime import timezone

    from groundwork import console
    from virtual_waggle.beehive import nodes as known
    from virtual_waggle.beehive import settings, store

    address = settings.read(state.settings_file).store
    if not ids or (address == "sqlite" and not state.database.exists()):
        return {}
    try:
        opened = store.open_store(address, state.store, store.read_password(state.private))
        try:
            return known.last_seen(opened, ids, now=datetime.now(timezone.utc))
        finally:
            opened.close()
    except store.StoreUnavailable as error:
        console.warn(str(error), hint=error.hint)
        return {}


def backup(given: Namespace) -> int:
    """All that a Beehive is, in one file."""
    from dataclasses import asdict
    from datetime import datetime, timezone

    from groundwork import console
    from virtual_waggle.beehive import backup as backups

    state = _state(given)
    with console.stage("backup", brief=True) as stage:
        now = datetime.now(timezone.utc)
        made = backups.backup(state, given.file, uploads=given.uploads, now=now, tell=stage.detail)
    console.result_json({"file": str(given.file), **asdict(made)})
    console.result(f"{given.file}: {made.count} files, {console.mebibytes(made.size)} before they were packed")
    console.result("it holds all keys: keep it where nobody else reads it")
    return 0


def restore(given: Namespace) -> int:
    """A Beehive out of a backup."""
    from dataclasses import asdict
    from datetime import datetime, timezone

    from groundwork import console
    from groundwork.errors import InputError
    from virtual_waggle import stack
    from virtual_waggle.beehive import backup as backups
    from virtual_waggle.beehive import state as states

    state = states.chosen(given.state_dir)
    if state.settings_file.exists() and stack.was_started(state.folder):
        at_work = [row for row in stack.status(state.folder, _making(state)) if row.state not in _AT_REST]
        if at_work:
            told = ", ".join(f"{row.service} ({row.state})" for row in at_work)
            raise InputError(f"services are not stopped: {told}", hint="stop them first: beehive-server down")
    with console.stage("restoration", brief=True) as stage:
        now = datetime.now(timezone.utc)
        made = backups.restore(given.file, state, force=given.force, now=now, tell=stage.detail)
    console.result_json({"state_dir": str(state.folder), **asdict(made)})
    console.result(f"restored the Beehive of {made.head.made} in {state.folder}; start it: beehive-server up")
    return 0


def _cluster(state: "State") -> "Cluster | None":
    """The cluster, where this machine's broker answers."""
    from virtual_waggle.beehive import cluster, deployment
    from virtual_waggle.broker_client import BrokerError

    try:
        return cluster.look(deployment.management(state))
    except BrokerError:
        return None


def _cluster_table(machines: Sequence[str], found: "Cluster | None") -> None:
    from groundwork import console
    from virtual_waggle import broker

    def states(name: str) -> list[str]:
        if found is None:
            return ["unknown", "unknown"]
        copy = "leader" if name == found.leader else "online" if name in found.online else "offline"
        return ["running" if name in found.running else "down", copy if name in found.copies else "none"]

    names = [broker.name_in_cluster(machine) for machine in machines]
    console.table(["broker", "state", "copy of the queue"], [[name, *states(name)] for name in names])


def _at_first(state: "State") -> "State":
    """Raises InputError where this machine of a cluster is not the one where nodes register."""
    from groundwork.errors import InputError
    from virtual_waggle.beehive import settings

    known = settings.read(state.settings_file)
    if not known.is_first:
        raise InputError(f"nodes register at {known.cluster[0]}, not at {known.member}", hint="run it there")
    return state


def forget(given: Namespace) -> int:
    """A lost machine's broker, out of the cluster."""
    from groundwork import console
    from virtual_waggle.beehive import deployment

    deployment.forget_machine(_state(given), given.machine)
    console.result_json({"forgotten": given.machine})
    console.result(f"the brokers have forgotten {given.machine}; a new machine can join under this name")
    return 0


def _state(given: Namespace) -> "State":
    """The state folder that is there.  Raises InputError where none is."""
    from groundwork.errors import InputError
    from virtual_waggle.beehive import state as states

    state = states.chosen(given.state_dir)
    if not state.settings_file.exists():
        raise InputError(f"no Beehive in {state.folder}", hint="`beehive-server deploy` makes one; or give --state-dir")
    return state


def _deployed(given: Namespace) -> "tuple[State, list[str]]":
    import os
    from datetime import datetime, timezone

    from groundwork import console
    from groundwork.errors import InputError
    from virtual_waggle import env_file, stack
    from virtual_waggle.beehive import deployment, settings
    from virtual_waggle.beehive import state as states
    from virtual_waggle.broker import Place

    state = states.chosen(given.state_dir)
    wanted = {"BEEHIVE_HOST": given.host} if given.host else {}
    for text in given.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected NAME=VALUE, found {text!r}")
        wanted[name] = value
    now = datetime.now(timezone.utc)
    with console.stage("keys and certificates", brief=True):
        if not state.settings_file.exists() and "BEEHIVE_HOST" in wanted:
            # where the broker listens is a setting too
            known = settings.of(env_file.from_environment(wanted, settings.TABLE))
            place = deployment.place(state, known, native=given.native, environment={**os.environ, **wanted})
        elif state.settings_file.exists():
            place = deployment.place(state, settings.read(state.settings_file), native=given.native)
        else:
            place = Place("", "", "")  # deploy says what is missing
        changed = states.deploy(state, wanted, place, now=now)
        settled = deployment.place(state, settings.read(state.settings_file), native=given.native)
        if settled != place:  # by what was set just now
            changed += states.deploy(state, wanted, settled, now=now)
    stack.choose(state.folder, stack.Form.NATIVE if given.native else stack.Form.DOCKER, _making(state))
    return state, list(dict.fromkeys(changed))


def _making(state: "State") -> "Callable[[Form], Deployment]":
    from virtual_waggle.beehive import deployment

    return lambda form: deployment.deployment(state, native=form == "native")

# SPDX-License-Identifier: Apache-2.0
"""Fabric tasks of experiments: words in, tables or JSON out.  Exit codes as in :mod:`node_automation.task`.

4: done, but the command that was to be told of it failed.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fabric.tasks import Task
from invoke.parser.argument import Argument

from chameleon_sites.sites import load_sites
from groundwork import console, products
from groundwork.errors import InputError, SageError
from groundwork.files import join_names
from image_builder.cli import tell_problems
from node_automation import collect as collecting
from node_automation import down as teardown
from node_automation import experiment as experiments
from node_automation import ledger, names, plan, server, ssh, status, survey
from node_automation import up as setup
from node_automation.experiment import Experiment
from node_automation.ledger import Run
from node_automation.session import Session, open_session, values, words
from node_automation.tagged import Things
from node_automation.task import SOME_FAILED, command
from node_automation.up import Options, UpReport

_FILE = "an experiment's file"
_WORD = "an experiment's name, or its file"
_ROLES = "a folder with roles of your own"
_NETWORK = "the network that nodes are attached to"


class _InsteadOfFile(Argument):
    """A flag that stands in for the file: who gives the one gives not the other.

    Fabric has no argument without a flag that may be left out.
    """

    file: Argument

    def set_value(self, value: Any, cast: bool = True) -> None:
        super().set_value(value, cast)
        if self.file.value is None:
            self.file.set_value("", cast=False)


class _Up(Task):  # type: ignore[misc]  # fabric has no types
    """The task ``up``, which takes a file, or the flag ``--role``."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        arguments = super().get_arguments(ignore_unknown_help)
        (file,) = [argument for argument in arguments if argument.name == "file"]
        for position, known in enumerate(arguments):
            if known.name == "role":
                made = _InsteadOfFile(names=known.names, kind=known.kind, default=known.default, help=known.help)
                made.file = file
                arguments[position] = made
        return list(arguments)


@command(
    "up",
    file=_FILE,
    role="a role, instead of a file: an experiment of its nodes alone",
    node_type="with --role: node types, or flavors of a KVM site, the preferred one first",
    number="with --role: how many nodes",
    image="with --role: an image's name or id, or sha512: and its digest; the role's own, if left out",
    name="with --role: the experiment's name; the role's, if left out",
    duration="with --role: how long, as 90m, 4h or 2d",
    site="with --role: sites, the preferred one first",
    roles=_ROLES,
    network=_NETWORK,
)
def _up(
    context: Any,
    file: str,
    role: str = "",
    site: str = "",
    node_type: str = "",
    number: int = 1,
    image: str = "",
    name: str = "",
    duration: str = "",
    roles: str = "",
    network: str = names.SHARED_NETWORK,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Make an experiment stand, or what is missing of it: leases, nodes, and what their roles start."""
    known = load_sites(values()["sites_file"])
    folders = [Path(roles).expanduser()] if roles else []
    if role:
        if file:
            raise InputError("a file and --role were given", hint="one of the two")
        experiment = experiments.of_role(
            name or role,
            role,
            known,
            sites=words(site),
            node_types=words(node_type),
            number=number,
            image=image or None,
            seconds=experiments.read_duration(duration) if duration else experiments.DURATION,
            role_folders=folders,
        )
    else:
        if given := [flag for flag, text in (("--site", site), ("--node-type", node_type), ("--name", name)) if text]:
            raise InputError(f"{given[0]} goes with --role; a file says it itself", hint=f"write it into {file}")
        experiment = experiments.load(Path(file), known, folders)
    return _make_stand(experiment, network, dry_run=dry_run)


up = _Up(_up.body, name="up", help=_up.help, auto_shortflags=False)


@command("down", experiment=_WORD)
def down(context: Any, experiment: str, site: str = "", dry_run: bool = False, json: bool = False) -> int:
    """Give back all that stands of an experiment, whichever machine made it."""
    name = _name_of(experiment)
    session = open_session(words(site))
    if dry_run:
        sweeps, problems = teardown.plan_for(name, session.sites, session.connections, session.state)
        steps = teardown.steps_for(sweeps)
        for step in steps:
            console.result(step.text)
        tell_problems({row.site: row.problem for row in problems})
        console.result_json({"steps": products.to_data(steps), "problems": products.to_data(problems)})
        return SOME_FAILED if problems else 0
    report = teardown.down(name, session.sites, session.connections, session.state)
    for row in report.steps:
        if row.problem is not None:
            console.complain(f"{row.key}: {row.problem.message}", hint=row.problem.hint)
    tell_problems({row.site: row.problem for row in report.problems})
    _write_ssh_files(session)
    done = sum(row.problem is None for row in report.steps)
    console.result(
        f"{name}: {done} of {len(report.steps)} given back; it took {report.node_hours:.1f} node hours"
        if report.steps
        else f"nothing of {name} stands"
    )
    console.result_json(products.to_data(report))
    return report.exit_code


@command("status", name="only this experiment")
def show_status(context: Any, name: str = "", site: str = "", json: bool = False) -> int:
    """Tell what stands at all sites, how long its leases yet run, and what it has cost in node hours."""
    session = open_session(words(site))
    things = status.look(session.sites, session.connections)
    now = datetime.now(timezone.utc)
    found = status.of(session.sites, things, ledger.read(session.state), now, name or None)
    for title, headings, rows in status.tables(found):
        console.table(headings, rows, title=title)
    if not (found.nodes or found.leases or found.others):
        console.result(f"nothing of {name} stands" if name else "nothing stands")
    console.result(f"{found.node_hours:.1f} node hours up to now")
    tell_problems({row.site: row.problem for row in found.problems})
    console.result_json(products.to_data(found))
    if not found.problems:
        return 0
    return SOME_FAILED if len(found.problems) < len(session.sites) else 1


@command(
    "collect",
    experiment=_WORD,
    output="the folder in which a folder is made for it",
    roles=_ROLES,
)
def collect(
    context: Any, experiment: str, output: str = "collected", site: str = "", roles: str = "", json: bool = False
) -> int:
    """Bring logs, results and metrics of all nodes into one folder, with a manifest."""
    folders = [Path(roles).expanduser()] if roles else []
    session = open_session(words(site))
    whole, run = _standing_experiment(session, experiment, folders)
    key, _ = session.identity()
    folder, manifest = collecting.collect(
        whole, run, session.sites, session.connections, session.state, key, Path(output).expanduser()
    )
    rows = [
        [node.name, node.site, str(len(node.files)), console.mebibytes(sum(file.size for file in node.files))]
        for node in manifest.nodes
    ]
    console.table(["node", "site", "files", "size"], rows)
    console.result(f"collected in {folder}")
    console.result_json({"folder": str(folder), **products.to_data(manifest)})
    bad = sum(bool(node.problems) for node in manifest.nodes)
    if not bad:
        return 0
    return 1 if bad == len(manifest.nodes) and not any(node.files for node in manifest.nodes) else SOME_FAILED


@command("replay", folder="what `fab collect` made", name="another name for it", network=_NETWORK)
def replay(
    context: Any,
    folder: str,
    name: str = "",
    network: str = names.SHARED_NETWORK,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Make an experiment stand again, on the very images that it was collected from."""
    manifest, experiment = collecting.read(Path(folder))
    session = open_session(sorted({node.site for node in manifest.nodes}))
    pinned = collecting.again(manifest, experiment, session.connections, name or None)
    things = status.look(session.sites, session.connections)
    answers = [(site, found) for site in session.sites if isinstance(found := things[site.name], Things)]
    if survey.stands(pinned.name, ledger.read(session.state), answers):
        raise InputError(
            f"an experiment {pinned.name} stands already", hint=f"`fab down {pinned.name}` first, or give --name"
        )
    return _make_stand(pinned, network, dry_run=dry_run)


def _make_stand(experiment: Experiment, network: str, *, dry_run: bool) -> int:
    """Plan, carry out, tell."""
    named = {site for group in experiment.groups for site in group.sites}
    state: Path = values()["state_dir"]
    named |= {entry.site for entry in ledger.open_entries(ledger.read(state), experiment=experiment.name)}
    session = open_session(sorted(named))
    options = Options(session.state, session.ssh_key, network)
    if dry_run:
        planned, _, _ = setup.plan_for(experiment, session.sites, session.connections, options)
        for line in plan.text_of(planned):
            console.result(line)
        console.result_json(products.to_data(planned))
        return 0
    report = setup.up(experiment, session.sites, session.connections, options)
    _tell(report)
    code = report.exit_code
    _write_ssh_files(session)
    console.result_json({**products.to_data(report), "exit_code": code})
    return setup.notify(experiment.notify, report, code)


def _tell(report: UpReport) -> None:
    rows = [
        [
            node.name,
            node.role,
            node.site,
            node.node_type,
            "up" if node.up else "not up",
            node.address or node.fixed_address or "",
        ]
        for node in report.nodes
    ]
    console.table(["node", "role", "site", "type", "state", "address"], rows)
    for node in report.nodes:
        if node.problem is not None:
            console.complain(f"{node.name}: {node.problem.message}", hint=node.problem.hint)
    if report.exit_code:
        console.result("run it again to finish what is missing, or `fab down` to give all back")


def _write_ssh_files(session: Session) -> None:
    """Write the ssh config file anew, for all nodes that stand at these sites."""
    key, _ = session.identity()
    found = session.each(lambda connection, where: server.list_ours(connection))
    for site in session.sites:
        nodes = found[site.name]
        if not isinstance(nodes, SageError):  # else what was written before stays
            ssh.write_site(session.state, site.slug, nodes, key)


def _name_of(word: str) -> str:
    """An experiment's name, or that which stands in its file."""
    if Path(word).suffix in (".yaml", ".yml"):
        return experiments.name_in(Path(word))
    return ledger.check_name(word)


def _standing_experiment(session: Session, word: str, folders: Sequence[Path]) -> tuple[Experiment, Run]:
    """The experiment, by its file or as it was last made to stand, and the run of which something stands."""
    name = _name_of(word)
    things = status.look(session.sites, session.connections)
    answers = [(site, found) for site in session.sites if isinstance(found := things[site.name], Things)]
    noted = ledger.read(session.state)
    if not survey.stands(name, noted, answers):
        troubles = [site for site, found in things.items() if isinstance(found, SageError)]
        silent = f" ({join_names(troubles)} did not answer)" if troubles else ""
        raise InputError(f"nothing of {name} stands{silent}", hint="`fab status` tells what stands")
    run = survey.choose_run(name, noted, answers)
    if name != word:
        return experiments.load(Path(word), load_sites(values()["sites_file"]), folders), run
    kept = setup.recall(session.state, run)
    if kept is None:
        raise InputError(f"{name} was not made to stand by this machine", hint="name its file")
    return kept, run


TASKS = (up, down, show_status, collect, replay)

# SPDX-License-Identifier: Apache-2.0
"""Makes an experiment stand: survey, plan, and the plan's steps carried out.

Run again, it makes what is missing and repairs what does not do well.  What is made is in the ledger before it is made,
so it may be killed at any step.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_sites.sites import Site, SiteKind
from groundwork import console, process, products
from groundwork.console import Stage
from groundwork.errors import Interrupted, SageError
from image_builder.publication import Problem
from node_automation import address, blazar, ledger, names, on_node, parallel, reach, server, ssh, status, steps, survey
from node_automation import experiment as experiments
from node_automation import lease as leasing
from node_automation import plan as planning
from node_automation import role as roles
from node_automation.blazar import Lease, NoFloatingIP
from node_automation.experiment import Experiment, Node, Notify
from node_automation.ledger import Run
from node_automation.plan import NodePlan, Plan, Standing, Step, StepKind
from node_automation.progress import Progress
from node_automation.server import Resolved, Server, ServerRequest
from node_automation.ssh import Target
from node_automation.steps import Ended
from node_automation.tagged import Things

if TYPE_CHECKING:
    from fabric import Connection as Shell
    from openstack.connection import Connection

_LEASE_EXPECTED = 20.0
_KEEPALIVE = 30
UNTOLD = 4  # exit code: done, but the one who was to be told was not


@dataclass(frozen=True)
class Options:
    """How.  ``state``: the folder of the ledger; ``identity``: a private key to log in with, None for our own.

    ``network``: that servers are attached to, by name or id.
    """

    state: Path
    identity: Path | None = None
    network: str = names.SHARED_NETWORK


@dataclass(frozen=True)
class NodeReport:
    """A node at the end.  ``up``: it is launched, answers, and does what its role promises."""

    name: str
    role: str
    site: str
    node_type: str
    up: bool
    address: str | None
    fixed_address: str | None
    server_id: str | None
    image_id: str
    problem: Problem | None


@dataclass(frozen=True)
class UpReport:
    """What came of it.  Times are UTC, RFC 3339; lengths in seconds."""

    experiment: str
    run_id: str
    begun_at: str
    seconds: float
    nodes: tuple[NodeReport, ...]
    steps: tuple[Ended, ...]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 all nodes are up, 1 none is, 3 some are."""
        up = sum(node.up for node in self.nodes)
        return 0 if up == len(self.nodes) else 3 if up else 1


@dataclass
class _Work:
    """What the steps of one plan share; each node's step is alone with its node's entries."""

    experiment: Experiment
    plan: Plan
    run: Run
    sites: Mapping[str, Site]
    connections: "Mapping[str, Connection | SageError]"
    options: Options
    identity: Path
    public: str
    stop: threading.Event
    progress: Progress
    full: dict[tuple[str, str], str]  # (site, node type) -> why no lease was to be had
    leases: dict[str, Lease] = field(default_factory=dict)  # by id, and by the plan's key
    servers: dict[str, Server] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    shells: "dict[str, Shell]" = field(default_factory=dict)
    ids: dict[str, Callable[[ServerRequest], Resolved]] = field(default_factory=dict)  # by site
    making_group: dict[str, threading.Lock] = field(default_factory=dict)  # by site

    def connection(self, site: str) -> "Connection":
        found = self.connections[site]
        if isinstance(found, SageError):
            raise found
        return found


def plan_for(
    experiment: Experiment,
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    options: Options,
    full: Mapping[tuple[str, str], str] | None = None,
) -> tuple[Plan, Standing, dict[str, Things]]:
    """What would be done; asks, and changes nothing.

    Waits for what a run that was killed a moment ago may have asked for.
    """
    while True:
        noted = ledger.read(options.state)
        standing, things = survey.make(experiment, sites, connections, noted)
        answers = [(site, things[site.name]) for site in sites if site.name in things]
        if not survey.unsettled(experiment.name, noted, answers, datetime.now(timezone.utc)):
            break
        time.sleep(survey.LOOK)
    slugs = {site.name: site.slug for site in sites}
    return planning.make(experiment, standing, slugs=slugs, full=full), standing, things


def up(
    experiment: Experiment,
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    options: Options,
) -> UpReport:
    """Make all nodes of the experiment stand; what fails of one is in the report, and stops only what needs it.

    ``sites``: all that the experiment names.  Raises NoPlace, InputError, and the sites' errors where nothing can be
    begun.
    """
    begun, begin = datetime.now(timezone.utc), time.monotonic()
    full: dict[tuple[str, str], str] = {}
    with ledger.turn(options.state, experiment.name), console.stage(f"up {experiment.name}") as stage:
        while True:
            stage.detail("asking the sites")
            plan, standing, things = plan_for(experiment, sites, connections, options, full)
            survey.set_right(options.state, experiment.name, sites, things)
            for note in plan.notes:
                console.warn(note)
            remember(options.state, experiment, standing.run)
            work = _begin(experiment, plan, standing, sites, connections, options, things, stage, full)
            tried = len(full)
            try:
                ended = _carry_out(work)
            except Interrupted:
                console.say(f"`fab up` again goes on with {experiment.name}, `fab down` gives back what stands of it")
                raise
            except SageError as problem:
                if len(full) == tried:
                    raise
                console.warn(f"{problem}", hint="trying the next place")
            else:
                return _report(work, begun, time.monotonic() - begin, ended)


def _begin(
    experiment: Experiment,
    plan: Plan,
    standing: Standing,
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    options: Options,
    things: Mapping[str, Things],
    stage: Stage,
    full: dict[tuple[str, str], str],
) -> _Work:
    """What the steps share, with what stands already."""
    identity, public = ssh.identity(options.state, options.identity)
    work = _Work(
        experiment=experiment,
        plan=plan,
        run=standing.run,
        sites={site.name: site for site in sites},
        connections=connections,
        options=options,
        identity=identity,
        public=public,
        stop=threading.Event(),
        progress=Progress(stage),
        full=full,
    )
    planned = {node.server_id: node.name for node in plan.nodes if node.server_id is not None}
    for found in things.values():
        work.leases |= {lease.id: lease for lease in found.leases}
        for one in found.servers:
            if one.id in planned:
                work.servers[planned[one.id]] = one
                if one.floating_ip:
                    work.addresses[planned[one.id]] = one.floating_ip
    return work


def _carry_out(work: _Work) -> tuple[Ended, ...]:
    """Do the plan's steps.  Raises where a place turned out to have no room: then it is in ``full``."""
    tried = len(work.full)
    try:
        return steps.carry_out(
            work.plan.steps,
            lambda step: _ACTS[step.kind](work, step),
            work.progress,
            at_once={StepKind.LAUNCH: parallel.LAUNCHES},
            stop=work.stop,
            expected=lambda step: _expected(work, step),
            stop_for=lambda step, error: len(work.full) > tried,
        )
    finally:
        for shell in list(work.shells.values()):
            with suppress(Exception):
                shell.close()


def remember(state: Path, experiment: Experiment, run: Run) -> None:
    """Keep the experiment as it was made to stand, so that a name is enough to collect from it."""
    products.save(experiment, _kept(state, run))


def recall(state: Path, run: Run) -> Experiment | None:
    """The experiment as this machine last made it stand; None where it did not."""
    path = _kept(state, run)
    return products.load(Experiment, path) if path.exists() else None


def _kept(state: Path, run: Run) -> Path:
    return state / f"nodes/experiments/{run.experiment}-{run.id}.json"


def notify(notified: Notify | None, report: Any, code: int) -> int:
    """Give the report to whoever wants to be told; the program's exit code, which is UNTOLD where that fails."""
    if notified is None:
        return code
    try:
        process.run(notified.words, input=products.to_text(report).encode(), timeout=notified.deadline)
    except (SageError, OSError) as error:
        console.warn(f"the command of `notify` failed: {error}")
        return code or UNTOLD
    return code


def values_of(
    experiment: Experiment, node: Node, site: str, standing: Mapping[str, tuple[str, Server]]
) -> dict[str, str]:
    """The variables that a node's scripts find.  ``standing``: node -> its site and its server."""
    group = experiment.group(node.role)
    one = standing[node.name][1]
    outside = one.floating_ip or one.fixed_ip or ""
    values = {
        **group.role.variables,
        **group.variables,
        "SAGE_EXPERIMENT": experiment.name,
        "SAGE_NODE": node.name,
        "SAGE_ROLE": node.role,
        "SAGE_NUMBER": str(node.number),
        "SAGE_COUNT": str(group.number),
        "SAGE_SITE": site,
        "SAGE_ADDRESS": outside,
        "SAGE_FIXED_ADDRESS": one.fixed_ip or outside,
        "SAGE_NODE_ID": experiments.node_id(node.name),
    }
    for kind, giver in experiments.givers_of(experiment, node).items():
        if giver.name in standing:
            there, theirs = standing[giver.name]
            # Nodes of one site reach each other in its own network.
            near = theirs.fixed_ip if there == site else None
            host, name = roles.taken_variables(kind)
            values |= {host: near or theirs.floating_ip or theirs.fixed_ip or "", name: giver.name}
    return values


def _expected(work: _Work, step: Step) -> float | None:
    kind = work.sites[step.site].kind
    return {
        StepKind.LEASE: _LEASE_EXPECTED,
        StepKind.LAUNCH: server.EXPECTED.get(kind),
        StepKind.WAIT_NODE: server.EXPECTED.get(kind),
        StepKind.REACH: reach.EXPECTED.get(kind),
    }.get(step.kind)


# ------------------------------------------------------------------------------------------------ what each step does


def _lease(work: _Work, step: Step) -> None:
    wanted = work.plan.lease(step.about)
    connection = work.connection(wanted.site)
    site = work.sites[wanted.site]
    # At KVM sites addresses come from the common pool; on bare metal leased ones are another, larger one.
    request = leasing.LeaseRequest(
        run=work.run,
        count=wanted.hosts,
        length=timedelta(seconds=work.experiment.seconds),
        floating_ips=0 if site.kind is SiteKind.KVM else wanted.hosts,
        part=wanted.part,
    )
    where = leasing.tries([site], [wanted.node_type])
    try:
        try:
            held = leasing.obtain(request, where, {wanted.site: connection}, state=work.options.state, reuse=False)
        except NoFloatingIP as problem:
            console.warn(f"{problem}; nodes get some of the common pool")
            request = dataclasses.replace(request, floating_ips=0)
            held = leasing.obtain(request, where, {wanted.site: connection}, state=work.options.state, reuse=False)
        work.leases[wanted.key] = leasing.wait_active(
            connection, held.lease.id, tell=lambda word: work.progress.word(step.key, word), stop=work.stop
        )
    except (blazar.Full, blazar.Overspent, blazar.Restricted, leasing.Failed) as problem:
        work.full[wanted.site, wanted.node_type] = str(problem)
        raise


def _wait_lease(work: _Work, step: Step) -> None:
    work.leases[step.about] = leasing.wait_active(
        work.connection(step.site),
        step.about,
        tell=lambda word: work.progress.word(step.key, word),
        stop=work.stop,
    )


def _drop_lease(work: _Work, step: Step) -> None:
    leasing.give_back(
        work.connection(step.site),
        work.leases[step.about],
        work.options.state,
        tell=lambda word: work.progress.word(step.key, word),
        stop=work.stop,
    )


def _drop_node(work: _Work, step: Step) -> None:
    server.delete(
        work.connection(step.site),
        step.about,
        state=work.options.state,
        tell=lambda word: work.progress.word(step.key, word),
        stop=work.stop,
    )


def _launch(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    site = work.sites[node.site]
    connection = work.connection(node.site)
    group = None
    if site.kind is SiteKind.KVM:  # they let nothing in by default
        ports = {port for one in work.experiment.groups for port in one.role.ports}
        with work.making_group.setdefault(node.site, threading.Lock()):
            group = server.open_security_group(connection, work.run, ports, state=work.options.state)
    request = ServerRequest(
        run=work.run,
        node=node.name,
        image=node.from_image.id,
        node_type=node.node_type,
        reservation=work.leases[node.lease].nodes[0].id,
        authorized=(work.public,),
        security_group=group,
        metadata={status.ROLE: node.role, server.USER: work.experiment.group(node.role).role.user},
        network=work.options.network,
    )
    work.servers[node.name] = server.launch(
        connection,
        site,
        request,
        state=work.options.state,
        ids=work.ids.setdefault(node.site, server.resolver(connection, site)),
        tell=lambda word: work.progress.word(step.key, word),
        stop=work.stop,
    )


def _wait_node(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    work.servers[node.name] = server.wait_active(
        work.connection(node.site),
        work.servers[node.name].id,
        deadline=server.ACTIVE_WITHIN.get(work.sites[node.site].kind, 600.0),
        tell=lambda word: work.progress.word(step.key, word),
        stop=work.stop,
    )


def _address(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    lease = work.leases.get(node.lease)
    parts = lease.floating_ips if lease is not None else ()
    given = address.give(
        work.connection(node.site),
        work.servers[node.name].id,
        run=work.run,
        node=node.name,
        state=work.options.state,
        reservation=parts[0].id if parts else None,
    )
    work.addresses[node.name] = given.address


def _reach(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    work.targets[node.name] = reach.reach(
        work.connection(node.site),
        work.servers[node.name].id,
        work.identity,
        deadline=reach.WITHIN.get(work.sites[node.site].kind, 300.0),
        address=work.addresses[node.name],
        user=work.experiment.group(node.role).role.user,
        tell=lambda word: work.progress.word(step.key, word),
        stop=work.stop,
    )
    shell = _shell(work, node.name)
    said = on_node.run(shell, _SETTLED, {}, reach.WITHIN.get(work.sites[node.site].kind, 300.0))
    if said.code != 0:
        raise on_node.NotDone(f"cloud-init did not come to a good end on {node.name}: {said.last}")


# What is put and started needs the system as cloud-init leaves it; 2 tells of mere warnings.
_SETTLED = """\
if command -v cloud-init > /dev/null; then
  cloud-init status --wait > /dev/null || test $? = 2
fi
"""


def _put(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    role = work.experiment.group(node.role).role
    shell = _shell(work, node.name)
    on_node.open_ports(shell, role.ports)
    on_node.put_files(shell, role.files, role.user, _values(work, node))


def _take(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    kind = next(kind for kind in node.givers if step.key.endswith(f" {kind}"))
    giver = work.plan.node(node.givers[kind])
    offer = work.experiment.group(giver.role).role.offers[kind]
    need = work.experiment.group(node.role).role.needs[kind]
    from_shell, shell = _shell(work, giver.name), _shell(work, node.name)
    theirs = {
        **_values(work, giver),
        "SAGE_TAKER": node.name,
        "SAGE_TAKER_ID": experiments.node_id(node.name),
    }
    if offer.run:
        on_node.check_run(from_shell, roles.Command(f"offer {kind}", offer.run, offer.deadline), theirs)
    for name, path in need.files.items():
        content = on_node.read(from_shell, roles.fill_in(offer.files[name], theirs))
        on_node.put(shell, roles.fill_in(path, _values(work, node)), content, mode=0o600)


def _start(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    values, shell = _values(work, node), _shell(work, node.name)
    for command in work.experiment.group(node.role).role.start:
        work.progress.word(step.key, command.name)
        on_node.check_run(shell, command, values)
    server.set_metadata(work.connection(node.site), work.servers[node.name].id, {survey.STARTED: node.digest})


def _check(work: _Work, step: Step) -> None:
    node = work.plan.node(step.about)
    checks = work.experiment.group(node.role).role.health
    values, shell = _values(work, node), _shell(work, node.name)
    if step.repairs:
        if on_node.is_healthy(shell, checks, values):
            return
        console.say(f"  {node.name} does not do well: it is started anew")
        _put(work, step)
        for kind in node.givers:
            _take(work, dataclasses.replace(step, key=f"{step.key} {kind}"))
        _start(work, step)
    on_node.check_health(shell, checks, values, lambda word: work.progress.word(step.key, word))


_ACTS: dict[StepKind, Callable[[_Work, Step], None]] = {
    StepKind.DROP_NODE: _drop_node,
    StepKind.DROP_LEASE: _drop_lease,
    StepKind.LEASE: _lease,
    StepKind.WAIT_LEASE: _wait_lease,
    StepKind.LAUNCH: _launch,
    StepKind.WAIT_NODE: _wait_node,
    StepKind.ADDRESS: _address,
    StepKind.REACH: _reach,
    StepKind.PUT: _put,
    StepKind.TAKE: _take,
    StepKind.START: _start,
    StepKind.CHECK: _check,
}


def _values(work: _Work, node: NodePlan) -> dict[str, str]:
    standing = {
        name: (work.plan.node(name).site, dataclasses.replace(one, floating_ip=work.addresses.get(name)))
        for name, one in list(work.servers.items())  # other threads add to it
    }
    return values_of(work.experiment, Node(node.name, node.role, node.number), node.site, standing)


def _shell(work: _Work, name: str) -> "Shell":
    """The open connection to a node; a new one where the last one broke."""
    found = work.shells.get(name)
    if found is not None and found.is_connected:
        return found
    shell, _ = ssh.connect(work.targets[name])
    shell.client.get_transport().set_keepalive(_KEEPALIVE)
    work.shells[name] = shell
    return shell


def _report(work: _Work, begun: datetime, seconds: float, ended: tuple[Ended, ...]) -> UpReport:
    first: dict[str, Problem] = {}
    by_key = {row.key: row for row in ended}
    for row in ended:
        if row.problem is not None and row.about not in first:
            first[row.about] = by_key[row.because].problem or row.problem if row.because in by_key else row.problem
    nodes = tuple(
        NodeReport(
            name=node.name,
            role=node.role,
            site=node.site,
            node_type=node.node_type,
            up=node.name not in first,
            address=work.addresses.get(node.name),
            fixed_address=work.servers[node.name].fixed_ip if node.name in work.servers else None,
            server_id=work.servers[node.name].id if node.name in work.servers else None,
            image_id=node.from_image.id,
            problem=first.get(node.name),
        )
        for node in work.plan.nodes
    )
    return UpReport(
        experiment=work.experiment.name,
        run_id=work.run.id,
        begun_at=ledger.written(begun),
        seconds=round(seconds, 3),
        nodes=nodes,
        steps=ended,
        notes=work.plan.notes,
    )

# SPDX-License-Identifier: Apache-2.0
"""The canary on a leased node: boots a candidate where it is to be used, checks it, and gives the node back.

A command for the publisher's seam (``--canary-command``; :mod:`image_builder.canary` has the contract): the candidate
comes as JSON on standard input, the exit code is the verdict, the report goes to standard output.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import groundwork
from chameleon_sites import cloud
from chameleon_sites.sites import Site, SiteKind, pick_sites
from groundwork import console, products, settings
from groundwork.errors import InputError, SageError
from groundwork.program import run_program
from groundwork.settings import Parser, Setting
from image_builder import canary, cli, machine, variant, verify
from image_builder import settings as table
from image_builder.canary import Candidate, Verdict
from image_builder.hardware import Firmware, Guise
from image_builder.manifest import CheckReport, CheckResult
from image_builder.variant import Arch, Check, Probe, Variant
from node_automation import diagnose, down, names, on_node, reach, role, server, session, ssh, up
from node_automation import experiment as experiments
from node_automation.diagnose import Diagnosis, Stage
from node_automation.experiment import Experiment
from node_automation.ssh import Target
from node_automation.up import Options, UpReport

if TYPE_CHECKING:
    from fabric import Connection as Shell
    from openstack.connection import Connection

NODE_TYPE = Setting(
    "node-type",
    "a node type, or a flavor of a KVM site; may be repeated, the preferred one first",
    many=True,
    default=(),
)
LENGTH = Setting(
    "length", "how long the node is leased at most, as 90m or 2h", experiments.read_duration, 2 * 3600, shown="2h"
)
NETWORK = Setting("network", "the network that the node is attached to", default=names.SHARED_NETWORK)
_SETTINGS = (
    NODE_TYPE,
    LENGTH,
    NETWORK,
    session.SSH_KEY,
    table.STATE_DIR,
    table.SITES_FILE,
    table.VARIANTS_DIR,
    *table.COMMON,
)
_LAUNCHES = 2  # that must both stay silent before the image is held to be the reason
# What tells of the site rather than of the image.
_OF_THE_SITE = (Stage.SERVER, Stage.PORT, Stage.FLOATING_IP, Stage.ROUTE)
_FIRMWARE = "if test -d /sys/firmware/efi; then echo uefi; else echo bios; fi"
_GUISES = {SiteKind.BAREMETAL: Guise.BARE_METAL, SiteKind.KVM: Guise.VIRTUAL}


@dataclass(frozen=True)
class NodeCanaryReport:
    """What the canary found.

    ``left_out``: checks that hold in an emulated machine alone.  ``given_back``: whether nothing stands any more.
    ``diagnosis``: of a node that does not answer.
    """

    verdict: Verdict
    reason: str
    site: str
    image_id: str
    node_type: str
    seconds: float
    checks: CheckReport | None
    left_out: tuple[str, ...]
    given_back: bool
    diagnosis: Diagnosis | None


def main() -> NoReturn:
    """The console script ``sage-node-canary``."""
    run_program(lambda: _canary(sys.argv[1:]))


def _canary(given: Sequence[str]) -> int:
    """Its exit code is a canary's: whatever goes wrong here is inconclusive."""
    parser = Parser(
        prog="sage-node-canary", description="Try a candidate, told as JSON on standard input, on a leased node."
    )
    parser.add_argument("--version", action="version", version=f"sage-node-canary {groundwork.__version__}")
    settings.add_flags(parser, _SETTINGS)
    flags = parser.parse_args(given)
    try:
        values = _values(flags)
        candidate = products.parse(Candidate, sys.stdin.buffer.read(), "standard input")
        (site,) = pick_sites([candidate.site], values["sites_file"])
        chosen = variant.load(candidate.variant, cli.variant_folders(values))
        report = run(candidate, site, chosen, values)
    except SageError as error:
        console.complain(str(error), hint=error.hint)
        sys.stdout.write(products.to_text({"verdict": str(Verdict.INCONCLUSIVE), "reason": str(error)}))
        return canary.INCONCLUSIVE
    sys.stdout.write(products.to_text(report))
    return {Verdict.PASS: canary.PASS, Verdict.FAIL: canary.FAIL}.get(report.verdict, canary.INCONCLUSIVE)


def _values(flags: argparse.Namespace) -> dict[str, Any]:
    configuration = settings.read_configuration(
        settings.configuration_files(getattr(flags, "config", None)), (*table.ALL, *_SETTINGS)
    )
    values = settings.resolve(_SETTINGS, flags, configuration=configuration)
    console.configure(json_output=True, quiet=values["quiet"])
    return values


def run(candidate: Candidate, site: Site, chosen: Variant, values: Mapping[str, Any]) -> NodeCanaryReport:
    """Try a candidate on a node of its site.  Raises SageError where it can't be tried to the end."""
    begin = time.monotonic()
    types = values["node_type"] or ((chosen.node_type,) if chosen.node_type else ())
    if not types:
        raise InputError("no node type is named", hint="--node-type NAME; `fab nodes.free` lists them")
    experiment = experiment_for(candidate, site, types, values["length"])
    options = Options(values["state_dir"], values["ssh_key"], values["network"])
    connections = {site.name: cloud.connect(site)}
    given_back = False
    try:
        # What an earlier try of this candidate left, which was killed.
        down.down(experiment.name, [site], connections, options.state)
        found = _try(candidate, site, chosen, experiment, options, connections[site.name])
    finally:
        report = down.down(experiment.name, [site], connections, options.state)
        given_back = report.exit_code == 0
        if not given_back:
            console.warn(f"not all of {experiment.name} could be given back", hint="`fab gc` does that later")
    return replace(found, seconds=round(time.monotonic() - begin, 3), given_back=given_back)


def experiment_for(candidate: Candidate, site: Site, node_types: Sequence[str], seconds: int) -> Experiment:
    """One node without a role, on the candidate."""
    made = experiments.of_role(
        f"canary-{candidate.image_id[:8]}",
        role.BLANK,
        {site.name: site},
        sites=[site.name],
        node_types=node_types,
        image=candidate.image_id,
        seconds=seconds,
    )
    (group,) = made.groups
    return replace(made, groups=(replace(group, role=replace(group.role, arch=Arch(candidate.arch))),))


def _try(
    candidate: Candidate,
    site: Site,
    chosen: Variant,
    experiment: Experiment,
    options: Options,
    connection: "Connection",
) -> NodeCanaryReport:
    """Launch a node, look at it, say what it shows."""
    for launches in range(1, _LAUNCHES + 1):
        report = up.up(experiment, [site], {site.name: connection}, options)
        (node,) = report.nodes
        found = NodeCanaryReport(
            verdict=Verdict.INCONCLUSIVE,
            reason="",
            site=site.name,
            image_id=candidate.image_id,
            node_type=node.node_type,
            seconds=0.0,
            checks=None,
            left_out=(),
            given_back=False,
            diagnosis=None,
        )
        if node.up:
            return _look(found, site, chosen, connection, report, options)
        assert node.problem is not None, "it is not up"
        if node.server_id is None:
            return replace(found, reason=node.problem.message)
        one = server.get(connection, node.server_id)
        target = _target(connection, node.server_id, node.address, options)
        diagnosis = diagnose.diagnose(connection, one, target)
        found = replace(found, diagnosis=diagnosis, reason=node.problem.message)
        verdict = judge(diagnosis, launches)
        if verdict is not None:
            return replace(found, verdict=verdict)
        console.warn(f"{node.name} stays silent; another try")
        server.delete(connection, node.server_id, state=options.state)
    raise AssertionError("unreachable")


def judge(diagnosis: Diagnosis, launches: int) -> Verdict | None:
    """What a node that does not answer says of its image; None: it is to be tried once more.

    What the site has to do for it tells nothing of the image.  A machine that stays silent may be broken itself: only
    when the next launch stays silent too, the image is the reason.
    """
    failed = diagnosis.failed
    if failed is None or failed.stage in _OF_THE_SITE:
        return Verdict.INCONCLUSIVE
    if failed.stage is Stage.PORT_22 and launches < _LAUNCHES:
        return None
    return Verdict.FAIL


def _look(
    found: NodeCanaryReport,
    site: Site,
    chosen: Variant,
    connection: "Connection",
    report: UpReport,
    options: Options,
) -> NodeCanaryReport:
    """Make the checks on a node that is up."""
    (node,) = report.nodes
    assert node.server_id is not None
    identity, _ = ssh.identity(options.state, options.identity)
    target = reach.reach(connection, node.server_id, identity, deadline=60.0, address=node.address)
    shell, _ = ssh.connect(target)
    results, left_out = [], []
    with shell, console.stage(f"check {node.name}") as stage:
        firmware = Firmware(on_node.run(shell, _FIRMWARE, {}, 60.0).out.strip())
        known = {"SAGE_MACHINE": _GUISES[site.kind], "SAGE_FIRMWARE": firmware, **chosen.settings}
        for check in chosen.checks:
            if not holds_on_a_node(check):
                left_out.append(check.name)
                continue
            stage.detail(check.name)
            begin = time.monotonic()
            passed, output = _make(check, target, shell, known)
            seconds = round(time.monotonic() - begin, 2)
            command = check.run or f"probe {check.probe}"
            results.append(CheckResult(check.name, str(firmware), passed, seconds, command, output))
    launch = next((row.seconds for row in report.steps if row.key.startswith("reach ")), 0.0)
    checks = CheckReport(tuple(results), {str(firmware): launch})
    failed = [row.name for row in results if not row.passed]
    reason = f"{len(results)} checks passed on a {node.node_type} node"
    if failed:
        reason = f"{len(failed)} of {len(results)} checks failed on a {node.node_type} node: {', '.join(failed)}"
    verdict = Verdict.PASS if checks.passed else Verdict.FAIL
    return replace(found, verdict=verdict, reason=reason, checks=checks, left_out=tuple(left_out))


def holds_on_a_node(check: Check) -> bool:
    """Whether a check can be made on a node of a site."""
    return not check.emulated and check.probe in (None, Probe.SSH_PASSWORD_REFUSED, Probe.SSH_ROOT_REFUSED)


def _make(check: Check, target: Target, shell: "Shell", known: Mapping[str, str]) -> tuple[bool, str]:
    if check.probe is Probe.SSH_PASSWORD_REFUSED:
        offered = machine.offered_logins((target.address, target.port), target.user, check.timeout)
        return offered == ["publickey"], f"the ssh server offers: {', '.join(offered)}"
    if check.probe is Probe.SSH_ROOT_REFUSED:
        try:
            ssh.connect(replace(target, user="root"))[0].close()
        except ssh.NotLetIn:
            return True, "root was refused"
        return False, "root logged in by key"
    return verify.run_script(shell, check, known)


def _target(connection: "Connection", server_id: str, address: str | None, options: Options) -> Target | None:
    identity, _ = ssh.identity(options.state, options.identity)
    try:
        return ssh.target_of(server.get(connection, server_id), identity, address=address)
    except InputError:
        return None

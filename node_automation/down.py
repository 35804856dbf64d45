# SPDX-License-Identifier: Apache-2.0
"""Gives back all that stands of an experiment, whichever machine made it, and however its runs ended."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site
from groundwork import console
from groundwork.errors import SageError
from node_automation import gc, ledger, status, steps, survey
from node_automation.gc import Sweep
from node_automation.ledger import Entry, Kind
from node_automation.plan import Step, StepKind
from node_automation.progress import Progress
from node_automation.status import SiteProblem
from node_automation.steps import Ended, problem_of
from node_automation.tagged import Things

if TYPE_CHECKING:
    from openstack.connection import Connection

_KINDS = {
    Kind.SERVER: StepKind.DROP_NODE,
    Kind.FLOATING_IP: StepKind.DROP_ADDRESS,
    Kind.SECURITY_GROUP: StepKind.DROP_GROUP,
    Kind.LEASE: StepKind.DROP_LEASE,
}


@dataclass(frozen=True)
class DownReport:
    """What came of it.  ``struck``: entries of the ledger of what was no more there.  ``node_hours``: of all runs."""

    experiment: str
    seconds: float
    steps: tuple[Ended, ...]
    struck: int
    problems: tuple[SiteProblem, ...]
    node_hours: float

    @property
    def exit_code(self) -> int:
        """0 nothing stands any more; else 3, or 1 where nothing was given back."""
        failed = sum(row.problem is not None for row in self.steps)
        if not failed and not self.problems:
            return 0
        return 3 if failed < len(self.steps) else 1


def plan_for(
    experiment: str,
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    state: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[list[Sweep], list[SiteProblem]]:
    """What is to be given back at each site; and the sites of which that can't be told, where something may stand.

    Waits for what a run that was killed a moment ago may have asked for.
    """
    while True:
        things = status.look(sites, connections)
        noted = ledger.read(state)
        answers = [(site, found) for site in sites if isinstance(found := things[site.name], Things)]
        coming = survey.unsettled(experiment, noted, answers, datetime.now(timezone.utc))
        if not coming:
            break
        tell(f"{', '.join(entry.name for entry in coming)} may yet appear")
        time.sleep(survey.LOOK)
    sweeps = [gc.plan(site, found, noted, experiment=experiment, everything=True) for site, found in answers]
    return sweeps, _problems(experiment, things, noted)


def _problems(experiment: str, things: Mapping[str, Things | SageError], noted: Sequence[Entry]) -> list[SiteProblem]:
    """The sites that do not tell, where something of the experiment may stand.  Pure.

    Where the ledger knows of the experiment, these are the sites that it names; else all, for another machine's.
    """
    standing = {
        entry.site: entry for entry in ledger.open_entries(noted, experiment=experiment) if entry.kind in _KINDS
    }
    known = any(entry.experiment == experiment for entry in noted)
    found = []
    for name, answer in things.items():
        if isinstance(answer, SageError) and (name in standing or not known):
            found.append(SiteProblem(name, problem_of(answer)))
    found += (
        SiteProblem(name, problem_of(_not_asked(entry))) for name, entry in standing.items() if name not in things
    )
    return found


def _not_asked(entry: Entry) -> SageError:
    return SageError(
        f"{entry.site} was not asked, and the ledger says that {entry.name} may stand there",
        hint="clouds.yaml has no entry for it, or --site leaves it out",
    )


def steps_for(sweeps: Iterable[Sweep]) -> tuple[Step, ...]:
    """The steps: servers first; what they use is given back after them, also where they would not go.  Pure."""
    found: list[Step] = []
    for sweep in sweeps:
        servers = tuple(_key(entry) for entry in sweep.give_back if entry.kind is Kind.SERVER)
        for entry in sweep.give_back:
            after = () if entry.kind is Kind.SERVER else servers
            text = f"give back {entry.kind} {entry.name} at {entry.site}"
            kind = _KINDS[entry.kind]
            found.append(Step(_key(entry), kind, entry.site, entry.key, text, after, anyway=True))
    return tuple(found)


def down(
    experiment: str,
    sites: Sequence[Site],
    connections: "Mapping[str, Connection | SageError]",
    state: Path,
) -> DownReport:
    """Give back all of an experiment at ``sites``; what fails is in the report, and stops nothing else."""
    begin = time.monotonic()
    with ledger.turn(state, experiment), console.stage(f"down {experiment}") as stage:
        stage.detail("asking the sites")
        sweeps, problems = plan_for(experiment, sites, connections, state, stage.detail)
        vanished = [entry for sweep in sweeps for entry in sweep.vanished]
        known = {sweep.site for sweep in sweeps}
        given_back = {entry.id for sweep in sweeps for entry in sweep.give_back}
        vanished += [
            entry
            for entry in ledger.open_entries(ledger.read(state), experiment=experiment)
            if entry.id is None and entry.site in known and entry.kind in _KINDS and entry not in vanished
        ]
        entries = {entry.key: entry for sweep in sweeps for entry in sweep.give_back}

        def act(step: Step) -> None:
            entry = entries[step.about]
            connection = connections[entry.site]
            assert not isinstance(connection, SageError), "it told what stands"
            gc.give_back(connection, entry, state)

        ended = steps.carry_out(steps_for(sweeps), act, Progress(stage), at_once={}, stop=threading.Event())
        # Those without an id are known by what was given back under their names; or were never made.
        failed = {entries[row.about].name for row in ended if row.problem is not None}
        ledger.release(state, [entry.key for entry in vanished if entry.name not in failed])
        stage.note = f"{len(given_back)} given back" if given_back else "nothing stood"
    noted = [entry for entry in ledger.read(state) if entry.experiment == experiment]
    now = datetime.now(timezone.utc)
    return DownReport(
        experiment=experiment,
        seconds=round(time.monotonic() - begin, 3),
        steps=ended,
        struck=len(vanished),
        problems=tuple(problems),
        node_hours=round(sum(ledger.node_hours(entry, now) for entry in noted if entry.id is not None), 2),
    )


def _key(entry: Entry) -> str:
    return f"{_KINDS[entry.kind]} {entry.name} {entry.id}"

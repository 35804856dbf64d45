# SPDX-License-Identifier: Apache-2.0
"""Giving all back: what is told by the sites and by the ledger, in an order in which nothing is in another's way."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from groundwork.errors import SageError
from node_automation import down, gc, ledger, server, survey
from node_automation.blazar import read_lease
from node_automation.ledger import Entry, Kind
from node_automation.plan import StepKind
from node_automation.tagged import Things
from tests.unit.node_automation.site import RUN, UC, lease_row, server_row

NOW = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)


def things(*names: str, lease: bool = True) -> Things:
    rows = [server.read(server_row(name)) for name in names]
    return Things("p1", (read_lease(lease_row()),) if lease else (), tuple(rows))


def entry(kind: Kind = Kind.SERVER, name: str = "bees-waggle-1", *, site: str = "CHI@UC", age: int = 5) -> Entry:
    return ledger.new_entry(RUN, site, "p1", kind, name, now=NOW - timedelta(seconds=age))


def test_what_servers_use_goes_after_them_and_also_where_they_would_not_go() -> None:
    address = {"id": "f1", "floating_ip_address": "192.5.87.3", "description": ledger.tag(RUN)}
    found = Things("p1", things().leases, things("bees-waggle-1", "bees-waggle-2").servers, (_address(address),))
    steps = down.steps_for([gc.plan(UC, found, [], experiment="bees", everything=True)])
    assert [step.kind for step in steps] == [
        StepKind.DROP_NODE,
        StepKind.DROP_NODE,
        StepKind.DROP_ADDRESS,
        StepKind.DROP_LEASE,
    ]
    servers = tuple(step.key for step in steps[:2])
    assert [step.after for step in steps] == [(), (), servers, servers]
    assert all(step.anyway for step in steps)


def _address(row: dict[str, Any]) -> Any:
    from node_automation import address

    return address.read(row)


def test_what_was_asked_for_a_moment_ago_is_waited_for() -> None:
    new, old = entry(age=5), entry(name="bees-waggle-2", age=60)
    elsewhere, another = (
        entry(site="CHI@TACC"),
        ledger.new_entry(ledger.Run("other", "01234567"), "CHI@UC", "p1", Kind.SERVER, "other-1", now=NOW),
    )
    noted = [new, old, elsewhere, another]
    assert survey.unsettled("bees", noted, [(UC, things(lease=False))], NOW) == (new,)
    assert survey.unsettled("bees", noted, [(UC, things("bees-waggle-1"))], NOW) == (), "it has appeared"


def test_ids_are_noted_and_what_never_came_to_be_is_struck(tmp_path: Path) -> None:
    here, nowhere, elsewhere = entry(), entry(name="bees-waggle-2"), entry(site="CHI@TACC")
    for one in (here, nowhere, elsewhere):
        ledger.begin(tmp_path, one)
    survey.set_right(tmp_path, "bees", [UC], {"CHI@UC": things("bees-waggle-1")})
    found = {one.key: one for one in ledger.read(tmp_path)}
    assert found[here.key].id == "id-bees-waggle-1"
    assert not found[nowhere.key].open
    assert found[elsewhere.key] == elsewhere, "its site was not asked"


def test_a_site_that_is_silent_counts_where_something_may_stand() -> None:
    silent: dict[str, Things | SageError] = {"CHI@UC": things(), "CHI@TACC": SageError("no answer")}
    assert down._problems("bees", silent, [entry()]) == [], "the ledger knows that nothing stands there"
    (problem,) = down._problems("bees", silent, [entry(site="CHI@TACC")])
    assert problem.problem.message == "no answer"
    (problem,) = down._problems("bees", silent, [])
    assert problem.site == "CHI@TACC", "nothing is known: another machine may have made something there"
    (problem,) = down._problems("bees", {"CHI@UC": things()}, [entry(site="KVM@TACC")])
    assert "KVM@TACC was not asked" in problem.problem.message


def test_the_run_that_goes_on_is_the_one_of_which_most_stands() -> None:
    other = ledger.Run("bees", "ffffffff")
    noted = [ledger.new_entry(other, "CHI@UC", "p1", Kind.FLOATING_IP, "x", now=NOW)]
    assert survey.choose_run("bees", noted, [(UC, things("bees-waggle-1"))]) == RUN
    assert survey.choose_run("bees", noted, [(UC, Things("p1"))]) == other
    assert survey.choose_run("new", noted, [(UC, things("bees-waggle-1"))]).experiment == "new"
    assert survey.stands("bees", [], [(UC, things("bees-waggle-1"))])
    assert not survey.stands("new", noted, [(UC, things("bees-waggle-1"))])


@pytest.mark.parametrize(
    ("failed", "of", "problems", "code"), [(0, 0, 0, 0), (0, 3, 0, 0), (1, 3, 0, 3), (3, 3, 0, 1), (0, 2, 1, 3)]
)
def test_exit_codes(failed: int, of: int, problems: int, code: int) -> None:
    from node_automation.status import SiteProblem
    from node_automation.steps import Ended, problem_of

    bad = problem_of(SageError("no"))
    rows = tuple(
        Ended(str(number), StepKind.DROP_NODE, "CHI@UC", "x", 0.0, bad if number < failed else None)
        for number in range(of)
    )
    report = down.DownReport("bees", 1.0, rows, 0, (SiteProblem("CHI@TACC", bad),) * problems, 0.0)
    assert report.exit_code == code

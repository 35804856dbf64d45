# SPDX-License-Identifier: Apache-2.0
"""What stands: out of what the sites tell and what the ledger has."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from groundwork.errors import SageError
from node_automation import ledger, server, status
from node_automation.blazar import read_lease
from node_automation.ledger import Kind
from node_automation.tagged import Things
from tests.unit.node_automation.site import RUN, TACC, UC, lease_row, server_row

NOW = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
LEASE = read_lease(lease_row(ends="2026-01-02T14:30:00.000000", nodes=2))
NODE = server.read(
    server_row(
        metadata={"sage_run": str(RUN), "sage_role": "waggle", "sage_node_type": "t", "sage_reservation": "l1-hosts"}
    )
)


def test_nodes_have_the_time_that_is_left_to_their_lease_and_leases_what_they_cost() -> None:
    found = status.of([UC], {"CHI@UC": Things("p1", (LEASE,), (NODE,))}, [], NOW)
    (node,) = found.nodes
    assert (node.node, node.role, node.site, node.node_type) == ("bees-waggle-1", "waggle", "CHI@UC", "t")
    assert (node.address, node.seconds_left) == ("192.5.87.3", 2.5 * 3600)
    (lease,) = found.leases
    assert (lease.hosts, lease.node_hours, lease.seconds_left) == (2, 4.0, 2.5 * 3600), "two nodes since ten o'clock"
    assert found.node_hours == 4.0
    assert found.others == ()
    texts = [(title, rows) for title, _, rows in status.tables(found)]
    assert texts[0][1] == [["bees-waggle-1", "waggle", "CHI@UC", "t", "ACTIVE", "192.5.87.3", "2 h 30 min"]]
    assert texts[1][1][0][-1] == "4.0"


def test_what_the_ledger_alone_knows_of_is_told_with_how_sure_it_is() -> None:
    gone = ledger.new_entry(RUN, "CHI@UC", "p1", Kind.SERVER, "bees-waggle-2", now=NOW)
    perhaps = ledger.new_entry(RUN, "CHI@TACC", "p1", Kind.LEASE, "l", now=NOW)
    image = ledger.new_entry(RUN, "CHI@UC", "p1", Kind.IMAGE, "snapshot", now=NOW)
    things: dict[str, Things | SageError] = {
        "CHI@UC": Things("p1", (LEASE,), (NODE,)),
        "CHI@TACC": SageError("no answer", hint="later"),
    }
    found = status.of([UC, TACC], things, [gone, perhaps, image], NOW)
    assert [(row.name, row.state.partition(":")[0].partition(",")[0]) for row in found.others] == [
        ("bees-waggle-2", "noted"),
        ("l", "perhaps"),
    ]
    (problem,) = found.problems
    assert (problem.site, problem.problem.message, problem.problem.hint) == ("CHI@TACC", "no answer", "later")


def test_leases_that_are_over_count_until_they_were_given_back() -> None:
    entry = replace(
        ledger.new_entry(RUN, "CHI@UC", "p1", Kind.LEASE, "l", now=NOW, hosts=3),
        id="gone",
        starts_at=ledger.written(NOW - timedelta(hours=5)),
        ends_at=ledger.written(NOW + timedelta(hours=5)),
        released_at=ledger.written(NOW - timedelta(hours=4)),
    )
    never = replace(entry, id=None)
    assert status.of([UC], {"CHI@UC": Things("p1")}, [entry, never], NOW).node_hours == 3.0
    assert status.of([UC], {"CHI@UC": Things("p1")}, [entry], NOW, "other").node_hours == 0.0


def test_one_experiment_alone() -> None:
    things = {"CHI@UC": Things("p1", (LEASE,), (NODE,))}
    assert status.of([UC], things, [], NOW, "other") == status.Status((), (), (), (), 0.0)
    assert len(status.of([UC], things, [], NOW, "bees").nodes) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0, "0 min"), (59.0, "0 min"), (3600.0, "1 h 0 min"), (90061.0, "1 d 1 h")],
)
def test_lengths_of_time_for_people(seconds: float | None, text: str) -> None:
    assert status.span(seconds) == text

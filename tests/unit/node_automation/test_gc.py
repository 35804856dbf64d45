# SPDX-License-Identifier: Apache-2.0
"""What no run can use any more: told by the sites, whatever the ledger knows."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from node_automation import address, blazar, gc, ledger, server, tagged
from node_automation.ledger import Entry, Kind, Run
from node_automation.tagged import Things
from tests.unit.node_automation.site import RUN, UC, lease_row, server_row
from tests.unit.node_automation.test_address import ip

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
GROUP = {"id": "g1", "name": "sage-bees-0123abcd", "description": "sage_run=bees/0123abcd"}


def things(*, status: str | None = "ACTIVE", servers: list[dict[str, Any]] | None = None) -> Things:
    return Things(
        "p1",
        leases=(blazar.read_lease(lease_row(status=status)),) if status else (),
        servers=tuple(map(server.read, [server_row()] if servers is None else servers)),
        addresses=tuple(
            map(address.read, [ip(1, description="sage_run=bees/0123abcd"), ip(2), ip(3, tags=("reservation:r1",))])
        ),
        groups=(GROUP,),
    )


def kinds(sweep: gc.Sweep) -> list[Kind]:
    return [entry.kind for entry in sweep.give_back]


def test_what_a_living_run_has_stays() -> None:
    assert gc.plan(UC, things(), []).give_back == ()


@pytest.mark.parametrize("status", ["ERROR", None])
def test_all_of_a_run_without_a_healthy_lease_goes_servers_first(status: str | None) -> None:
    without = [server_row(metadata={"sage_run": str(RUN), "sage_reservation": "r1"})]
    expected = [Kind.SERVER, Kind.FLOATING_IP, Kind.SECURITY_GROUP] + ([Kind.LEASE] if status else [])
    assert kinds(gc.plan(UC, things(status=status, servers=without), [])) == expected


def test_of_a_living_run_what_is_in_error_goes() -> None:
    sweep = gc.plan(UC, things(servers=[server_row(), server_row("broken", "ERROR")]), [])
    assert [entry.name for entry in sweep.give_back] == ["broken"]


def test_a_server_of_a_kvm_site_may_live_without_a_lease() -> None:
    assert gc.plan(UC, things(status=None), []).give_back == ()


def test_an_experiment_that_is_named_goes_whole_and_no_other() -> None:
    assert kinds(gc.plan(UC, things(), [], experiment="bees", everything=True)) == list(gc.ORDER)
    assert gc.plan(UC, things(), [], experiment="wasps", everything=True).give_back == ()


def entry(name: str, entry_id: str | None, age: timedelta = timedelta(hours=1)) -> Entry:
    made = ledger.new_entry(RUN, "CHI@UC", "p1", Kind.SERVER, name, now=NOW - age)
    return Entry(**{**made.__dict__, "id": entry_id})


def test_what_the_ledger_has_and_the_site_has_not_has_vanished() -> None:
    noted = [
        entry("gone", "s9"),
        entry("bees-waggle-1", "id-bees-waggle-1"),
        entry("never made", None),
        entry("bees-waggle-1", None),
        entry("just being made", None, timedelta(minutes=1)),
    ]
    assert [found.name for found in gc.plan(UC, things(), noted, now=NOW).vanished] == ["gone", "never made"]


def test_what_stands_is_told_by_names_and_tags() -> None:
    found = tagged.entries(
        UC,
        "p1",
        leases=[blazar.read_lease(lease_row()), blazar.read_lease(lease_row(status="TERMINATED", lease_id="l2"))],
        servers=[server.read(server_row())],
        addresses=things().addresses,
        groups=[GROUP],
    )
    assert [(row.kind, row.id, row.run) for row in found] == [
        (Kind.LEASE, "l1", RUN),
        (Kind.SERVER, "id-bees-waggle-1", RUN),
        (Kind.FLOATING_IP, "ip-1", RUN),
        (Kind.SECURITY_GROUP, "g1", RUN),
    ]
    lease = found[0]
    assert (lease.hosts, lease.node_type, lease.ends_at) == (2, "compute_skylake", "2099-01-02T10:00:00Z")


def test_strangers_things_are_never_told() -> None:
    strange = Things(
        "p1",
        leases=(blazar.read_lease(lease_row("my-lease")),),
        servers=(server.read(server_row(metadata={})),),
        addresses=(address.read(ip(2)),),
        groups=({"id": "g", "name": "default", "description": ""},),
    )
    assert strange.entries(UC) == ()
    assert gc.plan(UC, strange, [], everything=True).give_back == ()


def test_runs_are_told_apart() -> None:
    rows = things()
    other = blazar.read_lease(lease_row("sage-bees-chi_uc-ffffffff", status="ERROR", lease_id="l2"))
    found = gc.living(UC, Things("p1", leases=(*rows.leases, other)))
    assert found == {RUN}
    assert Run("bees", "ffffffff") not in found

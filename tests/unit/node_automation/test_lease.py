# SPDX-License-Identifier: Apache-2.0
"""Leases: bodies, the order of tries, which of ours fits, and what the ledger knows at each moment."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests

from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site
from groundwork.errors import InputError, SageError
from node_automation import blazar, ledger, reminder
from node_automation import lease as leases
from node_automation.blazar import Expired, Full, Lease
from node_automation.lease import Failed, LeaseRequest, Part, Try
from node_automation.ledger import Kind, Run
from node_automation.waiting import TimedOut
from tests.unit.node_automation.site import (
    FLAVORS,
    KVM,
    NETWORKS,
    RUN,
    TACC,
    UC,
    FakeSite,
    blazar_error,
    lease_row,
)

NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=timezone.utc)
FULL = blazar_error(500, "Not enough hosts available")
SKYLAKE = Try(UC, "compute_skylake")


def answer_with(row: dict[str, Any]) -> Any:
    return lambda body: {"lease": {**row, "name": body["name"]}}


def obtain(request: LeaseRequest, places: tuple[Try, ...], state: Path, **sites: Any) -> leases.Held:
    connections: Any = {"CHI@UC": sites.get("uc"), "CHI@TACC": sites.get("tacc"), "KVM@TACC": sites.get("kvm")}
    return leases.obtain(request, places, connections, state=state)


# Bodies


def test_the_body_of_bare_metal_that_begins_now() -> None:
    request = LeaseRequest(RUN, count=2, arch="aarch64", length=timedelta(hours=3), floating_ips=1)
    assert leases.body(request, SKYLAKE, "n", now=NOW, network="public-id") == {
        "name": "n",
        "start_date": "now",
        "end_date": "2026-11-21 15:00",
        "before_end_date": None,
        "events": [],
        "reservations": [
            {
                "resource_type": "physical:host",
                "resource_properties": '["and", ["=", "$node_type", "compute_skylake"], '
                '["=", "$architecture.platform_type", "aarch64"]]',
                "hypervisor_properties": "",
                "min": 2,
                "max": 2,
            },
            {"resource_type": "virtual:floatingip", "network_id": "public-id", "amount": 1},
        ],
    }


def test_the_length_counts_from_the_start() -> None:
    start = datetime(2026, 12, 24, 18, 0, tzinfo=timezone.utc)
    made = leases.body(LeaseRequest(RUN, starts_at=start, length=timedelta(days=2)), SKYLAKE, "n", now=NOW)
    assert (made["start_date"], made["end_date"]) == ("2026-12-24 18:00", "2026-12-26 18:00")


def test_the_body_at_a_kvm_site_names_a_flavor() -> None:
    made = leases.body(LeaseRequest(RUN, count=3), Try(KVM, "m1.medium"), "n", now=NOW, flavor="medium-id")
    assert made["reservations"] == [
        {"resource_type": "flavor:instance", "flavor_id": "medium-id", "amount": 3, "affinity": None}
    ]


def test_floating_ips_can_have_a_lease_of_their_own() -> None:
    request = LeaseRequest(RUN, floating_ips=2)
    kinds = {
        part: [row["resource_type"] for row in leases.body(request, SKYLAKE, "n", now=NOW, parts=part)["reservations"]]
        for part in (Part.NODES, Part.FLOATING_IPS)
    }
    assert kinds == {Part.NODES: ["physical:host"], Part.FLOATING_IPS: ["virtual:floatingip"]}


@pytest.mark.parametrize("operator", ["=", "=="])
def test_properties_are_terms_of_three_texts(operator: str) -> None:
    assert json.loads(leases.properties("a", None, operator)) == [operator, "$node_type", "a"]


# What no site would grant


@pytest.mark.parametrize(
    ("request_", "sites", "said"),
    [
        (LeaseRequest(RUN, length=timedelta(days=7, minutes=1)), [UC], "7 days at most"),
        (LeaseRequest(RUN, length=timedelta(days=8)), [KVM, TACC], "8 days are asked for at CHI@TACC"),
        (LeaseRequest(RUN, count=0), [UC], "1 to 100 nodes"),
        (LeaseRequest(RUN, count=101), [UC], "1 to 100 nodes"),
        (LeaseRequest(RUN, floating_ips=-1), [UC], "can't be negative"),
        (LeaseRequest(RUN, length=timedelta(minutes=1)), [UC], "at least 2 minutes"),
    ],
)
def test_what_no_site_would_grant_is_refused_before_asking(
    request_: LeaseRequest, sites: list[Site], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        leases.check(request_, sites)


def test_a_kvm_site_may_lease_for_longer() -> None:
    request = LeaseRequest(RUN, length=timedelta(days=30))
    assert leases.check(request, [KVM]) is request


@pytest.mark.parametrize(
    ("text", "length"),
    [("90m", 1.5), ("24h", 24.0), ("7d", 168.0), ("1d12h", 36.0)],
)
def test_lengths_are_read(text: str, length: float) -> None:
    assert leases.parse_length(text) == timedelta(hours=length)


@pytest.mark.parametrize("text", ["", "24", "h", "1w", "-1h", "1h1h", "1.5h", "٣h", "9" * 30 + "d"])
def test_what_is_no_length_is_wrong_input(text: str) -> None:
    with pytest.raises(InputError):
        leases.parse_length(text)


def test_starts_are_read() -> None:
    assert leases.parse_start("now") is None
    assert leases.parse_start("2099-12-24T18:00") == datetime(2099, 12, 24, 18, 0, tzinfo=timezone.utc)
    assert leases.parse_start("2099-12-24T18:00+02:00") == datetime(2099, 12, 24, 16, 0, tzinfo=timezone.utc)
    for text, said in (("soon", "is no time"), ("2020-01-01T00:00", "is past")):
        with pytest.raises(InputError, match=said):
            leases.parse_start(text)


# The next place where one is full


def test_each_type_is_tried_at_each_site() -> None:
    assert [str(where) for where in leases.tries([UC, TACC], ["a", "b"])] == [
        "a at CHI@UC",
        "b at CHI@UC",
        "a at CHI@TACC",
        "b at CHI@TACC",
    ]


def test_where_a_site_is_full_the_next_is_asked(tmp_path: Path) -> None:
    uc = FakeSite({"GET /leases": {"leases": []}, "POST /leases": FULL})
    tacc = FakeSite({"GET /leases": {"leases": []}, "POST /leases": answer_with(lease_row())}, "CHI@TACC")
    held = obtain(LeaseRequest(RUN), leases.tries([UC, TACC], ["a", "b"]), tmp_path, uc=uc, tacc=tacc)
    assert (held.site, held.node_type, held.reused) == ("CHI@TACC", "a", False)
    assert len(uc.bodies("POST /leases")) == 2, "both types were asked for there"
    (entry,) = ledger.open_entries(ledger.read(tmp_path))
    assert (entry.site, entry.id, entry.name) == ("CHI@TACC", "l1", "sage-bees-chi_tacc-0123abcd")


def test_a_site_that_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    tacc = FakeSite({"GET /leases": {"leases": []}, "POST /leases": answer_with(lease_row())}, "CHI@TACC")
    held = obtain(
        LeaseRequest(RUN), leases.tries([UC, TACC], ["a"]), tmp_path, uc=SiteUnreachable("CHI@UC is away"), tacc=tacc
    )
    assert held.site == "CHI@TACC"


def test_where_all_are_full_each_reason_is_told(tmp_path: Path) -> None:
    uc = FakeSite({"GET /leases": {"leases": []}, "POST /leases": FULL})
    with pytest.raises(SiteError, match=r"a at CHI@UC: .*Not enough hosts.*; b at CHI@UC: ") as caught:
        obtain(LeaseRequest(RUN), leases.tries([UC], ["a", "b"]), tmp_path, uc=uc)
    assert caught.value.hint
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


def test_one_place_s_error_is_told_as_it_is(tmp_path: Path) -> None:
    uc = FakeSite({"GET /leases": {"leases": []}, "POST /leases": FULL})
    with pytest.raises(Full):
        obtain(LeaseRequest(RUN), leases.tries([UC], ["a"]), tmp_path, uc=uc)


def test_where_one_sign_of_equality_is_refused_the_other_is_sent(tmp_path: Path) -> None:
    def answer(body: Any) -> Any:
        if '"=="' not in body["reservations"][0]["resource_properties"]:
            return blazar_error(400, "Malformed requirements")
        return {"lease": lease_row()}

    uc = FakeSite({"GET /leases": {"leases": []}, "POST /leases": answer})
    assert obtain(LeaseRequest(RUN), (SKYLAKE,), tmp_path, uc=uc).lease.id == "l1"


def test_a_flavor_that_a_kvm_site_does_not_have_is_told_with_the_nearest(tmp_path: Path) -> None:
    kvm = FakeSite({"GET /leases": {"leases": []}, "GET /flavors": FLAVORS}, "KVM@TACC")
    with pytest.raises(InputError, match=r"no flavor 'm1\.medum'") as caught:
        obtain(LeaseRequest(RUN), (Try(KVM, "m1.medum"),), tmp_path, kvm=kvm)
    assert "m1.medium" in str(caught.value.hint)


# What the ledger knows


def test_a_lease_is_in_the_ledger_before_it_is_asked_for(tmp_path: Path) -> None:
    noted: list[Any] = []

    def answer(body: Any) -> Any:
        noted.extend(ledger.read(tmp_path))
        return {"lease": lease_row()}

    obtain(
        LeaseRequest(RUN), (SKYLAKE,), tmp_path, uc=FakeSite({"GET /leases": {"leases": []}, "POST /leases": answer})
    )
    assert [(entry.kind, entry.name, entry.id) for entry in noted] == [(Kind.LEASE, "sage-bees-chi_uc-0123abcd", None)]


def test_a_lease_of_which_nobody_knows_whether_it_was_made_stays_in_the_ledger(tmp_path: Path) -> None:
    uc = FakeSite({"GET /leases": {"leases": []}, "POST /leases": requests.ConnectionError("reset")})
    with pytest.raises(SiteUnreachable):
        obtain(LeaseRequest(RUN), (SKYLAKE,), tmp_path, uc=uc)
    (entry,) = ledger.open_entries(ledger.read(tmp_path))
    assert entry.id is None


def test_a_name_that_is_taken_is_our_own_lease_whose_answer_got_lost(tmp_path: Path) -> None:
    taken = blazar_error(409, "The lease with name: sage-bees-chi_uc-0123abcd already exists")
    uc = FakeSite({"GET /leases": [{"leases": []}, {"leases": [lease_row()]}], "POST /leases": taken})
    assert obtain(LeaseRequest(RUN), (SKYLAKE,), tmp_path, uc=uc).lease.id == "l1"
    assert [entry.id for entry in ledger.open_entries(ledger.read(tmp_path))] == ["l1"]


def test_nodes_whose_floating_ips_cannot_be_had_apart_are_given_back(tmp_path: Path) -> None:
    def answer(body: Any) -> Any:
        if body["name"].endswith("-ips"):
            return blazar_error(400, "Not enough floating IPs available")
        return {"lease": {**lease_row(), "name": body["name"]}}

    uc = FakeSite(
        {
            "GET /leases": {"leases": []},
            "GET /networks": NETWORKS,
            "POST /leases": answer,
            "DELETE /leases/l1": (204, ""),
            "GET /leases/l1": (404, ""),
        }
    )
    with pytest.raises(blazar.NoFloatingIP):
        obtain(LeaseRequest(RUN, floating_ips=1, apart=True), (SKYLAKE,), tmp_path, uc=uc)
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


# One of ours that fits


def fitting(*rows: dict[str, Any], **request: Any) -> leases.Held | None:
    found = [blazar.read_lease(row) for row in rows]
    return leases.find_fitting(found, LeaseRequest(Run("bees", "ffffffff"), **request), SKYLAKE, NOW)


def test_a_healthy_lease_of_the_experiment_is_used_again() -> None:
    held = fitting(lease_row(), count=2)
    assert held is not None
    assert (held.lease.id, held.reused, held.reservation) == ("l1", True, "l1-hosts")


@pytest.mark.parametrize(
    "row",
    [
        lease_row(status="ERROR"),
        lease_row(status="TERMINATED"),
        lease_row(status="DELETING"),
        lease_row("sage-wasps-chi_uc-0123abcd"),
        lease_row("sage-bees-chi_tacc-0123abcd"),
        lease_row("bees"),
        lease_row(node_type="gpu_p100"),
        lease_row(nodes=1),
        lease_row(ends="2026-11-21T12:30:00.000000"),
        lease_row(events=[{"event_type": "start_lease", "status": "ERROR"}]),
    ],
)
def test_a_lease_that_is_not_healthy_or_does_not_fit_is_not(row: dict[str, Any]) -> None:
    assert fitting(row, count=2) is None


def test_one_without_the_floating_ips_that_are_needed_does_not_fit() -> None:
    assert fitting(lease_row(floating_ips=1), floating_ips=2) is None
    held = fitting(lease_row(floating_ips=2), floating_ips=2)
    assert held is not None
    assert held.address_reservation == "l1-ips"


def test_its_floating_ips_may_be_in_a_lease_of_their_own() -> None:
    ips = lease_row("sage-bees-chi_uc-0123abcd-ips", lease_id="l2", nodes=0, floating_ips=2)
    held = fitting(lease_row(), ips, floating_ips=2)
    assert held is not None
    assert held.address_reservation == "l2-ips"
    other_run = lease_row("sage-bees-chi_uc-99999999-ips", lease_id="l2", nodes=0, floating_ips=2)
    assert fitting(lease_row(), other_run, floating_ips=2) is None


def test_an_active_one_comes_before_one_that_is_to_begin() -> None:
    held = fitting(lease_row(status="PENDING", lease_id="later"), lease_row(lease_id="now"))
    assert held is not None
    assert held.lease.id == "now"


# Waiting, extending, giving back


def wait(*answers: Any, **more: Any) -> Lease:
    connection: Any = FakeSite({"GET /leases/l1": list(answers)})
    return leases.wait_active(connection, "l1", **more)


def test_a_lease_is_waited_for_until_it_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []
    pending = {"lease": lease_row(status="STARTING")}
    found = wait(pending, pending, {"lease": lease_row()}, tell=states.append, deadline=30.0)
    assert (found.status, states) == ("ACTIVE", ["STARTING", "ACTIVE"])


def test_an_error_ends_the_wait_at_once() -> None:
    broken = lease_row(status="ERROR", events=[{"event_type": "start_lease", "status": "ERROR"}])
    with pytest.raises(Failed, match=r"is in ERROR \(event start_lease\)"):
        wait({"lease": broken}, deadline=3600.0)


def test_a_lease_that_ends_while_it_is_waited_for_is_told() -> None:
    with pytest.raises(Expired, match="is over"):
        wait({"lease": lease_row(status="TERMINATED")}, deadline=3600.0)
    with pytest.raises(Failed, match="is no more"):
        wait({"lease": lease_row(status="PENDING")}, (404, ""), deadline=3600.0)


def test_a_wait_ends_with_its_reason() -> None:
    with pytest.raises(TimedOut, match=r"not within 0 s; last seen: STARTING"):
        wait({"lease": lease_row(status="STARTING")}, deadline=0.0)


def test_what_is_given_back_is_waited_for_and_noted(tmp_path: Path) -> None:
    entry = ledger.begin(tmp_path, ledger.new_entry(RUN, "CHI@UC", "p1", Kind.LEASE, "n"))
    ledger.change(tmp_path, entry.key, id="l1")
    deleting = {"lease": lease_row(status="DELETING")}
    site = FakeSite({"DELETE /leases/l1": (204, ""), "GET /leases/l1": [deleting, (404, "")]})
    connection: Any = site
    leases.give_back(connection, blazar.read_lease(lease_row()), tmp_path)
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


def test_what_is_gone_already_is_given_back(tmp_path: Path) -> None:
    connection: Any = FakeSite({"DELETE /leases/l1": (404, ""), "GET /leases/l1": (404, "")})
    leases.give_back(connection, blazar.read_lease(lease_row()), tmp_path)


@pytest.mark.parametrize(
    "starting",
    [
        blazar_error(409, "Can't delete lease l1 while it is being started"),
        blazar_error(500, "Invalid lease status."),  # what Blazar 15 says of a lease in a passing state
    ],
)
def test_a_lease_that_is_about_to_start_is_asked_to_end_again(starting: Any, tmp_path: Path) -> None:
    site = FakeSite({"DELETE /leases/l1": [starting, (204, "")], "GET /leases/l1": [{"lease": lease_row()}, (404, "")]})
    connection: Any = site
    leases.give_back(connection, blazar.read_lease(lease_row()), tmp_path)
    assert len(site.bodies("DELETE /leases/l1")) == 2


def test_one_in_error_that_the_site_does_not_let_go_is_given_up_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Nova that died in the middle of Blazar's work leaves such leases.
    monkeypatch.setattr(leases, "_LET_GO_WITHIN", 0.1)
    row = lease_row(status="ERROR")
    connection: Any = FakeSite(
        {"DELETE /leases/l1": blazar_error(500, "Invalid lease status."), "GET /leases/l1": {"lease": row}}
    )
    with pytest.raises(leases.Failed, match="does not let it go") as caught:
        leases.give_back(connection, blazar.read_lease(row), tmp_path)
    assert "help desk" in str(caught.value.hint)


def test_who_is_to_be_reminded() -> None:
    entry = ledger.new_entry(RUN, "CHI@UC", "p1", Kind.LEASE, "n", ends_at="2026-11-21T12:30:00Z", now=NOW)
    made = ledger.Entry(**{**entry.__dict__, "id": "l1"})
    hour = timedelta(hours=1)
    assert reminder.due([made], {}, hour, NOW) == (made,)
    assert reminder.due([made], {"l1": "2026-11-21T12:30:00Z"}, hour, NOW) == (), "it was told"
    assert reminder.due([made], {"l1": "2026-11-21T11:30:00Z"}, hour, NOW) == (made,), "it was extended since"
    assert reminder.due([made], {}, timedelta(minutes=10), NOW) == ()
    assert reminder.due([entry], {}, hour, NOW) == (), "it was never made"


def test_a_lease_is_picked_by_name_or_id() -> None:
    lease = blazar.read_lease(lease_row())
    assert leases.pick([lease], "l1", "CHI@UC") is lease
    assert leases.pick([lease], lease.name, "CHI@UC") is lease
    with pytest.raises(InputError, match="no lease 'x'"):
        leases.pick([lease], "x", "CHI@UC")


def test_a_dry_run_asks_and_makes_nothing() -> None:
    uc = FakeSite({"GET /leases": {"leases": []}})
    tacc = FakeSite({"GET /leases": {"leases": [lease_row("sage-bees-chi_tacc-0123abcd", node_type="a")]}}, "CHI@TACC")
    connections: Any = {"CHI@UC": uc, "CHI@TACC": tacc}
    plan = leases.foresee(LeaseRequest(RUN), leases.tries([UC, TACC], ["a"]), connections)
    assert plan[0].startswith("asks for sage-bees-chi_uc-0123abcd: 1 x a at CHI@UC")
    assert plan[1].startswith("uses sage-bees-chi_tacc-0123abcd at CHI@TACC again")
    assert all(asked.startswith("GET") for asked, _ in (*uc.asked, *tacc.asked))


def test_nothing_to_try_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(SageError, match="no place to try"):
        leases.obtain(LeaseRequest(RUN), (), {}, state=tmp_path)

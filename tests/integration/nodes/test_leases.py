# SPDX-License-Identifier: Apache-2.0
"""Leases by the real Blazar: had, used again, extended, given back; and each error that it can be made to give."""

import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites.cloud import SiteUnreachable
from groundwork import process
from local_chameleon import cloud, services
from local_chameleon.cloud import Config, State
from local_chameleon.regions import REGIONS
from node_automation import blazar, extension, free, ledger, tagged
from node_automation import lease as leases
from node_automation.blazar import Expired, Full, NoFloatingIP, Restricted
from node_automation.lease import Failed, LeaseRequest, Part, Try
from tests.integration.nodes.conftest import User

HOUR = timedelta(hours=1)


def now() -> datetime:
    return datetime.now(timezone.utc)


def open_names(user: User) -> list[str]:
    return [entry.name for entry in ledger.open_entries(ledger.read(user.state))]


def test_a_lease_is_had_used_again_and_given_back(uc: User) -> None:
    held = uc.lease("compute_skylake", count=2, floating_ips=1)
    assert held.address_reservation is not None
    assert open_names(uc) == [held.lease.name] == uc.left()

    again = LeaseRequest(ledger.new_run("bees"), count=2, floating_ips=1, length=HOUR)
    where = leases.tries([uc.site], ["compute_skylake"])
    found = leases.obtain(again, where, {uc.site.name: uc.connection}, state=uc.state)
    assert (found.lease.id, found.reused) == (held.lease.id, True)

    leases.give_back(uc.connection, found.lease, uc.state)
    assert open_names(uc) == []
    assert uc.left() == []


def test_a_lease_in_error_is_never_used_again_and_ends_each_wait(uc: User, chameleon: State) -> None:
    held = uc.lease("compute_skylake")
    database = chameleon.state_dir / "blazar-chi_uc/blazar.db"
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as store, store:
        store.execute("UPDATE leases SET status = 'ERROR' WHERE id = ?", (held.lease.id,))
    with pytest.raises(Failed, match="is in ERROR"):
        leases.wait_active(uc.connection, held.lease.id, deadline=3600.0)
    request = LeaseRequest(ledger.new_run("bees"), length=HOUR)
    assert leases.standing(uc.connection, request, Try(uc.site, "compute_skylake")) is None
    leases.give_back(uc.connection, blazar.get_lease(uc.connection, held.lease.id), uc.state)
    assert uc.left() == []


def test_where_a_site_is_full_the_next_is_tried(uc: User, tacc: User) -> None:
    connections = {one.site.name: one.connection for one in (uc, tacc)}
    places = leases.tries([uc.site, tacc.site], ["compute_arm64", "gpu_p100"])
    told: list[str] = []
    request = LeaseRequest(ledger.new_run("bees"), arch="aarch64", length=HOUR)
    held = leases.obtain(request, places, connections, state=uc.state, note=told.append)
    assert (held.site, held.node_type) == ("CHI@TACC", "compute_arm64")
    assert [line.split(":")[0] for line in told] == ["compute_arm64 at CHI@UC", "gpu_p100 at CHI@UC"]
    assert open_names(uc) == [held.lease.name], "what was refused is not in the ledger"


def test_what_is_free_is_told(uc: User) -> None:
    def count() -> int:
        found = free.ask(uc.connection, uc.site, now(), HOUR, "compute_cascadelake_r")
        return found[0].free

    before = count()
    uc.lease("compute_cascadelake_r", count=2)
    assert count() == before - 2


def test_the_reasons_why_there_is_none(uc: User, user: Callable[..., User]) -> None:
    with pytest.raises(Full, match="Not enough hosts"):
        uc.lease("compute_skylake", count=50)
    with pytest.raises(Full):
        uc.lease("compute_skylake", arch="aarch64")
    with pytest.raises(NoFloatingIP):
        uc.lease("compute_skylake", floating_ips=200)
    with pytest.raises(NoFloatingIP):
        uc.lease("compute_skylake", floating_ips=200, apart=True)
    assert (open_names(uc), uc.left()) == ([], [])
    restricted = user("CHI@UC", "chi_uc_restricted")
    with pytest.raises(Restricted) as caught:
        restricted.lease("compute_skylake")
    assert "unrestricted" in str(caught.value.hint).lower()
    assert open_names(restricted) == []


def test_an_end_that_was_reached(uc: User) -> None:
    held = uc.lease("compute_skylake")
    blazar.update_lease(uc.connection, held.lease.id, {"end_date": "now"})
    for _ in process.poll_until(60):
        lease = blazar.get_lease(uc.connection, held.lease.id)
        if lease.status == "TERMINATED":
            break
    with pytest.raises(Expired, match="is over"):
        leases.wait_active(uc.connection, lease.id, deadline=3600.0)
    (result,) = extension.extend(uc.connection, [lease], now() + 5 * HOUR, state=uc.state)
    assert "is over" in result.problem


def test_a_lease_is_extended_for_all_parts_or_none(uc: User) -> None:
    held = uc.lease("compute_cascadelake_r", floating_ips=1)
    until = ledger.read_time(held.lease.ends_at) + HOUR
    (done,) = extension.extend(uc.connection, [held.lease], until, state=uc.state)
    assert (done.part, done.problem, done.ends_at) == (Part.BOTH, "", ledger.written(until))
    assert [entry.ends_at for entry in ledger.read(uc.state)] == [done.ends_at]
    # Somebody leases all nodes of the type for the time after.
    later = uc.lease_later("compute_cascadelake_r", until + HOUR, count=3)
    extended = blazar.get_lease(uc.connection, held.lease.id)
    (failed,) = extension.extend(uc.connection, [extended], until + 3 * HOUR, state=uc.state)
    assert failed.part is Part.NODES
    assert "floating IPs are not extended either" in failed.problem
    assert blazar.get_lease(uc.connection, held.lease.id).ends_at == done.ends_at
    leases.give_back(uc.connection, later.lease, uc.state)


def test_floating_ips_that_somebody_has_for_the_time_after_are_the_part_that_is_named(uc: User) -> None:
    held = uc.lease("compute_skylake", floating_ips=1)
    end = ledger.read_time(held.lease.ends_at)
    others = uc.lease_later("compute_skylake", end + HOUR, floating_ips=len(REGIONS["CHI@UC"].leased_addresses))
    (failed,) = extension.extend(uc.connection, [held.lease], end + 3 * HOUR, state=uc.state)
    assert failed.part is Part.FLOATING_IPS
    assert "its nodes are not extended either" in failed.problem
    assert ("in ERROR" in failed.problem) == (blazar.get_lease(uc.connection, held.lease.id).status == "ERROR")
    leases.give_back(uc.connection, others.lease, uc.state)


def test_parts_that_are_apart_are_extended_each_for_itself(uc: User) -> None:
    held = uc.lease("compute_skylake", floating_ips=1, apart=True)
    assert held.addresses is not None
    assert uc.left() == [held.lease.name, f"{held.lease.name}-ips"]
    end = ledger.read_time(held.lease.ends_at)
    # Somebody leases all nodes for the time after; nobody wants the floating IPs.
    others = uc.lease_later("compute_skylake", end + HOUR, count=10)
    both = leases.with_addresses(blazar.list_leases(uc.connection), held.lease)
    nodes, addresses = extension.extend(uc.connection, both, end + 3 * HOUR, state=uc.state)
    assert (nodes.part, bool(nodes.problem)) == (Part.NODES, True)
    assert (addresses.part, addresses.problem) == (Part.FLOATING_IPS, "")
    leases.give_back(uc.connection, others.lease, uc.state)


def test_a_flavor_is_leased_at_a_kvm_site(kvm: User) -> None:
    held = kvm.lease("m1.small", count=2)
    assert (held.lease.hosts, held.lease.nodes[0].resource_type) == (2, "flavor:instance")


def test_what_another_machine_leased_is_known_by_its_name(uc: User, tmp_path: Path) -> None:
    run = ledger.new_run("wasps")
    held = uc.lease("compute_skylake", run)
    elsewhere = replace(uc, state=tmp_path / "elsewhere")
    (entry,) = tagged.find_tagged(elsewhere.connection, elsewhere.site)
    assert (entry.id, entry.run, entry.hosts) == (held.lease.id, run, 1)
    elsewhere.clean()
    assert uc.left() == []


# What a kill in the middle leaves

_KILLED = """\
import dataclasses, os, sys
from datetime import timedelta
from pathlib import Path
from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from node_automation import ledger, lease
site = load_sites()["CHI@UC"]
ledger.change = lambda *words, **more: os.kill(os.getpid(), 9)
request = lease.LeaseRequest(ledger.new_run("bees"), length=timedelta(hours=2))
places = lease.tries([site], ["compute_skylake"])
lease.obtain(request, places, {site.name: cloud.connect(site)}, state=Path(sys.argv[1]))
"""


def test_a_lease_that_was_just_made_when_the_program_was_killed_is_found(uc: User) -> None:
    with pytest.raises(process.ProcessError):
        process.run([sys.executable, "-c", _KILLED, uc.state], timeout=120)
    (entry,) = ledger.open_entries(ledger.read(uc.state))
    assert entry.id is None
    assert uc.left() == [entry.name]
    (known,) = ledger.together([entry], tagged.find_tagged(uc.connection, uc.site))
    assert known.id is not None
    uc.clean()
    assert uc.left() == []


# Fabric's own loader


def fab(*words: str) -> Any:
    program = Path(sys.executable).with_name("fab")
    out = process.run([program, *words, "--json"], cwd=Path(__file__).parents[3], timeout=120)
    return json.loads(out)


def test_the_tasks_by_fabric_s_own_loader(uc: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_STATE_DIR", str(uc.state))
    made = fab("lease.create", "--node-type=compute_skylake", "--site=CHI@UC", "--name=bees", "--length=2h")
    name = made["lease"]["name"]
    assert (made["lease"]["status"], made["reused"]) == ("ACTIVE", False)
    assert name in [row["name"] for row in fab("lease.list", "--site=CHI@UC")["leases"]]
    assert fab("lease.extend", name, "--by=1h")["extended"][0]["problem"] == ""
    assert fab("lease.delete", name)["dry_run"] is False
    assert name not in [row["name"] for row in fab("lease.list", "--site=CHI@UC")["leases"]]


# Last, for it takes a service down


@pytest.fixture
def without_blazar(config: Config, chameleon: State) -> Iterator[Callable[[], None]]:
    """Takes TACC's Blazar away; it is put back after the test."""

    def take_away() -> None:
        for one in services.scan(chameleon.state_dir):
            if one.name == "blazar-chi_tacc":
                os.kill(one.pid, signal.SIGKILL)

    yield take_away
    cloud.up(config)


def test_a_site_that_goes_away_between_two_calls(
    uc: User, tacc: User, without_blazar: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = tacc.lease_later("compute_skylake", now() + 2 * HOUR).lease
    without_blazar()
    with pytest.raises(SiteUnreachable, match="CHI@TACC does not answer"):
        leases.wait_active(tacc.connection, lease.id, deadline=60.0)
    connections = {one.site.name: one.connection for one in (uc, tacc)}
    request = LeaseRequest(ledger.new_run("bees"), length=HOUR)
    places = leases.tries([tacc.site, uc.site], ["compute_skylake"])
    assert leases.obtain(request, places, connections, state=uc.state).site == "CHI@UC"

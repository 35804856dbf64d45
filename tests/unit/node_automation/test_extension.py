# SPDX-License-Identifier: Apache-2.0
"""Leases that are to run longer: what came of each, and which part was the reason."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from groundwork.errors import InputError
from node_automation import blazar, extension, ledger
from node_automation import lease as leases
from node_automation.extension import Extension
from node_automation.lease import Part
from node_automation.ledger import Kind
from tests.unit.node_automation.site import RUN, FakeSite, blazar_error, lease_row

FULL = blazar_error(500, "Not enough hosts available")


def extend(state: Path, answer: Any, **row: Any) -> Extension:
    after = {"lease": lease_row(status=row.pop("after", "ACTIVE"))}
    connection: Any = FakeSite({"PUT /leases/l1": answer, "GET /leases/l1": after})
    until = datetime(2099, 1, 3, 10, 0, tzinfo=timezone.utc)
    (found,) = extension.extend(connection, [blazar.read_lease(lease_row(**row))], until, state=state)
    return found


def test_a_lease_that_is_extended_is_so_in_the_ledger(tmp_path: Path) -> None:
    entry = ledger.begin(tmp_path, ledger.new_entry(RUN, "CHI@UC", "p1", Kind.LEASE, "n"))
    ledger.change(tmp_path, entry.key, id="l1")
    done = extend(tmp_path, {"lease": lease_row(ends="2099-01-03T10:00:00")})
    assert (done.part, done.problem, done.ends_at) == (Part.NODES, "", "2099-01-03T10:00:00Z")
    assert ledger.read(tmp_path)[0].ends_at == "2099-01-03T10:00:00Z"


def test_the_part_that_can_not_be_extended_is_named(tmp_path: Path) -> None:
    full = extend(tmp_path, FULL, floating_ips=1)
    assert full.part is Part.NODES
    assert "its floating IPs are not extended either" in full.problem
    taken = extend(tmp_path, blazar_error(400, "Cannot remove allocations from an active reservation"), floating_ips=1)
    assert taken.part is Part.FLOATING_IPS
    assert "its nodes are not extended either" in taken.problem
    alone = extend(tmp_path, blazar_error(400, "Not enough floating IPs available"), nodes=0, floating_ips=1)
    assert alone.part is Part.FLOATING_IPS
    assert "either" not in alone.problem


def test_a_lease_that_is_in_error_by_its_extension_is_told(tmp_path: Path) -> None:
    taken = extend(tmp_path, blazar_error(400, "Not enough floating IPs available"), floating_ips=1, after="ERROR")
    assert "has put the lease in ERROR" in taken.problem


def test_a_lease_that_is_over_is_not_asked_for(tmp_path: Path) -> None:
    assert "is over" in extend(tmp_path, {"lease": lease_row()}, status="TERMINATED").problem


def test_each_part_is_extended_for_itself_where_they_are_apart(tmp_path: Path) -> None:
    ips = lease_row("sage-bees-chi_uc-0123abcd-ips", lease_id="l2", nodes=0, floating_ips=1)
    answers = {"PUT /leases/l1": {"lease": lease_row()}, "PUT /leases/l2": FULL, "GET /leases/l2": {"lease": ips}}
    connection: Any = FakeSite(answers)
    both = leases.with_addresses(map(blazar.read_lease, [lease_row(), ips]), blazar.read_lease(lease_row()))
    done = extension.extend(connection, both, datetime(2099, 1, 3, tzinfo=timezone.utc), state=tmp_path)
    assert [(one.part, bool(one.problem)) for one in done] == [(Part.NODES, False), (Part.FLOATING_IPS, True)]


def test_a_lease_can_not_be_shortened_by_an_extension(tmp_path: Path) -> None:
    lease = blazar.read_lease(lease_row())
    connection: Any = FakeSite({})
    with pytest.raises(InputError, match="already runs until"):
        extension.extend(connection, [lease], datetime(2098, 1, 1, tzinfo=timezone.utc), state=tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""What is free where."""

from datetime import datetime, timedelta, timezone
from typing import Any

from chameleon_sites.cloud import SiteUnreachable
from node_automation import free
from node_automation.blazar import Allocation, Host
from node_automation.free import FreeNodes
from tests.unit.node_automation.site import FLAVORS, KVM, TACC, UC, FakeSite

BEGIN = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
DAY = timedelta(days=1)
HOSTS = [
    Host("1", "c01", "compute_skylake", "x86_64", True),
    Host("2", "c02", "compute_skylake", "x86_64", True),
    Host("3", "c03", "compute_skylake", "x86_64", False),
    Host("4", "a01", "compute_arm64", "aarch64", True),
]


def counted(*allocations: Allocation, node_type: str | None = None) -> list[tuple[str, int, int, str | None]]:
    found = free.count("CHI@UC", HOSTS, allocations, BEGIN, DAY, node_type)
    return [(row.node_type, row.free, row.total, row.next_at) for row in found]


def test_hosts_are_counted_by_type() -> None:
    assert counted() == [("compute_arm64", 1, 1, None), ("compute_skylake", 2, 2, None)]
    assert counted(node_type="compute_arm64") == [("compute_arm64", 1, 1, None)]
    assert counted(node_type="gpu_h100") == []


def test_one_that_is_leased_in_the_span_is_not_free() -> None:
    now = Allocation("1", "2026-11-21T10:00:00Z", "2026-11-21T13:00:00Z")
    later = Allocation("2", "2026-11-22T11:59:00Z", "2026-11-25T12:00:00Z")
    after = Allocation("4", "2026-11-22T12:00:00Z", "2026-11-23T12:00:00Z")
    before = Allocation("4", "2026-11-20T12:00:00Z", "2026-11-21T12:00:00Z")
    assert counted(now, after, before) == [("compute_arm64", 1, 1, None), ("compute_skylake", 1, 2, None)]
    assert counted(now, later)[1] == ("compute_skylake", 0, 2, "2026-11-21T13:00:00Z")


def test_a_site_that_does_not_tell_stands_with_its_problem() -> None:
    refused = {"GET /os-hosts": {"hosts": []}, "GET /os-hosts/allocations": (403, {"error_message": "no"})}
    connections: Any = {
        "CHI@UC": FakeSite(refused),
        "CHI@TACC": SiteUnreachable("CHI@TACC does not answer"),
        "KVM@TACC": FakeSite({"GET /flavors": FLAVORS}, "KVM@TACC"),
    }
    found = free.at_all_sites([UC, TACC, KVM], connections, BEGIN, DAY)
    assert [place.problem.message if place.problem else None for place in found] == [
        "CHI@UC does not tell this project which nodes are leased",
        "CHI@TACC does not answer",
        None,
    ]
    assert found[2].nodes == (
        FreeNodes("KVM@TACC", "baremetal", "", 0, 0, None),
        FreeNodes("KVM@TACC", "m1.medium", "", 0, 0, None),
    )

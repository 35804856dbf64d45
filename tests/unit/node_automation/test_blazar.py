# SPDX-License-Identifier: Apache-2.0
"""Blazar's documents as values, and its errors as ours: each with its own words and hint."""

from typing import Any

import pytest

from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.errors import SageError
from node_automation import blazar
from node_automation.api import Refused
from node_automation.blazar import Allocation, Expired, Full, NameTaken, NoFloatingIP, Overspent, Restricted
from tests.unit.node_automation.site import FakeSite, blazar_error, lease_row

TOO_LONG = "must be less than or equal to the maximum lease duration of"


def created(answer: Any, **more: Any) -> SageError:
    connection: Any = FakeSite({"POST /leases": answer, **more.pop("answers", {})}, **more)
    with pytest.raises(SageError) as caught:
        blazar.create_lease(connection, {})
    return caught.value


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (blazar_error(500, "Not enough hosts available"), Full),
        (blazar_error(404, "Host 'The reservation can't be accommodate because of less capacity.' not found!"), Full),
        (blazar_error(400, "Not enough floating IPs available"), NoFloatingIP),
        (blazar_error(409, "The lease with name: a already exists"), NameTaken),
        (blazar_error(400, f"Lease duration of 9 seconds {TOO_LONG} 8 seconds."), Overspent),
        (blazar_error(400, "Reservation for project CH-1 would spend 120.00 SUs, only 3.20 left"), Overspent),
        (blazar_error(500, "Internal Server Error"), SiteUnreachable),
        (blazar_error(418, "I am a teapot"), Refused),
    ],
)
def test_each_of_blazar_s_errors_has_its_own_kind(answer: Any, kind: type) -> None:
    problem = created(answer)
    assert type(problem) is kind or (kind is Refused and isinstance(problem, Refused))
    assert problem.hint or kind is Refused


def test_a_restricted_credential_is_told_as_what_it_is() -> None:
    credential = {"application_credential": {"id": "c1", "unrestricted": False}}
    answers = {"GET /users/u1/application_credentials/c1": credential}
    auth = {"application_credential_id": "c1"}
    problem = created(blazar_error(500, "Internal Server Error"), answers=answers, auth=auth)
    assert isinstance(problem, Restricted)
    assert "unrestricted" in str(problem.hint).lower()
    credential["application_credential"]["unrestricted"] = True
    problem = created(blazar_error(500, "Internal Server Error"), answers=answers, auth=auth)
    assert not isinstance(problem, Restricted)


def test_a_site_that_is_full_is_no_restricted_credential() -> None:
    credential = {"application_credential": {"id": "c1", "unrestricted": False}}
    answers = {"GET /users/u1/application_credentials/c1": credential}
    auth = {"application_credential_id": "c1"}
    problem = created(blazar_error(500, "Not enough hosts available"), answers=answers, auth=auth)
    assert isinstance(problem, Full)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (blazar_error(400, "Terminated leases can only be renamed"), Expired),
        (blazar_error(400, "Lease can only be extended within 9 seconds of the leases current end time."), Overspent),
        (blazar_error(400, "Floating IP reservation update is not yet supported"), NoFloatingIP),
        (blazar_error(400, "Cannot remove allocations from an active reservation"), NoFloatingIP),
        (blazar_error(500, "Not enough hosts available"), Full),
    ],
)
def test_why_a_lease_is_not_extended(answer: Any, kind: type) -> None:
    connection: Any = FakeSite({"PUT /leases/l1": answer})
    with pytest.raises(kind):
        blazar.update_lease(connection, "l1", {"end_date": "2099-01-01 10:00"})


def test_a_lease_out_of_its_document() -> None:
    lease = blazar.read_lease(lease_row(floating_ips=1))
    assert (lease.starts_at, lease.ends_at) == ("2026-01-02T10:00:00Z", "2099-01-02T10:00:00Z")
    assert (lease.hosts, lease.nodes[0].node_type) == (2, "compute_skylake")
    assert [part.amount for part in lease.floating_ips] == [1]
    assert lease.failed == ()


def test_what_is_in_error_is_named() -> None:
    row = lease_row(status="ERROR", events=[{"event_type": "start_lease", "status": "ERROR"}])
    row["reservations"][0]["status"] = "error"
    assert blazar.read_lease(row).failed == ("reservation of physical:host", "event start_lease")


@pytest.mark.parametrize(
    ("properties", "node_type"),
    [
        ('["=", "$node_type", "a"]', "a"),
        ('["==", "$node_type", "a"]', "a"),
        ('["and", ["=", "$architecture.platform_type", "x86_64"], ["=", "$node_type", "a"]]', "a"),
        ('["=", "$node_name", "c01"]', ""),
        ("", ""),
        ("not json", ""),
        ("7", ""),
    ],
)
def test_the_node_type_that_a_lease_asks_for(properties: str, node_type: str) -> None:
    row = lease_row()
    row["reservations"][0]["resource_properties"] = properties
    assert blazar.read_lease(row).nodes[0].node_type == node_type


def test_instances_of_a_flavor_are_nodes_too() -> None:
    row = lease_row(nodes=0)
    part = {"id": "r", "resource_type": "flavor:instance", "flavor_id": "f1", "amount": 3, "status": "active"}
    row["reservations"] = [part]
    lease = blazar.read_lease(row)
    assert (lease.hosts, lease.nodes[0].node_type) == (3, "f1")


@pytest.mark.parametrize("row", [{}, {**lease_row(), "start_date": "soon"}, {**lease_row(), "reservations": [7]}])
def test_a_document_that_is_no_lease_is_an_error(row: dict[str, Any]) -> None:
    with pytest.raises(SiteError, match="no lease"):
        blazar.read_lease(row)


def test_when_hosts_are_leased() -> None:
    span = {"start_date": "2026-01-01T10:00:00.000000", "end_date": "2026-01-02T10:00:00.000000"}
    answer = {"allocations": [{"resource_id": "7", "reservations": [{"id": "r", "lease_id": "l", **span}]}]}
    connection: Any = FakeSite({"GET /os-hosts/allocations": answer})
    assert blazar.list_allocations(connection) == (Allocation("7", "2026-01-01T10:00:00Z", "2026-01-02T10:00:00Z"),)


@pytest.mark.parametrize(
    ("answer", "about"),
    [
        (blazar_error(400, 'Malformed requirements ["=", "$node_type", "a"]'), True),
        (blazar_error(500, "Internal Server Error"), True),
        (blazar_error(500, "Not enough hosts available"), False),
        (blazar_error(409, "The lease with name: a already exists"), False),
    ],
)
def test_a_server_that_does_not_take_the_sign_of_equality_is_known(answer: Any, about: bool) -> None:
    assert blazar.is_about_operator(created(answer)) is about

# SPDX-License-Identifier: Apache-2.0
"""Floating IPs: the lease's before the common pool's, never one that another server has."""

from pathlib import Path
from typing import Any

import pytest

from groundwork.errors import SageError
from node_automation import address, ledger
from node_automation.address import NotBound
from node_automation.blazar import NoFloatingIP
from node_automation.ledger import Kind
from tests.unit.node_automation.site import NETWORKS, RUN, FakeSite, neutron_error

PORTS = {"ports": [{"id": "port-1", "fixed_ips": [{"ip_address": "10.0.0.2"}], "status": "ACTIVE"}]}


def ip(number: int, *, port: str | None = None, tags: tuple[str, ...] = (), description: str = "") -> dict[str, Any]:
    return {
        "id": f"ip-{number}",
        "floating_ip_address": f"192.5.87.{number}",
        "port_id": port,
        "fixed_ip_address": "10.0.0.2" if port else None,
        "status": "ACTIVE" if port else "DOWN",
        "tags": list(tags),
        "description": description,
    }


LEASED = ip(1, tags=("blazar", "reservation:r1"))
OURS = ip(2, description="sage_run=bees/0123abcd")
STRANGER = ip(3)
OTHER_RUN = ip(4, tags=("sage_run=bees/ffffffff",))


def bound(body: Any) -> Any:
    return {"floatingip": ip(9, port=body["floatingip"]["port_id"])}


def given(addresses: list[dict[str, Any]], state: Path, answers: dict[str, Any] | None = None, **more: Any) -> FakeSite:
    site = FakeSite(
        {
            "GET /ports": PORTS,
            "GET /networks": NETWORKS,
            "GET /floatingips": {"floatingips": addresses},
            **{f"PUT /floatingips/ip-{number}": bound for number in range(1, 10)},
            **(answers or {}),
        }
    )
    connection: Any = site
    address.give(connection, "s1", run=RUN, node="n", state=state, **more)
    return site


@pytest.mark.parametrize(
    ("rows", "reservation", "chosen"),
    [
        ([STRANGER, OURS, LEASED], "r1", "ip-1"),
        ([STRANGER, OURS, LEASED], None, "ip-2"),
        ([STRANGER, OTHER_RUN], "r1", None),
        ([{**LEASED, "port_id": "taken"}, {**OURS, "port_id": "taken"}], "r1", None),
    ],
)
def test_which_one_is_chosen(rows: list[dict[str, Any]], reservation: str | None, chosen: str | None) -> None:
    found = address.choose(map(address.read, rows), reservation, RUN)
    assert (found and found.id) == chosen


def test_the_lease_s_own_is_bound_to_the_server_s_port(tmp_path: Path) -> None:
    site = given([LEASED], tmp_path, reservation="r1")
    assert site.bodies("PUT /floatingips/ip-1") == [{"floatingip": {"port_id": "port-1"}}]
    assert ledger.read(tmp_path) == (), "it goes with the lease"


def test_a_server_that_has_one_keeps_it(tmp_path: Path) -> None:
    site = given([LEASED, ip(5, port="port-1")], tmp_path, reservation="r1")
    assert not any(asked.startswith(("PUT", "POST")) for asked, _ in site.asked)


def test_where_the_lease_has_none_the_common_pool_is_asked(tmp_path: Path) -> None:
    noted: list[Any] = []

    def made(body: Any) -> Any:
        noted.extend(ledger.read(tmp_path))
        return 201, {"floatingip": ip(7, description=body["floatingip"]["description"])}

    answers = {"POST /floatingips": made, "PUT /floatingips/ip-7/tags": {"tags": []}}
    site = given([STRANGER], tmp_path, answers, reservation="r1")
    assert [(entry.kind, entry.id) for entry in noted] == [(Kind.FLOATING_IP, None)], "written before it is made"
    assert site.bodies("POST /floatingips") == [
        {"floatingip": {"floating_network_id": "public-id", "description": "sage_run=bees/0123abcd"}}
    ]
    assert site.bodies("PUT /floatingips/ip-7/tags") == [{"tags": ["sage_run=bees/0123abcd"]}]
    assert [entry.id for entry in ledger.read(tmp_path)] == ["ip-7"]


def test_the_common_pool_is_not_asked_where_that_is_not_wanted(tmp_path: Path) -> None:
    with pytest.raises(NoFloatingIP, match="no free floating IP"):
        given([STRANGER], tmp_path, reservation="r1", ad_hoc=False)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (neutron_error(409, "OverQuota", "Quota exceeded for resources: ['floatingip']."), "may have no more"),
        (neutron_error(409, "IpAddressGeneration", "No more IP addresses available on network x."), "floating IP left"),
    ],
)
def test_why_there_is_none(answer: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(NoFloatingIP, match=said) as caught:
        given([], tmp_path, {"POST /floatingips": answer})
    assert caught.value.hint
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


def test_a_network_without_a_router_is_told(tmp_path: Path) -> None:
    said = "External network x is not reachable from subnet y. Therefore, cannot associate Port z with a Floating IP."
    answer = neutron_error(404, "ExternalGatewayForFloatingIPNotFound", said)
    with pytest.raises(NotBound) as caught:
        given([LEASED], tmp_path, {"PUT /floatingips/ip-1": answer}, reservation="r1")
    assert "router" in str(caught.value.hint)


def test_a_server_without_a_port_can_have_none(tmp_path: Path) -> None:
    with pytest.raises(NotBound, match="no port with an address"):
        given([LEASED], tmp_path, {"GET /ports": {"ports": []}})


def test_what_is_given_back_is_noted(tmp_path: Path) -> None:
    entry = ledger.begin(tmp_path, ledger.new_entry(RUN, "CHI@UC", "p1", Kind.FLOATING_IP, "x"))
    ledger.change(tmp_path, entry.key, id="ip-7")
    for answer in ((204, ""), (404, "")):
        connection: Any = FakeSite({"DELETE /floatingips/ip-7": answer})
        address.release(connection, "ip-7", tmp_path)
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


def test_a_refusal_of_another_kind_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(SageError, match="Something else"):
        given([], tmp_path, {"POST /floatingips": neutron_error(400, "BadRequest", "Something else")})

# SPDX-License-Identifier: Apache-2.0
"""Servers: what Nova is asked for at each kind of site, what stands, and what went wrong."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site
from groundwork.errors import InputError, SageError
from node_automation import host_keys, ledger, names, server
from node_automation.ledger import Kind, Run
from node_automation.server import NotBuilt, NoValidHost, QuotaExceeded, Resolved, Server, ServerRequest, Unsupported
from tests.unit.node_automation.site import (
    FLAVORS,
    KVM,
    NETWORKS,
    RUN,
    UC,
    FakeSite,
    nova_error,
    server_row,
)

RESOLVED = Resolved("image-id", "bm-id", "shared-id")
REQUEST = ServerRequest(
    RUN, "bees-waggle-1", "Sage", node_type="compute_skylake", reservation="r1", authorized=("ssh-ed25519 ME me",)
)


def one(**row: Any) -> Server:
    return server.read(server_row(**row))


def created(answer: Any, state: Path) -> Any:
    connection: Any = FakeSite({"POST /servers": answer})
    return server.create(connection, UC, REQUEST, state=state, resolved=RESOLVED)


def test_bare_metal_boots_on_the_reservation_by_a_hint() -> None:
    body = server.body(REQUEST, UC, RESOLVED, host_keys.make())
    assert body["os:scheduler_hints"] == {"reservation": "r1"}
    assert body["server"]["flavorRef"] == "bm-id"
    assert body["server"]["networks"] == [{"uuid": "shared-id"}]
    assert "key_name" not in body["server"]


def test_a_kvm_site_takes_the_reservation_s_flavor_and_no_hint() -> None:
    body = server.body(REQUEST, KVM, Resolved("image-id", "r1", "shared-id"), host_keys.make())
    assert "os:scheduler_hints" not in body
    assert body["server"]["flavorRef"] == "r1"


def test_whose_it_is_stands_in_its_metadata() -> None:
    key = host_keys.make()
    metadata = server.body(REQUEST, UC, RESOLVED, key)["server"]["metadata"]
    assert metadata == {
        "sage_run": "bees/0123abcd",
        "sage_node": "bees-waggle-1",
        "sage_node_type": "compute_skylake",
        "sage_reservation": "r1",
        "sage_host_key": key.public,
    }
    assert all(len(value) <= 255 for value in metadata.values()), "Nova takes no longer ones"


def test_the_private_host_key_is_in_the_user_data_alone() -> None:
    key = host_keys.make()
    body = server.body(REQUEST, UC, RESOLVED, key)
    text = base64.b64decode(body["server"].pop("user_data")).decode()
    assert yaml.safe_load(text)["ssh_keys"]["ed25519_private"] == key.private
    assert "PRIVATE" not in repr(body)
    assert "PRIVATE" not in repr(key)


@pytest.mark.parametrize(
    ("site", "reservation", "flavor", "expected"),
    [(UC, "r1", None, "bm-id"), (KVM, "r1", None, "r1"), (KVM, None, "m1.medium", "medium-id")],
)
def test_the_flavor_of_each_kind_of_site(
    site: Site, reservation: str | None, flavor: str | None, expected: str
) -> None:
    connection: Any = FakeSite({"GET /flavors": FLAVORS})
    assert names.flavor_for(connection, site.kind, reservation, flavor) == expected


def test_names_that_a_site_does_not_know_are_told() -> None:
    connection: Any = FakeSite({"GET /flavors": FLAVORS, "GET /networks": NETWORKS})
    with pytest.raises(InputError, match="no network 'sharednet2'") as caught:
        names.network_id(connection, "sharednet2")
    assert "sharednet1" in str(caught.value.hint)
    with pytest.raises(InputError, match="needs a lease or a flavor"):
        names.flavor_for(connection, KVM.kind, None, None)
    with pytest.raises(InputError, match="no flavor reservation:r9"):
        names.flavor_for(connection, KVM.kind, "r9", None)


def test_a_name_that_stands_twice_is_not_guessed() -> None:
    twice = {"networks": [{"id": "a", "name": "n"}, {"id": "b", "name": "n"}]}
    connection: Any = FakeSite({"GET /networks": twice})
    with pytest.raises(InputError, match="several networks 'n'") as caught:
        names.network_id(connection, "n")
    assert caught.value.hint == "name one by its id: a, b"
    assert names.network_id(connection, "b") == "b"


def test_floating_ips_come_from_the_public_network() -> None:
    connection: Any = FakeSite({"GET /networks": NETWORKS})
    assert names.public_network_id(connection) == "public-id"


def test_a_server_is_in_the_ledger_before_it_is_asked_for(tmp_path: Path) -> None:
    noted: list[Any] = []

    def answer(body: Any) -> Any:
        noted.extend(ledger.read(tmp_path))
        return 202, {"server": {"id": "s1"}}

    assert created(answer, tmp_path) == "s1"
    assert [(entry.kind, entry.name, entry.id, entry.reservation) for entry in noted] == [
        (Kind.SERVER, "bees-waggle-1", None, "r1")
    ]
    assert [entry.id for entry in ledger.read(tmp_path)] == ["s1"]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (nova_error(403, "Quota exceeded for instances: Requested 1, but already used 10 of 10"), QuotaExceeded, "10"),
        (nova_error(400, "Invalid key_name provided.", "badRequest"), InputError, "no key pair"),
        (nova_error(400, "Flavor's disk is too small for requested image.", "badRequest"), InputError, "too small"),
        (nova_error(400, "Something else", "badRequest"), SiteError, "Something else"),
    ],
)
def test_what_nova_refuses_is_told_and_is_not_in_the_ledger(
    answer: Any, kind: type[SageError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        created(answer, tmp_path)
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


def test_a_server_of_which_nobody_knows_whether_it_was_made_stays_in_the_ledger(tmp_path: Path) -> None:
    with pytest.raises(SiteUnreachable):
        created(requests.ConnectionError("reset"), tmp_path)
    assert [entry.id for entry in ledger.open_entries(ledger.read(tmp_path))] == [None]


def test_a_server_that_stands_is_not_made_again(tmp_path: Path) -> None:
    row = server_row()
    connection: Any = FakeSite(
        {"GET /servers/detail": {"servers": [row]}, "GET /servers/id-bees-waggle-1": {"server": row}}
    )
    found = server.launch(connection, UC, REQUEST, state=tmp_path)
    assert (found.id, found.floating_ip, found.fixed_ip) == ("id-bees-waggle-1", "192.5.87.3", "10.140.0.9")


def test_ids_are_asked_for_once_for_all_that_want_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(connection: Any, site: Site, request: ServerRequest) -> Resolved:
        asked.append(request.image)
        return RESOLVED

    monkeypatch.setattr(server, "resolve", resolve)
    connection: Any = FakeSite({})
    ids = server.resolver(connection, UC)
    for node in ("bees-waggle-1", "bees-waggle-2"):
        assert ids(dataclasses.replace(REQUEST, node=node)) == RESOLVED
    ids(dataclasses.replace(REQUEST, image="other"))
    assert asked == ["Sage", "other"]


@pytest.mark.parametrize(
    "row",
    [
        server_row(status="ERROR"),
        server_row(name="bees-waggle-2"),
        server_row(metadata={}),
        server_row(metadata={"sage_run": "bees/ffffffff"}),
        server_row(**{"OS-EXT-STS:task_state": "deleting"}),
    ],
)
def test_one_that_is_broken_or_another_s_is_not_taken_for_it(row: dict[str, Any]) -> None:
    connection: Any = FakeSite({"GET /servers/detail": {"servers": [row]}})
    assert server.find(connection, RUN, "bees-waggle-1") is None


def wait(*answers: Any, deadline: float = 30.0) -> Server:
    connection: Any = FakeSite({"GET /servers/s1": list(answers)})
    return server.wait_active(connection, "s1", deadline=deadline)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("No valid host was found. There are not enough hosts.", NoValidHost), ("Image transfer failed", NotBuilt)],
)
def test_an_error_ends_the_wait_at_once_and_says_why(fault: str, kind: type[NotBuilt]) -> None:
    with pytest.raises(kind, match=fault.split(".")[0]) as caught:
        wait({"server": server_row(status="ERROR", fault={"code": 500, "message": fault})}, deadline=3600.0)
    assert caught.value.hint


def test_a_server_that_goes_away_ends_the_wait() -> None:
    with pytest.raises(NotBuilt, match="is no more"):
        wait(nova_error(404, "Instance s1 could not be found.", "itemNotFound"), deadline=3600.0)


def test_a_task_at_work_is_waited_for() -> None:
    busy = server_row(**{"OS-EXT-STS:task_state": "rebooting"})
    assert wait({"server": busy}, {"server": server_row()}).task == ""


def test_servers_are_listed_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PAGE", 2)
    pages = [{"servers": [server_row("a"), server_row("b")]}, {"servers": [server_row("c", metadata={})]}]
    site = FakeSite({"GET /servers/detail": pages})
    connection: Any = site
    assert [row.name for row in server.list_ours(connection)] == ["a", "b"]
    assert site.asked[1][0].endswith("marker=id-b")


def test_a_console_has_its_last_lines() -> None:
    connection: Any = FakeSite({"POST /servers/id-bees-waggle-1/action": {"output": "a\nb\nc\n"}})
    assert server.console(connection, one(), lines=2) == "b\nc"


def test_a_site_without_consoles_says_so() -> None:
    connection: Any = FakeSite({"POST /servers/id-bees-waggle-1/action": nova_error(501, "Not supported", "x")})
    with pytest.raises(Unsupported, match="no console"):
        server.console(connection, one())


def test_a_busy_server_can_not_be_rebooted() -> None:
    answer = nova_error(409, "Cannot 'reboot' instance while it is in task_state deleting", "conflictingRequest")
    connection: Any = FakeSite({"POST /servers/id-bees-waggle-1/action": answer})
    with pytest.raises(SiteError, match="can't be rebooted now"):
        server.reboot(connection, one(), hard=True)


def test_what_is_deleted_is_waited_for_and_noted(tmp_path: Path) -> None:
    entry = ledger.begin(tmp_path, ledger.new_entry(RUN, "CHI@UC", "p1", Kind.SERVER, "n"))
    ledger.change(tmp_path, entry.key, id="s1")
    going = {"server": server_row(**{"OS-EXT-STS:task_state": "deleting"})}
    connection: Any = FakeSite({"DELETE /servers/s1": (204, ""), "GET /servers/s1": [going, (404, "")]})
    server.delete(connection, "s1", state=tmp_path)
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


def test_what_is_deleted_already_is_no_error(tmp_path: Path) -> None:
    connection: Any = FakeSite({"DELETE /servers/s1": (404, ""), "GET /servers/s1": (404, "")})
    server.delete(connection, "s1", state=tmp_path)


def test_a_snapshot_that_fails_is_not_in_the_ledger(tmp_path: Path) -> None:
    answer = nova_error(400, "Snapshots are not supported", "badRequest")
    connection: Any = FakeSite({"POST /servers/id-bees-waggle-1/action": answer})
    with pytest.raises(Unsupported, match="makes no snapshot") as caught:
        server.snapshot(connection, one(), "kept", state=tmp_path)
    assert "cc-snapshot" in str(caught.value.hint)
    assert ledger.open_entries(ledger.read(tmp_path)) == ()


def test_a_security_group_lets_in_what_is_asked_for(tmp_path: Path) -> None:
    group = {"id": "g1", "name": "sage-bees-0123abcd", "security_group_rules": []}
    site = FakeSite(
        {
            "GET /security-groups": {"security_groups": []},
            "POST /security-groups": {"security_group": group},
            "POST /security-group-rules": (201, {}),
        }
    )
    connection: Any = site
    assert server.open_security_group(connection, RUN, [5671, 443], state=tmp_path) == "sage-bees-0123abcd"
    rules = [body["security_group_rule"]["port_range_min"] for body in site.bodies("POST /security-group-rules")]
    assert rules == [22, 443, 5671]
    assert [(entry.kind, entry.id) for entry in ledger.read(tmp_path)] == [(Kind.SECURITY_GROUP, "g1")]


def test_a_security_group_that_stands_is_completed(tmp_path: Path) -> None:
    rule = {"direction": "ingress", "protocol": "tcp", "port_range_min": 22}
    group = {"id": "g1", "name": "sage-bees-0123abcd", "project_id": "p1", "security_group_rules": [rule]}
    site = FakeSite({"GET /security-groups": {"security_groups": [group]}, "POST /security-group-rules": (201, {})})
    connection: Any = site
    server.open_security_group(connection, RUN, [443], state=tmp_path)
    assert len(site.bodies("POST /security-group-rules")) == 1


def test_a_server_is_picked_by_name_or_id() -> None:
    rows = [one(name="a"), one(name="b")]
    assert server.pick(rows, "id-b").name == "b"
    with pytest.raises(InputError, match="no node 'c'"):
        server.pick(rows, "c")
    with pytest.raises(InputError, match="several nodes 'a'"):
        server.pick([*rows, one(name="a")], "a")


def test_a_server_from_a_volume_has_no_image() -> None:
    assert one(image="").image_id == ""


def test_whose_a_server_is() -> None:
    assert one().run == RUN
    assert one(metadata={"sage_run": "no run"}).run is None
    assert one(metadata={"sage_run": str(Run("bees", "ffffffff"))}).run == Run("bees", "ffffffff")

# SPDX-License-Identifier: Apache-2.0
"""Servers by the real Nova and Neutron: launched, used again, reached; and each error that they can be made to give."""

import base64
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundwork import process
from groundwork.errors import InputError, SageError
from local_chameleon.cloud import State
from node_automation import address, diagnose, host_keys, launching, ledger, parallel, reach, server, ssh, tagged
from node_automation import lease as leases
from node_automation.blazar import NoFloatingIP
from node_automation.diagnose import Stage
from node_automation.host_keys import GIVEN, OWN
from node_automation.launching import AddressFrom, Launched, Wishes
from node_automation.lease import Held
from node_automation.ledger import Kind, Run
from node_automation.server import NotBuilt, NoValidHost, QuotaExceeded, ServerRequest
from node_automation.ssh import HostKeyChanged
from tests.integration import sshd
from tests.integration.nodes.conftest import User
from tests.integration.test_local_chameleon import connect

IMAGE = "Sage-Test"


@pytest.fixture(autouse=True)
def image(uc: User, kvm: User) -> None:
    """An image at each site; the fake servers do not look into it."""
    for one in (uc, kvm):
        if not list(one.connection.image.images(name=IMAGE)):
            one.connection.image.create_image(IMAGE, data=b"x", disk_format="raw", container_format="bare")


def request(held: Held, node: str = "bees-waggle-1", **more: Any) -> ServerRequest:
    run = ledger.run_of_lease(held.lease.name, held.site.replace("@", "_").lower())
    assert run is not None
    return ServerRequest(run, node, IMAGE, node_type=held.node_type, reservation=held.reservation, **more)


def open_kinds(user: User) -> list[Kind]:
    return [entry.kind for entry in ledger.open_entries(ledger.read(user.state))]


def test_ten_nodes_three_at_a_time(uc: User, monkeypatch: pytest.MonkeyPatch) -> None:
    held = uc.lease("compute_skylake", count=10, floating_ips=2)
    building: list[int] = []
    most: list[int] = []
    launch = server.launch

    def counted(*words: Any, **more: Any) -> Any:
        building.append(1)
        most.append(len(building))
        try:
            return launch(*words, **more)
        finally:
            building.pop()

    monkeypatch.setattr(server, "launch", counted)
    requests = [request(held, f"bees-waggle-{number}") for number in range(1, 11)]
    wishes = Wishes(AddressFrom.NONE)
    results = launching.launch_all(uc.connection, uc.site, requests, wishes, state=uc.state)
    assert [result.node for result in results if isinstance(result, Launched)] == [one.node for one in requests]
    assert max(most) == parallel.LAUNCHES
    assert {one.status for one in server.list_ours(uc.connection, "bees")} == {"ACTIVE"}
    assert open_kinds(uc).count(Kind.SERVER) == 10

    # The same again: nothing is made.
    again = launching.launch_all(uc.connection, uc.site, requests[:2], wishes, state=uc.state)
    assert again == results[:2]


def test_floating_ips_are_the_lease_s_first_then_the_common_pool_s(uc: User) -> None:
    held = uc.lease("compute_skylake", count=2, floating_ips=1)
    requests = [request(held, f"bees-waggle-{number}") for number in (1, 2)]
    wishes = Wishes(AddressFrom.ANY, held.address_reservation)
    results = launching.launch_all(uc.connection, uc.site, requests, wishes, state=uc.state)
    assert all(isinstance(result, Launched) and result.address for result in results), results
    assert sorted(open_kinds(uc)) == sorted([Kind.LEASE, Kind.SERVER, Kind.SERVER, Kind.FLOATING_IP])
    bound = [ip for ip in address.list_all(uc.connection) if ip.port_id]
    assert [ip.reservation for ip in bound].count(held.address_reservation) == 1
    for one in server.list_ours(uc.connection):
        launching.take_away(uc.connection, one, state=uc.state)
    assert open_kinds(uc) == [Kind.LEASE]
    assert [ip.reservation for ip in address.list_all(uc.connection)] == [held.address_reservation]


def test_a_lease_without_floating_ips_and_a_pool_that_is_empty(kvm: User) -> None:
    run = ledger.new_run("bees")
    with pytest.raises(NoFloatingIP, match="no floating IP left"):
        for number in range(20):
            address.make(kvm.connection, run=run, node=f"n{number}", state=kvm.state)
    assert len(open_kinds(kvm)) == len(kvm.left()) > 0


def test_a_node_too_many_has_no_place(uc: User) -> None:
    held = uc.lease("compute_skylake")
    server.launch(uc.connection, uc.site, request(held), state=uc.state)
    with pytest.raises(NoValidHost, match="no node of the lease takes bees-waggle-2") as caught:
        server.launch(uc.connection, uc.site, request(held, "bees-waggle-2"), state=uc.state)
    assert caught.value.hint
    broken = server.pick(server.list_ours(uc.connection), "bees-waggle-2")
    assert server.find(uc.connection, request(held).run, "bees-waggle-2") is None, "it is never used again"
    found = diagnose.diagnose(uc.connection, broken, None)
    assert found.failed is not None
    assert found.failed.stage is Stage.SERVER
    server.delete(uc.connection, broken.id, state=uc.state)


def test_the_quota_is_told_as_what_it_is(user: Callable[..., User], kvm: User) -> None:
    other = user("KVM@TACC", "kvm_tacc_2")
    other.connection.image.create_image(IMAGE, data=b"x", disk_format="raw", container_format="bare")
    run = ledger.new_run("bees")

    def launch(number: int) -> None:
        wanted = ServerRequest(run, f"n{number}", IMAGE, flavor="m1.tiny")
        server.launch(other.connection, other.site, wanted, state=other.state)

    with pytest.raises(QuotaExceeded, match="Quota exceeded"):
        for number in range(5):
            launch(number)
    assert len(open_kinds(other)) == len(other.left())
    for one in server.list_ours(other.connection):
        server.delete(other.connection, one.id, state=other.state)
    for found in list(other.connection.image.images(name=IMAGE, owner=other.connection.current_project_id)):
        other.connection.image.delete_image(found.id)


def test_virtual_machines_boot_on_the_reservation_s_flavor(kvm: User) -> None:
    held = kvm.lease("m1.small")
    group = server.open_security_group(kvm.connection, request(held).run, [5671], state=kvm.state)
    wanted = request(held, security_group=group)
    one = server.launch(kvm.connection, kvm.site, wanted, state=kvm.state)
    assert (one.status, one.reservation) == ("ACTIVE", held.reservation)
    assert server.open_security_group(kvm.connection, wanted.run, [5671], state=kvm.state) == group
    assert open_kinds(kvm) == [Kind.LEASE, Kind.SECURITY_GROUP, Kind.SERVER]


def test_names_that_the_site_does_not_know(uc: User) -> None:
    held = uc.lease("compute_skylake")
    wanted = request(held)
    for wrong, said in (
        (dataclasses.replace(wanted, image="Sage-Tset"), "no image 'Sage-Tset'"),
        (dataclasses.replace(wanted, network="sharednet2"), "no network 'sharednet2'"),
        (dataclasses.replace(wanted, flavor="baremetall"), "no flavor 'baremetall'"),
        (dataclasses.replace(wanted, key_name="nobody"), "no key pair 'nobody'"),
    ):
        with pytest.raises(InputError, match=said):
            server.launch(uc.connection, uc.site, wrong, state=uc.state)
    assert open_kinds(uc) == [Kind.LEASE]


def test_what_is_done_to_a_node(uc: User) -> None:
    held = uc.lease("compute_skylake", floating_ips=1)
    wishes = Wishes(AddressFrom.LEASE, held.address_reservation)
    (made,) = launching.launch_all(uc.connection, uc.site, [request(held)], wishes, state=uc.state)
    assert isinstance(made, Launched)
    one = server.get(uc.connection, made.server_id)
    assert "LAST LINE" in server.console(uc.connection, one)
    for hard in (False, True):
        reach.reboot(uc.connection, uc.site, one, None, hard=hard)
    assert server.get(uc.connection, one.id).status == "ACTIVE"
    found = diagnose.diagnose(uc.connection, one, None)
    assert [(row.stage, row.passed) for row in found.findings] == [
        (Stage.SERVER, True),
        (Stage.PORT, True),
        (Stage.FLOATING_IP, True),
    ]


def test_servers_that_go_with_their_lease_end_a_wait(uc: User) -> None:
    held = uc.lease("compute_skylake")
    one = server.launch(uc.connection, uc.site, request(held), state=uc.state)
    leases.give_back(uc.connection, held.lease, uc.state)
    for _ in process.poll_until(60):
        if not server.list_ours(uc.connection):
            break
    with pytest.raises(NotBuilt, match="is no more"):
        server.wait_active(uc.connection, one.id, deadline=3600.0)


def test_a_node_is_let_in_to_by_the_key_in_its_user_data_alone(
    uc: User, chameleon: State, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    held = uc.lease("compute_skylake")
    identity, public = ssh.identity(uc.state, None)
    one = server.launch(uc.connection, uc.site, request(held, authorized=(public,)), state=uc.state)
    # What cloud-init does at the node: the host key and the user's key out of the user data that Nova keeps.
    admin = connect(chameleon, "admin_chi_uc")
    kept = admin.compute.get(f"/servers/{one.id}", microversion="2.3").json()["server"]["OS-EXT-SRV-ATTR:user_data"]
    data = yaml.safe_load(base64.b64decode(kept))
    given = host_keys.HostKey(data["ssh_keys"]["ed25519_public"], data["ssh_keys"]["ed25519_private"])
    program = sshd.program(tmp_path_factory.mktemp("openssh-server"))
    with sshd.running(program, data["ssh_authorized_keys"][0], given) as node:

        def reached(key: Path) -> ssh.Target:
            return reach.reach(
                uc.connection, one.id, key, deadline=30.0, address="127.0.0.1", port=node.port, place=node.place
            )

        reached(identity)
        metadata = server.get(uc.connection, one.id).metadata
        assert metadata[OWN] == node.public_key() != given.public
        assert GIVEN not in metadata
        # Another machine, with a key of its own that the node takes, knows the node by the site's word.
        other, other_public = ssh.identity(tmp_path / "elsewhere", None)
        node.let_in(other_public)
        assert reached(other).keys == (node.public_key(),)
    with sshd.running(program, public, given) as impostor, pytest.raises(HostKeyChanged):
        target = ssh.Target(one.name, one.id, "127.0.0.1", (metadata[OWN],), port=impostor.port, identity=identity)
        ssh.connect(target)


_KILLED = """\
import os, sys
from pathlib import Path
from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from node_automation import ledger, server
from node_automation.ledger import Run
site = load_sites()["CHI@UC"]
ledger.change = lambda *words, **more: os.kill(os.getpid(), 9)
request = server.ServerRequest(Run("bees", sys.argv[2]), "bees-waggle-1", "Sage-Test", reservation=sys.argv[3])
server.launch(cloud.connect(site), site, request, state=Path(sys.argv[1]))
"""


def test_a_server_that_was_just_asked_for_when_the_program_was_killed_is_not_made_twice(uc: User) -> None:
    held = uc.lease("compute_skylake")
    wanted = request(held)
    with pytest.raises(process.ProcessError):
        command = [sys.executable, "-c", _KILLED, str(uc.state), wanted.run.id, held.reservation]
        process.run(command, timeout=120)
    assert [entry.id for entry in ledger.open_entries(ledger.read(uc.state), kind=Kind.SERVER)] == [None]
    one = server.launch(uc.connection, uc.site, wanted, state=uc.state)
    assert [found.id for found in server.list_ours(uc.connection)] == [one.id]
    assert [entry.id for entry in ledger.open_entries(ledger.read(uc.state), kind=Kind.SERVER)] == [one.id]


def test_what_stands_is_found_and_given_back_from_another_machine(uc: User, tmp_path: Path) -> None:
    held = uc.lease("compute_skylake")
    (made,) = launching.launch_all(uc.connection, uc.site, [request(held)], Wishes(AddressFrom.AD_HOC), state=uc.state)
    assert not isinstance(made, SageError), made
    elsewhere = dataclasses.replace(uc, state=tmp_path / "elsewhere")
    found = tagged.find_tagged(elsewhere.connection, elsewhere.site)
    assert [entry.kind for entry in found] == [Kind.LEASE, Kind.SERVER, Kind.FLOATING_IP]
    assert {entry.run for entry in found} == {request(held).run}
    elsewhere.clean()
    assert uc.left() == []


def test_the_tasks_of_a_node_by_fabric_s_own_loader(uc: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_STATE_DIR", str(uc.state))
    held = uc.lease("compute_skylake", floating_ips=1)

    def fab(*words: str) -> Any:
        program = Path(sys.executable).with_name("fab")
        return json.loads(process.run([program, *words, "--json"], cwd=Path(__file__).parents[3], timeout=120))

    launch = ("node.launch", "bees-waggle", f"--lease={held.lease.name}", f"--image={IMAGE}", "--no-login")
    assert fab(*launch, "--dry-run")["plan"] == ["bees-waggle"]
    (node,) = fab(*launch)["nodes"]
    assert node["address"]
    (row,) = fab("node.list", "--site=CHI@UC")["nodes"]
    assert (row["name"], row["status"], row["floating_ip"]) == ("bees-waggle", "ACTIVE", node["address"])
    assert f"HostName {node['address']}" in (uc.state / "nodes/ssh_config").read_text()
    assert "LAST LINE" in fab("node.console", "bees-waggle")["console"]
    assert fab("node.delete", "bees-waggle")["deleted"] == ["bees-waggle"]
    assert fab("gc", "--name=bees")["things"][0]["state"] == "is gone"
    assert uc.left() == []


def test_runs_of_one_experiment_are_told_apart(uc: User) -> None:
    held = uc.lease("compute_skylake")
    one = server.launch(uc.connection, uc.site, request(held), state=uc.state)
    assert server.find(uc.connection, Run("bees", "00000000"), one.name) is None

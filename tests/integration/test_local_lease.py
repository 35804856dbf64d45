# SPDX-License-Identifier: Apache-2.0
"""The profile that lends nodes: real leases by Blazar, servers on reserved hosts, floating IPs, and what it refuses."""

import datetime
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from keystoneauth1.adapter import Adapter
from keystoneauth1.exceptions import HttpError
from openstack.exceptions import ForbiddenException, HttpException

from groundwork import process
from local_chameleon import cloud, furnish, services
from local_chameleon.cloud import Config, State
from local_chameleon.regions import REGIONS
from tests.integration.conftest import new_config
from tests.integration.test_local_chameleon import command, connect, pids

SKYLAKE = json.dumps(["=", "$node_type", "compute_skylake"])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    config = replace(new_config(tmp_path_factory), profile="lease")
    try:
        yield config
    finally:
        cloud.down(config, purge=True)
        assert services.scan(config.state_dir) == []
        assert not config.state_dir.exists()


@pytest.fixture(scope="module")
def lease_profile(config: Config) -> State:
    return cloud.up(config)


class Site:
    """A user's way to a region: openstacksdk's connection, and Blazar's API."""

    def __init__(self, state: State, name: str) -> None:
        self.connection = connect(state, name)
        self.blazar = Adapter(
            self.connection.session,
            service_type="reservation",
            interface="public",
            region_name=self.connection.config.region_name,
        )

    def lease(self, name: str, *reservations: dict[str, Any], hours: float = 1) -> dict[str, Any]:
        """Ask for a lease from now on."""
        end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=hours)
        body = {
            "name": name,
            "start_date": "now",
            "end_date": end.strftime("%Y-%m-%d %H:%M"),
            "reservations": list(reservations),
            "events": [],
        }
        found: dict[str, Any] = self.blazar.post("/leases", json=body).json()["lease"]
        return found

    def wait(self, lease: dict[str, Any], status: str = "ACTIVE", seconds: float = 60) -> dict[str, Any]:
        """Wait until a lease has this status."""
        for _ in process.poll_until(seconds):
            found: dict[str, Any] = self.blazar.get(f"/leases/{lease['id']}").json()["lease"]
            if found["status"] == status:
                return found
            assert found["status"] != "ERROR", found
        raise AssertionError(f"the lease is {found['status']}")

    def delete(self, lease: dict[str, Any]) -> None:
        self.blazar.delete(f"/leases/{lease['id']}")

    def reservation(self, lease: dict[str, Any], kind: str = "physical:host") -> str:
        """The id of the lease's reservation of this kind."""
        return str(next(one["id"] for one in lease["reservations"] if one["resource_type"] == kind))

    def image(self) -> str:
        """The id of an image, made at the first call."""
        images = self.connection.image
        found = next(images.images(name="node"), None) or images.create_image(
            "node", data=b"x" * 1000, disk_format="raw", container_format="bare", visibility="private"
        )
        return str(found.id)

    def server(self, name: str, flavor: str, reservation: str | None = None) -> Any:
        """Start a server and wait until it is ACTIVE or ERROR."""
        compute = self.connection.compute
        made = compute.create_server(
            name=name,
            image_id=self.image(),
            flavor_id=compute.find_flavor(flavor, ignore_missing=False).id,
            networks=[{"uuid": self.connection.network.find_network("sharednet1").id}],
            **({"scheduler_hints": {"reservation": reservation}} if reservation else {}),
        )
        for _ in process.poll_until(60):
            server = compute.get_server(made.id)
            if server.status in ("ACTIVE", "ERROR"):
                return server
        raise AssertionError(f"the server is {server.status}")

    def remove(self, *servers: Any) -> None:
        for server in servers:
            self.connection.compute.delete_server(server, ignore_missing=True)
        for server in servers:
            self.connection.compute.wait_for_delete(server, interval=0.2, wait=60)


def nodes(number: int = 1, properties: str = SKYLAKE) -> dict[str, Any]:
    return {
        "resource_type": "physical:host",
        "resource_properties": properties,
        "hypervisor_properties": "",
        "min": number,
        "max": number,
    }


def floating_ips(site: Site, number: int = 1) -> dict[str, Any]:
    network = site.connection.network.find_network("public")
    return {"resource_type": "virtual:floatingip", "network_id": network.id, "amount": number}


def refusal(error: HttpError) -> str:
    """What Blazar says."""
    return str(error.response.json()["error_message"])  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def uc(lease_profile: State) -> Site:
    return Site(lease_profile, "chi_uc")


@pytest.fixture(scope="module")
def tacc(lease_profile: State) -> Site:
    return Site(lease_profile, "chi_tacc")


@pytest.fixture(scope="module")
def kvm(lease_profile: State) -> Site:
    return Site(lease_profile, "kvm_tacc")


def test_every_service_answers_and_every_host_is_up(lease_profile: State) -> None:
    assert lease_profile.up
    assert len(lease_profile.services) == 16
    for slug, region in (("chi_uc", "CHI@UC"), ("chi_tacc", "CHI@TACC"), ("kvm_tacc", "KVM@TACC")):
        admin = connect(lease_profile, f"admin_{slug}")
        computes = {one.host: one.state for one in admin.compute.services(binary="nova-compute")}
        assert computes == {host.name: "up" for host in REGIONS[region].hosts}


def test_users_see_node_types_and_when_hosts_are_free(uc: Site) -> None:
    hosts = uc.blazar.get("/os-hosts").json()["hosts"]
    assert sorted((host["hypervisor_hostname"], host["node_type"]) for host in hosts) == sorted(
        (host.name, host.node_type) for host in REGIONS["CHI@UC"].hosts
    )
    assert len(uc.blazar.get("/os-hosts/allocations").json()["allocations"]) == len(hosts)


def test_a_server_runs_on_the_reserved_host_and_has_the_leases_address(lease_profile: State, uc: Site) -> None:
    lease = uc.wait(uc.lease("one", nodes(), floating_ips(uc)))
    server = uc.server("sage-one", "baremetal", uc.reservation(lease))
    assert server.status == "ACTIVE"
    assert len(server.addresses["sharednet1"]) == 1

    admin = connect(lease_profile, "admin_chi_uc")
    pool = next(one for one in admin.compute.aggregates() if one.name == uc.reservation(lease))
    assert pool.hosts == [admin.compute.get_server(server.id).compute_host]

    network = uc.connection.network
    tag = f"reservation:{uc.reservation(lease, 'virtual:floatingip')}"
    (address,) = network.ips(tags=tag)
    assert address.floating_ip_address in REGIONS["CHI@UC"].leased_addresses
    assert (address.status, address.fixed_ip_address) == ("DOWN", None)
    (port,) = network.ports(device_id=server.id)
    bound = network.update_ip(address.id, port_id=port.id)
    assert bound.status == "ACTIVE"
    for _ in process.poll_until(10):
        known = [one["addr"] for one in uc.connection.compute.get_server(server.id).addresses["sharednet1"]]
        if address.floating_ip_address in known:
            break
    assert known == [port.fixed_ips[0]["ip_address"], address.floating_ip_address]

    # With the lease all of it goes away.
    uc.delete(lease)
    uc.connection.compute.wait_for_delete(server, interval=0.2, wait=60)
    assert list(network.ips(tags=tag)) == []
    assert [one["id"] for one in uc.blazar.get("/leases").json()["leases"]] == []


def test_a_host_takes_one_server(uc: Site) -> None:
    lease = uc.wait(uc.lease("narrow", nodes()))
    first = uc.server("sage-first", "baremetal", uc.reservation(lease))
    second = uc.server("sage-second", "baremetal", uc.reservation(lease))
    assert (first.status, second.status) == ("ACTIVE", "ERROR")
    assert "No valid host" in second.fault["message"]
    uc.remove(first, second)
    uc.delete(lease)


def test_without_a_lease_no_node_is_had(uc: Site) -> None:
    server = uc.server("sage-alone", "baremetal")
    assert server.status == "ERROR"
    uc.remove(server)


def test_ten_nodes_at_once(uc: Site) -> None:
    lease = uc.wait(uc.lease("ten", nodes(10)))
    with ThreadPoolExecutor(3) as pool:
        servers = list(
            pool.map(lambda number: uc.server(f"sage-{number}", "baremetal", uc.reservation(lease)), range(10))
        )
    assert [server.status for server in servers] == ["ACTIVE"] * 10
    assert len({server.addresses["sharednet1"][0]["addr"] for server in servers}) == 10
    uc.remove(*servers)
    uc.delete(lease)


def test_more_than_there_is_is_refused_with_the_reason(uc: Site) -> None:
    with pytest.raises(HttpError) as caught:
        uc.lease("greedy", nodes(11))
    assert refusal(caught.value) == "Not enough hosts available"
    with pytest.raises(HttpError) as caught:
        uc.lease("unknown", nodes(properties=json.dumps(["=", "$node_type", "compute_unknown"])))
    assert refusal(caught.value) == "Not enough hosts available"
    with pytest.raises(HttpError) as caught:
        uc.lease("thirsty", floating_ips(uc, 100))
    assert "Not enough floating IPs available" in refusal(caught.value)
    with pytest.raises(HttpError) as caught:
        uc.lease("endless", nodes(), hours=24 * 8)
    assert "duration" in refusal(caught.value)
    assert uc.blazar.get("/leases").json()["leases"] == []


def test_a_name_says_nothing_of_a_lease(tacc: Site) -> None:
    leases = [tacc.wait(tacc.lease("same", nodes())) for _ in range(2)]
    assert {one["id"] for one in leases} == {one["id"] for one in tacc.blazar.get("/leases").json()["leases"]}
    for lease in leases:
        tacc.delete(lease)


def test_leases_made_at_once_get_hosts_of_their_own(lease_profile: State) -> None:
    sites = [Site(lease_profile, "chi_tacc") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        leases = list(pool.map(lambda number: sites[number].lease(f"race-{number}", nodes()), range(3)))
    allocated = [
        host["resource_id"]
        for host in sites[0].blazar.get("/os-hosts/allocations").json()["allocations"]
        for _ in host["reservations"]
    ]
    assert len(allocated) == len(set(allocated)) == 3
    for lease in leases:
        sites[0].delete(sites[0].wait(lease))


def test_a_lease_is_extended_and_ends_with_its_server(tacc: Site) -> None:
    arm64 = nodes(properties=json.dumps(["=", "$node_type", "compute_arm64"]))
    lease = tacc.wait(tacc.lease("short", arm64))
    server = tacc.server("sage-short", "baremetal", tacc.reservation(lease))
    assert server.status == "ACTIVE"
    later = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2)).strftime("%Y-%m-%d %H:%M")
    extended = tacc.blazar.put(f"/leases/{lease['id']}", json={"end_date": later, "reservations": []}).json()["lease"]
    assert extended["end_date"].startswith(later.replace(" ", "T"))
    # Its end is now: what begins and ends in its time does so within a second.
    tacc.blazar.put(f"/leases/{lease['id']}", json={"end_date": "now", "reservations": []})
    tacc.wait(lease, "TERMINATED")
    tacc.connection.compute.wait_for_delete(server, interval=0.2, wait=30)
    tacc.delete(lease)


def test_virtual_machines_are_reserved_by_flavor(kvm: Site) -> None:
    flavor = kvm.connection.compute.find_flavor("m1.small")
    lease = kvm.wait(
        kvm.lease("flavor", {"resource_type": "flavor:instance", "flavor_id": flavor.id, "amount": 2, "affinity": None})
    )
    reservation = kvm.reservation(lease, "flavor:instance")
    servers = [kvm.server(f"sage-{number}", f"reservation:{reservation}") for number in range(3)]
    assert [server.status for server in servers] == ["ACTIVE", "ACTIVE", "ERROR"]
    kvm.remove(servers[2])
    kvm.delete(lease)
    for server in servers[:2]:
        kvm.connection.compute.wait_for_delete(server, interval=0.2, wait=60)


def test_a_virtual_machine_needs_no_lease(kvm: Site) -> None:
    server = kvm.server("sage-ad-hoc", "m1.tiny")
    assert server.status == "ACTIVE"
    kvm.remove(server)


def test_addresses_without_a_lease_run_out(kvm: Site) -> None:
    network = kvm.connection.network
    public = network.find_network("public").id
    taken = []
    with pytest.raises(HttpException, match="No more IP addresses"):
        for _ in range(10):
            taken.append(network.create_ip(floating_network_id=public))
    assert len(taken) == 4
    assert not {one.floating_ip_address for one in taken} & set(REGIONS["KVM@TACC"].leased_addresses)
    for one in taken:
        network.delete_ip(one)


def test_the_second_project_has_a_small_quota(lease_profile: State) -> None:
    site = Site(lease_profile, "kvm_tacc_2")
    servers = [site.server(f"sage-{number}", "m1.tiny") for number in range(furnish.SMALL_QUOTA)]
    with pytest.raises(ForbiddenException, match="Quota exceeded for instances"):
        site.server("sage-too-many", "m1.tiny")
    site.remove(*servers)


def test_a_restricted_credential_reads_but_makes_no_lease(lease_profile: State) -> None:
    site = Site(lease_profile, "chi_uc_restricted")
    assert site.blazar.get("/leases").json()["leases"] == []
    with pytest.raises(HttpError) as caught:
        site.lease("restricted", nodes())
    assert caught.value.http_status == 500
    assert site.blazar.get("/leases").json()["leases"] == []


def test_projects_see_only_their_own_leases(lease_profile: State, tacc: Site) -> None:
    lease = tacc.wait(tacc.lease("mine", nodes()))
    other = Site(lease_profile, "chi_tacc_2")
    assert other.blazar.get("/leases").json()["leases"] == []
    tacc.delete(lease)


def test_what_is_secret_is_in_no_log_and_no_command_line(lease_profile: State) -> None:
    words = set(json.loads((lease_profile.state_dir / "secrets.json").read_text()).values())
    texts = [path.read_text() for path in lease_profile.state_dir.glob("*/service.log*")]
    texts += [Path(f"/proc/{one.pid}/cmdline").read_text() for one in services.scan(lease_profile.state_dir)]
    assert not any(word in text for word in words for text in texts)


def test_up_repairs_a_killed_nova_and_leases_outlive_down(config: Config, lease_profile: State, uc: Site) -> None:
    lease = uc.wait(uc.lease("lasting", nodes()))
    before = pids(config)
    os.kill(before["nova-chi_uc"], signal.SIGKILL)
    begin = time.monotonic()
    out = command(config, "up", "--profile", "lease")
    assert out.strip() == f"export OS_CLIENT_CONFIG_FILE={config.state_dir}/clouds.yaml"
    assert time.monotonic() - begin < 60
    after = pids(config)
    assert after.pop("nova-chi_uc") != before.pop("nova-chi_uc")
    assert after == before
    # A server can be had as soon as `up` is back.
    server = uc.server("sage-repaired", "baremetal", uc.reservation(lease))
    assert server.status == "ACTIVE"

    assert len(cloud.down(config)) == 16
    assert pids(config) == {}
    assert cloud.up(config).up
    assert uc.wait(lease)["name"] == "lasting"
    assert uc.connection.compute.get_server(server.id).status == "ACTIVE"
    uc.delete(lease)
    uc.connection.compute.wait_for_delete(server, interval=0.2, wait=60)

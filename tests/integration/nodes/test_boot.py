# SPDX-License-Identifier: Apache-2.0
"""An experiment on machines that really boot the image: from `create-image` to a plugin's data read from outside.

`make test-boot` runs these alone.  They take root, and half an hour on two idle cores, for all is emulated.
"""

import dataclasses
import functools
import hashlib
import http.server
import ipaddress
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sage_data_client

from chameleon_sites import cloud as clouds
from chameleon_sites.sites import load_sites
from groundwork import process
from local_chameleon import cloud, hypervisor, services
from local_chameleon.cloud import Config, State
from node_automation import lease as leases
from tests.integration import commands
from tests.integration.commands import Ran
from tests.integration.conftest import new_config
from tests.integration.nodes.conftest import User
from tests.integration.test_local_chameleon import connect, pids

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="machines, bridges and rules of the firewall take root"),
]

UP = 5400  # seconds for all of `fab up`: two machines that boot and load containers, emulated, on a busy machine
PLUGIN = 1800
BEES = """
name: bees
duration: 4h
sites: [CHI@UC]
node_types: [compute_skylake]
image: Sage-Debian12
nodes: {beehive: 1, waggle: 1}
links: {waggle: beehive}
variables: {HEALTH_INTERVAL: 60}
"""
LOAD = """
name: load
duration: 1h
sites: [CHI@UC]
node_types: [compute_skylake]
image: Sage-Debian12
nodes: {bench: 1}
variables: {BENCH_SECONDS: 5, BENCH_CONNECTIONS: 8}
"""
PODS = """
name: pods
duration: 1h
sites: [CHI@UC]
node_types: [compute_skylake]
image: Sage-Debian12
nodes: {k8s: 1, k8s-worker: 1}
links: {k8s-worker: k8s}
variables:
  K3S_VERSION: v1.0+stand-in
  K3S_RELEASES: http://GATEWAY:PORT
"""
# In k3s's place, which can't be had where the tests run: it shows what the role does, not that k3s does.
K3S = r"""#!/bin/bash
set -eu
config=/etc/rancher/k3s/config.yaml
set_in() { sed -n "s/^$1: //p" $config | tr -d '"'; }
case $1 in
server)
  grep -qx 'flannel-backend: wireguard-native' $config
  mkdir -p /var/lib/rancher/k3s/server /run/k3s/machines
  echo K10secret > /var/lib/rancher/k3s/server/node-token
  touch "/run/k3s/machines/$(set_in node-name)"
  echo 'kind: Config' > /run/k3s/k3s.yaml
  install -m "$(set_in write-kubeconfig-mode)" -g "$(set_in write-kubeconfig-group)" /run/k3s/k3s.yaml /etc/rancher/k3s
  touch /run/k3s/healthz
  python3 -m http.server --directory /run/k3s 10248 --bind 127.0.0.1 &
  python3 -m http.server --directory /run/k3s 6443 &
  systemd-notify --ready
  wait ;;
agent)
  [ "$(cat "$(set_in token-file)")" = K10secret ]
  curl --fail --silent --output /dev/null "$(set_in server | sed s/^https/http/)/machines/"
  mkdir -p /run/k3s
  touch /run/k3s/healthz
  exec python3 -m http.server --directory /run/k3s 10248 --bind 127.0.0.1 ;;
kubectl | wait | get)
  grep --quiet Config /etc/rancher/k3s/k3s.yaml
  echo '{"items": []}' ;;
esac
"""


@dataclass(frozen=True)
class Room:
    """A Chameleon whose servers boot, and a user in front of it.  ``before``: the host as it was before."""

    config: Config
    state: State
    folder: Path
    before: dict[str, Any]

    @property
    def env(self) -> dict[str, str]:
        return {
            "OS_CLIENT_CONFIG_FILE": str(self.state.clouds_yaml),
            "SAGE_STATE_DIR": str(self.folder / "user"),
            "SAGE_CONFIG": "/dev/null",
        }

    def fab(self, *words: str, timeout: float = 900) -> Ran:
        return commands.run("fab", *words, env=self.env, timeout=timeout)

    def ask(self, *words: str) -> Any:
        """What the openstack client lists."""
        ran = commands.run("openstack", "--os-cloud", "chi_uc", *words, "--format", "json", env=self.env)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)


def host() -> dict[str, Any]:
    """What a Chameleon whose servers boot, and libvirt, Nova and os-vif, change on this machine; of others nothing."""
    links = json.loads(process.run(["ip", "-json", "link"]))
    rules = process.run(["nft", "list", "ruleset"]).splitlines()
    return {
        "links": sorted(row["ifname"] for row in links if row["ifname"].startswith(("brq", "tap", "virbr"))),
        "rules": [line for line in rules if any(word in line for word in ("local_chameleon", "brq", "nova", "virt"))],
        "forwards": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "namespaces": process.run(["ip", "netns", "list"]),
        "folders": [place for place in hypervisor._PLACES if Path(place).exists()],
    }


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    before = host()
    # libvirt's socket lies in it, and its path may not be long
    with tempfile.TemporaryDirectory(prefix="boot.") as short, pytest.MonkeyPatch.context() as patch:
        config = dataclasses.replace(new_config(tmp_path_factory), state_dir=Path(short) / "state", profile="boot")
        try:
            state = cloud.up(config)
            patch.setenv("OS_CLIENT_CONFIG_FILE", str(state.clouds_yaml))
            yield Room(config, state, tmp_path_factory.mktemp("user"), before)
        finally:
            cloud.down(config, purge=True)


# ------------------------------------------------------------------------------------------- machines without a system


class Small:
    """A machine with an empty disk: it runs, and does nothing."""

    def __init__(self, room: Room, name: str) -> None:
        self.connection = connect(room.state, "chi_uc")
        self.user = user(room)
        lease = self.user.lease("compute_skylake", floating_ips=1)
        assert lease.lease is not None
        self.lease = lease.lease
        images = self.connection.image
        image = next(images.images(name="empty"), None) or images.create_image(
            "empty", data=b"\0" * (1 << 20), disk_format="raw", container_format="bare"
        )
        compute = self.connection.compute
        made = compute.create_server(
            name=name,
            image_id=image.id,
            flavor_id=compute.find_flavor("baremetal", ignore_missing=False).id,
            networks=[{"uuid": self.connection.network.find_network("sharednet1").id}],
            scheduler_hints={"reservation": self.lease.nodes[0].id},
        )
        self.server = compute.wait_for_server(made, wait=120, interval=0.5)

    def wait(self, status: str) -> None:
        for _ in process.poll_until(120, 0.5):
            if self.connection.compute.get_server(self.server.id).status == status:
                return
        raise AssertionError(f"it is not {status}")

    def close(self) -> None:
        self.connection.compute.delete_server(self.server)
        self.connection.compute.wait_for_delete(self.server, interval=0.5, wait=120)
        leases.give_back(self.user.connection, self.lease, self.user.state)


def user(room: Room) -> User:
    site = load_sites()["CHI@UC"]
    return User(site, clouds.connect(site, deadline=60.0), room.folder / "user")


def machines(room: Room) -> list[str]:
    """The command lines of the machines that run."""
    folder = str(room.state.state_dir)
    return [line for line in commands.processes_that_name(Path(folder)) if "qemu-system" in line.split()[0]]


@pytest.fixture
def small(room: Room) -> Iterator[Small]:
    made = Small(room, "small")
    yield made
    made.close()


def test_many_machines_come_and_go_and_nova_outlives_it(room: Room) -> None:
    before = pids(room.config)
    for _ in range(2):
        made = [Small(room, f"small-{number}") for number in range(3)]
        assert [one.server.status for one in made] == ["ACTIVE"] * 3
        assert len(machines(room)) == 3
        for one in made:
            # Nova opens the machine's terminal for it, which hangs up when the machine ends.
            one.connection.compute.get_server_console_output(one.server)
            one.close()
        assert machines(room) == []
    assert pids(room.config) == before


def test_up_starts_a_killed_hypervisor_and_its_machines(room: Room, small: Small) -> None:
    os.kill(pids(room.config)["qemu"], signal.SIGKILL)
    for _ in process.poll_until(20):
        if not machines(room):
            break
    assert machines(room) == [], "machines end with their hypervisor"
    assert cloud.up(room.config).up
    small.wait("ACTIVE")
    assert len(machines(room)) == 1


def test_down_stops_machines_up_starts_them(room: Room, small: Small) -> None:
    cloud.down(room.config)
    assert host() == room.before
    assert commands.processes_that_name(room.config.state_dir) == []
    assert cloud.up(room.config).up
    small.wait("ACTIVE")
    assert len(machines(room)) == 1


def test_a_snapshot_is_an_image(room: Room, small: Small) -> None:
    made = small.connection.compute.create_server_image(small.server.id, "kept", wait=True, timeout=120)
    assert made.status == "active"
    small.connection.image.delete_image(made.id)


def test_down_leaves_nothing_also_where_all_of_it_was_killed(room: Room, small: Small) -> None:
    for one in services.scan(room.config.state_dir):
        os.kill(one.pid, signal.SIGKILL)
    cloud.down(room.config)
    assert host() == room.before
    assert commands.processes_that_name(room.config.state_dir) == []
    assert cloud.up(room.config).up
    small.wait("ACTIVE")


# ------------------------------------------------------------------------------------------------------- an experiment


@pytest.fixture(scope="module")
def published(room: Room, tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("image")
    words = ("--variant", "sage", "--release", "bookworm", "--output-dir", top, "--publish", "--site", "CHI@UC")
    done = commands.run("create-image", *words, env=room.env, timeout=3600)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def bees(room: Room, published: None) -> dict[str, Any]:
    """What `fab up` told of a Beehive and a Waggle node, by the nodes' names."""
    (room.folder / "bees.yaml").write_text(BEES)
    done = room.fab("up", str(room.folder / "bees.yaml"), "--json", timeout=UP)
    assert done.code == 0, done.err
    return {node["name"]: node for node in json.loads(done.out)["nodes"]}


def test_a_beehive_and_a_node_are_up(bees: dict[str, Any]) -> None:
    assert {name: node["up"] for name, node in bees.items()} == {"bees-beehive-1": True, "bees-waggle-1": True}


def test_a_node_answers_and_nothing_in_it_has_failed(room: Room, bees: dict[str, Any]) -> None:
    told = json.loads(room.fab("node.diagnose", "bees-waggle-1", "--json").out)
    assert [row["stage"] for row in told["findings"]][-2:] == ["cloud-init", "units"]
    assert all(row["passed"] for row in told["findings"])
    assert "bees-waggle-1 login:" in room.fab("node.console", "bees-waggle-1", "--lines=1000").out


def test_what_a_plugin_measures_is_read_through_the_floating_ip(room: Room, bees: dict[str, Any]) -> None:
    script = "cd && virtual-waggle newplugin probe && virtual-waggle build probe"
    script += " && virtual-waggle run probe:0.1.0 -- --count 3 --interval 1"
    ran = room.fab("node.run", "bees-waggle-1", script, f"--timeout={PLUGIN}", timeout=PLUGIN + 60)
    assert ran.code == 0, ran.err
    endpoint = f"http://{bees['bees-beehive-1']['address']}:8080/api/v1/query"
    found: list[int] = []
    for _ in process.poll_until(600, 2.0):
        frame = sage_data_client.query(start="-1h", filter={"name": "example.count"}, endpoint=endpoint)
        if len(frame) == 3:
            found = list(frame["value"])
            break
    assert found == [1, 2, 3]


def test_what_was_measured_is_collected(room: Room, bees: dict[str, Any]) -> None:
    ran = room.fab("collect", "bees", "--output", str(room.folder / "collected"), timeout=1800)
    assert ran.code == 0, ran.err
    (folder,) = (room.folder / "collected").iterdir()
    lines = (folder / "bees-beehive-1/measurements.ndjson").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines if json.loads(line)["name"] == "example.count"] == [1, 2, 3]
    assert json.loads((folder / "bees-waggle-1/report.json").read_text())
    assert "Sage-Debian12" in (folder / "manifest.json").read_text()


def test_down_gives_all_back(room: Room, bees: dict[str, Any]) -> None:
    assert sorted(row["Name"] for row in room.ask("server", "list")) == ["bees-beehive-1", "bees-waggle-1"]
    ran = room.fab("down", "bees")
    assert ran.code == 0, ran.err
    assert room.ask("server", "list") == []
    assert room.ask("floating", "ip", "list") == []
    assert user(room).left() == []
    time.sleep(1)  # the network daemon looks each 0.3 s
    assert machines(room) == []
    assert "192.0.2." not in process.run(["nft", "list", "ruleset"])


def test_a_benchmark_runs_and_its_result_is_collected(room: Room, published: None) -> None:
    (room.folder / "load.yaml").write_text(LOAD)
    done = room.fab("up", str(room.folder / "load.yaml"), timeout=UP)
    assert done.code == 0, done.err
    ran = room.fab("collect", "load", "--output", str(room.folder / "benchmarks"))
    assert ran.code == 0, ran.err
    (folder,) = (room.folder / "benchmarks").iterdir()
    result = json.loads((folder / "load-bench-1/files/bench/result.json").read_text())
    assert result["seconds"] >= 5
    assert result["requests"] > 0
    assert not any(result["errors"].values())
    assert json.loads((folder / "load-bench-1/machine.json").read_text())
    assert room.fab("down", "load").code == 0


@pytest.fixture
def releases(room: Room, tmp_path: Path) -> Iterator[str]:
    """A server of k3s's releases, as machines of CHI@UC reach it: its address and port."""
    folder = tmp_path / "v1.0+stand-in"
    folder.mkdir()
    (folder / "k3s").write_text(K3S)
    digest = hashlib.sha256(K3S.encode()).hexdigest()
    (folder / "sha256sum-amd64.txt").write_text(f"{digest}  k3s\n{'0' * 64}  k3s-airgap-images-amd64.tar\n")
    (subnet,) = (row for row in room.ask("subnet", "list", "--long") if row["Name"] == "sharednet1-subnet")
    address = next(ipaddress.ip_network(subnet["Subnet"]).hosts())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer((str(address), 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{address}:{server.server_port}"
        server.shutdown()


def test_a_cluster_is_made_and_joined(room: Room, published: None, releases: str, tmp_path: Path) -> None:
    path = room.folder / "pods.yaml"
    text = PODS.replace("GATEWAY:PORT", releases)
    path.write_text(text + "  K3S_SHA256: '" + "0" * 64 + "'\n")
    refused = room.fab("up", str(path), timeout=UP)
    assert refused.code == 1
    assert "has another digest than '000" in refused.err
    path.write_text(text)
    done = room.fab("up", str(path), timeout=UP)
    assert done.code == 0, done.err
    look = "systemctl is-active k3s.service && sudo stat --format %a /etc/rancher/k3s/config.yaml"
    told = json.loads(room.fab("node.run", "pods-k8s-1,pods-k8s-worker-1", look, "--json").out)["nodes"]
    assert [row["stdout"].split() for row in told] == [["active", "600"]] * 2
    assert room.fab("down", "pods").code == 0


def test_down_leaves_the_host_as_it_was(room: Room) -> None:
    cloud.down(room.config, purge=True)
    assert host() == room.before
    assert commands.processes_that_name(room.config.state_dir) == []
    assert commands.mounts_below(room.config.state_dir) == []

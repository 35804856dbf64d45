# SPDX-License-Identifier: Apache-2.0
"""Experiments by the real Blazar, Nova and Neutron, on nodes with a real sshd: made, repaired, killed, given back."""

import http.server
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from groundwork.errors import SageError
from local_chameleon.cloud import State
from local_chameleon.regions import REGIONS
from node_automation import collect, ledger
from node_automation import experiment as experiments
from tests.integration import commands, sshd
from tests.integration.commands import Ran
from tests.integration.nodes.booting import Booted, booting
from tests.integration.nodes.conftest import User
from tests.integration.test_local_chameleon import connect

GIVER = """
description: gives each node that asks a file with its id
variables: {WORD: hello, PORT: 0}
files:
  - {to: "put/${SAGE_NODE}.txt", content: "put here\\n", mode: "0640"}
start:
  - run: echo "$WORD" > started; echo one >> starts
health:
  - {name: it has started, run: test -s started, deadline: 60}
  - {name: its page answers, url: "http://127.0.0.1:${PORT}/${SAGE_NODE}", deadline: 60}
offers:
  token:
    run: mkdir -p handed; echo "$SAGE_TAKER_ID" > "handed/$SAGE_TAKER"
    files: {token: "handed/${SAGE_TAKER}"}
collect:
  paths: [put, nowhere]
  commands:
    - {name: who.txt, run: id -un}
"""
TAKER = """
description: takes a token
needs: {token: {files: {token: private/token}}}
start:
  - run: echo "$SAGE_TOKEN_NODE $SAGE_TOKEN_HOST" > told; echo one >> starts
health:
  - {name: its token is its own, run: 'test "$(cat private/token)" = "$SAGE_NODE_ID"', deadline: 60}
collect:
  paths: [told]
"""
BEES = """
name: bees
duration: 1h
sites: [{sites}]
node_types: [{types}]
image: node
roles: roles
variables: {{PORT: {port}}}
nodes: {{giver: 1, taker: {takers}}}
links: {{taker: giver}}
{more}
"""


class Bench:
    """A user with an experiment's file, and what is asked of the sites."""

    def __init__(self, folder: Path, user: User, chameleon: State, port: int, booted: Booted) -> None:
        self.folder, self.user, self.chameleon, self.port, self.booted = folder, user, chameleon, port, booted
        self.more: dict[str, str] = {}  # variables of the environment
        (folder / "roles").mkdir()
        (folder / "roles/giver.yaml").write_text(GIVER)
        (folder / "roles/taker.yaml").write_text(TAKER)
        self.write()

    def write(self, *, takers: int = 1, sites: str = "CHI@UC", types: str = "compute_skylake", more: str = "") -> None:
        text = BEES.format(port=self.port, takers=takers, sites=sites, types=types, more=more)
        (self.folder / "bees.yaml").write_text(text)

    def env(self, state: Path | None = None) -> dict[str, str]:
        return {
            "OS_CLIENT_CONFIG_FILE": str(self.chameleon.clouds_yaml),
            "SAGE_STATE_DIR": str(state or self.user.state),
            "SAGE_CONFIG": "/dev/null",
            **self.more,
        }

    def fab(self, *words: str, state: Path | None = None) -> Ran:
        return commands.run("fab", *words, env=self.env(state), timeout=600)

    def up(self, *words: str) -> dict[str, Any]:
        ran = self.fab("up", str(self.folder / "bees.yaml"), "--json", *words)
        assert ran.code == 0, ran.err
        found: dict[str, Any] = json.loads(ran.out)
        return found

    def killed_at(self, step: str) -> bool:
        """Run ``fab up`` and kill it when this step begins; whether it came to that."""
        words = ("up", str(self.folder / "bees.yaml"))
        running = commands.start("fab", *words, env=self.env())
        assert running.stderr is not None
        try:
            return any(re.match(rf"> {re.escape(step)}( \(|$)", line.rstrip("\n")) for line in running.stderr)
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            running.stderr.close()
            assert running.stdout is not None
            running.stdout.close()

    def names(self) -> list[str]:
        """Of all servers and leases that stand."""
        return sorted(self.user.left())

    def node_file(self, node: str, path: str) -> str:
        return (self.booted.nodes[node].folder / "home" / path).read_text()


@pytest.fixture(scope="module")
def page() -> Iterator[int]:
    """A page that answers; its port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def booted(chameleon: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    if os.geteuid() != 0:
        pytest.skip("addresses on loopback take root")
    program = sshd.program(tmp_path_factory.mktemp("openssh-server"))
    clouds = ("chi_uc", "chi_tacc", "kvm_tacc")
    for name in clouds:
        images = connect(chameleon, name).image
        if not list(images.images(name="node")):
            images.create_image("node", data=b"x" * 1000, disk_format="raw", container_format="bare")
    with booting(program, [connect(chameleon, f"admin_{name}") for name in clouds]) as found:
        yield found


@pytest.fixture
def bench(tmp_path: Path, uc: User, tacc: User, chameleon: State, page: int, booted: Booted) -> Bench:
    return Bench(tmp_path, uc, chameleon, page, booted)


def test_an_experiment_stands_is_repaired_collected_and_given_back(bench: Bench) -> None:
    report = bench.up()
    assert {node["name"]: node["up"] for node in report["nodes"]} == {"bees-giver-1": True, "bees-taker-1": True}
    assert bench.node_file("bees-giver-1", "put/bees-giver-1.txt") == "put here\n"
    giver = next(node for node in report["nodes"] if node["role"] == "giver")
    assert bench.node_file("bees-taker-1", "told") == f"bees-giver-1 {giver['fixed_address']}\n"
    standing = bench.names()
    # Again: nothing is made, nothing started.
    again = bench.up()
    assert {step["kind"] for step in again["steps"]} == {"reach", "check"}
    assert bench.names() == standing
    assert bench.node_file("bees-taker-1", "starts") == "one\n"
    # What does not do well is started anew.
    (bench.booted.nodes["bees-taker-1"].folder / "home/private/token").unlink()
    bench.up()
    assert bench.node_file("bees-taker-1", "starts") == "one\none\n"
    assert bench.node_file("bees-giver-1", "starts") == "one\n"
    told = json.loads(bench.fab("status", "--json").out)
    assert [(row["node"], row["role"], row["status"]) for row in told["nodes"]] == [
        ("bees-giver-1", "giver", "ACTIVE"),
        ("bees-taker-1", "taker", "ACTIVE"),
    ]
    assert all(3000 < row["seconds_left"] <= 3600 for row in told["nodes"])
    ran = bench.fab("collect", "bees", "--output", str(bench.folder / "collected"), "--json")
    assert ran.code == 3, "one path is not there"
    (folder,) = (bench.folder / "collected").iterdir()
    manifest, _ = collect.read(folder)
    first = manifest.nodes[0]
    assert (first.name, first.site, first.node_type) == ("bees-giver-1", "CHI@UC", "compute_skylake")
    assert (folder / "bees-giver-1/who.txt").read_text() == "cc\n"
    assert (folder / "bees-giver-1/files/put/bees-giver-1.txt").read_text() == "put here\n"
    assert first.image_sha512 is not None
    assert len(first.image_sha512) == 128
    assert first.lease_name is not None
    assert first.lease_name in standing
    assert [line.partition(":")[0] for line in first.problems] == ["nowhere"]
    assert manifest.nodes[1].problems == ()
    # The very image, while it is there.
    again_there = collect.again(manifest, collect.read(folder)[1], {"CHI@UC": bench.user.connection}, "later")
    assert again_there.groups[0].images == {"CHI@UC": first.image_id}
    down = bench.fab("down", "bees")
    assert down.code == 0, down.err
    assert bench.names() == []
    replayed = bench.fab("replay", str(folder), "--dry-run")
    assert replayed.code == 0, replayed.err
    assert f"({first.image_id})" in replayed.out


STEPS = (
    "lease CHI@UC compute_skylake",
    "launch bees-giver-1",
    "address bees-giver-1",
    "reach bees-taker-1",
    "put bees-giver-1",
    "start bees-giver-1",
    "check bees-giver-1",
    "take bees-taker-1 token",
    "start bees-taker-1",
    "check bees-taker-1",
)


def test_killed_at_each_step_in_turn_it_is_finished_and_nothing_doubled(bench: Bench) -> None:
    came = [bench.killed_at(step) for step in STEPS]
    # A step may be over before the next run comes to it; the first ones can't.
    assert came[:2] == [True, True]
    assert sum(came) >= 6
    report = bench.up()
    assert all(node["up"] for node in report["nodes"])
    standing = bench.names()
    assert len(standing) == 3, standing
    assert bench.fab("down", "bees").code == 0
    assert bench.names() == []


@pytest.mark.long
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_all_is_given_back(bench: Bench, step: str) -> None:
    assert bench.killed_at(step)
    down = bench.fab("down", "bees")
    assert down.code == 0, down.err
    assert bench.names() == []


def test_another_machine_gives_all_back_by_names_and_tags(bench: Bench, tmp_path: Path) -> None:
    assert bench.killed_at("reach bees-giver-1")
    told = bench.fab("down", "bees", "--dry-run", "--json", state=tmp_path / "other")
    assert len(json.loads(told.out)["steps"]) == 3
    down = bench.fab("down", "bees", state=tmp_path / "other")
    assert down.code == 0, down.err
    assert bench.names() == []


def test_where_a_site_is_full_the_next_is_taken_and_where_all_are_the_reasons_are_told(
    bench: Bench, tacc: User
) -> None:
    bench.write(takers=3, sites="CHI@TACC, CHI@UC")
    planned = json.loads(bench.fab("up", str(bench.folder / "bees.yaml"), "--dry-run", "--json").out)
    assert [node["site"] for node in planned["nodes"]] == ["CHI@TACC"] + ["CHI@UC"] * 3
    bench.write(takers=30, sites="CHI@TACC, CHI@UC")
    ran = bench.fab("up", str(bench.folder / "bees.yaml"))
    assert ran.code == 1
    assert "CHI@UC has 10 of type compute_skylake free" in ran.err
    assert (bench.names(), tacc.left()) == ([], [])


def test_where_a_site_refuses_a_lease_the_next_is_tried(bench: Bench, tacc: User) -> None:
    # It tells what is free, and lends nothing: its credential is a restricted one.
    (bench.folder / "sites.yaml").write_text("CHI@UC: {cloud: chi_uc_restricted}\n")
    bench.more["SAGE_SITES_FILE"] = str(bench.folder / "sites.yaml")
    bench.write(sites="CHI@UC, CHI@TACC")
    report = bench.up()
    assert [(node["site"], node["up"]) for node in report["nodes"]] == [("CHI@TACC", True)] * 2
    assert (bench.names(), len(tacc.left())) == ([], 3)
    down = bench.fab("down", "bees")
    assert down.code == 0, down.err


def test_where_others_have_all_leased_floating_ips_nodes_get_those_of_the_common_pool(bench: Bench) -> None:
    others = bench.user.lease("compute_cascadelake_r", ledger.new_run("others"), floating_ips=12)
    report = bench.up()
    first, last = map(IPv4Address, REGIONS["CHI@UC"].pool)
    assert all(first < IPv4Address(node["address"]) <= last for node in report["nodes"])
    assert all(node["up"] for node in report["nodes"])
    down = bench.fab("down", "bees")
    assert down.code == 0, down.err
    assert bench.names() == [others.lease.name]


def test_virtual_machines_are_an_experiment_too(bench: Bench, kvm: User) -> None:
    bench.write(sites="KVM@TACC", types="m1.small")
    report = bench.up()
    assert [(node["site"], node["node_type"], node["up"]) for node in report["nodes"]] == [
        ("KVM@TACC", "m1.small", True)
    ] * 2
    # lease, security group, servers, floating IPs of the common pool
    assert len(kvm.left()) == 6
    assert {step["kind"] for step in bench.up()["steps"]} == {"reach", "check"}
    down = bench.fab("down", "bees")
    assert down.code == 0, down.err
    assert kvm.left() == []


def test_what_was_collected_is_replayed_and_somebody_is_told(bench: Bench) -> None:
    told = bench.folder / "told.json"
    bench.write(more=f"notify: {{command: [tee, {told}], deadline: 10}}")
    report = bench.up()
    assert json.loads(told.read_text())["run_id"] == report["run_id"]
    ran = bench.fab("collect", "bees", "--output", str(bench.folder / "collected"))
    assert ran.code == 3, "one path is not there"
    (folder,) = (bench.folder / "collected").iterdir()
    taken = bench.fab("replay", str(folder))
    assert taken.code == 2
    assert "an experiment bees stands already" in taken.err
    assert bench.fab("down", "bees").code == 0
    replayed = bench.fab("replay", str(folder), "--name=again", "--json")
    assert replayed.code == 0, replayed.err
    assert [(node["name"], node["up"], node["image_id"]) for node in json.loads(replayed.out)["nodes"]] == [
        ("again-giver-1", True, report["nodes"][0]["image_id"]),
        ("again-taker-1", True, report["nodes"][1]["image_id"]),
    ]
    assert bench.fab("down", "again").code == 0
    # Who can't be told makes an exit code of its own; the nodes stand.
    bench.write(more="notify: {command: ['false'], deadline: 10}")
    ran = bench.fab("up", str(bench.folder / "bees.yaml"), "--json")
    assert ran.code == 4
    assert all(node["up"] for node in json.loads(ran.out)["nodes"])


def test_a_server_in_error_is_replaced(bench: Bench, chameleon: State) -> None:
    assert bench.killed_at("reach bees-giver-1")
    admin = connect(chameleon, "admin_chi_uc")
    for server in connect(chameleon, "chi_uc").compute.servers():
        if server.name == "bees-giver-1":
            admin.compute.reset_server_state(server.id, "error")
            broken = server.id
    report = bench.up()
    (giver,) = [node for node in report["nodes"] if node["name"] == "bees-giver-1"]
    assert giver["server_id"] != broken
    assert len(bench.names()) == 3


def test_an_image_that_is_gone_is_found_by_its_data_or_missed_clearly(bench: Bench) -> None:
    images = connect(bench.chameleon, "chi_uc").image
    first = images.create_image("old", data=b"same bytes", disk_format="raw", container_format="bare")
    node = collect.CollectedNode(
        **{
            **dict.fromkeys(collect.CollectedNode.__dataclass_fields__),
            "name": "old-blank-1",
            "role": "blank",
            "site": "CHI@UC",
            "image_id": first.id,
            "image_name": "old",
            "image_sha512": images.get_image(first.id).hash_value,
            "files": (),
            "problems": (),
        }
    )
    manifest = collect.CollectManifest(1, "old", "01234567", "2026-11-20T11:00:00Z", "sage-chameleon 0", (node,))
    experiment = experiments.of_role(
        "old", "blank", {"CHI@UC": bench.user.site}, sites=["CHI@UC"], node_types=["compute_skylake"], image="old"
    )
    sites = {"CHI@UC": bench.user.connection}
    images.delete_image(first.id)
    with pytest.raises(SageError, match=f"no longer has the image old that this ran on .{first.id}"):
        collect.again(manifest, experiment, sites)
    second = images.create_image("new", data=b"same bytes", disk_format="raw", container_format="bare")
    assert collect.again(manifest, experiment, sites).groups[0].images == {"CHI@UC": second.id}
    images.delete_image(second.id)


VARIANT = """
description: a variant with one check
image_name: "Sage-{{os}}{{version}}{{arch}}"
elements: [none]
checks:
  - {{name: cc logs in, run: 'test "$(id -un)" = cc'}}
  - {{name: a probe, probe: {probe}}}
  - {{name: of an emulator alone, run: 'false', emulated: true}}
"""


# The tests' sshd takes no passwords, and lets root in.
@pytest.mark.parametrize(
    ("probe", "code", "verdict"), [("ssh-password-refused", 0, "pass"), ("ssh-root-refused", 1, "fail")]
)
def test_a_candidate_is_tried_on_a_leased_node(bench: Bench, probe: str, code: int, verdict: str) -> None:
    (bench.folder / "tried.yaml").write_text(VARIANT.format(probe=probe))
    images = connect(bench.chameleon, "chi_uc").image
    (image,) = images.images(name="node")
    text = {"site": "CHI@UC", "kind": "baremetal", "cloud": "chi_uc", "image_id": image.id, "name": "node"}
    text |= {"image_name": "node", "variant": "tried", "release": "noble", "arch": "amd64", "build_id": "1"}
    paths = {"manifest": "/nowhere", "folder": str(bench.folder), "shared": str(bench.folder)}
    candidate = json.dumps({**text, **paths, "format": "raw", "size": 1000, "sha512": "0"})
    flags = ["--node-type=compute_skylake", "--length=30m", f"--variants-dir={bench.folder}"]
    tried = subprocess.run(
        [commands.command("sage-node-canary"), *flags],
        input=candidate,
        capture_output=True,
        text=True,
        env={**os.environ, **bench.env()},
        timeout=600,
        check=False,
    )
    assert tried.returncode == code, tried.stderr
    report = json.loads(tried.stdout)
    assert report["verdict"] == verdict
    assert report["left_out"] == ["of an emulator alone"]
    assert [row["passed"] for row in report["checks"]["results"]] == [True, verdict == "pass"]
    assert report["given_back"]
    assert bench.names() == []


def test_a_canary_that_gets_no_node_is_inconclusive(bench: Bench) -> None:
    (bench.folder / "tried.yaml").write_text(VARIANT.format(probe="ssh-root-refused"))
    said = subprocess.run(
        [commands.command("sage-node-canary"), "--node-type=none"],
        input="{}",
        capture_output=True,
        text=True,
        env={**os.environ, **bench.env()},
        timeout=600,
        check=False,
    )
    assert said.returncode == 75
    assert json.loads(said.stdout)["verdict"] == "inconclusive"

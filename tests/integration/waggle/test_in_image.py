# SPDX-License-Identifier: Apache-2.0
"""The stacks in a booted Sage image, as its user runs them: a node whose Beehive is another machine, and a Beehive."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sage_data_client

from groundwork import process
from image_builder import machine
from image_builder.hardware import Firmware
from image_builder.machine import Site, usual_site
from image_builder.variant import Arch
from tests.integration import commands
from tests.integration.waggle import brokers
from tests.integration.waggle.beehives import open_folder
from tests.integration.waggle.by_commands import BEEHIVE_PORTS, call

pytestmark = pytest.mark.long

NODE = "00000000000000cc"
HOST = "10.0.2.2"  # what the machine calls its host
UP = 600.0  # seconds from power-on, emulated
LONGEST = 1800  # seconds of one command; the first gives Docker the images

Ask = Callable[[str], str]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Runs a command in the booted image as ``cc``, and gives what it printed."""
    top = tmp_path_factory.mktemp("image")
    words = ["--variant", "sage", "--release", "bookworm", "--no-verify", "--output-dir", str(top / "build")]
    done = commands.run("create-image", *words)
    assert done.code == 0, done.err
    image = next((top / "build").glob("*/*/*.qcow2"))
    key = machine.new_key()
    usual = usual_site(Firmware.BIOS, key)
    site = Site(usual.guise, usual.instance, network="user")
    accel = "kvm" if machine.kvm_works() else "tcg"
    with machine.running(
        image, Arch.AMD64, Firmware.BIOS, key, top / "console.log", top, accel=accel, cpus=2, site=site
    ) as guest:
        connection: Any = guest.login("cc", UP)

        def run(command: str) -> str:
            line = f"timeout {LONGEST} bash -eo pipefail -c {shlex.quote(command)}"
            ran = connection.run(line, hide=True, warn=True, in_stream=False)
            assert ran.exited == 0, f"{command}\n{ran.stdout}{ran.stderr}"
            return str(ran.stdout).strip()

        run("cloud-init status --wait > /dev/null; until docker info > /dev/null 2>&1; do sleep 2; done")
        yield run


@pytest.fixture
def beehive() -> Iterator[tuple[Path, dict[str, str]]]:
    """A Beehive on the machine's host: its folder and its addresses."""
    with open_folder() as folder:
        ports = brokers.free_ports(len(BEEHIVE_PORTS))
        words = [f"--set=BEEHIVE_{name}PORT={ports.pop()}" for name in BEEHIVE_PORTS]
        words.append("--set=BEEHIVE_ADDRESS=127.0.0.1")
        try:
            call("beehive-server", folder / "beehive", "up", "--native", f"--host={HOST},localhost", *words)
            text = (folder / "beehive/beehive.env").read_text()
            yield (
                folder / "beehive",
                dict(line.split("=", 1) for line in text.splitlines() if line.startswith("BEEHIVE_")),
            )
        finally:
            call("beehive-server", folder / "beehive", "down")


def test_what_a_plugin_in_the_image_measures_is_read_from_outside(
    ask: Ask, beehive: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, settings = beehive
    call("beehive-server", folder, "register", NODE, "--out", tmp_path)
    state = "/var/lib/virtual-waggle"
    ask(f"test -O {state}; mkdir -m 700 {state}/private")
    for name in ("register.pem", "known_hosts"):
        ask(f"umask 77; printf %s {shlex.quote((tmp_path / name).read_text())} > {state}/private/{name}")
    lines = [f"WAGGLE_NODE_ID={NODE}", f"WAGGLE_BEEHIVE_HOST={HOST}"]
    lines += [
        f"WAGGLE_BEEHIVE_{name}PORT={settings[f'BEEHIVE_{name}PORT']}" for name in ("", "REGISTRATION_", "UPLOAD_")
    ]
    ask(f"printf '%s\\n' {shlex.join(lines)} > {state}/waggle-node.env")
    assert '"registered": true' in ask("virtual-waggle up --json")
    ask("cd && virtual-waggle newplugin probe && virtual-waggle build probe")
    ask("virtual-waggle run probe:0.1.0 -- --count 3 --interval 1")
    endpoint = f"http://localhost:{settings['BEEHIVE_API_PORT']}/api/v1/query"
    found: list[int] = []
    for _ in process.poll_until(300, 1.0):
        frame = sage_data_client.query(start="-1h", filter={"name": "example.count"}, endpoint=endpoint)
        if len(frame) == 3:
            found = list(frame["value"])
            assert set(frame["meta.node"]) == {NODE}
            break
    assert found == [1, 2, 3]
    # All of it runs as cc, and nothing of it is root's.
    assert ask("docker ps --quiet | xargs docker inspect --format '{{.Config.User}}' | sort -u") == "1000:1000"
    ask("virtual-waggle status")
    ask("virtual-waggle down")
    assert ask("docker ps --quiet") == ""


def test_a_beehive_in_the_image_answers(ask: Ask) -> None:
    ask("beehive-server up --host localhost")
    assert ask("""curl -fsS -d '{"start": "-1h"}' http://localhost:8080/api/v1/query""") == ""
    ask("curl -fsS http://localhost:8080/healthz")
    ask("beehive-server status")
    ask("beehive-server down")


def test_the_units_do_the_same_at_boot(ask: Ask) -> None:
    ask("sudo systemctl start virtual-waggle.service")
    ask("virtual-waggle status")
    ask("sudo systemctl stop virtual-waggle.service")
    assert ask("docker ps --quiet") == ""

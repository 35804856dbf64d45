# SPDX-License-Identifier: Apache-2.0
"""A Beehive and a node by their commands, as plain processes on free ports."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.waggle import brokers
from tests.integration.waggle.beehives import open_folder

NODE = "00000000000000aa"
NODE_PORTS = ("BROKER", "MANAGEMENT", "PLAYBACK", "PROMETHEUS", "RECORDER", "EPMD", "DISTRIBUTION")
BEEHIVE_PORTS = (
    *("", "REGISTRATION_", "UPLOAD_", "API_", "MANAGEMENT_", "PROMETHEUS_", "LOADER_", "EPMD_", "DISTRIBUTION_"),
)


def call(
    program: str, folder: Path, first: str, *words: str | Path, check: int | None = 0
) -> "subprocess.CompletedProcess[str]":
    command = [Path(sys.executable).with_name(program), first, "--state-dir", folder, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert check is None or done.returncode == check, done.stderr
    return done


@contextlib.contextmanager
def both_up() -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """A Beehive and a node registered there, as plain processes: their folders, and what the Beehive's `up` told."""
    with open_folder() as folder:
        beehive, node = folder / "beehive", folder / "node"
        ports = brokers.free_ports(len(BEEHIVE_PORTS) + len(NODE_PORTS))
        words = [f"--set=BEEHIVE_{name}PORT={ports.pop()}" for name in BEEHIVE_PORTS]
        words.append("--set=BEEHIVE_ADDRESS=127.0.0.1")
        try:
            told = json.loads(
                call("beehive-server", beehive, "up", "--native", "--host=localhost", *words, "--json").stdout
            )
            call("beehive-server", beehive, "register", NODE, "--out", node / "private")
            registration = told["addresses"]["registration"].rpartition(":")[2]
            uploads = told["addresses"]["uploads"].rpartition(":")[2]
            lines = [f"WAGGLE_{name}_PORT={ports.pop()}" for name in NODE_PORTS]
            lines += [
                f"WAGGLE_NODE_ID={NODE}",
                "WAGGLE_BEEHIVE_HOST=localhost",
                f"WAGGLE_BEEHIVE_PORT={told['addresses']['broker'].rpartition(':')[2]}",
                f"WAGGLE_BEEHIVE_REGISTRATION_PORT={registration}",
                f"WAGGLE_BEEHIVE_UPLOAD_PORT={uploads}\n",
            ]
            (node / "waggle-node.env").write_text("\n".join(lines))
            assert json.loads(call("virtual-waggle", node, "up", "--native", "--json").stdout)["registered"]
            yield beehive, node, told
        finally:
            if (node / "waggle-node.env").exists():
                call("virtual-waggle", node, "down")
            if beehive.exists():
                call("beehive-server", beehive, "down")

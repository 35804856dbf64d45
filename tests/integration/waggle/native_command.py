# SPDX-License-Identifier: Apache-2.0
"""``python3 -m tests.integration.waggle.native_command FOLDER native|docker``: an `up` in a process of its own."""

import sys
from pathlib import Path

from groundwork.program import run_program
from virtual_waggle import docker, native
from virtual_waggle.forms import Deployment


def deployment(folder: Path) -> Deployment:
    state = folder / "state"
    return Deployment("demo", folder / "compose.yaml", state, {"FOLDER": str(state), "GREETING": "hello"})


def main() -> int:
    form = {"native": native, "docker": docker}[sys.argv[2]]
    form.up(deployment(Path(sys.argv[1])), deadline=120)
    return 0


if __name__ == "__main__":
    run_program(main)

# SPDX-License-Identifier: Apache-2.0
"""``python3 -m tests.integration.waggle.native_command FOLDER up|down``: a command in a process of its own."""

import sys
from pathlib import Path

from groundwork.program import run_program
from virtual_waggle import native
from virtual_waggle.forms import Deployment


def deployment(folder: Path) -> Deployment:
    return Deployment("demo", folder / "compose.yaml", folder / "state", {})


def main() -> int:
    folder, verb = Path(sys.argv[1]), sys.argv[2]
    if verb == "up":
        native.up(deployment(folder), deadline=60)
    else:
        native.down(deployment(folder))
    return 0


if __name__ == "__main__":
    run_program(main)

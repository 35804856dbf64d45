# SPDX-License-Identifier: Apache-2.0
"""The demo does what README says of it."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.integration import commands

PROJECT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_demo_shows_a_rotation_and_stops_everything() -> None:
    done = subprocess.run(
        [PROJECT / "scripts/demo"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert len(re.findall(r"upload Sage-Debian12\.z", done.stdout)) == 6
    assert len(re.findall(r"back-date Sage-Debian12 ", done.stdout)) == 3
    assert "Nothing has changed: not built, booted or uploaded again" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("Sage-Debian12 ")]
    assert [row[3] for row in rows[-2:]] == ["current,", "previous,"]
    assert commands.processes_that_name(PROJECT / "build/demo") == []

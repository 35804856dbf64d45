# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks papers``: what was written down of builds, compared."""

import tempfile
from pathlib import Path
from statistics import median

from groundwork import console
from tests.benchmarks.figures import Figure, seconds
from tests.integration import commands
from tests.integration.test_papers import make_build, with_many_files

_RUNS = 7


def papers() -> list[Figure]:
    """Seconds of ``sage-image diff`` of two builds of 40,000 files, all of them changed."""
    with tempfile.TemporaryDirectory(prefix="bench.") as scratch:
        top = Path(scratch)
        builds = []
        for number in range(2):
            small = make_build(
                top / str(number), f"20261120T03150{number}Z-aaaaaaaa", {"etc/motd": "hello"}, {"tool": "1.0"}
            )
            builds.append(with_many_files(small, top / "large", number))
        with console.stage("diff"):
            times = [seconds(lambda: _diff(builds)) for _ in range(_RUNS)]
    how = f"median of {_RUNS} runs of `sage-image diff`, from {min(times):.2f} to {max(times):.2f} s; all 40,000 differ"
    return [Figure("diff of two builds of 40,000 files", median(times), "s", 1.0, how)]


def _diff(builds: list[Path]) -> None:
    done = commands.run("sage-image", "diff", *builds)
    if done.code != 0:
        raise SystemExit(f"sage-image diff failed:\n{done.err}")

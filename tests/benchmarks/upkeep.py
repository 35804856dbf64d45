# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks rollback``: the whole command, at three sites."""

import tempfile
from pathlib import Path
from statistics import median

from groundwork import console
from tests.benchmarks.figures import Figure, local_sites, seconds
from tests.integration import commands
from tests.integration.test_publish import Bench

_NAME = "Sage-Rollback"
_RUNS = 7


def rollback() -> list[Figure]:
    """Seconds of ``sage-image rollback`` from the start of the program to its end; each goes one build further back."""
    with tempfile.TemporaryDirectory(prefix="bench.") as scratch:
        top = Path(scratch)
        with local_sites(top) as state:
            bench = Bench(_NAME, top, state.clouds_yaml, {})
            for number in range(1, _RUNS + 2):
                bench.publish(bench.build(number), keep=_RUNS + 1)
            with console.stage("rollback"):
                times = [seconds(_roll_back) for _ in range(_RUNS)]
    how = f"median of {_RUNS} runs of `sage-image rollback`, from {min(times):.2f} to {max(times):.2f} s"
    return [Figure("rollback at three sites", median(times), "s", 2.0, how)]


def _roll_back() -> None:
    done = commands.run("sage-image", "rollback", _NAME)
    if done.code != 0:
        raise SystemExit(f"sage-image rollback failed:\n{done.err}")

# SPDX-License-Identifier: Apache-2.0
"""What a node and its Beehive take of memory when nothing is asked of them but the node's own metrics."""

import time
from pathlib import Path

from groundwork import console
from tests.benchmarks.figures import Figure
from tests.integration.waggle import by_commands

_SETTLE = 60.0  # seconds


def memory() -> list[Figure]:
    """Both by their commands, as plain processes; each page counts once, shared ones by their share (Pss)."""
    figures = []
    with by_commands.both_up() as (beehive, node, _):
        with console.stage("both idle"):
            time.sleep(_SETTLE)
        for name, folder, limit in (("node", node, 350), ("Beehive", beehive, 400)):
            parts = {pid: _pss(pid) for pid in _of(folder)}
            how = (
                f"{len(parts)} processes of `up --native`, registered, {_SETTLE:.0f} s after the start, Pss of each; "
                f"the broker has {max(parts.values()) / 1e6:.0f} MB of it"
            )
            figures.append(Figure(f"idle memory of a {name}", sum(parts.values()) / 1e6, "MB", limit, how))
    return figures


def _of(folder: Path) -> list[int]:
    """The processes whose environment or command line names this state folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            text = (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text:
            found.append(int(place.name))
    return found


def _pss(pid: int) -> int:
    """Bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)

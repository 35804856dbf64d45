# SPDX-License-Identifier: Apache-2.0
"""What the forms in which a stack can run have in common.

``docker`` and ``native`` are two modules with the same functions: ``up``, ``down``, ``status`` and ``logs``, each of
which takes a :class:`Deployment`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Deployment:
    """A stack that is to run on this machine.

    ``name`` is the project's, ``variables`` fill in the Compose file, and ``folder`` is the state folder.
    """

    name: str
    compose_file: Path
    folder: Path
    variables: Mapping[str, str]
    profiles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """How a service does.

    ``state`` is "running", "starting", "waiting" (for others), "restarting", "exited" or "stopped"; ``health`` is
    "healthy", "unhealthy", "starting", or "" where nobody looks; ``since`` is when it came to that state (RFC 3339,
    UTC; "" where that is not known); ``restarts`` counts what nobody asked for.
    """

    service: str
    state: str
    health: str = ""
    since: str = ""
    restarts: int = 0
    exit_code: int | None = None

    @property
    def ready(self) -> bool:
        """Whether nothing is to be waited for any more."""
        if self.state == "exited":
            return self.exit_code == 0
        return self.state == "running" and self.health in ("", "healthy")


def as_data(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows for JSON."""
    return [asdict(row) for row in rows]


def print_table(rows: Sequence[Row]) -> None:
    """Rows for people."""
    from groundwork import console

    console.table(
        ["service", "state", "health", "since", "restarts"],
        [[row.service, row.state, row.health, row.since, str(row.restarts)] for row in rows],
    )

# SPDX-License-Identifier: Apache-2.0
"""Several pieces of work at once, at most so many; each one's result or error for itself."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from chameleon_sites import cloud
from groundwork.errors import SageError
from groundwork.worker import Worker
from node_automation.waiting import Stopped

Result = TypeVar("Result")

LAUNCHES = 3  # servers of a site that may be built at once: more, and Chameleon's spawning times out
_PATIENCE = 30.0  # seconds for what was begun, after an interruption


def at_most(
    limit: int,
    works: Sequence[Callable[[], Result]],
    *,
    stop: threading.Event | None = None,
    where: str = "",
) -> list[Result | SageError]:
    """Do all works, ``limit`` at a time in their order; the results, or the errors, in that order.

    When the program is interrupted, ``stop`` is set, no further work begins, and those at work get a moment to end
    what they have begun and write it down; then the interruption goes on.
    """
    stopped = stop if stop is not None else threading.Event()
    results: list[Result | SageError] = [Stopped() for _ in works]
    waiting = iter(range(len(works)))
    turn = threading.Lock()

    def work_on() -> None:
        while not stopped.is_set():
            with turn:
                number = next(waiting, None)
            if number is None:
                return
            try:
                results[number] = works[number]()
            except Exception as error:
                results[number] = cloud.explain(where, error)

    workers: list[Worker] = []
    try:
        workers += (Worker(work_on, name=f"work {number}") for number in range(min(limit, len(works))))
        while any(worker.alive for worker in workers):
            for worker in workers:
                worker.wait(0.02)
    except BaseException:
        stopped.set()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            worker.wait(max(0.0, deadline - time.monotonic()))
        raise
    return results

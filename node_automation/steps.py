# SPDX-License-Identifier: Apache-2.0
"""Carries out steps: each as soon as those that it comes after are done, many at once.

What fails stops what comes after it, and nothing else.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

from groundwork.errors import InputError, SageError
from groundwork.worker import Worker
from image_builder.publication import Problem
from node_automation.plan import Step, StepKind
from node_automation.progress import Progress

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 64  # threads, which wait for sites and nodes most of their time
_LOOK = 0.5  # seconds between two looks at what goes on
_PATIENCE = 30.0  # seconds for what was begun, after an interruption


@dataclass(frozen=True)
class Ended:
    """What came of a step.  ``skipped``: it was not tried, for one before it failed, whose key ``because`` is."""

    key: str
    kind: StepKind
    site: str
    about: str
    seconds: float
    problem: Problem | None
    because: str | None = None

    @property
    def skipped(self) -> bool:
        return self.because is not None


def carry_out(
    steps: Sequence[Step],
    act: Callable[[Step], None],
    progress: Progress,
    *,
    at_once: Mapping[StepKind, int],
    stop: threading.Event,
    expected: Callable[[Step], float | None] = lambda step: None,
    stop_for: Callable[[Step, Exception], bool] = lambda step, error: False,
) -> tuple[Ended, ...]:
    """Do all ``steps``, whose order is one in which they could be done one by one; what came of each, in that order.

    ``act`` does one and is called in a thread of its own.  ``at_once``: how many of a kind may go on at the same time
    at one site.  An error for which ``stop_for`` holds lets what goes on come to its end, begins nothing more, and is
    raised then.  When the program is interrupted, ``stop`` is set, nothing more begins, and what goes on gets a moment
    to write down what it has made; then the interruption goes on.
    """
    ended: dict[str, Ended] = {}
    waiting = list(steps)
    running: dict[str, Step] = {}
    workers: dict[str, Worker] = {}
    done: SimpleQueue[tuple[Step, Exception | None]] = SimpleQueue()
    final: Exception | None = None

    def work(step: Step) -> None:
        problem: Exception | None = None
        try:
            act(step)
        except Exception as error:
            logger.debug("%s", step.key, exc_info=True)
            problem = error
        done.put((step, problem))

    try:
        while waiting or running:
            for step in list(waiting):
                failed = next((key for key in step.after if key in ended and ended[key].problem is not None), None)
                if failed is not None and not step.anyway:
                    because = ended[failed].because or failed
                    problem = Problem(f"not tried, for {because!r} failed", None, False)
                    ended[step.key] = Ended(step.key, step.kind, step.site, step.about, 0.0, problem, because)
                    waiting.remove(step)
            for step in list(waiting):
                if final is not None or len(running) >= _MOST_AT_ONCE:
                    break
                same = sum((other.kind, other.site) == (step.kind, step.site) for other in running.values())
                ready = all(key in ended for key in step.after)
                if ready and same < at_once.get(step.kind, _MOST_AT_ONCE):
                    waiting.remove(step)
                    running[step.key] = step
                    progress.begin(step.key, step.key, expected(step))
                    workers[step.key] = Worker(partial(work, step), name=step.key)
            if not running:
                if final is not None:
                    raise final
                assert not waiting, "a step comes after one that is not in the plan"
                continue  # what waited was given up
            try:
                step, error = done.get(timeout=_LOOK)
            except Empty:
                progress.beat()
                continue
            del running[step.key]
            found = None if error is None else problem_of(error)
            seconds = progress.end(step.key, found.message if found else None)
            ended[step.key] = Ended(step.key, step.kind, step.site, step.about, round(seconds, 3), found)
            if error is not None and final is None and stop_for(step, error):
                final = error
    except BaseException as interruption:
        if not isinstance(interruption, Exception):
            _interrupt(stop, [workers[key] for key in running if key in workers])
        raise
    if final is not None:
        raise final
    return tuple(ended[step.key] for step in steps)


def _interrupt(stop: threading.Event, workers: Sequence[Worker]) -> None:
    stop.set()
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.wait(max(0.0, deadline - time.monotonic()))


def problem_of(error: Exception) -> Problem:
    """What is told of an error."""
    if isinstance(error, SageError):
        return Problem(str(error), error.hint, isinstance(error, InputError))
    hint = "this is a defect of the program; SAGE_DEBUG=1 shows where"
    return Problem(f"{type(error).__name__}: {error}", hint, False)

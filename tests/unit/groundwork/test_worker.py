# SPDX-License-Identifier: Apache-2.0
"""Work beside the main thread goes on when a signal interrupts who waits for it, and is known to."""

import signal
import threading
from types import FrameType

import pytest

from groundwork.worker import Worker


class Signalled(Exception):
    """What the signal's handler raises."""


def test_work_that_goes_on_counts_as_going_on_after_a_signal_interrupts_the_waiting() -> None:
    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Signalled

    def hold() -> None:
        go_on.wait(10)

    go_on = threading.Event()
    worker = Worker(hold)
    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Signalled):
            worker.wait(5)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert worker.alive
    go_on.set()
    assert worker.wait(5)
    assert not worker.alive

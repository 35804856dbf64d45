# SPDX-License-Identifier: Apache-2.0
"""Work beside the main thread, whose end that may wait for while signals interrupt it."""

import threading
from collections.abc import Callable


class Worker:
    """A daemon thread that does ``work``; it is started at once.

    threading's own ``join`` must not be interrupted: up to Python 3.12 an exception that a signal's handler raises
    in it makes a running thread count as ended (cpython, threading.Thread._wait_for_tstate_lock).
    """

    def __init__(self, work: Callable[[], None], *, name: str | None = None) -> None:
        self._work = work
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set()

    @property
    def alive(self) -> bool:
        """Whether the work goes on."""
        return not self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the end; returns whether it came."""
        return self._ended.wait(seconds)

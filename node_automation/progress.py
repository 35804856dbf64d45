# SPDX-License-Identifier: Apache-2.0
"""How steps go on, for people: one line for a step that begins or ends, and, while it lasts, how long, and how long
usually.

Lines are whole and plain, so that they can be read in a log file too; on a terminal one line besides moves.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from groundwork import console
from groundwork.console import Stage

_HEARTBEAT = 60.0  # seconds between two lines about what goes on


@dataclass
class _Running:
    title: str
    begin: float
    expected: float | None
    told: float
    word: str = ""


class Progress:
    """What goes on just now; any thread may tell of its own."""

    def __init__(self, stage: Stage, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage = stage
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}

    def begin(self, key: str, title: str, expected: float | None = None) -> None:
        """A step begins; ``expected``: seconds that it usually takes."""
        now = self._clock()
        with self._lock:
            self._running[key] = _Running(title, now, expected, now)
        about = f" (about {expected:.0f} s)" if expected and expected >= 10 else ""
        console.say(f"> {title}{about}")

    def word(self, key: str, text: str) -> None:
        """What a step is about, or waits for; told with its next line."""
        with self._lock:
            if key in self._running:
                self._running[key].word = text

    def end(self, key: str, problem: str | None = None) -> float:
        """A step has ended; returns how many seconds it took."""
        with self._lock:
            row = self._running.pop(key)
        seconds = self._clock() - row.begin
        if problem is None:
            console.say(f"+ {row.title}: {seconds:.1f} s")
        else:
            console.say(f"x {row.title}: failed after {seconds:.1f} s: {problem}")
        return seconds

    def beat(self) -> None:
        """Tell of what has been going on for some time; to be called now and then."""
        now = self._clock()
        with self._lock:
            rows = list(self._running.values())
            late = [row for row in rows if now - row.told >= _HEARTBEAT]
            for row in late:
                row.told = now
        self._stage.detail(", ".join(f"{row.title} {now - row.begin:.0f} s" for row in rows[:3]) + _more(rows))
        for row in late:
            of = f" of about {row.expected:.0f} s" if row.expected else ""
            console.say(f"  ... {row.title}: {now - row.begin:.0f} s{of}" + (f", {row.word}" if row.word else ""))


def _more(rows: list[_Running]) -> str:
    return f" and {len(rows) - 3} more" if len(rows) > 3 else ""

# SPDX-License-Identifier: Apache-2.0
"""Waiting for something at a site: each wait has a deadline, and a reason when it ends without what was waited for."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.errors import SageError

Value = TypeVar("Value")

_PATIENCE = 90.0  # seconds for which a site may be away in the middle of a wait


class TimedOut(SiteError):
    """What was waited for did not come in time."""


class Stopped(SageError):
    """A wait that was told to end, for the program ends."""

    def __init__(self) -> None:
        super().__init__("interrupted")


@dataclass(frozen=True)
class Seen(Generic[Value]):
    """One look: the value, the state in the site's words, and whether it is what was waited for."""

    value: Value
    state: str
    done: bool


def wait_for(
    what: str,
    look: Callable[[], Seen[Value]],
    *,
    deadline: float,
    interval: float = 0.5,
    longest: float = 5.0,
    patience: float = _PATIENCE,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
    hint: str | None = None,
) -> Value:
    """Look until it is done; times are in seconds, ``interval`` grows to ``longest``.

    ``tell`` gets the state after each look.  Raises TimedOut, which names ``what`` and the last state; what ``look``
    raises, at once (an ERROR state is its to raise); SiteUnreachable after ``patience`` seconds of it; Stopped.
    """
    begin = time.monotonic()
    last_answer = begin
    state = "nothing seen yet"
    stopped = stop if stop is not None else threading.Event()
    while True:
        try:
            seen = look()
        except SiteUnreachable:
            if time.monotonic() - last_answer >= patience:
                raise
            state = f"{state} (the site does not answer)" if "(the site" not in state else state
        else:
            last_answer, state = time.monotonic(), seen.state
            tell(state)
            if seen.done:
                return seen.value
        left = begin + deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(f"{what}: not within {deadline:g} s; last seen: {state}", hint=hint)
        if stopped.wait(min(interval, left)):
            raise Stopped
        interval = min(interval * 1.3, longest)

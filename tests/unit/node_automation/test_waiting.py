# SPDX-License-Identifier: Apache-2.0
"""Waits end: with what was waited for, or with a reason."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chameleon_sites.cloud import SiteUnreachable
from groundwork.errors import Interrupted, SageError
from groundwork.worker import Worker
from node_automation import parallel
from node_automation.waiting import Seen, Stopped, TimedOut, wait_for


def looks(*seen: Any) -> Callable[[], Seen[str]]:
    left = list(seen)

    def look() -> Seen[str]:
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, Exception):
            raise one
        return Seen(one, one, one == "done")

    return look


def wait(*seen: Any, **more: Any) -> str:
    return wait_for("x", looks(*seen), **{"deadline": 5.0, "interval": 0.01, **more})


def test_what_comes_is_given() -> None:
    states: list[str] = []
    assert wait("a", "b", "done", tell=states.append) == "done"
    assert states == ["a", "b", "done"]


def test_the_last_state_and_a_hint_are_told_at_the_deadline() -> None:
    with pytest.raises(TimedOut, match=r"x: not within 0\.05 s; last seen: building") as caught:
        wait("building", deadline=0.05, hint="look")
    assert caught.value.hint == "look"


def test_an_error_ends_it_at_once() -> None:
    with pytest.raises(SageError, match="in ERROR"):
        wait("a", SageError("in ERROR"), "done", deadline=3600.0)


def test_a_site_may_be_away_for_a_while() -> None:
    away = SiteUnreachable("away")
    assert wait("a", away, away, "done") == "done"
    with pytest.raises(SiteUnreachable):
        wait("a", away, patience=0.05)
    with pytest.raises(TimedOut, match="a \\(the site does not answer\\)"):
        wait("a", away, deadline=0.1)


def test_a_wait_can_be_told_to_end() -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    begin = time.monotonic()
    with pytest.raises(Stopped):
        wait("a", deadline=60.0, interval=30.0, longest=30.0, stop=stop)
    assert time.monotonic() - begin < 5


def test_works_keep_their_order_and_their_own_errors() -> None:
    def work(number: int) -> Callable[[], int]:
        def one() -> int:
            if number == 2:
                raise SageError("the second fails")
            return number

        return one

    results = parallel.at_most(2, [work(number) for number in range(5)])
    assert [str(result) for result in results] == ["0", "1", "the second fails", "3", "4"]


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_so_many_are_at_work(limit: int) -> None:
    at_work: list[int] = []
    most: list[int] = []

    def work() -> None:
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.02)
        at_work.pop()

    parallel.at_most(limit, [work] * 9)
    assert max(most) == limit


def test_an_interruption_begins_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    stop = threading.Event()

    def work() -> None:
        begun.append(1)
        stop.wait(5)

    def interrupt(self: Any, seconds: float) -> bool:
        monkeypatch.undo()
        raise Interrupted(2)

    monkeypatch.setattr(Worker, "wait", interrupt)
    with pytest.raises(Interrupted):
        parallel.at_most(2, [work] * 9, stop=stop)
    assert stop.is_set()
    assert len(begun) <= 2

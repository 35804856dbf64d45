# SPDX-License-Identifier: Apache-2.0
"""Steps are carried out in order, many at once, and what fails stops only what comes after it."""

import threading
import time

import pytest

from groundwork import console
from groundwork.errors import Interrupted, SageError
from image_builder.publication import Problem
from node_automation import steps
from node_automation.plan import Step, StepKind
from node_automation.progress import Progress


def step(key: str, *after: str, kind: StepKind = StepKind.START, site: str = "CHI@UC") -> Step:
    return Step(key, kind, site, key, key, after)


@pytest.fixture
def progress() -> Progress:
    return Progress(console.Stage("up"))


def test_each_comes_after_those_that_it_waits_for(progress: Progress) -> None:
    order: list[str] = []
    plan = [step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")]
    ended = steps.carry_out(plan, lambda one: order.append(one.key), progress, at_once={}, stop=threading.Event())
    assert order[0] == "a"
    assert order[-1] == "d"
    assert [row.key for row in ended] == ["a", "b", "c", "d"]
    assert not any(row.problem for row in ended)


def test_what_fails_stops_what_comes_after_it_alone(progress: Progress) -> None:
    done: list[str] = []

    def act(one: Step) -> None:
        if one.key == "b":
            raise SageError("no", hint="yes")
        done.append(one.key)

    plan = [step("a"), step("b"), step("c", "b"), step("d", "c"), step("e", "a")]
    ended = {row.key: row for row in steps.carry_out(plan, act, progress, at_once={}, stop=threading.Event())}
    assert sorted(done) == ["a", "e"]
    assert ended["b"].problem == Problem("no", "yes", False)
    assert not ended["b"].skipped
    assert ended["d"].because == "b", "the first that failed is named"
    assert ended["d"].skipped


def test_of_a_kind_only_so_many_go_on_at_a_site(progress: Progress) -> None:
    sites = ("CHI@UC", "CHI@TACC")
    lock = threading.Lock()
    now = dict.fromkeys(sites, 0)
    most = dict.fromkeys(sites, 0)
    together = {site: threading.Barrier(3) for site in sites}  # each goes on when three of its site have come

    def act(one: Step) -> None:
        with lock:
            now[one.site] += 1
            most[one.site] = max(most[one.site], now[one.site])
        together[one.site].wait(30)
        with lock:
            now[one.site] -= 1

    plan = [step(f"{site} {n}", kind=StepKind.LAUNCH, site=site) for n in range(9) for site in sites]
    ended = steps.carry_out(plan, act, progress, at_once={StepKind.LAUNCH: 3}, stop=threading.Event())
    assert not any(row.problem for row in ended)
    assert set(most.values()) == {3}


def test_an_error_that_changes_the_plan_begins_nothing_more_and_is_raised_at_the_end(progress: Progress) -> None:
    class FullError(SageError):
        pass

    done: list[str] = []
    begun = threading.Event()

    def act(one: Step) -> None:
        if one.key == "full":
            begun.wait(1)
            raise FullError("no room")
        begun.set()
        time.sleep(0.05)
        done.append(one.key)

    plan = [step("full"), step("goes on"), step("later", "goes on")]
    with pytest.raises(FullError):
        steps.carry_out(
            plan,
            act,
            progress,
            at_once={},
            stop=threading.Event(),
            stop_for=lambda one, error: isinstance(error, FullError),
        )
    assert done == ["goes on"]


def test_an_interruption_waits_for_what_goes_on(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    done: list[str] = []

    def act(one: Step) -> None:
        stop.wait(1)
        done.append(one.key)

    def interrupt() -> None:
        raise Interrupted(2)

    monkeypatch.setattr(steps, "_LOOK", 0.01)
    monkeypatch.setattr(progress, "beat", interrupt)
    with pytest.raises(Interrupted):
        steps.carry_out([step("a"), step("b", "a")], act, progress, at_once={}, stop=stop)
    assert done == ["a"]
    assert stop.is_set()


def test_lines_are_told_at_begin_at_end_and_in_between(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = Progress(console.Stage("up"), clock=lambda: now[0])
    progress.begin("a", "launch sky-waggle-1", expected=600)
    now[0] = 61.0
    progress.word("a", "BUILD")
    progress.beat()
    progress.beat()
    now[0] = 62.5
    assert progress.end("a") == 62.5
    progress.begin("b", "start x")
    progress.end("b", "no")
    assert capsys.readouterr().err.splitlines() == [
        "> launch sky-waggle-1 (about 600 s)",
        "  ... launch sky-waggle-1: 61 s of about 600 s, BUILD",
        "+ launch sky-waggle-1: 62.5 s",
        "> start x",
        "x start x: failed after 0.0 s: no",
    ]

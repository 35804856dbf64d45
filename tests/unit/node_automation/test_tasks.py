# SPDX-License-Identifier: Apache-2.0
"""Tasks: each argument is explained, errors become exit codes, results become JSON."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from chameleon_sites.cloud import SiteUnreachable
from groundwork import console, process
from groundwork.process import ProcessError
from node_automation import lease_tasks, ledger, node_tasks, reach, reminder, site_tasks, ssh, tasks
from node_automation.ledger import Kind
from node_automation.session import Session
from node_automation.ssh import Target
from tests.unit.node_automation.site import RUN, TACC, UC, FakeSite, lease_row, server_row

NAMES = tasks.namespace.task_names


@pytest.fixture(autouse=True)
def plain_results(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield
    console.configure()


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the sites of a session are; tests put FakeSites or errors into it."""
    found: dict[str, Any] = {"CHI@UC": FakeSite({}), "CHI@TACC": FakeSite({}, "CHI@TACC")}

    def session(words: Any = ()) -> Session:
        chosen = tuple(site for site in (UC, TACC) if not words or site.name in words)
        return Session(tmp_path, chosen, found, None)

    for module in (lease_tasks, node_tasks, site_tasks):
        monkeypatch.setattr(module, "open_session", session)
    return found


def run(name: str, /, **arguments: Any) -> int:
    try:
        tasks.namespace[name](Context(), **arguments)
    except Exit as end:
        return int(end.code)
    return 0


@pytest.mark.parametrize("name", NAMES)
def test_each_task_and_each_of_its_arguments_is_explained(name: str) -> None:
    task = tasks.namespace[name]
    assert task.__doc__
    unexplained = [argument.name for argument in task.get_arguments() if not argument.help]
    assert unexplained == []


def test_the_tasks_that_are_promised_are_there() -> None:
    leases = {f"lease.{word}" for word in ("create", "list", "show", "extend", "delete", "wait", "remind")}
    words = ("launch", "list", "ssh", "run", "put", "get", "reboot", "console", "snapshot", "delete", "diagnose")
    assert leases | {f"node.{word}" for word in words} | {"nodes.free", "sites", "gc"} <= set(NAMES)


def test_leases_are_listed_as_json(sites: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [lease_row(), lease_row("my-own", lease_id="l2")]
    sites["CHI@UC"] = FakeSite({"GET /leases": {"leases": rows}})
    assert run("lease.list", site="CHI@UC", json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["site"], row["id"], row["status"]) for row in told["leases"]] == [("CHI@UC", "l1", "ACTIVE")]
    assert run("lease.list", site="CHI@UC", everyone=True, json=True) == 0
    assert len(json.loads(capsys.readouterr().out)["leases"]) == 2


def test_where_some_sites_fail_the_others_are_told(sites: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    sites["CHI@UC"] = FakeSite({"GET /leases": {"leases": [lease_row()]}})
    sites["CHI@TACC"] = SiteUnreachable("CHI@TACC does not answer", hint="later")
    assert run("lease.list") == 3
    captured = capsys.readouterr()
    assert "sage-bees-chi_uc-0123abcd" in captured.out
    assert "CHI@TACC does not answer" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"node_type": "a", "length": "8d"}, "7 days at most"),
        ({"node_type": "a", "name": "Not A Name"}, "no name for an experiment"),
        ({"node_type": "a", "arch": "sparc"}, "unknown architecture 'sparc'"),
        ({"node_type": "a", "count": 0}, "1 to 100 nodes"),
    ],
)
def test_wrong_words_are_told_before_a_site_is_asked(
    arguments: dict[str, Any], said: str, sites: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("lease.create", **arguments) == 2
    assert said in capsys.readouterr().err


def test_an_extension_needs_an_end(sites: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lease.extend", lease="l1") == 2
    assert run("lease.extend", lease="l1", by="1h", until="2099-01-01T00:00") == 2
    assert "either --by or --until" in capsys.readouterr().err


def test_a_part_that_is_not_extended_fails_the_task(sites: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    full = (500, {"error_message": "Not enough hosts available"})
    sites["CHI@UC"] = FakeSite({"GET /leases": {"leases": [lease_row()]}, "PUT /leases/l1": full})
    assert run("lease.extend", lease="l1", by="1h", site="CHI@UC") == 1
    assert "nodes not extended" in capsys.readouterr().err


def test_a_lease_that_is_nowhere_is_wrong_input(sites: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    sites["CHI@UC"] = FakeSite({"GET /leases": {"leases": []}})
    assert run("lease.show", lease="x", site="CHI@UC") == 2
    assert "no lease 'x'" in capsys.readouterr().err
    sites["CHI@TACC"] = SiteUnreachable("CHI@TACC does not answer")
    assert run("lease.show", lease="x") == 1, "it may be at the site that does not answer"


def test_a_dry_run_of_garbage_collection_changes_nothing(
    sites: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = FakeSite(
        {
            "GET /leases": {"leases": [lease_row(status="ERROR")]},
            "GET /servers/detail": {"servers": [server_row()]},
            "GET /floatingips": {"floatingips": []},
            "GET /security-groups": {"security_groups": []},
        }
    )
    sites["CHI@UC"] = site
    assert run("gc", site="CHI@UC", dry_run=True, json=True) == 0
    things = json.loads(capsys.readouterr().out)["things"]
    assert [(row["kind"], row["state"]) for row in things] == [("server", "would go"), ("lease", "would go")]
    assert all(asked.startswith("GET") for asked, _ in site.asked)


def test_ssh_is_given_a_file_that_knows_the_node_where_it_is(
    sites: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites["CHI@UC"] = FakeSite({"GET /servers/detail": {"servers": [server_row(), server_row("bees-waggle-2")]}})
    here = Target("bees-waggle-1", "id-bees-waggle-1", "10.0.0.9", ("ssh-ed25519 OWN",))
    monkeypatch.setattr(reach, "reach", lambda *words, **more: here)
    given: list[str] = []

    def take_over(target: Target, config: Path) -> int:
        given.append(config.read_text())
        return 0

    monkeypatch.setattr(ssh, "interactive", take_over)
    assert run("node.ssh", node="bees-waggle-1", site="CHI@UC", address="10.0.0.9") == 0
    assert given[0].count("Host bees-waggle-1\n    HostName 10.0.0.9") == 1
    assert given[0].count("Host bees-waggle-2\n    HostName 192.5.87.3") == 1
    assert given[0].count("StrictHostKeyChecking yes") == 2


def test_a_reminder_is_given_once_for_each_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []

    def note(command: Any, *, env: dict[str, str], timeout: float) -> str:
        told.append(env)
        return ""

    monkeypatch.setattr(process, "run", note)
    now = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
    entry = ledger.begin(
        tmp_path, ledger.new_entry(RUN, "CHI@UC", "p1", Kind.LEASE, "n", ends_at="2026-11-21T12:30:00Z", now=now)
    )
    ledger.change(tmp_path, entry.key, id="l1")
    hour = timedelta(hours=1)
    assert [one.name for one in reminder.remind(tmp_path, hour, ["x"], now)] == ["n"]
    assert reminder.remind(tmp_path, hour, ["x"], now) == ()
    ledger.change(tmp_path, entry.key, ends_at="2026-11-21T12:45:00Z")
    assert len(reminder.remind(tmp_path, hour, ["x"], now)) == 1
    assert [row["SAGE_LEASE_MINUTES_LEFT"] for row in told] == ["30", "45"]
    assert told[0]["SAGE_LEASE_EXPERIMENT"] == "bees"


def test_one_whose_command_fails_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **more: Any) -> str:
        raise ProcessError("mail failed", returncode=1)

    monkeypatch.setattr(process, "run", fail)
    now = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
    entry = ledger.begin(
        tmp_path, ledger.new_entry(RUN, "CHI@UC", "p1", Kind.LEASE, "n", ends_at="2026-11-21T12:30:00Z", now=now)
    )
    ledger.change(tmp_path, entry.key, id="l1")
    for _ in range(2):
        assert [one.problem for one in reminder.remind(tmp_path, timedelta(hours=1), ["x"], now)] == ["mail failed"]

# SPDX-License-Identifier: Apache-2.0
"""The ledger: all that is made stands in it before, whoever writes at the same time."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from groundwork.errors import InputError, SageError
from node_automation import ledger
from node_automation.ledger import Entry, Kind, Run

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
RUN = Run("bees", "0123abcd")


def lease(**more: object) -> Entry:
    fields = {"starts_at": "2026-11-21T10:00:00Z", "ends_at": "2026-11-22T10:00:00Z", "hosts": 3, "now": NOW, **more}
    return ledger.new_entry(RUN, "CHI@UC", "p1", Kind.LEASE, "sage-bees-chi_uc-0123abcd", **fields)  # type: ignore[arg-type]


def server(name: str = "bees-waggle-1") -> Entry:
    return ledger.new_entry(RUN, "CHI@UC", "p1", Kind.SERVER, name, node=name, node_type="compute_skylake", now=NOW)


def test_what_is_to_be_made_is_written_before_it_has_an_id(tmp_path: Path) -> None:
    entry = ledger.begin(tmp_path, server())
    assert ledger.read(tmp_path) == (entry,)
    assert entry.id is None
    assert ledger.change(tmp_path, entry.key, id="s1").id == "s1"
    assert [kept.id for kept in ledger.read(tmp_path)] == ["s1"]


def test_what_was_released_is_not_open_and_is_released_once(tmp_path: Path) -> None:
    entry, other = ledger.begin(tmp_path, lease()), ledger.begin(tmp_path, server())
    ledger.release(tmp_path, [entry.key], now=NOW)
    ledger.release(tmp_path, [entry.key], now=NOW + timedelta(hours=1))
    assert ledger.open_entries(ledger.read(tmp_path)) == (other,)
    assert ledger.read(tmp_path)[0].released_at == "2026-11-21T12:00:00Z"


def test_entries_are_picked_by_their_words() -> None:
    rows = [lease(), server()]
    assert ledger.open_entries(rows, kind=Kind.SERVER) == (rows[1],)
    assert ledger.open_entries(rows, experiment="bees", run_id="0123abcd", site="CHI@UC") == tuple(rows)
    assert ledger.open_entries(rows, run_id="ffffffff") == ()
    assert ledger.open_entries(rows, site="CHI@TACC") == ()


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ledger.begin(tmp_path, server(f"bees-waggle-{number}")), range(40)))
    assert {entry.name for entry in ledger.read(tmp_path)} == {f"bees-waggle-{number}" for number in range(40)}


def test_a_ledger_that_cannot_be_written_stops_what_was_to_be_made(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "nodes").write_text("a file where the folder is to be")
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(SageError):
        ledger.begin(tmp_path, server())


def test_an_entry_that_was_lost_is_told(tmp_path: Path) -> None:
    with pytest.raises(SageError, match="lost an entry"):
        ledger.change(tmp_path, "nobody", id="x")


def test_a_file_that_is_no_ledger_is_told_by_its_name(tmp_path: Path) -> None:
    ledger.begin(tmp_path, server())
    (tmp_path / "nodes/ledger.json").write_text('{"entries": [{"key": 1}]}')
    with pytest.raises(InputError, match=r"ledger\.json is not a"):
        ledger.read(tmp_path)


def test_what_was_released_long_ago_is_forgotten(tmp_path: Path) -> None:
    old, recent = ledger.begin(tmp_path, server("a")), ledger.begin(tmp_path, server("b"))
    now = datetime.now(timezone.utc)
    ledger.release(tmp_path, [old.key], now=now - timedelta(days=91))
    ledger.release(tmp_path, [recent.key], now=now - timedelta(days=89))
    ledger.begin(tmp_path, server("c"))
    assert [entry.name for entry in ledger.read(tmp_path)] == ["b", "c"]


@pytest.mark.parametrize(
    ("entry", "hours"),
    [
        (lease(), 6.0),  # three hosts for two hours
        (lease(ends_at="2026-11-21T11:00:00Z"), 3.0),  # it is over
        (lease(starts_at="2026-11-21T13:00:00Z"), 0.0),  # it has not begun
        (server(), 0.0),  # the lease pays
    ],
)
def test_cost_is_hosts_times_hours_of_the_lease(entry: Entry, hours: float) -> None:
    assert ledger.node_hours(entry, NOW) == hours


def test_a_lease_costs_nothing_after_it_was_given_back(tmp_path: Path) -> None:
    entry = ledger.begin(tmp_path, lease())
    ledger.release(tmp_path, [entry.key], now=NOW - timedelta(hours=1))
    assert ledger.node_hours(ledger.read(tmp_path)[0], NOW) == 3.0


def test_the_time_that_is_left() -> None:
    assert ledger.seconds_left(lease(), NOW) == 22 * 3600
    assert ledger.seconds_left(lease(ends_at="2026-11-21T11:00:00Z"), NOW) == 0.0
    assert ledger.seconds_left(server(), NOW) is None


@pytest.mark.parametrize("experiment", ["bees", "a", "two-words", "x" * 40])
@pytest.mark.parametrize("part", ["", "compute_skylake", "gpu-a1"])
def test_names_and_tags_tell_whose_they_are(experiment: str, part: str) -> None:
    run = ledger.new_run(experiment)
    assert ledger.run_of_lease(ledger.lease_name(run, "chi_uc", part), "chi_uc") == run
    assert ledger.run_of_lease(ledger.lease_name(run, "chi_uc", part), "chi_tacc") is None
    assert ledger.run_of_tag(ledger.tag(run)) == run
    assert ledger.run_of_tag(str(run)) == run


def test_a_lease_s_name_is_not_too_long_for_blazar() -> None:
    run = ledger.new_run("x" * 40)
    names = {ledger.lease_name(run, "chi_tacc", f"compute_cascadelake_r_{number}") for number in range(9)}
    assert len(names) == 9
    assert all(len(f"{name}-ips") <= 80 and ledger.run_of_lease(name, "chi_tacc") == run for name in names)


@pytest.mark.parametrize("name", ["sage-image", "my-lease", "sage--chi_uc-0123abcd", "sage-bees-chi_uc-1234567"])
def test_a_stranger_s_name_is_nobody_s(name: str) -> None:
    assert ledger.run_of_lease(name, "chi_uc") is None
    assert ledger.run_of_tag(name) is None


@pytest.mark.parametrize("name", ["", "Bees", "-bees", "bees-", "bees/1", "x" * 41, "bees_1"])
def test_an_experiment_s_name_is_fit_for_a_host_s(name: str) -> None:
    with pytest.raises(InputError, match="no name for an experiment"):
        ledger.new_run(name)


def test_what_the_site_tells_completes_what_the_ledger_knows() -> None:
    being_made, unknown = server("a"), server("b")
    at_site = Entry(**{**server("a").__dict__, "id": "s1"})
    stranger = Entry(**{**server("c").__dict__, "id": "s3"})
    found = ledger.together([being_made, unknown], [at_site, stranger])
    assert [(entry.name, entry.id) for entry in found] == [("a", "s1"), ("b", None), ("c", "s3")]
    assert found[0].key == being_made.key


@pytest.mark.parametrize("experiment", ["bees", "ledger", "id-ed25519"])
def test_who_is_at_an_experiment_is_alone_with_it_and_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    monkeypatch.setattr(ledger, "_TURN", 0.0)
    with ledger.turn(tmp_path, experiment):
        ledger.begin(tmp_path, server())
        with ledger.turn(tmp_path, "another"):
            pass
        with pytest.raises(SageError, match=str(os.getpid())), ledger.turn(tmp_path, experiment):
            pass

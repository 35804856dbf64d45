# SPDX-License-Identifier: Apache-2.0
"""A Chameleon that was filled once is copied for the next one: its databases, its passwords, its clouds.yaml."""

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from local_chameleon import cloud, kept, keystone, nova, profiles
from local_chameleon.catalog import SERVICES
from local_chameleon.profiles import PROFILES

LEASE = PROFILES["lease"]
PASSWORDS = {"admin": "word", "nova": "other"}


def execute(path: Path, *statements: str) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        rows: list[tuple[str, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state as it is when it was filled, with as little in it as there can be."""
    state = tmp_path / "state"
    for folder, names in [
        (state / keystone.NAME, keystone.DATABASES),
        *(
            (kept.folder(state, region, kind), SERVICES[kind].DATABASES)
            for region in LEASE.regions
            for kind in LEASE.services
        ),
    ]:
        folder.mkdir(parents=True)
        for name in names:
            execute(folder / name, f"CREATE TABLE things AS SELECT '{folder.name}' AS name")
    execute(
        state / keystone.NAME / "keystone.db",
        "CREATE TABLE endpoint (id, url)",
        "INSERT INTO endpoint VALUES ('a', 'http://127.0.0.1:15013/v2.1'), ('b', 'http://127.0.0.1:15000/v3')",
    )
    for region in LEASE.regions:
        execute(
            kept.folder(state, region, "compute") / "nova_api.db",
            "CREATE TABLE cell_mappings (uuid, name, transport_url, database_connection, disabled)",
        )
        nova.map_cells(kept.folder(state, region, "compute"))
    (state / "secrets.json").write_text(json.dumps(PASSWORDS))
    (state / "clouds.yaml").write_text(f"auth_url: {profiles.keystone_url(15000)}\n")
    return state


def test_nothing_is_kept_before_the_first_is_filled(tmp_path: Path) -> None:
    assert kept.filled(tmp_path, LEASE) is None


def test_a_second_chameleon_is_the_first_one_on_other_ports(state: Path, tmp_path: Path) -> None:
    env = tmp_path / "env"
    kept.keep_filled(state, env, LEASE, 15000)
    place = kept.filled(env, LEASE)
    assert place is not None
    assert kept.passwords(place) == PASSWORDS

    second = tmp_path / "second"
    kept.take_filled(second, place, LEASE, 16000)
    nova_folder = kept.folder(second, "CHI@TACC", "compute")
    assert execute(nova_folder / "nova_cell1.db", "SELECT name FROM things") == [("nova-chi_tacc",)]
    urls = execute(second / "keystone/keystone.db", "SELECT url FROM endpoint ORDER BY id")
    assert urls == [("http://127.0.0.1:16013/v2.1",), ("http://127.0.0.1:16000/v3",)]
    ((cell,),) = execute(
        nova_folder / "nova_api.db", "SELECT database_connection FROM cell_mappings WHERE name = 'cell1'"
    )
    assert cell == f"sqlite:///{nova_folder}/nova_cell1.db?timeout=30"
    assert (second / "clouds.yaml").read_text() == "auth_url: http://127.0.0.1:16000/v3\n"
    assert (second / "clouds.yaml").stat().st_mode & 0o777 == 0o600


def test_only_its_owner_may_look_into_what_is_kept(state: Path, tmp_path: Path) -> None:
    kept.keep_filled(state, tmp_path / "env", LEASE, 15000)
    place = kept.filled(tmp_path / "env", LEASE)
    assert place is not None
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_of_two_that_are_filled_at_once_the_first_is_kept(state: Path, tmp_path: Path) -> None:
    kept.keep_filled(state, tmp_path / "env", LEASE, 15000)
    (state / "secrets.json").write_text("{}")
    kept.keep_filled(state, tmp_path / "env", LEASE, 15000)
    place = kept.filled(tmp_path / "env", LEASE)
    assert place is not None
    assert kept.passwords(place) == PASSWORDS
    assert [path.name for path in (tmp_path / "env").iterdir()] == [place.name]


def test_databases_that_other_passwords_belong_to_are_not_taken(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = tmp_path / "env"
    kept.keep_filled(state, env, LEASE, 15000)
    made = []
    monkeypatch.setattr(kept, "take_empty", lambda *words: made.append("empty"))
    monkeypatch.setattr(kept, "take_filled", lambda *words: made.append("filled"))
    monkeypatch.setattr(keystone, "bootstrap", lambda *words: None)
    assert not cloud._make_databases(tmp_path / "second", env, LEASE, 16000, PASSWORDS)
    assert cloud._make_databases(tmp_path / "third", env, LEASE, 16000, {**PASSWORDS, "admin": "new"})
    assert made == ["filled", "empty"]

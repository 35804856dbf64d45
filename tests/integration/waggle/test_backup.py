# SPDX-License-Identifier: Apache-2.0
"""Backups of stores that are at work: SQLite's with a writer in another process, PostgreSQL's by its own programs."""

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundwork import process
from groundwork.errors import InputError
from tests.integration.waggle import beehives, postgres
from tests.integration.waggle.beehives import Beehive
from tests.integration.waggle.postgres import Postgres
from virtual_waggle import env_file
from virtual_waggle.beehive import backup, settings, store
from virtual_waggle.beehive.state import State
from virtual_waggle.message import Measurement

WRITER = """
import sys
from pathlib import Path
from virtual_waggle.beehive.store_sqlite import SQLiteStore
from virtual_waggle.message import Measurement
store = SQLiteStore(Path(sys.argv[1]))
number = 0
while True:  # pairs: both of one moment, in one commit
    store.write([Measurement(name, number + n, n, {}) for n in range(500) for name in ("a", "b")])
    number += 500
"""


@pytest.fixture(scope="module")
def hive() -> Iterator[Beehive]:
    with beehives.beehive() as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres.running() as running:
        yield running


def test_a_store_that_is_written_to_is_kept_as_of_one_moment(hive: Beehive, tmp_path: Path) -> None:
    writer = process.start([sys.executable, "-c", WRITER, hive.state.database])
    try:
        counts = []
        for number in range(4):
            for _ in process.poll_until(30):
                if hive.state.database.exists() and hive.state.database.stat().st_size > 0:
                    break
            archive = tmp_path / f"{number}.tar.gz"
            backup.backup(hive.state, archive, uploads=True, now=beehives.now())
            again = State(tmp_path / f"again-{number}")
            backup.restore(archive, again, force=False, now=beehives.now())
            database = sqlite3.connect(again.database)
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = database.execute("SELECT series, count(*) FROM points GROUP BY series").fetchall()
            database.close()
            assert len({count for _, count in rows}) <= 1
            assert all(count % 500 == 0 for _, count in rows)
            counts.append(sum(count for _, count in rows))
        assert writer.poll() is None
    finally:
        process.stop(writer)
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_postgresql_is_kept_and_restored_whole_or_not_at_all(hive: Beehive, server: Postgres, tmp_path: Path) -> None:
    env_file.change(hive.state.settings_file, settings.TABLE, {"BEEHIVE_STORE": server.address})
    given = store.open_store(server.address, tmp_path)
    given.write([Measurement("env.temperature", number, "text" * 10, {"node": "x"}) for number in range(5000)])
    archive = tmp_path / "backup.tar.gz"
    assert backup.backup(hive.state, archive, uploads=False, now=beehives.now()).head.store == "postgresql"
    given.write([Measurement("env.humidity", number, 1, {}) for number in range(10)])
    given.close()

    with pytest.raises(InputError, match="holds measurements"):
        backup.restore(archive, State(tmp_path / "again"), force=False, now=beehives.now())
    assert server.query("SELECT count(*) FROM points") == [(5010,)]
    assert not (tmp_path / "again/beehive.env").exists()

    backup.restore(archive, State(tmp_path / "again"), force=True, now=beehives.now())
    assert server.query("SELECT count(*) FROM points") == [(5000,)]
    assert server.query("SELECT name FROM series") == [("env.temperature",)]
    assert not (tmp_path / "again/store/dump").exists()

    server.query("DROP TABLE points, series CASCADE")
    backup.restore(archive, State(tmp_path / "fresh"), force=False, now=beehives.now())
    assert server.query("SELECT count(*) FROM points") == [(5000,)]

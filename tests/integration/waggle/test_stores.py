# SPDX-License-Identifier: Apache-2.0
"""What every store of a Beehive promises, SQLite and PostgreSQL alike."""

import contextlib
import itertools
import math
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from groundwork.errors import InputError
from tests.integration.waggle import postgres
from tests.integration.waggle.postgres import Postgres
from virtual_waggle.beehive.store import HOUR, LATEST, READ_SIZE, Store, StoreUnavailable, all_series, open_store
from virtual_waggle.message import Measurement, Value

NOW = 1_700_000_000_123_456_789
META = {"node": "0000000000000001", "vsn": "V001", "sensor": "bme680"}
VALUES: list[Value] = [
    0,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
    0.0,
    0.1,
    -1.5e300,
    5e-324,
    math.inf,
    -math.inf,
    True,
    False,
    "",
    "text",
    "Grüße, 世界 🐝\\N\t\n\r\"'",
    b"",
    b"\x00\xff\\x41",
]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres.running() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest) -> str:
    """Where a new, empty store is to be."""
    if request.param == "sqlite":
        return "sqlite"
    return new_database(request.getfixturevalue("server"))


def new_database(server: Postgres) -> str:
    name = f"beehive{next(_numbers)}"
    connection = psycopg2.connect(server.address)
    connection.autocommit = True  # a database is created outside of transactions
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    return server.address.replace("/postgres?", f"/{name}?")


@pytest.fixture
def new_store(address: str, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the store anew with each call."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(open_store(address, tmp_path)))


@pytest.fixture
def store(new_store: Callable[[], Store]) -> Store:
    return new_store()


def one(store: Store, name: str = "a") -> int:
    (found,) = all_series(store, [name], 0)
    return found.id


def points(store: Store, name: str = "a") -> list[Any]:
    found, more = store.read(one(store, name), 0, LATEST, 1_000_000)
    assert not more
    return found


def test_values_keep_their_type(store: Store, new_store: Callable[[], Store]) -> None:
    store.write([Measurement("a", number, value, META) for number, value in enumerate(VALUES)])
    found = points(new_store())
    assert found == list(enumerate(VALUES))
    assert [type(value) for _, value in found] == [type(value) for value in VALUES]


def test_what_is_no_number_comes_back_as_none_too(store: Store) -> None:
    store.write([Measurement("a", 1, math.nan, META)])
    ((_, value),) = points(store)
    assert math.isnan(value)


def test_a_series_is_its_name_and_its_meta_in_whatever_order(store: Store) -> None:
    metas = [META, dict(reversed(META.items())), {**META, "sensor": "ä 世界 🐝"}, {}]
    store.write([Measurement(name, NOW, 1, meta) for name in ("a", "b") for meta in metas])
    found = list(all_series(store, None, 0))
    assert sorted((one.name, one.meta) for one in found) == sorted(
        (name, text)
        for name in ("a", "b")
        for text in (
            "{}",
            '{"node":"0000000000000001","sensor":"bme680","vsn":"V001"}',
            '{"node":"0000000000000001","sensor":"ä 世界 🐝","vsn":"V001"}',
        )
    )
    assert [one.id for one in found] == sorted(one.id for one in found)


def test_the_longest_names_and_metas_are_taken(store: Store) -> None:
    meta = {f"{number:02d}".ljust(64, "世"): "🐝" * 256 for number in range(64)}
    store.write([Measurement("n" * 128, LATEST, "x" * 1_000_000, meta)])
    assert points(store, "n" * 128) == [(LATEST, "x" * 1_000_000)]


def test_points_come_in_order_of_time_whatever_the_order_they_were_written_in(store: Store) -> None:
    chance = random.Random(1)  # noqa: S311
    times = [chance.randrange(LATEST) for _ in range(1000)]
    for number in range(0, 1000, 100):
        store.write([Measurement("a", time, time, META) for time in times[number : number + 100]])
    assert points(store) == [(time, time) for time in sorted(times)]


def test_what_is_written_again_replaces_itself(store: Store) -> None:
    store.write([Measurement("a", 1, 1, META), Measurement("a", 2, 2, META), Measurement("a", 1, "one", META)])
    store.write([Measurement("a", 2, 2.5, META), Measurement("b", 2, 3, META)])
    store.write([Measurement("a", 1, True, META)])
    assert points(store) == [(1, True), (2, 2.5)]


def test_a_part_of_a_series_is_read(store: Store) -> None:
    store.write([Measurement("a", number, number, META) for number in range(100)])
    series = one(store)
    assert store.read(series, 10, 12, 100) == ([(10, 10), (11, 11), (12, 12)], False)
    assert store.read(series, 10, 12, 3) == ([(10, 10), (11, 11), (12, 12)], False)
    assert store.read(series, 10, 50, 2) == ([(10, 10), (11, 11)], True)
    assert store.read(series, 200, 300, 2) == ([], False)
    assert store.read(series + 1000, 0, LATEST, 2) == ([], False)


@pytest.mark.parametrize("value", ["x" * 700_000, b"x" * 700_000, "ä" * 400_000])
def test_of_large_values_no_more_is_read_than_fits_into_memory(store: Store, value: Value) -> None:
    for number in range(30):
        store.write([Measurement("a", number, value, META)])
    series, start, found = one(store), 0, 0
    more = True
    while more:
        part, more = store.read(series, start, LATEST, 1000)
        assert [time for time, _ in part] == list(range(start, start + len(part)))
        assert sum(len(one) for _, one in part if isinstance(one, (str, bytes))) <= READ_SIZE + 700_000
        start, found = start + len(part), found + len(part)
    assert found == 30


def test_the_last_points_are_found(store: Store) -> None:
    store.write([Measurement("a", number * 10, number, META) for number in range(100)])
    series = one(store)
    assert store.last(series, 0, LATEST, 1) == 990
    assert store.last(series, 0, 985, 3) == 960
    assert store.last(series, 0, LATEST, 100) == 0
    assert store.last(series, 0, LATEST, 101) is None
    assert store.last(series, 500, LATEST, 51) is None
    assert store.last(series, 0, LATEST, LATEST) is None


def test_series_are_found_by_name_and_by_time(store: Store) -> None:
    store.write([Measurement(f"n{number}", number * HOUR, 1, META) for number in range(2500)])
    assert len({one.id for one in all_series(store, None, 0)}) == 2500
    assert {one.name for one in all_series(store, ["n7", "n1", "no"], 0)} == {"n1", "n7"}
    assert list(all_series(store, [], 0)) == []
    since = {one.name for one in all_series(store, None, 2400 * HOUR)}
    assert {f"n{number}" for number in range(2400, 2500)} <= since <= {f"n{number}" for number in range(2398, 2500)}


def test_a_series_that_goes_on_is_found_by_its_last_point(store: Store, new_store: Callable[[], Store]) -> None:
    other = new_store()
    for hour in range(5):
        store.write([Measurement("a", hour * HOUR, 1, META)])
        other.write([Measurement("a", hour * HOUR // 2, 1, META)])
    assert [found.name for found in all_series(store, None, 4 * HOUR)] == ["a"]


def expire(store: Store, before: int, most: int) -> tuple[int, int]:
    """Steps until all is gone: how many points went, and the most that one step took."""
    total = largest = 0
    after: int | None = 0
    while after is not None:
        gone, after = store.expire(before, after, most)
        total, largest = total + gone, max(largest, gone)
    return total, largest


def test_what_is_too_old_goes_in_small_steps(store: Store) -> None:
    store.write(
        [Measurement(f"n{series}", number, number, META) for series in range(300) for number in range(series % 7)]
    )
    store.write([Measurement("long", number, number, META) for number in range(1000)])
    kept = sum(max(0, series % 7 - 3) for series in range(300)) + 997
    all_points = sum(series % 7 for series in range(300)) + 1000
    assert expire(store, 3, 100) == (all_points - kept, 100)
    assert points(store, "n6") == [(3, 3), (4, 4), (5, 5)]
    assert expire(store, 3, 100) == (0, 0)


def test_a_series_without_points_goes_and_may_come_back(store: Store, new_store: Callable[[], Store]) -> None:
    other = new_store()  # which knows the series by its number, too
    for writer in (store, other):
        writer.write([Measurement("a", 1, 1, META), Measurement("b", 10 * HOUR, 1, META)])
    assert expire(store, 5 * HOUR, 100) == (1, 1)
    assert [found.name for found in all_series(store, None, 0)] == ["b"]
    for writer, time in ((other, 6 * HOUR), (store, 7 * HOUR)):
        writer.write([Measurement("a", time, time, META)])
    assert points(store) == [(6 * HOUR, 6 * HOUR), (7 * HOUR, 7 * HOUR)]


def test_several_writers_at_once_keep_all_and_wait_for_none_in_a_circle(new_store: Callable[[], Store]) -> None:
    failures: list[BaseException] = []

    def write(store: Store, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        try:
            for batch in range(20):
                rows = [
                    Measurement(f"n{series}", batch, batch, META)  # the same keys as the others, in another order
                    for series in chance.sample(range(300), 300)
                ]
                store.write(rows)
                store.expire(0, 0, 10)
        except BaseException as error:
            failures.append(error)

    stores = [new_store() for _ in range(3)]
    threads = [threading.Thread(target=write, args=(store, seed)) for seed, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    found = [len(stores[0].read(series.id, 0, LATEST, 100)[0]) for series in all_series(stores[0], None, 0)]
    assert found == [20] * 300


def test_writers_go_on_while_old_points_are_removed(store: Store, new_store: Callable[[], Store]) -> None:
    names = [f"n{number}" for number in range(50)]
    store.write([Measurement(name, number, 1, META) for name in names for number in range(100)])
    done = threading.Event()

    def sweep() -> None:
        sweeper = new_store()
        while not done.is_set():
            expire(sweeper, HOUR, 50)

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        for number in range(30):
            store.write([Measurement(name, 2 * HOUR + number, number, META) for name in names])
    finally:
        done.set()
        thread.join(60)
    assert all(len(store.read(found.id, 2 * HOUR, LATEST, 100)[0]) == 30 for found in all_series(store, names, 0))


_WRITER = """
import sys
from pathlib import Path
from virtual_waggle.beehive.store import open_store
from virtual_waggle.message import Measurement
store = open_store(sys.argv[1], Path(sys.argv[2]))
for batch in range(10_000):
    store.write([Measurement("a", batch * 50 + number, batch, {}) for number in range(50)])
    print(batch, flush=True)
"""


@pytest.mark.parametrize("patience", [1, 4, 13])
def test_what_was_written_stays_when_the_writer_is_killed_and_no_batch_is_there_by_half(
    address: str, tmp_path: Path, patience: int
) -> None:
    words = [sys.executable, "-c", _WRITER, address, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = list(itertools.islice(writer.stdout, patience))
        writer.send_signal(signal.SIGKILL)
        lines += list(writer.stdout)
    told = int(lines[-1]) + 1
    with contextlib.closing(open_store(address, tmp_path)) as store:
        found = points(store)
    assert len(found) % 50 == 0
    assert told <= len(found) // 50 <= told + 1
    assert [time for time, _ in found] == list(range(len(found)))


def test_without_room_nothing_is_written_and_with_room_again_all_is(tmp_path: Path) -> None:
    rows = [Measurement(f"n{number}", number, "x" * 5000, META) for number in range(200)]
    with contextlib.closing(open_store("sqlite", tmp_path)) as store:
        store._database.execute("PRAGMA max_page_count = 50")  # type: ignore[attr-defined]
        with pytest.raises(StoreUnavailable, match="full"):
            store.write(rows)
        assert list(all_series(store, None, 0)) == []
        store._database.execute("PRAGMA max_page_count = 1000000")  # type: ignore[attr-defined]
        store.write(rows)
        assert len(list(all_series(store, None, 0))) == 200


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(open_store("sqlite", tmp_path)) as store:
        store._database.execute("PRAGMA user_version = 2")  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="later version"):
        open_store("sqlite", tmp_path)


def test_a_file_that_is_no_database_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "data.db").write_bytes(b"garbage " * 1000)
    with pytest.raises(StoreUnavailable, match=r"data\.db: file is not a database"):
        open_store("sqlite", tmp_path)


def test_a_server_that_was_killed_has_all_that_was_written_and_is_found_again() -> None:
    with postgres.running() as server, contextlib.closing(open_store(server.address, Path())) as store:
        store.write([Measurement("a", 1, 1, META)])
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="postgresql://"):
                store.write([Measurement("a", 2, 2, META)])
        server.start()
        store.write([Measurement("a", 3, 3, META)])
        assert points(store) == [(1, 1), (3, 3)]


def test_a_database_of_another_encoding_is_refused(server: Postgres, tmp_path: Path) -> None:
    connection = psycopg2.connect(server.address)
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(InputError, match="not UTF-8"):
        open_store(server.address.replace("/postgres?", "/latin?"), tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""sage-data-client from PyPI, unmodified, reads from our data API what was written; it is the judge of the contract."""

import contextlib
import itertools
import json
import math
import random
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import sage_data_client
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.integration.waggle import beehive, postgres
from tests.integration.waggle.beehive import Service
from virtual_waggle.beehive.store import Store, open_store
from virtual_waggle.message import Measurement, Value

NODE = "0000000000000001"
META = {"node": NODE, "vsn": "V001", "host": f"{NODE}.ws-virtual", "sensor": "bme680"}
DAY = "2023-11-14"
BEGIN = 1_700_000_000_000_000_000  # 22:13:20 of that day
SECOND = 1_000_000_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Store]]:
    """A data API, and its store to write to."""
    folder = tmp_path_factory.mktemp("beehive")
    with contextlib.ExitStack() as stack:
        address = "sqlite" if request.param == "sqlite" else stack.enter_context(postgres.running()).address
        store = stack.enter_context(contextlib.closing(open_store(address, folder / "store")))
        yield stack.enter_context(beehive.api(folder, BEEHIVE_STORE=address)), store


@pytest.fixture(scope="module")
def api(both: tuple[Service, Store]) -> Service:
    return both[0]


@pytest.fixture(scope="module")
def store(both: tuple[Service, Store]) -> Store:
    return both[1]


def query(api: Service, start: Any = DAY, **more: Any) -> pandas.DataFrame:
    return sage_data_client.query(start, endpoint=api.endpoint, **more)


def read(api: Service, name: str) -> list[tuple[int, Any]]:
    frame = query(api, filter={"name": name})
    assert set(frame.name) <= {name}
    return list(zip(frame.timestamp.astype("int64"), frame.value, strict=True))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("whole", [0, 1, -1, (1 << 63) - 1, -(1 << 63)]),
        ("real", [0.0, 0.1, -1e300, 5e-324, 1.7976931348623157e308]),
        ("beyond", [math.inf, -math.inf, 1.0]),
        ("text", ["", "Grüße, 世界 🐝", 'quote " backslash \\ line\n\u2028 end']),
        ("truth", [True, False]),
        ("mixed", [1, 2.5, "three", True]),
    ],
)
def test_every_type_of_value_is_read_as_it_was_written(
    api: Service, store: Store, name: str, values: list[Any]
) -> None:
    store.write([Measurement(name, BEGIN + number, value, META) for number, value in enumerate(values)])
    found = read(api, name)
    assert found == [(BEGIN + number, value) for number, value in enumerate(values)]
    assert [isinstance(value, str) for _, value in found] == [isinstance(value, str) for value in values]


def test_what_is_no_number_is_read_as_missing(api: Service, store: Store) -> None:
    store.write([Measurement("nan", BEGIN, 1.5, META), Measurement("nan", BEGIN + 1, math.nan, META)])
    frame = query(api, filter={"name": "nan"})
    assert list(frame.value.isna()) == [False, True]
    assert frame.value.dtype == "float64"


def test_bytes_are_read_as_base64(api: Service, store: Store) -> None:
    store.write([Measurement("bytes", BEGIN, b"\x00\xff\n", META)])
    assert read(api, "bytes") == [(BEGIN, "AP8K")]


def test_the_columns_are_those_of_the_real_one(api: Service, store: Store) -> None:
    store.write([Measurement("columns", BEGIN, 1, META), Measurement("columns", BEGIN, 2, {"node": NODE})])
    frame = query(api, filter={"name": "columns"})
    assert set(frame.columns) == {"timestamp", "name", "value", *(f"meta.{key}" for key in META)}
    assert str(frame.timestamp.dtype) == "datetime64[ns, UTC]"
    assert set(frame["meta.sensor"].dropna()) == {"bme680"}


def test_timestamps_keep_their_nanoseconds(api: Service, store: Store) -> None:
    times = [0, 1, 999_999_999, BEGIN + 123_456_789, (1 << 63) - 1]
    store.write([Measurement("ns", time, time, META) for time in times])
    frame = query(api, "1970-01-01", filter={"name": "ns"})
    assert list(frame.timestamp.astype("int64")) == times


def test_names_and_metas_at_the_limits_and_in_any_script(api: Service, store: Store) -> None:
    name, key, value = "n" * 64, "schlüssel".ljust(64, "世"), "🐝" * 256
    store.write([Measurement(name, BEGIN, 1, {**META, key: value, "leer": ""})])
    frame = query(api, filter={"name": name, key: "🐝*"})
    assert list(frame[f"meta.{key}"]) == [value]
    assert list(frame["meta.leer"]) == [""]


def test_an_empty_answer_is_an_empty_frame(api: Service) -> None:
    frame = query(api, filter={"name": "no.such.name"})
    assert len(frame) == 0
    assert list(frame.columns) == ["timestamp", "name", "value"]


@pytest.fixture(scope="module")
def series(store: Store) -> None:
    """Points a second apart in six series: two names, three nodes of which the third has no vsn."""
    store.write(
        [
            Measurement(name, BEGIN + second * SECOND, second * factor, meta)
            for name, factor in (("env.temperature", 1), ("env.pressure", 0.5))
            for meta in ({"node": "1", "vsn": "W069"}, {"node": "2", "vsn": "W097"}, {"node": "3"})
            for second in range(10)
        ]
    )


@pytest.mark.usefixtures("series")
@pytest.mark.parametrize(
    ("given_filter", "count"),
    [
        ({"name": "env.*"}, 60),
        ({"name": "env.temp.*"}, 30),
        ({"name": "env.temperature|env.pressure"}, 60),
        ({"name": "env.temperature|sys.none"}, 30),
        ({"name": "env.*", "vsn": "W069"}, 20),
        ({"name": "env.*", "vsn": "W069|W097"}, 40),
        ({"name": "env.*", "vsn": "W0*"}, 40),
        ({"name": "env.*", "vsn": ".*9.*", "node": "2"}, 20),
        ({"name": "env.*", "vsn": "*"}, 40),
        ({"name": "env.*", "nokey": "*"}, 0),
        ({"name": "env.t"}, 0),
    ],
    ids=str,
)
def test_filters(api: Service, given_filter: dict[str, str], count: int) -> None:
    assert len(query(api, filter=given_filter)) == count


@pytest.mark.usefixtures("series")
def test_head_and_tail_are_of_each_series(api: Service) -> None:
    def seconds(**limit: int) -> list[int]:
        frame = query(api, filter={"name": "env.*"}, **limit)
        assert len(frame) == 6 * len(set(frame.timestamp))
        return sorted((time - BEGIN) // SECOND for time in set(frame.timestamp.astype("int64")))

    assert seconds(head=2) == [0, 1]
    assert seconds(tail=3) == [7, 8, 9]
    assert seconds(tail=100) == list(range(10))
    with pytest.raises(ValueError, match="only one"):
        query(api, head=1, tail=1)


@pytest.mark.usefixtures("series")
def test_start_counts_and_end_does_not(api: Service) -> None:
    start, end = pandas.Timestamp(BEGIN + 2 * SECOND, tz="UTC"), pandas.Timestamp(BEGIN + 5 * SECOND, tz="UTC")
    frame = query(api, start, end=end, filter={"name": "env.pressure", "node": "1"})
    assert list(frame.value) == [1.0, 1.5, 2.0]


@pytest.mark.usefixtures("series")
@pytest.mark.parametrize(("func", "expected"), [("mean", 4.5), ("min", 0), ("max", 9), ("sum", 45), ("count", 10)])
def test_functions_of_whole_series(api: Service, func: str, expected: float) -> None:
    frame = query(api, filter={"name": "env.temperature"}, experimental_func=func)
    assert list(frame.value) == [expected] * 3
    assert set(frame["meta.node"]) == {"1", "2", "3"}


@pytest.mark.usefixtures("series")
@pytest.mark.parametrize(
    ("func", "expected"), [("mean", [1.5, 5.5, 8.5]), ("max", [3, 7, 9]), ("sum", [6, 22, 17]), ("count", [4, 4, 2])]
)
def test_functions_of_windows(api: Service, func: str, expected: list[float]) -> None:
    frame = query(
        api, filter={"name": "env.temperature", "node": "1"}, experimental_func=func, experimental_window="4s"
    )
    assert list(frame.value) == expected
    assert list((frame.timestamp.astype("int64") - BEGIN) // SECOND) == [0, 4, 8]


def test_the_bucket_there_is_and_no_other(api: Service) -> None:
    assert len(query(api, bucket="waggle", filter={"name": "no.such.name"})) == 0
    with pytest.raises(urllib.error.HTTPError) as refusal:
        query(api, bucket="downsampled")
    assert refusal.value.code == 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"experimental_func": "median"},
        {"experimental_window": "1m"},
        {"head": 0},
        {"filter": {"name": "x" * 5000}},
        {"filter": {"name": 5}},
    ],
    ids=lambda wrong: json.dumps(wrong)[:40],
)
def test_a_wrong_query_raises_http_error_400_with_a_plain_word(api: Service, wrong: dict[str, Any]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        query(api, **wrong)
    assert refusal.value.code == 400
    assert refusal.value.headers["Content-Type"].startswith("text/plain")
    assert refusal.value.read().startswith(b"error: ")


def test_100_000_measurements_are_read_back_equal_and_in_order(api: Service, store: Store) -> None:
    chance = random.Random(1)  # noqa: S311
    made: dict[str, list[tuple[int, Value]]] = {str(number): [] for number in range(20)}
    rows = []
    for number in range(100_000):
        value: Any = chance.choice([number, chance.gauss(0, 1e9), f"text {number} ä", number % 2 == 0])
        sensor = str(chance.randrange(20))
        made[sensor].append((BEGIN + number * 7919, value))
        rows.append(Measurement("lots", BEGIN + number * 7919, value, {**META, "sensor": sensor}))
    chance.shuffle(rows)
    for begin in range(0, len(rows), 5000):
        store.write(rows[begin : begin + 5000])
        store.write(rows[begin : begin + 50])  # delivered twice
    frame = query(api, filter={"name": "lots"})
    assert len(frame) == 100_000
    found = {
        sensor: list(zip(part.timestamp.astype("int64"), part.value, strict=True))
        for sensor, part in frame.groupby("meta.sensor")
    }
    assert found == made


TEXTS = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def test_any_measurement_is_read_back(api: Service, store: Store) -> None:
    numbers = itertools.count()

    @settings(max_examples=40)
    @given(
        some.dictionaries(
            some.integers(BEGIN, (1 << 63) - 1),
            some.one_of(some.integers(-(1 << 63), (1 << 63) - 1), some.floats(allow_nan=False), TEXTS, some.booleans()),
            min_size=1,
            max_size=5,
        ),
        some.dictionaries(TEXTS.filter(bool), TEXTS, max_size=4),
    )
    def is_read_back(values: dict[int, Value], meta: dict[str, str]) -> None:
        name = f"any.number{next(numbers)}"
        store.write([Measurement(name, time, value, meta) for time, value in values.items()])
        written = sorted(values.items())
        _, text = beehive.fetch(api.endpoint, json.dumps({"start": DAY, "filter": {"name": name}}).encode())
        answered = [json.loads(line)["value"] for line in text.strip("\n").split("\n")]
        assert [(value, type(value)) for value in answered] == [(value, type(value)) for _, value in written]
        frame = query(api, filter={"name": name})
        if {type(value) for value in values.values()} == {int, float}:
            written = [(time, float(value)) for time, value in written]  # pandas' column is of real numbers then
        assert list(zip(frame.timestamp.astype("int64"), frame.value, strict=True)) == written
        assert {column: set(frame[column]) for column in frame.columns if column.startswith("meta.")} == {
            f"meta.{key}": {value} for key, value in meta.items()
        }

    is_read_back()


def test_any_body_is_answered_by_200_or_400(api: Service) -> None:
    fields = ["start", "end", "head", "tail", "filter", "bucket", "experimental_func", "experimental_window", "x"]
    scalars = some.one_of(
        some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=20), some.just("-1h")
    )

    @settings(max_examples=100)
    @given(
        some.one_of(
            some.binary(max_size=100),
            some.dictionaries(
                some.sampled_from(fields), some.one_of(scalars, some.dictionaries(some.text(max_size=5), scalars))
            ).map(lambda data: json.dumps({"start": "-1h", **data}).encode()),
        )
    )
    def is_answered(body: bytes) -> None:
        assert beehive.fetch(api.endpoint, body or b" ")[0] in (200, 400)

    is_answered()


def test_a_saved_answer_loads(api: Service, store: Store, tmp_path: Path) -> None:
    store.write([Measurement("saved", BEGIN, 1.5, META)])
    _, text = beehive.fetch(api.endpoint, b'{"start":"2023-11-14","filter":{"name":"saved"}}')
    (tmp_path / "data.ndjson").write_text(text)
    assert list(sage_data_client.load(str(tmp_path / "data.ndjson")).value) == [1.5]

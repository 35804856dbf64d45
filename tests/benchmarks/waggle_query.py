# SPDX-License-Identifier: Apache-2.0
"""How fast the Beehive's stores take points, and how its data API's share of a query compares with the client's."""

import contextlib
import gzip
import io
import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import sage_data_client

from groundwork import console, files
from tests.benchmarks.figures import Figure, seconds
from tests.integration.waggle import beehive, postgres
from tests.integration.waggle.beehive import Service
from virtual_waggle.beehive.store import open_store
from virtual_waggle.message import Measurement

SERIES = 1000
POINTS = 10_000_000
ROWS = 100_000
BATCH = 5000  # as the loader writes
GOAL = 10_000  # points a second
ROUNDS = 5
BEGIN = 1_700_000_000 * 10**9
SECOND = 10**9
_BUILD = Path(__file__).parents[2] / "build"


def query() -> list[Figure]:
    """10 million points of 1,000 series, written in batches, one a second and series; then 100,000 of them are read."""
    figures = []
    files.make_folder(_BUILD)
    for kind in ("SQLite", "PostgreSQL"):
        with tempfile.TemporaryDirectory(dir=_BUILD, prefix="bench.") as scratch, contextlib.ExitStack() as stack:
            top = Path(scratch)
            address = "sqlite" if kind == "SQLite" else stack.enter_context(postgres.running()).address
            with console.stage(f"{POINTS:,} points into {kind}") as stage:
                took = write_all(address, top / "store")
                stage.note = f"{POINTS / took:,.0f}/s"
            how = f"{POINTS / took:,.0f} points/s of {SERIES:,} series, each commit of {BATCH:,} on the disk"
            figures.append(Figure(f"{POINTS:,} points into {kind}", took, "s", POINTS / GOAL, how))
            api = stack.enter_context(beehive.api(top, BEEHIVE_STORE=address))
            figures.append(read_in_turns(api, kind))
    return figures


def write_all(address: str, folder: Path) -> float:
    """Seconds that the writing took, without the making of what is written."""
    took = 0.0
    with contextlib.closing(open_store(address, folder)) as store:
        for batch in batches():
            begin = time.perf_counter()
            store.write(batch)
            took += time.perf_counter() - begin
    return took


def batches() -> Iterator[list[Measurement]]:
    metas = [
        {
            "node": f"{number % 50:016x}",
            "vsn": f"V{number % 50:03d}",
            "host": f"{number % 50:016x}.ws-virtual",
            "job": "Pluginctl",
            "task": "weather",
            "plugin": "waggle/plugin-weather:1.0.0",
            "sensor": f"bme680-{number:04d}",
        }
        for number in range(SERIES)
    ]
    for first in range(0, POINTS, BATCH):
        yield [
            Measurement("env.temperature", BEGIN + number // SERIES * SECOND, number % 9973 / 7, metas[number % SERIES])
            for number in range(first, first + BATCH)
        ]


def read_in_turns(api: Service, kind: str) -> Figure:
    """The server's time to answer, and the client's to make a DataFrame of the answer, in turns."""
    body = json.dumps(
        {
            "start": "2023-11-14T22:30:00Z",
            "end": "2023-11-14T22:46:40Z",  # 1,000 seconds
            "filter": {"name": "env.temperature", "sensor": "bme680-00*"},  # 100 series
        }
    ).encode()
    serving, parsing = [], []
    for number in range(ROUNDS):
        with console.stage(f"query of {kind}: round {number + 1} of {ROUNDS}") as stage:
            begin = time.perf_counter()
            text = fetch(api, body)
            serving.append(time.perf_counter() - begin)
            parsing.append(seconds(lambda text=text: sage_data_client.load(io.BytesIO(text))))  # type: ignore[misc]
            stage.note = f"served in {serving[-1]:.2f} s, parsed in {parsing[-1]:.2f} s"
        found = text.count(b"\n")
        if found != ROWS:
            raise SystemExit(f"{found} rows instead of {ROWS}")
    how = (
        f"{ROWS:,} rows (100 series) of {POINTS:,} ({SERIES:,} series): median of {ROUNDS}, {median(serving):.2f} s "
        f"until the whole answer has come, compressed, against {median(parsing):.2f} s in which sage-data-client makes "
        "a DataFrame of it"
    )
    return Figure(f"query of {kind} / the client's parsing", median(serving) / median(parsing), "ratio", 1.0, how)


def fetch(api: Service, body: bytes) -> bytes:
    """The answer, unpacked; unpacking is the client's work, but takes hardly any time."""
    request = urllib.request.Request(api.endpoint, body, {"Accept-Encoding": "gzip"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return gzip.decompress(answer.read())

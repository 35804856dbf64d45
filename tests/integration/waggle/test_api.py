# SPDX-License-Identifier: Apache-2.0
"""What the Beehive's data API promises to whoever speaks HTTP with it."""

import contextlib
import gzip
import http.client
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest

from groundwork import files, process
from tests.integration.waggle import beehive, postgres
from tests.integration.waggle.beehive import Hive, Service
from virtual_waggle import broker, message, upload
from virtual_waggle.beehive.store import Store, open_store
from virtual_waggle.message import Measurement
from virtual_waggle.upload import Upload

NODE = "0000000000000001"
META = {"node": NODE, "vsn": "V001", "job": "my job", "task": "sampler"}
BEGIN = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
EVERYTHING = b'{"start":"1970-01-01"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("beehive")


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    with contextlib.closing(open_store("sqlite", folder / "store")) as opened:
        opened.write([Measurement("many", BEGIN + number, number / 7, META) for number in range(20_000)])
        opened.write([Measurement("env.one", BEGIN, 1, META), Measurement("env.two", BEGIN, "zwei", META)])
        yield opened


@pytest.fixture(scope="module")
def api(folder: Path, store: Store) -> Iterator[Service]:
    with beehive.api(folder) as running:
        yield running


def rows(api: Service, **query: Any) -> list[dict[str, Any]]:
    status, text = beehive.fetch(api.endpoint, json.dumps({"start": "1970-01-01", **query}).encode())
    assert status == 200
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_is_a_measurement(api: Service) -> None:
    _, text = beehive.fetch(api.endpoint, b'{"start":"1970-01-01","filter":{"name":"env.*"}}')
    assert text == (
        '{"timestamp":"2023-11-14T22:13:20.000000000Z","name":"env.one","value":1,"meta":'
        '{"job":"my job","node":"0000000000000001","task":"sampler","vsn":"V001"}}\n'
        '{"timestamp":"2023-11-14T22:13:20.000000000Z","name":"env.two","value":"zwei","meta":'
        '{"job":"my job","node":"0000000000000001","task":"sampler","vsn":"V001"}}\n'
    )


def test_a_long_answer_comes_whole_and_in_order(api: Service) -> None:
    assert [row["value"] for row in rows(api, filter={"name": "many"})] == [number / 7 for number in range(20_000)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"head": 3}, [0, 1, 2]),
        ({"tail": 3}, [19_997, 19_998, 19_999]),
        ({"head": 12_345}, range(12_345)),
        ({"tail": 12_345}, range(20_000 - 12_345, 20_000)),
        ({"tail": 30_000}, range(20_000)),
    ],
    ids=str,
)
def test_head_and_tail_count_a_series(api: Service, limit: dict[str, int], expected: Any) -> None:
    assert [row["value"] for row in rows(api, filter={"name": "many"}, **limit)] == [one / 7 for one in expected]


def test_head_and_func_work_on_what_is_left(api: Service) -> None:
    (row,) = rows(api, filter={"name": "many"}, tail=2, experimental_func="sum")
    assert row["value"] == 19_998 / 7 + 19_999 / 7
    assert row["timestamp"] == "1970-01-01T00:00:00.000000000Z"


def test_windows_of_a_series(api: Service) -> None:
    found = rows(api, filter={"name": "many"}, experimental_func="count", experimental_window="1us")
    assert [row["value"] for row in found] == [1000] * 20
    assert [row["timestamp"][-7:] for row in found[:2]] == ["000000Z", "001000Z"]


def test_the_type_of_the_body_does_not_count(api: Service) -> None:
    for kind in ("application/x-www-form-urlencoded", "application/json", "multipart/form-data", "x"):
        assert beehive.fetch(api.endpoint, EVERYTHING, {"Content-Type": kind})[0] == 200


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("*", "gzip"),
        ("gzip;q=0", None),
        ("identity", None),
        ("", None),
    ],
)
def test_gzip_when_asked(api: Service, accepted: str, expected: str | None) -> None:
    request = urllib.request.Request(api.endpoint, EVERYTHING, {"Accept-Encoding": accepted})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        assert answer.headers["Content-Encoding"] == expected
        assert answer.headers["Vary"] == "Accept-Encoding"
        text = answer.read()
    text = gzip.decompress(text) if expected else text
    assert text.count(b"\n") == 20_002


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no query provided"),
        (b"{}", "missing start field"),
        (b'{"start":"-1h","more":1}', 'unknown field "more"'),
        (b'{"start":"-1h","head":1,"tail":1}', "only one of head and tail"),
        (b'{"start":"yesterday"}', 'start: "yesterday" is no time'),
        (b'{"start":"-1h"' + b" " * 5000 + b"}", "at most 4096 bytes"),
        (b'{"start":"-1h"}' * 1_000_000, "at most 4096 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_query_is_400_with_a_plain_word(api: Service, body: bytes, said: str) -> None:
    try:
        status, text = beehive.fetch(api.endpoint, body)
    except OSError:  # the service answers before all of a huge body was sent, and a client may not see the answer
        assert len(body) > 1 << 20
        return
    assert status == 400
    assert text.startswith("error: ")
    assert said in text


@pytest.mark.parametrize(
    "body",
    [
        b'{"start":"1970-01-01","filter":{"name":"\\ud800"}}',
        b'{"start":"1970-01-01","filter":{"name":"a\\u0000"}}',
        b'{"start":"1970-01-01","filter":{"\\ud800":"*","n":"\\u0000"}}',
        b'{"start":"1970-01-01","end":"1960-01-01"}',
        b'{"start":"9999-12-31"}',
        b'{"start":"+999999999999999999w"}',
        b'{"start":"1970-01-01","tail":9223372036854775807,"filter":{"name":"none"}}',
    ],
)
def test_a_query_that_nothing_fits_is_answered_by_nothing(api: Service, body: bytes) -> None:
    assert beehive.fetch(api.endpoint, body) == (200, "")


def test_the_largest_head_and_tail_are_all(api: Service) -> None:
    for limit in ("head", "tail"):
        assert len(rows(api, filter={"name": "many"}, **{limit: (1 << 63) - 1})) == 20_000


def test_other_places_and_methods_are_refused(api: Service) -> None:
    assert beehive.fetch(f"{api.url}/nothing") == (404, "error: not found\n")
    assert beehive.fetch(api.endpoint) == (405, "error: method not allowed\n")
    assert beehive.fetch(f"{api.url}/healthz", b"x")[0] == 405


def test_any_page_may_read_and_none_may_do_more(api: Service) -> None:
    request = urllib.request.Request(  # noqa: S310
        api.endpoint, method="OPTIONS", headers={"Origin": "http://x", "Access-Control-Request-Method": "POST"}
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert answer.headers["Access-Control-Allow-Credentials"] is None
    for path in ("/", "/healthz", "/metrics", "/nothing"):
        connection = http.client.HTTPConnection(urlsplit(api.url).netloc)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        connection.close()


def test_what_is_counted_and_that_it_is_well_can_be_read(api: Service) -> None:
    before = beehive.counted(api, 'beehive_api_requests_total{path="/api/v1/query",status="400"}')
    beehive.fetch(api.endpoint, b"{}")
    assert beehive.counted(api, 'beehive_api_requests_total{path="/api/v1/query",status="400"}') == before + 1
    assert beehive.health(api) == {"healthy": True, "store": "ok"}


def test_points_written_while_a_query_runs_do_not_disturb_it(api: Service, store: Store) -> None:
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc)
    connection.request("POST", "/api/v1/query", b'{"start":"1970-01-01","filter":{"name":"many"}}')
    answer = connection.getresponse()
    lines = [answer.readline() for _ in range(100)]
    store.write([Measurement("many", BEGIN - number, -1, META) for number in range(1, 100)])
    lines += answer.read().splitlines()
    connection.close()
    assert [json.loads(line)["value"] for line in lines] == [number / 7 for number in range(20_000)]
    store._database.execute("DELETE FROM points WHERE value = -1")  # type: ignore[attr-defined]


def large_store(folder: Path, count: int = 300) -> None:
    with contextlib.closing(open_store("sqlite", folder / "store")) as opened:
        for number in range(count):
            opened.write([Measurement("large", BEGIN + number, "x" * 1_000_000, META)])


def test_memory_is_bounded_whatever_the_answer_and_however_slow_the_client(tmp_path: Path) -> None:
    large_store(tmp_path)
    with beehive.api(tmp_path) as api:
        readers = []
        for _ in range(10):
            reader = socket.create_connection(("127.0.0.1", urlsplit(api.url).port or 0))
            reader.sendall(b"POST /api/v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\n" + EVERYTHING)
            readers.append(reader)
        assert len(rows(api)) == 300  # while ten others have begun to read, and stopped
        assert api.memory() < 300 << 20
        for reader in readers:
            reader.close()
        for _ in process.poll_until(30):
            if beehive.counted(api, "beehive_api_queries") == 0:
                return
        raise AssertionError("queries go on whose clients are gone")


def test_an_answer_that_fails_half_way_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    with postgres.running() as server:
        with contextlib.closing(open_store(server.address, tmp_path)) as opened:
            for part in range(20):
                opened.write([Measurement("a", part * 10_000 + number, number, META) for number in range(10_000)])
        with beehive.api(tmp_path, BEEHIVE_STORE=server.address) as api:
            request = urllib.request.Request(api.endpoint, EVERYTHING)  # noqa: S310
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                answer.readline()
                server.kill()
                with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                    answer.read()
            assert beehive.fetch(api.endpoint, EVERYTHING) == (503, "error: the store can't be read just now\n")
            assert beehive.fetch(f"{api.url}/healthz")[0] == 503
            server.start()
            assert beehive.fetch(f"{api.url}/healthz")[0] == 200
            assert len(rows(api)) == 200_000


SHA = "a" * 40


def put_upload(
    folder: Path, name: str = "sample ä.jpg", data: bytes = b"picture", sha: str = SHA, job: str = "my job"
) -> Path:
    """A file where the upload server has put it."""
    told = Upload(BEGIN, sha, name, {"filename": name}, NODE, job, "sampler", "plugin")
    place = files.make_folder(folder / f"uploads/node-{NODE}" / told.place)
    (place / "data").write_bytes(data)
    (place / "meta").write_bytes(upload.encode(told))
    return place


def test_an_uploads_value_is_a_link_to_its_file(api: Service, store: Store, folder: Path) -> None:
    put_upload(folder)
    put_upload(folder, "other.jpg", b"another", "b" * 40)
    meta = {**META, "filename": "sample ä.jpg"}
    store.write(
        [
            Measurement("upload", BEGIN, f"{BEGIN}-{SHA}", meta),
            Measurement("upload", BEGIN + 1, "else", meta),
            Measurement("upload", BEGIN + 2, f"{BEGIN}-{SHA}", {"node": NODE}),
        ]
    )
    found = [row["value"] for row in rows(api, filter={"name": "upload"})]
    assert found == [
        f"{api.url}/api/v1/data/my%20job/sampler/{NODE}/{BEGIN}-sample%20%C3%A4.jpg",
        "else",
        f"{BEGIN}-{SHA}",
    ]
    with urllib.request.urlopen(found[0]) as answer:  # noqa: S310
        assert answer.read() == b"picture"
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert "sandbox" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "job",
    [
        "Birds of/Chicago",
        "birds%2Fof%20Chicago%",
        "Vögel über Чикаго 鳥",
        ".hidden",
        "-v?a=b#c&d;e+f\\g",
        "鳥" * 256,
        "one\ntwo",
    ],
    ids=lambda job: ascii(job[:20]),
)
def test_a_link_leads_to_its_file_whatever_the_job_is_called(
    api: Service, store: Store, folder: Path, job: str
) -> None:
    put_upload(folder, "a %2F?ä.bin", job.encode(), job=job)
    meta = {**META, "job": job, "filename": "a %2F?ä.bin"}
    store.write([Measurement("upload", BEGIN, f"{BEGIN}-{SHA}", meta)])
    (row,) = [one for one in rows(api, filter={"name": "upload"}) if one["meta"].get("job") == job]
    with urllib.request.urlopen(row["value"]) as answer:  # noqa: S310
        assert answer.read() == job.encode()


def test_links_begin_with_the_address_that_was_set(folder: Path, store: Store) -> None:
    store.write([Measurement("upload", BEGIN, f"{BEGIN}-{SHA}", {**META, "filename": "x"})])
    with beehive.api(folder, BEEHIVE_API_URL="https://beehive.example.org/") as api:
        found = [row["value"] for row in rows(api, filter={"name": "upload", "filename": "x"})]
    assert found == [f"https://beehive.example.org/api/v1/data/my%20job/sampler/{NODE}/{BEGIN}-x"]


def test_no_other_file_is_given(api: Service, folder: Path) -> None:
    put_upload(folder)
    (folder / "secret").write_text("secret")
    outside = files.make_folder(folder / "outside")
    (outside / "data").write_text("secret")
    (outside / "meta").write_text(json.dumps({"labels": {"filename": "linked"}}))
    task = folder / f"uploads/node-{NODE}/my%20job/sampler"
    (task / f"5-{SHA}").symlink_to(outside)
    by_link = put_upload(folder, "data-link", b"", "c" * 40)
    (by_link / "data").unlink()
    (by_link / "data").symlink_to(folder / "secret")
    broken = put_upload(folder, "broken", b"", "d" * 40)
    (broken / "meta").write_text("[" * 100_000)
    good = ("my job", "sampler", NODE, f"{BEGIN}-sample ä.jpg")
    assert beehive.fetch(f"{api.url}/api/v1/data/{'/'.join(map(quote, good))}")[0] == 200
    for parts in [
        ("my job", "sampler", NODE, "5-linked"),
        ("my job", "sampler", NODE, f"{BEGIN}-data-link"),
        ("my job", "sampler", NODE, f"{BEGIN}-broken"),
        ("my job", "sampler", NODE, f"{BEGIN}-none"),
        ("my job", "sampler", NODE, "x-sample"),
        ("my job", "sampler", "0000000000000002", good[3]),
        ("my job", "..", NODE, good[3]),
        ("my%20job", "sampler", NODE, good[3]),
        ("..", "my job/sampler", NODE, good[3]),
        ("my job/sampler", ".", NODE, good[3]),
        ("my job", "sampler", f"{NODE}/../node-{NODE}", good[3]),
        ("my job", "sampler", NODE, f"{BEGIN}-../../../../secret"),
        ("my job", "sampler\0", NODE, good[3]),
    ]:
        path = "/".join(quote(part, safe="") for part in parts)
        assert beehive.fetch(f"{api.url}/api/v1/data/{path}")[0] == 404, path
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc)
    for path in ("/../secret", "/page/../../secret", "//secret", "/api/v1/data/../../secret", "/%2e%2e/secret"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 404
        assert b"secret" not in answer.read()
    connection.close()


# the stream


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with beehive.hive(tmp_path_factory.mktemp("hive"), NODE) as running:
        yield running


@pytest.fixture(scope="module")
def streaming(hive: Hive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("streaming")
    with beehive.api(folder, **hive.environment(folder / "store")) as running:
        yield running


@contextlib.contextmanager
def sending(hive: Hive) -> Iterator[Callable[[bytes], None]]:
    connection = hive.as_node(NODE)
    channel = connection.channel()
    properties = pika.BasicProperties(user_id=f"node-{NODE}")
    try:
        yield lambda body: channel.basic_publish(broker.WAGGLE_MSG, "a", body, properties)
    finally:
        connection.close()


@contextlib.contextmanager
def listening(api: Service, filters: str = "") -> Iterator[http.client.HTTPResponse]:
    """The stream, once it has begun."""
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=30)
    try:
        connection.request("GET", f"/api/v0/stream{filters}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.readline() == b":begin\n"
        yield answer
    finally:
        connection.close()


def event(stream: http.client.HTTPResponse) -> dict[str, Any]:
    """The next measurement."""
    name = b""
    while line := stream.readline():
        if line.startswith(b"event: "):
            name = line
        if line.startswith(b"data: "):
            assert name == b"event: message\n"
            return dict(json.loads(line.removeprefix(b"data: ")))
    raise AssertionError("the stream ended")


def test_what_comes_in_is_streamed_to_whom_asked_for_it(hive: Hive, streaming: Service) -> None:
    with listening(streaming) as every, listening(streaming, "?name=env.*|b&vsn=V001") as some, sending(hive) as send:
        for number, name in enumerate(["env.x", "a", "b", "env.y"]):
            send(message.encode(Measurement(name, BEGIN + number, number, META)))
            send(message.encode(Measurement(name, BEGIN + number, number, {**META, "vsn": "V002"})))
            send(b"garbage")
            send(message.encode(Measurement(name, BEGIN + number, number, {**META, "node": "x"})))
        assert [event(some) for _ in range(3)] == [
            {
                "timestamp": f"2023-11-14T22:13:20.00000000{number}Z",
                "name": name,
                "value": number,
                "meta": META,
            }
            for number, name in ((0, "env.x"), (2, "b"), (3, "env.y"))
        ]
        assert [event(every)["name"] for _ in range(8)] == ["env.x"] * 2 + ["a"] * 2 + ["b"] * 2 + ["env.y"] * 2


def test_uploads_are_links_in_the_stream_too(hive: Hive, streaming: Service) -> None:
    with listening(streaming, "?name=upload") as stream, sending(hive) as send:
        send(message.encode(Measurement("upload", BEGIN, f"{BEGIN}-{SHA}", {**META, "filename": "x"})))
        assert event(stream)["value"] == f"{streaming.url}/api/v1/data/my%20job/sampler/{NODE}/{BEGIN}-x"


def test_a_reader_that_is_too_slow_is_dropped_and_others_and_memory_are_none_the_worse(
    hive: Hive, streaming: Service
) -> None:
    before = streaming.memory()
    with listening(streaming) as quick, sending(hive) as send:
        slow = socket.create_connection(("127.0.0.1", urlsplit(streaming.url).port or 0))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /api/v0/stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        for number in range(300):
            send(message.encode(Measurement("a", number, "x" * 100_000, META)))
            assert event(quick)["timestamp"].endswith(f"{number:09d}Z")
        for _ in process.poll_until(30):
            if beehive.counted(streaming, "beehive_api_stream_readers") == 1:
                break
        assert beehive.counted(streaming, "beehive_api_stream_dropped_total") == 1
        assert streaming.memory() - before < 60 << 20
        slow.close()


def test_readers_who_go_are_forgotten(streaming: Service) -> None:
    for _ in range(5):
        with listening(streaming):
            pass
    for _ in process.poll_until(60):
        if beehive.counted(streaming, "beehive_api_stream_readers") == 0:
            return
    raise AssertionError("readers are still there")


def test_without_a_broker_the_stream_says_so(api: Service) -> None:
    assert beehive.fetch(f"{api.url}/api/v0/stream") == (404, "error: this service has no stream\n")
    assert beehive.fetch(f"{api.url}/api/v0/stream?name={'x' * 5000}")[0] == 400


def test_it_ends_at_once_when_told_to_though_clients_are_there(hive: Hive, tmp_path: Path) -> None:
    large_store(tmp_path, 50)
    with beehive.api(tmp_path, **hive.environment(tmp_path / "store")) as api, listening(api):
        reader = socket.create_connection(("127.0.0.1", urlsplit(api.url).port or 0))
        reader.sendall(b"POST /api/v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\n" + EVERYTHING)
        time.sleep(0.5)
        api.process.terminate()
        assert api.process.wait(5) == 0
        reader.close()

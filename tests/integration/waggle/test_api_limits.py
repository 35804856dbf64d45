# SPDX-License-Identifier: Apache-2.0
"""What the data API does when a query takes too long, a client takes nothing, or a store fails half-way.

The service runs in a thread of the test, with a store of the test's own and with limits as no setting has them.
"""

import asyncio
import contextlib
import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from groundwork import files, process
from tests.integration.waggle import beehive
from virtual_waggle import upload
from virtual_waggle.beehive import api as service
from virtual_waggle.beehive.api import Api, Configuration, application
from virtual_waggle.beehive.store import Point, Series, StoreUnavailable
from virtual_waggle.upload import Upload

NODE = "0000000000000001"
RAW = b'{"start":"1970-01-01"}'
COUNT = b'{"start":"1970-01-01","experimental_func":"count"}'
FOR_EVER = 3600.0


@dataclass
class Made:
    """A store of one series, of which ``points`` gives what is read: so many, and whether there are more."""

    points: Callable[[], tuple[int, bool]]
    examine: Callable[[], None] = lambda: None

    def series(self, names: Sequence[str] | None, since: int, after: int, most: int) -> list[Series]:
        return [] if after else [Series(1, "made", "{}")]

    def read(self, series: int, start: int, end: int, most: int) -> tuple[list[Point], bool]:
        count, more = self.points()
        return [(start + number, 1) for number in range(count)], more

    def last(self, series: int, start: int, end: int, count: int) -> int | None:
        return None

    def check(self) -> None:
        self.examine()


ENDLESS = Made(lambda: (5000, True))


@dataclass
class Served:
    """Where the service is; ``counted`` and ``endpoint`` as beehive.Service has them."""

    url: str

    @property
    def endpoint(self) -> str:
        return f"{self.url}/api/v1/query"

    def counted(self, name: str) -> float:
        return beehive.counted(self, name)  # type: ignore[arg-type]

    def ask(self, body: bytes) -> tuple[int, str]:
        return beehive.fetch(self.endpoint, body)

    def client(self, request: bytes) -> socket.socket:
        """A client that has sent a request and reads nothing by itself."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(30)
        made.connect(("127.0.0.1", urlsplit(self.url).port))
        made.sendall(request)
        return made

    def asking(self, body: bytes) -> socket.socket:
        return self.client(
            b"POST /api/v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )


@contextlib.contextmanager
def serving(store: Made, uploads: Path = Path("none"), workers: int = 4, **limits: float) -> Iterator[Served]:
    """The data API for the block."""
    configuration = Configuration(("127.0.0.1", 0), "", "none", Path("none"), uploads, [], Path("none"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as examiner:
        api = Api(configuration, store, pool, examiner, **limits)  # type: ignore[arg-type]

        async def start() -> web.AppRunner:
            runner = web.AppRunner(application(api), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner

        async def end() -> None:
            for request in api.requests:
                request.cancel()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(runner.cleanup(), 3)

        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        try:
            yield Served(f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            asyncio.run_coroutine_threadsafe(end(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()


def eventually(condition: Callable[[], Any]) -> None:
    for _ in process.poll_until(30, 0.05):
        if condition():
            return
    raise AssertionError("it did not come to pass within 30 s")


def requests(served: Served, path: str, status: int) -> float:
    return served.counted(f'beehive_api_requests_total{{path="{path}",status="{status}"}}')


def all_that_comes(client: socket.socket) -> bytes:
    """What is still there to be read, until the connection ends, in whichever way."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1 << 20):
            found += part
    return found


def test_a_query_that_is_added_up_for_too_long_is_given_up_with_a_plain_word() -> None:
    with serving(ENDLESS, deadline=0.5) as served:
        assert served.ask(COUNT) == (503, "error: the query takes too long; ask for less\n")


def test_an_answer_that_takes_too_long_is_cut_off() -> None:
    with serving(ENDLESS, deadline=0.5) as served:
        request = urllib.request.Request(served.endpoint, RAW)  # noqa: S310
        with (
            urllib.request.urlopen(request, timeout=60) as answer,  # noqa: S310
            pytest.raises((http.client.IncompleteRead, ConnectionError)),
        ):
            answer.read()


def test_nobody_is_worked_for_who_has_left_while_it_is_added_up() -> None:
    with serving(ENDLESS, deadline=FOR_EVER) as served:
        clients = [served.asking(COUNT) for _ in range(6)]
        eventually(lambda: served.counted("beehive_api_queries") == 6)
        for client in clients:
            client.close()
        eventually(lambda: served.counted("beehive_api_queries") == 0)


def test_who_waits_for_others_does_not_use_up_its_own_time() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def points() -> tuple[int, bool]:
        if not begun.is_set():  # the first one's store hangs
            begun.set()
            assert go_on.wait(30)
        return 3, False

    with serving(Made(points), workers=1, deadline=1.0) as served, served.asking(RAW) as first:
        assert begun.wait(30)
        with served.asking(RAW) as second:
            eventually(lambda: served.counted("beehive_api_queries") == 2)
            assert not go_on.wait(2)
            go_on.set()
            assert first.recv(100).startswith(b"HTTP/1.1 503")
            assert second.recv(100).startswith(b"HTTP/1.1 200")


def test_queries_that_hang_do_not_make_the_service_look_unwell() -> None:
    go_on = threading.Event()

    def points() -> tuple[int, bool]:
        assert go_on.wait(30)
        return 1, False

    with serving(Made(points)) as served:
        clients = [served.asking(RAW) for _ in range(8)]  # twice as many as there are workers
        eventually(lambda: served.counted("beehive_api_queries") == 8)
        assert beehive.fetch(f"{served.url}/healthz") == (200, '{"healthy": true, "store": "ok"}\n')
        go_on.set()
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            client.close()


def test_a_store_that_does_not_answer_is_unwell_and_well_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_HEALTH", 0.3)
    go_on = threading.Event()
    asked: list[int] = []

    def examine() -> None:
        asked.append(1)
        assert go_on.wait(30)

    with serving(Made(lambda: (1, False), examine)) as served:
        for _ in range(3):
            assert beehive.fetch(f"{served.url}/healthz") == (503, '{"healthy": false, "store": "does not answer"}\n')
        assert len(asked) == 1  # whoever supervises asks on and on: that is no work for a store that hangs
        go_on.set()
        eventually(lambda: beehive.fetch(f"{served.url}/healthz")[0] == 200)


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("unforeseen"), 500), (OSError("disk"), 500), (StoreUnavailable("away"), 503)]
)
def test_whatever_fails_half_way_the_answer_is_cut_off_and_nothing_follows_it(error: Exception, status: int) -> None:
    read: list[int] = []

    def points() -> tuple[int, bool]:
        read.append(1)
        if len(read) > 20:
            raise error
        return 5000, True

    with serving(Made(points)) as served, served.asking(RAW) as client:
        found = all_that_comes(client)
        assert found.startswith(b"HTTP/1.1 200")
        assert found.count(b"HTTP/1.1") == 1
        assert not found.endswith(b"0\r\n\r\n")
        eventually(lambda: requests(served, "/api/v1/query", status) == 1)


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("unforeseen"), 500), (StoreUnavailable("away"), 503)])
def test_what_fails_before_anything_was_sent_is_told(error: Exception, status: int) -> None:
    def points() -> tuple[int, bool]:
        raise error

    with serving(Made(points)) as served:
        assert served.ask(RAW)[0] == status


def put_file(folder: Path, size: int) -> Path:
    told = Upload(5, "a" * 40, "zeros", {"filename": "zeros"}, NODE, "job", "task", "plugin")
    place = files.make_folder(folder / f"node-{NODE}" / told.place)
    (place / "meta").write_bytes(upload.encode(told))
    with (place / "data").open("wb") as stream:
        stream.truncate(size)
    return place / "data"


DOWNLOAD = f"GET /api/v1/data/job/task/{NODE}/5-zeros HTTP/1.1\r\nHost: x\r\n\r\n".encode()
DATA = "/api/v1/data/{job}/{task}/{node}/{name}"


def test_a_download_that_its_client_does_not_take_is_cut_off_and_nothing_follows_it(tmp_path: Path) -> None:
    put_file(tmp_path, 256 << 20)
    with serving(ENDLESS, tmp_path, patience=0.5) as served, served.client(DOWNLOAD) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        eventually(lambda: requests(served, DATA, 499) == 1)
        assert b"HTTP/1.1" not in all_that_comes(client)


def test_a_download_whose_file_is_cut_meanwhile_is_cut_off_and_nothing_follows_it(tmp_path: Path) -> None:
    data = put_file(tmp_path, 256 << 20)
    with serving(ENDLESS, tmp_path) as served, served.client(DOWNLOAD) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        with data.open("r+b") as stream:
            stream.truncate(1)
        assert b"HTTP/1.1" not in all_that_comes(client)
        eventually(lambda: requests(served, DATA, 500) == 1)


def test_a_query_that_a_client_does_not_take_is_cut_off_and_nothing_follows_it() -> None:
    with serving(ENDLESS, patience=0.5, deadline=FOR_EVER) as served, served.asking(RAW) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        eventually(lambda: requests(served, "/api/v1/query", 499) == 1)
        assert b"HTTP/1.1" not in all_that_comes(client)


def ask_as_a_proxy(served: Served) -> socket.socket:
    """A client by HTTP/1.0, for which the connection's end is that of the answer; it has read the answer's begin."""
    client = socket.create_connection(("127.0.0.1", urlsplit(served.url).port or 0), timeout=30)
    client.sendall(b"POST /api/v1/query HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(RAW), RAW))
    assert client.recv(100).startswith(b"HTTP/1.0 200")
    return client


def test_an_answer_under_way_when_the_service_ends_is_not_taken_for_a_whole_one() -> None:
    with serving(ENDLESS, deadline=FOR_EVER) as served:
        client = ask_as_a_proxy(served)
    with client, pytest.raises(ConnectionResetError):
        while client.recv(1 << 20):
            pass


def test_an_answer_by_http_1_0_that_is_cut_off_is_not_taken_for_a_whole_one() -> None:
    with (
        serving(ENDLESS, deadline=0.5) as served,
        ask_as_a_proxy(served) as client,
        pytest.raises(ConnectionResetError),
    ):
        while client.recv(1 << 20):
            pass

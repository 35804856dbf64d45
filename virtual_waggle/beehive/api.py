# SPDX-License-Identifier: Apache-2.0
"""The Beehive's data API and its web page: ``python3 -m virtual_waggle.beehive.api``.

    POST /api/v1/query                                  a query's answer as lines of JSON; see query.py
    GET  /api/v0/stream?name=...                        measurements as they come in, as server-sent events
    GET  /api/v1/data/<job>/<task>/<node>/<ts>-<name>   an uploaded file
    GET  /metrics, /healthz, /                          for Prometheus, for whoever supervises, for people

All is read, nothing can be changed; anyone who reaches it may read all.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from mimetypes import guess_type
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import HttpVersion11, web

from groundwork.errors import InputError
from groundwork.program import run_program
from virtual_waggle import broker_client, prometheus
from virtual_waggle.beehive import answer, settings, stream, uploads
from virtual_waggle.beehive import query as queries
from virtual_waggle.beehive.query import BadQuery, Query
from virtual_waggle.beehive.store import Point, Readable, Series, Store, StoreUnavailable, open_store, read_password
from virtual_waggle.env_file import Variable, from_environment
from virtual_waggle.prometheus import Metrics

logger = logging.getLogger("virtual_waggle.api")

_WORKERS = 4  # threads that ask the store, each on a connection of its own
_MOST_QUERIES = 100  # that are answered at once
_MOST_READERS = 100  # of the stream
_PATIENCE = 60.0  # seconds for a client to send its query, or to take a piece of an answer
_DEADLINE = 300.0  # seconds that the store may take for one query, without what the client takes
_WELL = "ok"  # what is told of a store that is there
_HEALTH = 5.0  # seconds that the store may take to say that it is there
_KEEP_ALIVE = 15.0  # seconds of silence on a stream after which a comment is sent
_STREAM_START = 10.0  # seconds until the broker must have been reached
_FILE_PIECE = 1 << 18  # bytes

_HELPS = {
    "beehive_api_requests_total": "Requests answered, by path and status.",
    "beehive_api_rows_bytes_total": "Bytes of answers to queries, before they were compressed.",
    "beehive_api_queries": "Queries that are being answered.",
    "beehive_api_stream_readers": "Readers of the stream.",
    "beehive_api_stream_dropped_total": "Readers of the stream that were too slow.",
}
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_ANYONE = {"Access-Control-Allow-Origin": "*"}
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: the connection is reset, not ended
# Uploaded files are strangers' work: a browser shows them, but runs nothing of them.
_FILE_SECURITY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Configuration:
    """What the service is told.  ``url``: the address that links to files begin with, "" for the one a client used."""

    listen: tuple[str, int]
    url: str
    store: str
    store_folder: Path
    uploads: Path
    brokers: Sequence[tuple[str, int]]
    secrets: Path


TABLE = (
    Variable(
        "BEEHIVE_API_LISTEN",
        "address and port to serve at",
        lambda text: broker_client.parse_address(text, "address"),
        "0.0.0.0:8080",
    ),
    *settings.of_names("BEEHIVE_API_URL", "BEEHIVE_STORE"),
    Variable("BEEHIVE_STORE_FOLDER", "folder of the SQLite store", Path, "/var/lib/beehive/store"),
    Variable("BEEHIVE_UPLOADS", "folder of uploaded files", Path, "/var/lib/beehive/uploads"),
    Variable(
        "WAGGLE_BROKER",
        "host:port of the Beehive's broker, for the stream; of a cluster's with commas between; empty: no stream",
        lambda text: broker_client.parse_addresses(text, "broker") if text else [],
        "",
    ),
    Variable(
        "WAGGLE_SECRETS", "folder of ca-cert.pem, api-cert.pem, api-key.pem and store-password", Path, "/run/secrets"
    ),
)


@dataclass(eq=False)
class Api:
    """A running service.

    ``workers`` ask the store for queries, ``examiner`` whether it is there: that waits for no query.  ``patience`` and
    ``deadline`` are _PATIENCE and _DEADLINE.  ``requests`` has the answers of which something was sent.
    """

    configuration: Configuration
    store: Readable
    workers: ThreadPoolExecutor
    examiner: ThreadPoolExecutor
    patience: float = _PATIENCE
    deadline: float = _DEADLINE
    hub: stream.Hub = field(default_factory=stream.Hub)
    metrics: Metrics = field(default_factory=lambda: Metrics(_HELPS))
    requests: "dict[asyncio.Task[Any], web.StreamResponse | None]" = field(default_factory=dict)
    queries: int = 0
    examination: "asyncio.Future[str] | None" = None


class PerThread:
    """A store of which each thread that asks has a connection of its own, made when it is first needed."""

    def __init__(self, new: Callable[[], Store]) -> None:
        self._new = new
        self._own = threading.local()

    def series(self, names: Sequence[str] | None, since: int, after: int, most: int) -> list[Series]:
        return self._ask(lambda store: store.series(names, since, after, most))

    def read(self, series: int, start: int, end: int, most: int) -> tuple[list[Point], bool]:
        return self._ask(lambda store: store.read(series, start, end, most))

    def last(self, series: int, start: int, end: int, count: int) -> int | None:
        return self._ask(lambda store: store.last(series, start, end, count))

    def check(self) -> None:
        self._ask(lambda store: store.check())

    def _ask(self, question: Callable[[Store], T]) -> T:
        try:
            return question(self._mine())
        except StoreUnavailable:  # a connection that was lost while nobody asked; nothing is changed by asking again
            return question(self._mine())

    def _mine(self) -> Store:
        found: Store | None = getattr(self._own, "store", None)
        if found is None:
            found = self._own.store = self._new()
        return found


def application(api: Api) -> web.Application:
    """The service's routes."""
    made = web.Application(middlewares=[_outermost(api)])

    async def note_begun(request: web.Request, response: web.StreamResponse) -> None:
        task = asyncio.current_task()
        if task in api.requests:
            api.requests[task] = response

    made.on_response_prepare.append(note_begun)

    def on(handler: Callable[[Api, web.Request], Awaitable[web.StreamResponse]]) -> Handler:
        return lambda request: handler(api, request)

    made.router.add_post("/api/v1/query", on(_query))
    made.router.add_get("/api/v0/stream", on(_stream), allow_head=False)
    made.router.add_get("/api/v1/data/{job}/{task}/{node}/{name}", on(_file))
    made.router.add_get("/metrics", on(_metrics))
    made.router.add_get("/healthz", on(_health))
    for path in ("/api/v1/query", "/api/v0/stream", "/api/v1/data/{job}/{task}/{node}/{name}"):
        made.router.add_options(path, on(_preflight))
    folder = Path(__file__).with_name("page")
    for path, (name, kind) in _PAGE.items():
        made.router.add_get(path, _static((folder / name).read_bytes(), kind))
    return made


def _outermost(api: Api) -> Any:
    """Every request goes through this: it is counted, logged, and answered also where its handler fails.

    An answer that fails half-way is cut off, so that nobody takes a part for the whole.
    """

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        api.requests[task] = None
        begin = time.monotonic()
        status = 500
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as refusal:
            status = refusal.status
            response = _plain(refusal.status, refusal.reason.lower(), dict(refusal.headers))
        except asyncio.CancelledError:
            status = 499  # the client went away, or the service ends
            if api.requests[task] is not None:
                _cut_off(request)
            raise
        except ConnectionError as gone:
            status = 499
            response = _plain(status, str(gone))
        except StoreUnavailable as error:
            logger.error("store: %s", error)
            status = 503
            response = _plain(status, "the store can't be read just now", {"Retry-After": "5"})
        except Exception:
            logger.exception("failed: %s %s", request.method, request.path)
            response = _plain(status, "internal error")
        finally:
            begun = api.requests.pop(task)
            route = request.match_info.route.resource
            path = route.canonical if route else "other"
            api.metrics.add("beehive_api_requests_total", path=path, status=str(status))
            # whoever supervises asks all the time
            level = logging.DEBUG if path in ("/healthz", "/metrics") and status == 200 else logging.INFO
            spent = time.monotonic() - begin
            logger.log(level, "%s %s %s %d %.3f s", request.remote, request.method, path, status, spent)
        if begun is None:
            return response
        if begun is not response:
            _cut_off(request)
        return begun

    return handle


def _headers(more: dict[str, str]) -> dict[str, str]:
    return {**_SECURITY, **_ANYONE, **more}


def _plain(status: int, text: str, more: dict[str, str] | None = None) -> web.Response:
    kept = {key: value for key, value in (more or {}).items() if key in ("Allow", "Retry-After")}
    return web.Response(status=status, text=f"error: {text}\n", headers=_headers(kept))


def _static(content: bytes, kind: str) -> Handler:
    async def answer_it(request: web.Request) -> web.StreamResponse:
        headers = _headers({"Cache-Control": "no-cache"})
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=headers)

    return answer_it


async def _preflight(api: Api, request: web.Request) -> web.StreamResponse:
    more = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type, Last-Event-ID",
        "Access-Control-Max-Age": "86400",
    }
    return web.Response(status=204, headers=_headers(more))


async def _query(api: Api, request: web.Request) -> web.StreamResponse:
    try:
        body = await asyncio.wait_for(_body(request), api.patience)
        query = queries.parse(body, time.time_ns())
    except asyncio.TimeoutError:
        return _plain(408, "the query did not come within a minute")
    except BadQuery as error:
        return _plain(400, str(error))
    if api.queries >= _MOST_QUERIES:
        return _plain(503, "too many queries at once", {"Retry-After": "5"})
    api.queries += 1
    api.metrics.set("beehive_api_queries", api.queries)
    try:
        return await _answer(api, request, query)
    finally:
        api.queries -= 1
        api.metrics.set("beehive_api_queries", api.queries)


async def _body(request: web.Request) -> bytes:
    """A request's body; of one that is too large no more than shows it."""
    body = b""
    while len(body) <= queries.LARGEST and (part := await request.content.read(queries.LARGEST + 1)):
        body += part
    return body


async def _answer(api: Api, request: web.Request, query: Query) -> web.StreamResponse:
    """Send the answer piece by piece: the next one is made when the client has taken the last."""
    more = {
        "Content-Type": "application/x-ndjson",
        "Content-Disposition": time.strftime('attachment; filename="beehive-%Y%m%dT%H%M%SZ.ndjson"', time.gmtime()),
        "Vary": "Accept-Encoding",
    }
    pieces = _counted(api, answer.pieces(api.store, query, _url(api, request)))
    if _takes_gzip(request.headers.get("Accept-Encoding", "")):
        more["Content-Encoding"] = "gzip"
        pieces = answer.compressed(pieces)
    response = web.StreamResponse(headers=_headers(more))
    spent = 0.0
    while True:
        piece, seconds = await _in_worker(api, lambda: _timed(lambda: next(pieces, None)))
        spent += seconds
        if piece is None:
            break
        if spent > api.deadline:
            logger.warning("a query took the store more than %g s: %s", api.deadline, query)
            if response.prepared:
                _cut_off(request)
                return response
            return _plain(503, "the query takes too long; ask for less")
        if piece:
            if not response.prepared:
                await response.prepare(request)
            await _taken(api, response.write(piece))
        elif request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client is gone")
    if not response.prepared:
        await response.prepare(request)
    await _taken(api, response.write_eof())
    return response


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` gives, and the seconds that it took."""
    begin = time.monotonic()
    found = work()
    return found, time.monotonic() - begin


async def _taken(api: Api, sending: Coroutine[Any, Any, None]) -> None:
    """Wait until a client has taken a piece of an answer.  Raises ConnectionError for one that is gone or waits."""
    task = asyncio.ensure_future(sending)
    try:
        done, _ = await asyncio.wait([task], timeout=api.patience)  # wait_for may overlook that it is cancelled
    finally:
        task.cancel()
    if not done:
        raise ConnectionAbortedError("the client takes nothing")
    task.result()


def _cut_off(request: web.Request) -> None:
    """End the connection before the answer's end.

    For HTTP/1.0, which proxies speak, the one is the other: there it is reset.
    """
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    if request.version < HttpVersion11 and connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    request.transport.abort()


def _counted(api: Api, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        api.metrics.add("beehive_api_rows_bytes_total", len(piece))
        yield piece


async def _in_worker(api: Api, work: Callable[[], T]) -> T:
    """What ``work`` gives, in a worker's thread; one that was begun is waited for, also by who gives up."""
    doing = asyncio.get_running_loop().run_in_executor(api.workers, work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _url(api: Api, request: web.Request) -> str:
    return api.configuration.url or f"{request.scheme}://{request.host}"


async def _stream(api: Api, request: web.Request) -> web.StreamResponse:
    if len(request.query_string) > queries.LARGEST:
        return _plain(400, f"filters are too long: at most {queries.LARGEST} bytes")
    if not api.configuration.brokers:
        return _plain(404, "this service has no stream")
    if len(api.hub.readers) >= _MOST_READERS:
        return _plain(503, "too many readers at once", {"Retry-After": "30"})
    given = dict(reversed(list(request.query.items())))
    reader = stream.Reader(Query(start=0, patterns=queries.parse_patterns(given)), _url(api, request))
    api.hub.add(reader)
    api.metrics.set("beehive_api_stream_readers", len(api.hub.readers))
    try:
        if not await _until(api.hub.bound.is_set, _STREAM_START):
            return _plain(503, "the broker can't be reached just now", {"Retry-After": "10"})
        more = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=_headers(more))
        await response.prepare(request)
        await response.write(b":begin\n\n")
        await _send_events(request, response, reader)
        if reader.dropped:
            api.metrics.add("beehive_api_stream_dropped_total")
            logger.warning("a reader of the stream was too slow: %s", request.remote)
            _cut_off(request)
        return response
    finally:
        api.hub.remove(reader)
        api.metrics.set("beehive_api_stream_readers", len(api.hub.readers))


async def _send_events(request: web.Request, response: web.StreamResponse, reader: stream.Reader) -> None:
    """Send what the reader waits for until it is dropped or gone."""
    while not reader.dropped:
        try:
            line = await asyncio.wait_for(reader.queue.get(), _KEEP_ALIVE)
        except asyncio.TimeoutError:
            await response.write(b":keepalive\n\n")
            continue
        events = []
        while line is not None:
            events.append(f"event: message\ndata: {reader.take(line)}\n\n")
            if reader.queue.empty() or len(events) == 1000:
                break
            line = reader.queue.get_nowait()
        sending = asyncio.ensure_future(response.write("".join(events).encode()))
        if not await _until(lambda sending=sending: sending.done() or reader.dropped, _PATIENCE):  # type: ignore[misc]
            reader.dropped = True
        if not sending.done():
            sending.cancel()
            return
        await sending


async def _until(condition: Callable[[], bool], deadline: float) -> bool:
    """Whether the condition comes true within so many seconds."""
    end = time.monotonic() + deadline
    pause = 0.0
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(pause)
        pause = min(pause + 0.002, 0.05)
    return True


async def _file(api: Api, request: web.Request) -> web.StreamResponse:
    asked = request.match_info
    parts = (asked["job"], asked["task"], asked["node"], asked["name"])
    descriptor = await _in_worker(api, lambda: uploads.find(api.configuration.uploads, *parts))
    if descriptor is None:
        return _plain(404, "there is no such file")
    with os.fdopen(descriptor, "rb", buffering=0) as data:
        kind = guess_type(asked["name"])[0] or ""
        more = {
            "Content-Type": kind if kind.startswith(("image/", "audio/", "video/")) else "application/octet-stream",
            "Content-Length": str(os.fstat(descriptor).st_size),
            "Cache-Control": "public, max-age=86400, immutable",
            **_FILE_SECURITY,
        }
        response = web.StreamResponse(headers=_headers(more))
        await response.prepare(request)
        left = int(more["Content-Length"]) if request.method == "GET" else 0
        while left:
            piece = await _in_worker(api, lambda left=left: data.read(min(left, _FILE_PIECE)))  # type: ignore[misc]
            if not piece:
                raise OSError("an uploaded file was made shorter while it was sent")
            left -= len(piece)
            await _taken(api, response.write(piece))
        await response.write_eof()
        return response


async def _metrics(api: Api, request: web.Request) -> web.StreamResponse:
    headers = _headers({"Content-Type": prometheus.CONTENT_TYPE})
    return web.Response(body=api.metrics.text().encode(), headers=headers)


async def _health(api: Api, request: web.Request) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    if api.examination is None or api.examination.done():  # one at a time, whoever asks
        api.examination = loop.run_in_executor(api.examiner, _examined, api.store)
    done, _ = await asyncio.wait([api.examination], timeout=_HEALTH)
    told = api.examination.result() if done else "does not answer"
    healthy = told == _WELL
    text = json.dumps({"healthy": healthy, "store": told}) + "\n"
    status = 200 if healthy else 503
    return web.Response(status=status, text=text, content_type="application/json", headers=_headers({}))


def _examined(store: Readable) -> str:
    try:
        store.check()
    except StoreUnavailable as error:
        logger.error("store: %s", error)
        return "can't be read"
    return _WELL


def read_configuration(environment: Any = os.environ) -> Configuration:
    """Raises InputError for what is wrong or missing."""
    given = from_environment(environment, TABLE)
    return Configuration(
        given["BEEHIVE_API_LISTEN"],
        given["BEEHIVE_API_URL"],
        given["BEEHIVE_STORE"],
        given["BEEHIVE_STORE_FOLDER"],
        given["BEEHIVE_UPLOADS"],
        given["WAGGLE_BROKER"],
        given["WAGGLE_SECRETS"],
    )


async def serve(configuration: Configuration) -> None:
    """Serve until SIGTERM."""
    password = read_password(configuration.secrets)
    store = PerThread(lambda: open_store(configuration.store, configuration.store_folder, password))
    loop = asyncio.get_running_loop()
    stop, ended = threading.Event(), asyncio.Event()

    def end() -> None:
        stop.set()
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    with ThreadPoolExecutor(_WORKERS, "query") as workers, ThreadPoolExecutor(1, "health") as examiner:
        api = Api(configuration, store, workers, examiner)
        if configuration.brokers:
            secrets = configuration.secrets
            brokers = [
                broker_client.by_certificate(
                    address, secrets / "ca-cert.pem", secrets / "api-cert.pem", secrets / "api-key.pem"
                )
                for address in configuration.brokers
            ]
            words = (brokers, api.hub, loop, stop)
            threading.Thread(target=stream.listen, args=words, name="stream", daemon=True).start()
        runner = web.AppRunner(application(api), access_log=None, keepalive_timeout=30)
        await runner.setup()
        try:
            host, port = configuration.listen
            try:
                await web.TCPSite(runner, host, port).start()
            except (OSError, socket.gaierror) as error:
                raise InputError(f"can't serve at {host}:{port}: {error.strerror or error}") from None
            logger.info("serving at %s:%d", host, port)
            await ended.wait()
            logger.info("told to end")
        finally:
            for request in api.requests:
                request.cancel()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(runner.cleanup(), 3)


def main() -> int:
    """The service."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
    asyncio.run(serve(read_configuration()))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

# SPDX-License-Identifier: Apache-2.0
"""A proxy on loopback in front of one region's Glance: counts calls, lets a test act at each, and injects faults.

The publisher is led to it by ``image_endpoint_override`` in clouds.yaml (:func:`lead_through`).  Bodies pass in
blocks and are never held.  Version discovery (what is not below ``/v2/``) passes and is not counted.
"""

import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

_BLOCK = 1 << 16
_TIMEOUT = 120.0  # seconds for each answer of Glance
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "trailer", "upgrade"}


@dataclass(frozen=True)
class Call:
    """A request of the publisher.  ``number`` counts from 1, since the proxy's start or :meth:`Proxy.reset`."""

    number: int
    method: str
    path: str  # with the query

    @property
    def changes(self) -> bool:
        return self.method not in ("GET", "HEAD")


# When a hook is called: nothing was forwarded; half of the request's body was (where it has one); Glance has
# answered, and the answer was not passed on.
Moment = Literal["before", "half", "after"]


class DropCall(Exception):
    """Raised by a hook: the connection is cut, and at "before" and "half" Glance gets no (more) of the call."""


@dataclass(frozen=True)
class Answer:
    """Fault: answered by the proxy, not forwarded."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """Fault: the connection is cut at half of the body (``of`` "request" or "response"), or where it has none."""

    of: Literal["request", "response"] = "request"


@dataclass(frozen=True)
class Lost:
    """Fault: the call is done, and its answer is lost."""


@dataclass(frozen=True)
class Flip:
    """Fault: one bit of the byte at ``offset`` of the body is turned over on the way."""

    offset: int = 0
    of: Literal["request", "response"] = "request"


@dataclass(frozen=True)
class Slow:
    """Fault: the call waits for so many seconds before it is forwarded."""

    seconds: float


@dataclass(frozen=True)
class Rewrite:
    """Fault: the answer's JSON (held in memory) is replaced by what ``change`` makes of it; bytes pass as they are."""

    change: Callable[[Any], Any]
    content_type: str = "application/json"


Fault = Answer | Cut | Lost | Flip | Slow | Rewrite

HTML = Rewrite(lambda listing: b"<html><body><h1>We are being repaired</h1></body></html>", "text/html")
EMPTY_LISTING = Rewrite(lambda listing: {**listing, "images": []})
HALF_A_LISTING = Rewrite(lambda listing: {**listing, "images": listing["images"][: len(listing["images"]) // 2]})
TRUNCATED = Rewrite(lambda listing: json.dumps(listing).encode()[:-20])  # not JSON any more


@dataclass
class _Rule:
    fault: Fault
    method: str
    path: re.Pattern[str]
    skip: int
    times: int


class Script:
    """What is to happen at which call; ``calls`` are those counted so far."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.hook: Callable[[Call, Moment], object] | None = None
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def inject(self, fault: Fault, method: str = "", path: str = "", *, skip: int = 0, times: int = 1) -> None:
        """Do ``fault`` to ``times`` calls of this method ("": any) whose path matches, after the first ``skip``."""
        with self._lock:
            self._rules.append(_Rule(fault, method, re.compile(path), skip, times))

    def reset(self) -> None:
        """Count from 1 again; no hook, no faults."""
        with self._lock:
            self.calls, self.hook, self._rules = [], None, []

    def arrived(self, method: str, path: str) -> tuple[Call, Fault | None]:
        """Count a call; gives what is to happen to it."""
        with self._lock:
            call = Call(len(self.calls) + 1, method, path)
            if not path.startswith("/v2/"):
                return Call(0, method, path), None
            self.calls.append(call)
            for rule in self._rules:
                if rule.method in ("", method) and rule.path.search(path) and rule.times > 0:
                    if rule.skip > 0:
                        rule.skip -= 1
                        continue
                    rule.times -= 1
                    return call, rule.fault
            return call, None

    def tell(self, call: Call, moment: Moment) -> None:
        if self.hook is not None and call.number:
            self.hook(call, moment)


class Proxy(Script):
    """The proxy of one region; ``url`` is what to lead the publisher to."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.upstream = urlsplit(upstream)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def proxies(endpoints: Mapping[str, str]) -> Iterator[dict[str, Proxy]]:
    """A proxy for each region of ``endpoints`` (region -> URL of its Glance)."""
    made: dict[str, Proxy] = {}
    try:
        for region, url in endpoints.items():
            made[region] = Proxy(url)
        yield made
    finally:
        for proxy in made.values():
            proxy.close()


def lead_through(clouds_yaml: Path, made: Mapping[str, Proxy], target: Path) -> Path:
    """Write ``target``: the clouds.yaml with the images of the proxies' regions asked for through them."""
    document = yaml.safe_load(clouds_yaml.read_text())
    for entry in document["clouds"].values():
        if entry["region_name"] in made:
            entry["image_endpoint_override"] = made[entry["region_name"]].url
    target.write_text(yaml.safe_dump(document))
    return target


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A publisher that was killed is no error of the proxy's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        proxy = self.server.proxy
        call, fault = proxy.arrived(self.command, self.path)
        try:
            self._tell(call, "before")
            if isinstance(fault, Slow):
                time.sleep(fault.seconds)
            if isinstance(fault, Answer):
                for _ in self._body():
                    pass
                self._answer(fault.status, fault.headers, fault.body)
            else:
                self._forward(call, fault)
        except (DropCall, OSError, http.client.HTTPException):
            self._cut()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _forward(self, call: Call, fault: Fault | None) -> None:
        upstream = self.server.proxy.upstream
        glance = http.client.HTTPConnection(str(upstream.hostname), upstream.port, timeout=_TIMEOUT)
        try:
            # The Host stays the proxy's, so that Glance's own links lead through it.
            glance.putrequest(
                self.command, upstream.path.rstrip("/") + self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    glance.putheader(name, value)
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
            if chunked:
                glance.putheader("Transfer-Encoding", "chunked")
            glance.endheaders()
            self._send_body(glance, call, fault, chunked=chunked)
            response = glance.getresponse()
            self._pass_on(response, call, fault)
        finally:
            glance.close()

    def _send_body(self, glance: http.client.HTTPConnection, call: Call, fault: Fault | None, *, chunked: bool) -> None:
        half = int(self.headers.get("Content-Length") or 0) // 2
        sent, told = 0, False
        cut = isinstance(fault, Cut) and fault.of == "request"
        for block in self._body():
            if isinstance(fault, Flip) and fault.of == "request":
                block = _flipped(block, fault.offset - sent)
            if not told and sent + len(block) > half:
                told = True
                first = block[: max(half - sent, 0)]
                _write(glance, first, chunked=chunked)
                self._tell(call, "half")
                if cut:
                    raise DropCall
                block = block[len(first) :]
                sent += len(first)
            _write(glance, block, chunked=chunked)
            sent += len(block)
        if cut:
            raise DropCall
        if chunked:
            glance.send(b"0\r\n\r\n")

    def _pass_on(self, response: http.client.HTTPResponse, call: Call, fault: Fault | None) -> None:
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        if isinstance(fault, Rewrite):
            made = fault.change(json.loads(response.read()))
            self._tell(call, "after")
            body = made if isinstance(made, bytes) else json.dumps(made).encode()
            self._answer(response.status, {**headers, "Content-Type": fault.content_type}, body)
            return
        self._tell(call, "after")
        if isinstance(fault, Lost):
            raise DropCall
        length = response.length
        bodiless = self.command == "HEAD" or response.status in (204, 304)
        self.send_response_only(response.status, response.reason)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is None and not bodiless:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        passed = 0
        while block := response.read1(_BLOCK):
            if isinstance(fault, Flip) and fault.of == "response":
                block = _flipped(block, fault.offset - passed)
            if isinstance(fault, Cut) and fault.of == "response" and passed + len(block) > (length or 0) // 2:
                self.wfile.write(block[: max((length or 0) // 2 - passed, 0)])
                raise DropCall
            self.wfile.write(block if length is not None else b"%x\r\n%b\r\n" % (len(block), block))
            passed += len(block)
        if length is None and not bodiless:
            self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> Iterator[bytes]:
        """The request's body in blocks; a publisher that goes away in mid-body ends it with DropCall."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while (left := int(self.rfile.readline().partition(b";")[0] or b"0", 16)) > 0:
                yield from self._read(left)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._read(int(self.headers.get("Content-Length") or 0))

    def _read(self, left: int) -> Iterator[bytes]:
        while left:
            block = self.rfile.read1(min(left, _BLOCK))
            if not block:
                raise DropCall
            left -= len(block)
            yield block

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _tell(self, call: Call, moment: Moment) -> None:
        self.server.proxy.tell(call, moment)

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)


def _write(glance: http.client.HTTPConnection, block: bytes, *, chunked: bool) -> None:
    if block:
        glance.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)


def _flipped(block: bytes, offset: int) -> bytes:
    if not 0 <= offset < len(block):
        return block
    return block[:offset] + bytes([block[offset] ^ 1]) + block[offset + 1 :]

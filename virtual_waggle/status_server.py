# SPDX-License-Identifier: Apache-2.0
"""``/metrics`` and ``/healthz`` of a service whose own work is something else: HTTP in a thread beside it."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from groundwork.errors import InputError
from virtual_waggle import prometheus
from virtual_waggle.prometheus import Metrics

OK = "ok"  # what a part of a service says that is well
_PATIENCE = 10.0  # seconds for a client to say what it wants


def serve(listen: tuple[str, int], metrics: Metrics, parts: Callable[[], Mapping[str, str]]) -> ThreadingHTTPServer:
    """Serve until the process ends.  ``parts``: what each part of the service says of itself, OK or what is wrong."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, prometheus.CONTENT_TYPE, metrics.text())
            elif self.path == "/healthz":
                said = parts()
                healthy = all(text == OK for text in said.values())
                text = json.dumps({"healthy": healthy, **said}) + "\n"
                self._answer(200 if healthy else 503, "application/json", text)
            else:
                self._answer(404, "text/plain", "error: there are /metrics and /healthz\n")

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Whoever asks every few seconds need not be told of."""

    try:
        server = ThreadingHTTPServer(listen, Handler)
    except OSError as error:
        raise InputError(f"can't serve at {listen[0]}:{listen[1]}: {error.strerror or error}") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    return server

# SPDX-License-Identifier: Apache-2.0
"""An answer by HTTP for services that have none of their own: 200 while they work, else 503."""

import http.server
import threading
from collections.abc import Callable


def serve(port: int, works: Callable[[], bool]) -> None:
    """Answer on this port of loopback, in a thread, until the process ends."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if works() else 503)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass  # it is asked often

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()

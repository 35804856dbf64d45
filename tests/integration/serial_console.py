# SPDX-License-Identifier: Apache-2.0
"""A person at a machine's serial console."""

import re
import socket
import time
from pathlib import Path

from groundwork import process

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")


class SerialConsole:
    """Reads and types at the Unix socket that QEMU made."""

    def __init__(self, path: Path) -> None:
        self._stream = socket.socket(socket.AF_UNIX)
        for _ in process.poll_until(10):
            if path.exists():
                break
        self._stream.connect(str(path))
        self._unread = ""

    def wait_for(self, pattern: str, seconds: float) -> str:
        """Read until ``pattern`` (a regular expression) is there; what was read, that included."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self._unread)) is None:
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} within {seconds} s; the console's end: {self._unread[-2000:]}"
            self._stream.settimeout(left)
            try:
                more = self._stream.recv(65536)
            except TimeoutError:
                continue
            assert more, "the console was closed"
            self._unread = _TERMINAL_CODES.sub("", self._unread + more.decode(errors="replace"))
        said, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return said

    def ask(self, command: str, seconds: float) -> tuple[int, str]:
        """Run a command in the shell that stands there: its exit status and what it printed."""
        # The echo of what is typed differs from what it prints.
        self._stream.sendall(f"echo 'be''gin'; {command}; echo \"en\"\"d=$?\"\n".encode())
        self.wait_for(r"begin\n", seconds)
        said = self.wait_for(r"end=\d+\n", seconds)
        body, _, status = said.rstrip().rpartition("end=")
        return int(status), body

    def close(self) -> None:
        """Leave it."""
        self._stream.close()

# SPDX-License-Identifier: Apache-2.0
"""OpenStack's metadata service for one machine: QEMU runs this program for each connection, at its standard input.

Usage: metadata_service.py FOLDER
"""

import sys
from pathlib import Path


def answer(folder: Path, path: str) -> bytes:
    """The response to a request: a file, a folder's names, or 404."""
    there = (folder / path.strip("/")).resolve()
    status, body = "404 Not Found", b""
    if there.is_relative_to(folder) and there.is_file():
        status, body = "200 OK", there.read_bytes()
    elif there.is_relative_to(folder) and there.is_dir() and there != folder:
        status, body = "200 OK", "\n".join(sorted(entry.name for entry in there.iterdir())).encode()
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


if __name__ == "__main__":
    _, asked, _ = sys.stdin.buffer.readline().split()
    while sys.stdin.buffer.readline().strip():
        pass
    sys.stdout.buffer.write(answer(Path(sys.argv[1]).resolve(), asked.decode()))
    sys.stdout.buffer.flush()

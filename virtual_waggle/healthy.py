# SPDX-License-Identifier: Apache-2.0
"""Health checks of our services: ``python3 -m virtual_waggle.healthy VARIABLE [PATH]``.

VARIABLE is that of the address (host:port) where the service listens.  Without PATH it is enough that it does: the
kernel is asked, for a connection that says nothing would be a line in the service's log.  With one it must answer an
HTTP request for it with 200.  Exit status 0 or 1; nothing but the standard library, for it runs often.
"""

import http.client
import os
import sys
from pathlib import Path

_PATIENCE = 8.0  # seconds
_LISTEN = "0A"  # a state in /proc/net/tcp


def main(variable: str, path: str = "") -> int:
    """0 where the service is well."""
    host, _, port = os.environ[variable].rpartition(":")
    if not path:
        tables = [Path("/proc/net", name) for name in ("tcp", "tcp6")]
        if any(is_listened_at(int(port), table.read_text()) for table in tables if table.exists()):
            return 0
        print(f"nothing listens at port {port}", file=sys.stderr)
        return 1
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=_PATIENCE)
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port}: {error}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"{host}:{port}{path}: {status}", file=sys.stderr)
    return int(status != 200)


def is_listened_at(port: int, table: str) -> bool:
    """Whether a text like /proc/net/tcp has a socket that listens at this port."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[1].endswith(f":{port:04X}") and row[3] == _LISTEN for row in rows)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Health checks of our services: ``python3 -m virtual_waggle.healthy VARIABLE [PATH]``.

VARIABLE is that of the address (host:port) where the service listens.  Without PATH it is enough that it does; with
one it must answer an HTTP request for it with 200.  Exit status 0 or 1; nothing but the standard library, for it runs
often.
"""

import http.client
import os
import socket
import sys

_PATIENCE = 8.0  # seconds


def main(variable: str, path: str = "") -> int:
    """0 where the service is well."""
    host, _, port = os.environ[variable].rpartition(":")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
    try:
        if not path:
            socket.create_connection((host, int(port)), _PATIENCE).close()
            return 0
        connection = http.client.HTTPConnection(host, int(port), timeout=_PATIENCE)
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port}: {error}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"{host}:{port}{path}: {status}", file=sys.stderr)
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

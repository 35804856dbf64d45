# SPDX-License-Identifier: Apache-2.0
"""Servers of Nova's fake driver that answer: each ACTIVE one with a floating IP gets a real sshd on that address.

The address is put on loopback for as long as the server stands (this takes root).  The sshd has the host key, and lets
in the keys, that the server's user data tell, as cloud-init would see to.
"""

import base64
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from groundwork import process
from node_automation.host_keys import HostKey
from tests.integration import sshd
from tests.integration.sshd import Node

_LOOK = 0.5  # seconds


class Booted:
    """The nodes that answer just now, by their names."""

    def __init__(self, program: Path, admins: Sequence[Any]) -> None:
        self.nodes: dict[str, Node] = {}
        self.silent = False  # from now on no server boots
        self._program = program
        self._admins = admins
        self._stacks: dict[str, contextlib.ExitStack] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._end.wait(_LOOK):
                for admin in self._admins:
                    with contextlib.suppress(Exception):  # a site that is busy is asked again
                        self._look(admin)
        finally:
            for stack in self._stacks.values():
                stack.close()

    def _look(self, admin: Any) -> None:
        answer = admin.compute.get("/servers/detail?all_tenants=1", microversion="2.3")
        site = admin.config.region_name
        standing = set()
        for row in answer.json()["servers"]:
            address = next(
                (
                    entry["addr"]
                    for entries in row["addresses"].values()
                    for entry in entries
                    if entry.get("OS-EXT-IPS:type") == "floating"
                ),
                None,
            )
            key = f"{site} {row['id']} {address}"
            if row["status"] == "ACTIVE" and address is not None and row.get("OS-EXT-SRV-ATTR:user_data"):
                standing.add(key)
                if key not in self._stacks and not self.silent:
                    self._boot(key, row, address)
        for key in [key for key in self._stacks if key.startswith(f"{site} ") and key not in standing]:
            self._stacks.pop(key).close()

    def _boot(self, key: str, row: dict[str, Any], address: str) -> None:
        told = yaml.safe_load(base64.b64decode(row["OS-EXT-SRV-ATTR:user_data"]))
        given = HostKey(told["ssh_keys"]["ed25519_public"], told["ssh_keys"]["ed25519_private"])
        stack = contextlib.ExitStack()
        process.run(["ip", "address", "replace", f"{address}/32", "dev", "lo"])
        stack.callback(process.run, ["ip", "address", "delete", f"{address}/32", "dev", "lo"], check=False)
        authorized = "\n".join(told["ssh_authorized_keys"])
        node = stack.enter_context(sshd.running(self._program, authorized, given, address=address, port=22))
        stack.callback(self.nodes.pop, row["name"], None)
        self._stacks[key] = stack
        self.nodes[row["name"]] = node


@contextlib.contextmanager
def booting(program: Path, admins: Sequence[Any]) -> Iterator[Booted]:
    """Boot servers of these sites until the block ends."""
    booted = Booted(program, admins)
    try:
        yield booted
    finally:
        booted.close()

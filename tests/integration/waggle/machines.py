# SPDX-License-Identifier: Apache-2.0
"""Machines of a network of their own: network namespaces on a bridge, which this machine reaches too.  Root's alone."""

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from groundwork import process


@dataclass(frozen=True)
class Machine:
    """A network namespace with one address; files are those of this machine.  ``cable`` is a port of ``lan``."""

    namespace: str
    address: str
    lan: str
    cable: str

    def words(self, *command: str | Path) -> list[str | Path]:
        """A command as it is run there."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def cut_off(self) -> None:
        """Pull its cable: nobody is told."""
        _ip("-n", self.lan, "link", "set", self.cable, "down")

    def connect(self) -> None:
        """Plug it in again."""
        _ip("-n", self.lan, "link", "set", self.cable, "up")

    def listens_at(self, port: int) -> bool:
        """Whether something there does."""
        return bool(process.run(self.words("ss", "-Hltn", f"sport = :{port}"), timeout=30).strip())

    def kill(self) -> None:
        """End all that runs there as a power cut would."""
        for _ in process.poll_until(30, 0.1):
            pids = process.run(["ip", "netns", "pids", self.namespace], timeout=30).split()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        raise RuntimeError(f"processes are left in {self.namespace}")


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Machine]]:
    """So many machines that reach each other.  Raises process.ProcessError where namespaces can't be made.

    The bridge is in a namespace too: this machine's rules for forwarding don't count there.
    """
    mark = f"wv{os.getpid()}"
    net = f"10.{random.randrange(201, 250)}.{random.randrange(256)}"  # noqa: S311
    lan = f"{mark}-lan"
    found = [Machine(f"{mark}-{number}", f"{net}.{number}", lan, f"m{number}") for number in range(1, count + 1)]
    with contextlib.ExitStack() as stack:
        _namespace(stack, lan)
        _ip("-n", lan, "link", "add", "lan", "type", "bridge")
        _ip("-n", lan, "link", "set", "lan", "up")
        _ip("link", "add", mark, "type", "veth", "peer", "name", "host", "netns", lan)
        _connected(lan, "host")
        _ip("address", "add", f"{net}.254/24", "dev", mark)
        _ip("link", "set", mark, "up")
        for machine in found:
            _namespace(stack, machine.namespace)
            stack.callback(machine.kill)
            _ip("-n", lan, "link", "add", machine.cable, "type", "veth", "peer", "name", "eth0")
            _ip("-n", lan, "link", "set", "eth0", "netns", machine.namespace)
            _connected(lan, machine.cable)
            _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", machine.namespace, "link", "set", device, "up")
        yield found


def _namespace(stack: contextlib.ExitStack, name: str) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)


def _connected(namespace: str, port: str) -> None:
    _ip("-n", namespace, "link", "set", port, "master", "lan", "up")


def _ip(*words: str) -> None:
    process.run(["ip", *words], timeout=30)

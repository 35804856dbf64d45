# SPDX-License-Identifier: Apache-2.0
"""Who publishes: a name for this process, by which another run on this machine can tell whether it still lives."""

import os
import socket
from functools import cache
from pathlib import Path


def identity() -> str:
    """This process, so that another run on this machine can tell whether it still lives."""
    return f"{_machine()}:{os.getpid()}:{_start_time(os.getpid())}"


def lives(publisher: str) -> bool | None:
    """Whether a publisher's process lives; None where it can't be judged from this machine."""
    machine, _, process = publisher.rpartition(":")[0].rpartition(":")
    if machine != _machine() or not process.isdigit():
        return None
    return _start_time(int(process)) == publisher.rpartition(":")[2]


@cache
def _machine() -> str:
    """This host, this boot and this container: process ids mean nothing elsewhere."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    processes = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{socket.gethostname()}/{boot}/{processes}"


def _start_time(process: int) -> str:
    """When a process began, in the kernel's ticks; "" where there is none."""
    try:
        # The program's name, in parentheses, may hold anything.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""

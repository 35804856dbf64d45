# SPDX-License-Identifier: Apache-2.0
"""Running the project's commands as a user does, and looking for what they might leave behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(name: str) -> Path:
    """The full path of one of our commands."""
    return Path(sys.executable).with_name(name)


def start(name: str, *words: str | Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start one of our commands."""
    return subprocess.Popen(
        [command(name), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", timeout: float = 1800) -> Ran:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return Ran(process.returncode, out, err)


def run(name: str, *words: str | Path, env: Mapping[str, str] | None = None, timeout: float = 1800) -> Ran:
    """Run one of our commands to its end."""
    return finish(start(name, *words, env=env), timeout)


def watch_memory(process: "subprocess.Popen[Any]") -> int:
    """The most memory, in bytes, that a process had resident at once until it ended; it must not print much."""
    most = 0
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            most = max(most, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10)
        time.sleep(0.02)
    return most


def processes_that_name(path: Path) -> list[str]:
    """The command lines of all running processes that name something below ``path``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            root = os.readlink(folder / "root")
        except OSError:
            continue
        if int(folder.name) != os.getpid() and (str(path).encode() in b" ".join(words) or str(path) in root):
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def mounts_below(path: Path) -> list[str]:
    """The mount points below ``path``, as the host sees them."""
    with open("/proc/self/mountinfo") as stream:
        return [line.split()[4] for line in stream if line.split()[4].startswith(str(path))]


def loop_devices() -> str:
    """The loop devices in use."""
    return subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True).stdout

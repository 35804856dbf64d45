# SPDX-License-Identifier: Apache-2.0
"""``python -m image_builder.identity COMMAND...``: run as root in user, mount and process namespaces of its own.

Every user is itself in the new namespace (util-linux's unshare can't do that without entries in /etc/subuid).  What
needs it is binfmt_misc, of which a user namespace has one of its own.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# Linux: include/uapi/linux/sched.h, include/uapi/linux/prctl.h, include/uapi/linux/mount.h
_NEW_MOUNTS, _NEW_USERS, _NEW_PROCESSES = 0x00020000, 0x10000000, 0x20000000
_SET_DEATH_SIGNAL, _SIGKILL = 1, 9
_RECURSIVE, _PRIVATE = 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def command(words: Sequence[str | Path]) -> list[str | Path]:
    """The command line that runs ``words`` in such namespaces; it ends them all when it is killed."""
    return [sys.executable, "-m", "image_builder.identity", *words]


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _write_maps(pid: int) -> None:
    for kind in ("uid_map", "gid_map"):
        rows = [line.split() for line in Path("/proc/self", kind).read_text().splitlines()]
        Path(f"/proc/{pid}/{kind}").write_text("".join(f"{first} {first} {count}\n" for first, _, count in rows))


def _enter() -> None:
    """Move this process to the new namespaces; its next child is the first process there."""
    me = os.getpid()
    reading, writing = os.pipe()
    writer = os.fork()
    if writer == 0:  # it stays outside, where it may write the maps
        try:
            os.close(writing)
            os.read(reading, 1)
            _write_maps(me)
        finally:
            os._exit(0)
    _call("unshare", _NEW_USERS | _NEW_MOUNTS | _NEW_PROCESSES)
    os.write(writing, b"x")
    os.waitpid(writer, 0)


def main(words: Sequence[str]) -> NoReturn:
    """Run the command and end as it does."""
    _enter()
    child = os.fork()
    if child == 0:
        _call("prctl", _SET_DEATH_SIGNAL, _SIGKILL)
        _call("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
        _call("mount", b"proc", b"/proc", b"proc", 0, None)
        os.execvp(words[0], list(words))  # noqa: S606 - nothing of it is a shell's
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) % 256)


if __name__ == "__main__":
    main(sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""The only place that starts a subprocess.

Every child gets a process group of its own, and the kernel sends it SIGKILL when the thread that started it
ends, so that neither Ctrl-C nor ``kill -9`` leaves one running.
"""

import contextlib
import ctypes
import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from groundwork.errors import InputError, SageError

logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_running: "set[subprocess.Popen[bytes]]" = set()

# Program -> the Debian and Ubuntu package that holds it, for the hint when it is missing.
PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "debootstrap": "debootstrap",
    "debugfs": "e2fsprogs",
    "docker": "docker.io",
    "dpkg-deb": "dpkg",
    "dpkg-query": "dpkg",
    "dumpe2fs": "e2fsprogs",
    "epmd": "erlang-base",
    "fstrim": "util-linux",
    "genisoimage": "genisoimage",
    "ip": "iproute2",
    "libvirtd": "libvirt-daemon",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nft": "nftables",
    "pkg-config": "pkg-config",
    "setpriv": "util-linux",
    "prlimit": "util-linux",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-img": "qemu-utils",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    "rabbitmq-server": "rabbitmq-server",
    "sfdisk": "fdisk",
    "ssh-keygen": "openssh-client",
    "sudo": "sudo",
    "unshare": "util-linux",
}


class ProcessError(SageError):
    """A program ended with an error, or not within its time."""

    def __init__(self, message: str, *, returncode: int | None, output: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.returncode = returncode
        self.output = output


def require(*programs: str) -> None:
    """Raise InputError for the programs that are not on PATH, naming the packages that hold them."""
    missing = [name for name in programs if find(name) is None]
    if missing:
        packages = sorted({PACKAGES.get(name, name) for name in missing})
        raise InputError(
            f"missing system program{'s' if len(missing) > 1 else ''}: {', '.join(missing)}",
            hint=f"install with: apt-get install {' '.join(packages)}",
        )


def find(program: str) -> str | None:
    """The program's full path.  The sbin folders count also where an ordinary user's PATH leaves them out."""
    return shutil.which(program, path=search_path())


def search_path() -> str:
    """PATH with the sbin folders at its end."""
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def start(
    command: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    inherit: bool = True,
    outlive: bool = False,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own and return at once.

    ``env`` is added to this program's environment, or replaces it where ``inherit`` is false.  With ``outlive``
    the child goes on when this program ends (a service).
    """
    argv = [str(word) for word in command]
    require(argv[0])
    logger.debug("starting %s", shlex.join(argv))
    if not outlive:
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**(os.environ if inherit else {}), "PATH": search_path(), **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], *, patience: float = 10.0) -> int:
    """End a started process and its group: SIGTERM, then SIGKILL after ``patience`` seconds."""
    if process.poll() is None:
        signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    signal_group(process, signal.SIGKILL)
    return process.wait()


def run(
    command: Sequence[str | Path],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = True,
    cwd: Path | None = None,
    timeout: float | None = None,
    log: IO[bytes] | None = None,
    check: bool = True,
) -> str:
    """Run ``command`` to its end and return what it printed to standard output.

    With ``log`` both its outputs go to that file instead and the result is empty.  ``timeout`` is in seconds.
    Raises ProcessError when the exit status is not 0 (unless ``check`` is false) or the time is over; whatever
    way this function is left, the process and its children are gone.
    """
    process = start(
        command,
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=log if log is not None else subprocess.PIPE,
        stderr=subprocess.STDOUT if log is not None else subprocess.PIPE,
        env=env,
        inherit=inherit,
        cwd=cwd,
    )
    name = Path(str(command[0])).name
    _running.add(process)
    try:
        out, err = process.communicate(input, timeout)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{name} did not end within {timeout:g} s", returncode=None) from None
    finally:
        stop(process)
        _running.discard(process)
    stdout = (out or b"").decode(errors="replace")
    stderr = (err or b"").decode(errors="replace")
    if check and process.returncode != 0:
        last = [line for line in (stderr or stdout).strip().splitlines() if line.strip()][-3:]
        raise ProcessError(
            f"{name} failed with exit status {process.returncode}" + (": " + " / ".join(last) if last else ""),
            returncode=process.returncode,
            output=stdout + stderr,
        )
    return stdout


def run_to_files(
    command: Sequence[str | Path],
    *,
    input: bytes,
    stdout: IO[bytes],
    stderr: IO[bytes],
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stop_when: threading.Event | None = None,
) -> int | None:
    """Run ``command`` with its outputs going to files; its exit status, negative for a signal's.

    None: it did not end within ``timeout`` seconds, or before ``stop_when`` was set.  ``input`` must fit into a pipe
    (64 KiB), for the command need not read it.  Whatever way this function is left, the process and its children are
    gone.
    """
    process = start(command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(input)
        for _ in poll_until(timeout, 0.1):
            code = process.poll()
            if code is not None or (stop_when is not None and stop_when.is_set()):
                return code
        return None
    finally:
        stop(process)


def adopt_orphans() -> None:
    """From now on the children of our children become ours where those end before them: a supervisor's duty."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def reap_orphans(ours: Collection["subprocess.Popen[bytes]"]) -> None:
    """Take note of the end of adopted children; those started by this program are left to their own ``poll``."""
    own = {process.pid for process in ours}
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in own:
                break
            os.waitpid(ended.si_pid, os.WNOHANG)


def children(pid: int) -> list[int]:
    """The processes whose parent is ``pid``, those that have ended and were not waited for among them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))) and int(fields[1]) == pid:
            found.append(int(folder.name))
    return found


def identity(pid: int) -> str | None:
    """What tells this process from a later one of the same number; None where there is none, or it has ended."""
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{fields[19]}"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third on: state, parent, ...; start time is the 20th of these."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None


def stop_all() -> None:
    """End what other threads are running; their :func:`run` then raises ProcessError."""
    for process in list(_running):
        stop(process)


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a started process and all of its group, if they are still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def poll_until(deadline_seconds: float, interval: float = 0.2) -> Iterator[float]:
    """Yield the seconds gone by, every ``interval`` seconds, until the deadline is over."""
    begin = time.monotonic()
    while (elapsed := time.monotonic() - begin) < deadline_seconds:
        yield elapsed
        time.sleep(interval)

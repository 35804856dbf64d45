# SPDX-License-Identifier: Apache-2.0
"""Services as daemons, under uwsgi or as processes of their own: started, found again, stopped.

There are no pid files.  A service is known by its command line, whose last words name the service's own folder: what
runs is read from ``/proc``, so nothing is ever stale, and a process is signalled through a pidfd that was opened
before its command line was looked at, so no foreign process is ever hit.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundwork import files, process
from groundwork.errors import InputError, SageError

HOOKS = Path(__file__).with_name("hooks")

_READY_TIMEOUT = 180.0  # seconds until a started service answers; 3 s on two idle cores, 15 s where four work beside
_STOP_PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL
_MARK = "local-chameleon.service="  # the word of the command line by which a service is known
_CONTENT = "local-chameleon.content="
_OURS = "local_chameleon."


@dataclass(frozen=True)
class Service:
    """One WSGI application, or one script.

    ``folder``, in the state folder, has the service's name and holds its configuration; ``application`` is a module
    that uwsgi serves, the name of a script among the hooks, or a module of this package that is a program; ``probe`` is
    a path below its port, which answers with one of ``answers`` (HTTP status codes) once it works.  Services of
    a lower ``rank`` must work before it is started.
    """

    folder: Path
    port: int
    application: str
    environ: Mapping[str, str]
    probe: str
    answers: tuple[int, ...]
    threads: int = 8
    rank: int = 0

    @property
    def name(self) -> str:
        """``keystone``, ``glance-chi_uc``."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """What the service prints, and uwsgi."""
        return self.folder / "service.log"


@dataclass(frozen=True)
class Running:
    """A service's process: ``since`` in seconds since the epoch, ``memory`` (resident) in bytes."""

    name: str
    pid: int
    content: str
    since: float
    memory: int


def content_digest(service: Service, environment: Path) -> str:
    """Digest of all that makes the service what it is; one that runs with another digest is started anew."""
    texts = [path.read_text() for path in sorted(service.folder.iterdir()) if path.suffix in (".conf", ".yaml")]
    hooks = [path.read_text() for path in sorted(HOOKS.glob("*.py"))]
    if service.application.startswith(_OURS):
        hooks = [HOOKS.with_name(service.application.removeprefix(_OURS) + ".py").read_text()]
    environ = [f"{name}={value}" for name, value in _environ(service).items()]
    return files.digest_text(*_program(service, environment), *environ, *texts, *hooks)[:16]


def command(service: Service, environment: Path) -> list[str]:
    """The command line.  Nothing secret is in it, and by its last two words the process is known."""
    return [
        *_program(service, environment),
        # what uwsgi takes for words without a meaning; scripts look at none of theirs
        *("--set-ph", _CONTENT + content_digest(service, environment)),
        *("--set-ph", _MARK + str(service.folder)),
    ]


def scan(state_dir: Path) -> list[Running]:
    """All services' processes of this state folder, also those of profiles and versions that are not known here."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (words := parse_command_line(_command_line(int(entry.name)), state_dir)):
            with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                found.append(_running(int(entry.name), *words))
    return sorted(found, key=lambda running: (running.name, running.pid))


def parse_command_line(raw: bytes, state_dir: Path) -> tuple[str, str] | None:
    """Name and content digest of the service of this state folder that has this command line (words ended by NUL)."""
    words = raw.decode(errors="replace").split("\0")[:-1]
    if len(words) < 5 or not words[-1].startswith(_MARK) or not words[-3].startswith(_CONTENT):
        return None
    folder = Path(words[-1].removeprefix(_MARK))
    return (folder.name, words[-3].removeprefix(_CONTENT)) if folder.parent == state_dir else None


def parse_stat(text: str) -> int:
    """The start time, in clock ticks since boot, in a ``/proc/<pid>/stat``; the name in it may hold anything."""
    return int(text.rpartition(")")[2].split()[19])


def start(service: Service, environment: Path) -> subprocess.Popen[bytes]:
    """Start the service in the background; it outlives this program.  Its last log is kept as ``.1``."""
    if service.log.exists():
        service.log.replace(service.log.with_name(service.log.name + ".1"))
    descriptor = os.open(service.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(descriptor, "ab") as log:
        return process.start(
            command(service, environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environ(service),
            inherit=False,  # no OS_* of the user's may reach it
            cwd=service.folder,
            outlive=True,
        )


def wait_ready(service: Service, started: subprocess.Popen[bytes]) -> None:
    """Wait until the service answers.  Raises SageError with the end of its log when it ends or takes too long."""
    for _ in process.poll_until(_READY_TIMEOUT, 0.05):
        if started.poll() is not None:
            raise failed(service, f"ended with exit status {started.returncode} when it was started")
        if answers(service):
            return
    raise failed(service, f"did not answer within {_READY_TIMEOUT:g} s")


def answers(service: Service, timeout: float = 5.0) -> bool:
    """Whether the service answers its probe as a working one does."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}{service.probe}", headers={"X-Auth-Token": "none"}
    )
    try:
        with _opener.open(request, timeout=timeout) as response:
            status = int(response.status)
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError:
        return False
    return status in service.answers


def failed(service: Service, what: str) -> SageError:
    """The error for a service, with the end of its log."""
    end = files.tail(service.log, 15)
    return SageError(f"{service.name} {what}" + (f"; its log ends:\n{end}" if end else ""), hint=f"see {service.log}")


def stop(state_dir: Path, every: Iterable[Running]) -> None:
    """End these processes, SIGTERM first, and wait until they are gone.

    Raises SageError for one that belongs to another user or does not end.
    """
    names: dict[int, str] = {}  # by pidfd
    try:
        for running in every:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(running.pid)
                names[descriptor] = running.name
                # Looked at again: the pid may have passed on to another process before the pidfd was opened.
                if parse_command_line(_command_line(running.pid), state_dir) is not None:
                    _send(descriptor, signal.SIGTERM, running.name)
                else:
                    os.close(descriptor)
                    del names[descriptor]
        left = _wait_ended(names, _STOP_PATIENCE)
        for descriptor in left:
            _send(descriptor, signal.SIGKILL, names[descriptor])
        if left := _wait_ended(left, _STOP_PATIENCE):
            raise SageError(
                f"{files.join_names([names[one] for one in left])} can't be stopped",
                hint="the process is stuck in the kernel; see ps",
            )
    finally:
        for descriptor in names:
            os.close(descriptor)


def require_free(every: Sequence[Service]) -> None:
    """Raise InputError that names the first port of these services that another program has."""
    for service in every:
        with socket.socket() as probe:
            # As uwsgi does: what remains of closed connections does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", service.port))
                probe.listen(1)
            except OSError as error:
                raise InputError(
                    f"port {service.port}, which {service.name} needs, can't be had: {error.strerror}",
                    hint="end the program that has it (ss -ltnp shows which), or choose other ports with --port",
                ) from None


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback


def _program(service: Service, environment: Path) -> list[str]:
    if service.application.startswith(_OURS):
        return [sys.executable, "-m", service.application]
    if service.application.endswith(".py"):
        return [str(environment / "bin/python"), str(HOOKS / service.application)]
    return [
        str(environment / "bin/uwsgi"),
        *("--http-socket", f"127.0.0.1:{service.port}"),
        *("--pythonpath", str(HOOKS), "--module", "serve:application", "--need-app"),
        *("--enable-threads", "--threads", str(service.threads), "--thunder-lock", "--die-on-term"),
        # Uploads and snapshots come in chunks, and with pauses longer than the 4 s that uwsgi waits by itself.
        *("--http-chunked-input", "--chunked-input-limit", str(10 << 20), "--chunked-input-timeout", "600"),
        *("--socket-timeout", "600", "--http-timeout", "600"),
        # Taking Python down in good order, with all its threads, makes a stop take seconds; nothing here needs it.
        "--skip-atexit-teardown",
        # uwsgi keeps no connection alive, but says so only with this header.
        *("--add-header", "Connection: close", "--buffer-size", "65535", "--disable-logging"),
    ]


def _environ(service: Service) -> dict[str, str]:
    return {
        "HOME": str(service.folder),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "LOCAL_CHAMELEON_APPLICATION": service.application,
        **service.environ,
    }


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _running(pid: int, name: str, content: str) -> Running:
    proc = Path(f"/proc/{pid}")
    begin = parse_stat((proc / "stat").read_text()) / os.sysconf("SC_CLK_TCK")
    age = float(Path("/proc/uptime").read_text().split()[0]) - begin
    memory = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Running(name, pid, content, since=time.time() - age, memory=memory)


def _send(descriptor: int, number: signal.Signals, name: str) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise SageError(f"{name} belongs to another user", hint="do this as that user, or as root") from None


def _wait_ended(descriptors: Iterable[int], seconds: float) -> list[int]:
    """Those of the pidfds whose processes still run after so many seconds at most."""
    left = list(descriptors)
    deadline = time.monotonic() + seconds
    poll = select.poll()
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left and (rest := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(rest * 1000):
            poll.unregister(descriptor)
            left.remove(descriptor)
    return left

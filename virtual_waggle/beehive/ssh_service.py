# SPDX-License-Identifier: Apache-2.0
"""What the Beehive's two ssh servers share: one command a session, by public key, and nothing else of ssh.

No shell, terminal, password, forwarding, sftp or scp.  Connections are bounded in number, those that have not logged
in also in time and in what they may send.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from groundwork.errors import InputError

logger = logging.getLogger(__name__)

WRONG_INPUT = 2  # exit status: the command is not one of ours, or is given something wrong
TRY_LATER = 75  # sysexits.h EX_TEMPFAIL
NOT_PERMITTED = 77  # sysexits.h EX_NOPERM

LONGEST_COMMAND = 4096  # characters
WINDOW = 1 << 20  # bytes of a session that may be under way
_CONNECTIONS = 200
_STRANGERS = 40  # connections that have not logged in
_SESSIONS = 8  # of one connection at a time
_LOGIN = 20.0  # seconds
_KEEPALIVE = 30.0  # seconds
_MOST_UNREAD = 2 << 20  # bytes
_LEAVE = 3.0  # seconds for sessions under way, when the service is told to end
_END = 4.5  # seconds for all of it

if TYPE_CHECKING:
    Process = asyncssh.SSHServerProcess[bytes]
else:
    Process = asyncssh.SSHServerProcess  # Ubuntu 22.04's is no generic type


class Refusal(Exception):
    """What a session is told instead of being served, with its exit status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Service:
    """One ssh server.

    ``authorized`` gives the authorized_keys text for a user name, None for one that may not come in.  ``serve`` does
    what a session's command says and returns its exit status, or raises Refusal; ``patience``: seconds it may take.
    """

    name: str
    host_key: Path
    authorized: Callable[[str], str | None]
    serve: Callable[[str, str, Process], Awaitable[int]]
    patience: float


async def listen(service: Service, host: str, port: int) -> "Listening":
    """Listen; the server's own tasks do the rest.  Raises OSError where the address can't be had."""
    connections: set[_Connection] = set()
    acceptor = await asyncssh.create_server(
        lambda: _Connection(service, connections),
        host,
        port,
        server_host_keys=[str(service.host_key)],
        server_version=service.name,
        process_factory=lambda process: _session(service, process),
        encoding=None,
        window=WINDOW,
        line_editor=False,
        allow_pty=False,
        allow_scp=False,
        agent_forwarding=False,
        x11_forwarding=False,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        compression_algs=None,
        login_timeout=_LOGIN,
        keepalive_interval=_KEEPALIVE,
        keepalive_count_max=3,
        reuse_address=True,
    )
    return Listening(acceptor, connections)


class Listening:
    """A server that listens; ``port`` is where."""

    def __init__(self, acceptor: Any, connections: "set[_Connection]") -> None:
        self._acceptor = acceptor
        self._connections = connections
        self.port: int = acceptor.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Take no more connections, give those that are there 3 s, and end them."""
        self._acceptor.close()
        deadline = asyncio.get_running_loop().time() + _LEAVE
        while any(connection.sessions for connection in self._connections):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.05)
        for connection in list(self._connections):
            connection.abort()


def log_events() -> None:
    """Log a line an event; asyncssh's own only where something is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)


async def until_told_to_end() -> None:
    """Return on SIGTERM or SIGINT; the process then ends within 5 s, whatever a thread still waits for."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
    last = threading.Timer(_END, os._exit, (0,))
    last.daemon = True
    last.start()


class _Connection(asyncssh.SSHServer):
    """One connection: counted, and cut off where it sends more than it should."""

    def __init__(self, service: Service, connections: "set[_Connection]") -> None:
        self._service = service
        self._connections = connections
        self._connection: Any = None
        self._peer = "?"
        self.known = False
        self.sessions = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        peer = conn.get_extra_info("peername") or ("?",)
        self._peer = f"{peer[0]}"
        strangers = sum(not connection.known for connection in self._connections)
        if len(self._connections) >= _CONNECTIONS or strangers >= _STRANGERS:
            logger.warning("%s: turned away, there are %d connections", self._peer, len(self._connections))
            conn.abort()
            return
        self._connections.add(self)
        conn.set_extra_info(waggle=self)
        _bound_unread(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if exc is not None and not self.known:
            logger.debug("%s: left without having logged in: %s", self._peer, str(exc)[:200])

    def begin_auth(self, username: str) -> bool:
        keys = self._service.authorized(username)
        if keys is not None:
            self._connection.set_authorized_keys(asyncssh.import_authorized_keys(keys))
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def auth_completed(self) -> None:
        self.known = True

    def abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()


def _bound_unread(conn: Any) -> None:
    # asyncssh before 2.22 takes any length that a packet claims to have, also before the login
    receive = conn.data_received

    def bounded(data: bytes, datatype: int | None = None) -> None:
        receive(data, datatype)
        if len(getattr(conn, "_inpbuf", b"")) > _MOST_UNREAD:
            logger.warning("%s: cut off, it sends too large a packet", conn.get_extra_info("peername"))
            conn.abort()

    conn.data_received = bounded


async def _session(service: Service, process: Process) -> None:
    connection: _Connection = process.get_extra_info("waggle")
    user = str(process.get_extra_info("username"))
    connection.sessions += 1
    try:
        status = await _served(service, process, user, connection.sessions)
    finally:
        connection.sessions -= 1
    process.exit(status)


async def _served(service: Service, process: Process, user: str, sessions: int) -> int:
    command = process.command
    try:
        if sessions > _SESSIONS:
            raise Refusal(TRY_LATER, "too many sessions at once")
        if command is None or process.subsystem is not None:
            raise Refusal(WRONG_INPUT, "no shell and no subsystem here, only a command")
        if len(command) > LONGEST_COMMAND:
            raise Refusal(WRONG_INPUT, "the command is too long")
        return await asyncio.wait_for(service.serve(user, command, process), service.patience)
    except Refusal as refusal:
        word = "refused" if refusal.status == WRONG_INPUT else "not now"
        logger.warning("%s: %s: %s", user, word, refusal)
        _tell(process, f"{word}: {refusal}")
        return refusal.status
    except asyncio.TimeoutError:
        logger.warning("%s: not done within %g s", user, service.patience)
        _tell(process, f"not done within {service.patience:g} s")
        return TRY_LATER
    except (OSError, asyncssh.Error) as error:  # the other side left, or the disk is full
        logger.warning("%s: %s", user, error)
    except Exception:
        logger.exception("%s: failed", user)
    _tell(process, "failed at the Beehive; try again later")
    return TRY_LATER


def _tell(process: Process, text: str) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):  # it has left
        process.stderr.write(f"{text}\n".encode())


def address(text: str) -> tuple[str, int]:
    """Host and port of ``0.0.0.0:20022`` or ``[::]:20022``.  Raises InputError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) >= 1 << 16:
        raise InputError(f"expected host:port, found {text[:80]!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)

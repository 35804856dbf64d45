# SPDX-License-Identifier: Apache-2.0
"""How a node comes to the Beehive's ssh servers: by asyncssh, which unlike ssh asks no list of the system's users."""

import asyncio
import contextlib
import os
import shlex
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from groundwork.errors import InputError, SageError
from virtual_waggle.node import remote_shell

_CONNECT = 15.0  # seconds
_KEEPALIVE = 20.0  # seconds; three unanswered ones end the connection
_LONGEST = 8192  # bytes of a command, and of what the Beehive tells of its failure
_LEAVE = 2.0  # seconds


class Unreachable(SageError):
    """The Beehive can't be reached now; it may be later."""


class Distrusted(SageError):
    """This is not the Beehive that the node was told of, or it does not take the node's key."""

    exit_code = 2


@dataclass(frozen=True)
class Door:
    """One of the Beehive's ssh servers and what opens it.  ``certificate`` is the key's, where there is one."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path
    certificate: Path | None = None


async def connect(door: Door) -> asyncssh.SSHClientConnection:
    """A connection.  Raises Unreachable, Distrusted, or InputError for files that can't be used."""
    where = f"{door.host}:{door.port}"
    os.environ.setdefault("LOGNAME", "node")  # else asyncssh asks the system's list of users, which may lack us
    try:
        key = asyncssh.read_private_key(str(door.key))
        # asyncssh takes what it can't read there for no hosts at all
        known_hosts = asyncssh.read_known_hosts(str(door.known_hosts))
        pair = (key, asyncssh.read_certificate(str(door.certificate))) if door.certificate else key
    except (OSError, ValueError, asyncssh.KeyImportError) as error:
        raise InputError(f"can't use {door.key} with {door.known_hosts}: {error}") from None
    try:
        return await asyncio.wait_for(
            asyncssh.connect(
                door.host,
                door.port,
                username=door.user,
                client_keys=[pair],
                known_hosts=known_hosts,
                config=None,
                agent_path=None,
                password_auth=False,
                kbdint_auth=False,
                host_based_auth=False,
                gss_host=None,
                preferred_auth="publickey",
                compression_algs=None,
                keepalive_interval=_KEEPALIVE,
                keepalive_count_max=3,
            ),
            _CONNECT,
        )
    except asyncssh.HostKeyNotVerifiable:
        raise Distrusted(
            f"{where} is not the Beehive of {door.known_hosts}", hint="ask its operator for the known_hosts of now"
        ) from None
    except asyncssh.PermissionDenied:
        raise Distrusted(
            f"{where} does not take the key {door.key}", hint="ask the Beehive's operator whether it is the right one"
        ) from None
    except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
        raise Unreachable(f"can't reach the Beehive at {where}: {str(error) or type(error).__name__}") from None


class Line:
    """A connection to the Beehive that rsync's remote shells (remote_shell.py) share, one at a time.

    It is made when the first one asks, and anew when it was lost.  For a block of ``with``; not from a thread that
    asyncio runs in.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._connection: asyncssh.SSHClientConnection | None = None
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> "Line":
        self._folder = tempfile.TemporaryDirectory(prefix="beehive.")
        place = Path(self._folder.name, "line")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(place))
        self._socket.listen(1)
        # what --rsh takes: words, by spaces and quotes
        self.remote_shell = shlex.join([sys.executable, "-I", "-S", remote_shell.__file__, str(place)])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # the thread's accept ends
        self._thread.join(_LEAVE)
        self._socket.close()
        self._folder.cleanup()

    def _serve(self) -> None:
        try:
            while True:
                try:
                    asked, _ = self._socket.accept()
                except OSError:
                    return
                with asked:
                    command, descriptors, _, _ = socket.recv_fds(asked, _LONGEST, 3)
                    if len(descriptors) == 3:
                        status = self._loop.run_until_complete(self._answered(command.decode(), descriptors, asked))
                        with contextlib.suppress(OSError):
                            asked.send(bytes([status]))
        finally:
            self._drop()
            self._loop.run_until_complete(asyncio.sleep(0))  # for what aborting leaves to the loop
            self._loop.close()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def _answered(self, command: str, descriptors: list[int], asked: socket.socket) -> int:
        """Run a command with these descriptors as its streams; its exit status.

        Leaves off, and drops the connection, when nobody waits for it any more.
        """
        run = asyncio.ensure_future(self._run(command, descriptors))
        self._loop.add_reader(asked, run.cancel)  # it says nothing more: it has ended
        try:
            return await run
        except asyncio.CancelledError:
            self._drop()
            return remote_shell.UNREACHABLE
        finally:
            self._loop.remove_reader(asked)

    async def _run(self, command: str, descriptors: list[int]) -> int:
        given, wanted, told = descriptors
        with open(told, "wb", buffering=0) as errors:
            try:
                remote = await self._opened(command, given, wanted)
                text = await remote.stderr.read(_LONGEST)
                await remote.wait_closed()
            except SageError as error:
                text, status = str(error).encode(), None
            except (OSError, asyncssh.Error) as error:
                self._drop()
                text, status = f"the connection to the Beehive broke: {error}".encode(), None
            else:
                status = remote.exit_status
            with contextlib.suppress(OSError):
                errors.write(text.rstrip() + b"\n" if text.strip() else b"")
        return remote_shell.UNREACHABLE if status is None or not 0 <= status < 256 else status

    async def _opened(self, command: str, given: int, wanted: int) -> "asyncssh.SSHClientProcess[bytes]":
        try:
            for fresh in (self._connection is None, True):
                if self._connection is None:
                    self._connection = await connect(self._door)
                try:
                    session = await asyncio.wait_for(self._connection.create_process(command, encoding=None), _CONNECT)
                    break
                except (OSError, asyncssh.Error, asyncio.TimeoutError):
                    self._drop()
                    if fresh:
                        raise
        except BaseException:
            os.close(given)
            os.close(wanted)
            raise
        await session.redirect(stdin=given, stdout=wanted)
        return session

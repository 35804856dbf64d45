# SPDX-License-Identifier: Apache-2.0
"""How a node comes to the Beehive's ssh servers: by asyncssh, which unlike ssh asks no list of the system's users.

As a program it is rsync's remote shell: ``python3 -m virtual_waggle.node.beehive_ssh [-l USER] HOST COMMAND...``, with
the port, keys and known hosts in the variables below.
"""

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from groundwork.errors import InputError, SageError
from virtual_waggle import env_file
from virtual_waggle.env_file import Variable

UNREACHABLE = 255  # exit status, as ssh's
_CONNECT = 15.0  # seconds
_KEEPALIVE = 20.0  # seconds; three unanswered ones end the connection


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


TABLE = (
    Variable("WAGGLE_SSH_PORT", "the upload server's port", int),
    Variable("WAGGLE_SSH_KEY", "file of the private key", Path),
    Variable("WAGGLE_SSH_CERTIFICATE", "file of the key's certificate", Path),
    Variable("WAGGLE_SSH_KNOWN_HOSTS", "file of the Beehive's host keys", Path),
)


async def _pipe(door: Door, command: str) -> int:
    async with await connect(door) as connection:
        remote = await connection.create_process(
            command, encoding=None, stdin=sys.stdin.buffer, stdout=sys.stdout.buffer, stderr=sys.stderr.buffer
        )
        await remote.wait_closed()
    return UNREACHABLE if remote.exit_status is None else remote.exit_status


def main(words: list[str]) -> int:
    """Be the remote shell of rsync."""
    user = ""
    if words[:1] == ["-l"]:
        user, words = words[1], words[2:]
    given = env_file.from_environment(os.environ, TABLE)
    door = Door(
        words[0],
        given["WAGGLE_SSH_PORT"],
        user,
        given["WAGGLE_SSH_KEY"],
        given["WAGGLE_SSH_KNOWN_HOSTS"],
        given["WAGGLE_SSH_CERTIFICATE"],
    )
    try:
        return asyncio.run(_pipe(door, " ".join(words[1:])))
    except SageError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{error}\n")
        return UNREACHABLE
    except (OSError, asyncssh.Error) as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"the connection to the Beehive broke: {error}\n")
        return UNREACHABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

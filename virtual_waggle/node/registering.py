# SPDX-License-Identifier: Apache-2.0
"""The node's side of registration: it gets its keys and certificates from the Beehive, and new ones in time.

The operator of the Beehive hands out ``register.pem`` and ``known_hosts``; they lie in the node's ``private`` folder,
and so does what registration gives.
"""

import asyncio
import json
import logging
import os
import random
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import asyncssh

from groundwork import files
from groundwork.errors import InputError, SageError
from virtual_waggle import certificates, state_folder
from virtual_waggle.node import beehive_ssh, state
from virtual_waggle.node.beehive_ssh import Door, Unreachable

logger = logging.getLogger("registering")

FILES = ("node-key.pem", "upload-key", "beehive-ca.pem", "upload-key-cert.pub", "node-cert.pem")  # as they are written
_USER = "sage_registration"
_LARGEST = 1 << 16  # bytes of an answer
_ANSWER = 90.0  # seconds for one; the Beehive gives itself 60
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts
_NOT_PERMITTED = 77  # exit status of the Beehive's side


class NotAdmitted(SageError):
    """The Beehive does not want this node, or not yet."""

    exit_code = 2


@dataclass(frozen=True)
class Beehive:
    """Where a node registers."""

    host: str
    port: int = 20022


def is_registered(private: Path, node_id: str, now: datetime) -> bool:
    """Whether all that registration gives is there, whole, this node's, and not in the last third of its time."""
    try:
        certificate = certificates.read_certificate(private / "node-cert.pem")
        return (
            all((private / name).is_file() for name in FILES)
            and certificates.common_name_of(certificate) == f"node-{node_id}"
            and certificates.fits(certificates.read_key(private / "node-key.pem"), certificate)
            and not certificates.is_near_end(certificate, now)
        )
    except InputError:
        return False


def register(private: Path, node_id: str, beehive: Beehive, *, deadline: float) -> str:
    """Register, and keep what comes; until when it is valid (RFC 3339).

    Tries again, with growing pauses, while the Beehive can't be reached or is busy, for up to ``deadline`` seconds;
    then raises Unreachable.  Raises Distrusted (wrong key, wrong Beehive) and NotAdmitted at once.
    """
    for name in ("register.pem", "known_hosts"):
        if not os.access(private / name, os.R_OK):
            raise InputError(f"can't read {private / name}", hint="the operator of the Beehive hands it out")
    door = Door(beehive.host, beehive.port, _USER, private / "register.pem", private / "known_hosts")
    begin = time.monotonic()
    pause = _FIRST_PAUSE
    while True:
        try:
            answer = asyncio.run(_asked(door, node_id))
            break
        except Unreachable as error:
            left = deadline - (time.monotonic() - begin)
            if left <= 0:
                raise
            logger.warning("%s; trying again for %.0f s", error, left)
            # not all nodes at the same moment, when a Beehive comes back
            wait = min(pause * random.uniform(0.7, 1.3), left)  # noqa: S311
            time.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)
    where, text = private / state.REGISTERED_AS, state.registered_as(node_id, beehive.host, beehive.port)
    if not where.is_file() or where.read_text(encoding="utf-8") != text:
        where.unlink(missing_ok=True)  # while there may be files of both
    until = keep(private, node_id, answer)
    files.write_text(where, text, mode=0o600)
    return until


async def _asked(door: Door, node_id: str) -> bytes:
    """The Beehive's answer.  Raises Unreachable, Distrusted, NotAdmitted."""
    where = f"{door.host}:{door.port}"
    async with await beehive_ssh.connect(door) as connection:
        try:
            remote = await connection.create_process(f"register {node_id}", encoding=None)
            answer, told = await asyncio.wait_for(_read(remote), _ANSWER)
        except (OSError, asyncssh.Error, asyncio.TimeoutError) as error:
            raise Unreachable(f"the Beehive at {where} did not answer: {str(error) or type(error).__name__}") from None
    reason = told.decode(errors="replace").strip()[:300]
    if remote.exit_status == 0:
        return answer
    if remote.exit_status == _NOT_PERMITTED:
        raise NotAdmitted(f"the Beehive at {where}: {reason}", hint=f"there: beehive-server register {node_id}")
    raise Unreachable(f"the Beehive at {where}: {reason or 'it broke off'}")


async def _read(remote: "asyncssh.SSHClientProcess[bytes]") -> tuple[bytes, bytes]:
    answer = b""
    while len(answer) <= _LARGEST and (part := await remote.stdout.read(_LARGEST)):
        answer += part
    told = await remote.stderr.read(1 << 12)
    if len(answer) <= _LARGEST:
        await remote.wait_closed()
    return answer, told


def keep(private: Path, node_id: str, answer: bytes) -> str:
    """Check an answer and write its files, each by a rename; one that is broken off is finished the next time."""
    given, until = _checked(node_id, answer)
    for name in FILES:
        state_folder.keep_secret(private / name, given[name])
    if not is_registered(private, node_id, datetime.now(timezone.utc)):
        raise SageError(
            "what the Beehive gave is not this node's, or about to end", hint="are the clocks of both right?"
        )
    return until


def _checked(node_id: str, answer: bytes) -> tuple[dict[str, str], str]:
    try:
        data: Any = json.loads(answer) if len(answer) <= _LARGEST else None
        given = {name: data["files"][name] for name in FILES}
        until = data["until"]
        whole = data["node"] == node_id and all(type(text) is str and text for text in (*given.values(), until))
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise SageError(
            "the Beehive's answer is not what a registration gives", hint="is it a Beehive of this release?"
        )
    return given, until

# SPDX-License-Identifier: Apache-2.0
"""The upload server: nodes bring their files by rsync over ssh, each into its own folder.

A node logs in as ``node-<id>`` with the SSH certificate that its registration gave, and may run one command::

    rsync --server -te.LsfxCIvu [--timeout=N] --inplace . <job>/<task>/<timestamp>-<sha1>/

Nothing of that line is passed on: it is taken apart, and rsync is started anew with options of our own, in a folder of
its own below ``uploads/.incoming``, where an upload that breaks off is continued.  What has come whole (two files, the
data of that SHA-1, a meta that is right) is moved to ``uploads/node-<id>/<job>/<task>/<timestamp>-<sha1>/`` by one
rename; only then the node is told 0.  There is no way to read, list, delete or change what has been kept; the service
itself removes what is older than it is told to keep.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import asyncssh

from groundwork import files, process
from groundwork.errors import InputError, SageError
from groundwork.program import run_program
from virtual_waggle import env_file, message, state_folder, upload
from virtual_waggle.beehive import nodes, settings, ssh_service
from virtual_waggle.beehive.nodes import Status
from virtual_waggle.beehive.ssh_service import TRY_LATER, WRONG_INPUT, Process, Refusal, Service
from virtual_waggle.env_file import Variable
from virtual_waggle.upload import Unfit

logger = logging.getLogger("upload_server")

INCOMING = ".incoming"
_EXPIRED = ".expired"  # where an upload is while it is removed
PATIENCE = 6 * 3600.0  # seconds for one upload
_STALLED = 60  # seconds without a byte, after which rsync gives up
_KEEP_INCOMING = 7 * 86400.0  # seconds since anything came, for an upload that was broken off
_SWEEP = 3600.0  # seconds between looks for such, and for what is too old
_MOST_EXPIRED = 10_000  # uploads that are removed at a time
_NEXT_EXPIRED = 60.0  # seconds until the next ones are
_BLOCK = 1 << 20

# -t: times; the rest is what the two rsyncs can do, not what they shall do
_SHORT_OPTIONS = re.compile(r"-[tv]{0,2}e[0-9]{0,3}\.[0-9]{0,3}[A-Za-z]{0,20}")
_LONG_OPTIONS = re.compile(r"--inplace|--partial|--timeout=[0-9]{1,5}")

TABLE = (
    Variable("BEEHIVE_LISTEN", "where to listen, as 0.0.0.0:20023", ssh_service.address, "0.0.0.0:20023"),
    Variable("BEEHIVE_NODES", "folder of the nodes", Path),
    Variable("BEEHIVE_UPLOADS", "folder of uploaded files", Path),
    Variable("WAGGLE_SECRETS", "folder of the keys", Path),
    *settings.of_names(
        "BEEHIVE_UPLOAD_LARGEST", "BEEHIVE_UPLOAD_FREE", "BEEHIVE_RETENTION", "BEEHIVE_UPLOAD_RETENTION"
    ),
)


@dataclass(frozen=True)
class Uploads:
    """Where files come in, and how much: ``largest`` bytes a file, while more than ``free`` are free on the disk.

    ``retention`` is in nanoseconds, None: for ever.
    """

    secrets: Path
    nodes: Path
    folder: Path
    largest: int
    free: int
    retention: int | None = None


@dataclass(frozen=True)
class Command:
    """What a node asks for: an upload's place below its folder, and the flags that its rsync was started with."""

    short_options: str
    job: str
    task: str
    name: str


def parse_command(command: str) -> Command:
    """The upload that a command is for.  Raises Refusal for any other command."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if words[:2] != ["rsync", "--server"]:
        raise Refusal(WRONG_INPUT, "only rsync's uploads are served here")
    if len(words) < 5 or words[-2] != "." or not _SHORT_OPTIONS.fullmatch(words[2]):
        raise Refusal(WRONG_INPUT, "expected rsync --times --inplace --timeout=60 data meta <job>/<task>/<name>/")
    for option in words[3:-2]:
        if not _LONG_OPTIONS.fullmatch(option):
            raise Refusal(WRONG_INPUT, f"rsync's option {option[:40]!r} is not for uploads")
    try:
        return Command(words[2], *upload.parse_place(words[-1]))
    except Unfit as error:
        raise Refusal(WRONG_INPUT, f"the folder to upload to: {error}") from None


def keep(uploads: Uploads, node_id: str, command: Command, staging: Path) -> Path:
    """Check an upload that has come, and move it to its place.  Raises Refusal; a wrong one is gone then."""
    try:
        _check(uploads, node_id, command, staging)
    except Unfit as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise Refusal(WRONG_INPUT, f"{command.name[:40]}: {error}") from None
    place = uploads.folder / nodes.user(node_id) / command.job / command.task / command.name
    files.make_folder(place.parent)
    try:
        staging.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(staging)  # it came before, and the node was not told
    _sync(place.parent)
    return place


def _check(uploads: Uploads, node_id: str, command: Command, staging: Path) -> None:
    with os.scandir(staging) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in islice(entries, 3)}
    if set(found) != {upload.DATA, upload.META}:
        raise Unfit("expected the two files data and meta")
    for name, status in found.items():
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Unfit(f"{name} is no plain file")
        (staging / name).chmod(0o644)
    if found[upload.META].st_size > upload.LARGEST_META:
        raise Unfit(f"meta: {found[upload.META].st_size} bytes, at most {upload.LARGEST_META}")
    told = upload.decode(command.name, (staging / upload.META).read_bytes(), sent=True)
    if told.node != node_id:
        raise Unfit("meta: node is another")
    if told.place != f"{command.job}/{command.task}/{command.name}":
        raise Unfit("meta: job or task is not that of the folder")
    if _sha1(staging / upload.DATA) != told.sha1:
        raise Unfit("data: its SHA-1 is another")
    for name in found:
        _sync(staging / name)
    _sync(staging)


def _sha1(path: Path) -> str:
    total = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(incoming: Path, now: float) -> None:
    """Remove what was broken off and not continued for a week; ``now`` in seconds since 1970."""
    for place in incoming.glob("*/*/*/*"):
        with contextlib.suppress(OSError):
            newest = max(path.lstat().st_mtime for path in (place, *place.iterdir()))
            if now - newest > _KEEP_INCOMING:
                logger.warning("removed what came of %s: not continued for a week", place.relative_to(incoming))
                shutil.rmtree(place)


def expire(folder: Path, before: int, most: int) -> int:
    """Remove uploads of a time before ``before`` (nanoseconds since 1970), at most so many; how many are gone.

    Only what has the name of an upload, where uploads are; no link is followed.  Each is there wholly or not at all.
    """
    gone = 0
    for place in islice(_uploads_before(folder, before), most):
        doomed = folder / _EXPIRED
        if doomed.exists():  # by a service that was killed
            shutil.rmtree(doomed)
        place.rename(doomed)
        shutil.rmtree(doomed)
        for emptied in (place.parent, place.parent.parent):
            with contextlib.suppress(OSError):  # there are others
                emptied.rmdir()
        gone += 1
    return gone


def _uploads_before(folder: Path, before: int) -> Iterator[Path]:
    for node in _folders(folder):
        if not message.is_node_id(node.name.removeprefix("node-")) or not node.name.startswith("node-"):
            continue
        for task in (task for job in _folders(node) for task in _folders(job)):
            for place in _folders(task):
                with contextlib.suppress(Unfit):
                    if upload.parse_name(place.name)[0] < before:
                        yield place


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _authorized(uploads: Uploads, user: str) -> str | None:
    """The authority's key, for certificates of this node's registration of now; None for who is no node."""
    node_id = user.removeprefix("node-")
    if nodes.user(node_id) != user or not message.is_node_id(node_id):
        return None
    try:
        node = nodes.read(uploads.nodes, node_id)
    except InputError as error:
        logger.error("%s", error)
        return None
    if node is None or node.status != Status.REGISTERED or not node.generation:
        return None
    authority = (uploads.secrets / "ssh-ca-key.pub").read_text()
    return f'cert-authority,principals="{nodes.principal(node)}" {authority}'


async def _serve(uploads: Uploads, at_work: set[Path], user: str, words: str, session: Process) -> int:
    command = parse_command(words)
    node_id = user.removeprefix("node-")
    if _authorized(uploads, user) is None:  # removed since this connection was made
        raise Refusal(ssh_service.NOT_PERMITTED, "this node was removed")
    if files.free_bytes(uploads.folder) < uploads.free:
        raise Refusal(TRY_LATER, "the Beehive's disk is full")
    staging = uploads.folder / INCOMING / user / command.job / command.task / command.name
    with _alone(staging, at_work):
        files.make_folder(staging)
        _refuse_too_large(uploads, command, staging)
        status = await _receive(uploads, command, staging, session)
        _refuse_too_large(uploads, command, staging)
        if status != 0:
            raise Refusal(TRY_LATER, f"rsync ended with {status}")
        place = await asyncio.to_thread(keep, uploads, node_id, command, staging)
    logger.info("%s: %s", user, place.relative_to(uploads.folder))
    return 0


def _refuse_too_large(uploads: Uploads, command: Command, staging: Path) -> None:
    """Raises Refusal for an upload that was cut off at the limit, now or before.

    Its bytes go, its size stays as a mark: the node's rsync may leave before it has read why, and come again.
    """
    data = staging / upload.DATA
    try:
        status = data.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_size > uploads.largest:
        if status.st_blocks:
            os.truncate(data, 0)
            os.truncate(data, status.st_size)
            os.utime(data, (0, 0))  # or rsync takes it for the file itself
        raise Refusal(WRONG_INPUT, f"{command.name}: larger than {uploads.largest} bytes")


@contextlib.contextmanager
def _alone(staging: Path, at_work: set[Path]) -> Iterator[None]:
    if staging in at_work:
        raise Refusal(TRY_LATER, "this upload is under way in another session")
    at_work.add(staging)
    try:
        yield
    finally:
        at_work.discard(staging)


async def _receive(uploads: Uploads, command: Command, staging: Path, session: Process) -> int:
    """Let rsync write into ``staging``; its exit status."""
    child = process.start(
        [
            # a byte more than is taken, by which one that is too large is known
            *("prlimit", f"--fsize={uploads.largest + 1}", "--core=0", "--"),
            *("rsync", "--server", command.short_options, f"--timeout={_STALLED}", "--inplace", ".", "."),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"LC_ALL": "C"},
        inherit=False,
        cwd=staging,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    outputs = [
        asyncio.ensure_future(_forward(child.stdout, session.stdout)),
        asyncio.ensure_future(_forward(child.stderr, session.stderr)),
    ]
    feeding = asyncio.ensure_future(_feed(session, child.stdin))
    try:
        await asyncio.gather(*outputs)  # it has closed them
        while (status := child.poll()) is None:
            await asyncio.sleep(0.01)
        return status
    finally:
        process.stop(child, patience=0)
        for task in (feeding, *outputs):
            task.cancel()
        await asyncio.gather(feeding, *outputs, return_exceptions=True)


async def _feed(session: Process, pipe: IO[bytes]) -> None:
    """What the node sends, to rsync.

    Taken by the window: asyncssh 2.24 grants the sender a whole window for each part of it that is taken, and would
    otherwise hold a file in memory when the disk is slow.
    """
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while block := await session.stdin.read(ssh_service.WINDOW):
            writer.write(block)
            await writer.drain()
    except ConnectionError:  # rsync has ended; what it says tells why
        pass
    finally:
        writer.close()


async def _forward(pipe: IO[bytes], target: "asyncssh.SSHWriter[bytes]") -> None:
    """What rsync says, to the node."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        while block := await reader.read(_BLOCK):
            target.write(block)
            await target.drain()
    finally:
        transport.close()


def service(uploads: Uploads) -> Service:
    """The ssh server of uploads."""
    at_work: set[Path] = set()
    return Service(
        "Beehive-uploads",
        uploads.secrets / "ssh-host-key",
        lambda user: _authorized(uploads, user),
        lambda user, words, session: _serve(uploads, at_work, user, words, session),
        PATIENCE,
    )


def uploads_of(environment: Mapping[str, str]) -> tuple[Uploads, tuple[str, int]]:
    """The uploads that the variables tell of, and where to listen.  Raises InputError."""
    given = env_file.from_environment(environment, TABLE)
    secrets = given["WAGGLE_SECRETS"]
    for name in ("ssh-ca-key.pub", "ssh-host-key"):
        if not os.access(secrets / name, os.R_OK):
            raise InputError(f"WAGGLE_SECRETS: can't read {secrets / name}")
    for name in ("BEEHIVE_NODES", "BEEHIVE_UPLOADS"):
        if not given[name].is_dir():
            raise InputError(f"{name}: {given[name]} is no folder")
    process.require("rsync", "prlimit", "setpriv")
    uploads = Uploads(
        secrets,
        given["BEEHIVE_NODES"],
        given["BEEHIVE_UPLOADS"],
        given["BEEHIVE_UPLOAD_LARGEST"],
        given["BEEHIVE_UPLOAD_FREE"],
        given["BEEHIVE_UPLOAD_RETENTION"] or given["BEEHIVE_RETENTION"],
    )
    return uploads, given["BEEHIVE_LISTEN"]


async def _keep_swept(uploads: Uploads) -> None:
    while True:
        pause = _SWEEP
        try:
            await asyncio.to_thread(sweep, uploads.folder / INCOMING, time.time())
            if uploads.retention is not None:
                before = time.time_ns() - uploads.retention
                gone = await asyncio.to_thread(expire, uploads.folder, before, _MOST_EXPIRED)
                if gone:
                    logger.info("removed %d uploads for their age", gone)
                if gone == _MOST_EXPIRED:
                    pause = _NEXT_EXPIRED
        except (SageError, OSError) as error:
            logger.warning("%s", error)
        await asyncio.sleep(pause)


async def _run(uploads: Uploads, address: tuple[str, int]) -> int:
    listening = await ssh_service.listen(service(uploads), *address)
    state_folder.become_owner(uploads.folder)
    logger.info("uploads come in at port %d", listening.port)
    sweeping = asyncio.create_task(_keep_swept(uploads))
    await ssh_service.until_told_to_end()
    sweeping.cancel()
    await listening.close()
    return 0


def main() -> int:
    """The service, until SIGTERM."""
    ssh_service.log_events()
    os.umask(0o022)
    uploads, address = uploads_of(os.environ)
    return asyncio.run(_run(uploads, address))


if __name__ == "__main__":
    run_program(main)

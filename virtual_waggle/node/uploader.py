# SPDX-License-Identifier: Apache-2.0
"""The uploader: brings to the Beehive the files that plugins left in the node's folder ``uploads``.

A plugin's upload is ``uploads/<app id>/<timestamp>-<sha1>/{data,meta}`` (pywaggle's Uploader).  It goes when it is
whole, the oldest first, by rsync over ssh, and is deleted when the Beehive has said that it keeps it; while the Beehive
is away, and where there is none, files stay, up to a limit for the disk, beyond which the oldest are deleted.  What is
no upload stays where it is and counts towards the limit.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from groundwork import files, process
from groundwork.errors import InputError, Interrupted
from groundwork.process import ProcessError
from groundwork.program import run_program
from groundwork.settings import whole_number
from virtual_waggle import env_file, message, upload
from virtual_waggle.env_file import Variable, size
from virtual_waggle.node import apps
from virtual_waggle.node.apps import App
from virtual_waggle.node.beehive_ssh import Door, Line
from virtual_waggle.upload import Unfit, Upload

logger = logging.getLogger("uploader")

_LOOK = 1.0  # seconds between looks at the folder
_TRIM = 10.0  # seconds between looks at how much it holds
_SETTLED = 60.0  # seconds without a change, after which what is not whole will not become so
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # seconds to wait for a Beehive that is away
_STALLED = 60  # seconds without a byte, after which rsync gives up
_PATIENCE = 6 * 3600.0  # seconds for one upload
_MOST_ENTRIES = 100_000  # files and folders below uploads
_BLOCK = 1 << 20
_REFUSED = "refused: "  # what the Beehive's side says before a reason that stays
_NOT_LISTED = 0xFFFFFFFF


class Waiting(NamedTuple):
    """An upload that is whole and may go: its folder, and what travels with it."""

    folder: Path
    upload: Upload


@dataclass(frozen=True)
class Settings:
    """What an uploader works with.  ``most`` is in bytes, for all that waits."""

    node_id: str
    uploads: Path
    apps: Path
    private: Path
    host: str
    port: int
    most: int


@dataclass
class Known:
    """What was seen of folders, by what would change with them, so that it is looked at and told but once."""

    whole: dict[tuple[Path, object], Upload] = field(default_factory=dict)
    unfit: dict[tuple[Path, object], str] = field(default_factory=dict)
    done: set[Path] = field(default_factory=set)  # at the Beehive, and not to be deleted here
    strangers: set[str] = field(default_factory=set)  # apps that nobody told us of


def make_inbox(uploads: Path, app_id: str) -> Path:
    """Make the folder that an app sees as its upload path; any user in its container can write there.

    What it writes, also as root, the folder's owner can read and delete (a default ACL), for that is the uploader.
    """
    inbox = files.make_folder(uploads / apps.check_id(app_id))
    inbox.chmod(0o777)
    # acl(5) as Linux stores it: version 2, then tag, permissions and id of each entry
    owner = inbox.stat().st_uid
    entries = [(0x01, 7, _NOT_LISTED), (0x02, 7, owner), (0x04, 5, _NOT_LISTED), (0x10, 7, _NOT_LISTED)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in [*entries, (0x20, 5, _NOT_LISTED)])
    try:
        os.setxattr(inbox, "system.posix_acl_default", acl)
    except OSError as error:
        logger.warning("%s: no access list can be set (%s): files of other users may stay", inbox, error.strerror)
    return inbox


def look(settings: Settings, known: Known, now: float) -> list[Waiting]:
    """The uploads that are whole, the oldest first; ``now`` in seconds since 1970."""
    found: list[Waiting] = []
    seen: set[tuple[Path, object]] = set()
    for inbox in _folders(settings.uploads):
        app = _app(settings.apps, inbox.name, known)
        if app is None:
            continue
        for folder in _folders(inbox):
            key = (folder, _stamp(folder))
            seen.add(key)
            if key not in known.whole and key not in known.unfit:
                _judge(settings, known, key, app, now)
            if key in known.whole and folder not in known.done:
                found.append(Waiting(folder, known.whole[key]))
    for memory in (known.whole, known.unfit):
        for key in [key for key in memory if key not in seen]:
            del memory[key]
    return sorted(found, key=lambda waiting: (waiting.upload.timestamp, waiting.folder))


def _judge(settings: Settings, known: Known, key: tuple[Path, object], app: App, now: float) -> None:
    folder = key[0]
    try:
        plain = _read(folder)
        known.whole[key] = plain._replace(node=settings.node_id, job=app.job, task=app.task, plugin=app.plugin)
    except (OSError, Unfit) as error:
        # it may be on its way: meta comes after data, and is not written at once
        if now - _newest(folder) > _SETTLED:
            known.unfit[key] = str(error)
            logger.warning("%s/%s is no upload: %s", folder.parent.name, folder.name[:64], error)


def _read(folder: Path) -> Upload:
    """The upload in a plugin's folder.  Raises Unfit, OSError."""
    upload.parse_name(folder.name)
    with _plain_file(folder / upload.META, upload.LARGEST_META) as descriptor:
        told = upload.decode(folder.name, os.read(descriptor, upload.LARGEST_META + 1), sent=False)
    total = hashlib.sha1(usedforsecurity=False)
    with _plain_file(folder / upload.DATA, None) as descriptor:
        while block := os.read(descriptor, _BLOCK):
            total.update(block)
    if total.hexdigest() != told.sha1:
        raise Unfit("data: its SHA-1 is another")
    return told


@contextlib.contextmanager
def _plain_file(path: Path, most: int | None) -> Iterator[int]:
    """A descriptor for reading a file that is no link, device or pipe.  Raises Unfit, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unfit(f"{path.name} is no plain file")
        if most is not None and status.st_size > most:
            raise Unfit(f"{path.name}: {status.st_size} bytes, at most {most}")
        yield descriptor
    finally:
        os.close(descriptor)


def _app(folder: Path, app_id: str, known: Known) -> App | None:
    try:
        app = apps.read(folder / f"{apps.check_id(app_id)}.json")
    except InputError as error:
        if app_id not in known.strangers:
            known.strangers.add(app_id)
            logger.warning("uploads of %s wait: %s", app_id[:64], error)
        return None
    known.strangers.discard(app_id)
    return app


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder: no links, nothing hidden."""
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
    except OSError as error:
        logger.warning("can't look into %s: %s", folder, error.strerror)
        return []


def _stamp(folder: Path) -> object:
    """Something that changes when one of an upload's files does."""
    found: list[object] = []
    for path in (folder, folder / upload.DATA, folder / upload.META):
        with contextlib.suppress(OSError):
            status = path.lstat()
            found.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def _newest(folder: Path) -> float:
    times = []
    for path in (folder, folder / upload.DATA, folder / upload.META):
        try:
            times.append(path.lstat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


class Away(Exception):
    """The Beehive can't be reached, has no room, or the connection broke; the text says which."""


class Turned(Exception):
    """The Beehive does not take this upload; the text says why."""


def line(settings: Settings) -> Line:
    """The connection that uploads go by; made when it is first needed."""
    private = settings.private
    return Line(
        Door(
            settings.host,
            settings.port,
            f"node-{settings.node_id}",
            private / "upload-key",
            private / "known_hosts",
            private / "upload-key-cert.pub",
        )
    )


def send(settings: Settings, line: Line, waiting: Waiting) -> None:
    """Bring an upload to the Beehive; it keeps it when this returns.  Raises Away, Turned."""
    with tempfile.TemporaryDirectory(prefix="upload.") as folder:
        meta = Path(folder, upload.META)
        meta.write_bytes(upload.encode(waiting.upload))
        os.utime(meta, (0, 0))  # the same upload is the same file
        command = [
            *("rsync", "--times", "--inplace", f"--timeout={_STALLED}"),
            *("--rsh", line.remote_shell, "--"),
            *(str(waiting.folder / upload.DATA), str(meta)),
            f"node-{settings.node_id}@{_in_rsync(settings.host)}:{waiting.upload.place}/",
        ]
        try:
            process.run(command, env={"LC_ALL": "C.UTF-8"}, timeout=_PATIENCE)
        except ProcessError as error:
            lines = error.output.splitlines()
            reason = next((line for line in lines if line.startswith(_REFUSED)), None)
            if reason is not None:
                raise Turned(reason.removeprefix(_REFUSED)[:300]) from None
            told = next((line for line in lines if line and not line.startswith("rsync")), str(error))
            raise Away(told[:300]) from None


def _in_rsync(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def forget(folder: Path, known: Known) -> None:
    """Delete an upload that the Beehive keeps."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        known.done.add(folder)
        logger.warning("can't delete %s, which is uploaded: %s", folder, error.strerror)


def trim(uploads: Path, most: int) -> list[Path]:
    """Delete the oldest of what lies below ``uploads`` until it is no more than ``most`` bytes; what was deleted."""
    found = []
    for inbox in _folders(uploads):
        for entry in os.scandir(inbox):
            found.append((_age(entry), Path(entry.path), *_holds(Path(entry.path))))
    total, count = sum(entry[2] for entry in found), sum(entry[3] for entry in found)
    deleted = []
    for _, path, held, entries in sorted(found):
        if total <= most and count <= _MOST_ENTRIES:
            break
        logger.warning("no room: %s/%s is deleted before it was uploaded", path.parent.name, path.name[:64])
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
        total, count = total - held, count - entries
        deleted.append(path)
    return deleted


def _age(entry: "os.DirEntry[str]") -> int:
    """When an upload was made, by its name; of anything else, when it was last changed.  Nanoseconds since 1970."""
    try:
        return upload.parse_name(entry.name)[0]
    except Unfit:
        try:
            return entry.stat(follow_symlinks=False).st_mtime_ns
        except OSError:
            return 0


def _holds(path: Path) -> tuple[int, int]:
    """Bytes on the disk and entries of what is there, without following links."""
    size = count = 0
    paths = [path]
    for folder, folders, names in os.walk(path):
        paths += [Path(folder, name) for name in (*folders, *names)]
    for path in paths:
        with contextlib.suppress(OSError):
            size += path.lstat().st_blocks * 512
            count += 1
    return size, count


def _node_id(text: str) -> str:
    if not message.is_node_id(text):
        raise InputError(f"expected 16 hexadecimal digits, found {text[:40]!r}")
    return text


TABLE = (
    Variable("WAGGLE_NODE_ID", "the node's id", _node_id),
    Variable("WAGGLE_UPLOADS", "folder of the apps' uploads", Path),
    Variable("WAGGLE_APPS", "folder of the apps", Path),
    Variable("WAGGLE_SECRETS", "folder of what registration gave", Path),
    Variable("WAGGLE_BEEHIVE_HOST", "the Beehive's name or address; empty: files stay", str, ""),
    Variable("WAGGLE_BEEHIVE_UPLOAD_PORT", "its upload server's port", whole_number(1, 65535), "20023"),
    Variable("WAGGLE_UPLOADS_MOST", "how much may lie there, such as 4g", size, "4g"),
)


def settings_of(environment: Mapping[str, str]) -> Settings:
    """The settings that the variables tell of.  Raises InputError."""
    given = env_file.from_environment(environment, TABLE)
    for name in ("WAGGLE_UPLOADS", "WAGGLE_APPS"):
        if not given[name].is_dir():
            raise InputError(f"{name}: {given[name]} is no folder")
    return Settings(
        given["WAGGLE_NODE_ID"],
        given["WAGGLE_UPLOADS"],
        given["WAGGLE_APPS"],
        given["WAGGLE_SECRETS"],
        given["WAGGLE_BEEHIVE_HOST"],
        given["WAGGLE_BEEHIVE_UPLOAD_PORT"],
        given["WAGGLE_UPLOADS_MOST"],
    )


def serve(settings: Settings, line: Line) -> NoReturn:
    """Look, send, delete, for ever."""
    known = Known()
    pause, trimmed = 0.0, -_TRIM
    while True:
        if time.monotonic() - trimmed > _TRIM:
            trim(settings.uploads, settings.most)
            trimmed = time.monotonic()
        begin = time.monotonic()
        waiting = look(settings, known, time.time()) if settings.host else []
        rest = max(_LOOK, 10 * (time.monotonic() - begin))  # a look at very many takes no more than a tenth of a core
        try:
            if waiting:
                _send_some(settings, line, known, waiting)
            pause = 0.0
        except Away as error:
            pause = min(pause * 2, _LONGEST_PAUSE) or _FIRST_PAUSE
            logger.warning("%d uploads wait, next attempt in %.0f s: %s", len(waiting), pause, error)
        time.sleep(pause or rest)


def _send_some(settings: Settings, line: Line, known: Known, waiting: list[Waiting]) -> None:
    """Send for about as long as the disk may go without a look at it."""
    begin = time.monotonic()
    for one in waiting:
        if time.monotonic() - begin > _TRIM:
            break
        try:
            send(settings, line, one)
        except Turned as error:
            logger.error("the Beehive does not take %s: %s", one.folder, error)
            known.unfit[one.folder, _stamp(one.folder)] = str(error)
            known.whole.pop((one.folder, _stamp(one.folder)), None)
        else:
            logger.info("uploaded %s/%s (%s)", one.folder.parent.name, one.folder.name, one.upload.filename)
            forget(one.folder, known)


def main() -> int:
    """The service, until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    settings = settings_of(os.environ)
    if settings.host:
        process.require("rsync", "setpriv")
    logger.info(
        "files in %s go to %s", settings.uploads, f"{settings.host}:{settings.port}" if settings.host else "nobody"
    )
    try:
        with line(settings) as opened:
            serve(settings, opened)
    except Interrupted:  # what was under way is continued the next time
        return 0


if __name__ == "__main__":
    run_program(main)

# SPDX-License-Identifier: Apache-2.0
"""A backup of a Beehive in one file, made while it runs, and its restoration.

The file is a tar.gz, readable by its owner alone::

    head.json        format, this program's version, when it was made, the kind of the store
    beehive.env  private/...  nodes/...
    store/data.db    SQLite's database as of one moment; or store/dump, of pg_dump
    uploads/...      if wanted
    manifest.json    SHA-256 and size of each file above

Measurements that no loader has taken yet are in the broker and not in the backup.  What is restored is written beside
and checked as a whole before any of it takes its place; beehive.env comes last, so that a restoration that is broken
off leaves no Beehive, and the next one finishes it.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from groundwork import __version__, files, process
from groundwork.errors import InputError, SageError
from virtual_waggle import state_folder
from virtual_waggle.beehive import nodes, settings
from virtual_waggle.beehive.settings import Settings
from virtual_waggle.beehive.state import State

FORMAT = 1
_HEAD, _MANIFEST = "head.json", "manifest.json"
_DATABASE, _DUMP = "store/data.db", "store/dump"
_FOLDERS = ("private", "nodes", "store", "uploads")
_PATIENCE = 12 * 3600.0  # seconds for pg_dump and pg_restore
_BLOCK = 1 << 20
_LARGEST_TEXT = 1 << 30  # bytes of the manifest: some 100 for each file
_COMPRESSION = 3
_RESTORING, _BEFORE = ".restoring", ".before-restore"


class Damaged(SageError):
    """A file that is no backup, or one of which not all is there as it was."""

    def __init__(self, archive: Path, reason: str) -> None:
        super().__init__(f"{archive}: {reason}", hint="nothing was restored; take another backup")


@dataclass(frozen=True)
class Head:
    """What a backup tells of itself.  ``made`` is RFC 3339, UTC; ``store`` is sqlite or postgresql."""

    format: int
    version: str
    made: str
    store: str
    uploads: bool


@dataclass(frozen=True)
class Summary:
    """What a backup holds: its head, how many files, how many bytes before they were packed."""

    head: Head
    count: int
    size: int


def backup(
    state: State, archive: Path, *, uploads: bool, now: datetime, tell: Callable[[str], None] = lambda name: None
) -> Summary:
    """Write a backup; it appears as a whole.  ``tell`` hears of each part.  Raises InputError, SageError."""
    known = settings.read(state.settings_file)
    kind = "sqlite" if known.store == "sqlite" else "postgresql"
    head = Head(FORMAT, __version__, nodes.time_text(now), kind, uploads)
    manifest: dict[str, dict[str, Any]] = {}
    with (
        files.writing(archive, mode=0o600) as temporary,
        tempfile.TemporaryDirectory(dir=archive.parent) as beside,
        tarfile.open(temporary, "w:gz", compresslevel=_COMPRESSION) as packed,
    ):
        _add_text(packed, _HEAD, json.dumps(asdict(head)), manifest)
        tell("keys and settings")
        for name, path in _keys_and_settings(state):
            _add(packed, name, path, manifest)
        tell("store")
        name, path = _store_copy(state, known, Path(beside))
        _add(packed, name, path, manifest)
        path.unlink()
        if uploads:
            tell("uploads")
            for name, path in _kept_uploads(state.uploads):
                _add(packed, name, path, manifest)
        _add_text(packed, _MANIFEST, json.dumps(manifest), None)
    return Summary(head, len(manifest), sum(entry["size"] for entry in manifest.values()))


def restore(
    archive: Path, state: State, *, force: bool, now: datetime, tell: Callable[[str], None] = lambda name: None
) -> Summary:
    """Make of a backup a state folder; what services there were must not be running.

    Where a Beehive stands already, it is refused; with ``force`` what stands there is kept in ``.before-restore``
    within the folder.  Raises Damaged, InputError, SageError.
    """
    standing = [path for path in (state.settings_file, *(state.folder / name for name in _FOLDERS)) if path.exists()]
    if standing and not force:
        raise InputError(f"{state.folder} holds a Beehive", hint="name another folder, or give --force to replace it")
    state_folder.prepare(state.folder)
    with files.lock(state.folder / ".lock", wait=30):
        files.sweep_removals(state.folder)
        files.remove_tree(state.folder / _RESTORING)
        beside = files.make_folder(state.folder / _RESTORING)
        beside.chmod(0o700)
        try:
            tell("reading and checking")
            summary = _unpack(archive, beside)
            known = _checked_settings(archive, beside / settings.FILE)
            if (known.store == "sqlite") != (summary.head.store == "sqlite"):
                raise Damaged(archive, "its store is not the one of its settings")
            if known.store != "sqlite":
                tell("database")
                _restore_database(known, beside, force=force)
            _put_in_place(state.folder, beside, nodes.time_text(now))
        finally:
            files.remove_tree(beside)
    return summary


def _keys_and_settings(state: State) -> Iterator[tuple[str, Path]]:
    yield settings.FILE, state.settings_file
    for top in (state.private, state.nodes):
        for path in sorted(top.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                yield path.relative_to(state.folder).as_posix(), path


def _kept_uploads(uploads: Path) -> Iterator[tuple[str, Path]]:
    """The files of uploads that have come whole; those do not change any more."""
    for folder, folders, names in os.walk(uploads):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # what comes, or is removed
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield f"uploads/{path.relative_to(uploads).as_posix()}", path


def _store_copy(state: State, known: Settings, beside: Path) -> tuple[str, Path]:
    """The store as of one moment, in a file of its own: its name in the backup, and where it is."""
    copy = beside / "store"
    if known.store != "sqlite":
        with _password_file(state.private, beside) as env:
            command = ["pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--compress=0"]
            process.run([*command, f"--file={copy}", f"--dbname={known.store}"], env=env, timeout=_PATIENCE)
        return _DUMP, copy
    if not state.database.exists():
        copy.touch()  # no loader has been at work yet
        return _DATABASE, copy
    source = sqlite3.connect(state.database, timeout=30)
    try:
        with contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)  # in one step: one moment, whatever is written meanwhile
            target.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise SageError(f"can't copy {state.database}: {error}") from None
    finally:
        source.close()
    return _DATABASE, copy


@contextlib.contextmanager
def _password_file(private: Path, beside: Path) -> Iterator[dict[str, str]]:
    """The environment by which PostgreSQL's programs find the password: in a file, not in itself."""
    secret = private / "store-password"
    text = secret.read_text().strip() if secret.is_file() else ""
    if not text:
        yield {}
        return
    path = beside / "pgpass"
    escaped = text.replace("\\", "\\\\").replace(":", "\\:")
    files.write_text(path, f"*:*:*:*:{escaped}\n", mode=0o600)
    try:
        if os.geteuid() == 0:
            os.chown(path, 0, 0)  # libpq takes it from its owner alone
        yield {"PGPASSFILE": str(path)}
    finally:
        path.unlink()


def _add(packed: tarfile.TarFile, name: str, path: Path, manifest: dict[str, dict[str, Any]]) -> None:
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return  # a node that was removed since
    with stream:
        size = os.fstat(stream.fileno()).st_size
        source = _Digesting(stream)
        packed.addfile(_member(name, size), source)
    manifest[name] = {"size": size, "sha256": source.digest.hexdigest()}


def _add_text(packed: tarfile.TarFile, name: str, text: str, manifest: dict[str, dict[str, Any]] | None) -> None:
    content = text.encode()
    packed.addfile(_member(name, len(content)), io.BytesIO(content))
    if manifest is not None:
        manifest[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


class _Digesting:
    """A stream that knows the SHA-256 of what was read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self.digest.update(block)
        return block


def _unpack(archive: Path, beside: Path) -> Summary:
    """Write the files of a backup below ``beside``, and compare them with its manifest."""
    found: dict[str, dict[str, Any]] = {}
    head: Head | None = None
    manifest: Any = None
    try:
        with tarfile.open(archive, "r|gz") as packed:
            for member in packed:
                if manifest is not None:
                    raise Damaged(archive, "there is something behind its end")
                stream = packed.extractfile(member) if member.isreg() else None
                if stream is None or member.name in found or not _is_ours(member.name):
                    raise Damaged(archive, f"holds {member.name[:100]!r}, which no backup does")
                if member.name == _MANIFEST:
                    manifest = json.loads(_text(archive, member, stream))
                elif member.name == _HEAD:
                    text = _text(archive, member, stream)
                    head = _head(archive, text)
                    found[_HEAD] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
                elif head is None:
                    raise Damaged(archive, "is no backup of a Beehive")
                else:
                    found[member.name] = _write(beside / member.name, stream)
    except OSError as error:
        raise SageError(f"{archive}: {error.strerror or error}") from None
    except (tarfile.TarError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise Damaged(archive, f"is no whole backup: {str(error)[:200]}") from None
    if head is None or manifest != found:
        raise Damaged(archive, "its files are not those of its manifest")
    return Summary(head, len(found), sum(entry["size"] for entry in found.values()))


def _is_ours(name: str) -> bool:
    """Whether this is a path that a backup has: below its folders, with no way out of them."""
    if name in (_HEAD, _MANIFEST, settings.FILE):
        return True
    parts = PurePosixPath(name).parts
    plain = name == "/".join(parts) and ".." not in parts and "\0" not in name and len(name) < 4000
    return plain and len(parts) > 1 and parts[0] in _FOLDERS


def _text(archive: Path, member: tarfile.TarInfo, stream: IO[bytes]) -> bytes:
    if member.size > _LARGEST_TEXT:
        raise Damaged(archive, f"{member.name} is too large")
    return stream.read()


def _head(archive: Path, text: bytes) -> Head:
    try:
        data = json.loads(text)
        if data["format"] == FORMAT:
            return Head(**data)
    except (TypeError, KeyError):
        raise Damaged(archive, "is no backup of a Beehive") from None
    raise InputError(
        f"{archive} is a backup of format {data['format']!r}, made by version {data.get('version')!r}",
        hint=f"this is version {__version__}, which reads format {FORMAT}",
    )


def _write(path: Path, stream: IO[bytes]) -> dict[str, Any]:
    files.make_folder(path.parent)
    total, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        os.fchmod(target.fileno(), 0o600)
        while block := stream.read(_BLOCK):
            total.update(block)
            size += len(block)
            target.write(block)
    files.give_to_owner_of(path.parent, path)
    return {"size": size, "sha256": total.hexdigest()}


def _checked_settings(archive: Path, path: Path) -> Settings:
    if not path.exists():
        raise Damaged(archive, f"holds no {settings.FILE}")
    return settings.read(path)


def _restore_database(known: Settings, beside: Path, *, force: bool) -> None:
    """Put PostgreSQL's dump back, in one transaction."""
    with _password_file(beside / "private", beside) as env:
        command = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--dbname={known.store}"]
        there = process.run([*command, "--command=SELECT to_regclass('points')"], env=env, timeout=60)
        if there.strip() and not force:
            raise InputError("the database of BEEHIVE_STORE holds measurements", hint="give --force to replace them")
        command = ["pg_restore", "--single-transaction", "--clean", "--if-exists", "--no-owner", "--no-privileges"]
        process.run([*command, f"--dbname={known.store}", beside / _DUMP], env=env, timeout=_PATIENCE)
    (beside / _DUMP).unlink()


def _put_in_place(folder: Path, beside: Path, moment: str) -> None:
    for name in _FOLDERS:
        files.make_folder(beside / name)
    for path in (beside / "private", beside / "nodes", *(beside / "nodes").iterdir()):
        if path.is_dir():
            path.chmod(0o700)
    for path in (beside / "uploads").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    (beside / settings.FILE).chmod(0o644)
    os.sync()  # once, not for each of perhaps very many files
    before = folder / f"{_BEFORE}-{moment}"
    # rabbitmq: what the old broker holds is of the old users
    for name in (settings.FILE, *_FOLDERS, "rabbitmq"):
        if (folder / name).exists():
            files.make_folder(before).chmod(0o700)
            shutil.move(folder / name, before / name)
    for name in (*_FOLDERS, settings.FILE):
        (beside / name).rename(folder / name)

# SPDX-License-Identifier: Apache-2.0
"""What lies in a root tree: one row a file, with its content's digest, kept beside the image.

``inventory.jsonl.gz`` is gzip over lines of JSON: the first names format, version, digest algorithm and columns,
each other one is a row in order of path.  The same tree always gives the same bytes.

SHA-256 because every machine has a program for it, and nothing is faster here: 1.1 GiB in 23,585 files takes
1.1 s of CPU by it and 1.15 s by BLAKE2b (one thread; two threads gain 0.15 s of time for 0.4 s more of CPU).
"""

import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from groundwork import files
from groundwork.compat import StrEnum
from groundwork.errors import InputError

INVENTORY = "inventory.jsonl.gz"
ALGORITHM = "sha256"
_FORMAT = "sage-inventory"
_VERSION = 1
_LARGEST = 1 << 29  # bytes unpacked; an inventory of 100,000 files has 20 MB
_BUFFER = 1 << 18
_BLOCK = 4096  # bytes in a block of the image's file system


class Kind(StrEnum):
    """What a row is about.  A file of several names is a ``FILE`` at the first of them and a ``HARDLINK`` after."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    DEVICE = "device"
    PIPE = "pipe"
    SOCKET = "socket"


class Entry(NamedTuple):
    """One row.

    ``path`` is relative to the root, without a leading slash; bytes that are not UTF-8 are Python's surrogates.
    ``mode`` holds the permission bits alone.  ``size`` (bytes) and ``digest`` (hexadecimal) are a ``FILE``'s, else
    0 and "".  ``target``: where a symlink points, a hard link's first name, a device's ``b`` or ``c`` and numbers.
    ``package``: the distribution's package that a file belongs to, or "".
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str
    digest: str
    package: str

    @property
    def occupied(self) -> int:
        """Bytes in whole blocks of the file system."""
        return -(-self.size // _BLOCK) * _BLOCK


def take(root: Path, owners: Mapping[str, str]) -> list[Entry]:
    """The rows of the tree at ``root``, in order of path.  It must be readable whole: as root, or in its namespace.

    ``owners`` (path -> package) is what :func:`image_builder.software.owners` gave.
    """
    names: dict[tuple[int, int], str] = {}  # inode of a file with several names -> the first of them
    buffer = memoryview(bytearray(_BUFFER))
    entries = []
    top = os.fspath(root)
    for path, status in sorted(_walk(root)):
        kind, size, target, digest = _kind(status.st_mode), 0, "", ""
        if kind is Kind.FILE:
            first = names.setdefault((status.st_dev, status.st_ino), path) if status.st_nlink > 1 else path
            if first != path:
                kind, target = Kind.HARDLINK, first
            else:
                size, digest = status.st_size, _digest(f"{top}/{path}", buffer)
        elif kind is Kind.SYMLINK:
            target = os.readlink(f"{top}/{path}")
        elif kind is Kind.DEVICE:
            letter = "b" if stat.S_ISBLK(status.st_mode) else "c"
            target = f"{letter} {os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        package = "" if kind is Kind.FOLDER else _owner(path, owners)
        mode = stat.S_IMODE(status.st_mode)
        entries.append(Entry(path, str(kind), mode, status.st_uid, status.st_gid, size, target, digest, package))
    return entries


def content_size(entries: Iterable[Entry]) -> int:
    """Bytes that the contents of all files take, in blocks of 4 KiB; a file of several names counts once."""
    return sum(entry.occupied for entry in entries)


def write(entries: Iterable[Entry], path: Path) -> None:
    """Write an inventory, whole or not at all."""
    head = {"format": _FORMAT, "version": _VERSION, "algorithm": ALGORITHM, "columns": Entry._fields}
    lines = [json.dumps(head), *(json.dumps(entry, separators=(",", ":")) for entry in entries)]
    packed = gzip.compress("".join(line + "\n" for line in lines).encode(), compresslevel=6, mtime=0)
    with files.writing(path) as temporary:
        temporary.write_bytes(packed)


def read(path: Path) -> list[Entry]:
    """The rows of an inventory.  Raises InputError where the file is none, or of a newer version."""
    try:
        with gzip.open(path) as stream:
            text = stream.read(_LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path} is not an inventory: not whole, or not made by gzip") from None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    if len(text) > _LARGEST:
        raise InputError(f"{path} is too large to be an inventory")
    first, _, rest = text.partition(b"\n")
    try:
        head = json.loads(first)
        if head["format"] != _FORMAT:
            raise ValueError
        if head["version"] > _VERSION or head["columns"] != list(Entry._fields):
            raise InputError(f"{path} was written by another version of this program", hint="update sage-chameleon")
        # one document, for the parser is several times faster in one go
        rows = json.loads(b"[" + rest.strip().replace(b"\n", b",") + b"]")
        return [Entry._make(row) for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{path} is not an inventory") from None


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Path and status of all below ``root``; links are not followed."""
    todo = [""]
    top = os.fspath(root)
    while todo:
        folder = todo.pop()
        with os.scandir(f"{top}/{folder}") as found:
            for item in found:
                path = f"{folder}{item.name}"
                yield path, item.stat(follow_symlinks=False)
                if item.is_dir(follow_symlinks=False):
                    todo.append(path + "/")


_BYTECODE = re.compile(r"(?:^|(?<=/))__pycache__/([^/]+?)\.[^./]+(?:\.opt-\d)?\.pyc$")


def _owner(path: str, owners: Mapping[str, str]) -> str:
    """The package of a file; Python's bytecode, which no package lists, goes with its source."""
    package = owners.get(path)
    if package is None and path.endswith(".pyc"):
        package = owners.get(_BYTECODE.sub(r"\1.py", path))
    return package or ""


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    if stat.S_ISLNK(mode):
        return Kind.SYMLINK
    if stat.S_ISFIFO(mode):
        return Kind.PIPE
    return Kind.SOCKET if stat.S_ISSOCK(mode) else Kind.DEVICE


def _digest(path: str, buffer: memoryview) -> str:
    """The digest of a file's content; one buffer for all files, for a new one each takes three times the time."""
    total = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            total.update(buffer[:count])
    return total.hexdigest()

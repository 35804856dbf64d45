# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: written beside their place and renamed; locks; digests."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from groundwork.errors import InputError, SageError

_BLOCK = 1 << 20
_REMOVING = ".removing"


class Locked(SageError):
    """Another program holds a lock; ``owner`` is its pid, or "unknown"."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"another run (pid {owner}) holds {path}", hint="wait for it to end, then run this again")
        self.owner = owner


@dataclass(frozen=True)
class Digests:
    """Hexadecimal digests and the size, in bytes, of one file."""

    size: int
    md5: str
    sha256: str
    sha512: str


def digest_file(path: Path) -> Digests:
    """All digests of a file in one read, at once on as many processors."""
    algorithms = [hashlib.md5(usedforsecurity=False), hashlib.sha256(), hashlib.sha512()]
    size = 0
    with path.open("rb") as stream, ThreadPoolExecutor(len(algorithms)) as pool:
        while block := stream.read(_BLOCK):
            size += len(block)
            for done in [pool.submit(algorithm.update, block) for algorithm in algorithms]:
                done.result()
    md5, sha256, sha512 = (algorithm.hexdigest() for algorithm in algorithms)
    return Digests(size, md5, sha256, sha512)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in a third of the time that all digests take."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def digest_tree(top: Path) -> str:
    """SHA-256 over the names, kinds, execute bits and contents of all below ``top``, in order of name.

    Byte code does not count.
    """
    total = hashlib.sha256()
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        links = [name for name in folders if Path(folder, name).is_symlink()]  # os.walk does not follow them
        for name in sorted([*names, *links]):
            if name.endswith(".pyc"):
                continue
            path = Path(folder, name)
            total.update(path.relative_to(top).as_posix().encode() + b"\0")
            if path.is_symlink():
                total.update(b"link\0" + os.readlink(path).encode() + b"\0")
            else:
                mode = b"x" if path.stat().st_mode & stat.S_IXUSR else b"-"
                total.update(mode + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def digest_text(*parts: str) -> str:
    """SHA-256 of the parts, each ended by a NUL."""
    return hashlib.sha256("".join(part + "\0" for part in parts).encode()).hexdigest()


@contextlib.contextmanager
def writing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well it is synced and renamed to ``path``.

    When the block fails, the temporary file is gone and ``path`` is as it was.  A file made by root in another
    user's folder is given to the folder's owner.
    """
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fchmod(descriptor, mode)
            give_to_owner_of(path.parent, temporary)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a text file as a whole.  With a mode of 0600 it is never readable by others, not even for a moment."""
    with writing(path, mode=mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> Path:
    """Make a folder and those above it; what root makes in another user's folder is given to that user."""
    if not path.is_dir():
        if path != path.parent:
            make_folder(path.parent)
        try:
            path.mkdir()
        except FileExistsError:
            if not path.is_dir():
                raise InputError(f"{path} is not a folder", hint="move it away or name another folder") from None
        except OSError as error:
            raise InputError(f"can't make the folder {path}: {error.strerror}") from None
        else:
            give_to_owner_of(path.parent, path)
    return path


def give_to_owner_of(folder: Path, path: Path) -> None:
    """As root: make ``path`` belong to whom ``folder`` belongs."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def remove_tree(path: Path) -> None:
    """Remove a folder with all below it, if it is there.

    It is renamed first, so that what an interrupted removal leaves is never taken for the whole;
    :func:`sweep_removals` takes that away.
    """
    if path.exists():
        doomed = removal_name(path)
        path.rename(doomed)
        shutil.rmtree(doomed)


def removal_name(path: Path) -> Path:
    """The name that a folder has while it is removed."""
    return path.with_name(f"{path.name}.{os.getpid()}{_REMOVING}")


def sweep_removals(folder: Path) -> None:
    """Finish, in this folder, the removals that killed programs had begun."""
    for left in folder.glob(f"*{_REMOVING}"):
        owner = left.name.removesuffix(_REMOVING).rpartition(".")[2]
        if not (owner.isdigit() and Path("/proc", owner).exists()):
            shutil.rmtree(left, ignore_errors=True)  # another program may be at it too


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of ``path`` or of its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def lock(
    path: Path, *, wait: float = 0.0, on_wait: Callable[[str], None] = lambda owner: None, shared: bool = False
) -> Iterator[None]:
    """Hold a ``flock`` on ``path``, which carries the pid of the last owner; exclusive, unless ``shared`` is given.

    Waits up to ``wait`` seconds for another owner (``on_wait`` is told its pid once), then raises Locked.
    The kernel frees the lock when the owner dies; the file stays.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        give_to_owner_of(path.parent, path)
        deadline = time.monotonic() + wait
        told = False
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            if not told:
                told = True
                on_wait(owner)
            if time.monotonic() >= deadline:
                raise Locked(path, owner)
            time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file (at most its last 64 KiB), or "" where there is no such file."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - (1 << 16)))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def join_names(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))

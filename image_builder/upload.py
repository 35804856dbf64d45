# SPDX-License-Identifier: Apache-2.0
"""An image on its way to several sites: read once for all, hashed on the way, a bounded part of it in memory.

Whichever site's thread comes first to a block of the file reads it, hashes it and leaves it in a window of 16 MiB,
where the others find it.  A site that falls behind the window reads for itself until it has caught up, and so does an
attempt that begins anew: a slow site never holds up the others, and costs a block of memory, whatever the image's size.

Nothing here knows Glance: a :class:`Body` is what :func:`image_builder.catalog.upload` sends.
"""

import collections
import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from chameleon_sites.sites import DiskFormat, Site, Upload
from groundwork import console, files
from groundwork.errors import InputError, SageError
from image_builder import disk
from image_builder.catalog import Stopped
from image_builder.manifest import ImageFile, Manifest

BLOCK = 1 << 18  # bytes that are read, hashed and sent at a time
_WINDOW = 64  # blocks that wait for sites that are not the first
_PART = 64 << 20  # bytes of a disk that are converted at a time; whole blocks
_PACE_SECONDS = 10.0  # the rate shown is that of the last seconds


@dataclass(frozen=True)
class Payload:
    """What a site gets: a file of the build, stored as ``form`` (its own, or raw); ``size`` in bytes, as ``form``."""

    file: ImageFile
    form: DiskFormat
    size: int

    @property
    def converted(self) -> bool:
        """Whether the file is converted on the way."""
        return self.form is not self.file.format

    def __str__(self) -> str:
        size = console.mebibytes(self.size) if self.size else "to be made"
        return f"{self.file.name}{f' as {self.form}' if self.converted else ''} ({size})"


Read = Callable[[int, int], bytes]  # offset, size -> so many bytes from there on
Opener = Callable[[], AbstractContextManager[Read]]  # gives each thread a way of its own to read


def payload_for(manifest: Manifest, site: Site) -> Payload | None:
    """What a site is to get of a build: raw where it wants that best, else the first of its formats that there is."""
    if site.formats[:1] == (DiskFormat.RAW,) and site.upload is not Upload.WEB_DOWNLOAD:
        file = manifest.file_for((DiskFormat.RAW, DiskFormat.QCOW2_ZSTD, DiskFormat.QCOW2_ZLIB))
        if file is not None and file.format is not DiskFormat.RAW:
            return Payload(file, DiskFormat.RAW, manifest.disk_size)
    file = manifest.file_for(site.formats)
    return Payload(file, file.format, file.size) if file else None


def feed_for(payload: Payload, folder: Path, scratch: Path | None) -> "Feed":
    """The payload of a build in ``folder``, to be read; nothing is opened yet."""
    path = folder / payload.file.name
    if payload.converted:
        return Feed(lambda: as_raw(path, payload.file, payload.size, scratch), payload.size, "sha512")
    # What is sent as it is has both digests in the manifest; this one costs half of the other's time.
    return Feed(lambda: from_file(path), payload.size, "sha256")


def changed(file: ImageFile, sha256: str) -> SageError:
    """The error for a file that is not what was built."""
    return SageError(
        f"{file.name} was changed after it was built: its sha256 is {sha256[:16]}..., the manifest says "
        f"{file.sha256[:16]}...",
        hint="build it again, or get the files back from where they were built",
    )


@contextlib.contextmanager
def from_file(path: Path) -> Iterator[Read]:
    """Read a file as it is."""
    with _told(path), path.open("rb", buffering=0) as stream:

        def read(offset: int, size: int) -> bytes:
            with _told(path):
                return os.pread(stream.fileno(), size, offset)

        yield read


@contextlib.contextmanager
def as_raw(path: Path, file: ImageFile, disk_size: int, scratch: Path | None) -> Iterator[Read]:
    """Read a disk image as the raw disk that it is, of ``disk_size`` bytes; raises SageError if it was changed.

    ``qemu-img`` can't write to a pipe, so 64 MiB of the disk at a time are converted to a file in ``scratch``, which
    has no name: nothing stays, whatever ends this program.
    """
    with _told(path):
        stands = _version(path)
        digest = files.sha256_file(path)
    if digest != file.sha256:
        raise changed(file, digest)
    begin = -1
    with tempfile.TemporaryFile(dir=files.make_folder(scratch) if scratch else None, buffering=0) as part:

        def read(offset: int, size: int) -> bytes:
            nonlocal begin
            if begin != offset // _PART * _PART:
                begin = offset // _PART * _PART
                target = Path(f"/proc/{os.getpid()}/fd/{part.fileno()}")
                disk.convert_part(path, file.format, begin, min(_PART, disk_size - begin), target)
                if _version(path) != stands:
                    raise SageError(f"{path} was changed while it was sent", hint="build it again")
            return os.pread(part.fileno(), size, offset - begin)

        yield read


class Feed:
    """What is sent, ``size`` bytes of it.  Give it back with :meth:`close` when all sites are done.

    ``algorithm``: ``sha256`` or ``sha512``, by which it is hashed.
    """

    def __init__(self, opener: Opener, size: int, algorithm: str) -> None:
        self.size = size
        self._opener = opener
        self._opened = ExitStack()
        self._read: Read | None = None
        self._hash = hashlib.new(algorithm)
        self._kept: collections.deque[bytes] = collections.deque(maxlen=_WINDOW)
        self._next = 0  # the first block that nobody has read
        self._reading = False
        self._turn = threading.Condition()

    @property
    def digest(self) -> str | None:
        """The digest of what was read, in hexadecimal, once all of it was; None before."""
        with self._turn:
            return self._hash.hexdigest() if self._next * BLOCK >= self.size else None

    def close(self) -> None:
        self._opened.close()

    def blocks(self) -> Iterator[bytes]:
        """All blocks in their order, for one site.  Raises SageError where the file is shorter than ``size``."""
        with ExitStack() as own:
            read: Read | None = None
            for index in range(-(-self.size // BLOCK)):
                block = self._shared(index)
                if block is None:
                    read = read or own.enter_context(self._opener())
                    block = self._whole(read, index)
                yield block

    def _shared(self, index: int) -> bytes | None:
        """A block of the window, read now where it is the next one; None where the window has passed it."""
        with self._turn:
            while index == self._next and self._reading:
                self._turn.wait()
            if index < self._next:
                first = self._next - len(self._kept)
                return self._kept[index - first] if index >= first else None
            self._reading = True
        try:
            if self._read is None:
                self._read = self._opened.enter_context(self._opener())
            block = self._whole(self._read, index)
            self._hash.update(block)
        except BaseException:
            with self._turn:  # the next site tries, and is told the same
                self._reading = False
                self._turn.notify_all()
            raise
        with self._turn:
            self._kept.append(block)
            self._next += 1
            self._reading = False
            self._turn.notify_all()
        return block

    def _whole(self, read: Read, index: int) -> bytes:
        offset = index * BLOCK
        wanted = min(BLOCK, self.size - offset)
        block = read(offset, wanted)
        if len(block) != wanted:
            raise SageError(f"the file has become shorter than {self.size} bytes", hint="build it again")
        return block


class Body:
    """A feed as the body of one request: its length is known, and it can be sent again from its beginning.

    ``on_progress`` is told the bytes sent so far, after each block.  Raises Stopped soon after ``stop`` is set.
    """

    def __init__(
        self,
        feed: Feed,
        on_progress: Callable[[int], None] = lambda sent: None,
        stop: threading.Event | None = None,
    ) -> None:
        self._feed, self._on_progress, self._stop = feed, on_progress, stop or threading.Event()

    def __len__(self) -> int:
        return self._feed.size

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        for block in self._feed.blocks():
            if self._stop.is_set():
                raise Stopped
            yield block
            sent += len(block)
            self._on_progress(sent)


class Pace:
    """How far an upload of ``size`` bytes has come, how fast it goes, and how long it still takes."""

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self.sent = 0
        self._seen = collections.deque([(now, 0)])  # times, bytes sent by then; of the last seconds

    def advance(self, sent: int, now: float) -> None:
        """``sent`` bytes are gone at the time ``now`` (seconds of a clock that does not jump)."""
        if sent < self.sent:  # the request is sent again
            self._seen.clear()
        self.sent = sent
        if not self._seen or now - self._seen[-1][0] >= _PACE_SECONDS / 20:
            self._seen.append((now, sent))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _PACE_SECONDS:
            self._seen.popleft()

    def told(self, now: float) -> str:
        """For people: ``42 % 61.0 MiB/s 12 s left``."""
        begin, before = self._seen[0]
        rate = (self.sent - before) / max(now - begin, 0.001)
        left = f" {_duration((self.size - self.sent) / rate)} left" if rate > 0 and self.sent < self.size else ""
        return f"{100 * self.sent // max(self.size, 1)} % {console.mebibytes(int(rate))}/s{left}"


def _version(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """An error of this machine's disk must not look like one of the site's."""
    try:
        yield
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from None

# SPDX-License-Identifier: Apache-2.0
"""One file for several sites: read once, hashed on the way, bounded in memory; who is slow holds nobody up."""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chameleon_sites.sites import DiskFormat, Site, SiteKind, Upload
from groundwork.errors import InputError, SageError
from image_builder import upload
from image_builder.catalog import Stopped
from image_builder.manifest import ImageFile
from image_builder.upload import BLOCK, Body, Feed, Pace, Payload, Read, payload_for
from tests.unit.image_builder.test_publish import manifest

DATA = os.urandom(100 * BLOCK + 1234)
WINDOW = 64


class Disk:
    """Data that count how they are read."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.opened = 0
        self.read: list[int] = []  # offsets

    @contextmanager
    def __call__(self) -> Iterator[Read]:
        self.opened += 1

        def read(offset: int, size: int) -> bytes:
            self.read.append(offset)
            return self.data[offset : offset + size]

        yield read


def feed_of(disk: Disk, size: int = len(DATA)) -> Feed:
    return Feed(disk, size, "sha512")


def together(feed: Feed, sites: int) -> list[bytes]:
    """What so many sites get that take their blocks in turn."""
    got = [bytearray() for _ in range(sites)]
    for blocks in zip(*(feed.blocks() for _ in range(sites)), strict=True):
        for mine, block in zip(got, blocks, strict=True):
            mine += block
    return [bytes(mine) for mine in got]


def test_the_file_is_read_once_for_all_sites() -> None:
    disk = Disk()
    assert together(feed_of(disk), 3) == [DATA] * 3
    assert disk.opened == 1
    assert disk.read == list(range(0, len(DATA), BLOCK))


def test_what_was_read_is_hashed_once_all_of_it_is_read() -> None:
    feed = feed_of(Disk())
    blocks = feed.blocks()
    for _ in range(100):
        next(blocks)
    assert feed.digest is None
    next(blocks)
    assert feed.digest == hashlib.sha512(DATA).hexdigest()


def test_a_site_within_the_window_reads_nothing() -> None:
    disk = Disk()
    feed = feed_of(disk)
    first, second = feed.blocks(), feed.blocks()
    for _ in range(WINDOW):
        next(first)
    assert b"".join(next(second) for _ in range(WINDOW)) == DATA[: WINDOW * BLOCK]
    assert disk.opened == 1


def test_a_site_behind_the_window_reads_for_itself_until_it_has_caught_up() -> None:
    disk = Disk()
    feed = feed_of(disk)
    fast, slow = feed.blocks(), feed.blocks()
    for _ in range(WINDOW + 20):
        next(fast)
    assert b"".join(slow) == DATA, "and does not wait for the fast one"
    assert b"".join(fast) == DATA[(WINDOW + 20) * BLOCK :]
    assert disk.opened == 2
    assert len(disk.read) == 101 + 20, "only what had left the window was read twice"
    assert feed.digest == hashlib.sha512(DATA).hexdigest()


def test_an_attempt_that_begins_anew_gets_everything() -> None:
    feed = feed_of(Disk())
    body = Body(feed)
    for _, block in zip(range(90), body, strict=False):
        assert block
    assert b"".join(body) == DATA
    assert feed.digest == hashlib.sha512(DATA).hexdigest()


def test_threads_of_any_speed_get_the_same() -> None:
    feed = feed_of(Disk())
    got: dict[int, str] = {}

    def take(number: int) -> None:
        total = hashlib.sha512()
        for index, block in enumerate(feed.blocks()):
            total.update(block)
            if number == 0 and index == 10:
                others_are_done.wait(10)
        got[number] = total.hexdigest()

    others_are_done = threading.Event()
    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join(10)
    assert set(got) == {1, 2, 3, 4, 5}, "the slow one held nobody up"
    others_are_done.set()
    threads[0].join(10)
    assert set(got.values()) == {hashlib.sha512(DATA).hexdigest()}


def test_every_site_is_told_of_a_file_that_became_shorter() -> None:
    feed = feed_of(Disk(DATA[:-1]))
    for _ in range(2):
        with pytest.raises(SageError, match="shorter"):
            list(feed.blocks())
    assert feed.digest is None


def test_a_disk_that_can_not_be_read_is_no_fault_of_a_site(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't read .*absent"):
        list(Feed(lambda: upload.from_file(tmp_path / "absent"), 5, "sha256").blocks())


def test_a_body_tells_its_length_and_its_progress() -> None:
    told: list[int] = []
    body = Body(feed_of(Disk(DATA[: 2 * BLOCK + 1]), 2 * BLOCK + 1), told.append)
    assert len(body) == 2 * BLOCK + 1
    assert len(list(body)) == 3
    assert told == [BLOCK, 2 * BLOCK, 2 * BLOCK + 1]


def test_a_body_ends_soon_after_it_is_told_to() -> None:
    stop = threading.Event()
    taken = 0
    with pytest.raises(Stopped):
        for _ in Body(feed_of(Disk()), lambda sent: stop.set(), stop):
            taken += 1
    assert taken == 1


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    pace = Pace(1000 << 20, 0.0)
    assert pace.told(0.0).startswith("0 %")
    for second in range(1, 21):  # 10 MiB/s, then 20
        pace.advance((second * 10 << 20) if second <= 10 else (100 << 20) + ((second - 10) * 20 << 20), float(second))
    assert pace.told(20.0) == "30 % 20.0 MiB/s 35 s left"
    pace.advance(1000 << 20, 21.0)
    assert "left" not in pace.told(21.0)


def test_a_request_that_is_sent_again_begins_at_nothing() -> None:
    pace = Pace(100 << 20, 0.0)
    pace.advance(90 << 20, 9.0)
    pace.advance(1 << 20, 10.0)
    pace.advance(6 << 20, 11.0)
    assert pace.told(11.0) == "6 % 5.0 MiB/s 19 s left"


def site(*formats: DiskFormat, way: Upload = Upload.DIRECT) -> Site:
    return Site("CHI@UC", "https://x/v3", SiteKind.BAREMETAL, formats, upload=way)


ZSTD, ZLIB, RAW = DiskFormat.QCOW2_ZSTD, DiskFormat.QCOW2_ZLIB, DiskFormat.RAW


@pytest.mark.parametrize(
    ("wants", "have", "gets", "stored"),
    [
        ((ZSTD, ZLIB, RAW), (ZLIB, ZSTD), ZSTD, ZSTD),
        ((ZSTD, ZLIB, RAW), (ZLIB,), ZLIB, ZLIB),
        ((RAW, ZLIB), (ZLIB, RAW), RAW, RAW),
        ((RAW, ZLIB), (ZLIB,), ZLIB, RAW),
        ((RAW,), (ZLIB, ZSTD), ZSTD, RAW),
    ],
)
def test_a_site_that_wants_raw_best_gets_raw_of_whatever_there_is(
    wants: tuple[DiskFormat, ...], have: tuple[DiskFormat, ...], gets: DiskFormat, stored: DiskFormat
) -> None:
    payload = payload_for(manifest(*have), site(*wants))
    assert payload is not None
    assert (payload.file.format, payload.form, payload.converted) == (gets, stored, gets is not stored)
    assert payload.size == (5 << 30 if payload.converted else 1)


def test_a_site_that_does_not_want_raw_is_not_given_it_by_conversion() -> None:
    assert payload_for(manifest(ZSTD), site(ZLIB, RAW)) is None


def test_what_a_site_downloads_itself_is_not_converted() -> None:
    assert payload_for(manifest(ZSTD), site(RAW, way=Upload.WEB_DOWNLOAD)) is None
    assert payload_for(manifest(ZSTD), site(RAW, ZSTD, way=Upload.WEB_DOWNLOAD)) == Payload(
        ImageFile(ZSTD, "qcow2-zstd.img", 1, "0", "0", "0"), ZSTD, 1
    )

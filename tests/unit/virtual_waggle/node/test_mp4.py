# SPDX-License-Identifier: Apache-2.0
"""The film without end; that players read it is an integration test."""

import struct
from collections.abc import Iterator

from virtual_waggle.node import mp4

WITHIN = {b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"mvex", b"moof", b"traf"}


def boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, int, bytes]]:
    """Kind, place and content of each box, those in boxes too."""
    while start < len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        assert 8 <= size <= len(data) - start, kind
        content = data[start + 8 : start + size]
        yield kind, start, content
        if kind in WITHIN:
            yield from boxes(content)
        start += size


def test_the_beginning_is_whole_boxes_and_tells_the_size() -> None:
    found = {kind: content for kind, _, content in boxes(mp4.beginning(800, 600))}
    assert {b"ftyp", b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"vmhd", b"stsd", b"stts", b"stsz", b"trex"} <= set(found)
    assert struct.unpack(">2I", found[b"tkhd"][-8:]) == (800 << 16, 600 << 16)
    assert [len(found[kind]) for kind in (b"mvhd", b"tkhd", b"mdhd", b"trex")] == [100, 84, 24, 24]


def test_a_fragment_points_at_its_picture_and_goes_on_in_time() -> None:
    pictures = [b"first", b"second picture"]
    for number, picture in enumerate(pictures):
        data = mp4.fragment(number, picture, 10)
        found = {kind: content for kind, _, content in boxes(data)}
        _, _, count, offset, duration, size = struct.unpack(">B3sIiII", found[b"trun"])
        assert (count, duration, data[offset : offset + size]) == (1, 9000, picture)
        assert struct.unpack(">Q", found[b"tfdt"][4:]) == (number * 9000,)
        assert struct.unpack(">I", found[b"mfhd"][4:]) == (number + 1,)

# SPDX-License-Identifier: Apache-2.0
"""A film without end out of JPEG pictures: fragmented MP4 (ISO 14496-12), each picture a fragment of its own.

Pure.  JPEG in MP4 is object type 0x6C of ISO 14496-1; ffmpeg, and so OpenCV, reads it.  Browsers don't.
"""

import struct

_TRACK = 1
_CLOCK = 90_000  # ticks a second
_JPEG = 0x6C
_MATRIX = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # neither turned nor moved
_BASE_IS_MOOF = 0x020000
_OFFSET_DURATION_SIZE = 0x000301


def beginning(width: int, height: int) -> bytes:
    """What comes before the first picture; sizes in pixels."""
    times = struct.pack(">4I", 0, 0, _CLOCK, 0)
    pace = struct.pack(">IH10x", 1 << 16, 1 << 8)  # normal speed, full volume
    movie = _full(b"mvhd", 0, 0, times, pace, _MATRIX, bytes(24), struct.pack(">I", _TRACK + 1))
    head = _full(
        b"tkhd", 0, 3, struct.pack(">5I", 0, 0, _TRACK, 0, 0), bytes(16), _MATRIX,
        struct.pack(">2I", width << 16, height << 16),
    )  # fmt: skip
    media = _box(
        b"mdia",
        _full(b"mdhd", 0, 0, struct.pack(">4IHH", 0, 0, _CLOCK, 0, 0x55C4, 0)),  # 0x55C4: no language
        _full(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, b"vide"), b"camera\0"),
        _box(
            b"minf",
            _full(b"vmhd", 0, 1, bytes(8)),
            _box(b"dinf", _full(b"dref", 0, 0, struct.pack(">I", 1), _full(b"url ", 0, 1))),
            _box(
                b"stbl",
                _full(b"stsd", 0, 0, struct.pack(">I", 1), _sample_entry(width, height)),
                *(_full(kind, 0, 0, struct.pack(">I", 0)) for kind in (b"stts", b"stsc", b"stco")),
                _full(b"stsz", 0, 0, struct.pack(">2I", 0, 0)),
            ),
        ),
    )
    extends = _box(b"mvex", _full(b"trex", 0, 0, struct.pack(">5I", _TRACK, 1, 0, 0, 0)))
    brands = struct.pack(">4sI", b"iso5", 512) + b"iso5" + b"mp41"
    return _box(b"ftyp", brands) + _box(b"moov", movie, _box(b"trak", head, media), extends)


def fragment(number: int, picture: bytes, rate: float) -> bytes:
    """The picture of this number, counted from 0; ``rate`` is in pictures a second."""
    duration = round(_CLOCK / rate)

    def moof(offset: int) -> bytes:
        return _box(
            b"moof",
            _full(b"mfhd", 0, 0, struct.pack(">I", number % (1 << 32) + 1)),
            _box(
                b"traf",
                _full(b"tfhd", 0, _BASE_IS_MOOF, struct.pack(">I", _TRACK)),
                _full(b"tfdt", 1, 0, struct.pack(">Q", number * duration)),
                _full(b"trun", 0, _OFFSET_DURATION_SIZE, struct.pack(">IiII", 1, offset, duration, len(picture))),
            ),
        )

    return moof(len(moof(0)) + 8) + _box(b"mdat", picture)


def _sample_entry(width: int, height: int) -> bytes:
    config = bytes([_JPEG, 0x11]) + bytes(11)  # a visual stream; buffer size and bit rates unknown
    stream = struct.pack(">HB", _TRACK, 0) + _descriptor(4, config) + _descriptor(6, b"\2")
    return _box(
        b"mp4v",
        struct.pack(">6xH16xHH", 1, width, height),
        struct.pack(">IIIH32xHh", 72 << 16, 72 << 16, 0, 1, 24, -1),  # 72 pixels an inch, 24 bits a pixel
        _full(b"esds", 0, 0, _descriptor(3, stream)),
    )


def _descriptor(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


def _full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)


def _box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, kind) + content

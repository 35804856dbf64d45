# SPDX-License-Identifier: Apache-2.0
"""What a camera stand-in shows: the user's pictures in turn, or generated ones, all as JPEG."""

import logging
import os
import random
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from groundwork.errors import SageError

logger = logging.getLogger(__name__)

SIZE = 800, 600  # pixels, as of 2020's playback server
MOST = 1000  # pictures of one camera
LARGEST = 8 << 20  # bytes of one picture
_ROUND = 100  # generated pictures until they come again
_SHADES = {"bottom": ((96, 108, 72), (168, 160, 120)), "top": ((64, 104, 168), (200, 216, 232))}


@dataclass(frozen=True)
class Camera:
    """A camera stand-in.  Its folder may hold pictures, also in ``images/`` below it, and a film; it need not exist."""

    name: str
    folder: Path


class Unreadable(SageError):
    """A file of the user's that is no picture."""


def shown(camera: Camera, now: float, rate: float) -> bytes:
    """The picture that the camera shows at a time (seconds since 1970).

    The user's pictures change every second, generated ones ``rate`` times a second.  Raises Unreadable.
    """
    files = listed(camera.folder, int(now))
    if files:
        return _read(files[int(now) % len(files)])
    return generated(camera.name, int(now * rate) % _ROUND)


@lru_cache(maxsize=4)
def listed(folder: Path, second: int) -> tuple[Path, ...]:
    """The pictures of a folder in the order of their names; looked for once a ``second``."""
    found = [
        path
        for place in (folder, folder / "images")
        if place.is_dir()
        for path in place.iterdir()
        if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()
    ]
    return tuple(sorted(found)[:MOST])


def film(folder: Path) -> Path | None:
    """The user's film: ``live.mp4``, else the first ``*.mp4`` by name."""
    usual = folder / "live.mp4"
    if usual.is_file():
        return usual
    return min((path for path in folder.glob("*.mp4") if path.is_file()), default=None)


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of a JPEG, in pixels.  Raises Unreadable."""
    try:
        with Image.open(BytesIO(picture), formats=["JPEG"]) as image:
            return image.width, image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"not a JPEG: {error}") from None


@lru_cache(maxsize=2 * _ROUND)
def generated(name: str, number: int) -> bytes:
    """A scene in which something moves, the same for the same number from 0 to 99."""
    far, near = _SHADES.get(name, _SHADES["bottom"])
    image = Image.linear_gradient("L").resize(SIZE)
    scene = Image.composite(Image.new("RGB", SIZE, near), Image.new("RGB", SIZE, far), image)
    draw = ImageDraw.Draw(scene)
    dice = random.Random(name)  # noqa: S311
    for _ in range(12):
        x, y, wide = dice.randrange(SIZE[0]), dice.randrange(SIZE[1]), dice.randrange(20, 90)
        draw.rectangle((x, y, x + wide, y + wide // 2), fill=tuple(dice.randrange(60, 200) for _ in range(3)))
    x = number * SIZE[0] // _ROUND
    draw.ellipse((x - 40, 260, x + 40, 340), fill=(240, 200, 40), outline=(80, 60, 0))
    draw.text((16, 16), f"{name} camera, generated picture {number}", fill=(255, 255, 255))
    return _jpeg(scene)


@lru_cache(maxsize=1)
def blank() -> bytes:
    """A black picture."""
    return _jpeg(Image.new("RGB", SIZE))


def noise() -> bytes:
    """A picture of black and white pixels at random, another each time."""
    return _jpeg(Image.frombytes("1", SIZE, os.urandom(SIZE[0] * SIZE[1] // 8)).convert("L"))


def _jpeg(image: Image.Image) -> bytes:
    output = BytesIO()
    image.save(output, "JPEG", quality=80)
    return output.getvalue()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            picture = stream.read(LARGEST + 1)
    except OSError as error:
        raise Unreadable(f"can't read {path.name}: {error.strerror}") from None
    if len(picture) > LARGEST:
        raise Unreadable(f"{path.name} is larger than {LARGEST >> 20} MiB")
    if not picture.startswith(b"\xff\xd8\xff"):
        raise Unreadable(f"{path.name} is not a JPEG")
    return picture

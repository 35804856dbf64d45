# SPDX-License-Identifier: Apache-2.0
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from virtual_waggle.node import pictures
from virtual_waggle.node.pictures import Camera, Unreadable


@pytest.fixture(autouse=True)
def look_anew() -> None:
    pictures.listed.cache_clear()


def jpeg(grey: int) -> bytes:
    output = BytesIO()
    Image.new("L", (32, 16), grey).save(output, "JPEG")
    return output.getvalue()


def grey(picture: bytes) -> int:
    with Image.open(BytesIO(picture)) as image:
        value = image.convert("L").getpixel((5, 5))
    assert isinstance(value, int)
    return value


def test_a_camera_without_pictures_shows_a_scene_that_moves(tmp_path: Path) -> None:
    bottom, top = (Camera(name, tmp_path / name) for name in ("bottom", "top"))
    first = pictures.shown(bottom, 1000.0, 10)
    assert pictures.size(first) == pictures.SIZE
    assert pictures.shown(bottom, 1000.0, 10) == first
    assert pictures.shown(bottom, 1000.1, 10) != first
    assert pictures.shown(top, 1000.0, 10) != first


def test_the_users_pictures_come_in_turn_from_both_places(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "images/b.JPEG").write_bytes(jpeg(255))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    camera = Camera("bottom", tmp_path)
    assert [grey(pictures.shown(camera, second, 10)) for second in (10.0, 10.9, 11.0, 12.0)] == [0, 0, 255, 0]


def test_a_file_that_is_no_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(Unreadable, match=r"a\.jpg is not a JPEG"):
        pictures.shown(Camera("top", tmp_path), 1.0, 10)
    monkeypatch.setattr(pictures, "LARGEST", 5)
    with pytest.raises(Unreadable, match=r"a\.jpg is larger"):
        pictures.shown(Camera("top", tmp_path), 1.0, 10)


def test_blank_is_black_and_noise_is_new_each_time() -> None:
    assert grey(pictures.blank()) == 0
    one, other = pictures.noise(), pictures.noise()
    assert one != other
    assert pictures.size(one) == pictures.size(pictures.blank()) == pictures.SIZE


def test_the_film_is_live_mp4_or_the_first(tmp_path: Path) -> None:
    assert pictures.film(tmp_path) is None
    (tmp_path / "b.mp4").touch()
    (tmp_path / "a.mp4").touch()
    assert pictures.film(tmp_path) == tmp_path / "a.mp4"
    (tmp_path / "live.mp4").touch()
    assert pictures.film(tmp_path) == tmp_path / "live.mp4"

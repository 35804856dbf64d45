# SPDX-License-Identifier: Apache-2.0
"""The camera stand-ins, as plugins see them; pywaggle's own camera and OpenCV are the judges."""

import http.client
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from groundwork import process
from tests.integration.waggle import brokers, services
from tests.integration.waggle.services import Service

SIZE = (800, 600)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The top camera has a picture of the user's and a film; the bottom one has nothing."""
    folder = tmp_path_factory.mktemp("playback")
    (folder / "top/images").mkdir(parents=True)
    Image.new("RGB", (64, 48), (250, 250, 250)).save(folder / "top/images/one.jpg")
    (folder / "top/live.mp4").write_bytes(bytes(range(256)) * 400)
    (folder / "secret.jpg").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def port(media: Path) -> Iterator[int]:
    (port,) = brokers.free_ports(1)
    with serving(media, port):
        yield port


def serving(media: Path, port: int) -> AbstractContextManager[Service]:
    return services.running("node.playback", media, environment(media, port))


def environment(media: Path, port: int) -> dict[str, str]:
    return {"WAGGLE_PLAYBACK": f"127.0.0.1:{port}", "WAGGLE_PLAYBACK_FOLDER": str(media)}


@pytest.fixture(autouse=True)
def ready(port: int) -> None:
    wait_for(port)


def wait_for(port: int) -> None:
    for _ in process.poll_until(20):
        if brokers.reachable(port):
            return
    raise RuntimeError("the playback server does not listen")


def ask(port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers=headers or {})
    return connection.getresponse()


@pytest.mark.parametrize("path", ["/blank.jpg", "/noise.jpg", "/bottom/image.jpg"])
def test_stills_are_jpegs_of_2020s_size(port: int, path: str) -> None:
    answer = ask(port, path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(answer.read())) as image:
        image.load()
        assert (image.format, image.size) == ("JPEG", SIZE)


def test_the_users_picture_is_shown_as_it_is(port: int, media: Path) -> None:
    assert ask(port, "/top/image.jpg").read() == (media / "top/images/one.jpg").read_bytes()


def test_the_users_film_comes_whole_or_by_ranges(port: int, media: Path) -> None:
    film = (media / "top/live.mp4").read_bytes()
    whole = ask(port, "/top/live.mp4")
    assert (whole.status, whole.headers["Content-Type"], whole.read()) == (200, "video/mp4", film)
    part = ask(port, "/top/live.mp4", {"Range": "bytes=1000-1999"})
    assert (part.status, part.headers["Content-Range"]) == (206, f"bytes 1000-1999/{len(film)}")
    assert part.read() == film[1000:2000]
    assert ask(port, "/top/live.mp4", {"Range": "bytes=-10"}).read() == film[-10:]
    beyond = ask(port, "/top/live.mp4", {"Range": f"bytes={len(film)}-"})
    assert (beyond.status, len(beyond.read()) < 1000) == (416, True)


def test_a_film_that_is_asked_for_by_its_head_is_not_sent(port: int) -> None:
    for path in ("/bottom/live.mp4", "/top/live.mp4", "/bottom/live.mjpg"):
        answer = ask(port, path, method="HEAD")
        assert (answer.status, answer.read()) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        *("/side/image.jpg", "/top", "/top/images/one.jpg", "/top/../secret.jpg", "/../secret.jpg", "/secret.jpg"),
        *(
            "/%2e%2e/secret.jpg",
            "/top/%2e%2e/secret.jpg",
            "//etc/passwd",
            "/top%2f..%2fsecret.jpg",
            "/top\\..\\secret.jpg",
        ),
        "/" + "a" * 4000,
    ],
)
def test_nothing_but_the_cameras_is_given_out(port: int, path: str) -> None:
    answer = ask(port, path)
    assert answer.status == 404
    assert b"secret" not in answer.read().replace(path.encode(), b"")


def test_other_methods_and_garbage_are_refused(port: int) -> None:
    assert ask(port, "/blank.jpg", method="POST").status == 405
    for request in (b"\x00\xff garbage\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(request)
            assert b" 400 Bad Request" in client.recv(64)
    assert ask(port, "/blank.jpg").status == 200


def test_mjpeg_is_pictures_one_after_the_other(port: int) -> None:
    answer = ask(port, "/bottom/live.mjpg")
    assert answer.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=picture"
    seen = set()
    for _ in range(5):
        assert answer.readline() == b"--picture\r\n"
        assert answer.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(answer.readline().split()[1])
        assert answer.readline() == b"\r\n"
        picture = answer.read(length)
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
        assert answer.readline() == b"\r\n"
        seen.add(picture)
    assert len(seen) == 5


def test_pywaggles_camera_sees_stills_and_films(port: int) -> None:
    from waggle.data.vision import Camera

    address = f"http://127.0.0.1:{port}/bottom"
    for place in ("image.jpg", "live.mp4", "live.mjpg"):
        assert Camera(f"{address}/{place}").snapshot().data.shape == (600, 800, 3)
    frames = 0
    for sample in Camera(f"{address}/live.mp4").stream():
        assert sample.data.shape == (600, 800, 3)
        frames += 1
        if frames > 30:  # as pywaggle's own tests have it
            break
    assert frames == 31


def test_a_plugins_camera_by_name(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from waggle.data import vision

    from virtual_waggle.node import data_config, state

    path = data_config.make(state.make_ready(tmp_path / "state"), "127.0.0.1", port)
    monkeypatch.setattr(vision, "WAGGLE_DATA_CONFIG_PATH", path)
    assert vision.Camera("bottom").snapshot().data.shape == (600, 800, 3)
    assert vision.Camera("bottom_image").snapshot().data.shape == (600, 800, 3)


def test_a_hundred_readers_of_streams_leave_room_for_nobody_and_then_for_all(media: Path) -> None:
    (port,) = brokers.free_ports(1)
    with serving(media, port):
        wait_for(port)
        readers = [ask(port, "/bottom/live.mjpg") for _ in range(100)]
        assert [reader.status for reader in readers] == [200] * 64 + [503] * 36
        refused = ask(port, "/blank.jpg")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        for reader in readers:
            reader.close()
        for _ in process.poll_until(20):
            if ask(port, "/blank.jpg").status == 200:
                return
        raise AssertionError("readers that went still count")


def test_it_ends_soon_with_readers_of_streams(media: Path) -> None:
    (port,) = brokers.free_ports(1)
    with serving(media, port) as service:
        wait_for(port)
        reader = ask(port, "/bottom/live.mp4")
        reader.read(1000)
        assert service.end() == 0
        reader.read()  # it was not cut off in the middle of a picture
        assert "Error" not in service.said()


@pytest.mark.parametrize(
    ("name", "value"),
    [("WAGGLE_PLAYBACK", "8090"), ("WAGGLE_PLAYBACK_RATE", "fast"), ("WAGGLE_PLAYBACK_RATE", "0")],
)
def test_a_wrong_variable_is_named(media: Path, name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "virtual_waggle.node.playback"],
        env={**os.environ, **environment(media, 1), name: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"{name}: " in done.stderr
    assert "Traceback" not in done.stderr

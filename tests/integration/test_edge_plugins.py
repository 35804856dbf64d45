# SPDX-License-Identifier: Apache-2.0
"""The example plugins run on unmodified pywaggle, which here logs into a folder instead of asking a broker."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

PLUGINS = Path(__file__).parents[2] / "elements/edge-plugins/edge-plugins-files"
NAMES = sorted(path.name for path in PLUGINS.iterdir())


def run(name: str, out: Path, *words: str) -> list[dict[str, Any]]:
    """Run a plugin; returns what it published."""
    env = {**os.environ, "PYWAGGLE_LOG_DIR": str(out), "WAGGLE_PLUGIN_HOST": "127.0.0.1", "WAGGLE_PLUGIN_PORT": "9"}
    command: list[str | Path] = [sys.executable, PLUGINS / name / "main.py", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "data.ndjson").read_text().splitlines()]


@pytest.fixture
def camera() -> Iterator[tuple[str, list[int]]]:
    """A camera's address, and the grey values of the images it gives, one after the other; -1 is no image."""
    greys: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            grey = greys.pop(0)
            if grey < 0:
                self.send_error(503)
                return
            image = io.BytesIO()
            Image.new("RGB", (64, 48), (grey, grey, grey)).save(image, "JPEG")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(image.getvalue())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/image.jpg", greys
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_is_laid_out_as_the_code_repository_wants_it(name: str) -> None:
    folder = PLUGINS / name
    data = yaml.safe_load((folder / "sage.yaml").read_text())
    assert {"name", "description", "version", "source"} <= set(data)
    assert {"architectures", "url", "branch", "directory", "dockerfile", "build_args"} <= set(data["source"])
    assert data["name"] == name
    assert (folder / data["source"]["dockerfile"]).is_file()
    shown = subprocess.run(
        [sys.executable, folder / "main.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [row["id"] for row in data["inputs"] if f"--{row['id']} " not in shown] == []


def test_system_load_says_what_the_kernel_says(tmp_path: Path) -> None:
    published = run("system-load", tmp_path, "--count", "2", "--interval", "0")
    names = [row["name"] for row in published]
    assert len(names) == 12
    assert set(names) == {
        *("system.load1", "system.load5", "system.load15", "system.uptime"),
        *("system.mem.total", "system.mem.available"),
    }
    values = {row["name"]: row["value"] for row in published}
    assert values["system.mem.total"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < values["system.mem.available"] < values["system.mem.total"]
    assert values["system.uptime"] > 0


def test_camera_brightness_uploads_when_the_light_changes(tmp_path: Path, camera: tuple[str, list[int]]) -> None:
    address, greys = camera
    greys += [10, 20, -1, 200, 210]
    published = run("camera-brightness", tmp_path, "--camera", address, "--count", "5", "--interval", "0")
    found = {name: [round(row["value"]) for row in published if row["name"] == name] for name in
             ("image.brightness", "image.contrast", "image.missing")}  # fmt: skip
    assert found == {"image.brightness": [10, 20, 200, 210], "image.contrast": [0] * 4, "image.missing": [1]}
    assert {row["meta"].get("camera") for row in published if row["name"] != "upload"} == {address}
    uploads = [row for row in published if row["name"] == "upload"]
    assert [row["meta"]["brightness"] for row in uploads] == ["10.0", "200.0"]
    with Image.open(uploads[1]["value"]) as image:
        assert image.getpixel((0, 0)) == (200, 200, 200)

# SPDX-License-Identifier: Apache-2.0
"""Waggle plugin: publishes a camera's brightness and uploads an image when it changes."""

import argparse
import io
import logging
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image, ImageStat

try:
    from waggle.plugin import Plugin
except ImportError:  # built where PyPI can't be reached
    from virtual_waggle.plugin import Plugin

CAMERA = "http://playback:8090/bottom/image.jpg"
LARGEST = 32 << 20  # bytes of an image
ENDINGS = {"JPEG": "jpg", "PNG": "png"}


def fetch(address):
    """The image at an address: its bytes."""
    if not address.startswith(("http://", "https://")):
        raise ValueError("expected an address that begins with http:// or https://")
    with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310 - checked above
        return answer.read(LARGEST)


def look(data):
    """Mean and standard deviation of the grey values, 0 to 255, and the ending of the file's name."""
    image = Image.open(io.BytesIO(data), formats=list(ENDINGS))
    statistics = ImageStat.Stat(image.convert("L"))
    return statistics.mean[0], statistics.stddev[0], ENDINGS[image.format]


def upload(plugin, data, ending, now, brightness):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image." + ending)
        path.write_bytes(data)
        plugin.upload_file(path, timestamp=now, meta={"brightness": f"{brightness:.1f}"})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--camera", default=CAMERA, help="address of a still image")
    parser.add_argument("--change", type=float, default=25.0, help="change of brightness that is worth an upload")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between images")
    parser.add_argument("--count", type=int, default=0, help="how often; 0: without end")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    meta = {"camera": given.camera}
    uploaded = None
    done = 0
    with Plugin() as plugin:
        while True:
            now = time.time_ns()
            try:
                data = fetch(given.camera)
                brightness, contrast, ending = look(data)
            except (OSError, ValueError, SyntaxError) as error:  # Pillow raises the last for a broken PNG
                logging.warning("no image from %s: %s", given.camera, error)
                plugin.publish("image.missing", 1, meta=meta, timestamp=now)
            else:
                plugin.publish("image.brightness", brightness, meta=meta, timestamp=now)
                plugin.publish("image.contrast", contrast, meta=meta, timestamp=now)
                if uploaded is None or abs(brightness - uploaded) >= given.change:
                    upload(plugin, data, ending, now, brightness)
                    uploaded = brightness
            done += 1
            if done == given.count:
                return
            time.sleep(given.interval)


if __name__ == "__main__":
    main()

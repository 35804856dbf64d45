# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks uploads``: publishing 1 GiB at three sites, against three uploads by curl at once."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import openstack

from chameleon_sites.sites import DiskFormat
from groundwork import console, files
from image_builder import manifest
from image_builder.manifest import CheckReport, CheckResult, ImageFile, Manifest
from tests.benchmarks.figures import SITES, Figure, local_sites, seconds
from tests.integration import commands

_SIZE = 1 << 30
_ROUNDS = 5


def uploads() -> list[Figure]:
    """Time and memory of ``sage-image publish``, from the start of the program to its end."""
    ours, curls, most = [], [], []
    with tempfile.TemporaryDirectory(dir="build", prefix="bench.") as scratch:
        top = Path(scratch).absolute()
        with local_sites(top):
            image = random_image(top / "image.qcow2")
            for number in range(_ROUNDS):
                folder = build_of(image, top / str(number), number)
                with console.stage(f"round {number + 1} of {_ROUNDS}") as stage:
                    ours.append(seconds(lambda folder=folder: most.append(publish(folder))))  # type: ignore[misc]
                    curls.append(curl(image))
                    stage.note = f"{ours[-1]:.2f} s against {curls[-1]:.2f} s, {most[-1] >> 20} MiB"
    ratios = [mine / other for mine, other in zip(ours, curls, strict=True)]
    how = (
        f"median of {_ROUNDS} rounds, {min(ratios):.2f} to {max(ratios):.2f}; {median(ours):.1f} s for `sage-image "
        f"publish` of 1 GiB of random data, with hashing and swapping, against {median(curls):.1f} s for three "
        f"`curl -T` of the file at once"
    )
    memory = "the most resident memory of that process (VmHWM) in any round"
    return [
        Figure("publish 1 GiB at three sites / three curl uploads at once", median(ratios), "ratio", 1.15, how),
        Figure("memory of publish at three sites", max(most) / 1e6, "MB", 200, memory),
    ]


def random_image(path: Path) -> Path:
    """A qcow2 of random data."""
    raw = path.with_suffix(".raw")
    with raw.open("wb") as stream:
        for _ in range(_SIZE >> 20):
            stream.write(os.urandom(1 << 20))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, path], check=True, timeout=300)
    raw.unlink()
    return path


def build_of(image: Path, folder: Path, number: int) -> Path:
    """A finished build of the image file, each of another recipe."""
    files.make_folder(folder)
    (folder / image.name).hardlink_to(image)
    found = files.digest_file(image)
    checks = CheckReport((CheckResult("made up", "bios", True, 0.0, "", ""),), {})
    made = Manifest(
        build_id=f"build-{number}",
        image_name="Sage-Bench",
        variant="sage",
        release="noble",
        os_name="Ubuntu",
        os_version="24.04",
        arch="amd64",
        recipe_digest=f"{number:064}",
        checks_digest="",
        built_at=f"2026-11-20T03:00:{number:02}Z",
        project_version="0",
        commit=None,
        clean=None,
        elements={},
        packages=(),
        disk_size=_SIZE,
        files=(ImageFile(DiskFormat.QCOW2_ZLIB, image.name, found.size, found.md5, found.sha256, found.sha512),),
        checks=checks,
        stage_seconds={},
    )
    manifest.write(made, folder)
    return folder


def publish(folder: Path) -> int:
    """Publish at all sites; returns the most memory, in bytes, that it took."""
    words = [word for site in SITES for word in ("--site", site)]
    process = commands.start("sage-image", "publish", folder, *words, "--keep", "1")
    memory = commands.watch_memory(process)
    done = commands.finish(process)
    if done.code != 0:
        raise SystemExit(f"sage-image failed:\n{done.err}")
    return memory


def curl(path: Path) -> float:
    """Seconds of plain uploads to all sites at once; the images are made before and deleted after."""
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(_curl_command(path, site)) for site in SITES]

        def run() -> None:
            for started in [subprocess.Popen(line) for line in lines]:
                if started.wait(timeout=600) != 0:
                    raise SystemExit("curl failed")

        return seconds(run)


@contextlib.contextmanager
def _curl_command(path: Path, site: str) -> Iterator[list[str]]:
    connection: Any = openstack.connect(cloud=site.replace("@", "_").lower())
    image = connection.image.create_image("curl", disk_format="qcow2", container_format="bare")
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".curl") as config:
            endpoint = str(connection.image.get_endpoint()).rstrip("/").removesuffix("/v2")
            config.write(f'header = "X-Auth-Token: {connection.auth_token}"\n')
            config.write('header = "Content-Type: application/octet-stream"\n')
            config.write(f'url = "{endpoint}/v2/images/{image.id}/file"\n')
            config.flush()
            yield ["curl", "--silent", "--fail", "--config", config.name, "--upload-file", str(path)]
    finally:
        connection.image.delete_image(image.id)
        connection.close()

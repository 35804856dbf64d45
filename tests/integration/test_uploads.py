# SPDX-License-Identifier: Apache-2.0
"""How an image gets to real Glances: by upload, by import, as raw; within bounds of memory, and whoever is slow."""

import functools
import hashlib
import http.server
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites.sites import DiskFormat, Site, Upload, load_sites
from groundwork import files
from image_builder import manifest
from image_builder.manifest import ImageFile
from image_builder.publication import Outcome, SitePublication
from tests.integration import commands, glance_proxy
from tests.integration.glance_proxy import Call, Moment
from tests.integration.test_publish import NAMES, Bench, bench

__all__ = ["bench"]  # the fixture

MIB = 1 << 20


def qcow2_build(bench: Bench, number: int, size: int) -> Path:
    """A build that holds a compressed qcow2 alone; its disk, of ``size`` bytes, lies beside it as ``disk``."""
    folder = bench.build(number, size=1)
    disk = folder / "disk"
    with disk.open("wb") as stream:
        stream.truncate(size)
        for place in (0, 70 * MIB, size - 100_000):  # in several parts; the rest are holes
            stream.seek(place)
            stream.write(hashlib.shake_128(bytes([number])).digest(100_000))
    image = folder / "image, zstd.qcow2"  # a comma has a meaning in qemu's options
    options = ["-c", "-O", "qcow2", "-o", "compression_type=zstd"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, disk, image], check=True, timeout=60)
    digests = files.digest_file(image)
    file = ImageFile(DiskFormat.QCOW2_ZSTD, image.name, digests.size, digests.md5, digests.sha256, digests.sha512)
    made, _ = manifest.read(folder)
    manifest.write(replace(made, files=(file,), disk_size=size), folder)
    return folder


def raw_site(name: str) -> Site:
    return replace(load_sites()[name], formats=(DiskFormat.RAW, DiskFormat.QCOW2_ZSTD))


def problem(row: SitePublication) -> str:
    assert row.problem is not None
    return row.problem.message


# Raw, made on the way


def test_a_site_that_wants_raw_gets_it_made_of_the_qcow2_on_the_way(bench: Bench) -> None:
    size = 200 * MIB + 512
    folder = qcow2_build(bench, 1, size)
    scratch = bench.folder / "scratch"
    report = bench.publish(folder, raw_site("CHI@UC"), load_sites()["CHI@TACC"], raw_site("KVM@TACC"), scratch=scratch)
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED] * 3, report
    for site in ("CHI@UC", "KVM@TACC"):
        (image,) = bench.ours(site)
        assert (image.disk_format, image.size, image.properties["sage_format"]) == ("raw", size, "raw")
        assert image.os_hash_value == files.digest_file(folder / "disk").sha512
        assert image.properties["sage_sha512"] == image.os_hash_value
    (image,) = bench.ours("CHI@TACC")
    assert (image.disk_format, image.size) == ("qcow2", (folder / "image, zstd.qcow2").stat().st_size)
    assert list(scratch.iterdir()) == [], "parts of the disk have no names"
    again = bench.publish(folder, raw_site("CHI@UC"), force=True, scratch=scratch)
    assert [row.outcome for row in again.sites] == [Outcome.UNCHANGED]


def test_a_qcow2_that_was_changed_is_not_converted(bench: Bench) -> None:
    folder = qcow2_build(bench, 1, 100 * MIB)
    image = folder / "image, zstd.qcow2"
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    report = bench.publish(folder, raw_site("CHI@UC"))
    assert "was changed after it was built" in problem(report.sites[0])
    assert report.sites[0].uploaded == 0
    assert bench.ours() == []


# Import


@contextmanager
def web(folder: Path) -> Iterator[str]:
    """A web server of a folder, on loopback."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def published_folder(bench: Bench, build: Path) -> Path:
    """The build where create-image would have put it: below the output folder."""
    place = bench.folder / "output" / bench.name / build.name
    place.parent.mkdir(parents=True, exist_ok=True)
    return build.rename(place)


def test_a_site_imports_what_was_staged(bench: Bench) -> None:
    site = replace(load_sites()["CHI@UC"], upload=Upload.IMPORT)
    for number in (1, 2):
        report = bench.publish(bench.build(number, size=3 * MIB), site)
        assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED], report.sites[0].problem
        assert report.sites[0].uploaded == 3 * MIB
    assert bench.names() == ["Sage", "Sage-20261120T030100Z"]
    assert bench.ours()[0].os_hash_value == bench.ours()[0].properties["sage_sha512"]


def test_a_site_downloads_the_image_itself(bench: Bench) -> None:
    folder = published_folder(bench, bench.build(1, size=3 * MIB))
    with web(bench.folder / "output") as url:
        site = replace(load_sites()["CHI@UC"], upload=Upload.WEB_DOWNLOAD, download_from=url)
        report = bench.publish(folder, site)
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED], report.sites[0].problem
    assert report.sites[0].uploaded == 0
    assert bench.ours()[0].os_hash_value == files.digest_file(folder / "image.raw").sha512


def test_what_a_site_downloads_is_checked_like_what_is_sent(bench: Bench) -> None:
    folder = published_folder(bench, bench.build(1, size=3 * MIB))
    elsewhere = bench.folder / "mirror" / bench.name / folder.name
    elsewhere.mkdir(parents=True)
    (elsewhere / "image.raw").write_bytes(b"x" * 3 * MIB)
    with web(bench.folder / "mirror") as url:
        site = replace(load_sites()["CHI@UC"], upload=Upload.WEB_DOWNLOAD, download_from=url)
        report = bench.publish(folder, site)
    assert "received other data than were built" in problem(report.sites[0])
    assert bench.ours() == []


def test_a_download_that_fails_is_told_and_leaves_nothing(bench: Bench) -> None:
    folder = published_folder(bench, bench.build(1))
    with web(bench.folder / "locks") as url:  # has no images
        site = replace(load_sites()["CHI@UC"], upload=Upload.WEB_DOWNLOAD, download_from=url)
        report = bench.publish(folder, site, load_sites()["CHI@TACC"])
    assert [row.outcome for row in report.sites] == [Outcome.FAILED, Outcome.PUBLISHED]
    assert "could not import the image by web-download" in problem(report.sites[0])
    assert bench.ours() == []


# Memory and speed


def test_memory_is_bounded_whatever_the_size_of_the_image_and_the_number_of_sites(bench: Bench) -> None:
    made, folder = manifest.read(bench.build(1))
    size = 600 * MIB
    with (folder / "image.raw").open("wb") as stream:
        stream.truncate(size)
    digests = files.digest_file(folder / "image.raw")
    file = ImageFile(DiskFormat.RAW, "image.raw", digests.size, digests.md5, digests.sha256, digests.sha512)
    manifest.write(replace(made, files=(file,)), folder)
    process = bench.start(folder)
    memory = commands.watch_memory(process)
    assert process.wait() == 0
    assert memory < 200e6
    for site in NAMES:
        assert bench.ours(site)[0].size == size


def test_a_slow_site_holds_up_no_other(bench: Bench, local_chameleon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bench.build(1, size=60 * MIB)
    with glance_proxy.proxies({"CHI@UC": local_chameleon.endpoints["CHI@UC"]["image"]}) as made:
        clouds_yaml = glance_proxy.lead_through(local_chameleon.clouds_yaml, made, bench.folder / "clouds.yaml")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds_yaml))

        def hook(call: Call, moment: Moment) -> None:
            if call.method == "PUT" and moment == "half":
                time.sleep(8.0)

        made["CHI@UC"].hook = hook
        report = bench.publish(folder)
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED] * 3
    slow, *others = report.sites
    assert slow.seconds > 8.0 > max(row.seconds for row in others)
    assert bench.ours()[0].os_hash_value == files.digest_file(folder / "image.raw").sha512

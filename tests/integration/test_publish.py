# SPDX-License-Identifier: Apache-2.0
"""Publishing at three real Glances: rotation, retention, refusals, interruptions."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from chameleon_sites import cloud
from chameleon_sites.sites import DiskFormat, Site, load_sites
from groundwork import files, products
from image_builder import catalog, manifest, publish
from image_builder.catalog import Change, SiteImage, Visibility
from image_builder.manifest import ImageFile, Manifest
from image_builder.publication import Outcome, PublishOptions, PublishReport, exit_code

NAMES = ("CHI@UC", "CHI@TACC", "KVM@TACC")

# A publisher in a process of its own.
PROGRAM = """
import sys
from pathlib import Path
from chameleon_sites.sites import load_sites
from groundwork import program
from image_builder import manifest, publish
from image_builder.publication import PublishOptions, exit_code

folder, state, *names = sys.argv[1:]

def main():
    made, where = manifest.read(Path(folder))
    sites = [load_sites()[name] for name in names]
    report = publish.publish(made, where, sites, PublishOptions(keep=2, state=Path(state)))
    for site in report.sites:
        if site.problem:
            print(site.site, site.problem.message)
    return exit_code(report)

program.run_program(main)
"""


@dataclass(frozen=True)
class Bench:
    """Three sites with nothing of this test's name, and what a test does with them."""

    name: str
    folder: Path
    clouds_yaml: Path
    connections: dict[str, Any]

    def build(self, number: int | str, *, size: int = 1 << 16, built_at: str | None = None) -> Path:
        """A finished build's folder; builds of different numbers have different recipes and contents."""
        folder = self.folder / f"build-{number}"
        folder.mkdir()
        (folder / "image.raw").write_bytes(os.urandom(size))
        digests = files.digest_file(folder / "image.raw")
        made = Manifest(
            build_id=f"build-{number}",
            image_name=self.name,
            variant="sage",
            release="noble",
            os_name="Ubuntu",
            os_version="24.04",
            arch="amd64",
            recipe_digest=f"recipe-{number}",
            checks_digest="checks",
            built_at=built_at or f"2026-11-20T03:{number:02}:00Z",
            project_version="0",
            commit=None,
            clean=None,
            elements={},
            packages=(),
            disk_size=5 << 30,
            files=(ImageFile(DiskFormat.RAW, "image.raw", digests.size, digests.md5, digests.sha256, digests.sha512),),
            checks=None,
            stage_seconds={},
        )
        manifest.write(made, folder)
        return folder

    def publish(self, folder: Path, *sites: Site, **options: Any) -> PublishReport:
        made, where = manifest.read(folder)
        chosen = sites or tuple(load_sites()[name] for name in NAMES)
        return publish.publish(made, where, chosen, PublishOptions(state=self.folder / "state", **options))

    def start(self, folder: Path, *names: str) -> "subprocess.Popen[bytes]":
        words = [str(folder), str(self.folder / "state"), *(names or NAMES)]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            env={**os.environ, "OS_CLIENT_CONFIG_FILE": str(self.clouds_yaml), "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ours(self, site: str = "CHI@UC") -> list[SiteImage]:
        images = catalog.list_ours(self.connections[site], self.name)
        return sorted(images, key=lambda image: image.name)

    def names(self, site: str = "CHI@UC") -> list[str]:
        """The listed images' names without the public name's beginning, ``hidden`` where one is."""
        return [
            image.name.replace(self.name, "Sage") + (" (hidden)" if image.hidden else "") for image in self.ours(site)
        ]


@contextmanager
def new_bench(clouds_yaml: Path, folder: Path) -> Iterator[Bench]:
    """A bench on the sites of ``clouds_yaml``, which OS_CLIENT_CONFIG_FILE names; nothing of it stays."""
    connections: dict[str, Any] = {name: cloud.connect(load_sites()[name]) for name in NAMES}
    made = Bench(f"Sage-T{os.getpid()}-{time.time_ns()}", folder, clouds_yaml, connections)
    yield made
    for site in NAMES:
        for image in made.ours(site):
            if image.protected:
                connections[site].image.update_image(image.id, is_protected=False)
            catalog.delete(connections[site], image.id)


@pytest.fixture
def bench(local_chameleon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(local_chameleon.clouds_yaml))
    for variable in [name for name in os.environ if name.startswith("OS_") and name != "OS_CLIENT_CONFIG_FILE"]:
        monkeypatch.delenv(variable)
    with new_bench(local_chameleon.clouds_yaml, tmp_path) as made:
        yield made


def outcomes(report: PublishReport) -> list[Outcome]:
    assert all((row.problem is None) == (row.outcome is not Outcome.FAILED) for row in report.sites)
    return [row.outcome for row in report.sites]


def test_the_first_image_gets_the_name_at_every_site(bench: Bench) -> None:
    report = bench.publish(bench.build(1))
    assert outcomes(report) == [Outcome.PUBLISHED] * 3
    assert exit_code(report) == 0
    for site in NAMES:
        (image,) = bench.ours(site)
        assert (image.name, image.hidden, image.status, image.state) == (bench.name, False, "active", "current")
        everything = bench.connections[site].image.get_image(image.id)
        assert everything.min_disk == 5
        assert everything.properties["build-variant"] == "sage"
        assert not {"build-repo", "chameleon-supported"} & set(everything.properties)
    assert all(row.uploaded == 1 << 16 for row in report.sites)


def test_later_images_rotate_and_the_oldest_goes(bench: Bench) -> None:
    for number in (1, 2, 3, 4):
        assert outcomes(bench.publish(bench.build(number), keep=3)) == [Outcome.PUBLISHED] * 3
    for site in NAMES:
        assert bench.names(site) == ["Sage", "Sage-20261120T030200Z", "Sage-20261120T030300Z"]
        assert bench.ours(site)[0].recipe_digest == "recipe-4"


def test_what_stands_is_not_uploaded_again(bench: Bench) -> None:
    folder = bench.build(1)
    before = [row.image_id for row in bench.publish(folder).sites]
    report = bench.publish(folder)
    assert outcomes(report) == [Outcome.UNCHANGED] * 3
    assert [row.image_id for row in report.sites] == before
    assert all(row.uploaded == 0 and row.plan == () for row in report.sites)


def test_an_older_build_that_still_stands_gets_the_name_without_an_upload(bench: Bench) -> None:
    first, second = bench.build(1), bench.build(2)
    bench.publish(first)
    bench.publish(second)
    report = bench.publish(first)
    assert outcomes(report) == [Outcome.PUBLISHED] * 3
    assert all(row.uploaded == 0 for row in report.sites)
    assert bench.names() == ["Sage", "Sage-20261120T030200Z"]
    assert bench.ours()[0].recipe_digest == "recipe-1"


def test_a_dry_run_changes_nothing(bench: Bench) -> None:
    bench.publish(bench.build(1))
    before = bench.ours()
    report = bench.publish(bench.build(2), dry_run=True)
    assert outcomes(report) == [Outcome.WOULD_PUBLISH] * 3
    assert [step.split()[0] for step in report.sites[0].plan] == ["upload", "set", "hide", "give", "back-date"]
    assert bench.ours() == before


def test_a_file_that_changed_after_the_build_is_never_promoted(bench: Bench) -> None:
    bench.publish(bench.build(1))
    folder = bench.build(2)
    data = bytearray((folder / "image.raw").read_bytes())
    data[1000] ^= 1
    (folder / "image.raw").write_bytes(data)
    report = bench.publish(folder)
    assert exit_code(report) == 1
    assert all(
        row.problem and "image.raw was changed after it was built" in row.problem.message for row in report.sites
    )
    for site in NAMES:
        assert bench.names(site) == ["Sage"]
        assert bench.ours(site)[0].recipe_digest == "recipe-1"


def test_where_public_is_refused_the_next_visibility_counts(bench: Bench) -> None:
    folder = bench.build(1)
    report = bench.publish(folder, visibility=(Visibility.PUBLIC, Visibility.COMMUNITY))
    assert [row.visibility for row in report.sites] == [Visibility.COMMUNITY] * 3
    assert all("refused" in row.warnings[0] for row in report.sites)
    assert {image.visibility for image in bench.ours()} == {"community"}
    report = bench.publish(folder, visibility=(Visibility.SHARED,))
    assert outcomes(report) == [Outcome.UNCHANGED] * 3
    assert {image.visibility for image in bench.ours()} == {"shared"}


def test_where_every_visibility_is_refused_the_old_image_stays(bench: Bench) -> None:
    bench.publish(bench.build(1))
    report = bench.publish(bench.build(2), visibility=(Visibility.PUBLIC,))
    assert exit_code(report) == 1
    assert bench.names() == ["Sage"]
    assert bench.ours()[0].recipe_digest == "recipe-1"


def test_a_site_that_is_down_stops_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    document = yaml.safe_load(bench.clouds_yaml.read_text())
    document["clouds"]["chi_tacc"]["auth"]["auth_url"] = "http://127.0.0.1:9/v3"
    (bench.folder / "clouds.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(bench.folder / "clouds.yaml"))
    report = bench.publish(bench.build(1))
    assert outcomes(report) == [Outcome.PUBLISHED, Outcome.FAILED, Outcome.PUBLISHED]
    assert exit_code(report) == 3
    assert report.sites[1].problem
    assert "connection refused" in report.sites[1].problem.message
    found = publish.inventory([load_sites()[name] for name in NAMES], bench.name)
    assert [len(row.images) for row in found] == [1, 0, 1]
    assert exit_code(*found) == 3


def test_wrong_credentials_are_wrong_input(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    document = yaml.safe_load(bench.clouds_yaml.read_text())
    for entry in document["clouds"].values():
        if "application_credential_secret" in entry["auth"]:
            entry["auth"]["application_credential_secret"] = "hunter2"
    (bench.folder / "clouds.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(bench.folder / "clouds.yaml"))
    report = bench.publish(bench.build(1))
    assert exit_code(report) == 2
    assert all(row.problem and "credentials" in row.problem.message for row in report.sites)
    assert "hunter2" not in str(products.to_data(report))


def test_images_of_others_are_untouched(bench: Bench) -> None:
    ours, theirs = bench.connections["CHI@UC"], cloud.connect(replace(load_sites()["CHI@UC"], cloud="chi_uc_2"))
    made = []
    try:
        for connection, visibility in ((ours, "private"), (theirs, "community")):
            made.append(
                (
                    connection,
                    connection.image.create_image(
                        bench.name,
                        data=b"x",
                        disk_format="raw",
                        container_format="bare",
                        visibility=visibility,
                        allow_duplicates=True,
                    ).id,
                )
            )
        before = [connection.image.get_image(image_id).to_dict() for connection, image_id in made]
        # A hand-made image of this project has the name: there would be two.
        report = bench.publish(bench.build(1))
        assert outcomes(report) == [Outcome.FAILED, Outcome.PUBLISHED, Outcome.PUBLISHED]
        assert report.sites[0].problem
        assert "not made by this program" in report.sites[0].problem.message
        assert bench.ours() == []
        assert [connection.image.get_image(image_id).to_dict() for connection, image_id in made] == before
        # Another project's is no hindrance, and stays as well.
        made[0][0].image.delete_image(made[0][1])
        assert outcomes(bench.publish(bench.build(2), keep=1)) == [Outcome.PUBLISHED] * 3
        assert theirs.image.get_image(made[1][1]).to_dict() == before[1]
    finally:
        for connection, image_id in made:
            connection.image.delete_image(image_id)


def test_a_protected_image_outlives_retention(bench: Bench) -> None:
    bench.publish(bench.build(1))
    bench.connections["CHI@UC"].image.update_image(bench.ours()[0].id, is_protected=True)
    for number in (2, 3):
        report = bench.publish(bench.build(number), keep=1)
        assert exit_code(report) == 0
    assert bench.names("CHI@UC") == ["Sage", "Sage-20261120T030100Z"]
    assert bench.names("CHI@TACC") == ["Sage"]


def _wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_interrupted_in_mid_upload_leaves_nothing(bench: Bench, number: signal.Signals) -> None:
    assert bench.start(bench.build(1)).wait() == 0
    process = bench.start(bench.build(2, size=300 << 20))
    _wait(lambda: any(image.status == "saving" for image in bench.ours()))
    begin = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == 128 + number, output.decode()
    for site in NAMES:
        assert bench.names(site) == ["Sage"]
        assert bench.ours(site)[0].recipe_digest == "recipe-1"


def test_what_a_killed_upload_left_goes_with_the_next_run(bench: Bench) -> None:
    bench.start(bench.build(1)).wait()
    large = bench.build(2, size=100 << 20)
    process = bench.start(large)
    _wait(lambda: any(image.status == "saving" for image in bench.ours()))
    process.kill()
    process.wait()
    assert any(image.state == "staging" for image in bench.ours())
    next_run = bench.start(bench.build(3))
    output, _ = next_run.communicate()
    assert next_run.returncode == 0, output.decode()
    assert all(bench.names(site) == ["Sage", "Sage-20261120T030100Z"] for site in NAMES)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_swap_in_which_a_call_fails_is_brought_to_an_end(
    bench: Bench, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = load_sites()["CHI@UC"]
    bench.publish(bench.build(1), site)
    real, calls = catalog.change, 0

    def flaky(connection: Any, image_id: str, wanted: Change) -> SiteImage:
        nonlocal calls
        calls += threading.current_thread().name.startswith("publish") and wanted.hidden is not None
        if wanted.hidden is not None and calls == failing:
            calls += 1
            raise cloud.SiteUnreachable("hiccup")
        return real(connection, image_id, wanted)

    monkeypatch.setattr(catalog, "change", flaky)
    report = bench.publish(bench.build(2), site)
    assert outcomes(report) == [Outcome.PUBLISHED]
    assert "second attempt" in report.sites[0].warnings[-1]
    assert bench.names() == ["Sage", "Sage-20261120T030100Z"]
    assert bench.ours()[0].recipe_digest == "recipe-2"


def test_a_swap_that_can_not_be_done_is_undone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    site = load_sites()["CHI@UC"]
    bench.publish(bench.build(1), site)
    real = catalog.change

    def no_promotion(connection: Any, image_id: str, wanted: Change) -> SiteImage:
        if wanted.properties.get("sage_state") == "current":
            raise catalog.Refused("no")
        return real(connection, image_id, wanted)

    monkeypatch.setattr(catalog, "change", no_promotion)
    assert exit_code(bench.publish(bench.build(2), site)) == 1
    assert bench.names() == ["Sage"]
    assert bench.ours()[0].recipe_digest == "recipe-1"

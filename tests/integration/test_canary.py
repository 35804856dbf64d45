# SPDX-License-Identifier: Apache-2.0
"""Canaries at real Glances: what does not pass never becomes the current image.

The canary that boots by QEMU is tried with a real image in test_create_image.py.
"""

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites.sites import load_sites
from groundwork import files, process
from image_builder import canary, manifest
from image_builder.canary import CanaryOptions, Verdict
from image_builder.manifest import CheckReport, CheckResult
from image_builder.publication import Outcome, PublishReport, exit_code
from tests.integration import commands, glance_proxy
from tests.integration.glance_proxy import Flip
from tests.integration.test_publish import NAMES, Bench, bench

__all__ = ["bench"]  # a fixture


def script(bench: Bench, text: str) -> CanaryOptions:
    """A canary that is a shell script."""
    path = bench.folder / "canary"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return CanaryOptions((str(path),), 20.0, bench.folder / "cache")


def at(report: PublishReport, site: str = "CHI@UC") -> Any:
    return next(row for row in report.sites if row.site == site)


def current(bench: Bench, site: str = "CHI@UC") -> str:
    """The recipe of the image that readers get by the public name."""
    (image,) = [image for image in bench.ours(site) if image.name == bench.name and not image.hidden]
    return image.recipe_digest


def states(bench: Bench, site: str = "CHI@UC") -> list[str]:
    return sorted(image.state for image in bench.ours(site))


def test_a_canary_is_told_of_each_candidate_and_what_passes_becomes_current(bench: Bench) -> None:
    told = bench.folder / "told"
    told.mkdir()
    options = script(
        bench,
        f"cat > {told}/$SAGE_CANARY_SITE.json; env | grep ^SAGE_CANARY_ > {told}/$SAGE_CANARY_SITE.env\n"
        'echo some noise >&2; echo \'{"reason": "all is well", "figures": [1, 2]}\'',
    )
    folder = bench.build(1)
    report = bench.publish(folder, canary=options)
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED] * 3
    assert exit_code(report) == 0
    made, _ = manifest.read(folder)
    for row in report.sites:
        candidate = json.loads((told / f"{row.site}.json").read_text())
        assert candidate["image_id"] == row.image_id
        assert candidate["sha512"] == made.files[0].sha512
        assert candidate["cloud"] == row.site.lower().replace("@", "_")
        assert candidate["manifest"] == str(folder / "manifest.json")
        assert candidate["kind"] == ("kvm" if row.site == "KVM@TACC" else "baremetal")
        assert (candidate["format"], candidate["size"]) == ("raw", 1 << 16)
        assert f"SAGE_CANARY_IMAGE_ID={row.image_id}\n" in (told / f"{row.site}.env").read_text()
        assert not Path(candidate["shared"]).exists(), "it is the run's, and the run is over"
        assert row.canary
        assert (row.canary.verdict, row.canary.reason) == (Verdict.PASS, "all is well")
        kept = json.loads(row.canary.report.read_text())
        assert kept["said"]["figures"] == [1, 2]
        assert kept["candidate"] == candidate
        assert row.canary.report.with_name("stderr.log").read_text() == "some noise\n"
        assert any(step.endswith("by the canary: pass") for step in row.plan)


def test_a_candidate_is_private_and_hidden_while_it_is_tried(bench: Bench) -> None:
    bench.publish(bench.build(1))
    seen = bench.folder / "seen"
    options = script(bench, f"touch {seen}; sleep 2")
    running = _publisher(bench, bench.build(2), options)
    for _ in process.poll_until(30):
        if seen.exists():
            break
    (candidate,) = [image for image in bench.ours() if image.state == "candidate"]
    assert (candidate.visibility, candidate.hidden) == ("private", True)
    assert current(bench) == "recipe-1"
    assert commands.finish(running, 60).code == 0
    assert current(bench) == "recipe-2"


def test_what_fails_is_never_promoted_and_kept_under_a_name_that_says_so(bench: Bench) -> None:
    bench.publish(bench.build(1))
    folder = bench.build(2)
    report = bench.publish(folder, canary=script(bench, 'echo \'{"reason": "no login as cc"}\'; exit 1'))
    assert exit_code(report) == 1
    for site in NAMES:
        row = at(report, site)
        assert row.outcome is Outcome.FAILED
        assert "no login as cc" in row.problem.message
        assert str(row.canary.report) in row.problem.hint
        assert current(bench, site) == "recipe-1"
        (failed,) = [image for image in bench.ours(site) if image.state == "failed"]
        assert failed.id == row.canary.image_id
        assert failed.name.startswith(f"{bench.name}-failed-2")
        assert (failed.hidden, failed.visibility, failed.status) == (True, "private", "active")
        assert failed.properties["sage_canary_reason"] == "no login as cc"
    # This very build is not uploaded, or promoted, by a later run either, with a canary or without.
    for options in ({"canary": script(bench, "exit 0")}, {}):
        again = bench.publish(folder, **options)
        assert exit_code(again) == 1
        assert sum(row.uploaded for row in again.sites) == 0
        assert "failed before" in at(again).problem.message
    dry = bench.publish(folder, dry_run=True)
    assert exit_code(dry) == 1
    # Unless somebody insists.
    assert exit_code(bench.publish(folder, canary=script(bench, "exit 0"), force=True)) == 0
    assert current(bench) == "recipe-2"


def test_a_canary_that_fails_at_one_site_stops_no_other(bench: Bench) -> None:
    bench.publish(bench.build(1))
    options = script(bench, '[ "$SAGE_CANARY_SITE" != CHI@TACC ]')
    report = bench.publish(bench.build(2), canary=options)
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED, Outcome.FAILED, Outcome.PUBLISHED]
    assert exit_code(report) == 3
    assert [current(bench, site) for site in NAMES] == ["recipe-2", "recipe-1", "recipe-2"]


@pytest.mark.parametrize(
    "text",
    [
        'echo \'{"reason": "no node was free"}\'; exit 75',
        "exit 2",
        "kill -9 $$",
        "sleep 600",
        'rm "$0"; exec "$0"',
        "exec /etc/passwd",
    ],
    ids=["says so", "another exit code", "dies", "hangs", "is gone", "is not executable"],
)
def test_what_is_inconclusive_stays_a_candidate_that_the_next_run_tries_again(bench: Bench, text: str) -> None:
    site = load_sites()["CHI@UC"]
    bench.publish(bench.build(1), site)
    folder = bench.build(2)
    options = script(bench, text)
    report = bench.publish(folder, site, canary=CanaryOptions(options.command, 2.0, options.cache))
    row = at(report)
    assert row.outcome is Outcome.INCONCLUSIVE
    assert row.canary.verdict is Verdict.INCONCLUSIVE
    assert exit_code(report) == 3
    assert current(bench) == "recipe-1"
    assert states(bench) == ["candidate", "current"]
    assert commands.processes_that_name(bench.folder / "canary") == []
    again = bench.publish(folder, site, canary=script(bench, "exit 0"))
    assert at(again).outcome is Outcome.PUBLISHED
    assert (at(again).uploaded, at(again).image_id) == (0, row.canary.image_id)
    assert current(bench) == "recipe-2"
    assert states(bench) == ["current", "previous"]


def test_an_older_image_is_tried_too_before_it_gets_the_name_again(bench: Bench) -> None:
    site = load_sites()["CHI@UC"]
    first, second = bench.build(1), bench.build(2)
    bench.publish(first, site)
    bench.publish(second, site)
    report = bench.publish(first, site, canary=script(bench, "exit 1"))
    assert at(report).outcome is Outcome.FAILED
    assert bench.names() == ["Sage", "Sage-20261120T030100Z"], "it keeps the name that people know it by"
    assert exit_code(bench.publish(first, site, canary=script(bench, "exit 0"))) == 0
    assert current(bench) == "recipe-1"
    # What has passed once is not tried again.
    bench.publish(second, site)
    assert exit_code(bench.publish(first, site, canary=script(bench, "exit 1"))) == 0


def test_of_those_that_failed_the_newest_two_stay(bench: Bench) -> None:
    site = load_sites()["CHI@UC"]
    for number in (1, 2, 3):
        assert exit_code(bench.publish(bench.build(number), site, canary=script(bench, "exit 1"))) == 1
    assert exit_code(bench.publish(bench.build(4), site, canary=script(bench, "exit 0"))) == 0
    assert states(bench) == ["current", "failed", "failed"]
    assert {image.recipe_digest for image in bench.ours()} == {"recipe-2", "recipe-3", "recipe-4"}


def test_a_dry_run_tells_of_the_canary_and_starts_none(bench: Bench) -> None:
    mark = bench.folder / "mark"
    report = bench.publish(bench.build(1), canary=script(bench, f"touch {mark}"), dry_run=True)
    assert any(step.startswith("try it by the canary: ") for step in at(report).plan)
    assert not mark.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_during_its_canary_leaves_a_candidate_and_nothing_else(
    bench: Bench, number: signal.Signals
) -> None:
    bench.publish(bench.build(1))
    mark = bench.folder / "mark"
    folder = bench.build(2)
    running = _publisher(bench, folder, script(bench, f"touch {mark}-$SAGE_CANARY_SITE; sleep 600"))
    for _ in process.poll_until(60):
        if len(list(bench.folder.glob("mark-*"))) == 3:
            break
    running.send_signal(number)
    done = commands.finish(running, 60)
    assert done.code == (-9 if number == signal.SIGKILL else 128 + number), done.err
    for _ in process.poll_until(10):  # the kernel ends what a killed program started
        if not commands.processes_that_name(bench.folder / "canary"):
            break
    assert commands.processes_that_name(bench.folder / "canary") == []
    for site in NAMES:
        assert states(bench, site) == ["candidate", "current"]
        assert current(bench, site) == "recipe-1"
    report = bench.publish(folder, canary=script(bench, "exit 0"))
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED] * 3
    assert sum(row.uploaded for row in report.sites) == 0
    assert list((bench.folder / "cache/work").iterdir()) == []


def test_bytes_that_a_site_gives_back_differently_are_never_promoted(
    bench: Bench, local_chameleon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(bench.build(1))
    endpoints = {"CHI@TACC": local_chameleon.endpoints["CHI@TACC"]["image"]}
    with glance_proxy.proxies(endpoints) as made:
        clouds = glance_proxy.lead_through(bench.clouds_yaml, made, bench.folder / "clouds.yaml")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
        made["CHI@TACC"].inject(Flip(4711, of="response"), "GET", r"/images/[0-9a-f-]+/file", times=9)
        folder = checked(bench.build(2))
        done = commands.run(
            *("sage-image", "publish", folder, "--site", "CHI@TACC", "--canary", "--json"),
            *("--cache-dir", bench.folder / "cache"),
        )
        reads = [call for call in made["CHI@TACC"].calls if call.path.endswith("/file") and call.method == "GET"]
    assert done.code == 1, done.err
    assert "CHI@TACC gives back other bytes than were uploaded" in done.err
    (row,) = json.loads(done.out)["sites"]
    assert row["canary"]["verdict"] == "fail"
    assert json.loads(Path(row["canary"]["report"]).read_text())["said"]["boot"] is None
    assert len(reads) == 2, "a flip on the way would not come twice"
    assert current(bench, "CHI@TACC") == "recipe-1"
    assert states(bench, "CHI@TACC") == ["current", "failed"]
    assert list((bench.folder / "cache/work").iterdir()) == []


def test_a_site_that_does_not_give_the_bytes_back_is_inconclusive(
    bench: Bench, local_chameleon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = {"CHI@UC": local_chameleon.endpoints["CHI@UC"]["image"]}
    with glance_proxy.proxies(endpoints) as made:
        clouds = glance_proxy.lead_through(bench.clouds_yaml, made, bench.folder / "clouds.yaml")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
        made["CHI@UC"].inject(glance_proxy.Cut(of="response"), "GET", r"/images/[0-9a-f-]+/file", times=9)
        done = commands.run(
            *("sage-image", "publish", checked(bench.build(1, size=1 << 20)), "--site", "CHI@UC", "--canary"),
            *("--cache-dir", bench.folder / "cache"),
        )
    assert done.code == 3, done.err
    assert "was inconclusive" in done.err
    assert states(bench) == ["candidate"]


def test_a_command_that_is_none_is_refused_before_anything_is_uploaded(bench: Bench) -> None:
    (bench.folder / "text").write_text("no program")
    words = ("publish", checked(bench.build(1)), "--site", "CHI@UC", "--canary")
    done = commands.run("sage-image", *words, "--canary-command", bench.folder / "text")
    assert done.code == 2
    assert "--canary-command" in done.err
    assert bench.ours() == []


def test_a_candidate_can_be_tried_by_hand_and_what_is_none_is_inconclusive(tmp_path: Path) -> None:
    done = subprocess.run(
        [commands.command("sage-image"), "canary", "--json", "--cache-dir", tmp_path],
        input='{"site": "CHI@UC"}',
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == canary.INCONCLUSIVE
    assert json.loads(done.stdout)["verdict"] == "inconclusive"
    assert "standard input is not a candidate" in done.stderr


def checked(folder: Path) -> Path:
    """The build as one that was booted, and a disk as far as qemu-img can tell."""
    made, _ = manifest.read(folder)
    path = folder / made.files[0].name
    data = bytearray(path.read_bytes())
    data[512:520] = b"EFI PART"
    path.write_bytes(data)
    digests = files.digest_file(path)
    file = replace(made.files[0], md5=digests.md5, sha256=digests.sha256, sha512=digests.sha512)
    passed = CheckResult("login", "uefi", True, 1.0, "", "")
    manifest.write(replace(made, files=(file,), checks=CheckReport((passed,), {"uefi": 1.0})), folder)
    return folder


def _publisher(bench: Bench, folder: Path, options: CanaryOptions) -> "subprocess.Popen[str]":
    """A publisher in a process of its own."""
    sites = [word for name in NAMES for word in ("--site", name)]
    given = ["--canary", "--canary-command", options.command[0], "--cache-dir", str(options.cache)]
    env = {"OS_CLIENT_CONFIG_FILE": str(bench.clouds_yaml)}
    return commands.start("sage-image", "publish", checked(folder), *sites, *given, env=env)

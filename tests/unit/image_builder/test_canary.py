# SPDX-License-Identifier: Apache-2.0
"""What a canary is told, and what its answer means; canaries that run are in tests/integration/test_canary.py."""

import json
import os
from pathlib import Path

import pytest

from chameleon_sites.sites import SiteKind
from groundwork import products, settings
from groundwork.errors import InputError
from image_builder import canary, cli, qemu_canary
from image_builder import settings as table
from image_builder.canary import CanaryFailed, CanaryInconclusive, CanaryResult, Candidate, Verdict, reason_of
from image_builder.hardware import Firmware
from image_builder.variant import Arch

CANDIDATE = Candidate(
    site="CHI@UC",
    kind="baremetal",
    cloud="chi_uc",
    image_id="11111111-1111-1111-1111-111111111111",
    name="sage-staging-Sage-Ubuntu24.04-0123abcd",
    image_name="Sage-Ubuntu24.04",
    variant="sage",
    release="noble",
    arch="amd64",
    build_id="20261120T031500Z-dddddddd",
    format="qcow2-zstd",
    size=1 << 30,
    sha512="ab" * 64,
    manifest=Path("/srv/build/manifest.json"),
    folder=Path("/srv/cache/logs/canary/chi_uc-1"),
    shared=Path("/srv/cache/work/1"),
)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (0, Verdict.PASS),
        (1, Verdict.FAIL),
        (75, Verdict.INCONCLUSIVE),
        (2, Verdict.INCONCLUSIVE),
        (126, Verdict.INCONCLUSIVE),
        (127, Verdict.INCONCLUSIVE),
        (-9, Verdict.INCONCLUSIVE),
        (None, Verdict.INCONCLUSIVE),
    ],
)
def test_only_0_passes_and_only_1_fails(code: int | None, verdict: Verdict) -> None:
    assert canary.verdict_of(code) is verdict


@pytest.mark.parametrize(
    ("code", "said", "log", "reason"),
    [
        (1, {"reason": "no login"}, "noise", "no login"),
        (1, {"reason": " no\n login\x1b[31m "}, "", "no login [31m"),
        (1, {"reason": ["no"]}, "first\nlast\n\n", "exit status 1: last"),
        (1, "not JSON", "", "exit status 1"),
        (0, None, "", "passed"),
        (0, {"reason": "all good"}, "", "all good"),
        (-9, None, "", "killed by signal 9"),
        (None, {"reason": "never mind"}, "", "not done within 5 s"),
        (1, {"reason": "x" * 1000}, "", "x" * 297 + "..."),
    ],
)
def test_the_reason_is_one_short_line(code: int | None, said: object, log: str, reason: str) -> None:
    assert reason_of(code, said, log, 5.0) == reason


def test_a_canary_is_told_all_of_the_candidate_twice() -> None:
    assert products.parse(Candidate, products.to_text(CANDIDATE).encode(), "it") == CANDIDATE
    told = canary.environment(CANDIDATE)
    assert told["SAGE_CANARY_IMAGE_ID"] == CANDIDATE.image_id
    assert told["SAGE_CANARY_MANIFEST"] == "/srv/build/manifest.json"
    assert told["SAGE_CANARY_SIZE"] == str(1 << 30)
    assert {name.removeprefix("SAGE_CANARY_").lower() for name in told} == set(json.loads(products.to_text(CANDIDATE)))


def test_what_is_told_is_never_taken_for_a_setting() -> None:
    assert not set(canary.environment(CANDIDATE)) & {setting.variable for setting in table.ALL}


@pytest.mark.parametrize("text", ["", "  ", "no-such-program-anywhere", "'open quote", "/etc/passwd"])
def test_a_command_that_can_not_be_run_is_refused_before_anything_is_done(text: str) -> None:
    with pytest.raises(InputError):
        canary.check_command(text)


def test_a_command_line_is_parted_as_a_shell_would() -> None:
    assert canary.words_of("sh -c 'exit 75' x") == ("sh", "-c", "exit 75", "x")


def test_a_canary_is_asked_for_and_refused_by_flags() -> None:
    given = {
        "canary": True,
        "no_canary": False,
        "canary_command": "sh -c 'exit 0'",
        "canary_timeout": 60,
        "cache_dir": Path("/srv/cache"),
    }
    options = cli.canary_options(given)
    assert options is not None
    assert (options.command, options.deadline) == (("sh", "-c", "exit 0"), 60.0)
    assert cli.canary_options({**given, "no_canary": True}) is None
    assert cli.canary_options({**given, "canary": False}) is None


def test_the_one_that_comes_along_gets_the_settings_of_the_run() -> None:
    parser = settings.Parser()
    settings.add_flags(parser, table.PUBLISH)
    words = [
        "--canary",
        "--cache-dir",
        "/srv/cache",
        "--accel",
        "tcg",
        "--variants-dir",
        "/srv/mine",
        "--boot-timeout=77",
    ]
    values = settings.resolve(table.PUBLISH, parser.parse_args(words), configuration={}, environment={})
    options = cli.canary_options(values)
    assert options is not None
    assert options.command[3] == "canary"
    again = settings.Parser()
    settings.add_flags(again, table.TRY)
    found = settings.resolve(table.TRY, again.parse_args(options.command[4:]), configuration={}, environment={})
    for key in ("cache_dir", "accel", "variants_dir", "boot_timeout"):
        assert found[key] == values[key]
    assert found["json"]


@pytest.mark.parametrize(
    ("kind", "arch", "firmware"),
    [
        (SiteKind.BAREMETAL, Arch.AMD64, Firmware.UEFI),
        (SiteKind.KVM, Arch.AMD64, Firmware.BIOS),
        (SiteKind.KVM, Arch.ARM64, Firmware.UEFI),
        (SiteKind.BAREMETAL, Arch.ARM64, Firmware.UEFI),
    ],
)
def test_each_kind_of_site_has_its_firmware(kind: SiteKind, arch: Arch, firmware: Firmware) -> None:
    assert qemu_canary.firmware_for(kind, arch) is firmware


def test_a_verdict_that_is_no_pass_is_an_error_that_names_the_report() -> None:
    result = CanaryResult("id", Verdict.FAIL, "no login", 1.0, Path("/srv/report.json"))
    error = canary.error_of(result, "CHI@UC")
    assert isinstance(error, CanaryFailed)
    assert str(error) == "CHI@UC: the canary of id failed: no login"
    assert "/srv/report.json" in str(error.hint)
    other = CanaryResult("id", Verdict.INCONCLUSIVE, "no login", 1.0, Path("/srv/report.json"))
    assert isinstance(canary.error_of(other, "CHI@UC"), CanaryInconclusive)


def test_reports_older_than_a_month_are_removed(tmp_path: Path) -> None:
    options = canary.CanaryOptions(("true",), 1.0, tmp_path)
    old, young = (canary.folder_for(options, "chi_uc", name) for name in ("old", "young"))
    (old / "report.json").write_text("{}")
    os.utime(old, (0, 0))
    assert canary.folder_for(options, "chi_uc", "new").is_dir()
    assert (old.exists(), young.exists()) == (False, True)

# SPDX-License-Identifier: Apache-2.0
"""A check is told where it runs, is stopped when its time is over, and never ends the others."""

import dataclasses
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invoke.exceptions import CommandTimedOut

from groundwork import console
from groundwork.errors import InputError
from image_builder import probes, verify
from image_builder.hardware import Firmware, Guise
from image_builder.variant import Arch, Check, Probe

GUEST: Any = SimpleNamespace(firmware=Firmware.UEFI, site=SimpleNamespace(guise=Guise.BARE_METAL))
CHECK = Check("it answers", "true", None, 0.3)


class Shell:
    """A connection to a machine that is this one's shell, or whose clock is ahead."""

    def __init__(self, exited: int = 0, said: str = "", takes: float = 0.0, hangs: bool = False) -> None:
        self.result = SimpleNamespace(exited=exited, stdout=said, stderr="")
        self.takes = takes
        self.hangs = hangs
        self.command = ""
        self.timeout = 0.0

    def run(self, command: str, *, timeout: float, **_: object) -> SimpleNamespace:
        self.command, self.timeout = command, timeout
        time.sleep(self.takes)
        if self.hangs:
            result: Any = self.result
            raise CommandTimedOut(result, int(timeout))
        return self.result


def test_a_check_knows_its_machine_and_the_variant_s_settings() -> None:
    shell = Shell()
    assert verify.make_check(GUEST, shell, CHECK, {"SAGE_OPERATORS_KEY": "ssh-ed25519 A b'c"}) == (True, "")
    words = shlex.split(shell.command)
    assert words[:3] == [
        "SAGE_MACHINE=bare-metal",
        "SAGE_FIRMWARE=uefi",
        "SAGE_OPERATORS_KEY=ssh-ed25519 A b'c",
    ]
    assert words[-5:-1] == ["--norc", "-euo", "pipefail", "-c"]
    assert words[-1].endswith("\ntrue")


def test_a_check_that_fails_is_told_with_its_exit_status() -> None:
    assert verify.make_check(GUEST, Shell(3, "looked"), CHECK, {}) == (False, "looked\nexit status 3")


def test_a_check_over_its_time_is_stopped_in_the_machine() -> None:
    shell = Shell(124, "waits", takes=0.35)
    assert verify.make_check(GUEST, shell, CHECK, {}) == (False, "waits\nnot done within 0.3 s: stopped")
    assert " timeout --kill-after=5 0.3 bash " in shell.command
    assert shell.timeout > 0.3  # the machine comes first


def test_a_check_s_own_exit_status_is_not_taken_for_a_deadline() -> None:
    assert verify.make_check(GUEST, Shell(124), CHECK, {}) == (False, "\nexit status 124")


def test_a_machine_that_does_not_answer_costs_one_check() -> None:
    passed, said = verify.make_check(GUEST, Shell(said="x", hangs=True), CHECK, {})
    assert not passed
    assert "not done within 0.3 s, and it could not be stopped" in said


def test_a_probe_that_breaks_is_a_failed_check() -> None:
    def refuse(user: str, timeout: float) -> list[str]:
        raise EOFError("gone")

    guest: Any = SimpleNamespace(offered_logins=refuse)
    check = dataclasses.replace(CHECK, run=None, probe=Probe.SSH_PASSWORD_REFUSED)
    assert verify.make_check(guest, None, check, {}) == (False, "EOFError: gone")


def test_every_probe_is_made() -> None:
    assert set(probes._PROBES) == set(Probe)


def test_a_firmware_that_the_architecture_lacks_is_refused(tmp_path: Path) -> None:
    options = verify.Options("tcg", firmwares=(Firmware.BIOS,))
    with console.stage("verify") as stage, pytest.raises(InputError, match="arm64 machines have no bios"):
        verify.verify(tmp_path / "x", Arch.ARM64, [], tmp_path, tmp_path, options, stage)

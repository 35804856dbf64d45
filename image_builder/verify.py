# SPDX-License-Identifier: Apache-2.0
"""Disk -> CheckReport: boots the image on every firmware and asks it what its variant promises."""

import os
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from groundwork import console
from groundwork.errors import InputError, SageError
from image_builder import emulation, machine, probes
from image_builder.hardware import Firmware
from image_builder.machine import Machine, MachineError
from image_builder.manifest import CheckReport, CheckResult
from image_builder.variant import Arch, Check

_SHUTDOWN_DEADLINE = 240.0
_LAST_WORDS = 2.0  # seconds from a broken connection to the end of a QEMU that crashed
_FOREIGN = 2.0
_LOGIN = "login as cc by key"
_SHUTDOWN = "shuts down cleanly"
_LARGEST_OUTPUT = 4096  # characters kept of what a check printed
_KILL_AFTER = 5  # seconds that a check over its time has to end by itself
# A script that ends early says where.
_PREAMBLE = "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n"
_STOPPED = (124, 137)  # the exit status of timeout(1), and of what it killed


@dataclass(frozen=True)
class Options:
    """How to boot and what to tell the checks.

    ``accel``: auto, kvm or tcg.  ``boot_deadline``: seconds from power-on to the first login.  ``firmwares``: those
    to boot on; none named means all that the architecture has.  ``settings``: the variant's, which checks find in
    their environment.
    """

    accel: str = "auto"
    boot_deadline: float = 600.0
    firmwares: tuple[Firmware, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def verify(
    image: Path, arch: Arch, checks: Sequence[Check], logs: Path, scratch: Path, options: Options, stage: console.Stage
) -> CheckReport:
    """Boot ``image`` on each firmware of its architecture, all at once where there are two cores or more.

    On UEFI the machine plays a bare-metal node, on BIOS a virtual machine (:mod:`image_builder.hardware`).  The
    consoles are kept in ``logs`` as ``console-<firmware>.log``.  Checks that fail are in the report; errors are
    raised only where a machine could not be run at all, or QEMU did not run it to its end.
    """
    if emulation.is_needed(arch):  # a machine of another kind takes about twice the time
        checks = [replace(check, timeout=_FOREIGN * check.timeout) for check in checks]
        options = replace(options, boot_deadline=_FOREIGN * options.boot_deadline)
    accel = options.accel
    if accel == "auto":
        accel = "kvm" if arch is Arch.AMD64 and machine.kvm_works() else "tcg"
    firmwares = options.firmwares or machine.firmwares(arch)
    if missing := [name for name in firmwares if name not in machine.firmwares(arch)]:
        raise InputError(f"{arch} machines have no {missing[0]}", hint="leave out --firmware")
    cores = os.cpu_count() or 1
    together = firmwares if cores >= len(firmwares) else firmwares[:1]
    key = machine.new_key()
    results: list[CheckResult] = []
    boots: dict[str, float] = {}
    progress = _Progress(stage)
    for begin in range(0, len(firmwares), len(together)):
        batch = firmwares[begin : begin + len(together)]
        # The machines belong to this thread: when it is interrupted they end, and the threads below with them.
        with ThreadPoolExecutor(len(batch)) as pool, ExitStack() as stack:
            futures: list[Future[tuple[list[CheckResult], float | None]]] = []
            for firmware in batch:
                log = logs / f"console-{firmware}.log"
                booted = machine.running(
                    image, arch, firmware, key, log, scratch, accel=accel, cpus=max(1, min(4, cores // len(batch)))
                )
                guest = stack.enter_context(booted)
                futures.append(pool.submit(_ask, guest, checks, options, progress))
            while wait(futures, timeout=0.5).not_done:
                pass
            for firmware, future in zip(batch, futures, strict=True):
                found, seconds = future.result()
                results += found
                if seconds is not None:
                    boots[str(firmware)] = round(seconds, 1)
    return CheckReport(tuple(results), boots)


def explain(report: CheckReport, logs: Path) -> SageError:
    """The error for a report in which a check failed: its command, its output and where the console is."""
    failed = [result for result in report.results if not result.passed]
    parts = []
    for result in failed:
        lines = [f"[{result.firmware}] {result.name}"]
        if result.command:
            lines += ["  command:"] + [f"    {line}" for line in result.command.strip().splitlines()]
        lines += ["  output:"] + [f"    {line}" for line in result.output.strip().splitlines()]
        parts.append("\n".join(lines))
    count = f"{len(failed)} of {len(report.results)} checks failed"
    return SageError(f"{count}:\n\n" + "\n\n".join(parts) + "\n", hint=f"the serial consoles: {logs}/console-*.log")


class _Progress:
    """What the machines are at, in one line."""

    def __init__(self, stage: console.Stage) -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._at: dict[str, str] = {}

    def tell(self, firmware: Firmware, text: str) -> None:
        with self._lock:
            self._at[str(firmware)] = text
            self._stage.detail("; ".join(f"{name}: {what}" for name, what in self._at.items()))


def _ask(
    guest: Machine, checks: Sequence[Check], options: Options, progress: _Progress
) -> tuple[list[CheckResult], float | None]:
    """Log in, make the checks, shut down."""
    results: list[CheckResult] = []
    firmware = str(guest.firmware)

    def note(name: str, passed: bool, begin: float, command: str, output: str) -> None:
        if not passed:
            output = f"{output.rstrip()}\n--- the end of the console:\n{guest.console_tail()}"
        seconds = round(time.monotonic() - begin, 2)
        results.append(CheckResult(name, firmware, passed, seconds, command, output))

    progress.tell(guest.firmware, "booting")
    try:
        connection = guest.login("cc", options.boot_deadline)
    except MachineError as error:
        note(_LOGIN, False, guest.begin, "", str(error))
        return results, None
    boot_seconds = time.monotonic() - guest.begin
    note(_LOGIN, True, guest.begin, "", "")
    try:
        for position, check in enumerate(checks, 1):
            progress.tell(guest.firmware, f"check {position} of {len(checks)}: {check.name}")
            begin = time.monotonic()
            passed, output = make_check(guest, connection, check, options.settings)
            note(check.name, passed, begin, check.run or f"probe {check.probe}", output)
        progress.tell(guest.firmware, "shutting down")
        begin = time.monotonic()
        connection.run("sudo systemctl poweroff", hide=True, warn=True, in_stream=False, timeout=60)
    except Exception as error:  # the connection broke: the guest died, or it is off already
        guest.wait_off(_LAST_WORDS)
        guest.check_emulator()
        if len(results) <= len(checks):
            note("stays reachable", False, begin, "", f"{type(error).__name__}: {error}")
            return results, boot_seconds
    off = guest.wait_off(_SHUTDOWN_DEADLINE)
    guest.check_emulator()
    note(_SHUTDOWN, off, begin, "sudo systemctl poweroff", "" if off else f"not off after {_SHUTDOWN_DEADLINE:g} s")
    progress.tell(guest.firmware, "off")
    return results, boot_seconds


def make_check(guest: Machine, connection: Any, check: Check, settings: Mapping[str, str]) -> tuple[bool, str]:
    """Make one check in a machine that ``cc`` is logged in to: whether it passed, and what it printed.

    ``connection`` is a fabric.Connection.  A script that is not done within its time is stopped.
    """
    if check.probe is not None:
        return probes.make(check.probe, guest, connection, check.timeout)
    known = {"SAGE_MACHINE": guest.site.guise, "SAGE_FIRMWARE": guest.firmware, **settings}
    return run_script(connection, check, known)


def run_script(connection: Any, check: Check, known: Mapping[str, str]) -> tuple[bool, str]:
    """Run a check's script in any machine that ``cc`` is logged in to: whether it passed, and what it printed.

    ``known``: what the script finds in its environment.
    """
    from invoke.exceptions import CommandTimedOut

    assert check.run is not None
    words = [f"{name}={shlex.quote(value)}" for name, value in known.items()]
    words += ["timeout", f"--kill-after={_KILL_AFTER}", f"{check.timeout:g}"]
    words += ["bash", "--norc", "-euo", "pipefail", "-c", shlex.quote(_PREAMBLE + check.run)]
    begin = time.monotonic()
    try:
        # Over its time, the machine ends the check; this program gives up only on a machine that does not answer.
        patience = check.timeout + 3 * _KILL_AFTER
        done = connection.run(" ".join(words), hide=True, warn=True, in_stream=False, timeout=patience)
    except CommandTimedOut as error:
        said = (error.result.stdout + error.result.stderr)[-_LARGEST_OUTPUT:]
        return False, f"{said.rstrip()}\nnot done within {check.timeout:g} s, and it could not be stopped"
    output = (done.stdout + done.stderr)[-_LARGEST_OUTPUT:].rstrip()
    if done.exited in _STOPPED and time.monotonic() - begin >= check.timeout:
        return False, f"{output}\nnot done within {check.timeout:g} s: stopped"
    if done.exited != 0:
        output += f"\nexit status {done.exited}"
    return done.exited == 0, output

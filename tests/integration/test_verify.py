# SPDX-License-Identifier: Apache-2.0
"""What the end of QEMU tells of the image that it boots."""

import os
import signal
import threading
from pathlib import Path

import pytest

from groundwork import console, process
from image_builder import verify
from image_builder.hardware import Firmware
from image_builder.machine import EmulatorFailed
from image_builder.variant import Arch


def test_an_emulator_that_is_killed_fails_no_check(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], timeout=60)
    options = verify.Options("tcg", 120.0, (Firmware.BIOS,))
    before, done = set(process.children(os.getpid())), threading.Event()

    def kill() -> None:
        while not done.wait(1.0):
            for pid in set(process.children(os.getpid())) - before:
                if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system"):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with console.stage("boot") as stage, pytest.raises(EmulatorFailed, match="exit status -9 on bios"):
            verify.verify(disk, Arch.AMD64, [], tmp_path, tmp_path / "scratch", options, stage)
    finally:
        done.set()
        killer.join()

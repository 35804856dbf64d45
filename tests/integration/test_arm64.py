# SPDX-License-Identifier: Apache-2.0
"""An arm64 image comes of an amd64 machine, holds arm64 programs alone, and leaves nothing of the emulation."""

import os
import platform
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from groundwork import process
from image_builder import manifest
from tests.integration import commands
from tests.integration.test_create_image import own_variant

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates arm64 on amd64")

ELF = b"\x7fELF"
AARCH64 = (0xB7).to_bytes(2, "little")  # e_machine


def handlers() -> str:
    """What is registered for this host's programs: names and contents.  (The host need not have it mounted.)"""
    script = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && cd /proc/sys/fs/binfmt_misc && grep -r . [!r]*"
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Built:
    """A finished build and its root tree, read from its disk."""

    folder: Path
    made: manifest.Manifest
    tree: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One cold, verified build of ``base-arm64``."""
    top = tmp_path_factory.mktemp("arm64")
    before = handlers()
    done = commands.run(
        "create-image",
        *("--variant", "base-arm64", "--release", "bookworm"),
        *("--output-dir", top / "build", "--cache-dir", top / "cache"),
        timeout=3600,
    )
    assert done.code == 0, done.err
    assert handlers() == before
    (folder,) = (top / "build").glob("Sage-Debian12-Base-ARM64/*")
    made, _ = manifest.read(folder)
    raw = top / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", folder / made.files[0].name, raw], check=True)
    rows = subprocess.run(["sfdisk", "--dump", raw], capture_output=True, text=True, check=True).stdout.splitlines()
    (root,) = [row for row in rows if 'name="root"' in row]
    start = int(root.split("start=")[1].split(",")[0]) * 512
    tree = top / "tree"
    tree.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {tree}", f"{raw}?offset={start}"], check=True, capture_output=True)
    raw.unlink()
    return Built(folder, made, tree)


@pytest.mark.long
def test_it_boots_on_uefi_and_keeps_all_promises(built: Built) -> None:
    assert (built.made.arch, built.made.variant) == ("arm64", "base-arm64")
    assert built.made.checks is not None
    assert built.made.checks.passed
    assert {result.firmware for result in built.made.checks.results} == {"uefi"}
    assert {"arm64", "all"} == {package.arch for package in built.made.packages}
    assert "login:" in (built.folder / "console-uefi.log").read_text(errors="replace")


@pytest.mark.long
def test_every_program_is_for_arm64(built: Built) -> None:
    programs, others = 0, []
    for folder, _, names in os.walk(built.tree):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as stream:
                head = stream.read(20)
            if head.startswith(ELF):
                programs += 1
                if head[18:20] != AARCH64:
                    others.append(str(path.relative_to(built.tree)))
    assert programs > 1000
    assert others == []
    assert not (built.tree / ".sage-native").exists()


@pytest.mark.long
def test_every_file_of_a_package_is_as_its_package_has_it(built: Built) -> None:
    said = subprocess.run(["dpkg", f"--root={built.tree}", "--verify"], capture_output=True, text=True).stdout
    # Conffiles may be changed, and apt's lists are none of the image's.
    changed = [line for line in said.splitlines() if line[10:11] != "c" and "/var/lib/apt/lists" not in line]
    assert changed == []
    assert (built.tree / "usr/bin/dash").is_file()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_broken_off_leaves_no_handler_and_no_mount(tmp_path: Path, number: signal.Signals) -> None:
    before = handlers()
    mark = tmp_path / "elements/reached"
    # After the base system is there: an arm64 program runs in it.
    words = own_variant(tmp_path, "true")
    hook = tmp_path / "elements/own/root.d/10-own"
    hook.write_text(f"#!/bin/bash\nset -eu\nchroot $TARGET_ROOT uname -m > {mark}\nchroot $TARGET_ROOT sleep 300\n")
    hook.chmod(0o755)
    running = commands.start("create-image", *words, "--arch", "arm64")
    for _ in process.poll_until(900):
        if (mark.exists() and mark.read_text()) or running.poll() is not None:
            break
    assert mark.exists(), running.communicate()[1]
    assert mark.read_text() == "aarch64\n"
    running.send_signal(number)
    commands.finish(running, timeout=60)
    for _ in process.poll_until(10):
        if not commands.processes_that_name(tmp_path):
            break
    assert commands.processes_that_name(tmp_path) == []
    assert commands.mounts_below(tmp_path) == []
    assert handlers() == before


def test_a_host_wide_registration_ends_with_its_program(tmp_path: Path) -> None:
    """As on kernels before 6.7; killed without mercy."""
    before = handlers()
    launcher = tmp_path / "launcher"
    launcher.write_bytes(Path("/bin/true").read_bytes())
    launcher.chmod(0o755)
    script = (
        "import sys, time; from pathlib import Path; from image_builder import emulation as e; "
        "e._has_own_register = lambda: False; e._standing_handler = lambda: None; "
        f"stack = e.registered(Path({str(tmp_path)!r})); stack.__enter__(); "
        "print('ready', flush=True); time.sleep(60)"
    )
    running = subprocess.Popen([commands.command("python"), "-c", script], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    assert f"interpreter {launcher}\n" in handlers()
    running.kill()
    running.wait()
    for _ in process.poll_until(10):
        if handlers() == before:
            break
    assert handlers() == before

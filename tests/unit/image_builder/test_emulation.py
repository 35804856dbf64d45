# SPDX-License-Identifier: Apache-2.0
"""Programs of another architecture run here, where this machine can do that, and nowhere else."""

import platform
from pathlib import Path

import pytest

from groundwork import process
from groundwork.errors import InputError
from image_builder import emulation, recipe, variant
from image_builder.cli import project_folder
from image_builder.recipe import Recipe
from image_builder.variant import Arch

HANDLER = (
    "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: {flags}\noffset 0\n"
    "magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
)


@pytest.fixture(autouse=True)
def amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    """An amd64 machine with all programs."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(process, "find", lambda program: f"/usr/bin/{program}")


def make(release: str, mirror: str | None = None) -> Recipe:
    found = variant.load("sage", [project_folder("variants")])
    return recipe.make(found, release, Arch.ARM64, element_folders=[project_folder("elements")], mirror=mirror)


def test_a_machine_emulates_no_programs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not emulation.is_needed(Arch.AMD64)
    assert emulation.is_needed(Arch.ARM64)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not emulation.is_needed(Arch.ARM64)
    emulation.check(Arch.ARM64)


def test_amd64_is_not_built_on_arm64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(InputError, match="an amd64 image can't be built on this arm64 machine"):
        emulation.check(Arch.AMD64)


def test_a_missing_emulator_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda program: None if "qemu" in program else f"/usr/bin/{program}")
    with pytest.raises(InputError, match="missing system program: qemu-aarch64-static") as caught:
        emulation.check(Arch.ARM64)
    assert caught.value.hint == "install with: apt-get install qemu-user-static"


@pytest.mark.parametrize(
    ("release", "own"), [("6.18.44-fc", True), ("6.7.0", True), ("6.6.12", False), ("5.15.0-130-generic", False)]
)
def test_user_namespaces_have_their_own_register_since_linux_6_7(release: str, own: bool) -> None:
    assert emulation._has_own_register(release) is own


@pytest.mark.parametrize(("user", "handlers", "works"), [(0, [], True), (1000, [], False), (1000, ["POCF"], True)])
def test_an_older_kernel_wants_root_or_a_handler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int, handlers: list[str], works: bool
) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-40-amd64")
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr(emulation, "REGISTER", tmp_path)
    for flags in handlers:
        (tmp_path / "qemu-aarch64").write_text(HANDLER.format(flags=flags))
    if works:
        emulation.check(Arch.ARM64)
    else:
        with pytest.raises(InputError, match=r"Linux 6\.7 or newer"):
            emulation.check(Arch.ARM64)


@pytest.mark.parametrize(("flags", "found"), [("POCF", "qemu-aarch64"), ("POC", None)])
def test_a_handler_counts_only_if_it_works_in_a_chroot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, found: str | None
) -> None:
    monkeypatch.setattr(emulation, "REGISTER", tmp_path)
    (tmp_path / "register").touch()
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "qemu-arm").write_text(HANDLER.format(flags="POCF").replace("b700", "2800"))
    (tmp_path / "qemu-aarch64").write_text(HANDLER.format(flags=flags))
    assert emulation._standing_handler() == found


def test_another_build_s_handler_is_not_relied_upon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # It goes when that build ends, or stays behind one that was killed.
    monkeypatch.setattr(emulation, "REGISTER", tmp_path)
    (tmp_path / "sage-arm64-4711").write_text(HANDLER.format(flags="PF"))
    assert emulation._standing_handler() is None
    (tmp_path / "qemu-aarch64").write_text(HANDLER.format(flags="POCF"))
    assert emulation._standing_handler() == "qemu-aarch64"


def test_a_new_kernel_needs_no_registration_on_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-60-generic")
    monkeypatch.setattr(process, "start", lambda *args, **kwargs: pytest.fail("a process was started"))
    with emulation.registered(tmp_path):
        pass


def test_native_programs_come_from_the_same_releases_archive() -> None:
    words = emulation._bootstrap_command(make("noble"))
    assert words[-3] == "noble"
    assert words[-1].splitlines() == [
        f"deb http://archive.ubuntu.com/ubuntu {suite} main restricted universe multiverse"
        for suite in ("noble", "noble-updates", "noble-security")
    ]
    assert "--arch=amd64" in words
    own = emulation._bootstrap_command(make("bookworm", "http://h/debian"))[-1]
    assert own.splitlines()[0] == "deb http://h/debian bookworm main"
    assert own.splitlines()[-1] == "deb http://h/debian-security bookworm-security main"


def test_what_tells_the_architecture_or_loads_plugins_is_emulated() -> None:
    native = {name for words in emulation.PROGRAMS_NATIVE.values() for name in words.split()}
    assert not native & {"uname", "arch", "lscpu", "sudo", "su", "login", "ldconfig", "ldd", "iconv", "getconf", "gcc"}


def test_only_dpkg_programs_that_can_be_told_their_architecture_run_natively(tmp_path: Path) -> None:
    programs = tmp_path / "usr/bin"
    programs.mkdir(parents=True)
    (programs / "dpkg").write_bytes(b"\x7fELF..\0amd64\0..amd64-ish")
    (programs / "dpkg-deb").write_bytes(b"\x7fELF..\0amd64\0..\0amd64\0")
    (programs / "dpkg-realpath").write_text("#!/bin/sh\n# amd64\n")
    assert emulation._patch_dpkg(tmp_path, Arch.ARM64) == {"usr/bin/dpkg"}
    assert (programs / "dpkg").read_bytes() == b"\x7fELF..\0arm64\0..amd64-ish"


def test_element_and_launcher_know_the_same_place() -> None:
    script = project_folder("elements") / emulation.ELEMENT / "native-programs-files/native-programs"
    assert f"place=$2{emulation.PLACE}\n" in script.read_text()

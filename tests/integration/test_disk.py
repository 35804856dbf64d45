# SPDX-License-Identifier: Apache-2.0
"""The disk is what partitioning, file system and boot tools take it for, and the same each time."""

import hashlib
import json
import os
import struct
import time
from pathlib import Path

import pytest

from chameleon_sites.sites import DiskFormat
from groundwork import process
from groundwork.errors import InputError, SageError
from image_builder import disk
from image_builder.disk import Disk
from image_builder.variant import Arch

MIB = 1 << 20
EPOCH = 1763596800


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root tree with nothing in it but what the assembler asks for."""
    root = tmp_path / "root"
    for name in ("boot/grub/i386-pc", "boot/grub/x86_64-efi", "etc", "proc", "home/cc"):
        (root / name).mkdir(parents=True)
    (root / "boot/grub/i386-pc/boot.img").write_bytes(b"\xeb\x63\x90" + os.urandom(507) + b"\x55\xaa")
    (root / "boot/grub/i386-pc/core.img").write_bytes(os.urandom(100_000))
    (root / "boot/grub/x86_64-efi/core.efi").write_bytes(b"MZ" + os.urandom(200_000))
    (root / "etc/hostname").write_text("sage\n")
    (root / "etc/shadow").write_text("secret\n")
    (root / "etc/shadow").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(root / "home/cc", 1000, 1000)
    return root


def assemble(tree: Path, raw: Path) -> int:
    return disk.assemble(tree, *disk.measure(tree), Arch.AMD64, "d" * 64, EPOCH, raw)


def partition(raw: Path, number: int, target: Path) -> Path:
    table = json.loads(process.run(["sfdisk", "--json", raw]))["partitiontable"]
    row = table["partitions"][number]
    with raw.open("rb") as source, target.open("wb") as copy:
        source.seek(row["start"] * 512)
        left = row["size"] * 512
        while left and (block := source.read(min(MIB, left))):
            copy.write(block)
            left -= len(block)
    return target


def test_partitions_are_as_chameleon_asks(tree: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    size = assemble(tree, raw)
    assert raw.stat().st_size == size
    assert raw.stat().st_blocks * 512 < 200 * MIB  # sparse
    table = json.loads(process.run(["sfdisk", "--json", raw]))["partitiontable"]
    assert table["label"] == "gpt"
    rows = [(row["name"], row["type"], row["size"] * 512 // MIB) for row in table["partitions"]]
    assert rows[0] == ("ESP", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 550)
    assert rows[1] == ("BIOS", "21686148-6449-6E6F-744E-656564454649", 8)
    assert rows[2][0] == "root"
    assert "No errors detected" in process.run(["sfdisk", "--verify", raw])


def test_the_root_file_system_is_clean_and_holds_the_tree(tree: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    assemble(tree, raw)
    root = partition(raw, 2, tmp_path / "root.img")
    process.run(["e2fsck", "-f", "-n", root])
    assert "sage-root" in process.run(["dumpe2fs", "-h", root])
    assert process.run(["debugfs", "-R", "cat /etc/hostname", root]) == "sage\n"
    shadow = process.run(["debugfs", "-R", "stat /etc/shadow", root])
    assert "Mode:  0640" in shadow
    if os.geteuid() == 0:
        assert "User:  1000" in process.run(["debugfs", "-R", "stat /home/cc", root])


def test_firmware_finds_both_boot_loaders(tree: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    assemble(tree, raw)
    esp = partition(raw, 0, tmp_path / "esp.img")
    process.run(["fsck.vfat", "-n", esp])
    process.run(["mcopy", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI", tmp_path / "loader"])
    grub = tree / "boot/grub"
    assert (tmp_path / "loader").read_bytes() == (grub / "x86_64-efi/core.efi").read_bytes()
    bios = partition(raw, 1, tmp_path / "bios.img").read_bytes()
    core = (grub / "i386-pc/core.img").read_bytes()
    assert bios[512 : len(core)] == core[512:]  # its first sector holds the list of blocks
    with raw.open("rb") as stream:
        master = stream.read(512)
    first = struct.unpack_from("<Q", master, 0x5C)[0]
    assert first * 512 == (1 + 550) * MIB
    assert struct.unpack_from("<QHH", bios, 500) == (first + 1, (len(core) + 511) // 512 - 1, 0x820)
    assert master[510:] == b"\x55\xaa"


def digest_of(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def test_the_same_tree_gives_the_same_bits_also_when_it_is_a_copy_of_another_day(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    time.sleep(1.1)  # so that access and change times differ
    process.run(["cp", "--archive", tree, copy])
    (copy / "etc/hostname").read_text()
    assemble(tree, tmp_path / "first.raw")
    assemble(copy, tmp_path / "second.raw")
    assert digest_of(tmp_path / "first.raw") == digest_of(tmp_path / "second.raw")
    root = partition(tmp_path / "second.raw", 2, tmp_path / "root.img")
    process.run(["e2fsck", "-f", "-n", root])
    facts = process.run(["debugfs", "-R", "stat /etc/hostname", root])
    assert facts.count(f"{EPOCH:#x}") == 3  # changed, read and made; mtime is the file's own


def test_all_formats_hold_the_same_disk(tree: Path, tmp_path: Path) -> None:
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    raw = tmp_path / "disk.raw"
    size = assemble(tree, raw)
    first = Disk(size, 0, (disk.write(raw, DiskFormat.RAW, "Some", DiskFormat.QCOW2_ZSTD, place),))
    every = disk.more_formats(first, "Some", list(DiskFormat), place, scratch)
    assert sorted(file.name for file in every.files) == ["Some.raw", "Some.zlib.qcow2", "Some.zstd.qcow2"]
    for file in every.files:
        info = json.loads(process.run(["qemu-img", "info", "--output=json", place / file.name]))
        assert info["virtual-size"] == every.disk_size == disk.check_is_image(place / file.name)
        assert (place / file.name).stat().st_size == file.size
        if file.format is not DiskFormat.RAW:
            assert info["format-specific"]["data"]["compression-type"] == file.format.split("-")[1]
        process.run(["qemu-img", "compare", place / "Some.raw", place / file.name])


def test_a_tree_without_boot_loader_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "boot/grub/i386-pc/core.img").unlink()
    with pytest.raises(SageError, match=r"no boot loader \(core.img\)"):
        assemble(tree, tmp_path / "disk.raw")


def test_a_file_that_is_no_image_is_told(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello " * 1000)
    cut = tmp_path / "cut.qcow2"
    cut.write_bytes(b"QFI\xfb" + b"\0" * 20)
    for path in (text, cut, tmp_path / "absent", tmp_path):
        with pytest.raises(InputError):
            disk.check_is_image(path)

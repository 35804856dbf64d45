# SPDX-License-Identifier: Apache-2.0
"""RootTree -> Disk: a GPT disk that boots on BIOS and on UEFI, put together in plain files.

Nothing is mounted and no loop device is used: each part is written at its offset in a sparse file.

====================  =========  ==========================================================
partition             size       holds
====================  =========  ==========================================================
ESP                   550 MiB    FAT32 with ``EFI/BOOT/BOOTX64.EFI`` (``BOOTAA64.EFI``)
BIOS boot (amd64)     8 MiB      GRUB's core image, which the boot sector loads
root                  the rest   ext4, labelled ``sage-root``; grows at the first boot
====================  =========  ==========================================================

The boot loaders were made in the tree by element ``grub-boot``.  Identifiers and times derive from the recipe
and the build, none from chance.
"""

import json
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from chameleon_sites.sites import DiskFormat
from groundwork import console, files, process
from groundwork.errors import InputError, SageError
from image_builder.manifest import ImageFile
from image_builder.rootfs import ROOT_LABEL, RootTree
from image_builder.variant import Arch

PROGRAMS = ("mcopy", "mke2fs", "mkfs.vfat", "mmd", "qemu-img", "sfdisk")

_MIB = 1 << 20
_SECTOR = 512
_ESP_SIZE = 550 * _MIB
_BIOS_SIZE = 8 * _MIB
_JOURNAL_MIB = 64
_BYTES_PER_INODE = 16384
_DEADLINE = 1800.0

# Partition types: UEFI specification (ESP), GRUB's manual (BIOS boot), the Discoverable Partitions Specification.
_TYPE_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_TYPE_BIOS = "21686148-6449-6E6F-744E-656564454649"
_TYPE_ROOT = {
    Arch.AMD64: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
    Arch.ARM64: "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
}
_EFI = {Arch.AMD64: ("x86_64-efi", "BOOTX64.EFI"), Arch.ARM64: ("arm64-efi", "BOOTAA64.EFI")}


@dataclass(frozen=True)
class Disk:
    """A finished disk in one or more formats.  ``disk_size``: the virtual disk's, in bytes."""

    recipe_digest: str
    build_id: str
    built_at: str
    disk_size: int
    files: tuple[ImageFile, ...]


def file_name(image_name: str, form: DiskFormat) -> str:
    """The name of an image's file in one format: ``Sage-Ubuntu24.04.zstd.qcow2``."""
    extension = {
        DiskFormat.QCOW2_ZSTD: "zstd.qcow2",
        DiskFormat.QCOW2_ZLIB: "zlib.qcow2",
        DiskFormat.RAW: "raw",
    }[form]
    return f"{image_name}.{extension}"


def assemble(tree: RootTree, arch: Arch, raw: Path, stage: console.Stage) -> int:
    """Put the tree's disk together as the sparse file ``raw``; returns its size in bytes."""
    x86 = arch is Arch.AMD64
    esp = 1 * _MIB
    bios = esp + _ESP_SIZE
    root = bios + (_BIOS_SIZE if x86 else 0)
    root_size = _root_size(tree)
    size = root + root_size + 1 * _MIB  # the last MiB holds the second GPT
    ids = {name: uuid.uuid5(uuid.NAMESPACE_OID, f"{tree.recipe_digest}/{name}") for name in _IDENTIFIERS}
    epoch = int(datetime.fromisoformat(tree.built_at.replace("Z", "+00:00")).timestamp())
    env = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(epoch), "E2FSPROGS_FAKE_TIME": str(epoch)}

    with raw.open("wb") as stream:
        stream.truncate(size)
    stage.detail("partition table")
    rows = [
        "label: gpt",
        f"label-id: {ids['disk']}",
        "first-lba: 34",
        _row(esp, _ESP_SIZE, _TYPE_ESP, ids["esp"], "ESP"),
        *([_row(bios, _BIOS_SIZE, _TYPE_BIOS, ids["bios"], "BIOS")] if x86 else []),
        _row(root, root_size, _TYPE_ROOT[arch], ids["root"], "root"),
    ]
    script = "\n".join(rows).encode()
    process.run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", raw], input=script, env=env, timeout=60)

    stage.detail("root file system")
    extended = f"offset={root},hash_seed={ids['hash']},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    shape = [
        "-t",
        "ext4",
        "-b",
        "4096",
        "-I",
        "256",
        "-i",
        str(_BYTES_PER_INODE),
        "-J",
        f"size={_JOURNAL_MIB}",
        "-m",
        "1",
    ]
    names = ["-L", ROOT_LABEL, "-U", str(ids["filesystem"])]
    # fmt: off
    process.run(
        ["mke2fs", "-q", "-F", *shape, *names, "-E", extended, "-d", tree.root, raw, f"{root_size // 1024}k"],
        env=env, timeout=_DEADLINE,
    )
    # fmt: on

    stage.detail("boot loaders")
    platform, efi_name = _EFI[arch]
    grub = tree.root / "boot/grub"
    _write_esp(raw, esp, grub / platform / "core.efi", efi_name, ids["esp"], env)
    if x86:
        _embed_bios(raw, bios, grub / "i386-pc/boot.img", grub / "i386-pc/core.img")
    return size


def convert(source: Path, source_format: DiskFormat, target: Path, form: DiskFormat) -> None:
    """Write ``source`` as ``target`` in another format."""
    # Larger clusters than qemu's 64 KiB: zstd then finds more in each, and the disk is read in large pieces anyway.
    options = {
        DiskFormat.QCOW2_ZSTD: ["-c", "-O", "qcow2", "-o", "compression_type=zstd,cluster_size=1M"],
        DiskFormat.QCOW2_ZLIB: ["-c", "-O", "qcow2", "-o", "compression_type=zlib,cluster_size=64k"],
        DiskFormat.RAW: ["-O", "raw"],
    }[form]
    process.run(
        ["qemu-img", "convert", "-m", "8", "-W", "-f", source_format.glance, *options, source, target],
        timeout=_DEADLINE,
    )


def make(
    tree: RootTree | None,
    standing: Disk | None,
    image_name: str,
    arch: Arch,
    formats: Iterable[DiskFormat],
    folder: Path,
    scratch: Path,
    stage: console.Stage,
) -> Disk:
    """The disk in all of ``formats``, made of the tree or, where one format stands already, of that.

    New files are made in ``scratch``, on the same file system, and renamed into ``folder``.
    """
    have = {file.format: file for file in standing.files} if standing else {}
    missing = [form for form in formats if form not in have]
    if standing:
        first = next(iter(have.values()))
        source, source_format = folder / first.name, first.format
        facts = standing
    else:
        if tree is None:
            raise SageError("there is neither a tree nor a disk to make formats of")
        source, source_format = scratch / "disk.raw", DiskFormat.RAW
        disk_size = assemble(tree, arch, source, stage)
        facts = Disk(tree.recipe_digest, tree.build_id, tree.built_at, disk_size, ())
    made = []
    for form in missing:
        name = file_name(image_name, form)
        stage.detail(f"writing {form}")
        target = scratch / name
        if form is source_format:
            source.rename(target)
            source = target
        else:
            convert(source, source_format, target, form)
        digests = files.digest_file(target)
        made.append((target, ImageFile(form, name, digests.size, digests.md5, digests.sha256, digests.sha512)))
    for target, file in made:
        files.give_to_owner_of(folder, target)
        target.chmod(0o644)
        target.rename(folder / file.name)
    files_now = tuple(have.values()) + tuple(file for _, file in made)
    return Disk(facts.recipe_digest, facts.build_id, facts.built_at, facts.disk_size, files_now)


def check_is_image(path: Path) -> int:
    """The virtual size, in bytes, of an image file; InputError for a file that is none."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        facts = json.loads(process.run(["qemu-img", "info", "--output=json", path], timeout=60))
    except process.ProcessError as error:
        raise InputError(f"{path} is not a disk image: {error}") from None
    if facts["format"] not in ("qcow2", "raw"):
        raise InputError(f"{path} is a {facts['format']} image; expected qcow2 or raw")
    outside = facts.get("backing-filename") or facts.get("format-specific", {}).get("data", {}).get("data-file")
    if outside:  # to read it could mean to read any file of this host
        raise InputError(f"{path} is not whole: it takes data from {outside}", hint="convert it: qemu-img convert")
    if facts["format"] == "raw":
        with path.open("rb") as stream:  # to qemu-img any file is a raw disk: look for a partition table
            stream.seek(_SECTOR)
            if stream.read(8) != b"EFI PART":
                raise InputError(f"{path} is not a disk image: neither qcow2 nor a disk with a GPT")
    return int(facts["virtual-size"])


_IDENTIFIERS = ("disk", "esp", "bios", "root", "filesystem", "hash")


def _root_size(tree: RootTree) -> int:
    """Bytes for the root partition: contents, inodes and journal, and room for a first boot; whole MiB."""
    inodes = max(tree.inodes, tree.size // _BYTES_PER_INODE) * 256 * 2
    needed = tree.size + inodes + _JOURNAL_MIB * _MIB
    return (int(needed * 1.08) + 300 * _MIB) // (8 * _MIB) * (8 * _MIB)


def _row(start: int, size: int, kind: str, identifier: uuid.UUID, name: str) -> str:
    return f'start={start // _SECTOR}, size={size // _SECTOR}, type={kind}, uuid={identifier}, name="{name}"'


def _write_esp(raw: Path, offset: int, loader: Path, name: str, identifier: uuid.UUID, env: dict[str, str]) -> None:
    """Make the ESP's file system at its offset and put the boot loader where firmware looks without an entry."""
    _require(loader)
    volume = f"{identifier.int & 0xFFFFFFFF:08X}"
    # fmt: off
    process.run(
        ["mkfs.vfat", "--invariant", "-F", "32", "-n", "ESP", "-i", volume, "--offset", str(offset // _SECTOR),
         raw, str(_ESP_SIZE // 1024)],
        env=env, timeout=60,
    )
    # fmt: on
    env = {**env, "MTOOLS_SKIP_CHECK": "1"}
    place = f"{raw}@@{offset}"
    process.run(["mmd", "-i", place, "::/EFI", "::/EFI/BOOT"], env=env, timeout=60)
    process.run(["mcopy", "-i", place, loader, f"::/EFI/BOOT/{name}"], env=env, timeout=60)


def _embed_bios(raw: Path, offset: int, boot: Path, core: Path) -> None:
    """Do what ``grub-bios-setup`` does, which wants a device: boot sector and core image, pointing to each other.

    The offsets are those of GRUB's ``boot.S`` and ``diskboot.S`` (``grub/i386/pc/boot.h``).
    """
    _require(boot, core)
    sector = bytearray(boot.read_bytes())
    image = bytearray(core.read_bytes())
    image += b"\0" * (-len(image) % _SECTOR)
    if len(sector) != _SECTOR or len(image) > _BIOS_SIZE:
        raise SageError(f"{boot} or {core} is not what GRUB makes", hint="look at element grub-boot")
    first = offset // _SECTOR
    struct.pack_into("<Q", sector, 0x5C, first)  # where the core image begins
    sector[0x64] = 0xFF  # the drive: the one the BIOS booted from
    sector[0x66:0x68] = b"\x90\x90"  # no jump over the check of that drive
    # The list of blocks that the core's first sector loads: the rest of the core, to segment 0x820.
    struct.pack_into("<QHH", image, _SECTOR - 12, first + 1, len(image) // _SECTOR - 1, 0x820)
    with raw.open("r+b") as stream:
        master = bytearray(stream.read(_SECTOR))
        master[0:3] = sector[0:3]
        master[0x5A:0x1B8] = sector[0x5A:0x1B8]  # keep the BIOS parameter block and the partition table
        stream.seek(0)
        stream.write(master)
        stream.seek(offset)
        stream.write(image)


def _require(*paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise SageError(
                f"the root tree has no boot loader ({path.name})", hint="does the variant have 'grub-boot'?"
            )

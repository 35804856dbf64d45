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
and the build, none from chance: the same tree
gives the same bits.
"""

import json
import os
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from chameleon_sites.sites import DiskFormat
from groundwork import files, process
from groundwork.errors import InputError, SageError
from image_builder.manifest import ImageFile
from image_builder.variant import Arch

ROOT_LABEL = "sage-root"
PROGRAMS = ("debugfs", "dumpe2fs", "mcopy", "mke2fs", "mkfs.vfat", "mmd", "qemu-img", "sfdisk")

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
    """A finished disk in one or more formats.

    ``disk_size``: the virtual disk's; ``tree_size``: what the tree's files take; both in bytes.
    """

    disk_size: int
    tree_size: int
    files: tuple[ImageFile, ...]


def file_name(image_name: str, form: DiskFormat) -> str:
    """The name of an image's file in one format: ``Sage-Ubuntu24.04.zstd.qcow2``."""
    extension = {
        DiskFormat.QCOW2_ZSTD: "zstd.qcow2",
        DiskFormat.QCOW2_ZLIB: "zlib.qcow2",
        DiskFormat.RAW: "raw",
    }[form]
    return f"{image_name}.{extension}"


def measure(root: Path) -> tuple[int, int]:
    """Bytes that the tree's contents take in blocks of 4 KiB, where a file with several names counts once; inodes."""
    size = inodes = 0
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            status = os.lstat(os.path.join(folder, name))
            if status.st_nlink == 1 or (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size += (status.st_size + 4095) // 4096 * 4096
                inodes += 1
    return size, inodes


def assemble(root_tree: Path, tree_size: int, inodes: int, arch: Arch, disk_id: str, epoch: int, raw: Path) -> int:
    """Put the tree's disk together as the sparse file ``raw``; returns its size in bytes.

    ``tree_size`` and ``inodes`` are those of :func:`measure`; the disk's identifiers derive from ``disk_id``, and
    ``epoch`` (seconds since 1970) is its only time but for those of the files' contents.
    """
    x86 = arch is Arch.AMD64
    esp = 1 * _MIB
    bios = esp + _ESP_SIZE
    root = bios + (_BIOS_SIZE if x86 else 0)
    root_size = _root_size(tree_size, inodes)
    size = root + root_size + 1 * _MIB  # the last MiB holds the second GPT
    ids = {name: uuid.uuid5(uuid.NAMESPACE_OID, f"{disk_id}/{name}") for name in _IDENTIFIERS}
    env = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(epoch), "E2FSPROGS_FAKE_TIME": str(epoch)}

    with raw.open("wb") as stream:
        stream.truncate(size)
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
        ["mke2fs", "-q", "-F", *shape, *names, "-E", extended, "-d", root_tree, raw, f"{root_size // 1024}k"],
        env=env, timeout=_DEADLINE,
    )
    # fmt: on
    _settle_times(raw, root, epoch, env)

    platform, efi_name = _EFI[arch]
    grub = root_tree / "boot/grub"
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
        # Not out of order (-W): where the clusters lie would be chance.
        ["qemu-img", "convert", "-m", "8", "-f", source_format.glance, *options, source, target],
        timeout=_DEADLINE,
    )


def convert_part(source: Path, source_format: DiskFormat, offset: int, size: int, target: Path) -> None:
    """Write ``size`` bytes of the disk in ``source``, from ``offset`` on, as the raw file ``target``."""
    place = str(source).replace(",", ",,")  # in qemu's options a comma ends a value
    options = f"driver=raw,offset={offset},size={size},file.driver={source_format.glance}"
    options += f",file.file.driver=file,file.file.filename={place}"
    process.run(["qemu-img", "convert", "-O", "raw", "--image-opts", options, target], timeout=_DEADLINE)


def write(source: Path, source_format: DiskFormat, image_name: str, form: DiskFormat, folder: Path) -> ImageFile:
    """Write the disk in one format into ``folder``; returns its name, size and digests."""
    target = folder / file_name(image_name, form)
    convert(source, source_format, target, form)
    target.chmod(0o644)
    digests = files.digest_file(target)
    return ImageFile(form, target.name, digests.size, digests.md5, digests.sha256, digests.sha512)


def more_formats(standing: Disk, image_name: str, formats: Iterable[DiskFormat], folder: Path, scratch: Path) -> Disk:
    """Add the formats that a standing disk lacks.

    New files are made in ``scratch``, on the same file system, and renamed into ``folder``.
    """
    have = {file.format for file in standing.files}
    first = standing.files[0]
    made = [write(folder / first.name, first.format, image_name, form, scratch) for form in formats if form not in have]
    for file in made:
        files.give_to_owner_of(folder, scratch / file.name)
        (scratch / file.name).rename(folder / file.name)
    return replace(standing, files=(*standing.files, *made))


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


def _root_size(tree_size: int, inodes: int) -> int:
    """Bytes for the root partition: contents, inodes and journal, and room for a first boot; whole MiB."""
    tables = max(inodes, tree_size // _BYTES_PER_INODE) * 256 * 2
    needed = tree_size + tables + _JOURNAL_MIB * _MIB
    return (int(needed * 1.08) + 300 * _MIB) // (8 * _MIB) * (8 * _MIB)


def _settle_times(raw: Path, offset: int, epoch: int, env: dict[str, str]) -> None:
    """Set the times that mke2fs takes from the tree's inodes, and that nobody can set there: access and change."""
    place = f"{raw}?offset={offset}"
    facts = dict(
        line.split(":", 1)
        for line in process.run(["dumpe2fs", "-h", place], env=env, timeout=60).splitlines()
        if ":" in line
    )
    used = int(facts["Inode count"]) - int(facts["Free inodes"])  # mke2fs takes them in order
    numbers = [2, *range(11, used + 1)]
    commands = "".join(f"sif <{number}> atime @{epoch}\nsif <{number}> ctime @{epoch}\n" for number in numbers)
    process.run(["debugfs", "-w", "-f", "/dev/stdin", place], input=commands.encode(), env=env, timeout=_DEADLINE)


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

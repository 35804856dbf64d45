# SPDX-License-Identifier: Apache-2.0
"""What a machine of QEMU's is to the image: a bare-metal node or a virtual machine of OpenStack's.

One image serves both kinds of site and finds out at boot which it is on (``systemd-detect-virt``), so each is played
in turn: the one with the marks of a hypervisor hidden and a server's devices, the other as Nova makes it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from groundwork.compat import StrEnum
from image_builder.variant import Arch


class Guise(StrEnum):
    """What a machine looks like from within."""

    BARE_METAL = "bare-metal"
    VIRTUAL = "virtual"


class Firmware(StrEnum):
    """What starts the machine."""

    BIOS = "bios"
    UEFI = "uefi"


MAC = "52:54:00:12:34:56"
_OTHER_MAC = "52:54:00:12:34:57"
_VENDOR = "Dell Inc."
_VERSION = "1.14.1"
_DATE = "11/20/2023"


@dataclass(frozen=True)
class Devices:
    """Words for QEMU's command line.

    ``processor`` is added to the model's name; ``disk`` is the device of the drive ``disk``; ``network`` the cards,
    the first of which is on the net ``net0``; ``others`` is what else there is.
    """

    processor: str
    disk: Sequence[str]
    network: Sequence[str]
    others: Sequence[str]


def guise(firmware: Firmware) -> Guise:
    """What the machine with that firmware plays, so that two boots show both.  A lone UEFI (arm64) is bare metal."""
    return Guise.BARE_METAL if firmware is Firmware.UEFI else Guise.VIRTUAL


def devices(kind: Guise, arch: Arch, scratch: Path) -> Devices:
    """The devices and identity of a machine; a file with its firmware's identity is left in ``scratch``."""
    virtio_disk = ["-device", "virtio-blk-pci,drive=disk"]
    virtio_network = ["-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="]
    if kind is Guise.VIRTUAL:
        nova = "type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova,version=27.0.0,family=Virtual Machine"
        return Devices("", virtio_disk, virtio_network, ["-smbios", nova, "-device", "virtio-rng-pci"])
    table = scratch / "smbios-type-0"
    table.write_bytes(_firmware_table())
    identity = [
        *("-smbios", f"file={str(table).replace(',', ',,')}"),
        *("-smbios", f"type=1,manufacturer={_VENDOR},product=PowerEdge R650,version=1,serial=SAGE0,family=PowerEdge"),
        *("-smbios", f"type=2,manufacturer={_VENDOR},product=0PYXKY,version=A02"),
        *("-smbios", f"type=3,manufacturer={_VENDOR},version=1"),
        *("-smbios", "type=4,manufacturer=Intel,version=1"),
    ]
    if arch is not Arch.AMD64:
        return Devices("", virtio_disk, virtio_network, [*identity, "-device", "virtio-rng-pci"])
    # SATA and Intel's network cards, so that the initramfs must hold drivers of real machines; one has no cable.
    return Devices(
        ",-hypervisor",
        ["-device", "ide-hd,drive=disk,bus=ide.0"],
        [
            *("-device", f"e1000e,netdev=net0,mac={MAC},romfile="),
            *("-netdev", "hubport,id=nowhere,hubid=9", "-device", f"e1000e,netdev=nowhere,mac={_OTHER_MAC},romfile="),
        ],
        identity,
    )


def _firmware_table() -> bytes:
    """An SMBIOS structure of type 0 that does not say "virtual machine", as QEMU's own and OVMF's do.

    Layout: SMBIOS specification (DMTF DSP0134), 7.1; bit 4 of the second extension byte is the one left out.
    """
    characteristics = 1 << 7 | 1 << 11 | 1 << 16 | 1 << 19  # PCI, flashable, boots from chosen devices, EDD
    extension = (0x03, 0x0D)  # ACPI, USB keyboards; boot specification, content distribution, UEFI
    body = struct.pack(
        "<BBHBBHBBQBBBBBB", 0, 24, 0, 1, 2, 0xF000, 3, 0xFF, characteristics, *extension, 1, 14, 0xFF, 0xFF
    )
    return body + b"".join(text.encode() + b"\0" for text in (_VENDOR, _VERSION, _DATE)) + b"\0"

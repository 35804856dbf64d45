# SPDX-License-Identifier: Apache-2.0
"""The canary that comes along: boots a candidate under QEMU from the bytes that the very site gives back.

Each site's bytes are read back and their digest is checked.  Then they are booted, on one firmware: on UEFI, as a
bare-metal node, for a bare-metal site; on BIOS, as a virtual machine, for a KVM site (arm64 knows only UEFI).  Sites
whose bytes, format and firmware are the same share one boot.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteUnreachable
from chameleon_sites.sites import Site, SiteKind
from groundwork import console, files, process, products, settings
from groundwork.errors import SageError
from image_builder import catalog, machine, rootfs, verify
from image_builder import settings as table
from image_builder.canary import Candidate, Verdict
from image_builder.hardware import Firmware
from image_builder.manifest import CheckReport
from image_builder.variant import Arch, Variant

if TYPE_CHECKING:
    from openstack.connection import Connection

_TRIES = 3  # downloads that may break off
_DIFFERENT = 2  # downloads of other bytes than were uploaded, before the site is believed to have those
_ZEROS = bytes(catalog.BLOCK)
_ROOM = 2 << 30  # bytes that a booted machine may write to its copy-on-write layer
_BOOT_WAIT = 4 * 3600.0  # seconds for the boots of other sites; whoever runs the canary ends it before


@dataclass(frozen=True)
class QemuReport:
    """What the canary found.

    ``boot``: ``own``, or ``shared`` with another site of the same bytes, or None where the bytes are not those that
    were uploaded.
    """

    verdict: Verdict
    reason: str
    site: str
    image_id: str
    firmware: str
    download_seconds: float
    boot: str | None
    checks: CheckReport | None


def command(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The command line of this canary: ``sage-image canary`` with the settings that the program runs with."""
    flags = settings.as_flags(table.TRY, {**values, "config": os.devnull, "json": True, "quiet": False})
    return (sys.executable, "-m", "image_builder.sage_image", "canary", *flags)


def firmware_for(kind: str, arch: Arch) -> Firmware:
    """On what an image is booted for a kind of site."""
    known = machine.firmwares(arch)
    wanted = Firmware.BIOS if kind == SiteKind.KVM else Firmware.UEFI
    return wanted if wanted in known else known[0]


def check_machine(arch: Arch) -> None:
    """Raise InputError where this machine can't boot an image of that architecture."""
    process.require(*machine.programs(arch))
    machine.uefi_files(arch)


def run(candidate: Candidate, site: Site, chosen: Variant, cache: Path, options: verify.Options) -> QemuReport:
    """Try a candidate.  Raises SageError where it can't be tried to the end."""
    firmware = firmware_for(candidate.kind, Arch(candidate.arch))
    connection = cloud.connect(site)
    with rootfs.workspace(cache) as scratch, _nameless(scratch, candidate.size) as stream:
        begin = time.monotonic()
        with console.stage(f"read {candidate.image_id} back from {site.name}") as stage:
            other = _read_back(connection, candidate, stream, stage)
        found = QemuReport(
            verdict=Verdict.FAIL,
            reason=other or "",
            site=site.name,
            image_id=candidate.image_id,
            firmware=str(firmware),
            download_seconds=round(time.monotonic() - begin, 3),
            boot=None,
            checks=None,
        )
        if other is not None:
            return found
        name = f"{candidate.sha512[:32]}-{candidate.format}-{firmware}"
        made = candidate.shared / f"{name}.json"
        with files.lock(candidate.shared / f"{name}.lock", wait=_BOOT_WAIT):
            boot = "shared" if made.exists() else "own"
            if boot == "own":
                image = Path(f"/proc/{os.getpid()}/fd/{stream.fileno()}")
                products.save(_boot(candidate, image, firmware, chosen, scratch, options), made)
            checks = products.load(CheckReport, made)
    failed = [result.name for result in checks.results if not result.passed]
    if checks.passed:
        reason = f"{len(checks.results)} checks passed on {firmware}"
    else:
        reason = f"{len(failed)} of {len(checks.results)} checks failed on {firmware}: {', '.join(failed)}"
    verdict = Verdict.PASS if checks.passed else Verdict.FAIL
    return replace(found, verdict=verdict, reason=reason, boot=boot, checks=checks)


def _boot(
    candidate: Candidate, image: Path, firmware: Firmware, chosen: Variant, scratch: Path, options: verify.Options
) -> CheckReport:
    """Boot the bytes and make the variant's checks; one machine of a run at a time, which gets all cores."""
    only = replace(options, firmwares=(firmware,), settings=chosen.settings)
    with (
        files.lock(candidate.shared / "machine.lock", wait=_BOOT_WAIT),
        console.stage(f"boot it on {firmware}") as stage,
    ):
        return verify.verify(image, Arch(candidate.arch), chosen.checks, candidate.folder, scratch, only, stage)


@contextmanager
def _nameless(folder: Path, size: int) -> Iterator[IO[bytes]]:
    """A file without a name, for ``size`` bytes: whatever ends this program, nothing of it stays."""
    free = files.free_bytes(folder)
    if free < size + _ROOM:
        raise SageError(
            f"{folder} has {console.mebibytes(free)} free; a canary takes {console.mebibytes(size + _ROOM)}",
            hint="make room there, or name another folder by --cache-dir",
        )
    with tempfile.TemporaryFile(dir=folder) as stream:
        yield stream


def _read_back(connection: "Connection", candidate: Candidate, stream: IO[bytes], stage: console.Stage) -> str | None:
    """Read the site's bytes into the file; why they are not those that were uploaded, or None.

    Raises SiteError where they can't be read.
    """
    broken = differed = 0
    while True:
        try:
            digest, size = _read_once(connection, candidate, stream, stage)
        except SiteUnreachable:
            broken += 1
            if broken == _TRIES:
                raise
            time.sleep(2.0**broken)
            continue
        if (digest, size) == (candidate.sha512, candidate.size):
            return None
        differed += 1
        if differed == _DIFFERENT:
            return (
                f"{candidate.site} gives back other bytes than were uploaded: sha512 {digest[:16]}..., {size} bytes, "
                f"and not {candidate.sha512[:16]}..., {candidate.size} bytes"
            )


def _read_once(
    connection: "Connection", candidate: Candidate, stream: IO[bytes], stage: console.Stage
) -> tuple[str, int]:
    """SHA-512 and size of what the site gives; of more than was uploaded the rest is not read."""
    total, size = hashlib.sha512(), 0
    stream.seek(0)
    stream.truncate()
    for block in catalog.download(connection, candidate.image_id):
        total.update(block)
        size += len(block)
        if size > candidate.size:
            break
        if block == _ZEROS[: len(block)]:
            stream.seek(len(block), os.SEEK_CUR)  # a hole: raw disks have many
        else:
            stream.write(block)
        stage.detail(f"{100 * size // candidate.size} %")
    stream.truncate(size)
    stream.flush()
    return total.hexdigest(), size

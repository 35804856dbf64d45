# SPDX-License-Identifier: Apache-2.0
"""Nights that build nothing: small variants, settled by the real archive, with stand-ins for finished builds."""

import os
from dataclasses import dataclass
from pathlib import Path

from chameleon_sites.sites import DiskFormat
from groundwork import files, process
from image_builder import manifest, planning, recipe, variant
from image_builder.cli import project_folder
from image_builder.manifest import CheckReport, CheckResult, ImageFile, Manifest
from image_builder.variant import Arch

FORMATS = (DiskFormat.QCOW2_ZSTD, DiskFormat.QCOW2_ZLIB)


@dataclass(frozen=True)
class House:
    """Folders for nights: the variants, the file of the night, what it leaves."""

    top: Path

    @property
    def state(self) -> Path:
        return self.top / "state"

    @property
    def config(self) -> Path:
        return self.top / "nightly.yaml"

    def variant(self, name: str, more: str = "") -> None:
        """A variant of ``base`` with one element of its own."""
        hook = self.top / f"elements/{name}/install.d/50-{name}"
        hook.parent.mkdir(parents=True, exist_ok=True)
        hook.write_text(f"#!/bin/bash\nset -eu\necho {name} > /opt/name\n")
        hook.chmod(0o755)
        (self.top / "variants").mkdir(exist_ok=True)
        text = f"description: a test's own\nextends: base\nimage_name: {image_name(name)}\nelements: [{name}]\n{more}"
        (self.top / f"variants/{name}.yaml").write_text(text)

    def build(self, name: str, cache: Path, *, size: int = 1 << 16) -> None:
        """A finished build of the variant's recipe as it is now, with random data and a good report of its checks."""
        found = variant.load(name, [self.top / "variants", project_folder("variants")])
        folders = [self.top / "elements", project_folder("elements")]
        made = planning.settle(
            recipe.make(found, "bookworm", Arch.AMD64, element_folders=folders), cache, refresh=False
        )
        build_id = f"20261120T031500Z-{made.digest[:8]}"
        folder = files.make_folder(self.top / "build" / made.image_name / build_id)
        rows = []
        for form in FORMATS:
            path = folder / f"{form}.qcow2"
            (self.top / "data").write_bytes(os.urandom(size))  # Glance looks whether it is what it is declared as
            process.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.top / "data", path], timeout=120)
            found_digests = files.digest_file(path)
            rows.append(
                ImageFile(
                    form,
                    path.name,
                    found_digests.size,
                    found_digests.md5,
                    found_digests.sha256,
                    found_digests.sha512,
                )
            )
        check = CheckResult("it is a stand-in", "bios", True, 0.0, "true", "")
        manifest.write(
            Manifest(
                build_id=build_id,
                image_name=made.image_name,
                variant=made.variant,
                release=made.release,
                os_name=made.os_name,
                os_version=made.os_version,
                arch=str(made.arch),
                recipe_digest=made.digest,
                checks_digest=made.checks_digest,
                built_at="2026-11-20T03:15:00Z",
                project_version="0",
                commit=None,
                clean=None,
                elements={},
                packages=(),
                disk_size=5 << 30,
                files=tuple(rows),
                checks=CheckReport((check,), {}),
                stage_seconds={},
            ),
            folder,
        )

    def write(self, cache: Path, *variants: str, more: str = "", canary: str = "true") -> None:
        """The file of a night with these variants at three sites.  ``canary``: the command in place of QEMU's boot."""
        self.config.write_text(
            f"images: [{{variant: [{', '.join(variants)}], release: bookworm, arch: amd64}}]\n"
            "site: [CHI@UC, CHI@TACC, KVM@TACC]\n"
            f"variants-dir: {self.top / 'variants'}\nelements-dir: {self.top / 'elements'}\n"
            f"output-dir: {self.top / 'build'}\ncache-dir: {cache}\nstate-dir: {self.state}\n"
            f"canary-command: '{canary}'\n{more}"
        )


def image_name(variant_name: str) -> str:
    """The public name of a variant's image; no other test's."""
    return f"Night-{os.getpid()}-{variant_name}"

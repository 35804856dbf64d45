# SPDX-License-Identifier: Apache-2.0
"""What was built: the manifest beside an image, and the checksums of its files.

A finished build is a folder ``<output>/<image name>/<build id>/`` with the image's files, ``manifest.json``,
``SHA256SUMS`` and the logs.
"""

from dataclasses import dataclass
from pathlib import Path

from chameleon_sites.sites import DiskFormat
from groundwork import files, products
from groundwork.errors import InputError

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class ImageFile:
    """One form of the image; ``name`` is its file's, beside the manifest; sizes in bytes, digests in hexadecimal."""

    format: DiskFormat
    name: str
    size: int
    md5: str
    sha256: str
    sha512: str


@dataclass(frozen=True)
class Package:
    """A package of the distribution that is installed in the image."""

    name: str
    version: str
    arch: str


@dataclass(frozen=True)
class FurtherSource:
    """What a variant had fetched: ``digest`` is git's commit (and ``tree`` its tree's) or an archive's SHA-256."""

    name: str
    url: str
    digest: str
    tree: str | None
    to: str


@dataclass(frozen=True)
class CheckResult:
    """What came of one check on one firmware."""

    name: str
    firmware: str
    passed: bool
    seconds: float
    command: str
    output: str


@dataclass(frozen=True)
class CheckReport:
    """What came of booting the image.  ``boot_seconds``: from power-on to the first login, by firmware."""

    results: tuple[CheckResult, ...]
    boot_seconds: dict[str, float]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)


@dataclass(frozen=True)
class Manifest:
    """All that is known of a build.

    ``built_at`` is UTC, RFC 3339, to the second.  ``disk_size`` is the virtual disk's, in bytes.  ``checks`` is
    absent when the build was not verified (``--no-verify``).  ``commit`` and ``clean`` are absent when the
    program did not run from a clone.
    """

    build_id: str
    image_name: str
    variant: str
    release: str
    os_name: str
    os_version: str
    arch: str
    recipe_digest: str
    checks_digest: str
    built_at: str
    project_version: str
    commit: str | None
    clean: bool | None
    elements: dict[str, str]
    packages: tuple[Package, ...]
    disk_size: int
    files: tuple[ImageFile, ...]
    checks: CheckReport | None
    stage_seconds: dict[str, float]
    sources: tuple[FurtherSource, ...] = ()

    def file_for(self, formats: tuple[DiskFormat, ...]) -> ImageFile | None:
        """The first of ``formats`` that this build has, or None."""
        by_format = {file.format: file for file in self.files}
        return next((by_format[form] for form in formats if form in by_format), None)


def read(path: Path) -> tuple[Manifest, Path]:
    """A manifest and its folder; ``path`` is the manifest's file or its folder.

    Raises InputError when it is none, or when one of its files is absent or has another size.
    """
    if path.is_dir():
        path = path / MANIFEST
    manifest = products.load(Manifest, path)
    for file in manifest.files:
        if Path(file.name).name != file.name:
            raise InputError(f"{path}: the file name {file.name!r} leads out of the manifest's folder")
        there = path.with_name(file.name)
        if not there.is_file():
            raise InputError(f"{path} names {file.name}, which is not there")
        if there.stat().st_size != file.size:
            raise InputError(f"{there} has {there.stat().st_size} bytes; the manifest says {file.size}")
    return manifest, path.parent


def check_digest(manifest: Manifest, path: Path) -> None:
    """Raise InputError when one of the manifest's files is not what was built."""
    expected = next(file.sha256 for file in manifest.files if file.name == path.name)
    if files.digest_file(path).sha256 != expected:
        raise InputError(
            f"{path} is not the file that was built: its SHA-256 differs from the manifest's",
            hint="build or copy it again",
        )


def write(manifest: Manifest, folder: Path) -> Path:
    """Write manifest and checksums into the build's folder; returns the manifest's path."""
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in manifest.files)
    files.write_text(folder / CHECKSUMS, lines)
    products.save(manifest, folder / MANIFEST)
    return folder / MANIFEST

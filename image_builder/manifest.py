# SPDX-License-Identifier: Apache-2.0
"""What was built: the manifest beside an image, and the checksums of its files.

A finished build is a folder ``<output>/<image name>/<build id>/`` with the image's files, the documents about them,
``manifest.json``, ``SHA256SUMS`` over all of these, and the logs.
"""

import hashlib
import re
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
    """A package of the distribution that is installed in the image.

    ``source`` and ``source_version``: the source package it was built from; "" in manifests of version 0.1.
    """

    name: str
    version: str
    arch: str
    source: str = ""
    source_version: str = ""


@dataclass(frozen=True)
class FurtherSource:
    """What a variant had fetched: ``digest`` is git's commit (and ``tree`` its tree's) or an archive's SHA-256."""

    name: str
    url: str
    digest: str
    tree: str | None
    to: str


@dataclass(frozen=True)
class Document:
    """A file about the image (inventory, SBOM, provenance) beside it; size in bytes, digest in hexadecimal."""

    name: str
    size: int
    sha256: str


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
    program did not run from a clone.  Manifests of version 0.1 have no ``documents``.
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
    documents: tuple[Document, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """Name -> SHA-256 of all image files and documents."""
        return {
            **{file.name: file.sha256 for file in self.files},
            **{document.name: document.sha256 for document in self.documents},
        }

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
    check_sha256(path, expected)


def check_sha256(path: Path, expected: str) -> None:
    """Raise InputError where a file is absent or has another digest."""
    if not path.is_file():
        raise InputError(f"{path} is not there; the build names it")
    if files.sha256_file(path) != expected:
        raise InputError(
            f"{path} is not the file that was built: its SHA-256 differs from the manifest's",
            hint="build or copy it again",
        )


def write(manifest: Manifest, folder: Path) -> Path:
    """Write checksums and manifest into the build's folder; returns the manifest's path."""
    text = products.to_text(manifest)
    rows = [(digest, name) for name, digest in manifest.digests.items()]
    rows.append((hashlib.sha256(text.encode()).hexdigest(), MANIFEST))
    # The manifest last: what it does not tell of yet is made again by the next run.
    files.write_text(folder / CHECKSUMS, "".join(f"{digest}  {name}\n" for digest, name in rows))
    files.write_text(folder / MANIFEST, text)
    return folder / MANIFEST


_CHECKSUM = re.compile(r"^([0-9a-f]{64})  ([^/\n]+)$", re.MULTILINE)


def checksums(folder: Path) -> dict[str, str]:
    """File's name -> SHA-256, as ``SHA256SUMS`` says.  InputError where it can't be read or is something else."""
    path = folder / CHECKSUMS
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "?"
    rows = {match[2]: match[1] for match in _CHECKSUM.finditer(text)}
    if len(rows) != len(text.splitlines()):
        raise InputError(f"{path} is not a list of SHA-256 checksums")
    return rows

# SPDX-License-Identifier: Apache-2.0
"""The documents that lie beside an image, the chain of their digests, and the signatures over them.

``SHA256SUMS`` has the digest of every image file, of inventory, SBOM, provenance and manifest; its signature alone
vouches for all of them.  SBOM and provenance have signatures of their own, for those who get them without the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError, SageError
from image_builder import manifest, provenance, sbom, signing
from image_builder.inventory import INVENTORY
from image_builder.manifest import CHECKSUMS, MANIFEST, Document, Manifest
from image_builder.provenance import PROVENANCE
from image_builder.recipe import Recipe
from image_builder.sbom import SBOM
from image_builder.software import Software

_TIME = "%Y-%m-%dT%H:%M:%SZ"
SIGNED = (CHECKSUMS, SBOM, PROVENANCE)


@dataclass(frozen=True)
class Circumstances:
    """What a build's documents take beside the recipe.

    ``revision``: as the user gave it.  ``builder``: the URI of who vouches for the build.  ``sign_key``: the key
    that signs it; None: it is not signed.
    """

    revision: str | None = None
    builder: str = provenance.BUILDER
    sign_key: Path | None = None


def write(recipe: Recipe, made: Manifest, software: Software, place: Path, circumstances: Circumstances) -> Manifest:
    """Write SBOM and provenance into ``place``, where the inventory is; returns the manifest with its documents."""
    files.write_text(place / SBOM, sbom.make(made, software))
    byproducts = tuple(_document(place / name) for name in (INVENTORY, SBOM))
    began = datetime.fromisoformat(made.built_at.replace("Z", "+00:00"))  # then the tree stood
    began -= timedelta(seconds=made.stage_seconds.get("root tree", 0.0))
    statement = provenance.make(
        recipe,
        made,
        started_at=began.strftime(_TIME),
        finished_at=datetime.now(timezone.utc).strftime(_TIME),
        revision=circumstances.revision,
        byproducts=byproducts,
        builder=circumstances.builder,
    )
    files.write_text(place / PROVENANCE, provenance.text(statement))
    return replace(made, documents=(*byproducts, _document(place / PROVENANCE)))


def add_files(made: Manifest, folder: Path) -> Manifest:
    """Have the provenance of a finished build tell of all its image files; the manifest with its documents."""
    if PROVENANCE not in {document.name for document in made.documents}:
        return made  # a build of version 0.1
    path = folder / PROVENANCE
    statement = provenance.with_files(provenance.read(path), made.files)
    files.write_text(path, provenance.text(statement))
    others = [document for document in made.documents if document.name != PROVENANCE]
    return replace(made, documents=(*others, _document(path)))


def sign(folder: Path, key: Path) -> None:
    """Sign a build's checksums and documents.  Raises InputError for a build without documents, or a useless key."""
    for name in SIGNED:
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: nothing to sign", hint="build it again: create-image --force")
    for name in SIGNED:
        signing.sign(folder / name, key)


def unsign(folder: Path) -> bool:
    """Remove the signatures, which no longer fit; whether there were any."""
    signatures = [path for path in (signing.signature_of(folder / name) for name in SIGNED) if path.exists()]
    for path in signatures:
        path.unlink()
    return bool(signatures)


def is_signed_by(folder: Path, key: Path) -> bool:
    """Whether all signatures are there, fit, and are by this very key."""
    return all(signing.is_signed_by(folder / name, key) for name in SIGNED)


def check_signatures(folder: Path, signers: Path) -> str:
    """Who signed the build, as the signers' file calls them.  SageError where a signature is missing or wrong."""
    found = dict.fromkeys(signing.verify(folder / name, signers) for name in SIGNED)
    if len(found) != 1:
        raise SageError(f"the documents of {folder} are signed by different people: {', '.join(found)}")
    if MANIFEST not in manifest.checksums(folder):
        raise SageError(f"{folder}: the signed {CHECKSUMS} does not tell of {MANIFEST}")
    return next(iter(found))


def check_digests(made: Manifest, folder: Path, images: Sequence[str]) -> None:
    """Raise InputError unless checksums, manifest, provenance and what they tell of fit together.

    ``images``: names of the image files to read, which takes a second for 1 GB or two.
    """
    sums = manifest.checksums(folder)
    told = made.digests
    if MANIFEST in sums:  # not in builds of version 0.1
        manifest.check_sha256(folder / MANIFEST, sums.pop(MANIFEST))
    for name in sorted(sums.keys() | told.keys()):
        if sums.get(name) != told.get(name):
            raise InputError(f"{folder}: {CHECKSUMS} and {MANIFEST} do not tell the same of {name}")
    for document in made.documents:
        if Path(document.name).name != document.name:
            raise InputError(f"{folder}: the file name {document.name!r} leads out of the folder")
        manifest.check_sha256(folder / document.name, document.sha256)
    if PROVENANCE in told:
        about = provenance.subjects(provenance.read(folder / PROVENANCE))
        if about != {file.name: file.sha256 for file in made.files}:
            raise InputError(f"{folder}: {PROVENANCE} is about other files than {MANIFEST}")
    for name in images:
        manifest.check_digest(made, folder / name)


def _document(path: Path) -> Document:
    return Document(path.name, path.stat().st_size, files.sha256_file(path))

# SPDX-License-Identifier: Apache-2.0
"""variant x release x architecture -> Recipe: all that goes into an image, and its digest.

What has the same digest need not be built, booted or uploaded again.  A site's kind is no part of it: one image
serves bare-metal and KVM sites, and settles at boot what differs (see ``docs/images.md``).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import groundwork
import virtual_waggle
from groundwork import documents, files
from groundwork.documents import Document
from groundwork.errors import InputError, nearest, unknown
from image_builder import archive_keys
from image_builder.variant import Arch, Check, Variant

# Python packages of this project that the image carries; element virtual-waggle installs them.
PAYLOAD = (groundwork, virtual_waggle)
# What turns a recipe into a disk is part of it.
_BUILDERS = ("rootfs.py", "disk.py")

_REVISION = re.compile(r"^\d{8}T\d{6}Z$")
_MIRRORS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_RELEASES = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": False,
        "required": ["os", "version", "element", "components", "suites", "mirrors", "snapshots", "keyring"],
        "properties": {
            "os": {"type": "string"},
            "version": {"type": "string"},
            "element": {"type": "string"},
            "components": _TEXTS,
            "suites": _TEXTS,
            "mirrors": _MIRRORS,
            "snapshots": _MIRRORS,
            "security": _MIRRORS,
            "keyring": {"type": "string"},
            "keyring_package": {"type": "string"},
        },
    },
}


@dataclass(frozen=True)
class Archive:
    """Where the packages come from while the image is built, and what its users' apt is told.

    ``mirror`` and ``security_mirror`` (Debian keeps security apart) are for the build; ``sources`` is the image's
    ``sources.list``.  ``keyring``: the file that the archive's signature is checked against, and the package that
    has it on this machine; ``keyring_digest`` (SHA-256) where the user chose the file.
    """

    mirror: str
    security_mirror: str | None
    components: tuple[str, ...]
    keyring: str
    keyring_package: str | None
    keyring_digest: str | None
    sources: str


@dataclass(frozen=True)
class Recipe:
    """All that goes into an image.

    ``elements`` are those named to diskimage-builder, the base system's first; ``element_digests`` has every
    element of ours and of the user's among them and those they depend on.  ``digest`` (SHA-256) says what the
    image will hold; ``checks_digest`` what is asked of it.
    """

    variant: str
    image_name: str
    release: str
    os_name: str
    os_version: str
    arch: Arch
    archive: Archive
    elements: tuple[str, ...]
    element_digests: dict[str, str]
    element_folders: tuple[Path, ...]
    packages: tuple[str, ...]
    settings: dict[str, str]
    checks: tuple[Check, ...]
    space_gib: int
    digest: str
    checks_digest: str


def releases() -> dict[str, Any]:
    """The rows of ``releases.yaml`` by release."""
    data: dict[str, Any] = documents.load(Path(__file__).with_name("releases.yaml"), _RELEASES).data
    return data


def make(
    variant: Variant,
    release: str,
    arch: Arch,
    *,
    element_folders: Sequence[Path],
    mirror: str | None = None,
    keyring: Path | None = None,
    revision: str | None = None,
    overrides: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> Recipe:
    """Put a recipe together.  ``element_folders`` hold elements, the first that has one of a name counts.

    ``mirror`` replaces the archive's (the security archive, where it is one of its own, is then looked for
    beside it, as ``<mirror>-security``).  ``keyring``: the file of OpenPGP keys that the archive's signature is
    checked against, instead of the distribution's.  ``revision`` is a time (YYYYMMDDTHHMMSSZ) at which a snapshot
    of the archive is taken.  ``overrides``: elements' settings given by a flag, as setting -> (flag, value).
    Raises InputError for what does not fit together.
    """
    rows = releases()
    if release not in rows:
        raise unknown("release", release, rows)
    if arch not in variant.arches:
        raise InputError(
            f"variant {variant.name} has no {arch} image", hint=f"it has: {', '.join(map(str, variant.arches))}"
        )
    row = rows[release]
    archive = _archive(row, release, arch, mirror, keyring, revision)
    digests = _element_digests(variant, element_folders)
    chosen = _settings(variant, element_folders, digests, overrides)
    fields: dict[str, Any] = {
        "variant": variant.name,
        "image_name": variant.image_name.format(
            os=row["os"], version=row["version"], arch="" if arch is Arch.AMD64 else f"-{arch.upper()}"
        ),
        "release": release,
        "os_name": row["os"],
        "os_version": row["version"],
        "arch": arch,
        "archive": archive,
        "elements": (row["element"], *variant.elements),
        "element_digests": digests,
        "packages": variant.packages,
        "settings": chosen,
    }
    content = {
        **fields,
        "archive": asdict(archive),
        "diskimage-builder": package_version("diskimage-builder"),
        "builders": {name: files.digest_file(Path(__file__).with_name(name)).sha256 for name in _BUILDERS},
        "payload": {package.__name__: payload_digest(package) for package in PAYLOAD},
    }
    # Where the keyring is on this machine says nothing of the image; which keys a user trusts does.
    del content["archive"]["keyring"], content["archive"]["keyring_package"]
    return Recipe(
        **fields,
        element_folders=tuple(element_folders),
        checks=variant.checks,
        space_gib=variant.space_gib,
        digest=files.digest_text(json.dumps(content, sort_keys=True)),
        checks_digest=files.digest_text(json.dumps([asdict(check) for check in variant.checks])),
    )


def payload_digest(package: Any) -> str:
    """The digest of a Python package's source."""
    return files.digest_tree(Path(package.__file__).parent)


def _archive(
    row: dict[str, Any], release: str, arch: Arch, mirror: str | None, keyring: Path | None, revision: str | None
) -> Archive:
    if revision is not None and not _REVISION.match(revision):
        raise InputError(f"--revision: expected a UTC time as YYYYMMDDTHHMMSSZ, found {revision!r}")
    components = tuple(row["components"])
    suites = [suite.format(release=release) for suite in row["suites"]]
    stock = row["mirrors"][arch]
    lines = [f"deb {stock} {suite} {' '.join(components)}" for suite in suites]
    security = row.get("security")
    if security:
        suite = security["suite"].format(release=release)
        lines.append(f"deb {security['mirror']} {suite} {' '.join(components)}")
    if revision is None:
        used = mirror or stock
        used_security = (f"{mirror.rstrip('/')}-security" if mirror else security["mirror"]) if security else None
    elif mirror is None:
        used = row["snapshots"][arch].format(revision=revision)
        used_security = security["snapshot"].format(revision=revision) if security else None
    elif "{revision}" in mirror:
        used = mirror.replace("{revision}", revision)
        used_security = f"{used.rstrip('/')}-security" if security else None
    else:
        raise InputError(
            "--revision: this mirror has no snapshots",
            hint="give a --mirror with {revision} in it, or leave it out for the distribution's own snapshots",
        )
    return Archive(
        mirror=used,
        security_mirror=used_security,
        components=components,
        keyring=str(keyring or row["keyring"]),
        keyring_package=None if keyring else row["keyring_package"],
        keyring_digest=hashlib.sha256(archive_keys.read(keyring)).hexdigest() if keyring else None,
        sources="\n".join(lines) + "\n",
    )


def find_element(name: str, folders: Sequence[Path]) -> Path | None:
    """The folder of an element of ours or of the user's; None where only diskimage-builder may have it."""
    return next((folder / name for folder in folders if (folder / name).is_dir()), None)


def _element_digests(variant: Variant, folders: Sequence[Path]) -> dict[str, str]:
    """Element's name -> digest, for the variant's elements and all that they depend on, but for stock ones."""
    import diskimage_builder.paths

    stock = Path(diskimage_builder.paths.get_path("elements"))
    digests: dict[str, str] = {}
    stock_used: set[str] = set()
    # A name, and how to complain when there is no such element.
    todo: list[tuple[str, Document | Path]] = [
        (name, variant.origins["elements", name][0]) for name in variant.elements
    ]
    while todo:
        name, named_in = todo.pop()
        if name in digests or name in stock_used:
            continue
        folder = find_element(name, folders)
        if folder is None:
            if not (stock / name).is_dir():
                raise _no_element(name, named_in, variant, [*folders, stock])
            stock_used.add(name)
            continue
        digests[name] = files.digest_tree(folder)
        dependencies = folder / "element-deps"
        if dependencies.exists():
            todo += [(word, dependencies) for word in dependencies.read_text().split()]
    return dict(sorted(digests.items()))


def _no_element(name: str, named_in: Document | Path, variant: Variant, folders: Sequence[Path]) -> InputError:
    known = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    message, hint = f"there is no element {name!r}", nearest(name, known)
    if isinstance(named_in, Path):
        lines = named_in.read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if name in text.split())
        return InputError(f"{named_in}:{line}: {message}", hint=hint)
    document, keys = variant.origins["elements", name]
    return document.error(keys, message, hint=hint)


def _settings(
    variant: Variant, folders: Sequence[Path], elements: Iterable[str], overrides: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """The settings of the variant and of flags, checked against the schemas of its elements."""
    from jsonschema import Draft202012Validator

    known: dict[str, Any] = {}
    for name in elements:
        folder = find_element(name, folders)
        schema = folder / "settings.yaml" if folder else None
        if schema is not None and schema.exists():
            known.update(documents.load(schema, {"type": "object"}).data)

    def complaint(key: str, value: str) -> tuple[str, str | None] | None:
        if key in known:
            for error in Draft202012Validator(known[key]).iter_errors(value):
                return error.message, known[key].get("description")
        elif not key.startswith("DIB_"):  # stock elements have no schema to check against
            return "no element of this variant takes this setting", nearest(key, known)
        return None

    for key, value in variant.settings.items():
        if found := complaint(key, value):
            document, keys = variant.origins["settings", key]
            raise document.error(keys, found[0], hint=found[1])
    for key, (flag, value) in overrides.items():
        if found := complaint(key, value):
            raise InputError(f"{flag}: {found[0]} ({key}); the variant is {variant.name}", hint=found[1])
    return {**variant.settings, **{key: value for key, (_, value) in overrides.items()}}

# SPDX-License-Identifier: Apache-2.0
"""variant x release x architecture -> Recipe: all that goes into an image, and its digest.

What has the same digest need not be built, booted or uploaded again.  A site's kind is no part of it: one image
serves bare-metal and KVM sites, and settles at boot what differs (see ``docs/images.md``).

The root tree is made in layers, each with a digest of its own that covers the layers below it.
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
from image_builder.variant import Arch, Check, Source, Variant

# Python packages of this project that the image carries; element virtual-waggle installs them.
PAYLOAD = (groundwork, virtual_waggle)
# What turns a recipe into layers, and those into a disk, is part of it.
_LAYER_BUILDERS = ("inside.py", "programs", "rootfs.py", "sources.py")
_DISK_BUILDERS = ("build.py", "disk.py", "inside.py")
# Elements that every layer has, by their dependencies; the second also takes over the tree of the layers below.
_FRAME = "layer"
_ABOVE = "layer-above"
# What reaches an element through the environment counts for the layers whose elements name the variable.
_PAYLOAD_VARIABLE = b"SAGE_PAYLOAD"
_SOURCES_VARIABLE = b"SAGE_SOURCES"

_REVISION = re.compile(r"^\d{8}T\d{6}Z$")
_MIRRORS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_COMPONENTS = {"type": "object", "additionalProperties": _TEXTS}
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

    ``mirror`` and ``security_mirror`` (Debian keeps security apart) are for the build, and ``build_sources`` is its
    ``sources.list``; ``sources`` is the image's.  ``keyring``: the file that the archive's signature is checked
    against, and the package that has it on this machine; ``keyring_digest`` (SHA-256) where the user chose the file.
    """

    mirror: str
    security_mirror: str | None
    is_snapshot: bool
    components: tuple[str, ...]
    keyring: str
    keyring_package: str | None
    keyring_digest: str | None
    build_sources: str
    sources: str


@dataclass(frozen=True)
class Layer:
    """One run of diskimage-builder over the layers below it.

    ``elements`` are those named to diskimage-builder; ``done`` those of the layers below, which are not run again.
    ``settings`` are those that its elements take.  ``digest`` (SHA-256) covers this layer and all below it.
    ``installs`` are the packages that it asks the archive for, once the recipe is settled.
    """

    name: str
    elements: tuple[str, ...]
    done: tuple[str, ...]
    packages: tuple[str, ...]
    settings: dict[str, str]
    digest: str
    installs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Indexes:
    """The archive's state that a recipe was settled with.

    ``lists``: the folder of its indexes; ``fetched_at``: UTC, RFC 3339; ``releases``: mirror and suite -> SHA-256 of
    the signed index; ``packages``: ``name:arch`` -> version of all that will be installed.
    """

    lists: Path
    fetched_at: str
    releases: dict[str, str]
    packages: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """All that goes into an image.

    ``layers`` are in the order in which they are built, the base system first; ``element_digests`` has every
    element of ours and of the user's among them and those they depend on.  ``digest`` (SHA-256) says what the
    image will hold; ``checks_digest`` what is asked of it.  ``more_components`` of the archive are those that elements
    add for their layers.  :func:`image_builder.planning.settle` adds the archive's
    part: ``indexes``, and ``epoch``, the time (seconds since 1970) of all that a build makes.
    """

    variant: str
    image_name: str
    release: str
    os_name: str
    os_version: str
    arch: Arch
    archive: Archive
    layers: tuple[Layer, ...]
    element_digests: dict[str, str]
    element_folders: tuple[Path, ...]
    settings: dict[str, str]
    checks: tuple[Check, ...]
    sources: tuple[Source, ...]
    space_gib: int
    size_budget_mib: int | None
    digest: str
    checks_digest: str
    more_components: tuple[str, ...] = ()
    epoch: int = 0
    indexes: Indexes | None = None


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
    elements = _elements(variant, row["element"], element_folders)
    chosen = _settings(variant, element_folders, elements.digests, overrides, release)
    source = asdict(archive)
    # Where the keyring is on this machine says nothing of the image; which keys a user trusts does.
    del source["keyring"], source["keyring_package"]
    origin = {
        "release": release,
        "arch": arch,
        "archive": source,
        "diskimage-builder": package_version("diskimage-builder"),
        "builders": _digest_modules(_LAYER_BUILDERS),
    }
    layers = _layers(variant, row["element"], elements, element_folders, chosen, files.digest_text(_canonical(origin)))
    image_name = variant.image_name.format(
        os=row["os"], version=row["version"], arch="" if arch is Arch.AMD64 else f"-{arch.upper()}"
    )
    content = {
        "image_name": image_name,
        "variant": variant.name,
        "layers": layers[-1].digest,
        "builders": _digest_modules(_DISK_BUILDERS),
        "version": groundwork.__version__,  # the image names it
    }
    return Recipe(
        variant=variant.name,
        image_name=image_name,
        release=release,
        os_name=row["os"],
        os_version=row["version"],
        arch=arch,
        archive=archive,
        layers=layers,
        element_digests=elements.digests,
        element_folders=tuple(element_folders),
        settings=chosen,
        checks=variant.checks,
        sources=variant.sources,
        space_gib=variant.space_gib,
        more_components=_more_components(elements.digests, element_folders, row),
        size_budget_mib=_budget(variant, release, rows),
        digest=files.digest_text(_canonical(content)),
        checks_digest=files.digest_text(_canonical([asdict(check) for check in variant.checks])),
    )


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True)


def _digest_modules(names: Iterable[str]) -> dict[str, str]:
    """The digests of our own files and folders."""
    paths = {name: Path(__file__).with_name(name) for name in names}
    return {
        name: files.digest_tree(path) if path.is_dir() else files.digest_file(path).sha256
        for name, path in paths.items()
    }


def _layers(
    variant: Variant,
    release_element: str,
    elements: "_Elements",
    folders: Sequence[Path],
    settings: Mapping[str, str],
    origin: str,
) -> tuple[Layer, ...]:
    """The variant's layers; the first one also makes the base system."""
    schemas = {name: _schema(name, folders) for name in elements.digests}
    frame = elements.closure([_FRAME, _ABOVE])
    layers: list[Layer] = []
    below, done = origin, set[str]()
    for position, group in enumerate(variant.layers):
        roots = (release_element, _FRAME) if position == 0 else (_ABOVE,)
        here = elements.closure([*roots, *group.elements]) - done
        taken = {key for name in here for key in schemas.get(name, ())}
        chosen = {key: value for key, value in settings.items() if key in taken or key.startswith("DIB_")}
        content = {
            "below": below,
            "elements": [*roots, *group.elements],
            "digests": {name: elements.digests[name] for name in sorted(here) if name in elements.digests},
            "packages": group.packages,
            "settings": chosen,
            "payload": {package.__name__: payload_digest(package) for package in PAYLOAD}
            if any(_mentions(find_element(name, folders), _PAYLOAD_VARIABLE) for name in here)
            else {},
            "sources": [source.content() for source in variant.sources]
            if any(_mentions(find_element(name, folders), _SOURCES_VARIABLE) for name in here)
            else [],
        }
        below = files.digest_text(_canonical(content))
        layers.append(
            Layer(
                name=(group.elements or group.packages)[-1] if position else release_element,
                elements=(*roots, *group.elements),
                done=tuple(sorted(done)),
                packages=group.packages,
                settings=chosen,
                digest=below,
            )
        )
        done |= here - frame
    return tuple(layers)


def _mentions(folder: Path | None, word: bytes) -> bool:
    """Whether a file of the element has the word in it."""
    return folder is not None and any(word in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def _budget(variant: Variant, release: str, known: Iterable[str]) -> int | None:
    """The variant's size budget for a release, in MiB; None where it has none."""
    for name in variant.size_budget_mib:
        if name != "default" and name not in known:
            document, keys = variant.origins["size_budget_mib", ""]
            raise document.error((*keys, name), "unknown release", hint=nearest(name, ["default", *known]))
    return variant.size_budget_mib.get(release, variant.size_budget_mib.get("default"))


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
    build_lines = [f"deb {used} {suite} {' '.join(components)}" for suite in suites]
    if security and used_security:
        build_lines.append(f"deb {used_security} {security['suite'].format(release=release)} {' '.join(components)}")
    return Archive(
        mirror=used,
        security_mirror=used_security,
        is_snapshot=revision is not None,
        components=components,
        keyring=str(keyring or row["keyring"]),
        keyring_package=None if keyring else row["keyring_package"],
        keyring_digest=hashlib.sha256(archive_keys.read(keyring)).hexdigest() if keyring else None,
        build_sources="\n".join(build_lines) + "\n",
        sources="\n".join(lines) + "\n",
    )


def find_element(name: str, folders: Sequence[Path]) -> Path | None:
    """The folder of an element of ours or of the user's; None where only diskimage-builder may have it."""
    return next((folder / name for folder in folders if (folder / name).is_dir()), None)


@dataclass(frozen=True)
class _Elements:
    """The elements that a variant needs: the digests of ours and the user's, and what each of all depends on."""

    digests: dict[str, str]
    dependencies: dict[str, tuple[str, ...]]

    def closure(self, names: Iterable[str]) -> set[str]:
        """The elements named and all that they depend on."""
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.dependencies[name]
        return found


def _elements(variant: Variant, release_element: str, folders: Sequence[Path]) -> _Elements:
    """All elements of the variant and the frame, with those they depend on; stock ones have no digest."""
    import diskimage_builder.paths

    stock = Path(diskimage_builder.paths.get_path("elements"))
    digests: dict[str, str] = {}
    dependencies: dict[str, tuple[str, ...]] = {}
    here = Path(__file__)
    # A name, and how to complain when there is no such element.
    todo: list[tuple[str, Document | Path]] = [(name, here) for name in (release_element, _FRAME, _ABOVE)]
    todo += [(name, variant.origins["elements", name][0]) for name in variant.elements]
    while todo:
        name, named_in = todo.pop()
        if name in dependencies:
            continue
        folder = find_element(name, folders)
        if folder is not None:
            digests[name] = files.digest_tree(folder)
        elif (stock / name).is_dir():
            folder = stock / name
        else:
            raise _no_element(name, named_in, variant, [*folders, stock])
        listing = folder / "element-deps"
        dependencies[name] = tuple(listing.read_text().split()) if listing.exists() else ()
        todo += [(word, listing) for word in dependencies[name]]
    return _Elements(dict(sorted(digests.items())), dependencies)


def _no_element(name: str, named_in: Document | Path, variant: Variant, folders: Sequence[Path]) -> InputError:
    known = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    message, hint = f"there is no element {name!r}", nearest(name, known)
    if isinstance(named_in, Path):
        lines = named_in.read_text().splitlines()
        line = next((number for number, text in enumerate(lines, 1) if name in text.split()), 1)
        return InputError(f"{named_in}:{line}: {message}", hint=hint)
    document, keys = variant.origins["elements", name]
    return document.error(keys, message, hint=hint)


def _settings(
    variant: Variant,
    folders: Sequence[Path],
    elements: Iterable[str],
    overrides: Mapping[str, tuple[str, str]],
    release: str,
) -> dict[str, str]:
    """The settings of the variant and of flags, checked against the schemas of its elements for this release."""
    from jsonschema import Draft202012Validator

    known: dict[str, Any] = {}
    for name in elements:
        for key, schema in _schema(name, folders).items():
            known[key] = {**schema, **_of_release(schema, release, name, key, variant)}

    def complaint(key: str, value: str) -> tuple[str, str | None] | None:
        if key in known:
            for error in Draft202012Validator(known[key]).iter_errors(value):
                if "releases" in known[key]:
                    here = ", ".join(filter(None, known[key]["enum"]))
                    return f"{release} does not have {value!r}", f"it has: {here}"
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


def _of_release(schema: Mapping[str, Any], release: str, element: str, key: str, variant: Variant) -> dict[str, Any]:
    """What a setting's schema says of this release alone: its key ``releases`` has the values that each has."""
    releases = schema.get("releases")
    if releases is None:
        return {}
    if release not in releases:
        raise InputError(
            f"variant {variant.name} can't be made of {release}: its element {element} is not for it",
            hint=f"it is for: {', '.join(releases)}",
        )
    row: dict[str, Any] = releases[release]
    return row


def _more_components(elements: Iterable[str], folders: Sequence[Path], row: Mapping[str, Any]) -> tuple[str, ...]:
    """The components of the archive that elements add: ``archive-components.yaml``, by distribution."""
    found: dict[str, None] = {}
    for name in elements:
        folder = find_element(name, folders)
        path = folder / "archive-components.yaml" if folder else None
        if path is not None and path.exists():
            found |= dict.fromkeys(documents.load(path, _COMPONENTS).data.get(row["os"].lower(), []))
    return tuple(name for name in found if name not in row["components"])


def _schema(element: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What settings the element takes: name -> JSON schema."""
    folder = find_element(element, folders)
    path = folder / "settings.yaml" if folder else None
    if path is None or not path.exists():
        return {}
    data: dict[str, Any] = documents.load(path, {"type": "object"}).data
    return data

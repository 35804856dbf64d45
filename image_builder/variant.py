# SPDX-License-Identifier: Apache-2.0
"""A variant: what an image holds and what it promises, as data.

``variants/<name>.yaml`` names the elements, packages and settings that make the image and the checks that it
must pass.  With ``extends`` it adds to another variant.  People's own variants lie in folders of their own and
may extend ours.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from groundwork import documents
from groundwork.compat import StrEnum
from groundwork.documents import Document
from groundwork.errors import InputError, unknown


class Arch(StrEnum):
    """Architectures, as Debian calls them."""

    AMD64 = "amd64"
    ARM64 = "arm64"


class Probe(StrEnum):
    """Checks that are made from outside the machine."""

    SSH_PASSWORD_REFUSED = "ssh-password-refused"  # noqa: S105 - no password
    SSH_ROOT_REFUSED = "ssh-root-refused"
    FIREWALL = "firewall"  # on bare metal ssh alone comes in, in a virtual machine all
    LOGIN_MESSAGE = "login-message"  # shows Chameleon's vendor data, and nothing wrong where there is none


class SourceKind(StrEnum):
    """What a further source is."""

    GIT = "git"
    ARCHIVE = "archive"


@dataclass(frozen=True)
class Source:
    """What is fetched from ``url`` and put into the image as the folder ``to``.

    ``digest`` is git's commit, or an archive's SHA-256; ``tree`` is the digest of the commit's tree.  ``where``
    says of each key the file, line and key, for errors.
    """

    name: str
    kind: SourceKind
    url: str
    digest: str
    tree: str | None
    to: str
    where: dict[str, str] = field(repr=False, compare=False)

    def content(self) -> dict[str, str | None]:
        """What of it makes the image."""
        row = asdict(self)
        del row["where"]
        return row


@dataclass(frozen=True)
class Check:
    """A promise of the image.

    Either ``run``, a bash script (``-euo pipefail``) that must exit with 0 within ``timeout`` seconds when ``cc``
    runs it in the booted image, or a ``probe`` from outside.  The script finds in its environment ``SAGE_MACHINE``
    (``bare-metal`` or ``virtual``), ``SAGE_FIRMWARE`` (``bios`` or ``uefi``) and the variant's settings.  One that is
    ``emulated`` asks for what only the site has that is played around an emulated machine.
    """

    name: str
    run: str | None
    probe: Probe | None
    timeout: float
    emulated: bool = False


@dataclass(frozen=True)
class Group:
    """What makes one layer of the root tree: elements, and packages besides."""

    elements: tuple[str, ...]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class FirstStep:
    """What a new user does first: a sentence, and perhaps commands to type (``run``, "" for none)."""

    text: str
    run: str


@dataclass(frozen=True)
class Variant:
    """A variant with all that it extends carried in.

    ``image_name`` has the fields ``{os}``, ``{version}`` and ``{arch}``.  ``layers`` are in the order in which they
    are built, what it extends first.  ``space_gib``: free disk that a build needs.  ``size_budget_mib``: release ->
    how much the image's files may take, ``default`` for other releases.  ``software`` (name -> patterns of packages'
    names, the preferred first), ``first_steps``, ``limits`` and ``node_type`` are for the page that describes the
    image, and no part of it.  ``origins`` says where an element, a setting or the budget was named: its file, line and
    key, for errors.
    """

    name: str
    description: str
    image_name: str
    arches: tuple[Arch, ...]
    layers: tuple[Group, ...]
    settings: dict[str, str]
    checks: tuple[Check, ...]
    sources: tuple[Source, ...]
    space_gib: int
    size_budget_mib: dict[str, int]
    software: dict[str, tuple[str, ...]]
    first_steps: tuple[FirstStep, ...]
    limits: tuple[str, ...]
    node_type: str | None
    origins: dict[tuple[str, str], tuple[Document, tuple[str | int, ...]]] = field(repr=False, compare=False)

    @property
    def elements(self) -> tuple[str, ...]:
        """Of all layers."""
        return tuple(name for layer in self.layers for name in layer.elements)

    @property
    def packages(self) -> tuple[str, ...]:
        """Those named beside the elements, of all layers."""
        return tuple(name for layer in self.layers for name in layer.packages)


_WORD = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9.+_:-]*$"}
_TEXTS = {"type": "array", "items": _WORD}
_LAYERS = {
    "type": "array",
    "items": {"anyOf": [_WORD, {**_TEXTS, "minItems": 1}]},
    "description": "elements' names; a list within the list is a layer of its own",
}
_CHECK = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "run": {"type": "string", "description": "a bash script that exits with 0 when the promise is kept"},
        "probe": {"enum": [str(probe) for probe in Probe]},
        "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600, "description": "seconds"},
        "emulated": {"type": "boolean", "description": "whether it holds in an emulated machine alone"},
    },
}
_BUDGET = {"type": "integer", "minimum": 1, "maximum": 1 << 20}
_DIGEST = "^([0-9a-f]{40}|[0-9a-f]{64})$"
_SOURCE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "to"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        "git": {
            "type": "string",
            "pattern": "^(https?|git|ssh)://[^ ]+$",
            "description": "an address as https://host/path of a git repository",
        },
        "commit": {"type": "string", "pattern": _DIGEST, "description": "a commit's full digest"},
        "tree": {"type": "string", "pattern": _DIGEST, "description": "what git rev-parse COMMIT^{tree} says"},
        "archive": {
            "type": "string",
            "pattern": "^https?://[^ ]+$",
            "description": "an address as https://host/path of a tar archive",
        },
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "what sha256sum says of the archive"},
        "to": {
            "type": "string",
            "pattern": "^/(opt|srv|usr/local)(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$",
            "description": "a folder below /opt, /srv or /usr/local",
        },
    },
}
_LINE = {"type": "string", "pattern": "^[^\\n]+$", "maxLength": 500, "description": "a text of one line"}
_PATTERN = {
    "type": "string",
    "pattern": "^[A-Za-z0-9][A-Za-z0-9.+*-]*$",
    "description": "a package's name, or a pattern",
}
_STEP = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text"],
    "properties": {"text": _LINE, "run": {"type": "string", "description": "commands to type"}},
}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "description": {"type": "string"},
        "extends": {"anyOf": [_WORD, {**_TEXTS, "minItems": 1}], "description": "another variant's name, or several"},
        "image_name": {"type": "string", "pattern": "^[^ :/]+$", "description": "a name without blanks and colons"},
        "arches": {"type": "array", "minItems": 1, "items": {"enum": [str(arch) for arch in Arch]}},
        "elements": _LAYERS,
        "packages": _TEXTS,
        "settings": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
        "checks": {"type": "array", "items": _CHECK},
        "sources": {"type": "array", "items": _SOURCE},
        "space_gib": {"type": "integer", "minimum": 1, "maximum": 1000},
        "size_budget_mib": {
            "anyOf": [_BUDGET, {"type": "object", "minProperties": 1, "additionalProperties": _BUDGET}],
            "description": "MiB that the image's files may take, or a mapping of releases (and 'default') to MiB",
        },
        "software": {
            "type": "object",
            "additionalProperties": {"anyOf": [_PATTERN, {"type": "array", "items": _PATTERN, "minItems": 1}]},
            "description": "programs' names, and the package (of several the first that is there) of their version",
        },
        "first_steps": {"type": "array", "items": _STEP},
        "limits": {"type": "array", "items": _LINE},
        "node_type": {**_WORD, "description": "a type of Chameleon's nodes that the image is for"},
    },
}
_SOURCES_ELEMENT = "sources"  # puts them into the image
_SCALARS = ("description", "image_name", "arches", "space_gib", "node_type")
_DEFAULT_TIMEOUT = 60.0
_DEFAULT_SPACE_GIB = 6


def available(folders: Sequence[Path]) -> dict[str, Path]:
    """Variant's name -> its file; in several folders of the same name the first folder's counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def load(name: str, folders: Sequence[Path]) -> Variant:
    """Read the variant of that name, with what it extends.

    Raises InputError for an unknown name, and, with file, line and key, for whatever is wrong in a file.
    """
    known = available(folders)
    if name not in known:
        raise unknown("variant", name, known)
    return _merge(name, _chain(known[name], known, ()))


def _chain(path: Path, known: dict[str, Path], heirs: tuple[Path, ...]) -> list[Document]:
    """The variant's file and all that it extends, each once; what is extended comes after what extends it."""
    document = documents.load(path, SCHEMA)
    extends = document.data.get("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    found = [document]
    for parent in reversed(parents):
        if parent not in known:
            hint = unknown("variant", parent, known).hint
            raise document.error(["extends"], f"there is no variant {parent!r}", hint=hint)
        line = (*heirs, path)
        if known[parent] in line:
            names = " -> ".join([*(seen.stem for seen in line), parent])
            raise document.error(["extends"], f"goes round in a circle: {names}")
        further = _chain(known[parent], known, line)
        # Of two parents' common one the place behind both is kept.
        found = [one for one in found if one.path not in {other.path for other in further}] + further
    return found


def _merge(name: str, chain: Sequence[Document]) -> Variant:
    """Carry the parents' data into one variant; ``chain`` begins with the variant itself."""
    origins: dict[tuple[str, str], tuple[Document, tuple[str | int, ...]]] = {}
    scalars: dict[str, Any] = {}
    layers: list[Group] = []
    settings: dict[str, str] = {}
    checks: dict[str, Check] = {}
    budget: dict[str, int] = {}
    sources: dict[str, Source] = {}
    software: dict[str, tuple[str, ...]] = {}
    steps: dict[str, FirstStep] = {}
    limits: dict[str, None] = {}
    for document in reversed(chain):
        data = document.data
        scalars.update({key: data[key] for key in _SCALARS if key in data})
        for key, value in data.get("software", {}).items():
            software[key] = (value,) if isinstance(value, str) else tuple(value)
        steps |= {
            row["text"]: FirstStep(row["text"], row.get("run", "").strip()) for row in data.get("first_steps", [])
        }
        limits |= dict.fromkeys(data.get("limits", []))
        if "size_budget_mib" in data:  # a child's takes the place of its parent's whole
            given = data["size_budget_mib"]
            budget = dict(given) if isinstance(given, dict) else {"default": given}
            origins["size_budget_mib", ""] = (document, ("size_budget_mib",))
        layers += _layers(document, origins)
        for key, value in data.get("settings", {}).items():
            settings[key] = ("1" if value else "0") if isinstance(value, bool) else str(value)
            origins["settings", key] = (document, ("settings", key))
        for position, row in enumerate(data.get("checks", [])):
            if ("run" in row) == ("probe" in row):
                raise document.error(["checks", position], f"check {row['name']!r} needs either 'run' or 'probe'")
            checks[row["name"]] = Check(  # one of the parent's with the same name is replaced
                name=row["name"],
                run=row.get("run"),
                probe=Probe(row["probe"]) if "probe" in row else None,
                timeout=float(row.get("timeout", _DEFAULT_TIMEOUT)),
                emulated=row.get("emulated", False),
            )
        for position, row in enumerate(data.get("sources", [])):
            source = _source(document, position, row)
            sources[source.name] = source  # as with checks
            if ("elements", _SOURCES_ELEMENT) not in origins:
                layers.append(Group((_SOURCES_ELEMENT,), ()))
                origins["elements", _SOURCES_ELEMENT] = (document, ("sources",))
    itself = chain[0]
    _check_places(list(sources.values()))
    for key in ("image_name", "description"):
        if key not in scalars:
            raise itself.error([], f"the key {key!r} is missing, here and in what it extends")
    if not any(layer.elements for layer in layers):
        raise itself.error([], "the key 'elements' is missing, here and in what it extends")
    try:
        scalars["image_name"].format(os="", version="", arch="")
    except (KeyError, ValueError, IndexError):
        raise itself.error(
            ["image_name"], "expected a name with no fields but {os}, {version} and {arch}", of_key=False
        ) from None
    return Variant(
        name=name,
        description=scalars["description"],
        image_name=scalars["image_name"],
        arches=tuple(Arch(arch) for arch in scalars.get("arches", list(Arch))),
        layers=tuple(layers),
        settings=settings,
        checks=tuple(checks.values()),
        sources=tuple(sources.values()),
        space_gib=scalars.get("space_gib", _DEFAULT_SPACE_GIB),
        size_budget_mib=budget,
        software=software,
        first_steps=tuple(steps.values()),
        limits=tuple(limits),
        node_type=scalars.get("node_type"),
        origins=origins,
    )


def _layers(document: Document, origins: dict[tuple[str, str], tuple[Document, tuple[str | int, ...]]]) -> list[Group]:
    """The layers that one file names: names that follow each other are one, a list is one.  New names alone count."""

    def is_new(kind: str, word: str, keys: tuple[str | int, ...]) -> bool:
        if (kind, word) in origins:
            return False
        origins[kind, word] = (document, keys)
        return True

    groups: list[list[str]] = []
    apart = True
    for position, item in enumerate(document.data.get("elements", [])):
        keys: tuple[str | int, ...] = ("elements", position)
        if isinstance(item, str):
            if apart:
                groups.append([])
            groups[-1] += [item] if is_new("elements", item, keys) else []
        else:
            groups.append([word for place, word in enumerate(item) if is_new("elements", word, (*keys, place))])
        apart = not isinstance(item, str)
    packages = [
        word
        for place, word in enumerate(document.data.get("packages", []))
        if is_new("packages", word, ("packages", place))
    ]
    found = [Group(tuple(group), ()) for group in groups if group]
    # A file's packages go into its last layer: they are what changes most.
    if packages:
        last = found.pop() if found else Group((), ())
        found.append(Group(last.elements, tuple(packages)))
    return found


def _source(document: Document, position: int, row: dict[str, Any]) -> Source:
    name = row["name"]
    if ("git" in row) == ("archive" in row):
        raise document.error(["sources", position], f"source {name!r} needs either 'git' or 'archive'")
    kind = SourceKind.GIT if "git" in row else SourceKind.ARCHIVE
    needed = ("commit", "tree") if kind is SourceKind.GIT else ("sha256",)
    for key in ("commit", "tree", "sha256"):
        if (key in needed) != (key in row):
            problem = "lacks the key" if key in needed else "is no use for the key"
            raise document.error(["sources", position], f"source {name!r} with '{kind}' {problem} {key!r}")
    if _has_credentials(row[kind]):  # not shown: whatever is told of a source, and the image's papers, have its address
        raise document.error(
            ["sources", position, str(kind)],
            "expected an address without credentials, for all may read it in the image's manifest",
            hint="git takes them from the ~/.netrc of whoever builds, or by ssh: ssh://git@host/path"
            if kind is SourceKind.GIT
            else "name an archive that needs none, or take it from git, which reads ~/.netrc",
        )
    where = {
        key: f"{document.path}:{document.line(['sources', position, key], of_key=True)}: sources[{position}].{key}"
        for key in row
    }
    return Source(name, kind, row[kind], row[needed[0]], row.get("tree"), row["to"], where)


def _has_credentials(url: str) -> bool:
    """Whether an address has a user's name or password in it; ssh's user is no secret."""
    scheme, _, rest = url.partition("://")
    user, at, _ = re.split("[/?#]", rest)[0].rpartition("@")
    return bool(at) and (scheme != "ssh" or ":" in user)


def _check_places(sources: Sequence[Source]) -> None:
    """Raise InputError where two sources would lie in one place, or one in another."""
    for one in sources:
        for other in sources:
            if one is not other and f"{one.to}/".startswith(f"{other.to}/"):
                raise InputError(f"{one.where['to']}: {one.to} is where source {other.name!r} lies already")

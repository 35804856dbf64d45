# SPDX-License-Identifier: Apache-2.0
"""What software a root tree holds, and which package each of its files belongs to.

Read from what lies in the tree: dpkg's database and the metadata of Python packages.  Container images are
told by whoever put them there.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path

import groundwork
from image_builder import inventory
from image_builder.inventory import Entry, Kind
from image_builder.manifest import Package
from image_builder.recipe import PAYLOAD, payload_digest
from virtual_waggle.containers.make import RECORD, STORE


@dataclass(frozen=True)
class PythonPackage:
    """A Python package that dpkg does not own.

    ``path``: its metadata, or its folder where it is one of this project (``tree_digest`` is then that of its
    source, as :func:`groundwork.files.digest_tree` makes it; else "").
    """

    name: str
    version: str
    path: str
    tree_digest: str = ""


@dataclass(frozen=True)
class ContainerImage:
    """A container image that lies in the tree.  ``digest``: ``sha256:...`` of its manifest or configuration."""

    name: str
    digest: str
    packages: tuple[Package, ...] = ()


@dataclass(frozen=True)
class Software:
    """All software of a tree: the distribution's packages and what did not come as one."""

    packages: tuple[Package, ...]
    python: tuple[PythonPackage, ...] = ()
    containers: tuple[ContainerImage, ...] = ()


def owners(root: Path) -> dict[str, str]:
    """Path -> the package that dpkg says it belongs to, for all files (and folders, by any of their packages).

    A package's ``lib/x`` is found at ``usr/lib/x`` where ``lib`` is a link (merged ``/usr``), and a diverted file
    where it was diverted to.
    """
    aliases = {}
    for link in root.iterdir():
        if link.is_symlink():
            aliases[link.name] = str(link.readlink()).strip("/")
    database = root / "var/lib/dpkg"
    diverted = _diversions(database / "diversions")
    found: dict[str, str] = {}
    for listing in sorted((database / "info").glob("*.list")):
        package = listing.stem.partition(":")[0]
        for line in listing.read_bytes().decode("utf-8", "surrogateescape").splitlines():
            path, diverter = diverted.get(line, (line, package))
            first, slash, rest = (line if diverter == package else path).lstrip("/").partition("/")
            found[f"{aliases.get(first, first)}{slash}{rest}"] = package
    for file in (database / "info").iterdir():
        found[f"var/lib/dpkg/info/{file.name}"] = file.name.rpartition(".")[0].partition(":")[0]
    return found


def _diversions(path: Path) -> dict[str, tuple[str, str]]:
    """From -> (to, the package whose own file stays).  dpkg keeps three lines a diversion."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines()
    return {old: (new, package) for old, new, package in zip(lines[0::3], lines[1::3], lines[2::3], strict=True)}


_METADATA = re.compile(r"(?:^|/)[^/]+\.(?:dist-info/METADATA|egg-info/PKG-INFO|egg-info)$")


def python_packages(root: Path, entries: Iterable[Entry]) -> tuple[PythonPackage, ...]:
    """The Python packages in the tree that are not files of the distribution's, and those of this project."""
    found = []
    ours = {f"{package.__name__}/__init__.py": package for package in PAYLOAD}
    for entry in entries:
        if entry.package or entry.kind != Kind.FILE:
            continue
        if _METADATA.search(entry.path):
            fields = BytesHeaderParser().parsebytes((root / entry.path).read_bytes())
            if fields["Name"] and fields["Version"]:
                found.append(PythonPackage(str(fields["Name"]), str(fields["Version"]), entry.path))
            continue
        module = ours.get("/".join(entry.path.split("/")[-2:]))
        if module is not None:
            folder = entry.path.rpartition("/")[0]
            found.append(
                PythonPackage(module.__name__, groundwork.__version__, folder, tree_digest=payload_digest(module))
            )
    return tuple(found)


def containers(trees: Sequence[Path]) -> tuple[ContainerImage, ...]:
    """The container images of a tree in layers, the lowest first, as element ``waggle-stacks`` recorded them."""
    for tree in reversed(trees):
        record = tree / STORE / RECORD
        if record.exists():
            return tuple(
                ContainerImage(row["name"], row["digest"], tuple(Package(**package) for package in row["packages"]))
                for row in json.loads(record.read_bytes())
            )
    return ()


def survey(root: Path, path: Path) -> tuple[PythonPackage, ...]:
    """Write the tree's inventory to ``path``; returns its Python packages that are not the distribution's."""
    entries = inventory.take(root, owners(root))
    inventory.write(entries, path)
    return python_packages(root, entries)

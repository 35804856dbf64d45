# SPDX-License-Identifier: Apache-2.0
"""Packages of the distribution as files: what they say of themselves, what they need, what they hold."""

import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from groundwork import process
from groundwork.errors import SageError

_DEADLINE = 120.0  # seconds for one package


@dataclass(frozen=True)
class Deb:
    """A package's file.

    ``source`` and ``source_version`` are the source package's; ``needs`` are the dependencies' alternatives, by
    name; ``control`` is the whole control file.
    """

    path: Path
    name: str
    version: str
    arch: str
    source: str
    source_version: str
    provides: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]
    control: str


def read(path: Path) -> Deb:
    """What a package's file says of itself.  Raises SageError where it is none."""
    control = process.run(["dpkg-deb", "--field", path], timeout=_DEADLINE)
    return parse(path, control)


def parse(path: Path, control: str) -> Deb:
    """The same from the text of its control file."""
    fields = {}
    for match in re.finditer(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", control, re.MULTILINE):
        fields[match[1].lower()] = match[2].strip()
    try:
        name, version, arch = fields["package"], fields["version"], fields["architecture"]
    except KeyError as error:
        raise SageError(f"{path} is no package: it has no field {error}") from None
    relations = [fields[key] for key in ("pre-depends", "depends") if fields.get(key)]
    needs = [_names(group, "|") for relation in relations for group in relation.split(",")]
    source, _, other = fields.get("source", name).partition(" ")  # with its version where that is another
    return Deb(
        path,
        name,
        version,
        arch,
        source,
        other.strip("()") or version,
        _names(fields.get("provides", ""), ","),
        tuple(needs),
        control,
    )


def closure(wanted: Iterable[str], available: Iterable[Deb]) -> list[Deb]:
    """Those of ``available`` that the packages wanted need, themselves included, in order of name.

    A dependency that nothing available meets was left out on purpose.  Raises SageError when a wanted package is
    not there.
    """
    by_name: dict[str, list[Deb]] = {}
    for deb in sorted(available, key=lambda deb: deb.name):
        for name in (deb.name, *deb.provides):
            by_name.setdefault(name, []).append(deb)
    found: dict[str, Deb] = {}
    todo = []
    for name in wanted:
        todo += _one(name, by_name) or _missing(name)
    while todo:
        deb = todo.pop()
        if deb.name not in found:
            found[deb.name] = deb
            for alternatives in deb.needs:
                todo += next((met for name in alternatives if (met := _one(name, by_name))), [])
    return [found[name] for name in sorted(found)]


@contextmanager
def contents(deb: Deb) -> Iterator[tarfile.TarFile]:
    """The package's files as a tar stream, to be read once from its beginning to its end."""
    unpacking = process.start(["dpkg-deb", "--fsys-tarfile", deb.path], stdout=-1, stderr=-3)
    try:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=unpacking.stdout, mode="r|", bufsize=1 << 18) as stream:
            yield stream
        while unpacking.stdout.read(1 << 16):  # the padding behind the archive's end
            pass
        if unpacking.wait(_DEADLINE) != 0:
            raise SageError(f"{deb.path} can't be unpacked", hint="remove it; the next build downloads it again")
    except tarfile.TarError as error:
        raise SageError(
            f"{deb.path} can't be unpacked: {error}", hint="remove it; the next build downloads it again"
        ) from None
    finally:
        process.stop(unpacking)


def _one(name: str, by_name: Mapping[str, list[Deb]]) -> list[Deb]:
    """The package of that name, or else those that provide it."""
    found = by_name.get(name, [])
    return [deb for deb in found if deb.name == name] or found


def _missing(name: str) -> list[Deb]:
    raise SageError(f"package {name} was not among those that apt gave", hint="is it also listed as absent?")


def _names(relation: str, separator: str) -> tuple[str, ...]:
    """Package names of a relation, without versions, architectures and profiles."""
    words = (part.strip().split(" ")[0].split("(")[0].split(":")[0] for part in relation.split(separator))
    return tuple(word for word in words if word)

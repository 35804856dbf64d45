# SPDX-License-Identifier: Apache-2.0
"""Where an image's bytes go, and what changed from one image to another.  Pure: works on inventories.

Sizes are bytes in blocks of 4 KiB, as the image's file system has them; a file of several names counts once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from groundwork.compat import StrEnum
from image_builder.inventory import Entry, Kind
from image_builder.manifest import Package

NO_PACKAGE = "(no package)"
_DEPTH = 3  # usr/lib/modules, usr/lib/x86_64-linux-gnu, var/lib/docker


class Change(StrEnum):
    """What became of a package or a file."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True)
class PackageChange:
    """A package of one architecture; ``before`` or ``after`` (versions) is None where it is not installed."""

    name: str
    arch: str
    change: Change
    before: str | None
    after: str | None


@dataclass(frozen=True)
class FileChange:
    """A file, folder or link.  ``what`` changed: content, kind, target, mode, owner.  Sizes in bytes."""

    path: str
    change: Change
    what: tuple[str, ...]
    before: int
    after: int
    package: str


@dataclass(frozen=True)
class SizeChange:
    """A package's or a folder's bytes in the two images."""

    name: str
    before: int
    after: int

    @property
    def growth(self) -> int:
        return self.after - self.before


@dataclass(frozen=True)
class Difference:
    """What changed between two images; ``total`` is all content.  Sizes by package and by folder: what differs."""

    packages: tuple[PackageChange, ...]
    files: tuple[FileChange, ...]
    package_sizes: tuple[SizeChange, ...]
    folder_sizes: tuple[SizeChange, ...]
    total: SizeChange


def by_package(entries: Iterable[Entry]) -> dict[str, int]:
    """Package -> bytes, the largest first; ``NO_PACKAGE`` for files of none."""
    sums: dict[str, int] = {}
    for entry in entries:
        if entry.size:
            name = entry.package or NO_PACKAGE
            sums[name] = sums.get(name, 0) + entry.occupied
    return _largest_first(sums)


def by_folder(entries: Iterable[Entry], depth: int = _DEPTH) -> dict[str, int]:
    """Folder -> bytes, the largest first.  Folders are told apart down to ``depth``; each file counts in one."""
    sums: dict[str, int] = {}
    for entry in entries:
        if entry.size:
            name = "/" + "/".join(entry.path.split("/")[:-1][:depth])
            sums[name] = sums.get(name, 0) + entry.occupied
    return _largest_first(sums)


def largest_files(entries: Iterable[Entry], count: int) -> list[Entry]:
    """The largest files."""
    return sorted(entries, key=lambda entry: (-entry.size, entry.path))[:count]


def compare(
    before: Sequence[Entry],
    after: Sequence[Entry],
    packages_before: Iterable[Package] = (),
    packages_after: Iterable[Package] = (),
) -> Difference:
    """What changed from one image to the other."""
    folders, folders_after = by_folder(before), by_folder(after)
    return Difference(
        packages=compare_packages(packages_before, packages_after),
        files=_compare_files(before, after),
        package_sizes=_compare_sizes(by_package(before), by_package(after)),
        folder_sizes=_compare_sizes(folders, folders_after),
        total=SizeChange("/", sum(folders.values()), sum(folders_after.values())),
    )


def compare_packages(before: Iterable[Package], after: Iterable[Package]) -> tuple[PackageChange, ...]:
    """The packages that came, went or have another version, in order of name."""
    old = {(package.name, package.arch): package.version for package in before}
    new = {(package.name, package.arch): package.version for package in after}
    return tuple(
        PackageChange(name, arch, _change(first, then), first, then)
        for name, arch in sorted(old.keys() | new.keys())
        if (first := old.get((name, arch))) != (then := new.get((name, arch)))
    )


def _compare_files(before: Sequence[Entry], after: Sequence[Entry]) -> tuple[FileChange, ...]:
    old = {entry.path: entry for entry in before}
    new = {entry.path: entry for entry in after}
    found = []
    for path in sorted(old.keys() | new.keys()):
        first, then = old.get(path), new.get(path)
        if first is not None and then is not None:
            what = _what_changed(first, then)
            if what:
                package = then.package or first.package
                found.append(FileChange(path, Change.CHANGED, what, first.size, then.size, package))
        elif then is not None:
            found.append(FileChange(path, Change.ADDED, (), 0, then.size, then.package))
        elif first is not None:
            found.append(FileChange(path, Change.REMOVED, (), first.size, 0, first.package))
    return tuple(found)


def _what_changed(first: Entry, then: Entry) -> tuple[str, ...]:
    if first == then:
        return ()
    # A file that got a second name, or lost it, is still the same file under this one; its size moves in the sums.
    if first.kind != then.kind and {first.kind, then.kind} != {Kind.FILE, Kind.HARDLINK}:
        return ("kind",)
    what = []
    if first.kind == then.kind == Kind.FILE and first.digest != then.digest:
        what.append("content")
    if first.kind == then.kind and first.target != then.target:
        what.append("target")
    if first.kind != then.kind:
        what.append("names")
    if first.mode != then.mode:
        what.append("mode")
    if (first.uid, first.gid) != (then.uid, then.gid):
        what.append("owner")
    return tuple(what)


def _compare_sizes(before: dict[str, int], after: dict[str, int]) -> tuple[SizeChange, ...]:
    """The sizes that differ, the largest difference first."""
    changes = [SizeChange(name, before.get(name, 0), after.get(name, 0)) for name in before.keys() | after.keys()]
    return tuple(sorted((row for row in changes if row.growth), key=lambda row: (-abs(row.growth), row.name)))


def _change(first: str | None, then: str | None) -> Change:
    if first is None:
        return Change.ADDED
    return Change.REMOVED if then is None else Change.CHANGED


def _largest_first(sums: dict[str, int]) -> dict[str, int]:
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

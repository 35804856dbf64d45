# SPDX-License-Identifier: Apache-2.0
"""What ``sage-image show --size`` and ``sage-image diff`` tell of finished builds."""

from dataclasses import dataclass
from pathlib import Path

from groundwork import console
from groundwork.errors import InputError
from image_builder import comparison, inventory
from image_builder.comparison import Change, Difference, FileChange, SizeChange
from image_builder.inventory import INVENTORY, Entry
from image_builder.manifest import Manifest

_ROWS = 20  # of each table, for people; --json has all
_FILES = 40


@dataclass(frozen=True)
class Sizes:
    """Where an image's bytes go: packages and folders with all their bytes, the largest first; some files."""

    build_id: str
    total: int
    packages: dict[str, int]
    folders: dict[str, int]
    files: dict[str, int]


@dataclass(frozen=True)
class BuildDifference:
    """What changed from build ``before`` to build ``after``; ``files_known`` when both have an inventory."""

    before: str
    after: str
    files_known: bool
    difference: Difference


def sizes(made: Manifest, folder: Path) -> Sizes:
    """Where the bytes of a finished build go.  Raises InputError for one without an inventory."""
    entries = inventory.read(_inventory(folder))
    return Sizes(
        made.build_id,
        inventory.content_size(entries),
        comparison.by_package(entries),
        comparison.by_folder(entries),
        {f"/{entry.path}": entry.size for entry in comparison.largest_files(entries, 100)},
    )


def difference(before: tuple[Manifest, Path], after: tuple[Manifest, Path]) -> BuildDifference:
    """What changed between two finished builds.  Of builds without inventories only the packages are compared."""
    old: list[Entry] = []
    new: list[Entry] = []
    known = True
    try:
        old, new = inventory.read(_inventory(before[1])), inventory.read(_inventory(after[1]))
    except InputError as error:
        console.warn(f"files are not compared: {error}", hint=error.hint)
        old, known = [], False
    found = comparison.compare(old, new, before[0].packages, after[0].packages)
    return BuildDifference(_name(before[0]), _name(after[0]), known, found)


def tell_sizes(report: Sizes) -> None:
    """The sizes, for people."""
    console.result(f"{console.mebibytes(report.total)} of files in {report.build_id}")
    for title, rows in (("package", report.packages), ("folder", report.folders), ("file", report.files)):
        console.result("")
        shown = list(rows.items())[:_ROWS]
        console.table(["size", title], [[console.mebibytes(size), name] for name, size in shown])


def tell_difference(report: BuildDifference) -> None:
    """The difference, for people: files of packages that changed are counted, the others named."""
    found = report.difference
    console.result(f"{report.before} -> {report.after}")
    console.result("")
    console.result(f"packages: {_counts([row.change for row in found.packages])}")
    if found.packages:
        cells = [[str(row.change), row.name, row.before or "-", row.after or "-"] for row in found.packages]
        console.table(["", "package", "before", "after"], cells)
    if not report.files_known:
        return
    console.result("")
    changed = {row.name for row in found.packages}
    others = [row for row in found.files if row.package not in changed]
    text = f"files: {_counts([row.change for row in found.files])}"
    if len(others) < len(found.files):
        text += f"; {len(found.files) - len(others)} of them belong to the packages above, {len(others)} do not"
    console.result(text)
    if others:
        shown = sorted(others, key=lambda row: -abs(row.after - row.before))[:_FILES]
        console.table(["", "file", "before", "after", "what"], [_file_cells(row) for row in shown])
        if len(shown) < len(others):
            console.result(f"and {len(others) - len(shown)} more; --json names all")
    console.result("")
    total = found.total
    console.result(f"size: {console.mebibytes(total.before)} -> {console.mebibytes(total.after)} ({_growth(total)})")
    for title, rows in (("folder", found.folder_sizes), ("package", found.package_sizes)):
        if rows:
            cells = [
                [row.name, console.mebibytes(row.before), console.mebibytes(row.after), _growth(row)]
                for row in rows[:_ROWS]
            ]
            console.table([title, "before", "after", "growth"], cells)


def _file_cells(row: FileChange) -> list[str]:
    before = "-" if row.change is Change.ADDED else f"{row.before:,}"
    after = "-" if row.change is Change.REMOVED else f"{row.after:,}"
    return [str(row.change), f"/{row.path}", before, after, ", ".join(row.what)]


def _counts(changes: list[Change]) -> str:
    return ", ".join(f"{changes.count(change)} {change}" for change in Change)


def _growth(row: SizeChange) -> str:
    return f"{'+' if row.growth >= 0 else '-'}{console.mebibytes(abs(row.growth))}"


def _name(made: Manifest) -> str:
    return f"{made.image_name}/{made.build_id}"


def _inventory(folder: Path) -> Path:
    path = folder / INVENTORY
    if not path.exists():
        raise InputError(f"{folder} has no {INVENTORY}", hint="build it again: create-image --force")
    return path

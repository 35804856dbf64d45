# SPDX-License-Identifier: Apache-2.0
"""The last runs: their reports as small JSON files, one a run, named by when it began."""

from collections.abc import Callable
from pathlib import Path

from groundwork import console, products
from groundwork.errors import InputError
from image_builder.report import FORMAT, RunReport


def stamp(time: str) -> str:
    """RFC 3339 -> what files are named by: ``20261121T031500Z``."""
    return time.replace("-", "").replace(":", "")


def save(report: RunReport, folder: Path, *, keep: int) -> None:
    """Add a report; of all that stand the newest ``keep`` remain."""
    products.save(report, folder / f"{stamp(report.begun_at)}.json")
    drop(folder, "*.json", keep)


def load(folder: Path, most: int) -> tuple[RunReport, ...]:
    """The newest reports, the newest first.  What can't be read is passed over."""
    found = []
    for path in sorted(folder.glob("*.json"), reverse=True)[:most]:
        try:
            report = products.load(RunReport, path)
        except InputError as error:
            console.warn(f"passing over the record of a run: {error}")
            continue
        if report.format == FORMAT:
            found.append(report)
    return tuple(found)


def drop(folder: Path, pattern: str, keep: int, remove: Callable[[Path], None] = Path.unlink) -> None:
    """Remove of what is named by its time all but the newest ``keep``."""
    for path in sorted(folder.glob(pattern))[:-keep]:
        remove(path)

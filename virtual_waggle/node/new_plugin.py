# SPDX-License-Identifier: Apache-2.0
"""Makes a folder with a plugin that builds and publishes as it stands, out of ``stacks/plugin``."""

import re
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError

TEMPLATE = Path(__file__).parents[1] / "stacks/plugin"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def make(name: str, folder: Path) -> list[Path]:
    """Make ``<folder>/<name>``, and give the files in it.  Raises InputError where something of that name is."""
    if not _NAME.fullmatch(name) or len(name) > 64:
        raise InputError(
            f"{name!r} is no name for a plugin", hint="small letters and digits, joined by -, as sky-cover"
        )
    target = folder / name
    if target.exists():
        raise InputError(f"{target} is there already", hint="name another, or move it away")
    building = folder / f".{name}.part"
    files.remove_tree(building)
    files.make_folder(building)
    made = []
    for source in sorted(TEMPLATE.iterdir()):
        if source.is_file():
            text = source.read_text(encoding="utf-8")
            (building / source.name).write_text(re.sub(r"\bNAME\b", name, text), encoding="utf-8")
            made.append(target / source.name)
    building.rename(target)
    return made

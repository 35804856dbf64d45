# SPDX-License-Identifier: Apache-2.0
"""A variant's size budget: a tree over it ends the build, and what grew is named."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from groundwork import console
from groundwork.errors import InputError, SageError
from image_builder import comparison, inventory, manifest
from image_builder.comparison import SizeChange
from image_builder.inventory import INVENTORY, Entry
from image_builder.recipe import Recipe

_ROWS = 8
_MIB = 1 << 20


def check(recipe: Recipe, entries: Sequence[Entry], output: Path) -> None:
    """Raise SageError where the tree's content is over the recipe's budget.

    What grew is told against the newest finished build of the same image name below ``output``; where there is
    none, or it was no smaller, the largest packages and folders are named.
    """
    size = inventory.content_size(entries)
    if recipe.size_budget_mib is None or size <= recipe.size_budget_mib * _MIB:
        return
    over = console.mebibytes(size - recipe.size_budget_mib * _MIB)
    lines = [
        f"the content of {recipe.image_name} takes {console.mebibytes(size)}: {over} more than its budget of "
        f"{recipe.size_budget_mib:,} MiB"
    ]
    earlier = _earlier(recipe, output)
    grown = None
    if earlier is not None:
        build_id, before = earlier
        grown = comparison.compare(before, entries)
        lines[0] += f", and {console.mebibytes(abs(grown.total.growth))} "
        lines[0] += f"{'more' if grown.total.growth > 0 else 'less'} than build {build_id}"
    if grown is not None and grown.total.growth > 0:
        lines += _growth("packages that grew most", grown.package_sizes)
        lines += _growth("folders that grew most", grown.folder_sizes)
    else:
        lines += _sizes("the largest packages", comparison.by_package(entries))
        lines += _sizes("the largest folders", comparison.by_folder(entries))
    raise SageError(
        "\n".join(lines) + "\n", hint=f"leave something out, or raise size_budget_mib of variant {recipe.variant}"
    )


def _earlier(recipe: Recipe, output: Path) -> tuple[str, list[Entry]] | None:
    """Build id and inventory of the newest finished build of this image name that has one."""
    for path in sorted(output.glob(f"{recipe.image_name}/*/{manifest.MANIFEST}"), reverse=True):
        try:
            return path.parent.name, inventory.read(path.with_name(INVENTORY))
        except InputError:
            continue
    return None


def _growth(title: str, rows: Sequence[SizeChange]) -> list[str]:
    grown = [row for row in rows if row.growth > 0][:_ROWS]
    lines = [f"  +{row.growth / _MIB:9,.1f} MiB  {row.name}{'' if row.before else ' (new)'}" for row in grown]
    return [f"{title}:", *lines] if grown else []


def _sizes(title: str, sizes: Mapping[str, int]) -> list[str]:
    return [f"{title}:", *(f"  {size / _MIB:10,.1f} MiB  {name}" for name, size in list(sizes.items())[:_ROWS])]

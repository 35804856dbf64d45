# SPDX-License-Identifier: Apache-2.0
"""Recipe x archive -> Recipe: which packages the layers will hold, known before any build.

The packages that apt would install, with versions and digests, are part of each layer's digest.  So newer packages in
the archive make another recipe, and an archive that has moved in what an image does not hold makes none; on any
machine, also one that never built the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from groundwork import console, files, products
from groundwork.errors import InputError, SageError
from image_builder import archive, archive_keys
from image_builder.archive import Planned, Source, State
from image_builder.recipe import Indexes, Layer, Recipe
from image_builder.wanted import Wanted, wanted
from virtual_waggle.containers import definition

_CONTAINERS = "waggle-stacks"  # the element


@dataclass(frozen=True)
class _Wanted:
    """What a layer's elements ask for, kept by the layer's declared digest."""

    packages: tuple[Wanted, ...]


def settle(recipe: Recipe, cache: Path, *, refresh: bool, since: str | None = None) -> Recipe:
    """The recipe with its packages planned, from the archive's state in the cache, or with ``refresh`` as it is now.

    A state that was fetched after ``since`` (a time of :func:`archive.now`) counts as now.
    Raises InputError, with element, file and line, for a package that the archive lacks.
    """
    archive_keys.check(recipe.archive.keyring, recipe.os_name, recipe.archive.keyring_package)
    with console.stage("archive", brief=True) as stage:
        keyring = Path(recipe.archive.keyring)
        state = archive.open_state(
            sources(recipe), keyring, recipe.arch, cache, refresh=refresh, since=since, stage=stage
        )
        epoch = int(datetime.fromisoformat(state.releases[0].date.replace("Z", "+00:00")).timestamp())
        layers: list[Layer] = []
        planned: list[Planned] = []
        below = ""
        for layer in recipe.layers:
            stage.detail(f"packages of {layer.name}")
            asked = _asked(recipe, layer, cache)
            names = tuple(sorted({one.name for one in asked}))
            here = _plan(state, names, planned, asked)
            planned += here
            below = files.digest_text(layer.digest, below, archive.digest(here), str(epoch), *_contained(layer, state))
            layers.append(replace(layer, digest=below, installs=names))
    return replace(
        recipe,
        layers=tuple(layers),
        digest=files.digest_text(recipe.digest, below),
        epoch=epoch,
        indexes=Indexes(
            lists=archive.lists_folder(state),
            fetched_at=state.fetched_at,
            releases={f"{release.mirror} {release.suite}": release.sha256 for release in state.releases},
            packages={f"{one.name}:{one.arch}": one.version for one in planned},
        ),
    )


def sources(recipe: Recipe) -> tuple[Source, ...]:
    """The suites that a build of the recipe takes packages from."""
    made = recipe.archive
    components = (*made.components, *recipe.more_components)
    return archive.sources(made.mirror, made.security_mirror, recipe.release, components, snapshot=made.is_snapshot)


def _plan(state: State, names: Sequence[str], below: Sequence[Planned], asked: Sequence[Wanted]) -> tuple[Planned, ...]:
    """What apt would add for a layer; what it can't find is told with who asks for it."""
    try:
        return archive.plan(state, names, below=below, asking=asked)
    except SageError:
        archive.check(asked, state)  # the better explanation, where that is the reason
        raise


def _contained(layer: Layer, state: State) -> list[str]:
    """The digest of the packages in the container images that the layer's elements make."""
    if _CONTAINERS not in layer.elements:
        return []
    names = sorted({name for packages in definition.load().layers().values() for name in packages})
    return [archive.digest(archive.plan(state, names))]


def _asked(recipe: Recipe, layer: Layer, cache: Path) -> tuple[Wanted, ...]:
    kept = cache / "archive/wanted" / f"{layer.digest}.json"
    try:
        return products.load(_Wanted, kept).packages
    except InputError:
        pass
    found = wanted(
        layer.elements,
        recipe.element_folders,
        os_name=recipe.os_name.lower(),
        release=recipe.release,
        arch=recipe.arch,
        settings={"SAGE_ARCHIVE_KEYS": "", "SAGE_DISTRO": recipe.os_name.lower(), **layer.settings},
        packages=layer.packages,
        done=layer.done,
    )
    products.save(_Wanted(found), kept)
    return found

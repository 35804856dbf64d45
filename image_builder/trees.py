# SPDX-License-Identifier: Apache-2.0
"""The root trees of a run's recipes: while the disk of one is made and checked, the layers of the next are built.

From the first tree on no other run drops a layer: one that was built beside is used minutes later.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from groundwork import console, files, process
from groundwork.worker import Worker
from image_builder import layers, rootfs
from image_builder.recipe import Recipe
from image_builder.rootfs import RootTree

_PATIENCE = 60.0  # seconds for what goes on beside to clean up after an interruption


class Trees:
    """Builds the trees in the order of the recipes; ``anew``: also layers that stand.  To be used as a context."""

    def __init__(self, recipes: Sequence[Recipe], cache: Path, *, anew: bool) -> None:
        self._recipes = list(recipes)
        self._cache = cache
        self._anew = anew
        self._made_anew: set[str] = set()
        self._next: _Beside | None = None
        self._holds = False
        self._in_use = ExitStack()  # holds the layers' lock from the first tree on

    def __enter__(self) -> "Trees":
        return self

    def __exit__(self, *error: object) -> None:
        with self._in_use:
            if self._next is not None and self._next.worker.alive:
                process.stop_all()
                self._next.worker.wait(_PATIENCE)

    def get(self, recipe: Recipe, stage: console.Stage) -> RootTree:
        """The recipe's tree; then the next recipe's is begun beside.  Raises what building it raised."""
        if not self._holds:
            self._in_use.enter_context(layers.in_use(self._cache))
            self._holds = True
        beside, self._next = self._next, None
        if beside is not None and beside.recipe.digest == recipe.digest:
            tree = beside.wait(stage)
        else:
            while beside is not None and not beside.worker.wait(0.5):
                pass
            tree = self._build(recipe, stage)
        following = next((other for other in self._recipes if other.digest not in self._begun(recipe)), None)
        if following is not None:
            self._next = _Beside(self, following)
        return tree

    def _begun(self, recipe: Recipe) -> set[str]:
        """The digests of the recipes up to this one."""
        digests = [other.digest for other in self._recipes]
        return set(digests[: digests.index(recipe.digest) + 1]) if recipe.digest in digests else set(digests)

    def _build(self, recipe: Recipe, stage: console.Stage) -> RootTree:
        # Of layers that several recipes share, none is built anew twice.
        anew = self._anew and not {layer.digest for layer in recipe.layers} <= self._made_anew
        keep = frozenset(self._made_anew)
        log = log_of(recipe, self._cache)
        log.unlink(missing_ok=True)
        tree = rootfs.build(recipe, self._cache, log, stage, anew=anew, keep=keep)
        self._made_anew |= {layer.digest for layer in recipe.layers}
        return tree


class _Beside:
    """Builds one tree while other work goes on."""

    def __init__(self, trees: Trees, recipe: Recipe) -> None:
        self.recipe = recipe
        self._trees = trees
        self._stage = console.Stage("root tree")
        self._tree: RootTree | None = None
        self._error: BaseException | None = None
        self.worker = Worker(self._build)

    def _build(self) -> None:
        try:
            self._tree = self._trees._build(self.recipe, self._stage)
        except BaseException as error:  # for whoever waits
            self._error = error

    def wait(self, stage: console.Stage) -> RootTree:
        while not self.worker.wait(0.5):
            stage.detail(self._stage.shown)
        if self._error is not None:
            raise self._error
        assert self._tree is not None
        return self._tree


def log_of(recipe: Recipe, cache: Path) -> Path:
    """The file of a build's log while it goes on."""
    return files.make_folder(cache / "logs" / recipe.digest[:16]) / "build.log"

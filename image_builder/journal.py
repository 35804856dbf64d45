# SPDX-License-Identifier: Apache-2.0
"""What is about to be done at a site, written down before it is done: one file a site and image name.

States at a site are told by the images' own properties, so the journal is not needed to repair one.  It adds what they
can't tell: while its lock is held nobody else of this machine works on the name there; and once the lock is free, what
the file names is surely dead, also after a restart or in another container, where process ids tell nothing.  A run
that can't write it (a full disk) has changed nothing yet.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from chameleon_sites.sites import Site
from groundwork import files, products
from groundwork.errors import InputError, SageError
from image_builder import publisher

_WAIT = 120.0  # seconds for another run of this machine at the same name and site


@dataclass(frozen=True)
class Entry:
    """Work that has begun.

    ``at``: UTC, RFC 3339; ``image_id``: the image that is made or promoted; ``steps``: what was about to be done;
    ``before``: publishers that died at this before, and whose work was not yet brought to an end.
    """

    site: str
    image_name: str
    publisher: str
    at: str
    image_id: str | None
    steps: tuple[str, ...]
    before: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.publisher} began at {self.at}, and did not end: {'; '.join(self.steps)}"


@dataclass(frozen=True)
class Journal:
    """The journal of one name at one site, its lock held.  ``left``: what a run before did not bring to its end."""

    path: Path
    site: str
    image_name: str
    left: Entry | None

    @property
    def dead(self) -> frozenset[str]:
        """Publishers that surely live no more, or have ended their work on this name here."""
        return frozenset((self.left.publisher, *self.left.before) if self.left else ())

    def write(self, steps: Sequence[str], image_id: str | None = None) -> None:
        """Note the next steps.  Raises SageError where that can't be; then they must not be done."""
        at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        before = tuple(sorted(self.dead))
        entry = Entry(self.site, self.image_name, publisher.identity(), at, image_id, tuple(steps), before)
        try:
            products.save(entry, self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def clear(self) -> None:
        """All is done or undone."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(folder: Path, site: Site, image_name: str, *, wait: float = _WAIT) -> Iterator[Journal]:
    """The journal of a name at a site, for one run at a time.  Raises SageError where another one does not end."""
    path = _path(folder, site, image_name)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(path.with_suffix(".lock"), wait=wait))
        except OSError as error:
            raise _unwritable(path, error) from None
        yield Journal(path, site.name, image_name, _read(path))


def left_at(folder: Path, site: Site, image_name: str) -> Entry | None:
    """What a run left that is no more, or None; changes nothing and waits for nobody."""
    path = _path(folder, site, image_name)
    if not path.exists():
        return None
    try:
        with files.lock(path.with_suffix(".lock")):
            return _read(path)
    except (SageError, OSError):
        return None


def default_folder() -> Path:
    """``XDG_STATE_HOME``/sage-chameleon."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "sage-chameleon"


def _path(folder: Path, site: Site, image_name: str) -> Path:
    return folder / "journal" / f"{site.slug}-{image_name}.json"


def _read(path: Path) -> Entry | None:
    if not path.exists():
        return None
    try:
        return products.load(Entry, path)
    except InputError:  # a hand's; the images' own properties tell as much
        return None


def _unwritable(path: Path, error: OSError) -> SageError:
    return SageError(
        f"the journal {path} can't be written ({error.strerror}), so nothing is done at the site",
        hint="make room there, or name another folder with --state-dir",
    )

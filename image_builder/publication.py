# SPDX-License-Identifier: Apache-2.0
"""What publishing is asked to do, and what came of it: the values that the stages hand on and the reports hold."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from groundwork.compat import StrEnum
from image_builder.canary import CanaryOptions, CanaryResult
from image_builder.catalog import Member, SiteImage, Visibility
from image_builder.drift import Mark


class Outcome(StrEnum):
    """What came of publishing at one site."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    WOULD_PUBLISH = "would-publish"
    INCONCLUSIVE = "inconclusive"  # its canary was: it is not the current one, and not failed
    HELD = "held"  # the site or its image is paused, or a rollback withdrew this recipe there: as somebody asked
    FAILED = "failed"


@dataclass(frozen=True)
class Problem:
    """An error as a value.

    ``bad_input``: it is the user's to mend (exit code 2).  ``inconclusive``: nothing is known to be wrong, only not all
    was done (exit code 3).
    """

    message: str
    hint: str | None
    bad_input: bool
    inconclusive: bool = False


@dataclass(frozen=True)
class PublishOptions:
    """How to publish.

    ``visibility``: what to try, the preferred one first.  ``keep``: how many of our images of this name stay at a
    site, the public one included.  ``keep_younger``: those built within this time stay too.  ``force``: publish this
    very build also where another of its recipe stands.  ``upload_deadline``: seconds that an upload to a site may
    take, with all that is tried again.  ``state``: the folder of the journal (None: the user's own, see
    :func:`image_builder.journal.default_folder`).  ``scratch``: where parts of a disk are converted (None: the
    system's folder for that).  ``canary``: how candidates are tried before they become current; None: they are not.
    """

    visibility: tuple[Visibility, ...] = (Visibility.PUBLIC, Visibility.COMMUNITY, Visibility.PRIVATE)
    keep: int = 3
    keep_younger: timedelta = timedelta(0)
    dry_run: bool = False
    force: bool = False
    upload_deadline: float = 7200.0
    state: Path | None = None
    scratch: Path | None = None
    canary: CanaryOptions | None = None


@dataclass(frozen=True)
class SitePublication:
    """What came of it at one site.

    ``uploaded`` in bytes; ``plan``: the steps done (or, on a dry run, to do); ``canary``: absent where none was asked.
    """

    site: str
    outcome: Outcome
    image_id: str | None
    image_name: str
    visibility: Visibility | None
    uploaded: int
    seconds: float
    plan: tuple[str, ...]
    warnings: tuple[str, ...]
    problem: Problem | None
    canary: CanaryResult | None = None


@dataclass(frozen=True)
class PublishReport:
    """What came of it at all sites, in the order in which they were named."""

    image_name: str
    build_id: str
    recipe_digest: str
    sites: tuple[SitePublication, ...]


@dataclass(frozen=True)
class SiteInventory:
    """Our images at one site, the public ones first, then the newest; or why they can't be told.

    ``drift``: what is not as it should be, where that was asked.
    """

    site: str
    images: tuple[SiteImage, ...]
    problem: Problem | None
    drift: tuple[Mark, ...] = ()


class UpkeepOutcome(StrEnum):
    """What came of a command of upkeep at one site."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    WOULD_CHANGE = "would-change"
    FAILED = "failed"


@dataclass(frozen=True)
class SiteUpkeep:
    """What came of it at one site.

    ``steps``: what was done (or, on a dry run, is to be done).  ``difference``: the images that change, as the lines
    of a diff.  ``members``: for ``share``, image id and projects that see it.  ``seconds`` from the connection on.
    """

    site: str
    outcome: UpkeepOutcome
    steps: tuple[str, ...]
    difference: tuple[str, ...]
    members: tuple[Member, ...]
    warnings: tuple[str, ...]
    seconds: float
    problem: Problem | None


@dataclass(frozen=True)
class UpkeepReport:
    """What came of a command of upkeep at all sites, in the order in which they were named."""

    command: str
    sites: tuple[SiteUpkeep, ...]


def exit_code(*results: PublishReport | UpkeepReport | SiteInventory) -> int:
    """0 all sites are done; 3 some failed, or a canary was inconclusive; of all failed: 2 for wrong input, else 1."""
    rows: list[SitePublication | SiteUpkeep | SiteInventory] = []
    for result in results:
        rows += [result] if isinstance(result, SiteInventory) else result.sites
    problems = [row.problem for row in rows if row.problem is not None]
    if not problems:
        return 0
    if len(problems) < len(rows) or any(problem.inconclusive for problem in problems):
        return 3
    return 2 if all(problem.bad_input for problem in problems) else 1

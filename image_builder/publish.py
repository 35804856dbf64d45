# SPDX-License-Identifier: Apache-2.0
"""Many sites at once: upload, check the hash, rotate, report.

At each site: connect, repair what an interrupted run left, pass over what is unchanged, upload under a private
temporary name, compare Glance's digest with ours, set the visibility, swap, delete what is too old.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site
from groundwork.compat import StrEnum
from groundwork.errors import SageError
from image_builder.catalog import SiteImage, Visibility
from image_builder.manifest import Manifest

if TYPE_CHECKING:
    from openstack.connection import Connection


class Outcome(StrEnum):
    """What came of publishing at one site."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"
    WOULD_PUBLISH = "would-publish"
    FAILED = "failed"


@dataclass(frozen=True)
class Problem:
    """An error as a value.  ``bad_input``: it is the user's to mend (exit code 2)."""

    message: str
    hint: str | None
    bad_input: bool


@dataclass(frozen=True)
class PublishOptions:
    """How to publish.

    ``visibility``: what to try, the preferred one first.  ``keep``: how many of our images of this name stay at a
    site, the public one included.  ``locks``: the folder of this machine's locks (None: the user's state folder).
    """

    visibility: tuple[Visibility, ...] = (Visibility.PUBLIC, Visibility.COMMUNITY, Visibility.PRIVATE)
    keep: int = 3
    dry_run: bool = False
    locks: Path | None = None


@dataclass(frozen=True)
class SitePublication:
    """What came of it at one site.  ``uploaded`` in bytes; ``plan``: the steps done (or, on a dry run, to do)."""

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


@dataclass(frozen=True)
class PublishReport:
    """What came of it at all sites, in the order in which they were named."""

    image_name: str
    build_id: str
    recipe_digest: str
    sites: tuple[SitePublication, ...]


@dataclass(frozen=True)
class SiteInventory:
    """Our images at one site, the public ones first, then the newest; or why they can't be told."""

    site: str
    images: tuple[SiteImage, ...]
    problem: Problem | None


def publish(
    manifest: Manifest,
    folder: Path,
    sites: Sequence[Site],
    options: PublishOptions = PublishOptions(),
    *,
    connections: "Mapping[str, Connection | SageError] | None" = None,
) -> PublishReport:
    """Publish a build (``manifest``, whose files lie in ``folder``) at all ``sites`` at once.

    ``connections``, by site name, is what :func:`chameleon_sites.cloud.connect_all` gave, where that was asked
    before.  What fails at a site is told in the report and stops no other.  Raises only what interrupts the
    program; by then the temporary images are deleted and a swap that had begun is finished.
    """
    raise NotImplementedError


def inventory(sites: Sequence[Site], image_name: str | None = None) -> tuple[SiteInventory, ...]:
    """Our images at all ``sites``, read at once."""
    raise NotImplementedError


def exit_code(results: PublishReport | Sequence[SiteInventory]) -> int:
    """0 all sites are done; 3 some failed; of all failed: 2 for wrong input at each, else 1."""
    raise NotImplementedError

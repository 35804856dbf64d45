# SPDX-License-Identifier: Apache-2.0
"""What came of a run over several images: the report that ``--json`` prints and that hooks, metrics and pages read.

``report.schema.json`` beside this file is its written shape.  A key is only ever added; should one change its meaning
or go, ``format`` is counted up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from image_builder.catalog import ImageState
from image_builder.manifest import MANIFEST, Manifest
from image_builder.publication import Outcome, Problem, PublishReport, SiteInventory

FORMAT = 1
UNTOLD = 4  # the exit code where all is done, but a hook, the metrics or a page could not be told


@dataclass(frozen=True)
class ImageReport:
    """What came of one image.

    ``build_id``, ``folder``, ``manifest`` and ``files`` are of its finished build on this machine; where each site has
    an image of the recipe already, there need be none.  ``changed``: it was built, added to, or published somewhere.
    ``seconds``: how long this run was at it.  ``problem``: why there is no build, or nothing was published.
    """

    variant: str
    release: str
    arch: str
    image_name: str
    recipe_digest: str
    build_id: str | None
    folder: Path | None
    manifest: Path | None
    files: tuple[Path, ...]
    changed: bool
    verified: bool | None
    seconds: float
    problem: Problem | None


@dataclass(frozen=True)
class StandingImage:
    """An image of ours at a site.  Times are UTC, RFC 3339, or "" where they are not known; ``size`` in bytes."""

    image_name: str
    id: str
    name: str
    state: str
    hidden: bool
    visibility: str
    built_at: str
    promoted_at: str
    size: int | None

    @property
    def is_current(self) -> bool:
        """Whether readers get it by the public name."""
        return self.state == ImageState.CURRENT and self.name == self.image_name and not self.hidden


@dataclass(frozen=True)
class SiteStanding:
    """Our images at a site after the run; or why they can't be told."""

    site: str
    images: tuple[StandingImage, ...]
    problem: Problem | None


@dataclass(frozen=True)
class RunReport:
    """What came of a run.

    ``begun_at`` and ``ended_at`` are UTC, RFC 3339.  ``publications``: one an image that was to be published and got
    so far.  ``sites``: what stands after the run, where that was asked.  ``problem``: what ended the run as a whole.
    """

    format: int
    command: str
    begun_at: str
    ended_at: str
    seconds: float
    exit_code: int
    images: tuple[ImageReport, ...]
    publications: tuple[PublishReport, ...]
    sites: tuple[SiteStanding, ...]
    problem: Problem | None

    @property
    def changed(self) -> bool:
        return any(image.changed for image in self.images)

    @property
    def failed(self) -> bool:
        return self.exit_code != 0

    @property
    def uploaded(self) -> int:
        """Bytes, to all sites together."""
        return sum(site.uploaded for published in self.publications for site in published.sites)

    def publication_of(self, image: ImageReport) -> PublishReport | None:
        found = (one for one in self.publications if one.image_name == image.image_name)
        return next((one for one in found if one.recipe_digest == image.recipe_digest), None)


@dataclass(frozen=True)
class Failure:
    """One thing that failed: of an image, at a site, or of the run as a whole (both "")."""

    image_name: str
    site: str
    problem: Problem

    def __str__(self) -> str:
        site = self.site if self.site not in self.problem.message else ""
        where = " at ".join(word for word in (self.image_name, site) if word)
        return f"{where}: {self.problem.message}" if where else self.problem.message


def failures(report: RunReport) -> tuple[Failure, ...]:
    """All that failed, in the order in which it was done."""
    found = [Failure("", "", report.problem)] if report.problem else []
    for image in report.images:
        if image.problem:
            found.append(Failure(image.image_name, "", image.problem))
        published = report.publication_of(image)
        for row in published.sites if published else ():
            if row.problem:
                found.append(Failure(image.image_name, row.site, row.problem))
    return tuple(found)


def exit_code(
    images: Sequence[ImageReport], publications: Sequence[PublishReport], problem: Problem | None = None
) -> int:
    """0 all is done; 3 some failed, or a canary was inconclusive; of all failed: 2 if each for wrong input, else 1.

    What counts is each site of an image that was published, and each image that was not and that the run came to.
    """
    published = {(one.image_name, one.recipe_digest) for one in publications}
    rows = [row.problem for one in publications for row in one.sites]
    for image in images:
        if image.problem or (image.build_id and (image.image_name, image.recipe_digest) not in published):
            rows.append(image.problem)
    if problem:
        rows.append(problem)
    problems = [found for found in rows if found is not None]
    if not problems:
        return 0
    if len(problems) < len(rows) or any(found.inconclusive for found in problems):
        return 3
    return 2 if all(found.bad_input for found in problems) else 1


def of_publication(
    manifest: Manifest, folder: Path, published: PublishReport, sites: tuple[SiteStanding, ...], begun_at: str
) -> RunReport:
    """The report of publishing one finished build (``manifest``, whose files lie in ``folder``)."""
    seconds = max((row.seconds for row in published.sites), default=0.0)
    image = ImageReport(
        variant=manifest.variant,
        release=manifest.release,
        arch=manifest.arch,
        image_name=manifest.image_name,
        recipe_digest=manifest.recipe_digest,
        build_id=manifest.build_id,
        folder=folder,
        manifest=folder / MANIFEST,
        files=tuple(folder / file.name for file in manifest.files),
        changed=changed_at_sites(published),
        verified=manifest.checks is not None and manifest.checks.passed,
        seconds=seconds,
        problem=None,
    )
    code = exit_code([image], [published])
    return RunReport(FORMAT, "sage-image publish", begun_at, now(), seconds, code, (image,), (published,), sites, None)


def changed_at_sites(publication: PublishReport) -> bool:
    return any(row.outcome not in (Outcome.UNCHANGED, Outcome.HELD) for row in publication.sites)


def standing(inventories: Sequence[SiteInventory]) -> tuple[SiteStanding, ...]:
    """What of the sites' inventories a report tells."""
    return tuple(
        SiteStanding(
            found.site,
            tuple(
                StandingImage(
                    image_name=image.image_name,
                    id=image.id,
                    name=image.name,
                    state=image.state,
                    hidden=image.hidden,
                    visibility=image.visibility,
                    built_at=image.built_at,
                    promoted_at=image.promoted_at,
                    size=image.size,
                )
                for image in found.images
            ),
            found.problem,
        )
        for found in inventories
    )


def now() -> str:
    """UTC, RFC 3339, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

# SPDX-License-Identifier: Apache-2.0
"""Reports as runs make them, for the tests of what reads them."""

from dataclasses import replace
from pathlib import Path

from image_builder.canary import CanaryResult, Verdict
from image_builder.catalog import Visibility
from image_builder.publication import Outcome, Problem, PublishReport, SitePublication
from image_builder.report import ImageReport, RunReport, SiteStanding, StandingImage, exit_code

DOWN = Problem("CHI@TACC does not answer: connection refused", "try again later", False)
UNDECIDED = Problem("the canary was inconclusive", "the next run tries it again", False, inconclusive=True)
WRONG = Problem("there is no such thing", None, True)


def image(name: str = "Sage-Ubuntu24.04", *, problem: Problem | None = None, changed: bool = True) -> ImageReport:
    folder = Path("/srv/build", name, "20261120T031500Z-dddddddd")
    return ImageReport(
        variant="sage",
        release="noble",
        arch="amd64",
        image_name=name,
        recipe_digest=f"recipe of {name}",
        build_id=None if problem else folder.name,
        folder=None if problem else folder,
        manifest=None if problem else folder / "manifest.json",
        files=() if problem else (folder / f"{name}.raw",),
        changed=changed and not problem,
        verified=None if problem else True,
        seconds=12.5,
        problem=problem,
    )


def at_site(site: str, name: str, *, problem: Problem | None = None, changed: bool = True) -> SitePublication:
    return SitePublication(
        site=site,
        outcome=Outcome.FAILED if problem else Outcome.PUBLISHED if changed else Outcome.UNCHANGED,
        image_id=None if problem else f"id-{site}",
        image_name=name,
        visibility=None if problem else Visibility.PUBLIC,
        uploaded=(300 << 20) if changed and not problem else 0,
        seconds=4.25,
        plan=(),
        warnings=(),
        problem=problem,
    )


def publication(*problems: Problem | None, name: str = "Sage-Ubuntu24.04", changed: bool = True) -> PublishReport:
    sites = ("CHI@UC", "CHI@TACC", "KVM@TACC")
    rows = tuple(
        at_site(site, name, problem=problem, changed=changed)
        for site, problem in zip(sites, problems or (None,) * 3, strict=False)
    )
    return PublishReport(name, "20261120T031500Z-dddddddd", f"recipe of {name}", rows)


def standing(
    site: str, *names: str, built_at: str = "2026-11-20T03:15:00Z", problem: Problem | None = None
) -> SiteStanding:
    return SiteStanding(
        site,
        tuple(
            StandingImage(
                image_name=name,
                id=f"id-{site}",
                name=name,
                state="current",
                hidden=False,
                visibility="public",
                built_at=built_at,
                promoted_at="2026-11-20T04:00:00Z",
                size=300 << 20,
            )
            for name in names
        ),
        problem,
    )


def run(
    *images: ImageReport,
    publications: tuple[PublishReport, ...] = (),
    sites: tuple[SiteStanding, ...] = (),
    problem: Problem | None = None,
    begun_at: str = "2026-11-21T03:15:00Z",
) -> RunReport:
    return RunReport(
        format=1,
        command="sage-image nightly",
        begun_at=begun_at,
        ended_at=begun_at.replace(":15:00Z", ":25:00Z"),
        seconds=600.0,
        exit_code=exit_code(images, publications, problem),
        images=images,
        publications=publications,
        sites=sites,
        problem=problem,
    )


def good(begun_at: str = "2026-11-21T03:15:00Z") -> RunReport:
    """All is done at three sites."""
    name = "Sage-Ubuntu24.04"
    sites = tuple(standing(site, name) for site in ("CHI@UC", "CHI@TACC", "KVM@TACC"))
    return run(image(name), publications=(publication(),), sites=sites, begun_at=begun_at)


def mixed(begun_at: str = "2026-11-21T03:15:00Z") -> RunReport:
    """One of two images was not built, and one of three sites does not answer."""
    name = "Sage-Ubuntu24.04"
    return run(
        image(name),
        image("Sage-Ubuntu24.04-CUDA", problem=WRONG),
        publications=(publication(None, DOWN, None),),
        sites=(standing("CHI@UC", name), standing("CHI@TACC", problem=DOWN), standing("KVM@TACC", name)),
        begun_at=begun_at,
    )


def tried() -> RunReport:
    """A canary was inconclusive."""
    result = CanaryResult(
        "id", Verdict.INCONCLUSIVE, "no answer", 3.5, Path("/srv/cache/logs/canary/chi_uc-id/report.json")
    )
    row = replace(at_site("CHI@UC", "Sage-Ubuntu24.04", problem=UNDECIDED), outcome=Outcome.INCONCLUSIVE, canary=result)
    return run(image(), publications=(replace(publication(), sites=(row,)),))


def unchanged() -> RunReport:
    quiet = replace(image(changed=False), build_id=None, folder=None, manifest=None, files=(), verified=None)
    return run(quiet, publications=(publication(changed=False),))

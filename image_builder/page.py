# SPDX-License-Identifier: Apache-2.0
"""The status page: what stands where, how old it is, how the last nights went, what failed and why.

One HTML file that needs nothing beside it and no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from groundwork import files
from groundwork.console import mebibytes
from image_builder import rotation, summary
from image_builder.report import Failure, RunReport, SiteStanding, StandingImage, failures

_SHOWN = 30  # runs
_TEMPLATE = Path(__file__).with_name("status.html.j2")


@dataclass(frozen=True)
class Place:
    """One image at one site: the current one (None where there is none), and what the last run says of it.

    ``state`` is ``good``, ``bad`` or ``unknown``; ``note`` is for people.
    """

    site: str
    current: StandingImage | None
    age: str
    size: str
    state: str
    note: str


@dataclass(frozen=True)
class Run:
    """One run, as the page tells it."""

    begun_at: str
    title: str
    state: str
    took: str
    uploaded: str
    exit_code: int
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Status:
    """All that the page tells.  ``images``: a row a site, by image; ``runs``: the newest first."""

    written_at: str
    images: dict[str, tuple[Place, ...]]
    runs: tuple[Run, ...]


def status(reports: Sequence[RunReport], now: datetime) -> Status:
    """What the page tells, out of the last runs' reports, the newest first.  Pure."""
    last = reports[0]
    wanted = {(row.image_name, row.site): row for published in last.publications for row in published.sites}
    failed = {image.image_name: image.problem for image in last.images if image.problem}
    there = {(image.image_name, site.site): image for site in last.sites for image in site.images if image.is_current}
    names = list(dict.fromkeys([*(image.image_name for image in last.images), *(name for name, _ in there)]))
    images: dict[str, tuple[Place, ...]] = {}
    for name in names:
        places = []
        for site in last.sites:
            row, current = wanted.get((name, site.site)), there.get((name, site.site))
            if row is None and current is None and name not in failed:
                continue  # it is not for this site
            problem = (row.problem if row else None) or site.problem or failed.get(name)
            places.append(_place(site, current, problem.message if problem else "", now))
        images[name] = tuple(places)
    runs = tuple(
        Run(
            begun_at=_day(report.begun_at),
            title=summary.headline(report).partition(": ")[2],
            state="bad" if report.failed else "good",
            took=_span(report.seconds),
            uploaded=mebibytes(report.uploaded),
            exit_code=report.exit_code,
            failures=failures(report),
        )
        for report in reports[:_SHOWN]
    )
    return Status(_day(now.strftime("%Y-%m-%dT%H:%M:%SZ")), images, runs)


def render(shown: Status) -> str:
    """The page."""
    import jinja2  # takes 0.1 s

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(status=shown)


def write(reports: Sequence[RunReport], path: Path) -> None:
    """Write the page, whole or not at all.  Without reports there is nothing to tell."""
    if reports:
        files.write_text(path, render(status(reports, datetime.now(timezone.utc))))


def _place(site: SiteStanding, current: StandingImage | None, note: str, now: datetime) -> Place:
    if current is None:
        state = "unknown" if site.problem else "bad"
        return Place(site.site, None, "-", "-", state, note or "no image of this name")
    age = _age(current.built_at, now)
    size = f"{current.size >> 20:,} MiB" if current.size is not None else "-"
    return Place(site.site, current, age, size, "bad" if note else "good", note)


def _age(time: str, now: datetime) -> str:
    """How long ago a time (RFC 3339) was: ``3 days``."""
    try:
        return _span((now - rotation.parse_time(time)).total_seconds())
    except ValueError:  # none, or a hand spoilt it
        return "unknown"


def _span(seconds: float) -> str:
    """A span of time in its largest unit: ``3 days``, ``1 hour``, ``20 s``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(seconds, 0):.0f} s"


def _day(time: str) -> str:
    """RFC 3339 to the minute, for people."""
    return time[:16].replace("T", " ") + " UTC"

# SPDX-License-Identifier: Apache-2.0
"""A report in Markdown, for a workflow's page, a mail or a chat.  Pure."""

from collections.abc import Sequence

from groundwork.console import mebibytes
from image_builder.publication import Outcome
from image_builder.report import ImageReport, RunReport, failures

_MARK = {
    Outcome.FAILED: "❌",
    Outcome.INCONCLUSIVE: "❔",
    Outcome.PUBLISHED: "✅",
    Outcome.UNCHANGED: "✅",
    Outcome.HELD: "⏸️",
}


def headline(report: RunReport) -> str:
    """The run in one line, without markup."""
    wrong = len(failures(report))
    if wrong:
        word = f"{wrong} failure{'s' if wrong > 1 else ''}"
    elif report.changed:
        changed = sum(image.changed for image in report.images)
        word = f"{changed} of {len(report.images)} images new"
    else:
        word = "nothing has changed"
    return f"{report.command}: {word}"


def figures(report: RunReport) -> str:
    """When it was, how long it took, how much went to the sites, how it ended."""
    size = mebibytes(report.uploaded)
    return f"{report.begun_at}, {report.seconds:.0f} s, {size} uploaded, exit code {report.exit_code}"


def lines(report: RunReport) -> tuple[str, ...]:
    """The run in some lines without markup: one an image, with what came of it at its sites, and one a failure."""
    found = []
    for image in report.images:
        published = report.publication_of(image)
        at: dict[str, list[str]] = {}
        for row in published.sites if published else ():
            at.setdefault(str(row.outcome), []).append(row.site)
        words = "; ".join(f"{outcome} at {', '.join(sites)}" for outcome, sites in at.items())
        found.append(f"{image.image_name}: {'failed' if image.problem else words or image.build_id or 'stands'}")
    return (*found, *(str(failure) for failure in failures(report)))


def markdown(report: RunReport) -> str:
    """The whole report: a row an image, a column a site, then what failed and what to do about it."""
    sites = list(dict.fromkeys(row.site for published in report.publications for row in published.sites))
    text = [f"## {_plain(headline(report))}", ""]
    text += [figures(report), ""]
    if report.images:
        text.append(_row(["image", "variant", "release", "arch", "build", *sites]))
        text.append(_row(["---"] * (5 + len(sites))))
        for image in report.images:
            text.append(_row([*_image_cells(image), *(_site_cell(report, image, site) for site in sites)]))
        text.append("")
    found = failures(report)
    if found:
        text += ["### What failed", ""]
        for failure in found:
            hint = f" *{_plain(failure.problem.hint)}*" if failure.problem.hint else ""
            text.append(f"- {_plain(str(failure))}{hint}")
        text.append("")
    warnings = [
        f"- {_plain(f'{published.image_name} at {row.site}: {warning}')}"
        for published in report.publications
        for row in published.sites
        for warning in row.warnings
    ]
    if warnings:
        text += ["### Warnings", "", *warnings, ""]
    return "\n".join(text)


def _image_cells(image: ImageReport) -> list[str]:
    if image.problem:
        build = "❌ failed"
    elif image.build_id:
        build = f"{image.build_id}{'' if image.verified else ', not booted'}"
    else:
        build = "stands at the sites"
    return [_plain(word) for word in (image.image_name, image.variant, image.release, image.arch, build)]


def _site_cell(report: RunReport, image: ImageReport, site: str) -> str:
    published = report.publication_of(image)
    for row in published.sites if published else ():
        if row.site == site:
            size = f", {mebibytes(row.uploaded)}" if row.uploaded else ""
            return _plain(f"{_MARK.get(row.outcome, '')} {row.outcome}{size}, {row.seconds:.0f} s".strip())
    return "-"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    line = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#~" else sign for sign in line)

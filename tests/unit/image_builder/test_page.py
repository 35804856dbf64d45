# SPDX-License-Identifier: Apache-2.0
"""The status page: right HTML that needs nothing else, tells what stands where, what failed and why."""

import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import html5lib
import pytest

from image_builder import history, page
from image_builder.publication import Problem
from image_builder.report import RunReport, SiteStanding
from tests.unit.image_builder import reports
from tests.unit.image_builder.reports import DOWN, image, publication, run, standing

NOW = datetime(2026, 11, 21, 4, tzinfo=timezone.utc)


def rendered(*made: RunReport) -> str:
    return page.render(page.status(made, NOW))


def parsed(text: str) -> Any:
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def texts(element: Any, path: str) -> list[str]:
    return [" ".join("".join(found.itertext()).split()) for found in element.findall(path)]


EVERY = [
    (reports.good(),),
    (reports.mixed(), reports.good("2026-11-20T03:15:00Z")),
    (reports.unchanged(),),
    (run(problem=DOWN),),
    (run(image(), sites=()),),
    (run(sites=(standing("CHI@UC", "Old-Name", built_at=""),)),),
]


@pytest.mark.parametrize("made", EVERY)
def test_it_is_right_html_that_needs_no_network(made: tuple[RunReport, ...]) -> None:
    text = rendered(*made)
    tree = parsed(text)
    assert tree.find("head/title").text.startswith("Sage images: ")
    assert tree.find("head/meta[@name='viewport']").get("content") == "width=device-width, initial-scale=1"
    assert not tree.findall(".//script")
    assert not tree.findall(".//link")
    assert not re.findall(r"""(?:src|href)=|url\(|@import""", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_a_row_a_site_with_the_age_of_the_current_image() -> None:
    tree = parsed(rendered(reports.good()))
    assert texts(tree, ".//table/tbody/tr") == [
        f"✓ {site} 1 day 2026-11-20 300 MiB" for site in ("CHI@UC", "CHI@TACC", "KVM@TACC")
    ]


@pytest.mark.parametrize("time", ["last week", "2026-13-40T00:00:00Z", "2026-11-20"])
def test_a_time_that_a_hand_has_spoilt_spoils_no_page(time: str) -> None:
    sites = (reports.standing("CHI@UC", "Sage-Ubuntu24.04", built_at=time),)
    (row,) = texts(parsed(rendered(replace(reports.good(), sites=sites))), ".//table/tbody/tr")
    assert row.startswith("✓ CHI@UC " + ("1 day" if time == "2026-11-20" else "unknown"))


def test_what_failed_is_told_with_reason_and_hint() -> None:
    tree = parsed(rendered(reports.mixed()))
    assert texts(tree, ".//section[1]/ul/li") == [
        f"Sage-Ubuntu24.04 at CHI@TACC {DOWN.message} {DOWN.hint}",
        "Sage-Ubuntu24.04-CUDA there is no such thing",
    ]
    rows = texts(tree, ".//table/tbody/tr")
    assert rows[1:3] == ["? CHI@TACC - - -", DOWN.message]
    assert "✗ CHI@UC - - -" in rows


def test_an_image_that_no_site_has_under_its_name_is_seen() -> None:
    empty = tuple(SiteStanding(site, (), None) for site in ("CHI@UC", "CHI@TACC", "KVM@TACC"))
    rows = texts(parsed(rendered(run(image(), publications=(publication(),), sites=empty))), ".//table/tbody/tr")
    assert rows[:2] == ["✗ CHI@UC - - -", "no image of this name"]


def test_hidden_and_previous_images_are_not_current() -> None:
    (one,) = standing("CHI@UC", "Sage-Ubuntu24.04").images
    others = (replace(one, hidden=True), replace(one, state="previous", name="Sage-Ubuntu24.04-20261119T031500Z"))
    made = run(image(), publications=(publication(),), sites=(SiteStanding("CHI@UC", others, None),))
    assert texts(parsed(rendered(made)), ".//table/tbody/tr")[0] == "✗ CHI@UC - - -"


def test_the_last_nights_are_listed_the_newest_first() -> None:
    made = [reports.mixed(), reports.good("2026-11-20T03:15:00Z"), run(problem=DOWN, begun_at="2026-11-19T03:15:00Z")]
    assert texts(parsed(rendered(*made)), ".//section[3]/ul/li/h3") == [
        "2026-11-21 03:15 UTC: 2 failures",
        "2026-11-20 03:15 UTC: 1 of 1 images new",
        "2026-11-19 03:15 UTC: 1 failure",
    ]


def test_what_others_wrote_is_no_markup() -> None:
    nasty = Problem("</li><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', False)
    text = rendered(run(image("<b>x</b>", problem=nasty), problem=nasty))
    tree = parsed(text)
    assert not tree.findall(".//script")
    assert not tree.findall(".//img")
    assert not tree.findall(".//b")
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 minute"),
        (7300, "2 hours"),
        (86400, "1 day"),
        (40 * 86400, "40 days"),
        (-5, "0 s"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert page._span(seconds) == text


def test_the_page_appears_whole(tmp_path: Path) -> None:
    page.write([], tmp_path / "index.html")
    assert list(tmp_path.iterdir()) == []
    page.write([reports.good()], tmp_path / "index.html")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").stat().st_mode & 0o777 == 0o644


def test_records_are_kept_the_newest_and_read_the_newest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in (18, 20, 19, 21):
        history.save(reports.good(f"2026-11-{day}T03:15:00Z"), tmp_path, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["20261119T031500Z.json", "20261120T031500Z.json", "20261121T031500Z.json"]
    (tmp_path / names[0]).write_text("{}")
    found = history.load(tmp_path, 10)
    assert [report.begun_at for report in found] == ["2026-11-21T03:15:00Z", "2026-11-20T03:15:00Z"]
    assert "20261119T031500Z.json is not a runreport" in capsys.readouterr().err
    assert len(history.load(tmp_path, 1)) == 1

# SPDX-License-Identifier: Apache-2.0
"""The summary of a run: a table of images and sites, what failed and what to do about it."""

from dataclasses import replace

import pytest

from image_builder import summary
from image_builder.publication import Problem
from image_builder.report import RunReport
from tests.unit.image_builder import reports
from tests.unit.image_builder.reports import DOWN, image, run


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def test_a_row_an_image_and_a_column_a_site() -> None:
    heading, rule, first, second = cells(summary.markdown(reports.mixed()))
    assert heading[-3:] == ["CHI@UC", "CHI@TACC", "KVM@TACC"]
    assert {len(row) for row in (heading, rule, first, second)} == {8}
    assert first[4:] == [
        "20261120T031500Z-dddddddd",
        "✅ published, 300.0 MiB, 4 s",
        "❌ failed, 4 s",
        "✅ published, 300.0 MiB, 4 s",
    ]
    assert second[4:] == ["❌ failed", "-", "-", "-"]


def test_what_failed_stands_below_with_what_to_do() -> None:
    text = summary.markdown(reports.mixed())
    assert f"- Sage-Ubuntu24.04: {DOWN.message} *{DOWN.hint}*" in text.splitlines()
    assert "### What failed" not in summary.markdown(reports.good())


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (reports.good(), "sage-image nightly: 1 of 1 images new"),
        (reports.unchanged(), "sage-image nightly: nothing has changed"),
        (reports.mixed(), "sage-image nightly: 2 failures"),
        (run(problem=DOWN), "sage-image nightly: 1 failure"),
    ],
)
def test_the_headline_says_it_all(made: RunReport, line: str) -> None:
    assert summary.headline(made) == line
    assert summary.markdown(made).startswith(f"## {line}\n")


def test_what_others_wrote_is_no_markup() -> None:
    nasty = Problem("a | b\n\n# c <img src=x> [d](e) `f`", None, False)
    text = summary.markdown(run(image(problem=nasty)))
    (line,) = [line for line in text.splitlines() if "img" in line]
    assert r"a \| b \# c \<img src=x\> \[d\](e) \`f\`" in line
    row = cells(summary.markdown(run(replace(image(), variant="a|b"))))[2]
    assert row[1] == r"a\|b"

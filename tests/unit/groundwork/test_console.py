# SPDX-License-Identifier: Apache-2.0
"""What is told is shown as it is."""

from pathlib import Path

import pytest

from groundwork import console

ROWS = [["[/opt/x] is there", "[bold]yes"], ["sha:key:1", ""]]


def test_a_table_shows_brackets_and_colons_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "night.log"
    with console.copied_to(copy):
        console.table(["check [x]", "kept"], ROWS, title="Sage [noble]")
    for text in (capsys.readouterr().out, copy.read_text()):
        for words in ("Sage [noble]", "check [x]", "[/opt/x] is there", "[bold]yes", "sha:key:1"):
            assert words in text


def test_lines_show_brackets_and_colons_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("> [/opt/x] :key:")
    console.warn("[red] :lock:", hint="[/x]")
    console.result("[bold] :key:")
    told = capsys.readouterr()
    assert "[/opt/x] :key:" in told.err
    assert "[red] :lock:" in told.err
    assert "hint: [/x]" in told.err
    assert told.out == "[bold] :key:\n"

# SPDX-License-Identifier: Apache-2.0
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from groundwork import __version__
from virtual_waggle import cli

PROGRAMS = [("virtual-waggle", cli.virtual_waggle), ("beehive-server", cli.beehive_server)]
Program = Callable[[], NoReturn]


def call(program: Program, name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as ended:
        program()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
def test_a_command_tells_its_version(
    name: str, program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(program, name, ["--version"], monkeypatch) == 0
    assert capsys.readouterr().out == f"{name} {__version__}\n"


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_says_honestly_what_is_there(
    name: str, program: Program, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(program, name, words, monkeypatch) == 0
    assert "not in it yet" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
@pytest.mark.parametrize("words", [["up"], ["--vresion"]])
def test_an_unknown_word_is_wrong_input(
    name: str, program: Program, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(program, name, words, monkeypatch) == 2
    assert words[0] in capsys.readouterr().err


def test_images_asks_what_to_do_with_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(cli.virtual_waggle, "virtual-waggle", ["images"], monkeypatch) == 2
    assert "list|load" in capsys.readouterr().err
    assert call(cli.virtual_waggle, "virtual-waggle", ["images", "lod"], monkeypatch) == 2
    assert "lod" in capsys.readouterr().err


def test_a_machine_without_images_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("virtual_waggle.containers.load.FOLDER", Path("/nowhere"))
    assert call(cli.virtual_waggle, "virtual-waggle", ["images", "load"], monkeypatch) == 1
    said = capsys.readouterr().err
    assert "can't read" in said
    assert "is this a Sage image?" in said

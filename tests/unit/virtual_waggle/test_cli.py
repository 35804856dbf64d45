# SPDX-License-Identifier: Apache-2.0
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from groundwork import __version__
from virtual_waggle import cli, stack
from virtual_waggle.forms import Row

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


COMMANDS = {
    "virtual-waggle": (
        *("up", "down", "status", "run", "build", "newplugin"),
        *("logs", "report", "upload", "data", "manifests", "images"),
    ),
    "beehive-server": ("deploy", "up", "down", "status", "register", "nodes", "backup", "restore", "logs"),
}


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_names_all_commands(
    name: str, program: Program, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(program, name, words, monkeypatch) == 0
    said = capsys.readouterr().out
    assert [command for command in COMMANDS[name] if not re.search(rf"^    {command}\b", said, re.MULTILINE)] == []


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
def test_every_command_explains_itself(
    name: str, program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in COMMANDS[name]:
        assert call(program, name, [command, "--help"], monkeypatch) == 0
        assert f"usage: {name} {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
@pytest.mark.parametrize("words", [["uup"], ["--vresion"], ["status", "--jsno"], ["down", "now"]])
def test_an_unknown_word_is_wrong_input(
    name: str, program: Program, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(program, name, words, monkeypatch) == 2
    assert words[-1] in capsys.readouterr().err


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
@pytest.mark.parametrize("command", ["down", "status", "logs"])
def test_where_nothing_was_set_up_is_told(
    name: str,
    program: Program,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert call(program, name, [command, "--state-dir", str(tmp_path)], monkeypatch) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "makes one" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "--", "x"], "nothing may stand after --"),
        (["data", "--filter", "task"], "--filter: expected KEY=VALUE, found 'task'"),
        (["upload", "/nowhere", "--meta", "=x"], "--meta: expected KEY=VALUE"),
        (["upload", "/nowhere"], "there is no file /nowhere"),
        (["build", "/nowhere"], "can't read /nowhere/sage.yaml"),
        (["newplugin", "A B"], "no name for a plugin"),
        (["data", "--tail", "x"], "--tail"),
    ],
)
def test_wrong_words_are_told_before_anything_is_done(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(cli.virtual_waggle, "virtual-waggle", words, monkeypatch) == 2
    assert said in capsys.readouterr().err


def test_what_stands_after_two_dashes_is_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "sky:1.0", "--job", "j", "--", "--count", "3", "--", "--json"]
    taken: list[list[str]] = []

    def run(given: Namespace) -> int:
        taken.append([given.plugin, given.job, *given.words])
        return 7

    monkeypatch.setattr("virtual_waggle.node_commands.run", run)
    assert call(cli.virtual_waggle, "virtual-waggle", words, monkeypatch) == 7
    assert taken == [["sky:1.0", "j", "--count", "3", "--", "--json"]]


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


@pytest.mark.parametrize(
    ("state", "code"),
    [("running", 2), ("starting", 2), ("restarting", 2), ("waiting", 2), ("stopped", 1), ("exited", 1)],
)
def test_a_beehive_is_restored_only_where_no_service_is_at_work_or_about_to_be(
    state: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beehive.env").write_text("BEEHIVE_HOST=beehive.example.org\n")
    monkeypatch.setattr(stack, "was_started", lambda folder: True)
    monkeypatch.setattr(stack, "status", lambda folder, make: [Row("loader", state), Row("api", "stopped")])
    words = ["restore", str(tmp_path / "none.tar.gz"), "--force", "--state-dir", str(tmp_path)]
    assert call(cli.beehive_server, "beehive-server", words, monkeypatch) == code
    said = capsys.readouterr().err
    assert (f"services are not stopped: loader ({state})" in said) == (code == 2)
    assert ("none.tar.gz" in said) == (code == 1)  # the next that is looked at

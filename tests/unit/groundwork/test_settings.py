# SPDX-License-Identifier: Apache-2.0
"""One table gives flags, environment, configuration file and manual."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from groundwork import settings
from groundwork.errors import InputError
from groundwork.settings import Parser, Setting

TABLE = (
    Setting("release", "which release", default="noble", also=("-n",)),
    Setting("keep", "how many", settings.whole_number(1, 9), default=3),
    Setting("site", "a site", many=True, default=()),
    Setting("quiet", "less", switch=True, default=False),
    Setting("color", "which", settings.one_of("color", ("red", "green")), default="red"),
    Setting("force", "now", switch=True, only_flag=True),
)


def values(words: list[str], *, env: dict[str, str] | None = None, file: Path | None = None) -> dict[str, Any]:
    parser = Parser(prog="test")
    settings.add_flags(parser, TABLE)
    configuration = settings.read_configuration([file] if file else [], TABLE)
    return settings.resolve(TABLE, parser.parse_args(words), configuration=configuration, environment=env or {})


def test_defaults_count_where_nothing_is_given() -> None:
    assert values([]) == {
        "release": "noble",
        "keep": 3,
        "site": (),
        "quiet": False,
        "color": "red",
        "force": False,
    }


def test_a_flag_beats_the_environment_and_that_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("release: a\nkeep: 5\nsite: [x, y]\nquiet: true\n")
    env = {"SAGE_RELEASE": "b", "SAGE_KEEP": "6"}
    found = values(["-n", "c"], env=env, file=file)
    assert (found["release"], found["keep"], found["site"], found["quiet"]) == ("c", 6, ("x", "y"), True)


def test_many_values_come_from_repeated_flags_or_commas() -> None:
    assert values(["--site", "a", "--site=b"])["site"] == ("a", "b")
    assert values([], env={"SAGE_SITE": "a, b"})["site"] == ("a", "b")


def test_an_action_can_not_hide_in_environment_or_file(tmp_path: Path) -> None:
    assert not values([], env={"SAGE_FORCE": "1"})["force"]
    file = tmp_path / "config.yaml"
    file.write_text("force: true\n")
    with pytest.raises(InputError, match="force: unknown key"):
        values([], file=file)


@pytest.mark.parametrize(
    ("words", "env", "text", "expected"),
    [
        (["--keep", "many"], {}, "", "--keep: expected a whole number from 1 to 9, found 'many'"),
        ([], {"SAGE_KEEP": "0"}, "", "SAGE_KEEP: expected a whole number"),
        ([], {}, "release: x\nkeep: 99\n", "config.yaml:2: keep: expected a whole number"),
        ([], {"SAGE_QUIET": "perhaps"}, "", "SAGE_QUIET: expected yes or no"),
        (["--color", "gren"], {}, "", "--color: unknown color 'gren'"),
        ([], {}, "quiet: perhaps\n", "config.yaml:1: quiet: expected true or false"),
    ],
)
def test_a_wrong_value_is_named_with_where_it_came_from(
    tmp_path: Path, words: list[str], env: dict[str, str], text: str, expected: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        values(words, env=env, file=file)
    assert expected in str(caught.value)


def test_an_unknown_flag_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown flag --relaese") as caught:
        values(["--relaese", "x"])
    assert caught.value.hint == "did you mean '--release'?"


def test_flags_give_the_same_values_again() -> None:
    first = values(["-n", "jammy", "--site", "a", "--site", "b", "--quiet", "--keep", "2"])
    assert values(settings.as_flags(TABLE, first)) == first


def test_the_manual_has_a_row_a_setting() -> None:
    text = settings.manual(TABLE)
    assert "| `-n`, `--release` | `SAGE_RELEASE` | `release` | `noble` | which release |" in text
    assert len(text.splitlines()) == 2 + len(TABLE)


def test_usual_places_of_the_configuration_file(tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert settings.configuration_files(None, home) == []
    file = tmp_path / "sage-chameleon/config.yaml"
    file.parent.mkdir()
    file.touch()
    assert settings.configuration_files(None, home) == [file]
    assert settings.configuration_files("/x", home) == [Path("/x")]
    assert settings.configuration_files(None, {**home, "SAGE_CONFIG": "/y"}) == [Path("/y")]


def test_help_shows_percent_signs() -> None:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser, [Setting("share", "100 % of it")])
    assert "100 % of it" in parser.format_help()

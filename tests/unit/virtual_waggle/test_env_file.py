# SPDX-License-Identifier: Apache-2.0
"""A settings file of NAME=value: what is wrong in it is told with file, line and name."""

from pathlib import Path

import pytest

from groundwork.errors import InputError
from groundwork.settings import whole_number
from virtual_waggle import env_file
from virtual_waggle.env_file import Variable

TABLE = (
    Variable("PLACE", "where it is"),
    Variable("SIZE", "how large it is", whole_number(1, 9), "3"),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "some.env"
    path.write_text(text)
    return path


def test_values_are_read_and_defaults_put_in(tmp_path: Path) -> None:
    path = written(tmp_path, '# a comment\n\n PLACE = "a b" \n')
    assert env_file.read(path, TABLE) == {"PLACE": "a b", "SIZE": 3}
    assert env_file.read(written(tmp_path, "PLACE=x=y\nSIZE='4'\n"), TABLE) == {"PLACE": "x=y", "SIZE": 4}
    assert env_file.read(written(tmp_path, "export PLACE=x # y\nSIZE=\n"), TABLE) == {"PLACE": "x", "SIZE": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PLACE=a\nSIZ=4\n", ":2: SIZ: unknown setting"),
        ("PLACE=a\nSIZE=12\n", ":2: SIZE: expected a whole number from 1 to 9, found '12'"),
        ("PLACE=a\n\nPLACE=b\n", ":3: PLACE: stands twice"),
        ("PLACE\n", ":1: expected NAME=value"),
        ("SIZE=4\n", ": PLACE is missing"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        env_file.read(path, TABLE)
    assert str(error.value).startswith(f"{path}{message}")


def test_the_nearest_name_is_hinted_at(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        env_file.read(written(tmp_path, "PLAEC=a\n"), TABLE)
    assert error.value.hint == "did you mean 'PLACE'?"


def test_files_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"#" * 100_000):
        path = tmp_path / "some.env"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"some\.env"):
            env_file.read(path, TABLE)
    with pytest.raises(InputError, match="No such file"):
        env_file.read(tmp_path / "absent.env", TABLE)


def test_an_environment_is_read_by_the_same_table() -> None:
    assert env_file.from_environment({"PLACE": "a", "OTHER": "b"}, TABLE) == {"PLACE": "a", "SIZE": 3}
    with pytest.raises(InputError, match="PLACE is not set"):
        env_file.from_environment({}, TABLE)
    with pytest.raises(InputError, match="SIZE: expected a whole number"):
        env_file.from_environment({"PLACE": "a", "SIZE": "many"}, TABLE)


def test_a_change_leaves_all_else_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, "# mine\nSIZE=4 \nPLACE=a\n")
    assert env_file.change(path, TABLE, {"PLACE": "b"})
    assert path.read_text() == "# mine\nSIZE=4 \nPLACE=b\n"
    assert not env_file.change(path, TABLE, {"PLACE": "b"})


def test_a_new_file_explains_every_setting(tmp_path: Path) -> None:
    path = tmp_path / "new.env"
    assert env_file.change(path, TABLE, {"PLACE": "a"})
    assert path.read_text() == "# where it is\nPLACE=a\n\n# how large it is\n#SIZE=3\n"
    assert env_file.read(path, TABLE) == {"PLACE": "a", "SIZE": 3}


def test_a_wrong_change_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "PLACE=a\n")
    with pytest.raises(InputError, match=r"some\.env:2: SIZE: expected") as error:
        env_file.change(path, TABLE, {"SIZE": "0"})
    assert ".part" not in str(error.value)
    assert path.read_text() == "PLACE=a\n"
    assert list(tmp_path.iterdir()) == [path]

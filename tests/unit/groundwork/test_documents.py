# SPDX-License-Identifier: Apache-2.0
"""Every mistake in a YAML file is told with its file, line and key."""

from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest

from groundwork import documents
from groundwork.errors import InputError

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer", "description": "how many"},
        "kind": {"enum": ["red", "green"]},
        "rows": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": False, "properties": {"x": {"type": "number"}}},
        },
    },
}


@pytest.fixture(autouse=True, params=["as installed", "as in Ubuntu 22.04"])
def _jsonschema(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonschema 3.2, which Ubuntu 22.04 has, knows no draft newer than 7."""
    if request.param == "as in Ubuntu 22.04":
        monkeypatch.setattr(jsonschema, "Draft202012Validator", None)


@pytest.mark.parametrize(
    ("text", "line", "words", "hint"),
    [
        ("name: a\ncuont: 1\n", 2, ["cuont", "unknown key"], "'count'"),
        ("name: a\ncount: many\n", 2, ["count", "expected a whole number", "'many'"], "how many"),
        ("count: 1\n", 1, ["'name' is missing"], None),
        ("name: a\nkind: gren\n", 2, ["kind", "'gren'"], "'green'"),
        ("name: a\nrows:\n- x: 1\n- y: 2\n", 4, ["rows[1].y", "unknown key"], "x"),
        ("name: a\nname: b\n", 2, ["'name' stands twice"], None),
        ("name: a\n1: b\n", 2, ["expected a text as key"], None),
        ("name: [a\n", 2, ["expected"], None),
        ("- a\n", 1, ["expected a mapping"], None),
        ("name: !!python/object:os.system x\n", 1, ["could not determine a constructor"], None),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, text: str, line: int, words: list[str], hint: str | None
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        documents.load(path, SCHEMA)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    for word in words:
        assert word in str(caught.value)
    if hint:
        assert caught.value.hint is not None
        assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_the_first_mistake_of_the_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("name: a\nzzz: 1\ncount: x\n")
    with pytest.raises(InputError, match=":2: zzz"):
        documents.load(path, SCHEMA)


def test_what_is_right_comes_as_data_and_dates_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("name: 2026-11-20\ncount: 3\n")
    assert documents.load(path, SCHEMA).data == {"name": "2026-11-20", "count": 3}


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2 << 20))
    for path in (tmp_path / "absent.yaml", tmp_path, binary, large):
        with pytest.raises(InputError) as caught:
            documents.load(path, SCHEMA)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:\n" + "[" * 5000, "2: nested more than"),
        ("- " * 50 + "x", "1: nested more than"),
        ("a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20, "2: nested more than"),
        ("a:\n- &a [*a]", "2: an alias inside of what it names"),
        ("a: &a [1, 2]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in pairwise("abcdef")), "6: more than"),
    ],
    ids=["brackets", "lists", "by an alias", "in itself", "many"],
)
def test_files_made_to_exhaust_the_reader_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{path}:{words}"):
        documents.load(path, {})


def test_what_people_nest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: &a " + "[" * 20 + "]" * 20 + "\nb: [*a, *a]")
    assert documents.load(path, {}).data["b"][0] == documents.load(path, {}).data["a"]

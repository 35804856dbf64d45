# SPDX-License-Identifier: Apache-2.0
"""Variables are filled in as the Compose specification has it, and files of them are read as Compose does."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from groundwork.errors import InputError
from virtual_waggle.variables import Unset, Variables, fill_in, read_env_file

VALUES = {"SET": "value", "EMPTY": "", "_x1": "under"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("$SET", "value"),
        ("${SET}", "value"),
        ("a$SET-b", "avalue-b"),
        ("$SET$SET", "valuevalue"),
        ("$_x1.", "under."),
        ("$NONE|${NONE}|$EMPTY", "||"),
        ("$$SET $${SET} $$$SET", "$SET ${SET} $value"),
        ("${NONE:-else}|${NONE-else}", "else|else"),
        ("${EMPTY:-else}|${EMPTY-else}", "else|"),
        ("${SET:-else}|${SET-else}", "value|value"),
        ("${SET:+there}|${SET+there}", "there|there"),
        ("${EMPTY:+there}|${EMPTY+there}", "|there"),
        ("${NONE:+there}|${NONE+there}", "|"),
        ("${SET:?why}|${SET?why}|${EMPTY?why}", "value|value|"),
        ("${NONE:-${EMPTY:-$SET}}", "value"),
        ("${NONE:-a b/c:d-e}", "a b/c:d-e"),
        ("${NONE:-$$5}", "$5"),
        ("${SET:-${NONE:?never asked}}", "value"),
        ("amqp://rabbitmq:5672/{x}", "amqp://rabbitmq:5672/{x}"),
    ],
)
def test_each_form_gives_what_compose_gives(text: str, filled: str) -> None:
    assert fill_in(text, VALUES) == filled


@pytest.mark.parametrize(
    "text", ["$", "a $ b", "$1", "${", "${}", "${SET", "${1}", "${SET:}", "${SET:=x}", "${A:-${B}"]
)
def test_what_is_no_variable_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no variable|closes"):
        fill_in(text, VALUES)


@pytest.mark.parametrize("text", ["${EMPTY:?set it}", "${NONE?set it}", "${NONE:-${NONE:?set it}}"])
def test_a_required_one_is_asked_for_with_its_reason(text: str) -> None:
    with pytest.raises(Unset, match="set it"):
        fill_in(text, VALUES)


def test_unset_ones_without_a_default_are_noted_once() -> None:
    noting = Variables(VALUES)
    fill_in("$NONE ${NONE} ${MISSING-x} ${SET:-$UNUSED} ${OTHER}", noting)
    assert noting.unset == ["NONE", "OTHER"]


def test_nesting_has_a_bound() -> None:
    with pytest.raises(ValueError, match="inside each other"):
        fill_in("${A:-" * 100 + "}" * 100, {})


NAMES = some.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
PLAIN = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="$}"), max_size=10)
SETTINGS = some.dictionaries(NAMES, some.text(max_size=5), max_size=4)


@given(some.text(max_size=20))
def test_a_text_with_its_dollars_doubled_comes_back(text: str) -> None:
    assert fill_in(text.replace("$", "$$"), {}) == text


@some.composite
def expressions(draw: some.DrawFn, values: dict[str, str], depth: int = 3) -> tuple[str, str]:
    """An expression and what it is to give."""
    may_be_set = draw(some.booleans())
    known = sorted(values) if may_be_set else []
    name = draw(some.sampled_from(known)) if known else draw(NAMES)
    operator = draw(some.sampled_from(["", ":-", "-", ":+", "+"]))
    word, meant = (draw(PLAIN),) * 2
    if depth and draw(some.booleans()):
        inner, inner_meant = draw(expressions(values, depth - 1))
        word, meant = word + inner, meant + inner_meant
    there = bool(values.get(name)) if operator.startswith(":") else name in values
    if operator == "":
        return f"${{{name}}}", values.get(name, "")
    if operator.endswith("-"):
        return f"${{{name}{operator}{word}}}", values[name] if there else meant
    return f"${{{name}{operator}{word}}}", meant if there else ""


@given(some.data())
def test_expressions_of_any_shape_give_what_they_mean(data: some.DataObject) -> None:
    values = data.draw(SETTINGS)
    before, after = data.draw(PLAIN), data.draw(PLAIN)
    text, meant = data.draw(expressions(values))
    assert fill_in(before + text + after, values) == before + meant + after


@given(some.text(some.sampled_from("${}:-+?Aa1 ")), SETTINGS)
def test_garbage_is_refused_or_gives_a_text(text: str, values: dict[str, str]) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(fill_in(text, values), str)


# -------------------------------------------------------------------------------------------------- files of variables


def read(folder: Path, text: str, variables: dict[str, str] | None = None, *, raw: bool = False) -> dict[str, str]:
    (folder / "some.env").write_text(text, newline="")
    return read_env_file(folder / "some.env", variables or {}, raw=raw)


def test_a_file_of_variables_is_read_as_compose_does(tmp_path: Path) -> None:
    text = """\
# a comment

PLAIN=value
  INDENTED = spaced\t
export EXPORTED=1
EMPTY=
COMMENTED=value # of course
HASH=a#b
SINGLE='$PLAIN # "as it is"'
DOUBLE="a \\"b\\" \\$PLAIN $PLAIN\\n"
MANY="one
two"
FILLED=${PLAIN}-${HERE:-x}
FROM_HERE
NOWHERE
colon: value
url=http://a:b@c/?d=e
"""
    assert read(tmp_path, text, {"FROM_HERE": "here", "HERE": "y"}) == {
        "PLAIN": "value",
        "INDENTED": "spaced",
        "EXPORTED": "1",
        "EMPTY": "",
        "COMMENTED": "value",
        "HASH": "a#b",
        "SINGLE": '$PLAIN # "as it is"',
        "DOUBLE": 'a "b" $PLAIN value\n',
        "MANY": "one\ntwo",
        "FILLED": "value-y",
        "FROM_HERE": "here",
        "colon": "value",
        "url": "http://a:b@c/?d=e",
    }


def test_windows_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffA=1\r\nB=2\r\n") == {"A": "1", "B": "2"}


def test_a_raw_file_is_taken_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, "# c\nA='$B' # d\n", raw=True) == {"A": "'$B' # d"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A=1\n=2\n", "some.env:2: expected KEY=value"),
        ("\n\n!!\n", "some.env:3: expected KEY=value"),
        ('A="b\n\n', "some.env:1: A: its quote is not closed"),
        ('M="1\n2"\nA="b"c\n', "some.env:3: A: something stands behind"),
        ("A=$\n", "some.env:1: A: no variable"),
        ("A=\0\n", "is not a text file"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "some.env").write_bytes(b"A=\xff\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_env_file(tmp_path / "some.env", {})
    with pytest.raises(InputError, match="can't read"):
        read_env_file(tmp_path / "absent.env", {})


@given(
    values=some.dictionaries(
        NAMES,
        some.text(some.characters(exclude_categories=["Cs"], exclude_characters="'\0\r"), max_size=20),
        max_size=5,
    )
)
def test_quoted_values_come_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "quoted.env"
    path.write_text("".join(f"{key}='{value}'\n" for key, value in values.items()), newline="")
    assert read_env_file(path, {}) == values

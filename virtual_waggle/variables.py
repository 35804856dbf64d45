# SPDX-License-Identifier: Apache-2.0
"""Variables as Compose has them: ``$VAR`` and its kin in texts, and files of ``KEY=value``."""

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path

from groundwork.errors import InputError

_DEEPEST = 16  # a default in a default
_LARGEST = 1 << 20  # bytes of a file
_LONGEST = 1 << 20  # characters of a text with its variables filled in
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*(=|:[ \t]|(?=\n|$))[ \t]*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


class Unset(ValueError):
    """A variable that is required (``${VARIABLE:?why}``) and not there."""

    def __init__(self, variable: str, why: str) -> None:
        super().__init__(f"the variable {variable} is {why or 'required'}")
        self.variable = variable


class Variables(dict[str, str]):
    """Variables that note which ones were asked for in vain, without a default."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.unset: list[str] = []


def fill_in(text: str, variables: Mapping[str, str]) -> str:
    """The text with its variables' values; an unset one without default is empty.

    Known are ``$VAR``, ``${VAR}``, and in braces ``:-`` and ``-`` (else this), ``:+`` and ``+`` (instead this), ``:?``
    and ``?`` (error), where those with a colon count an empty value as none; ``$$`` is a ``$``.  Raises ValueError.
    """
    found, end = _fill_in(text, 0, variables, 0)
    assert end == len(text)
    return found


def _fill_in(text: str, begin: int, variables: Mapping[str, str], depth: int) -> tuple[str, int]:
    """The text from ``begin`` on, as far as it goes (below the top: to the brace that closes), and its end."""
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} variables inside each other")
    parts: list[str] = []
    size = 0
    at = begin
    while at < len(text) and not (depth and text[at] == "}"):
        if text[at] != "$":
            stop = min(
                (place for place in (text.find("$", at), text.find("}", at) if depth else -1) if place >= 0),
                default=len(text),
            )
            part, at = text[at:stop], stop
        elif text.startswith("$$", at):
            part, at = "$", at + 2
        elif text.startswith("${", at):
            part, at = _braced(text, at, variables, depth)
        elif match := _NAME.match(text, at + 1):
            part, at = _value(match[0], variables), match.end()
        else:
            raise ValueError(f"no variable at {text[at : at + 20]!r}")
        parts.append(part)
        size += len(part)
        if size > _LONGEST:
            raise ValueError(f"longer than {_LONGEST} characters with its variables filled in")
    return "".join(parts), at


def _braced(text: str, begin: int, variables: Mapping[str, str], depth: int) -> tuple[str, int]:
    match = _NAME.match(text, begin + 2)
    if not match:
        raise ValueError(f"no variable at {text[begin : begin + 20]!r}")
    name, at = match[0], match.end()
    if text.startswith("}", at):
        return _value(name, variables), at + 1
    operator = next((one for one in (":-", ":?", ":+", "-", "?", "+") if text.startswith(one, at)), None)
    if operator is None:
        raise ValueError(f"no variable at {text[begin : begin + 20]!r}")
    there = bool(variables.get(name)) if operator[0] == ":" else name in variables
    kind = operator[-1]
    used = there if kind == "+" else not there
    # Of what is not used nothing is missed.
    word, at = _fill_in(text, at + len(operator), variables if used else _Lenient(variables), depth + 1)
    if not text.startswith("}", at):
        raise ValueError(f"no }} closes {text[begin : begin + 20]!r}")
    if kind == "+":
        return (word if there else ""), at + 1
    if there:
        return variables[name], at + 1
    if kind == "?":
        raise Unset(name, word)
    return word, at + 1


class _Lenient(dict[str, str]):
    """Every variable has a value: for words that are read over and not used."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__()

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> str:
        return "-"

    def get(self, name: str, default: str | None = None) -> str:  # type: ignore[override]
        return "-"


def _value(name: str, variables: Mapping[str, str]) -> str:
    value = variables.get(name)
    if value is None:
        if isinstance(variables, Variables) and name not in variables.unset:
            variables.unset.append(name)
        return ""
    return value


def read_env_file(path: Path, variables: Mapping[str, str], *, raw: bool = False) -> dict[str, str]:
    """The variables of a file of ``KEY=value``, in its order.

    Values may be quoted, ``'as they are'`` or ``"with \\n and $VARIABLES"``, over several lines; a bare one ends at
    `` #``.  ``variables`` count before the file's own where values name some.  A key alone has its value from
    ``variables``; where it has none there, it is left out.  With ``raw`` all after the ``=`` is the value.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST >> 20} MiB; expected lines of KEY=value")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path} is not a text file")
    if raw:
        rows = (line.partition("=") for line in text.splitlines() if line.strip() and not line.startswith("#"))
        return {key.strip(): value for key, _, value in rows}
    found: dict[str, str] = {}
    known = ChainMap(dict(variables), found)
    for line, key, value, literal in _rows(path, text.replace("\r\n", "\n")):
        if value is None:
            if key in variables:
                found[key] = variables[key]
            continue
        try:
            found[key] = value if literal else fill_in(value, known)
        except ValueError as error:
            raise InputError(f"{path}:{line}: {key}: {error}", hint="'single quotes' keep a $ as it is") from None
    return found


def _rows(path: Path, text: str) -> Iterator[tuple[int, str, str | None, bool]]:
    """Line, key, value (None: no ``=``), and whether the value is as it is meant."""
    at, line = 0, 1
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        start = at
        row = text[at:end].strip()
        if not row or row.startswith("#"):
            at, line = end + 1, line + 1
            continue
        at += len(text[at:end]) - len(text[at:end].lstrip())
        match = _KEY.match(text, at)
        if not match:
            raise InputError(f"{path}:{line}: expected KEY=value, found {row[:1]!r}...")
        key, value_at = match[1], match.end()
        quote = text[value_at : value_at + 1]
        if match[2] == "":
            yield line, key, None, True
        elif quote in ("'", '"'):
            closing = value_at + 1
            while closing < len(text) and text[closing] != quote:
                closing += 2 if quote == '"' and text[closing] == "\\" else 1
            if closing >= len(text):
                raise InputError(f"{path}:{line}: {key}: its quote is not closed")
            inner = text[value_at + 1 : closing]
            if quote == '"':
                inner = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), inner)
            end = text.find("\n", closing)
            end = len(text) if end < 0 else end
            if (rest := text[closing + 1 : end].strip()) and not rest.startswith("#"):
                raise InputError(f"{path}:{line}: {key}: something stands behind its closing quote")
            yield line, key, inner, quote == "'"
        else:
            value = re.split(r"(?:^|[ \t])#", text[value_at:end], maxsplit=1)[0].strip()
            yield line, key, value, False
        line += text.count("\n", start, end) + 1
        at = end + 1

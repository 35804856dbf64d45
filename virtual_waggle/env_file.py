# SPDX-License-Identifier: Apache-2.0
"""Settings as ``NAME=value``: a file of them, or a service's environment; a table says which there are.

A line a setting, as a shell would read it: ``export`` may stand before, ``#`` begins a comment, quotes around a value
are taken off.  Nothing is put in for ``$NAME``.  A setting left empty is at its default.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundwork import files
from groundwork.errors import InputError, nearest
from groundwork.settings import whole_number

_LARGEST = 1 << 16  # bytes

_SIZE = re.compile(r"([1-9][0-9]{0,14})([kmgt]?)")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Variable:
    """One setting.  ``parse`` makes its value from a text and raises InputError for a wrong one.

    ``default`` is a text too; None: there is none, it must be given.
    """

    name: str
    help: str
    parse: Callable[[str], Any] = str
    default: str | None = None


def read(path: Path, table: Sequence[Variable]) -> dict[str, Any]:
    """The value of each variable of the table.  Raises InputError with ``file:line: NAME`` for the first wrong one."""
    known = {variable.name: variable for variable in table}
    values: dict[str, Any] = {}
    for number, name, text in _lines(path):
        where = f"{path}:{number}: {name}"
        if name not in known:
            raise InputError(f"{where}: unknown setting", hint=nearest(name, known))
        if name in values:
            raise InputError(f"{where}: stands twice")
        values[name] = _parsed(known[name], text or known[name].default or "", where)
    for variable in table:
        if variable.name not in values:
            if variable.default is None:
                raise InputError(f"{path}: {variable.name} is missing", hint=f"expected: {variable.help}")
            values[variable.name] = _parsed(variable, variable.default, f"{path}: {variable.name}")
    return values


def texts(path: Path) -> dict[str, str]:
    """What a settings file says, unread and unchecked, for others to read."""
    return {name: text for _, name, text in _lines(path)}


def from_environment(environment: Mapping[str, str], table: Sequence[Variable]) -> dict[str, Any]:
    """The value of each variable of the table.  Raises InputError that names the first wrong or missing one."""
    values: dict[str, Any] = {}
    for variable in table:
        text = environment.get(variable.name) or variable.default
        if text is None:
            raise InputError(f"{variable.name} is not set", hint=f"expected: {variable.help}")
        values[variable.name] = _parsed(variable, text, variable.name)
    return values


def layered(path: Path, environment: Mapping[str, str], table: Sequence[Variable]) -> dict[str, str]:
    """The text of each variable: what the file says (it need not exist), else the environment, else its default.

    Raises InputError that names the first wrong one.
    """
    given = {name: text for name, text in texts(path).items() if text} if path.exists() else {}
    found = {one.name: given.get(one.name) or environment.get(one.name) or one.default or "" for one in table}
    from_environment(found, table)
    return found


def text_of(table: Sequence[Variable], given: Mapping[str, str]) -> str:
    """The text of a new settings file: each variable under its explanation, those left at their defaults commented."""
    lines: list[str] = []
    for variable in table:
        if variable.name in given:
            line = f"{variable.name}={given[variable.name]}"
        else:
            line = f"#{variable.name}={variable.default or ''}"
        lines += [f"# {variable.help}", line, ""]
    return "\n".join(lines)


def change(path: Path, table: Sequence[Variable], given: Mapping[str, str]) -> bool:
    """Set these variables in a settings file, which may be absent; all else in it stays.  Whether anything changed.

    What comes of it is checked before it takes the file's place.
    """
    if not path.exists():
        text = text_of(table, given)
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        places = {name: number - 1 for number, name, _ in _lines(path)}
        for name, value in given.items():
            if name in places:
                lines[places[name]] = f"{name}={value}"
            else:
                lines.append(f"{name}={value}")
        text = "\n".join(lines) + "\n"
        if text == path.read_text(encoding="utf-8"):
            return False
    with files.writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            read(temporary, table)
        except InputError as error:
            raise InputError(str(error).replace(str(temporary), str(path)), hint=error.hint) from None
    return True


def size(text: str) -> int:
    """Bytes of a size such as ``512m`` (k, m, g, t: powers of 1024)."""
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise InputError(f"expected a number, and k, m, g or t where it is not bytes, found {text[:20]!r}")
    return int(match[1]) * _UNITS[match[2]]


def health_interval(name: str) -> Variable:
    """The setting of how often a stack's services are looked at; as a container each look is a program of Docker's."""
    told = "seconds between two health checks of a service; empty: 5 to 15; more where the processor is emulated"
    return Variable(name, told, lambda text: whole_number(1, 3600)(text) if text else None, "")


def _lines(path: Path) -> list[tuple[int, str, str]]:
    """Number, name and value of each line that sets something."""
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST >> 10} KiB; expected lines NAME=value")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not equals or not name.strip().isidentifier():
            raise InputError(f"{path}:{number}: expected NAME=value, found {line.strip()[:60]!r}")
        found.append((number, name.strip(), _unquoted(value.strip())))
    return found


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return "" if value.startswith("#") else value.partition(" #")[0].rstrip()


def _parsed(variable: Variable, text: str, where: str) -> Any:
    try:
        return variable.parse(text)
    except InputError as error:
        raise InputError(f"{where}: {error}", hint=error.hint or f"expected: {variable.help}") from None

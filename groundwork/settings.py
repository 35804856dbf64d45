# SPDX-License-Identifier: Apache-2.0
"""A table of settings is the one source of flags, environment variables, configuration file and their manual.

Each :class:`Setting` named ``output-dir`` can be given as ``--output-dir``, as ``SAGE_OUTPUT_DIR`` or as the key
``output-dir`` of a configuration file; the first of these that is there counts, then the default.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from groundwork import documents
from groundwork.errors import InputError, nearest

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    ``parse`` makes the value from its text and raises InputError for a wrong one.  A ``switch`` takes no value;
    a setting that is ``many`` may be given several times (in the environment: separated by commas).
    ``only_flag`` keeps it out of environment and configuration file.  ``shown`` is the default as people read it,
    where its value differs from machine to machine.
    """

    name: str
    help: str
    parse: Callable[[str], Any] = str
    default: Any = None
    also: tuple[str, ...] = ()
    metavar: str | None = None
    switch: bool = False
    many: bool = False
    only_flag: bool = False
    shown: str | None = None

    @property
    def default_text(self) -> str:
        """The default for people, or "" where there is none."""
        if self.shown is not None or self.default in (None, (), False):
            return self.shown or ""
        return ", ".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)

    @property
    def key(self) -> str:
        """Its name as a Python identifier."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "SAGE_" + self.key.upper()

    @property
    def flag(self) -> str:
        """Its long flag."""
        return "--" + self.name


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors, with the nearest flag for one that is unknown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(message, hint=f"see: {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        if rest and rest[0].startswith("-"):
            flag = rest[0].split("=")[0]
            raise InputError(
                f"unknown flag {flag}",
                hint=nearest(flag, [name for name in self._option_string_actions if name.startswith("--")]),
            )
        if rest:
            self.error(f"unexpected word {rest[0]!r}")
        return found, rest


def add_flags(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    """Add the settings' flags to a parser; one that is not given is absent from the namespace."""
    for setting in settings:
        text = setting.help
        if setting.default_text:
            text += f" (default: {setting.default_text})"
        flags = [*setting.also, setting.flag]
        if setting.switch:
            parser.add_argument(
                *flags, dest=setting.key, action="store_true", default=argparse.SUPPRESS, help=_literal(text)
            )
        else:
            parser.add_argument(
                *flags,
                dest=setting.key,
                action="append" if setting.many else "store",
                default=argparse.SUPPRESS,
                metavar=setting.metavar or setting.name.rsplit("-", 1)[-1].upper(),
                help=_literal(text),
            )


def resolve(
    settings: Sequence[Setting],
    given: argparse.Namespace,
    *,
    configuration: Mapping[str, tuple[Any, str]],
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """The value of each setting, by its key.

    ``configuration`` is what :func:`read_configuration` gave.  Raises InputError that names the flag, the
    variable or the file and line a wrong value came from.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        if hasattr(given, setting.key):
            raw, origin = getattr(given, setting.key), setting.flag
        elif not setting.only_flag and environment.get(setting.variable):
            raw, origin = environment[setting.variable], setting.variable
            if setting.many:
                raw = raw.split(",")
        elif setting.name in configuration and not setting.only_flag:
            raw, origin = configuration[setting.name]
        else:
            values[setting.key] = bool(setting.default) if setting.switch else setting.default
            continue
        try:
            values[setting.key] = _value(setting, raw)
        except InputError as error:
            raise InputError(f"{origin}: {error}", hint=error.hint) from None
    return values


def configuration_files(named: str | None, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """The configuration files that count, the strongest first: the one named, or the user's and the machine's."""
    named = named or environment.get("SAGE_CONFIG")
    if named:
        return [Path(named)]
    home = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    candidates = [home / "sage-chameleon/config.yaml", Path("/etc/sage-chameleon/config.yaml")]
    return [path for path in candidates if path.exists()]


def read_configuration(
    paths: Iterable[Path], settings: Sequence[Setting], more: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, str]]:
    """Setting's name -> (its value, ``file:line: key``), from YAML files, the strongest first.

    ``more``: further keys that a file may have, with their JSON Schemas.
    """
    scalar = {"type": ["string", "number", "boolean"]}
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            setting.name: {"type": "boolean"}
            if setting.switch
            else {"anyOf": [scalar, {"type": "array", "items": scalar}], "description": setting.help}
            if setting.many
            else {**scalar, "description": setting.help}
            for setting in settings
            if not setting.only_flag
        },
    }
    schema["properties"].update(more or {})
    found: dict[str, tuple[Any, str]] = {}
    for path in paths:
        document = documents.load(path, schema)
        for name, value in document.data.items():
            found.setdefault(name, (value, f"{path}:{document.line([name], of_key=True)}: {name}"))
    return found


def as_flags(settings: Iterable[Setting], values: Mapping[str, Any]) -> list[str]:
    """The command line that gives these values again, whatever environment and files say."""
    flags: list[str] = []
    for setting in settings:
        value = values.get(setting.key)
        if setting.switch:
            flags += [setting.flag] if value else []
        elif setting.many:
            flags += [f"{setting.flag}={item}" for item in value or ()]
        elif value is not None:
            flags.append(f"{setting.flag}={value}")
    return flags


def manual(settings: Iterable[Setting]) -> str:
    """The table as Markdown."""
    lines = ["| flag | environment | configuration key | default | what it sets |", "|---|---|---|---|---|"]
    for setting in settings:
        flags = ", ".join(f"`{flag}`" for flag in (*setting.also, setting.flag))
        variable = "" if setting.only_flag else f"`{setting.variable}`"
        key = "" if setting.only_flag else f"`{setting.name}`"
        default = f"`{setting.default_text}`" if setting.default_text else ""
        lines.append(f"| {flags} | {variable} | {key} | {default} | {setting.help} |")
    return "\n".join(lines) + "\n"


def one_of(what: str, choices: Iterable[str]) -> Callable[[str], str]:
    """A parser for words of a fixed set, which names the nearest for one that is none of them."""
    known = tuple(choices)

    def parse(text: str) -> str:
        if text not in known:
            raise InputError(f"unknown {what} {text!r}", hint=nearest(text, known))
        return text

    return parse


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser for whole numbers in a range."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise InputError(f"expected a whole number from {least} to {most}, found {text!r}")
        return number

    return parse


def folder(text: str) -> Path:
    """A parser for paths; ``~`` is the user's home folder."""
    return Path(text).expanduser().absolute()


def _value(setting: Setting, raw: Any) -> Any:
    if setting.switch:
        if isinstance(raw, bool):
            return raw
        if raw.lower() in _TRUE or raw.lower() in _FALSE:
            return raw.lower() in _TRUE
        raise InputError(f"expected yes or no, found {raw!r}")
    if setting.many:
        items = raw if isinstance(raw, list) else [raw]
        return tuple(setting.parse(str(item).strip()) for item in items if str(item).strip())
    return setting.parse(str(raw))


def _literal(text: str) -> str:
    return text.replace("%", "%%")

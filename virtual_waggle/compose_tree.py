# SPDX-License-Identifier: Apache-2.0
"""A YAML file as a tree of values that know their places; variables filled in, merge keys and aliases written out.

A file may come from anyone, so its size, depth and count of values are bounded, with all its aliases written out.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from groundwork.documents import BoundedLoader
from groundwork.errors import InputError, nearest
from virtual_waggle.compose_model import Place
from virtual_waggle.variables import Unset, fill_in

_LARGEST = 512 << 10  # bytes of a file

Data = None | bool | int | float | str | dict[str, "Node"] | list["Node"]


@dataclass(frozen=True)
class Node:
    """A value of the file, with its place and the dotted path of keys to it."""

    value: Data
    place: Place
    name: str

    def error(self, message: str, *, hint: str | None = None) -> InputError:
        """An error about this value."""
        return InputError(f"{self.place}: {self.name + ': ' if self.name else ''}{message}", hint=hint)

    def wrong(self, expected: str) -> InputError:
        """The error for a value of another kind than ``expected``."""
        found = self.value
        shown = "a mapping" if isinstance(found, dict) else "a list" if isinstance(found, list) else repr(found)[:60]
        return self.error(f"expected {expected}, found {shown}")


class _Loader(BoundedLoader):
    """Composes nodes as YAML 1.2 has them: ``22:22`` is no number, ``yes`` no truth value, a date is a text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0b[01]+|0o?[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]{0,30})", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def parse(path: Path, variables: Mapping[str, str]) -> Node:
    """Read a YAML file.  Raises InputError with file and line for what is none, or too much."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST >> 10} KiB; expected a Compose file")
        text = data.decode()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: {error.problem or error.context or 'not YAML'}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    if root is None:
        raise InputError(f"{path} is empty; expected a Compose file")
    return _Building(path, variables).node(root, "")


class _Building:
    """Makes values of YAML's nodes: merge keys and aliases written out, variables filled in."""

    def __init__(self, path: Path, variables: Mapping[str, str]) -> None:
        self.path = path
        self.variables = variables

    def node(self, found: yaml.Node, name: str, key: yaml.Node | None = None) -> Node:
        place = Place(self.path, (key or found).start_mark.line + 1)
        value: Data
        if isinstance(found, yaml.MappingNode):
            pairs = self.pairs(found, name)
            value = {
                word: self.node(node, f"{name}.{word}" if name else word, key) for word, (key, node) in pairs.items()
            }
        elif isinstance(found, yaml.SequenceNode):
            value = [self.node(node, f"{name}[{index}]") for index, node in enumerate(found.value)]
        else:
            value = self.scalar(found, place, name)
        return Node(value, place, name)

    def pairs(self, found: yaml.MappingNode, name: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Its own keys with their values, then those merged in, of which the first counts."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.MappingNode] = []
        for key_node, value_node in found.value:
            place = Place(self.path, key_node.start_mark.line + 1)
            if key_node.tag == "tag:yaml.org,2002:merge":
                several = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                if not all(isinstance(one, yaml.MappingNode) for one in several):
                    raise InputError(f"{place}: {name + '.' if name else ''}<<: expected a mapping to merge")
                merged += several
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError(f"{place}: {name + ': ' if name else ''}expected a text as key")
            if key_node.value in own:
                raise InputError(f"{place}: {name + ': ' if name else ''}key {key_node.value!r} stands twice")
            own[key_node.value] = key_node, value_node
        for one in merged:
            for key, value in self.pairs(one, name).items():
                own.setdefault(key, value)
        return own

    def scalar(self, found: yaml.Node, place: Place, name: str) -> Data:
        text = str(found.value)
        kind = found.tag.rpartition(":")[2]
        where = f"{place}: {name + ': ' if name else ''}"
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            digits = text.lower().lstrip("+-")
            octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()  # 0440, as YAML 1.1 has it
            number = int(digits, 8 if octal else 0)
            return -number if text.startswith("-") else number
        if kind == "float":
            return float(text)
        if kind != "str":
            raise InputError(f"{where}the tag {found.tag} is not known here")
        try:
            return fill_in(text, self.variables)
        except Unset as error:
            raise InputError(f"{where}{error}", hint=f"set {error.variable}") from None
        except ValueError as error:
            raise InputError(f"{where}{error}", hint="a plain $ is written as $$") from None


def duration(text: str) -> float:
    """Seconds of a duration as ``1m30s``.  Raises ValueError."""
    if not (match := _DURATION.fullmatch(text.strip())) or not text.strip():
        raise ValueError(text)
    return sum(float(number) * unit for number, unit in zip(match.groups(default="0"), _SECONDS, strict=True))


def byte_count(text: str) -> int:
    """Bytes of a size as ``512m`` or ``1.5gb``.  Raises ValueError."""
    if not (match := _SIZE.fullmatch(text.strip().lower())):
        raise ValueError(text)
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


_NUMBER = r"(\d{1,15}(?:\.\d{1,9})?)"
_SECONDS = (604800.0, 86400.0, 3600.0, 60.0, 1.0, 1e-3, 1e-6, 1e-9)
_DURATION = re.compile("".join(rf"(?:{_NUMBER}{unit})?" for unit in ("w", "d", "h", "m", "s", "ms", "(?:us|µs)", "ns")))
_SIZE = re.compile(rf"{_NUMBER}\s*([kmgt])?i?b?")


def mapping(node: Node) -> dict[str, Node]:
    """Its keys but those that begin with ``x-``, which are anyone's."""
    if node.value is None:
        return {}
    if not isinstance(node.value, dict):
        raise node.wrong("a mapping of keys to values")
    return {key: value for key, value in node.value.items() if not key.startswith("x-")}


def items(node: Node) -> list[Node]:
    """The items of a list."""
    if node.value is None:
        return []
    if not isinstance(node.value, list):
        raise node.wrong("a list")
    return node.value


def text(node: Node) -> str:
    """A text; numbers and truth values stand for theirs."""
    value = node.value
    if value is None or isinstance(value, (dict, list)):
        raise node.wrong("a text")
    return _shown(value)


def _shown(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def texts(node: Node) -> tuple[str, ...]:
    """A list of texts, or one."""
    if isinstance(node.value, (list, type(None))):
        return tuple(text(item) for item in items(node))
    return (text(node),)


def boolean(node: Node) -> bool:
    """A truth value, or a text that says one."""
    if isinstance(node.value, bool):
        return node.value
    word = text(node).lower()
    if word in ("true", "yes", "on", "y", "1"):
        return True
    if word in ("false", "no", "off", "n", "0"):
        return False
    raise node.wrong("true or false")


def whole(node: Node, least: int = 0, most: int = 1 << 31) -> int:
    """A whole number in a range, or its digits."""
    digits = text(node)
    if not re.fullmatch(r"-?\d{1,15}", digits) or not least <= int(digits) <= most:
        raise node.wrong(f"a whole number from {least} to {most}")
    return int(digits)


def decimal(node: Node) -> float:
    """A number of at least 0, or its digits."""
    digits = text(node)
    if not re.fullmatch(r"\d{0,9}(\.\d{1,9})?", digits) or digits in ("", "."):
        raise node.wrong("a number")
    return float(digits)


def seconds(node: Node) -> float:
    """A duration, in seconds."""
    try:
        return duration(text(node))
    except ValueError:
        raise node.wrong("a duration as 1m30s") from None


def bytes_of(node: Node) -> int:
    """A size, in bytes."""
    try:
        return byte_count(text(node))
    except ValueError:
        raise node.wrong("a size as 512m") from None


def words(node: Node) -> tuple[str, ...] | None:
    """A command: a list of words, or a text that is split as a shell does; None where nothing stands."""
    if node.value is None:
        return None
    if isinstance(node.value, list):
        return texts(node)
    try:
        return tuple(shlex.split(text(node)))
    except ValueError as error:
        raise node.error(f"can't be split into words: {error}") from None


def by_text(node: Node, separator: str = "=") -> dict[str, tuple[str | None, Node]]:
    """A mapping of texts to texts, or a list of ``key=value``; None where a key stands alone."""
    if isinstance(node.value, list):
        found: dict[str, tuple[str | None, Node]] = {}
        for item in node.value:
            key, equals, value = text(item).partition(separator)
            if not key:
                raise item.wrong(f"key{separator}value")
            found[key] = (value if equals else None, item)
        return found
    value_of = node.value if isinstance(node.value, dict) else mapping(node)
    return {key: (None if item.value is None else text(item), item) for key, item in value_of.items()}


def plain(node: Node) -> dict[str, str]:
    """A mapping of texts to texts, or a list of ``key=value``; "" where a key stands alone."""
    return {key: value or "" for key, (value, _) in by_text(node).items()}


def one_of(choices: Sequence[str]) -> Callable[[Node], str]:
    """A reader of words of a fixed set, which names the nearest for one that is none of them."""

    def read(node: Node) -> str:
        word = text(node)
        if word not in choices:
            raise node.error(f"{word!r} is none of the values known here", hint=nearest(word, choices))
        return word

    return read


def mode(node: Node) -> int:
    """A file's mode: a number (0440 is octal in YAML), or its octal digits as text."""
    if isinstance(node.value, str) and re.fullmatch(r"0?o?[0-7]{3,4}", node.value):
        return int(node.value.replace("o", ""), 8)
    return whole(node, 0, 0o7777)

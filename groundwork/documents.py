# SPDX-License-Identifier: Apache-2.0
"""YAML documents checked against a JSON Schema; every error names the file, the line and the key.

Parsing is PyYAML's safe one, checking is jsonschema's; this module joins the two, so that what jsonschema
finds at a path of keys is told with the line that PyYAML saw there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from groundwork.errors import InputError, nearest

_DEEPEST = 32  # collections in each other; people's files have under 10
_MOST_VALUES = 50_000
_TOO_DEEP = f"nested more than {_DEEPEST} deep"
_LARGEST = 1 << 20  # bytes; people's configuration files are far smaller
_KINDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "a mapping of keys to values",
    "string": "a text",
}


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that refuses what is deeper or has more values than people write, aliases written out.

    PyYAML recurses into what is nested, its time grows with the square of the number of open brackets, and who
    walks through what it returns meets an alias's values as often as the alias stands.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0  # of the node that is being composed
        self._deepest = 0
        self._values = 0
        self._written_out: dict[int, tuple[int, int]] = {}  # by a node's id: values and depth inside of it

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 -- PyYAML's name
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, _TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        deepest_before, values_before = self._deepest, self._values
        self._deepest = self._depth
        self._depth += 1
        self._within_bounds(event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._written_out:
                raise _beyond("an alias inside of what it names", event)
            values, depth = self._written_out[id(node)]
            self._values += values
            self._deepest += depth
            self._within_bounds(event)
        else:
            self._values += 1
            self._written_out[id(node)] = (self._values - values_before, self._deepest - self._depth)
        self._deepest = max(self._deepest, deepest_before)
        return node

    def _within_bounds(self, event: yaml.Event) -> None:
        if self._deepest > _DEEPEST:
            raise _beyond(_TOO_DEEP, event)
        if self._values > _MOST_VALUES:
            raise _beyond(f"more than {_MOST_VALUES:,} values, aliases written out", event)


def _beyond(words: str, event: Any) -> yaml.composer.ComposerError:
    return yaml.composer.ComposerError(None, None, words, event.start_mark)


class _Loader(BoundedLoader):
    """Loader that refuses a key given twice and keeps dates as the texts they were written as."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"expected a text as key, found {key!r}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Document:
    """The data of one YAML file, and where in the file each part of it stands."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        loader = _Loader(text)
        try:
            self._node = loader.get_single_node()
            self.data: Any = {} if self._node is None else loader.construct_document(self._node)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise InputError(f"{where}: {error.problem or error.context or 'not YAML'}") from None
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML: {error}") from None
        finally:
            loader.dispose()

    def line(self, keys: Sequence[str | int], *, of_key: bool = False) -> int:
        """The line, counted from 1, where the value at this path of keys begins (with ``of_key``, its key)."""
        node = self._node
        line = 1
        for position, key in enumerate(keys):
            if isinstance(node, yaml.MappingNode):
                for key_node, value_node in node.value:
                    if key_node.value == key:
                        last = of_key and position == len(keys) - 1
                        line = (key_node if last else value_node).start_mark.line + 1
                        node = value_node
                        break
                else:
                    return line
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
        return line

    def error(
        self, keys: Sequence[str | int], message: str, *, hint: str | None = None, of_key: bool = True
    ) -> InputError:
        """An error about what stands at this path of keys."""
        where = f"{self.path}:{self.line(keys, of_key=of_key)}"
        name = _dotted(keys)
        return InputError(f"{where}: {name + ': ' if name else ''}{message}", hint=hint)


def load(path: Path, schema: Mapping[str, Any]) -> Document:
    """Read a YAML file and check it; raises InputError for the first thing that is wrong, in the file's order."""
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST >> 20} MiB; expected a short YAML file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None
    document = Document(path, text)
    check(document, schema)
    return document


def check(document: Document, schema: Mapping[str, Any]) -> None:
    """Check a document against a JSON Schema (draft 2020-12, with no more in it than draft 7 has)."""
    import jsonschema  # takes 0.1 s

    # Ubuntu 22.04's, which runs in its images, is 3.2 and knows draft 7 at most.
    validator = getattr(jsonschema, "Draft202012Validator", None) or jsonschema.Draft7Validator
    errors = [_explain(document, error) for error in validator(schema).iter_errors(document.data)]
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]


def _explain(document: Document, error: Any) -> tuple[int, InputError]:
    keys: list[str | int] = list(error.absolute_path)
    found = error.instance
    hint = None
    if error.validator == "additionalProperties" and isinstance(found, dict):
        known = error.schema.get("properties", {})
        patterns = error.schema.get("patternProperties", {})
        key = next(key for key in found if key not in known)
        keys.append(key)
        message = "unknown key"
        hint = nearest(key, known) if known else f"keys match {', '.join(patterns)}" if patterns else None
    elif error.validator == "type":
        expected = error.validator_value
        names = [expected] if isinstance(expected, str) else list(expected)
        message = f"expected {' or '.join(_KINDS.get(name, name) for name in names)}, found {_show(found)}"
    elif error.validator == "enum":
        message = f"{_show(found)} is none of the values known here"
        hint = nearest(str(found), [str(value) for value in error.validator_value])
    elif error.validator == "required":
        missing = next(key for key in error.validator_value if key not in found)
        message = f"the key {missing!r} is missing"
    elif error.validator == "pattern":
        message = f"{_show(found)} does not match {error.validator_value}"
    else:
        message = error.message
    description = error.schema.get("description") if isinstance(error.schema, dict) else None
    if hint is None and description:
        hint = f"expected: {description}"
    return document.line(keys, of_key=True), document.error(keys, message, hint=hint)


def _dotted(keys: Sequence[str | int]) -> str:
    name = ""
    for key in keys:
        name += f"[{key}]" if isinstance(key, int) else f".{key}" if name else key
    return name


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

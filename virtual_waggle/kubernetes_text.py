# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes takes as names, quantities and texts, and manifests as YAML."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

_LONGEST_NAME = 52  # characters: a label has 63, and controllers add up to 11
_LONGEST_KEY = 253
_LABEL_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
# user:password@ in a URL or before a host, and password=. Bounded, as a value may be long.
_PASSWORD = re.compile(
    r"://[^/\s:@]{0,100}:[^@\s]{1,200}@"
    r"|(?<![^\s\"'=])[^:/\s@]{1,100}:[^@/\s][^@\s]{0,200}@"
    r"|(password|passwd|pwd)=[\"']?[^\s;&\"']",
    re.I,
)
_PASSWORD_OPTION = re.compile(
    r"(?<!\S)--?[\w-]{0,50}(pass|passwd|password|secret|token|api-?key)[ =](?![\"']?/)\S"
    r"|\bmysql\w{0,20}\s.{0,300}(?<!\S)-p\S",
    re.I,
)
_PASSWORD_IN_FILE = re.compile(
    r"://[^/\s:@]{0,100}:[^@\s/]{1,200}@|(password|passwd|requirepass)[\"']?\s{0,5}[=: ]\s{0,5}[^\s#]"
    r"|PRIVATE KEY-----",
    re.I,
)
_REFERENCE = re.compile(r"\$\{?\w+\}?")
_OPERATORS = re.compile(r"\$+(?=\()|\${2,}")


class Names:
    """Names of one kind of object: legal and unique, the same for the same wishes in the same order."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._given: dict[tuple[str, ...], str] = {}

    def __call__(self, wanted: str, *of: str) -> str:
        """A name like ``wanted`` for the thing that ``wanted`` and ``of`` tell: always the same one, and no other's."""
        key = (wanted, *of)
        if key not in self._given:
            base = legal(wanted)
            name, number = base, 2
            while not self.take(name):
                name, number = f"{base[: _LONGEST_NAME - 4]}-{number}", number + 1
            self._given[key] = name
        return self._given[key]

    def take(self, name: str) -> bool:
        """Have just this name; False where it is taken."""
        if name in self._taken:
            return False
        self._taken.add(name)
        return True


def legal(wanted: str) -> str:
    """A name that Kubernetes takes for any object (RFC 1035): ``my_db`` -> ``my-db``."""
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"x-{name}".rstrip("-")
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9].rstrip('-')}-{_digest(wanted)}"
    return name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_annotation(key: str) -> bool:
    """Whether this can be the key of an annotation."""
    prefix, slash, name = key.rpartition("/")
    fits = _LABEL_PART.fullmatch(name) is not None
    return fits and (not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix) is not None))


def is_label_value(text: str) -> bool:
    """Whether this can be the value of a label."""
    return not text or _LABEL_PART.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Whether this is a name of the domain name system, its labels parted by dots."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_hostname(text: str) -> bool:
    """Whether this can be a pod's host name."""
    return len(text) <= 63 and re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", text) is not None


def is_variable(name: str) -> bool:
    """Whether a variable may have this name."""
    return _VARIABLE.fullmatch(name) is not None


def holds_password(text: str) -> bool:
    """Whether a value looks as if a password stood in it."""
    return _PASSWORD.search(text) is not None


def command_holds_password(words: Iterable[str]) -> bool:
    """The same of a command; where it takes it from a variable it does not hold it."""
    line = _REFERENCE.sub("", " ".join(words))
    return holds_password(line) or _PASSWORD_OPTION.search(line) is not None


def file_holds_password(content: bytes) -> bool:
    """The same of a file, where it is text."""
    try:
        return _PASSWORD_IN_FILE.search(content.decode()) is not None
    except UnicodeDecodeError:
        return False


def data_key(wanted: str) -> str:
    """A key of a ConfigMap or Secret, another for each: ``a/b.yml`` -> ``a__b.yml``."""
    key = re.sub(r"[^-._a-zA-Z0-9]", "_", wanted.replace("/", "__"))
    if key.replace("__", "/") == wanted and len(key) <= _LONGEST_KEY:
        return key
    return f"{_digest(wanted)}-{key[-_LONGEST_KEY + 9 :]}"


def literal(text: str) -> str:
    """A text in which Kubernetes finds no ``$(VARIABLE)``: it reads ``$$`` as ``$``, and ``$(`` as a reference."""
    return _OPERATORS.sub(lambda found: found[0] * 2, text)


def cpus(count: float) -> str:
    """An amount of processors: 0.5 -> ``500m``."""
    return str(int(count)) if count == int(count) else f"{max(1, round(count * 1000))}m"


def size(count: int) -> str:
    """An amount of bytes: 268435456 -> ``256Mi``."""
    for unit, power in (("Gi", 30), ("Mi", 20), ("Ki", 10)):
        if count and count % (1 << power) == 0:
            return f"{count >> power}{unit}"
    return str(count)


def to_yaml(documents: Iterable[Mapping[str, Any]]) -> str:
    """The documents as one YAML file, their keys in the order given."""
    return "".join(
        "---\n"
        + yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, line_break="\n")
        for document in documents
    )


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such; what another reader of YAML could take for a number stands in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None
    if "\n" in text.rstrip("\n") and not re.search(r"[ \t]\n|[^\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]", text):
        style = "|"
    elif re.match(r"[-+.0-9]|[yYnN]$", text):  # 1e3 is a number for Kubernetes and a text for PyYAML
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

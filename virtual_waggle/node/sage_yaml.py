# SPDX-License-Identifier: Apache-2.0
"""sage.yaml, which describes a plugin as Sage's Edge Code Repository wants it."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from groundwork import documents

FILE = "sage.yaml"
ARCHITECTURES = ("linux/amd64", "linux/arm64", "linux/arm/v7")

_TEXT = {"type": "string"}
_PATH = {"type": "string", "pattern": "^[^/].*$", "description": "a path below the folder of sage.yaml"}
_TEXTS = {"type": ["string", "array"], "items": _TEXT}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "description", "version", "source"],
    "properties": {
        "name": {
            "type": "string",
            "pattern": "^[a-z0-9]+([._-][a-z0-9]+)*$",
            "maxLength": 128,
            "description": "small letters and digits, joined by - _ or .",
        },
        "description": {"type": "string", "minLength": 1},
        "version": {
            "type": "string",
            "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
            "description": "a text such as 0.1.0; a number such as 1.0 stands in quotes",
        },
        "namespace": _TEXT,
        "keywords": _TEXTS,
        "authors": _TEXTS,
        "collaborators": _TEXTS,
        "funding": _TEXTS,
        "license": _TEXT,
        "homepage": _TEXT,
        "source": {
            "type": "object",
            "additionalProperties": False,
            "required": ["architectures", "url"],
            "properties": {
                "architectures": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "enum": list(ARCHITECTURES)},
                },
                "url": _TEXT,
                "branch": _TEXT,
                "tag": _TEXT,
                "git_commit": _TEXT,
                "directory": _PATH,
                "dockerfile": _PATH,
                "build_args": {
                    "type": "object",
                    "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                    "additionalProperties": {"type": ["string", "number", "boolean"]},
                },
            },
        },
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "type"],
                "properties": {"id": _TEXT, "type": _TEXT, "description": _TEXT, "default": {}},
            },
        },
        "resources": {"type": ["array", "object"]},
        "metadata": {"type": "object"},
        "testing": {"type": "object"},
    },
}


@dataclass(frozen=True)
class PluginSource:
    """How a plugin is built.  ``context`` and ``dockerfile`` exist."""

    name: str
    version: str
    context: Path
    dockerfile: Path
    architectures: tuple[str, ...]
    build_args: tuple[tuple[str, str], ...]

    @property
    def tag(self) -> str:
        """The image's name."""
        return f"{self.name}:{self.version}"


def load(folder: Path) -> PluginSource:
    """What a plugin's folder says of itself.  Raises InputError with file, line and key for what is wrong."""
    document = documents.load(folder / FILE, SCHEMA)
    data = document.data
    source = data["source"]
    for key in ("directory", "dockerfile"):
        if ".." in PurePosixPath(source.get(key, ".")).parts:
            raise document.error(["source", key], "leads out of the folder of sage.yaml")
    # sage.yaml stands at the repository's top, or in the very folder that `directory` names
    below = folder / source.get("directory", ".")
    name = source.get("dockerfile", "Dockerfile")
    for context in (below, folder):
        if (context / name).is_file():
            break
    else:
        keys = ["source", "dockerfile"] if "dockerfile" in source else ["source"]
        raise document.error(keys, f"there is no {below / name}")
    arguments = source.get("build_args") or {}
    return PluginSource(
        data["name"],
        data["version"],
        context.resolve(),
        (context / name).resolve(),
        tuple(source["architectures"]),
        tuple((key, _text(value)) for key, value in arguments.items()),
    )


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

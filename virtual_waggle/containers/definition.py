# SPDX-License-Identifier: Apache-2.0
"""What container images there are: ``stacks/images.yaml`` as values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundwork import documents

STANDARD = Path(__file__).parents[1] / "stacks/images.yaml"


@dataclass(frozen=True)
class User:
    """An account of a container; its number is also its group's."""

    name: str
    id: int
    home: str


@dataclass(frozen=True)
class Layer:
    """Packages unpacked over each other, and what their scripts would have added.

    ``users`` are accounts beside the distribution's own; ``folders`` maps a path to its owner; ``links`` a path to
    what it points at; ``files`` a path to its text.  ``without`` are patterns of paths that are left out, with all
    below them.
    """

    packages: tuple[str, ...]
    users: tuple[User, ...] = ()
    folders: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """A container image: the base layer and one of its own, and how a container of it starts.

    ``project`` adds a third layer: this project's Python packages and commands.
    """

    name: str
    layer: Layer
    project: bool
    user: str
    environment: tuple[tuple[str, str], ...]
    command: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """All images.  ``absent`` are packages that count as installed and are left out, with what they alone need."""

    absent: tuple[str, ...]
    base: Layer
    images: tuple[Image, ...]

    def layers(self) -> dict[str, tuple[str, ...]]:
        """Layer's name (``base`` or the image's) -> all packages that are to be there, those below included."""
        found = {"base": self.base.packages}
        for image in self.images:
            found[image.name] = (*self.base.packages, *image.layer.packages)
        return found


_PACKAGES = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[a-z0-9][a-z0-9.+-]+$"}}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_BY_PATH = {**_TEXTS, "propertyNames": {"pattern": "^/[^/]"}}
_LAYER: dict[str, Any] = {
    "packages": _PACKAGES,
    "users": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "additionalProperties": False,
            "required": ["id", "home"],
            "properties": {
                "id": {"type": "integer", "minimum": 900, "maximum": 999},
                "home": {"type": "string", "pattern": "^/"},
            },
        },
    },
    "folders": _BY_PATH,
    "links": _BY_PATH,
    "files": _BY_PATH,
    "without": {"type": "array", "items": {"type": "string", "pattern": "^/usr/"}},
}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["base", "images"],
    "properties": {
        "absent": _PACKAGES,
        "base": {"type": "object", "additionalProperties": False, "required": ["packages"], "properties": _LAYER},
        "images": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z0-9]+(/[a-z0-9-]+)?$"},
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["packages", "command"],
                "properties": {
                    **_LAYER,
                    "project": {"type": "boolean"},
                    "user": {"type": "string"},
                    "environment": _TEXTS,
                    "command": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                },
            },
        },
    },
}


def load(path: Path = STANDARD) -> Definition:
    """Read the images' file.  Raises InputError with file, line and key for what is wrong in it."""
    document = documents.load(path, SCHEMA)
    data = document.data
    images = []
    for name, row in data["images"].items():
        layer = _layer(row)
        known = {"root"} | {user.name for user in layer.users}
        for key, owner in [("user", row.get("user", "root")), *((f"folders.{p}", who) for p, who in layer.folders)]:
            if owner not in known:
                raise document.error(["images", name], f"{key}: the image has no user {owner!r}")
        images.append(
            Image(
                name=name,
                layer=layer,
                project=row.get("project", False),
                user=row.get("user", "root"),
                environment=tuple(row.get("environment", {}).items()),
                command=tuple(row["command"]),
            )
        )
    return Definition(tuple(data.get("absent", ())), _layer(data["base"]), tuple(images))


def _layer(row: dict[str, Any]) -> Layer:
    return Layer(
        packages=tuple(row["packages"]),
        users=tuple(User(name, **fields) for name, fields in row.get("users", {}).items()),
        folders=tuple(row.get("folders", {}).items()),
        links=tuple(row.get("links", {}).items()),
        files=tuple(row.get("files", {}).items()),
        without=tuple(row.get("without", ())),
    )

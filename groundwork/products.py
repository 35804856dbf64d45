# SPDX-License-Identifier: Apache-2.0
"""What one stage hands to the next: frozen dataclasses, written to and read from JSON by cattrs."""

import json
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from groundwork import files
from groundwork.errors import InputError

Product = TypeVar("Product")

_LARGEST = 64 << 20  # bytes; a manifest of 3,000 packages has 0.5 MB
_converter = cattrs.Converter()
_converter.register_unstructure_hook(Path, str)
_converter.register_structure_hook(Path, lambda value, _: Path(value))


def to_data(product: Any) -> Any:
    """The product as dicts, lists, texts and numbers."""
    return _converter.unstructure(product)


def to_text(product: Any) -> str:
    """The product as JSON."""
    return json.dumps(to_data(product), indent=2) + "\n"


def save(product: Any, path: Path) -> None:
    """Write the product as JSON, whole or not at all."""
    files.write_text(path, to_text(product))


def load(kind: type[Product], path: Path) -> Product:
    """Read a product back.  Raises InputError where the file is none of that kind."""
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is too large to be a {kind.__name__.lower()}")
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    return parse(kind, text, str(path))


def parse(kind: type[Product], text: bytes, origin: str) -> Product:
    """A product out of its JSON.  Raises InputError, which names ``origin``, where it is none of that kind."""
    name = kind.__name__.lower()
    try:
        return _converter.structure(json.loads(text), kind)
    except (ValueError, RecursionError):
        raise InputError(f"{origin} is not JSON; expected a {name}") from None
    except Exception as error:  # cattrs raises groups of whatever a field's conversion raised
        reasons = "; ".join(cattrs.transform_error(error, path="top"))
        raise InputError(f"{origin} is not a {name}: {reasons}") from None

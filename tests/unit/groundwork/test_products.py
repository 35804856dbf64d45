# SPDX-License-Identifier: Apache-2.0
"""A product comes back from its file as it was; anything else is refused with a reason."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from groundwork import products
from groundwork.compat import StrEnum
from groundwork.errors import InputError


class Color(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    color: Color
    size: int


@dataclass(frozen=True)
class Whole:
    path: Path
    parts: tuple[Part, ...]
    note: str | None
    times: dict[str, float]


def test_there_and_back(tmp_path: Path) -> None:
    whole = Whole(tmp_path, (Part(Color.RED, 1), Part(Color.RED, 2)), None, {"a": 0.5})
    products.save(whole, tmp_path / "whole.json")
    assert products.load(Whole, tmp_path / "whole.json") == whole


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("\x00\x01", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a whole"),
        ('{"path": "x"}', "parts"),
        ('{"path": "x", "parts": [{"color": "blue", "size": 1}], "note": null, "times": {}}', "parts"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "whole.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        products.load(Whole, path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)

# SPDX-License-Identifier: Apache-2.0
"""The documents lead to what is there."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
DOCUMENTS = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_every_element_is_explained() -> None:
    text = (PROJECT / "docs/images.md").read_text()
    for folder in (PROJECT / "elements").iterdir():
        assert f"`{folder.name}`" in text, folder.name

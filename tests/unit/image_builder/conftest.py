# SPDX-License-Identifier: Apache-2.0
"""Small variants and elements of a test's own."""

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Folders:
    """A folder of variants and one of elements, to be filled by the test."""

    variants: Path
    elements: Path

    def variant(self, name: str, text: str) -> Path:
        path = self.variants / f"{name}.yaml"
        path.write_text(text)
        return path

    def element(self, name: str, *, deps: str = "", settings: str = "") -> Path:
        folder = self.elements / name
        (folder / "install.d").mkdir(parents=True)
        (folder / "install.d" / f"50-{name}").write_text("#!/bin/bash\n")
        if deps:
            (folder / "element-deps").write_text(deps)
        if settings:
            (folder / "settings.yaml").write_text(settings)
        return folder


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "variants", tmp_path / "elements")
    made.variants.mkdir()
    made.elements.mkdir()
    made.element("layer", deps="package-installs\n")  # every recipe has these two
    made.element("layer-above", deps="layer\n")
    return made


BASE = """\
description: the least
image_name: "Sage-{os}{version}-Base{arch}"
elements: [one]
packages: [curl]
settings: {SAGE_KEY: abc}
checks:
- name: first
  run: "true"
- name: second
  probe: ssh-root-refused
  timeout: 5
"""

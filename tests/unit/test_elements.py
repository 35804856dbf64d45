# SPDX-License-Identifier: Apache-2.0
"""What holds for every element and variant, without building one.

The rules for scripts are those of diskimage-builder's ``dib-lint``, which can be run over ``elements/`` as well.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import diskimage_builder.paths
import pytest
import yaml
from jsonschema import Draft202012Validator

from image_builder import variant

ROOT = Path(__file__).parents[2]
OURS = ROOT / "elements"
STOCK = Path(diskimage_builder.paths.get_path("elements"))
ELEMENTS = sorted(path for path in OURS.iterdir() if path.is_dir())
FILES = sorted(path for path in OURS.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.read_bytes().startswith(b"#!")]
HOOKS = ("block-device.d", "cleanup.d", "extra-data.d", "finalise.d", "install.d", "post-install.d", "post-root.d",
         "pre-finalise.d", "pre-install.d", "root.d")  # fmt: skip
OUTSIDE = ("block-device.d", "cleanup.d", "extra-data.d", "post-root.d", "pre-finalise.d", "root.d")


def name(path: Path) -> str:
    return str(path.relative_to(OURS))


def dependencies(element: Path) -> list[str]:
    listed = element / "element-deps"
    return listed.read_text().split() if listed.exists() else []


@pytest.mark.parametrize("element", ELEMENTS, ids=name)
def test_an_element_says_what_it_is_for(element: Path) -> None:
    title, text, below, *rest = (element / "README.rst").read_text().splitlines()
    assert (title, text, below) == ("=" * len(element.name), element.name, "=" * len(element.name))
    assert any(line.strip() for line in rest)


@pytest.mark.parametrize("element", ELEMENTS, ids=name)
def test_dependencies_are_there_and_sorted(element: Path) -> None:
    names = dependencies(element)
    assert names == sorted(set(names))
    assert [word for word in names if not (OURS / word).is_dir() and not (STOCK / word).is_dir()] == []
    if (element / "package-installs.yaml").exists():
        assert "package-installs" in names


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_are_tidy(path: Path) -> None:
    text = path.read_text()
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\t" not in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_keep_the_rules_of_dib_lint(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert os.access(path, os.X_OK)
    assert lines[1] == "# SPDX-License-Identifier: Apache-2.0"
    assert "set -eu" in lines
    assert not re.search(r"^[^#]*\b(sudo|which) ", text, re.MULTILINE)
    assert not re.search(r"export .*\$\(", text)
    if lines[0] != "#!/bin/sh":
        assert lines[0] == "#!/bin/bash"
        assert "set -o pipefail" in lines
        assert 'if [ "${DIB_DEBUG_TRACE:-0}" -gt 0 ]; then' in lines
    assert [line for line in lines if re.match(r"( {4})* {1,3}\S", line)] == []


def test_hooks_are_scripts_and_environment_files_are_not() -> None:
    for path in FILES:
        if path.parent.name in HOOKS:
            assert path in SCRIPTS, path
            assert re.fullmatch(r"\d\d-[a-z-]+", path.name), "dib-run-parts passes over other names"
        if path.parent.name == "environment.d":
            assert not os.access(path, os.X_OK), path
            assert "set -x" not in path.read_text()


def test_no_two_elements_have_a_file_of_one_name() -> None:
    """diskimage-builder puts the hooks of all elements into one folder."""
    counts = Counter(str(path.relative_to(OURS / path.relative_to(OURS).parts[0])) for path in FILES
                     if path.parent.parent != OURS)  # fmt: skip
    assert [file for file, count in counts.items() if count > 1] == []
    stock = {f"{path.parent.name}/{path.name}" for path in STOCK.glob("*/*.d/*")}
    assert stock & counts.keys() == set()


def test_what_runs_in_the_chroot_reads_no_path_of_the_host() -> None:
    for path in SCRIPTS:
        if path.parent.name in HOOKS and path.parent.name not in OUTSIDE:
            assert not re.search(r"TMP_(MOUNT|HOOKS|BUILD)|TARGET_ROOT|SAGE_(TREE|PAYLOAD)", path.read_text()), path


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "package-installs.yaml"], ids=name)
def test_packages_name_only_what_diskimage_builder_knows(path: Path) -> None:
    packages: dict[str, Any] = yaml.safe_load(path.read_text())
    assert list(packages) == sorted(packages)
    for options in packages.values():
        assert set(options or {}) <= {"arch", "not-arch", "phase", "when"}


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "pkg-map"], ids=name)
def test_package_maps_are_of_this_elements_packages(path: Path) -> None:
    maps = json.loads(path.read_text())
    assert set(maps) <= {"default", "distro", "family", "release"}
    wanted = set(yaml.safe_load((path.parent / "package-installs.yaml").read_text()))
    levels = [maps.get("default", {}), *maps.get("distro", {}).values(), *maps.get("family", {}).values()]
    levels += [row for releases in maps.get("release", {}).values() for row in releases.values()]
    for row in levels:
        assert set(row) <= wanted


def test_settings_are_described_and_have_defaults_that_are_right() -> None:
    known: set[str] = set()
    for path in OURS.glob("*/settings.yaml"):
        settings = yaml.safe_load(path.read_text())
        Draft202012Validator.check_schema({"properties": settings})
        for key, schema in settings.items():
            assert key.startswith("SAGE_")
            assert schema["description"]
            Draft202012Validator(schema).validate(schema["default"])
            used = "".join(file.read_text() for file in path.parent.rglob("*") if file.is_file())
            assert f"${{{key}:" in used, "an element works without its settings"
        assert not known & settings.keys()
        known |= settings.keys()


@pytest.mark.parametrize("found", sorted(variant.available([ROOT / "variants"])))
def test_variants_are_whole(found: str) -> None:
    loaded = variant.load(found, [ROOT / "variants"])
    elements = {path.name for path in ELEMENTS} | {path.name for path in STOCK.iterdir()}
    assert [element for element in loaded.elements if element not in elements] == []
    assert len({check.name for check in loaded.checks}) == len(loaded.checks)
    assert loaded.checks


def test_sage_keeps_what_base_promises() -> None:
    base, sage = (variant.load(found, [ROOT / "variants"]) for found in ("base", "sage"))
    assert set(base.elements) < set(sage.elements)
    assert {check.name for check in base.checks} < {check.name for check in sage.checks}


def test_names_are_of_the_form_that_users_know() -> None:
    base, sage = (variant.load(found, [ROOT / "variants"]) for found in ("base", "sage"))
    assert sage.image_name.format(os="Ubuntu", version="24.04", arch="") == "Sage-Ubuntu24.04"
    assert sage.image_name.format(os="Ubuntu", version="24.04", arch="-ARM64") == "Sage-Ubuntu24.04-ARM64"
    assert base.image_name.format(os="Debian", version="12", arch="") == "Sage-Debian12-Base"

# SPDX-License-Identifier: Apache-2.0
"""Workflows call what is there, hold no secrets and can't run twice at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
WORKFLOWS = sorted((PROJECT / ".github/workflows").glob("*.yml"))


def load(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    return data


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    words = [line.split() for step in steps(path) for line in step.get("run", "").splitlines()]
    targets = {word for line in words if "make" in line for word in line[line.index("make") + 1 :]}
    assert targets
    for target in targets:
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_rights_are_least_and_jobs_end(path: Path) -> None:
    data = load(path)
    assert data["permissions"] == {"contents": "read"}
    assert "concurrency" in data
    for job in data["jobs"].values():
        assert job["timeout-minutes"] <= 180


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_secrets_come_by_the_environment_alone(path: Path) -> None:
    for step in steps(path):
        assert "${{" not in step.get("run", ""), "an expression in a script is code from outside"
        for value in step.get("with", {}).values():
            assert "secrets." not in str(value)


def test_the_nightly_uses_flags_that_exist() -> None:
    from image_builder import settings

    (script,) = [
        step["run"]
        for step in steps(PROJECT / ".github/workflows/nightly.yml")
        if "create-image" in step.get("run", "")
    ]
    flags = {word for word in script.split("create-image", 1)[1].split() if word.startswith("--")}
    assert flags <= {setting.flag for setting in settings.CREATE_IMAGE}

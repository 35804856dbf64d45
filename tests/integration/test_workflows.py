# SPDX-License-Identifier: Apache-2.0
"""The workflows pass real linters, and the nightly's scripts do what they are for, run here step by step.

What is a stand-in: ``sudo`` (this is root already; it hands on no more of the environment than sudo would), GitHub's
expressions, its actions, a finished build of a small variant in place of a build of hours, and the canary's boot.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from image_builder import catalog
from local_chameleon.cloud import State
from tests.integration import commands
from tests.integration.nights import House, image_name

PROJECT = Path(__file__).parents[2]
SITES = ("CHI@UC", "CHI@TACC", "KVM@TACC")
NIGHTLY = PROJECT / ".github/workflows/nightly.yml"
# Like sudo: an environment of its own, but for what --preserve-env names.
SUDO = """#!/bin/bash
kept=()
if [[ "$1" == --preserve-env=* ]]; then
    IFS=, read -ra names <<< "${1#*=}"
    for name in "${names[@]}"; do
        if [[ -v "$name" ]]; then kept+=("$name=${!name}"); fi
    done
    shift
fi
exec env -i PATH="$PATH" HOME="$HOME/root" "${kept[@]}" "$@"
"""


def linter(name: str, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([commands.command(name), *words], capture_output=True, text=True, timeout=120)


SCHEMA = ("--builtin-schema", "vendor.github-workflows")


def test_real_linters_find_nothing() -> None:
    done = linter("zizmor", "--offline", "--quiet", NIGHTLY.parent)
    assert done.returncode == 0, done.stdout
    done = linter("check-jsonschema", *SCHEMA, *NIGHTLY.parent.glob("*.yml"))
    assert done.returncode == 0, done.stdout


def test_the_linters_see_what_is_wrong(tmp_path: Path) -> None:
    text = NIGHTLY.read_text()
    (tmp_path / "tag.yml").write_text(re.sub(r"(actions/checkout)@\S+", r"\1@v4", text))
    (tmp_path / "key.yml").write_text(text.replace("timeout-minutes: 120", "timeout-minuts: 120"))
    assert "unpinned-uses" in linter("zizmor", "--offline", tmp_path / "tag.yml").stdout
    assert "timeout-minuts" in linter("check-jsonschema", *SCHEMA, tmp_path / "key.yml").stdout


@dataclass(frozen=True)
class Runner:
    """What a job of the workflow sees: a clone, a temporary folder, the values of GitHub's expressions."""

    clone: Path
    folder: Path
    values: dict[str, str]

    def run(self, name: str) -> "subprocess.CompletedProcess[str]":
        """Run a step's script as GitHub does: ``bash -e``, in the clone, with the step's environment."""
        (step,) = [step for step in steps() if step.get("name") == name]
        for file in ("output", "summary"):
            (self.folder / file).touch()
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "RUNNER_TEMP": str(self.folder / "temp"),
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            **{key: self.value(text) for key, text in step.get("env", {}).items()},
        }
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        return subprocess.run(words, cwd=self.clone, env=env, capture_output=True, text=True, timeout=600)

    def value(self, text: str) -> str:
        """A text with its expressions replaced; one that is not known is an error."""
        return re.sub(r"\$\{\{ *(.*?) *\}\}", lambda found: self.values[found.group(1)], text)

    def outputs(self) -> list[str]:
        return (self.folder / "output").read_text().splitlines()


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(NIGHTLY.read_text())["jobs"]["publish"]["steps"]
    return found


@pytest.fixture
def runner(tmp_path: Path, local_chameleon: State) -> Runner:
    clone = tmp_path / "clone"
    clone.mkdir()
    listed: list[str | Path] = ["git", "-C", PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (PROJECT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, clone / name, follow_symlinks=False)
    # `make setup` would put a command there that runs the clone's own code.
    program = clone / ".venv/bin/create-image"
    program.parent.mkdir(parents=True)
    start = f"import sys; sys.path.insert(0, {str(clone)!r}); from image_builder.create_image import main; main()"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -c "{start}" "$@"\n')
    sudo = tmp_path / "bin/sudo"
    sudo.parent.mkdir()
    sudo.write_text(SUDO)
    for path in (program, sudo):
        path.chmod(0o755)
    (tmp_path / "temp").mkdir()
    config = tmp_path / "root/.config/sage-chameleon/config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("""canary-command: sh -c 'test -n "$SAGE_CANARY_SITE"'\n""")
    values = {
        "secrets.CLOUDS_YAML": Path(local_chameleon.clouds_yaml).read_text(),
        "vars.SITES || 'CHI@UC,CHI@TACC,KVM@TACC'": "CHI@UC,CHI@TACC,KVM@TACC",
        "github.server_url": "https://github.example",
        "github.workflow_ref": "owner/name/.github/workflows/nightly.yml@refs/heads/main",
        "matrix.variant": "tiny",
        "matrix.release": "bookworm",
        "matrix.arch": "amd64",
    }
    return Runner(clone, tmp_path, values)


@pytest.fixture
def tiny(runner: Runner, local_chameleon: State) -> Iterator[House]:
    """The variant ``tiny`` in the clone, with a build of it where the workflow builds."""
    house = House(runner.clone)
    house.variant("tiny")
    house.build("tiny", runner.clone / "cache")
    yield house
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(local_chameleon.clouds_yaml)
    for site in SITES:
        connection = cloud.connect(load_sites()[site])
        for image in catalog.list_ours(connection, image_name("tiny")):
            catalog.delete(connection, image.id)


def published(state: State) -> dict[str, list[str]]:
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(state.clouds_yaml)
    name = image_name("tiny")
    return {
        site: [image.name for image in catalog.list_ours(cloud.connect(load_sites()[site]), name)] for site in SITES
    }


@pytest.mark.usefixtures("tiny")
def test_the_publishing_step_publishes_to_all_sites_and_leaves_no_secret(
    runner: Runner, local_chameleon: State
) -> None:
    done = runner.run("Build, boot, publish")
    assert done.returncode == 0, done.stderr
    assert published(local_chameleon) == {site: [image_name("tiny")] for site in SITES}
    assert list((runner.folder / "temp").iterdir()) == [], "clouds.yaml is gone"
    report = json.loads((runner.clone / "report.json").read_text())
    rows = report["publications"][0]["sites"]
    assert [row["outcome"] for row in rows] == ["published"] * 3
    assert [row["canary"]["verdict"] for row in rows] == ["pass"] * 3
    assert f"| {image_name('tiny')} |" in (runner.folder / "summary").read_text()
    secrets = re.findall(r"application_credential_secret: *(\S+)", runner.values["secrets.CLOUDS_YAML"])
    assert secrets
    told = done.stdout + done.stderr + (runner.clone / "report.json").read_text()
    for path in [*runner.clone.rglob("*.log"), runner.folder / "summary"]:
        told += path.read_text()
    assert not any(secret in told for secret in secrets)


@pytest.mark.usefixtures("tiny")
def test_a_publishing_step_that_fails_says_so_and_leaves_no_secret_either(
    runner: Runner, local_chameleon: State
) -> None:
    document = yaml.safe_load(runner.values["secrets.CLOUDS_YAML"])
    document["clouds"]["chi_uc"]["auth"]["auth_url"] = "http://127.0.0.1:9/v3"
    runner.values["secrets.CLOUDS_YAML"] = yaml.safe_dump(document)
    done = runner.run("Build, boot, publish")
    assert done.returncode == 3
    assert list((runner.folder / "temp").iterdir()) == []
    assert "connection refused" in (runner.folder / "summary").read_text()
    assert published(local_chameleon)["CHI@TACC"] == [image_name("tiny")]


def test_clouds_yaml_can_be_read_by_nobody_else_while_it_is_there(runner: Runner) -> None:
    program = runner.clone / ".venv/bin/create-image"
    program.write_text('#!/bin/bash\nstat --format %a "$OS_CLIENT_CONFIG_FILE"; env; exit 5\n')
    done = runner.run("Build, boot, publish")
    assert done.returncode == 5
    mode, *environment = (runner.clone / "report.json").read_text().splitlines()
    assert mode == "600"
    assert not any(line.startswith("CLOUDS_YAML=") for line in environment)
    assert list((runner.folder / "temp").iterdir()) == []


def test_layers_come_back_as_they_were(runner: Runner) -> None:
    tree = runner.clone / "cache/layers" / ("a" * 64) / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/shadow").write_text("root:*\n")
    (tree / "etc/shadow").chmod(0o640)
    os.chown(tree / "etc/shadow", 0, 42)
    os.setxattr(tree / "etc", "user.overlay.opaque", b"y")
    os.mknod(tree / "gone", stat.S_IFCHR | 0o600, os.makedev(0, 0))  # what overlayfs takes for "removed"
    os.setxattr(tree / "etc/shadow", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (runner.clone / "cache/layers/.in-the-making").mkdir()

    empty = f"layers={hashlib.sha256().hexdigest()[:16]}"
    (runner.clone / "cache").rename(runner.clone / "built")
    assert runner.run("Unpack the layers").returncode == 0, "where there is no cache yet, too"
    assert runner.outputs() == [empty]
    shutil.rmtree(runner.clone / "cache/layers", ignore_errors=True)
    (runner.clone / "built/layers").rename(runner.clone / "cache/layers")
    assert runner.run("Pack the layers").returncode == 0
    assert runner.outputs()[1] != empty, "so that they are kept"

    # The next night, on another machine.
    shutil.rmtree(runner.clone / "cache")
    (runner.folder / "output").write_text("")
    assert runner.run("Unpack the layers").returncode == 0
    assert not (runner.clone / "layers.tar.zst").exists()
    found = (tree / "etc/shadow").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 0, 42)
    assert os.getxattr(tree / "etc", "user.overlay.opaque") == b"y"
    assert len(os.getxattr(tree / "etc/shadow", "security.capability")) == 20
    assert stat.S_ISCHR((tree / "gone").stat().st_mode)
    assert [path.name for path in (runner.clone / "cache/layers").iterdir()] == ["a" * 64]
    assert runner.run("Pack the layers").returncode == 0
    assert len(set(runner.outputs())) == 1, "nothing new is kept where no layer is new"
    assert not (runner.clone / "layers.tar.zst").exists()


def test_a_cache_that_is_damaged_is_passed_over(runner: Runner) -> None:
    (runner.clone / "layers.tar.zst").write_bytes(b"no archive")
    assert runner.run("Unpack the layers").returncode == 0
    assert list((runner.clone / "cache/layers").iterdir()) == []


def test_what_is_kept_begins_with_what_is_asked_for() -> None:
    (restored,) = [step["with"] for step in steps() if "cache/restore@" in step.get("uses", "")]
    (saved,) = [step["with"] for step in steps() if "cache/save@" in step.get("uses", "")]
    assert saved["key"].startswith(restored["restore-keys"])
    assert saved["path"] == restored["path"]
    assert not saved["key"].startswith(restored["key"])

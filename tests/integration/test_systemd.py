# SPDX-License-Identifier: Apache-2.0
"""The units that are shipped for nights, as systemd itself reads them."""

import re
import shlex
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from groundwork import process
from image_builder import hooks, nightly, settings
from image_builder.cli import read_values
from tests.integration import commands

PACKAGING = Path(__file__).parents[2] / "packaging"
UNITS = PACKAGING / "systemd"


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def verified(folder: Path) -> "subprocess.CompletedProcess[str]":
    if process.find("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    units = sorted(folder.glob("*.*"))
    return subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for path in UNITS.iterdir():
        # Where this program is installed differs; systemd looks whether it is there.
        text = path.read_text().replace("/opt/sage-chameleon/bin", str(commands.command("sage-image").parent))
        (tmp_path / path.name).write_text(text)
    done = verified(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    service = tmp_path / "sage-nightly.service"
    service.write_text(service.read_text().replace("Type=oneshot", "Type=onceshot"))
    assert "onceshot" in verified(tmp_path).stderr, "what is wrong is seen"


def test_the_service_uses_flags_and_variables_that_exist() -> None:
    words = shlex.split(unit("sage-nightly.service")["Service"]["ExecStart"])
    assert Path(words[0]).name == "sage-image"
    assert words[1:3] == ["nightly", "--config"]
    text = (UNITS / "sage-nightly.service").read_text()
    named = set(re.findall("SAGE_[A-Z_]+", text))
    assert named == {"SAGE_STATE_DIR", "SAGE_OUTPUT_DIR", "SAGE_CACHE_DIR"}
    assert named <= {setting.variable for setting in settings.NIGHTLY}


def test_the_timer_goes_each_night_and_makes_up_for_one_that_was_missed() -> None:
    timer = unit("sage-nightly.timer")["Timer"]
    assert timer["Persistent"] == "true"
    done = subprocess.run(["systemd-analyze", "calendar", timer["OnCalendar"]], capture_output=True, timeout=60)
    assert done.returncode == 0


def test_the_examples_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    values = read_values(settings.NIGHTLY, Namespace(config=str(PACKAGING / "nightly.yaml")), nightly.SCHEMA)
    orders = nightly.read_orders({**values, **nightly._EVERY_NIGHT})
    assert [order.recipe.image_name for order in orders] == [
        "Sage-Ubuntu24.04-Base",
        "Sage-Ubuntu24.04",
        "Sage-Ubuntu24.04-CUDA",
    ]
    (tmp_path / "smtp-password").write_text("secret")
    (tmp_path / "smtp-password").chmod(0o600)
    text = (PACKAGING / "hooks.yaml").read_text().replace("/etc/sage-chameleon", str(tmp_path))
    (tmp_path / "hooks.yaml").write_text(text)
    monkeypatch.setenv("SLACK_WEBHOOK_URL", "https://hooks.example.org/x")
    assert [hook.name for hook in hooks.load(tmp_path / "hooks.yaml")] == ["operators", "chat", "journal"]

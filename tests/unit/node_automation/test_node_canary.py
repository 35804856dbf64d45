# SPDX-License-Identifier: Apache-2.0
"""The canary on a leased node: what it tries, and what a silent node says."""

from dataclasses import replace
from pathlib import Path

import pytest

from image_builder import cli, variant
from image_builder.canary import Verdict
from image_builder.variant import Arch
from node_automation import canary
from node_automation.diagnose import Diagnosis, Finding, Stage
from tests.unit.image_builder.test_canary import CANDIDATE
from tests.unit.node_automation.site import UC


def silent(stage: Stage) -> Diagnosis:
    return Diagnosis("canary-11111111-blank-1", (Finding(stage, False, "no"),))


@pytest.mark.parametrize("stage", [Stage.SERVER, Stage.PORT, Stage.FLOATING_IP, Stage.ROUTE])
def test_what_the_site_has_to_do_says_nothing_of_the_image(stage: Stage) -> None:
    assert canary.judge(silent(stage), 1) is Verdict.INCONCLUSIVE
    assert canary.judge(silent(stage), 2) is Verdict.INCONCLUSIVE


def test_a_node_that_stays_silent_is_tried_twice() -> None:
    assert canary.judge(silent(Stage.PORT_22), 1) is None
    assert canary.judge(silent(Stage.PORT_22), 2) is Verdict.FAIL


@pytest.mark.parametrize("stage", [Stage.BANNER, Stage.KEY, Stage.USER, Stage.CLOUD_INIT])
def test_a_node_that_answers_wrongly_fails(stage: Stage) -> None:
    assert canary.judge(silent(stage), 1) is Verdict.FAIL


def test_a_node_that_answers_after_all_is_no_verdict() -> None:
    assert canary.judge(Diagnosis("x", ()), 1) is Verdict.INCONCLUSIVE


def test_one_node_is_leased_for_the_candidate() -> None:
    made = canary.experiment_for(replace(CANDIDATE, arch="arm64"), UC, ["compute_arm64"], 7200)
    (group,) = made.groups
    assert (made.name, group.number, group.image) == ("canary-11111111", 1, CANDIDATE.image_id)
    assert (group.role.arch, made.seconds) == (Arch.ARM64, 7200)


def test_checks_that_need_an_emulator_are_left_out_and_no_others() -> None:
    checks = variant.load("base", [cli.project_folder("variants")]).checks
    left_out = [check.name for check in checks if not canary.holds_on_a_node(check)]
    assert len(left_out) == 5
    assert "cc is uid 1000 with passwordless sudo" not in left_out
    assert all(check.emulated for check in checks if check.name in left_out)
    assert not [check.name for check in checks if check.run and "openstack/latest" in check.run and not check.emulated]


def test_the_command_is_told_wrong_words_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert canary._canary(["--config", str(tmp_path / "nothing.yaml")]) == 75
    assert '"verdict": "inconclusive"' in capsys.readouterr().out

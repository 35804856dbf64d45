# SPDX-License-Identifier: Apache-2.0
"""Diagnosis: the stages in their order, the first that fails, and what to do next."""

from typing import Any, NoReturn

import pytest

from chameleon_sites.cloud import SiteError
from node_automation import diagnose, server
from node_automation.diagnose import Diagnosis, Fault, NotReady, Stage
from tests.unit.node_automation.site import FakeSite, nova_error, server_row

PORT = {"id": "p1", "status": "ACTIVE", "fixed_ips": [{"ip_address": "10.0.0.2"}]}
IP = {"id": "f1", "floating_ip_address": "192.5.87.3", "port_id": "p1", "status": "ACTIVE"}


def passing(stage: Stage) -> Any:
    return lambda: f"{stage} is well"


def failing(words: str) -> Any:
    def probe() -> NoReturn:
        raise Fault(words, hint="mend it")

    return probe


@pytest.mark.parametrize("broken", list(Stage))
def test_the_first_stage_that_fails_is_named_and_no_later_one_is_looked_at(broken: Stage) -> None:
    looked: list[Stage] = []

    def probe(stage: Stage) -> Any:
        def look() -> str:
            looked.append(stage)
            return failing("it is broken")() if stage is broken else "well"

        return look

    found = diagnose.examine("n", {stage: probe(stage) for stage in Stage}, lambda: "the console")
    assert looked == list(Stage)[: list(Stage).index(broken) + 1]
    assert found.failed is not None
    assert (found.failed.stage, found.failed.said, found.failed.next) == (broken, "it is broken", "mend it")
    assert found.console == "the console"
    assert str(found) == f"n: {broken}: it is broken"


def test_a_node_that_is_well_needs_no_console() -> None:
    found = diagnose.examine("n", {stage: passing(stage) for stage in Stage}, failing("not asked"))
    assert found.failed is None
    assert str(found) == "n answers, and is ready"


def test_a_console_that_can_not_be_had_hides_nothing() -> None:
    def none() -> NoReturn:
        raise SiteError("the site keeps none")

    found = diagnose.examine("n", {Stage.PORT: failing("broken")}, none)
    assert found.console == "(no console: the site keeps none)"


def test_an_error_with_a_diagnosis_tells_the_stage_and_the_next_step() -> None:
    found = diagnose.examine("n", {Stage.KEY: failing("wrong key")}, lambda: "")
    error = NotReady(found)
    assert (str(error), error.hint) == ("n: key: wrong key", "mend it")


def at_site(**answers: Any) -> Diagnosis:
    connection: Any = FakeSite(
        {
            "GET /servers/id-bees-waggle-1": {"server": answers.get("row", server_row())},
            "GET /ports": {"ports": answers.get("ports", [PORT])},
            "GET /floatingips": {"floatingips": answers.get("ips", [IP])},
            "POST /servers/id-bees-waggle-1/action": answers.get("console", {"output": "a\nb\n"}),
            **answers.get("more", {}),
        }
    )
    return diagnose.diagnose(connection, server.read(server_row()), None)


def test_what_the_site_says_of_a_node_that_is_well() -> None:
    found = at_site()
    assert [(finding.stage, finding.passed) for finding in found.findings] == [
        (Stage.SERVER, True),
        (Stage.PORT, True),
        (Stage.FLOATING_IP, True),
    ]
    assert [finding.said for finding in found.findings][1:] == ["10.0.0.2 (ACTIVE)", "192.5.87.3"]


@pytest.mark.parametrize(
    ("answers", "stage", "said"),
    [
        (
            {"row": server_row(status="ERROR", fault={"message": "No valid host was found."})},
            Stage.SERVER,
            "no node of",
        ),
        (
            {"row": server_row(status="BUILD", **{"OS-EXT-STS:task_state": "spawning"})},
            Stage.SERVER,
            "BUILD (spawning)",
        ),
        ({"row": server_row(status="SHUTOFF")}, Stage.SERVER, "it is SHUTOFF"),
        ({"more": {"GET /servers/id-bees-waggle-1": nova_error(404, "x")}}, Stage.SERVER, "no such server"),
        ({"ports": []}, Stage.PORT, "no port"),
        ({"ports": [{**PORT, "binding:vif_type": "binding_failed"}]}, Stage.PORT, "could not be bound"),
        ({"ips": []}, Stage.FLOATING_IP, "no floating IP"),
        ({"ips": [{**IP, "port_id": "another"}]}, Stage.FLOATING_IP, "no floating IP"),
        ({"ips": [{**IP, "status": "ERROR"}]}, Stage.FLOATING_IP, "in ERROR"),
    ],
)
def test_what_the_site_says_of_one_that_is_not(answers: dict[str, Any], stage: Stage, said: str) -> None:
    found = at_site(**answers)
    assert found.failed is not None
    assert found.failed.stage is stage
    assert said in found.failed.said
    assert found.failed.next
    assert found.console == "a\nb"


@pytest.mark.parametrize(
    ("told", "said"),
    [({"status": "done"}, ""), ({"status": "disabled"}, ""), ({}, "status: done")],
)
def test_cloud_init_that_is_done_passes(told: Any, said: str) -> None:
    assert diagnose.judge_cloud_init(told, said).startswith("cloud-init is")


@pytest.mark.parametrize(
    ("told", "said", "expected"),
    [
        ({"status": "running"}, "", "is running"),
        ({"status": "not started"}, "", "is not started"),
        ({"status": "error", "errors": ["a", "b"]}, "", "failed: a; b"),
        ({}, "sh: cloud-init: not found", "failed: sh: cloud-init: not found"),
        ([], "", "failed"),
    ],
)
def test_cloud_init_that_is_not_is_told(told: Any, said: str, expected: str) -> None:
    with pytest.raises(Fault, match=expected):
        diagnose.judge_cloud_init(told, said)

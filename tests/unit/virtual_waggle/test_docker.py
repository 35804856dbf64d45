# SPDX-License-Identifier: Apache-2.0
"""What is made of Docker's answers, and what is said where Docker is not there."""

from pathlib import Path
from typing import Any

import pytest

from groundwork import process
from groundwork.errors import InputError
from groundwork.process import ProcessError
from virtual_waggle import docker, stack
from virtual_waggle.forms import Deployment, Row
from virtual_waggle.stack import Form

SERVICE = "com.docker.compose.service"


def container(
    service: str, *, restarts: int = 0, health: str = "", one_off: str = "False", **state: Any
) -> dict[str, Any]:
    """What ``docker inspect`` says, as far as it counts here."""
    given = {"Status": "running", "StartedAt": "2026-01-02T03:04:05.678901234Z", "ExitCode": 0, **state}
    if health:
        given["Health"] = {"Status": health}
    labels = {SERVICE: service, "com.docker.compose.oneoff": one_off}
    return {"Config": {"Labels": labels}, "State": given, "RestartCount": restarts}


@pytest.mark.parametrize(
    ("given", "row"),
    [
        (container("a"), Row("a", "running", since="2026-01-02T03:04:05Z")),
        (container("a", health="healthy"), Row("a", "running", "healthy", "2026-01-02T03:04:05Z")),
        (container("a", health="starting", restarts=2), Row("a", "running", "starting", "2026-01-02T03:04:05Z", 2)),
        (
            container("a", health="unhealthy", Status="exited", ExitCode=3, FinishedAt="2026-01-02T04:00:00Z"),
            Row("a", "exited", "", "2026-01-02T04:00:00Z", exit_code=3),
        ),
        (container("a", Status="created", StartedAt="0001-01-01T00:00:00Z"), Row("a", "starting")),
        (
            container("a", Status="restarting", ExitCode=1, restarts=4),
            Row("a", "restarting", "", "2026-01-02T03:04:05Z", 4, 1),
        ),
    ],
)
def test_a_container_becomes_a_row(given: dict[str, Any], row: Row) -> None:
    assert docker.rows_of([given]) == [row]


def test_of_several_containers_of_one_service_the_worst_counts() -> None:
    rows = docker.rows_of([container("a"), container("a", health="unhealthy"), container("a"), container("b")])
    assert [(row.service, row.health) for row in rows] == [("a", "unhealthy"), ("b", "")]


def test_containers_that_are_no_services_do_not_count() -> None:
    assert docker.rows_of([container("a", one_off="True"), {"Config": {"Labels": None}}]) == []


@pytest.mark.parametrize(
    ("row", "ready"),
    [
        (Row("a", "running"), True),
        (Row("a", "running", "healthy"), True),
        (Row("a", "running", "starting"), False),
        (Row("a", "exited", exit_code=0), True),
        (Row("a", "exited", exit_code=1), False),
        (Row("a", "starting"), False),
        (Row("a", "stopped"), False),
    ],
)
def test_ready_is_what_needs_no_more_waiting(row: Row, ready: bool) -> None:
    assert row.ready == ready


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ("Cannot connect to the Docker daemon", "Docker does not answer", "--native"),
        ("permission denied while trying to connect", "does not answer to this user", "sudo"),
    ],
)
def test_without_an_engine_the_way_out_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, message: str, hint: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise ProcessError("docker failed", returncode=1, output=said)

    monkeypatch.setattr(process, "run", fail)
    monkeypatch.setattr(process, "find", lambda program: program)
    with pytest.raises(InputError, match=message) as caught:
        docker.status(Deployment("demo", tmp_path / "compose.yaml", tmp_path, {}))
    assert hint in (caught.value.hint or "")


def test_only_running_containers_of_another_state_folder_count() -> None:
    def of(folder: str | None, running: bool) -> dict[str, Any]:
        labels = {} if folder is None else {"org.sagecontinuum.state": folder}
        return {"Config": {"Labels": labels}, "State": {"Running": running}}

    ours = [of("/ours", True), of(None, True), of("/theirs", False)]
    assert docker.other_folders(ours, Path("/ours")) == []
    assert docker.other_folders([*ours, of("/theirs", True), of("/theirs", True)], Path("/ours")) == ["/theirs"]


def test_where_docker_is_down_or_gone_plain_processes_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise ProcessError("docker failed", returncode=1, output="Cannot connect to the Docker daemon")

    def make(form: Form) -> Deployment:
        return Deployment("demo", tmp_path / "compose.yaml", tmp_path, {})

    monkeypatch.setattr(process, "run", fail)
    for here in (True, False):
        monkeypatch.setattr(process, "find", lambda program, here=here: program if here else None)
        stack.choose(tmp_path, Form.DOCKER, make)  # starts nothing, so it takes no Docker
        assert stack.form_of(tmp_path) == Form.DOCKER
        stack.choose(tmp_path, Form.NATIVE, make)
        assert stack.form_of(tmp_path) == Form.NATIVE
        assert ("can't tell whether services run by docker" in capsys.readouterr().err) == here
        (tmp_path / "form").unlink()


def test_without_docker_or_compose_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = Deployment("demo", tmp_path / "compose.yaml", tmp_path, {})
    monkeypatch.setattr(process, "find", lambda program: None)
    with pytest.raises(InputError, match="Docker is not installed") as caught:
        docker.up(given)
    assert "--native" in (caught.value.hint or "")

    def fail(*args: Any, **kwargs: Any) -> str:
        raise ProcessError("unknown command", returncode=1)

    monkeypatch.setattr(process, "run", fail)
    monkeypatch.setattr(process, "find", lambda program: program if program == "docker" else None)
    with pytest.raises(InputError, match="there is no Docker Compose") as caught:
        docker.up(given)
    assert "docker-compose-v2" in (caught.value.hint or "")

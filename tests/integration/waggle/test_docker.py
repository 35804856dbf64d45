# SPDX-License-Identifier: Apache-2.0
"""Services as containers, by the Compose that is here and a real engine of the test's own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundwork import files, process
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError
from tests.integration.waggle import engine
from tests.integration.waggle.native_command import deployment
from virtual_waggle import docker
from virtual_waggle.forms import Deployment

pytestmark = pytest.mark.skipif(bool(engine.why_not()), reason=engine.why_not() or "-")

SERVICES = """\
services:
  last:
    image: sage/tiny
    user: "990:990"
    command: [sh, -c, "cat /run/secrets/word; id; touch ${FOLDER}/data/well; exec sleep 1000"]
    read_only: true
    mem_limit: 64m
    init: true
    labels: {digest: "${WAGGLE_SECRETS_DIGEST:-}", org.sagecontinuum.state: "${FOLDER}"}
    secrets: [word]
    volumes: [{type: bind, source: "${FOLDER}/data", target: "${FOLDER}/data"}]
    depends_on: {first: {condition: service_healthy}}
    restart: unless-stopped
  first:
    image: sage/tiny
    init: true
    labels: {org.sagecontinuum.state: "${FOLDER}"}
    command: [sh, -c, "echo ${GREETING}; sleep 1; touch /tmp/well; exec sleep 1000"]
    healthcheck: {test: [CMD, test, -e, /tmp/well], interval: 1s, start_period: 60s}
    stop_grace_period: 1s
  extra:
    image: sage/tiny
    command: [sleep, "1000"]
    profiles: [more]
    stop_grace_period: 1s
secrets:
  word: {file: "${FOLDER}/private/word"}
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with engine.running(tmp_path_factory.mktemp("engine")) as address, pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", address)
            engine.make_image("sage/tiny")
            yield address
    except ProcessError as error:
        pytest.skip(str(error))


@pytest.fixture
def given(address: str, tmp_path: Path) -> Iterator[Deployment]:
    tmp_path.chmod(0o755)
    state = files.make_folder(tmp_path / "state")
    files.write_text(state / "private/word", "secret-word\n", mode=0o600)
    for path in (state, state / "private", state / "private/word"):
        os.chown(path, 990, 990)
    (tmp_path / "compose.yaml").write_text(SERVICES)
    found = deployment(tmp_path)
    yield found
    docker.down(found)


def containers(given: Deployment) -> dict[str, str]:
    """Service -> id of its container."""
    form = '{{.Label "com.docker.compose.service"}} {{.ID}}'
    return dict(row.split() for row in process.run(["docker", "ps", "--format", form], timeout=60).splitlines())


def test_containers_start_in_their_order_and_are_taken_away(given: Deployment) -> None:
    assert [row.state for row in docker.status(given)] == ["stopped", "stopped"]
    rows = {row.service: row for row in docker.up(given, deadline=120)}
    assert rows["first"].health == "healthy"
    assert rows["last"].state == "running"
    assert rows["last"].since.endswith("Z")
    assert (given.folder / "data/well").stat().st_uid == 990  # the folder was made for it
    said = "\n".join(docker.logs(given))
    assert "hello" in said
    assert "secret-word" in said
    assert "uid=990 gid=990" in said
    docker.down(given)
    assert not containers(given)
    docker.down(given)


def test_up_again_changes_nothing_but_new_secrets_make_new_containers(given: Deployment) -> None:
    docker.up(given, deadline=120)
    before = containers(given)
    docker.up(given, deadline=120)
    assert containers(given) == before
    files.write_text(given.folder / "private/word", "another-word\n", mode=0o600)
    docker.up(given, deadline=120)
    assert containers(given)["last"] != before["last"]
    assert containers(given)["first"] == before["first"]
    assert "another-word" in "\n".join(docker.logs(given, ["last"]))


def test_a_service_of_a_profile_that_is_no_longer_on_is_taken_away(given: Deployment) -> None:
    more = Deployment(given.name, given.compose_file, given.folder, given.variables, ("more",))
    docker.up(more, deadline=120)
    assert set(containers(given)) == {"first", "last", "extra"}
    docker.up(given, deadline=120)
    assert set(containers(given)) == {"first", "last"}


def test_another_state_folder_does_not_take_over_what_runs(given: Deployment, tmp_path: Path) -> None:
    docker.up(given, deadline=120)
    before = containers(given)
    other = Deployment(given.name, given.compose_file, files.make_folder(tmp_path / "other"), given.variables)
    for act in (docker.up, docker.down):
        with pytest.raises(InputError, match=f"belong to {given.folder}, not to {other.folder}") as caught:
            act(other)
        assert f"down --state-dir {given.folder}" in str(caught.value.hint)
    assert {row.state for row in docker.status(other)} == {"stopped"}
    assert containers(given) == before


def test_no_secret_is_in_the_environment_or_the_command_of_a_container(given: Deployment) -> None:
    docker.up(given, deadline=120)
    assert "secret-word" not in process.run(["docker", "inspect", *containers(given).values()], timeout=60)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("[sh, -c, 'echo all went wrong; exit 3']", "wrong ended with status 3"),
        ("[sh, -c, 'echo all went wrong; exec sleep 1000']", "wrong is unhealthy"),
    ],
)
def test_what_does_not_start_is_told_and_nothing_is_left(given: Deployment, command: str, words: str) -> None:
    given.compose_file.write_text(
        SERVICES.replace(
            "secrets:\n  word",
            f"  wrong:\n    image: sage/tiny\n    command: {command}\n    stop_grace_period: 1s\n"
            "    healthcheck: {test: [CMD, 'false'], interval: 1s, retries: 2}\nsecrets:\n  word",
        )
    )
    with pytest.raises(SageError) as caught:
        docker.up(given, deadline=120)
    assert words in str(caught.value)
    assert "all went wrong" in str(caught.value)
    assert not containers(given)


def test_an_interrupt_in_the_middle_leaves_nothing(given: Deployment, tmp_path: Path) -> None:
    given.compose_file.write_text(SERVICES.replace("touch /tmp/well;", "touch /tmp/never;"))
    command = [sys.executable, "-m", "tests.integration.waggle.native_command", str(tmp_path), "docker"]
    running = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    for _ in process.poll_until(120, 0.2):
        if "first" in containers(given):
            break
    running.send_signal(signal.SIGINT)
    assert running.wait(120) == 128 + signal.SIGINT
    assert not containers(given)


def test_logs_are_followed(given: Deployment) -> None:
    docker.up(given, deadline=120)
    following: Callable[[], str] = docker.logs(given, ["first"], follow=True).__next__
    for _ in range(10):
        if "hello" in following():
            return
    raise AssertionError("did not say hello")


def test_an_image_that_is_nowhere_is_told_and_no_registry_is_asked(given: Deployment) -> None:
    given.compose_file.write_text(SERVICES.replace("sage/tiny", "sage/absent"))
    with pytest.raises(InputError, match="does not have the image sage/absent"):
        docker.up(given)


def test_a_secret_whose_file_is_not_there_is_told(given: Deployment) -> None:
    (given.folder / "private/word").unlink()
    with pytest.raises(InputError, match="word: can't read"):
        docker.up(given)
    files.write_text(given.folder / "private/word", "secret-word\n")

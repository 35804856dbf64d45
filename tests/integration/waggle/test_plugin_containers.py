# SPDX-License-Identifier: Apache-2.0
"""Plugins as containers of a real engine: what one sees, how it is stopped, how images come and are built."""

import contextlib
import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundwork import process
from groundwork.errors import InputError, Interrupted, SageError
from groundwork.process import ProcessError
from tests.integration.waggle import engine
from tests.integration.waggle.beehives import open_folder
from virtual_waggle.node import deployment, plugin_images, plugins, state
from virtual_waggle.node.state import NodeState

ENOUGH = 60.0  # seconds
IMAGE = "me/sees:1.0"
# What a plugin sees, but for the password; it goes on with `wait` until SIGTERM.
SEES = """\
trap 'echo stopped; exit 5' TERM
test -n "$WAGGLE_PLUGIN_PASSWORD" && echo "app $WAGGLE_APP_ID at $WAGGLE_PLUGIN_HOST:$WAGGLE_PLUGIN_PORT"
touch /run/waggle/uploads/made && id -u
cat /run/waggle/data-config.json > /dev/null && echo "words $*"
while test "$1" = wait; do sleep 0.2; done
exit 3
"""
# Runs it as a command does.
RUN = """\
from pathlib import Path; from groundwork.program import run_program
from tests.integration.waggle import test_plugin_containers as tests; from virtual_waggle.node import state
run_program(lambda: tests.run(state.read(Path("{folder}")), "wait"))
"""

pytestmark = pytest.mark.skipif(bool(engine.why_not()), reason=engine.why_not() or "-")


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An engine with the image of a plugin and the network of a node."""
    with contextlib.ExitStack() as opened:
        patch = opened.enter_context(pytest.MonkeyPatch.context())
        try:
            address = opened.enter_context(engine.running(tmp_path_factory.mktemp("engine")))
        except ProcessError as error:
            pytest.skip(str(error))
        patch.setenv("DOCKER_HOST", address)
        engine.make_image("me/tools")
        folder = tmp_path_factory.mktemp("sees")
        (folder / "Dockerfile").write_text('FROM me/tools\nCOPY sees /sees\nENTRYPOINT ["sh", "/sees"]\n')
        (folder / "sees").write_text(SEES)
        process.run(["docker", "build", "--tag", IMAGE, folder], timeout=300)
        process.run(["docker", "network", "create", deployment.NETWORK], timeout=60)
        yield


@pytest.fixture
def node(docker: None) -> Iterator[NodeState]:
    with open_folder() as folder:
        yield state.make_ready(folder / "state")


def run(node: NodeState, *words: str) -> int:
    return plugins.run_container(
        node,
        IMAGE,
        words,
        name=IMAGE,
        network=deployment.NETWORK,
        address=deployment.BROKER_IN_NETWORK,
        playback=deployment.PLAYBACK_IN_NETWORK,
        job="job",
    )


def test_a_plugin_sees_what_pywaggle_reads(node: NodeState, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(node, "a", "b c", "--json") == 3
    said = capfd.readouterr().out.splitlines()
    (app,) = (path.stem for path in node.apps.glob("sees-*.json"))
    assert said == [f"app {app} at rabbitmq:5672", "0", "words a b c --json"]
    assert json.loads((node.apps / f"{app}.json").read_text())["plugin"] == IMAGE
    assert plugins.containers(node) == []


def test_what_a_plugin_that_is_root_uploads_the_folders_owner_may_delete(node: NodeState) -> None:
    run(node)
    (made,) = node.uploads.glob("*/made")
    assert made.stat().st_uid == 0
    user = node.user.partition(":")[0]
    process.run(["setpriv", "--reuid", user, "--clear-groups", "rm", made], timeout=60)
    assert not made.exists()


def test_a_plugin_that_is_interrupted_is_told_to_end_and_goes(node: NodeState, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN.format(folder=node.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while not running.stdout.readline().startswith("words"):
            assert running.poll() is None
        (container,) = plugins.containers(node)
        secret = plugins.password(node).encode()
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lines.append(path.read_bytes())
            except OSError:  # it has ended
                continue
        assert not [line for line in lines if secret in line]
        assert not [path for path in Path("/tmp").glob("waggle-*.env") if secret in path.read_bytes()]  # noqa: S108
        running.send_signal(signal.SIGTERM)
        assert running.stdout.read() == "stopped\n"
        assert running.wait(ENOUGH) == 128 + signal.SIGTERM
    assert plugins.containers(node) == []
    assert container not in process.run(["docker", "ps", "--all", "--format", "{{.Names}}"], timeout=60)


def test_one_that_is_interrupted_while_it_is_made_is_taken_away_with_the_password_in_it(
    node: NodeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_process = process.run

    def interrupted(command: list[str], **more: Any) -> str:
        told = run_process(command, **more)
        if command[1] == "create":
            assert len(plugins.containers(node)) == 1
            raise Interrupted(signal.SIGINT)
        return told

    monkeypatch.setattr(process, "run", interrupted)
    with pytest.raises(Interrupted):
        run(node)
    assert plugins.containers(node) == []


def test_what_a_plugin_says_does_not_fill_the_disk_and_down_finds_what_never_started(node: NodeState) -> None:
    words = ["--label", f"{plugins.LABEL}=app", "--label", f"{plugins.FOLDER}={node.folder}"]
    process.run(["docker", "create", "--name", "never", *words, IMAGE], timeout=60)
    assert plugins.containers(node) == ["never"]
    plugins.stop_container("never")
    assert plugins.containers(node) == []
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(folder=node.folder)], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        while not running.stdout.readline().startswith("words"):
            assert running.poll() is None
        (container,) = plugins.containers(node)
        found = process.run(["docker", "inspect", "--format", "{{json .HostConfig.LogConfig}}", container], timeout=60)
        assert json.loads(found) == {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "2"}}
        plugins.stop_container(container)
        assert running.wait(ENOUGH) == 5


def test_an_image_comes_out_of_a_file(docker: None, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    process.run(["docker", "save", "--output", path, IMAGE], timeout=300)
    packed = tmp_path / "image.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    for file in (path, packed):
        process.run(["docker", "tag", IMAGE, "me/kept"], timeout=60)
        process.run(["docker", "rmi", IMAGE], timeout=60)
        assert plugin_images.obtain(str(file)) == IMAGE
        assert plugin_images.has(IMAGE)
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(InputError, match=r"cut off or damaged|no file of"):
        plugin_images.obtain(str(path))


def test_an_image_that_no_registry_gives_is_told_with_what_to_do(docker: None) -> None:
    with pytest.raises(SageError, match="Docker has no image waggle/nothing:1") as caught:
        plugin_images.obtain("waggle/nothing:1")  # the engine has no network
    assert "docker save" in str(caught.value.hint)


def test_a_plugin_is_built_without_a_network_on_a_base_of_the_machine(docker: None, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("virtual-waggle")
    subprocess.run([program, "newplugin", "sky", "--folder", tmp_path], check=True, timeout=60)
    with pytest.raises(SageError, match="docker build failed"):
        plugin_images.build(tmp_path / "sky")
    process.run(["docker", "tag", "me/tools", plugin_images.BASE], timeout=60)
    try:
        done = subprocess.run(
            [program, "build", tmp_path / "sky", "--json"], check=True, capture_output=True, text=True, timeout=300
        )
        assert json.loads(done.stdout) == {"image": "sky:0.1.0"}
        assert "can't be pulled: sky is built on sage/waggle" in done.stderr
        words = ["docker", "image", "inspect", "--format", "{{json .Config.Entrypoint}}", "sky:0.1.0"]
        assert json.loads(process.run(words, timeout=60)) == ["python3", "-u", "main.py"]
    finally:
        process.run(["docker", "rmi", plugin_images.BASE], timeout=60)


def test_an_engine_that_is_not_there_is_told(node: NodeState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    with pytest.raises(InputError, match="Docker does not answer") as caught:
        plugin_images.obtain(IMAGE)
    assert "--native" in str(caught.value.hint)


def test_a_node_that_was_never_up_has_no_network_for_a_plugin(node: NodeState) -> None:
    with pytest.raises(InputError, match="Docker has no network none-such") as caught:
        plugins.run_container(
            node, IMAGE, (), name="x", network="none-such", address=("a", 1), playback=("b", 2), job="j"
        )
    assert caught.value.hint == "start the node first: virtual-waggle up"
    assert not list(node.apps.iterdir())

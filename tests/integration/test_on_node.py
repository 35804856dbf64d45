# SPDX-License-Identifier: Apache-2.0
"""What a role has done on a node, over ssh by the real OpenSSH: scripts, files, health, and what is brought home."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundwork import process
from node_automation import collect, on_node, ssh
from node_automation.on_node import NotDone
from node_automation.role import Collect, Command, Health
from node_automation.ssh import Target
from tests.integration import sshd
from tests.integration.sshd import Node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Target]]:
    identity, public = ssh.identity(tmp_path_factory.mktemp("state"), None)
    with sshd.running(sshd.program(tmp_path_factory.mktemp("openssh-server")), public) as found:
        yield found, Target("bees-x-1", "s1", "127.0.0.1", (found.key.public,), port=found.port, identity=identity)


@pytest.fixture
def shell(node: tuple[Node, Target]) -> Iterator[Any]:
    connection, _ = ssh.connect(node[1])
    with connection:
        yield connection


def test_a_script_finds_its_variables_and_none_of_it_is_in_the_list_of_processes(shell: Any) -> None:
    values = {"WORD": 'it\'s "so"\n$HOME `id`', "TOKEN": "hush-hush"}
    script = "printf %s \"$WORD\"; tr '\\0' ' ' < /proc/$$/cmdline >&2; cat"
    said = on_node.run(shell, script, values, 20)
    assert (said.code, said.out) == (0, values["WORD"])
    assert "bash" in said.err
    assert "hush" not in said.err
    assert "printf" not in said.err


def test_a_script_that_fails_tells_where(shell: Any) -> None:
    said = on_node.run(shell, "echo begun\nfalse || true\nfalse\necho never", {}, 20)
    assert (said.code, said.out) == (1, "begun\n")
    assert "failed: false" in said.last
    assert on_node.run(shell, "exit 7", {}, 20).code == 7
    assert on_node.run(shell, "echo $NOBODY", {}, 20).code != 0, "a variable that is not set"
    with pytest.raises(NotDone, match=r"'make it' ended with exit status 3: no wood"):
        on_node.check_run(shell, Command("make it", "echo no wood >&2; exit 3", 20), {})


def test_a_script_over_its_time_is_stopped(shell: Any) -> None:
    with pytest.raises(NotDone, match="not done within 1 s, and stopped"):
        on_node.run(shell, "sleep 4217", {}, 1)
    assert on_node.run(shell, "! grep -lsax 'sleep.4217.' /proc/[0-9]*/cmdline", {}, 20).code == 0


def test_much_can_be_printed_and_not_too_much(shell: Any) -> None:
    stream = io.BytesIO()
    on_node.run(shell, "head --bytes=3000000 /dev/zero", {}, 60, to=stream)
    assert stream.getvalue() == bytes(3_000_000)
    with pytest.raises(NotDone, match="more than 1 MiB"):
        on_node.run(shell, "cat /dev/zero", {}, 60, to=io.BytesIO(), most=1 << 20)
    assert len(on_node.run(shell, "head --bytes=100000 /dev/zero", {}, 60).out) == 16_384, "the end of it"


def test_files_are_put_as_a_whole_with_mode_and_owner(shell: Any, node: tuple[Node, Target]) -> None:
    home = node[0].folder / "home"
    on_node.put(shell, "a/b c", b"\x00one", mode=0o600)
    assert (home / "a/b c").read_bytes() == b"\x00one"
    assert (home / "a/b c").stat().st_mode & 0o777 == 0o600
    on_node.put(shell, "a/b c", b"", mode=0o755)
    assert (home / "a/b c").read_bytes() == b""
    on_node.put(shell, f"{home}/of-root", b"x" * 300_000, mode=0o640, owner="root")
    assert ((home / "of-root").stat().st_uid, (home / "of-root").stat().st_size) == (0, 300_000)
    with pytest.raises(NotDone, match="/proc/nothing could not be written"):
        on_node.put(shell, "/proc/nothing", b"x", mode=0o644)
    assert sorted(path.name for path in (home / "a").iterdir()) == ["b c"]
    assert on_node.read(shell, "a/b c") == b""
    with pytest.raises(NotDone, match="can't be read"):
        on_node.read(shell, "nowhere")
    on_node.put(shell, "large", bytes((1 << 20) + 1), mode=0o600)
    with pytest.raises(NotDone, match="larger than 1 MiB"):
        on_node.read(shell, "large")


def test_health_is_waited_for_and_what_does_not_hold_is_named(shell: Any) -> None:
    on_node.run(shell, "(sleep 1; touch well) > /dev/null 2>&1 &", {}, 20)
    told: list[str] = []
    on_node.check_health(shell, [Health("it is well", "test -e well", None, 30)], {}, told.append)
    assert told == ["it is well"]
    never = Health("it flies", "echo it has no wings >&2; exit 1", None, 1)
    with pytest.raises(NotDone, match=r"'it flies' did not hold within 1 s: exit status 1: it has no wings"):
        on_node.check_health(shell, [never], {})
    assert not on_node.is_healthy(shell, [never], {})
    closed = Health("a page", None, "http://127.0.0.1:${PORT}/", 1)
    with pytest.raises(NotDone, match=r"'a page' did not hold within 1 s: http://127\.0\.0\.1:1/ does not answer"):
        on_node.check_health(shell, [closed], {"PORT": "1"})


def test_a_node_that_goes_away_is_no_silence(node: tuple[Node, Target]) -> None:
    connection, _ = ssh.connect(node[1])
    with connection, pytest.raises(NotDone, match="the connection to the node broke"):
        on_node.run(connection, "kill -9 $(ps -o ppid= -p $PPID) $PPID; sleep 20", {}, 30)


def test_what_a_node_has_is_brought_home(shell: Any, tmp_path: Path) -> None:
    on_node.run(shell, "mkdir -p out/sub; echo one > out/sub/one; ln -sf /etc/passwd out/link; echo two > two", {}, 20)
    wanted = Collect(
        ("out", "~/two", "/etc/hostname", "${WHERE}"),
        (Command("id.txt", "id -un", 20), Command("bad.txt", "echo half; exit 4", 20)),
    )
    found, problems = collect.fetch(shell, wanted, {"WHERE": "nowhere"}, tmp_path / "bees-x-1")
    top = tmp_path / "bees-x-1"
    assert (top / "id.txt").read_text() == "cc\n"
    assert (top / "bad.txt").read_text() == "half\n", "it may tell why"
    assert (top / "files/out/sub/one").read_text() == "one\n"
    assert (top / "files/two").read_text() == "two\n"
    assert (top / "files/etc/hostname").exists()
    assert [line.split(":")[0] for line in problems] == ["bad.txt", "./out/link", "nowhere"]
    assert {file.path for file in found} == {
        f"bees-x-1/{name}" for name in ("id.txt", "bad.txt", "files/out/sub/one", "files/two", "files/etc/hostname")
    }
    assert process.run(["sha256sum", top / "id.txt"]).split()[0] == next(
        file.sha256 for file in found if file.path.endswith("id.txt")
    )

# SPDX-License-Identifier: Apache-2.0
"""Ssh to a node, with the real OpenSSH on its side: host keys, the first login, and what a diagnosis finds."""

import dataclasses
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundwork import process
from groundwork.errors import InputError
from node_automation import diagnose, host_keys, reach, server, ssh
from node_automation.diagnose import Stage
from node_automation.host_keys import GIVEN, OWN
from node_automation.ssh import CommandFailed, HostKeyChanged, NotLetIn, Target, Unreachable
from tests.integration import sshd
from tests.integration.sshd import Node
from tests.unit.node_automation.site import FakeSite, server_row


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sshd.program(tmp_path_factory.mktemp("openssh-server"))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return ssh.identity(tmp_path_factory.mktemp("state"), None)


@pytest.fixture
def node(program: Path, identity: tuple[Path, str]) -> Iterator[Node]:
    with sshd.running(program, identity[1]) as found:
        yield found


@pytest.fixture
def target(node: Node, identity: tuple[Path, str]) -> Target:
    return Target("bees-waggle-1", "s1", "127.0.0.1", (node.key.public,), port=node.port, identity=identity[0])


class Nova(FakeSite):
    """Keeps a server's metadata, as Nova does."""

    def __init__(self, node: Node) -> None:
        self.metadata = {"sage_run": "bees/0123abcd", GIVEN: node.key.public}

        def merge(body: Any) -> Any:
            self.metadata.update(body["metadata"])
            return {"metadata": self.metadata}

        def drop(body: Any) -> Any:
            return (204, "") if self.metadata.pop(GIVEN, None) else (404, "")

        super().__init__(
            {
                "GET /servers/s1": lambda body: {"server": server_row(metadata=dict(self.metadata))},
                "POST /servers/id-bees-waggle-1/metadata": merge,
                f"DELETE /servers/id-bees-waggle-1/metadata/{GIVEN}": drop,
            }
        )


def reached(nova: Any, node: Node, identity: tuple[Path, str], deadline: float = 20.0) -> Target:
    return reach.reach(
        nova, "s1", identity[0], deadline=deadline, address="127.0.0.1", port=node.port, place=node.place
    )


def test_a_node_with_the_key_that_it_was_given_is_let_in_to(target: Target) -> None:
    shell, key = ssh.connect(target)
    with shell:
        assert ssh.run(shell, "id -un").stdout == "cc\n"
        assert ssh.run(shell, "id -un", sudo=True).stdout == "root\n"
        with pytest.raises(CommandFailed, match="exit status 3"):
            ssh.run(shell, "exit 3")
        with pytest.raises(CommandFailed, match="not done within 1 s"):
            ssh.run(shell, "sleep 30", timeout=1)
    assert key == target.keys[0]


def test_files_go_there_and_come_back(target: Target, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("a line\n")
    shell, _ = ssh.connect(target)
    with shell:
        ssh.put(shell, str(tmp_path / "here"), "there")
        assert ssh.get(shell, "there", str(tmp_path / "back")) == str(tmp_path / "back")
        with pytest.raises(CommandFailed, match="can't be had"):
            ssh.get(shell, "nowhere", str(tmp_path / "x"))
        with pytest.raises(InputError):
            ssh.put(shell, str(tmp_path / "none"))
    assert (tmp_path / "back").read_text() == "a line\n"


def test_no_other_host_key_is_ever_taken(target: Target) -> None:
    stranger = dataclasses.replace(target, keys=(host_keys.make().public,))
    with pytest.raises(HostKeyChanged, match="another host key"):
        ssh.connect(stranger)
    with pytest.raises(HostKeyChanged):
        ssh.connect(dataclasses.replace(target, keys=()))


def test_who_has_another_key_is_not_let_in(target: Target, tmp_path: Path) -> None:
    other, _ = ssh.identity(tmp_path, None)
    with pytest.raises(NotLetIn):
        ssh.connect(dataclasses.replace(target, identity=other))


def test_after_the_first_login_the_node_has_a_key_that_never_left_it(
    node: Node, identity: tuple[Path, str], target: Target
) -> None:
    nova = Nova(node)
    after = reached(nova, node, identity)
    own = node.public_key()
    assert own != node.key.public
    assert after.keys == (own,)
    assert nova.metadata[OWN] == own
    assert GIVEN not in nova.metadata, "the one in user data is forgotten"
    with pytest.raises(HostKeyChanged):
        ssh.connect(target)
    ssh.connect(after)[0].close()
    assert reached(nova, node, identity) == after, "done once"


class Killed(BaseException):
    """What a kill is to the program: nothing more is done."""


@pytest.mark.parametrize("at", ["make", "noted", "swapped", "forgotten"])
def test_a_kill_at_any_step_of_it_locks_nobody_out(
    at: str, node: Node, identity: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nova = Nova(node)
    place, real_run = node.place, ssh.run
    steps: list[str] = []

    def kill_after(shell: Any, command: str, **more: Any) -> Any:
        result = real_run(shell, command, **more)
        steps.append("swapped" if command == host_keys.swap_script(place) else "make")
        if steps[-1] == at:
            raise Killed
        return result

    def kill(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ssh, "run", kill_after)
        if at == "noted":  # the key is noted, and not yet in place
            real = server.set_metadata

            def note(*words: Any) -> None:
                real(*words)
                raise Killed

            patch.setattr(server, "set_metadata", note)
        if at == "forgotten":
            patch.setattr(server, "drop_metadata", kill)
        with pytest.raises(Killed):
            reached(nova, node, identity)
    after = reached(nova, node, identity)
    assert after.keys == (node.public_key(),)
    assert nova.metadata[OWN] == node.public_key() != node.key.public
    assert GIVEN not in nova.metadata


def test_a_node_that_boots_is_waited_for(program: Path, identity: tuple[Path, str], node: Node) -> None:
    node.let_in()  # cloud-init has not yet set the keys
    threading.Timer(1.5, node.let_in, [identity[1]]).start()
    states: list[str] = []
    target = Target("n", "s1", "127.0.0.1", (node.key.public,), port=node.port, identity=identity[0])
    shell, _ = reach.wait_to_log_in(target, deadline=20.0, tell=states.append)
    shell.close()
    assert "does not let cc in" in states[0]
    assert states[-1] == "it lets us in"


def test_a_node_that_does_not_let_us_in_is_diagnosed(node: Node, identity: tuple[Path, str]) -> None:
    node.let_in()
    nova = Nova(node)
    nova.answers.update(
        {
            "GET /servers/id-bees-waggle-1": [{"server": server_row()}],
            "GET /ports": [{"ports": [{"id": "p", "fixed_ips": [{"ip_address": "10.0.0.2"}], "status": "ACTIVE"}]}],
            "GET /floatingips": [
                {"floatingips": [{"id": "f", "floating_ip_address": "192.5.87.3", "port_id": "p", "status": "ACTIVE"}]}
            ],
            "POST /servers/id-bees-waggle-1/action": [{"output": "booted\nlogin:\n"}],
        }
    )
    with pytest.raises(diagnose.NotReady, match="key: the node takes the key") as caught:
        reached(nova, node, identity, deadline=1.0)
    assert caught.value.diagnosis.console == "booted\nlogin:"
    assert caught.value.hint


def test_openssh_s_client_takes_the_file_that_is_written(target: Target, tmp_path: Path) -> None:
    config = ssh.write_files(tmp_path, "chi_uc", [target])
    command = ["ssh", "-F", str(config), "-o", "BatchMode=yes", target.node, "id", "-un"]
    assert process.run(command, timeout=30) == "cc\n"
    ssh.write_files(tmp_path, "chi_uc", [dataclasses.replace(target, keys=(host_keys.make().public,))])
    with pytest.raises(process.ProcessError, match="Host key verification failed"):
        process.run(command, timeout=30)


# The stages that a diagnosis finds


def failed(target: Target) -> tuple[Stage, str]:
    found = diagnose.examine("n", diagnose.ssh_probes(target), lambda: "console").failed
    assert found is not None
    assert found.next
    return found.stage, found.said


def test_a_node_that_is_well_passes_all_stages(target: Target) -> None:
    found = diagnose.examine("n", diagnose.ssh_probes(target), lambda: "console")
    assert found.failed is None, found
    assert [finding.stage for finding in found.findings] == list(Stage)[3:]


def test_a_closed_port_is_told(target: Target) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stage, said = failed(dataclasses.replace(target, port=port))
    assert stage is Stage.PORT_22
    assert "closed" in said
    with pytest.raises(Unreachable):
        ssh.connect(dataclasses.replace(target, port=port))


def test_a_network_that_leads_nowhere_is_told(target: Target) -> None:
    assert failed(dataclasses.replace(target, address="255.255.255.255"))[0] in (Stage.ROUTE, Stage.PORT_22)


@pytest.mark.parametrize("greeting", [b"", b"220 mail.example ESMTP\r\n"])
def test_what_is_no_ssh_server_is_told(greeting: bytes, target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with stream:
                    stream.sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        stage, said = failed(dataclasses.replace(target, port=listener.getsockname()[1]))
    assert stage is Stage.BANNER
    assert "no ssh server" in said


def test_another_machine_at_the_address_is_told(target: Target) -> None:
    assert failed(dataclasses.replace(target, keys=(host_keys.make().public,)))[0] is Stage.HOST_KEY


def test_a_key_that_is_not_taken_is_told(target: Target, tmp_path: Path) -> None:
    other, _ = ssh.identity(tmp_path, None)
    assert failed(dataclasses.replace(target, identity=other))[0] is Stage.KEY


def test_a_user_that_is_another_is_told(node: Node, target: Target) -> None:
    passwd = node.folder / "etc/passwd"
    passwd.write_text(passwd.read_text().replace("cc:", "debian:"))
    sudoers = node.folder / "etc/sudoers"
    sudoers.chmod(0o600)
    stage, said = failed(target)
    assert stage is Stage.USER
    assert "not for the user cc" in said


def test_a_user_without_sudo_is_told(node: Node, target: Target) -> None:
    sudoers = node.folder / "etc/sudoers"
    sudoers.chmod(0o600)
    sudoers.write_text("root ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    assert failed(target) == (Stage.USER, "cc may not use sudo without a password")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"status": "running"}', "cloud-init is running"),
        ('{"status": "error", "errors": ["no datasource"]}', "cloud-init failed: no datasource"),
        ("status: running\n", "cloud-init is running"),
    ],
)
def test_what_cloud_init_says_is_told(said: str, expected: str, node: Node, target: Target) -> None:
    node.says("cloud-init", said)
    assert failed(target) == (Stage.CLOUD_INIT, expected)


def test_units_that_failed_are_named(node: Node, target: Target) -> None:
    node.says("systemctl", "beehive.service loaded failed failed The Beehive\n")
    assert failed(target) == (Stage.UNITS, "1 of systemd's units failed: beehive.service")

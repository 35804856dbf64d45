# SPDX-License-Identifier: Apache-2.0
"""Registration over real ssh, with a real broker: who becomes a node, what it gets, and what nobody gets."""

import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest

from groundwork import files, process
from groundwork.errors import InputError
from tests.integration.waggle import beehives, brokers
from tests.integration.waggle.beehives import NODE, OTHER, Beehive
from tests.integration.waggle.brokers import Broker
from virtual_waggle import broker, broker_client, certificates
from virtual_waggle.beehive import authority, nodes
from virtual_waggle.beehive.nodes import Status
from virtual_waggle.node import registering
from virtual_waggle.node.beehive_ssh import Distrusted, Unreachable
from virtual_waggle.node.registering import NotAdmitted

THIRD = "00000000000000cc"


@pytest.fixture(scope="module")
def hive() -> Iterator[Beehive]:
    with beehives.beehive() as running:
        yield running


@pytest.fixture(scope="module")
def rabbit(hive: Beehive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with brokers.beehive_broker(tmp_path_factory.mktemp("broker"), tls=hive.state.private) as running:
        files.write_text(hive.state.private / "admin-password", running.management.password, mode=0o600)
        hive.start_registration(running.management.url)
        yield running


def register(hive: Beehive, private: Path, node_id: str = NODE, *, deadline: float = 0.0) -> str:
    beehive = registering.Beehive("localhost", hive.registration_port)
    return registering.register(private, node_id, beehive, deadline=deadline)


def ssh(hive: Beehive, *words: str, key: Path | None = None, user: str = "sage_registration") -> Any:
    """What OpenSSH's client comes back with; ``words`` are the command and flags before it."""
    private = hive.node_folder("openssh")
    return subprocess.run(
        [
            *(
                "ssh",
                "-F",
                "none",
                "-p",
                str(hive.registration_port),
                "-l",
                user,
                "-i",
                str(key or private / "register.pem"),
            ),
            *("-o", f"UserKnownHostsFile={private}/known_hosts", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
            *("-o", "ConnectTimeout=10", "-o", "IdentityAgent=none", *words),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def enters_broker(rabbit: Broker, private: Path, user: str) -> bool:
    """Whether what a node was given lets it publish as this user."""
    parameters = broker_client.by_certificate(
        ("localhost", rabbit.port), private / "beehive-ca.pem", private / "node-cert.pem", private / "node-key.pem"
    )
    try:
        connection = broker_client.connect(parameters, deadline=1)
    except broker_client.BrokerError:
        return False
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(user_id=user)
        channel.basic_publish(broker.WAGGLE_MSG, "env.temperature", b"{}", properties)
        return True
    except pika.exceptions.AMQPError:
        return False
    finally:
        if connection.is_open:
            connection.close()


def eventually(condition: Any) -> None:
    for _ in process.poll_until(30, 0.2):
        if condition():
            return
    raise AssertionError("it did not come to pass within 30 s")


def test_an_admitted_node_gets_what_lets_it_publish_as_itself_alone(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    private = hive.node_folder("one")
    until = register(hive, private)
    assert registering.is_registered(private, NODE, beehives.now())
    assert (private / "registered-as").read_text() == f"node-{NODE}@localhost:{hive.registration_port}\n"
    for name in registering.FILES:
        assert (private / name).stat().st_mode & 0o777 == 0o600
    assert enters_broker(rabbit, private, f"node-{NODE}")
    assert not enters_broker(rabbit, private, f"node-{OTHER}")
    node = nodes.read(hive.state.nodes, NODE)
    assert node is not None
    assert (node.status, node.until, node.at_broker) == (Status.REGISTERED, until, True)


def test_registering_again_gives_the_same_keys_and_certificates(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    one, again = hive.node_folder("one"), hive.node_folder("again")
    register(hive, one)
    register(hive, again)
    for name in registering.FILES:
        assert (one / name).read_bytes() == (again / name).read_bytes()


def test_openssh_gets_the_documented_object(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    done = ssh(hive, "localhost", "register", NODE)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"node", "host", "port", "upload_port", "until", "files"}
    assert (answer["node"], answer["host"], answer["upload_port"]) == (NODE, "localhost", hive.upload_port)
    assert set(answer["files"]) == set(registering.FILES)


def test_two_registrations_of_one_node_at_once_get_the_same(hive: Beehive, rabbit: Broker) -> None:
    node_id = "00000000000000dd"
    hive.admit(node_id)
    folders = [hive.node_folder(f"at-once-{number}") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda folder: register(hive, folder, node_id, deadline=60), folders))
    for name in registering.FILES:
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_a_node_that_is_not_admitted_is_told_so(hive: Beehive, rabbit: Broker) -> None:
    private = hive.node_folder("stranger")
    with pytest.raises(NotAdmitted, match=f"node {THIRD} is not admitted") as error:
        register(hive, private, THIRD)
    assert error.value.exit_code == 2
    assert not (private / "node-key.pem").exists()
    assert not nodes.given_to(hive.state.nodes, THIRD).exists()
    assert ssh(hive, "localhost", "register", THIRD).returncode == 77


def test_a_wrong_key_and_a_wrong_beehive_are_told_apart(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    private = hive.node_folder("wrong")
    (private / "register.pem").unlink()
    authority.make_ssh_key(private / "register.pem", "another")
    with pytest.raises(Distrusted, match="does not take the key"):
        register(hive, private)
    (private / "known_hosts").write_text(
        f"[localhost]:{hive.registration_port} {authority.ssh_public(private / 'register.pem')}\n"
    )
    with pytest.raises(Distrusted, match="is not the Beehive of"):
        register(hive, private)
    (private / "known_hosts").write_text("")
    with pytest.raises(Distrusted, match="is not the Beehive of"):
        register(hive, private)
    (private / "known_hosts").unlink()
    with pytest.raises(InputError, match="known_hosts"):
        register(hive, private)


def test_what_is_no_registration_is_refused_with_a_reason(hive: Beehive, rabbit: Broker) -> None:
    for words in (["register"], ["register", "x"], ["register", NODE, NODE], ["id"], ["register", f"{NODE};id"]):
        done = ssh(hive, "localhost", *words)
        assert done.returncode == 2, words
        assert b"refused: expected" in done.stderr
        assert done.stdout == b""
    assert b"too long" in ssh(hive, "localhost", "register " + "a" * 5000).stderr


def test_the_registration_key_opens_no_shell_forwarding_terminal_sftp_or_other_user(
    hive: Beehive, rabbit: Broker
) -> None:
    private = hive.node_folder("openssh")
    shell = ssh(hive, "localhost")
    assert (shell.returncode, shell.stdout) == (2, b"")
    assert b"no shell" in shell.stderr
    assert b"PTY allocation request failed" in ssh(hive, "-tt", "localhost").stderr
    assert ssh(hive, "-s", "localhost", "sftp").returncode != 0
    # a connection through the server to one of its own ports
    tunnel = ssh(hive, "-W", f"127.0.0.1:{rabbit.place.management_port}", "localhost")
    assert tunnel.returncode == 255
    assert b"open failed" in tunnel.stderr
    remote = ssh(hive, "-o", "ExitOnForwardFailure=yes", "-N", "-R", "0:127.0.0.1:1", "localhost")
    assert remote.returncode == 255
    for user in ("root", f"node-{NODE}", "registration"):
        assert b"Permission denied" in ssh(hive, "localhost", "register", NODE, user=user).stderr
    process.require("scp")
    copied = subprocess.run(
        [
            *("scp", "-O", "-F", "none", "-P", str(hive.registration_port), "-i", str(private / "register.pem")),
            *("-o", f"UserKnownHostsFile={private}/known_hosts", "-o", "BatchMode=yes"),
            *("sage_registration@localhost:/etc/passwd", str(private / "passwd")),
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert copied.returncode != 0
    assert not (private / "passwd").exists()


def test_a_removed_node_is_shut_out_everywhere_until_it_is_admitted_again(hive: Beehive, rabbit: Broker) -> None:
    node_id = "00000000000000ee"
    user = f"node-{node_id}"
    hive.admit(node_id)
    private = hive.node_folder("removed")
    register(hive, private, node_id)
    parameters = broker_client.by_certificate(
        ("localhost", rabbit.port), private / "beehive-ca.pem", private / "node-cert.pem", private / "node-key.pem"
    )
    connection = broker_client.connect(parameters, deadline=30)
    old = (private / "upload-key-cert.pub").read_text()

    nodes.remove(hive.state.nodes, node_id, now=beehives.now())
    with pytest.raises(NotAdmitted, match=f"node {node_id} was removed"):
        register(hive, private, node_id)
    eventually(lambda: user not in broker_client.users(rabbit.management))
    assert not enters_broker(rabbit, private, user)
    with pytest.raises(pika.exceptions.AMQPError):  # also what was open
        while True:
            connection.process_data_events(time_limit=1)
    eventually(lambda: getattr(nodes.read(hive.state.nodes, node_id), "at_broker", False))
    assert not nodes.given_to(hive.state.nodes, node_id).exists()

    hive.admit(node_id)
    register(hive, private, node_id)
    assert enters_broker(rabbit, private, user)
    assert (private / "upload-key-cert.pub").read_text() != old


def test_the_broker_lets_nobody_in_without_a_certificate_of_ours_that_has_not_ended(
    hive: Beehive, rabbit: Broker
) -> None:
    hive.admit(NODE)
    good = hive.node_folder("good")
    register(hive, good)
    assert enters_broker(rabbit, good, f"node-{NODE}")
    ours = authority.open_authority(hive.state.private / "ca-key.pem", hive.state.private / "ca-cert.pem")
    wrong = {"expired": (ours, beehives.now() - timedelta(days=20)), "forged": (None, beehives.now())}
    for name, (by, moment) in wrong.items():
        folder = hive.node_folder(name)
        if by is None:
            authority.make_authority(folder / "ca-key.pem", folder / "ca-cert.pem", now=moment)
            by = authority.open_authority(folder / "ca-key.pem", folder / "ca-cert.pem")
        authority.certify(by, folder / "node-key.pem", folder / "node-cert.pem", f"node-{NODE}", days=10, now=moment)
        files.write_text(folder / "beehive-ca.pem", ours.pem)
        assert not enters_broker(rabbit, folder, f"node-{NODE}"), name
    context = ssl.create_default_context(cafile=str(good / "beehive-ca.pem"))
    with (
        pytest.raises(OSError, match=r"certificate required|reset|EOF|alert"),
        socket.create_connection(("localhost", rabbit.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        assert connection.recv(1) != b""
        raise AssertionError("the broker speaks to a client without a certificate")


def test_the_services_own_certificates_open_what_is_theirs(hive: Beehive, rabbit: Broker) -> None:
    private = hive.state.private
    for name in ("loader", "api"):
        parameters = broker_client.by_certificate(
            ("localhost", rabbit.port),
            private / "ca-cert.pem",
            private / f"{name}-cert.pem",
            private / f"{name}-key.pem",
        )
        connection = broker_client.connect(parameters, deadline=30)
        channel = connection.channel()
        if name == "loader":
            channel.basic_get(broker.TO_LOADER, auto_ack=False)
        else:
            queue = channel.queue_declare("", exclusive=True).method.queue
            channel.queue_bind(queue, broker.WAGGLE_MSG, "#")
        connection.close()


def test_the_brokers_users_are_put_right_when_the_service_starts(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    register(hive, hive.node_folder("one"))
    assert hive.stop("registration") == 0
    broker_client.delete_user(rabbit.management, f"node-{NODE}")  # a broker whose data were lost
    broker_client.put_node(rabbit.management, "00000000000000ff")  # one that nobody admitted
    hive.start_registration(rabbit.management.url)
    eventually(lambda: f"node-{NODE}" in broker_client.users(rabbit.management))
    eventually(lambda: "node-00000000000000ff" not in broker_client.users(rabbit.management))


def test_with_admission_by_key_any_node_registers_but_no_removed_one(hive: Beehive, rabbit: Broker) -> None:
    hive.stop("registration")
    hive.start_registration(rabbit.management.url, admit="key")
    try:
        node_id = "00000000000000a1"
        register(hive, hive.node_folder("by-key"), node_id)
        nodes.remove(hive.state.nodes, node_id, now=beehives.now())
        with pytest.raises(NotAdmitted):
            register(hive, hive.node_folder("by-key"), node_id)
    finally:
        hive.stop("registration")
        hive.start_registration(rabbit.management.url)


def test_certificates_near_their_end_are_renewed_with_the_same_keys(hive: Beehive, rabbit: Broker) -> None:
    node_id = "00000000000000a2"
    hive.admit(node_id)
    private = hive.node_folder("near-end")
    register(hive, private, node_id)
    before = {name: (private / name).read_bytes() for name in registering.FILES}
    given = nodes.given_to(hive.state.nodes, node_id)
    ours = authority.open_authority(hive.state.private / "ca-key.pem", hive.state.private / "ca-cert.pem")
    (given / "node-cert.pem").unlink()
    authority.certify(
        ours,
        given / "node-key.pem",
        given / "node-cert.pem",
        f"node-{node_id}",
        days=30,
        now=beehives.now() - timedelta(days=25),
    )
    os.chown(given / "node-cert.pem", given.stat().st_uid, given.stat().st_gid)
    (private / "node-cert.pem").write_bytes((given / "node-cert.pem").read_bytes())
    assert not registering.is_registered(private, node_id, beehives.now())
    register(hive, private, node_id)
    after = {name: (private / name).read_bytes() for name in registering.FILES}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"node-cert.pem", "upload-key-cert.pub"}
    end = certificates.end_of(certificates.read_certificate(private / "node-cert.pem"))
    assert end - beehives.now() > timedelta(days=360)


def test_a_node_waits_for_a_beehive_that_is_away(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    private = hive.node_folder("waiting")
    hive.stop("registration")
    with pytest.raises(Unreachable, match="can't reach the Beehive"):
        register(hive, private)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(register, hive, private, deadline=60)
        time.sleep(3)
        assert not waiting.done()
        hive.start_registration(rabbit.management.url)  # by this thread: a process ends with the thread that made it
        waiting.result(90)
    assert registering.is_registered(private, NODE, beehives.now())


def test_a_beehive_without_its_broker_asks_for_patience(hive: Beehive, rabbit: Broker) -> None:
    node_id = "00000000000000a3"
    hive.admit(node_id)
    hive.stop("registration")
    hive.start_registration("http://127.0.0.1:9")
    try:
        assert ssh(hive, "localhost", "register", node_id).returncode == 75
        node = nodes.read(hive.state.nodes, node_id)
        assert node is not None
        assert node.status == Status.ADMITTED
    finally:
        hive.stop("registration")
        hive.start_registration(rabbit.management.url)
    register(hive, hive.node_folder("patient"), node_id, deadline=30)


def test_garbage_oversized_and_slow_connections_leave_the_service_at_work(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    chance = random.Random(5)  # noqa: S311
    hello = b"SSH-2.0-OpenSSH_9.2\r\n"
    sent = [
        chance.randbytes(2000),
        b"A" * 100_000,
        b"\n" * 50_000,
        b"SSH-1.5-old\r\n",
        hello + b"\xff\xff\xff\xff" + bytes(3_000_000),  # a packet of 4 GiB
        hello + bytes(64),
        *(hello + chance.randbytes(chance.randrange(1, 3000)) for _ in range(40)),
        b"GET / HTTP/1.0\r\n\r\n",
    ]
    for data in sent:
        with socket.create_connection(("127.0.0.1", hive.registration_port), timeout=10) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
            except OSError:
                pass  # cut off, as it should be
    slow = [socket.create_connection(("127.0.0.1", hive.registration_port), timeout=10) for _ in range(30)]
    try:
        for connection in slow:
            connection.sendall(b"SSH-2.0-slo")
        register(hive, hive.node_folder("beside-garbage"), deadline=10)
    finally:
        for connection in slow:
            connection.close()


def test_a_packet_that_never_ends_is_cut_off(hive: Beehive, rabbit: Broker) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", hive.registration_port), timeout=10) as connection:
        connection.sendall(b"SSH-2.0-x\r\n\x7f\xff\xff\xff")
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            while sent < 64 << 20:
                sent += connection.send(bytes(1 << 16))
    assert sent < 32 << 20


def test_strangers_that_say_nothing_are_bounded_and_then_sent_away(hive: Beehive, rabbit: Broker) -> None:
    connections = [socket.create_connection(("127.0.0.1", hive.registration_port), timeout=40) for _ in range(60)]
    try:
        begin = time.monotonic()
        for connection in connections:
            try:
                while connection.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
        assert time.monotonic() - begin < 60  # the deadline of a login, not a measurement
    finally:
        for connection in connections:
            connection.close()
    register(hive, hive.node_folder("after-strangers"), deadline=10)


def test_no_secret_is_in_the_log(hive: Beehive, rabbit: Broker) -> None:
    hive.admit(NODE)
    private = hive.node_folder("logged")
    register(hive, private)
    log = hive.log("registration").read_text()
    assert f"registered node {NODE}" in log
    assert "PRIVATE" not in log
    assert rabbit.management.password not in log


def test_a_missing_variable_ends_the_service_with_2(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        service = process.start([sys.executable, "-m", "virtual_waggle.beehive.registration"], stdout=log, stderr=log)
    assert service.wait(30) == 2
    assert "BEEHIVE_HOST is not set" in (tmp_path / "log").read_text()


def test_the_service_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    with beehives.beehive() as own:
        starter = (
            "import sys\n"
            "from groundwork import process\n"
            "child = process.start([sys.executable, '-m', 'virtual_waggle.beehive.registration'])\n"
            "print(child.pid, flush=True)\n"
            "child.wait()\n"
        )
        environment = {
            "BEEHIVE_LISTEN": f"127.0.0.1:{own.registration_port}",
            "BEEHIVE_HOST": "localhost",
            "BEEHIVE_NODES": str(own.state.nodes),
            "WAGGLE_SECRETS": str(own.state.private),
            "BEEHIVE_MANAGEMENT": "http://127.0.0.1:9",
        }
        parent = process.start([sys.executable, "-c", starter], stdout=subprocess.PIPE, env=environment)
        assert parent.stdout is not None
        service = int(parent.stdout.readline())
        eventually(lambda: brokers.reachable(own.registration_port))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
        eventually(lambda: not Path(f"/proc/{service}").exists())

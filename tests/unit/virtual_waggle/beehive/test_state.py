# SPDX-License-Identifier: Apache-2.0
"""A Beehive's state folder: made once, repaired where it is damaged, and otherwise left alone."""

import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509

from groundwork.errors import InputError
from virtual_waggle import certificates
from virtual_waggle.beehive import state
from virtual_waggle.beehive.state import State
from virtual_waggle.broker import Place

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
PLACE = Place("/run/secrets", "192.0.2.7", "127.0.0.1")
HOST = {"BEEHIVE_HOST": "beehive.example.org,192.0.2.7"}


@pytest.fixture
def made(tmp_path: Path) -> State:
    found = State(tmp_path / "beehive")
    assert state.deploy(found, HOST, PLACE, now=NOW)
    return found


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mode, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def test_deploying_twice_changes_nothing(made: State) -> None:
    before = snapshot(made.folder)
    assert state.deploy(made, HOST, PLACE, now=NOW + timedelta(days=30)) == []
    assert state.deploy(made, {}, PLACE, now=NOW + timedelta(days=60)) == []
    assert snapshot(made.folder) == before


def test_nobody_else_can_read_what_is_private(made: State) -> None:
    assert made.private.stat().st_mode & 0o777 == 0o700
    assert made.nodes.stat().st_mode & 0o777 == 0o700
    secret = ["ca-key.pem", "server-key.pem", "loader-key.pem", "api-key.pem", "ssh-ca-key", "ssh-host-key"]
    for name in [*secret, "register.pem", "admin-password", "definitions.json", "rabbitmq.conf"]:
        assert (made.private / name).stat().st_mode & 0o777 == 0o600, name


@pytest.mark.parametrize(
    "name", ["server-cert.pem", "api-key.pem", "admin-password", "definitions.json", "ssh-ca-key.pub", "known_hosts"]
)
def test_what_is_missing_is_made_again(made: State, name: str) -> None:
    (made.private / name).unlink()
    changed = state.deploy(made, {}, PLACE, now=NOW)
    assert (made.private / name).exists()
    assert changed
    assert state.deploy(made, {}, PLACE, now=NOW) == []


def test_another_host_gives_another_server_certificate_and_keeps_the_authority(made: State) -> None:
    authority = (made.private / "ca-cert.pem").read_bytes()
    changed = state.deploy(made, {"BEEHIVE_HOST": "other.example.org"}, PLACE, now=NOW)
    assert changed == ["beehive.env", "private/server-cert.pem", "private/known_hosts"]
    assert (made.private / "ca-cert.pem").read_bytes() == authority


def test_services_certificates_are_renewed_in_time(made: State) -> None:
    changed = state.deploy(made, {}, PLACE, now=NOW + timedelta(days=600))
    assert changed == ["private/server-cert.pem", "private/loader-cert.pem", "private/api-cert.pem"]


def test_two_beehives_share_no_secret(made: State, tmp_path: Path) -> None:
    other = State(tmp_path / "other")
    state.deploy(other, HOST, PLACE, now=NOW)
    for name in ("ca-key.pem", "ssh-ca-key", "ssh-host-key", "register.pem", "admin-password"):
        assert (made.private / name).read_bytes() != (other.private / name).read_bytes()


def test_a_first_deploy_needs_a_host_and_leaves_nothing_without(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BEEHIVE_HOST is not set"):
        state.deploy(State(tmp_path / "beehive"), {}, PLACE, now=NOW)
    with pytest.raises(InputError, match=r"beehive\.env:\d+: BEEHIVE_PORT: expected"):
        state.deploy(State(tmp_path / "beehive"), {**HOST, "BEEHIVE_PORT": "x"}, PLACE, now=NOW)
    assert not (tmp_path / "beehive/beehive.env").exists()


def test_nodes_know_both_ssh_servers_by_every_name(made: State) -> None:
    handed = state.handout(made)
    assert set(handed) == {"register.pem", "known_hosts"}
    places = [line.split()[0] for line in handed["known_hosts"].splitlines()]
    assert places == [
        "[beehive.example.org]:20022",
        "[beehive.example.org]:20023",
        "[192.0.2.7]:20022",
        "[192.0.2.7]:20023",
    ]


def test_the_brokers_definitions_name_no_node(made: State) -> None:
    (made.nodes / "00000000000000aa.json").write_text("{}")
    state.deploy(made, {}, PLACE, now=NOW)
    assert "node-" not in (made.private / "definitions.json").read_text()


CLUSTER = {
    **HOST,
    "BEEHIVE_CLUSTER": "hive1,hive2,hive3",
    "BEEHIVE_QUEUE_TYPE": "quorum",
    "BEEHIVE_STORE": "postgresql://u@h/d",
}


def test_the_machines_of_a_cluster_have_one_authority_and_one_cookie(tmp_path: Path) -> None:
    first, second = State(tmp_path / "first"), State(tmp_path / "second")
    state.deploy(first, {**CLUSTER, "BEEHIVE_MEMBER": "hive1"}, PLACE, now=NOW)
    with pytest.raises(InputError, match="has no keys of the cluster") as error:
        state.deploy(second, {**CLUSTER, "BEEHIVE_MEMBER": "hive2"}, PLACE, now=NOW)
    assert error.value.hint == "copy the folder private of hive1 there first"
    shutil.copytree(first.private, second.private, dirs_exist_ok=True)
    changed = state.deploy(second, {}, PLACE, now=NOW)
    # It waits longer than the first for others; all else is the same.
    assert [name for name in changed if name.startswith("private/")] == ["private/rabbitmq.conf"]
    cookies = [one.folder / "rabbitmq/.erlang.cookie" for one in (first, second)]
    assert cookies[0].read_text() == cookies[1].read_text()
    assert [path.stat().st_mode & 0o777 for path in cookies] == [0o600, 0o600]
    assert state.deploy(second, {}, PLACE, now=NOW) == []
    certificate = certificates.read_certificate(first.private / "server-cert.pem")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"hive1", "hive2", "hive3", "localhost"} <= set(names.get_values_for_type(x509.DNSName))


def test_one_machine_has_no_cookie_of_ours(made: State) -> None:
    assert not (made.private / state.COOKIE).exists()
    assert not (made.folder / "rabbitmq/.erlang.cookie").exists()

# SPDX-License-Identifier: Apache-2.0
"""Host keys: made for a server, given by cloud-init, known by its metadata."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from paramiko import Ed25519Key

from groundwork.errors import InputError
from node_automation import host_keys, server, ssh
from node_automation.host_keys import GIVEN, OWN, HostKeyError
from node_automation.ssh import Target
from tests.unit.node_automation.site import server_row


def test_each_key_is_another_and_its_parts_belong_together(tmp_path: Path) -> None:
    key, other = host_keys.make(), host_keys.make()
    assert key.public != other.public
    (tmp_path / "key").write_text(key.private)
    assert f"ssh-ed25519 {Ed25519Key(filename=str(tmp_path / 'key')).get_base64()}" == key.public


def test_user_data_gives_the_host_key_and_lets_people_in() -> None:
    key = host_keys.make()
    more = {"packages": ["htop"], "ssh_authorized_keys": ["ssh-rsa THEIRS", "ssh-ed25519 ME"]}
    text = host_keys.user_data(key, ["ssh-ed25519 ME"], more)
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text) == {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": key.private, "ed25519_public": key.public},
        "ssh_authorized_keys": ["ssh-ed25519 ME", "ssh-rsa THEIRS"],
        "packages": ["htop"],
    }


@pytest.mark.parametrize("name", ["ssh_keys", "ssh_deletekeys"])
def test_what_is_ours_to_set_can_not_be_set(name: str) -> None:
    with pytest.raises(InputError, match=name):
        host_keys.user_data(host_keys.make(), [], {name: {}})


def test_more_than_a_site_takes_is_refused_before() -> None:
    with pytest.raises(InputError, match="48 KiB"):
        host_keys.user_data(host_keys.make(), [], {"write_files": [{"content": "x" * 50_000}]})


def test_its_own_key_comes_before_the_given_one() -> None:
    assert host_keys.accepted({GIVEN: "a", OWN: "b"}) == ("b", "a")
    assert host_keys.accepted({GIVEN: "a"}) == ("a",)
    assert host_keys.accepted({OWN: "b"}) == ("b",)
    assert host_keys.accepted({}) == ()


def test_a_public_key_is_read_out_of_what_a_server_prints() -> None:
    key = host_keys.make()
    assert host_keys.read_public(f"Welcome!\n{key.public} root@node\n") == key.public


@pytest.mark.parametrize("text", ["", "no key", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa AAAA", "ssh-ed25519 %%%"])
def test_what_is_no_key_is_none(text: str) -> None:
    with pytest.raises(HostKeyError):
        host_keys.read_public(text)


def target(node: str = "n", **more: Any) -> Target:
    return Target(node, f"id-{node}", "192.5.87.3", ("ssh-ed25519 OWN", "ssh-ed25519 GIVEN"), **more)


def test_people_s_ssh_never_takes_a_key_unseen(tmp_path: Path) -> None:
    config = ssh.write_files(tmp_path, "chi_uc", [target(identity=Path("/home/me/.ssh/id"))]).read_text()
    assert "StrictHostKeyChecking yes" in config
    assert "HostKeyAlias sage-id-n" in config
    assert 'IdentityFile "/home/me/.ssh/id"' in config
    known = (tmp_path / "nodes/known_hosts").read_text()
    assert known == "sage-id-n ssh-ed25519 OWN\nsage-id-n ssh-ed25519 GIVEN\n"


def test_the_files_have_the_nodes_of_all_sites(tmp_path: Path) -> None:
    ssh.write_files(tmp_path, "chi_uc", [target("a"), target("b")])
    config = ssh.write_files(tmp_path, "chi_tacc", [target("c")])
    assert [line for line in config.read_text().splitlines() if line.startswith("Host ")] == [
        "Host c",
        "Host a",
        "Host b",
    ]
    ssh.write_files(tmp_path, "chi_uc", [target("b")])
    assert "Host a" not in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600


def test_where_a_server_is_reached() -> None:
    found = ssh.target_of(server.read(server_row()), None)
    assert (found.address, found.keys, found.user) == ("192.5.87.3", ("ssh-ed25519 AAAA",), "cc")
    with pytest.raises(InputError, match="no floating IP"):
        ssh.target_of(server.read(server_row(addresses={})), None)
    assert ssh.target_of(server.read(server_row(addresses={})), None, address="10.0.0.2").address == "10.0.0.2"
    with pytest.raises(InputError, match=r"host key of .* is not known"):
        ssh.target_of(server.read(server_row(metadata={})), None)
    other = server.read(server_row(metadata={"sage_host_key": "ssh-ed25519 AAAA", "sage_user": "ubuntu"}))
    assert ssh.target_of(other, None).user == "ubuntu"
    assert ssh.target_of(other, None, user="root").user == "root"


def test_the_key_to_log_in_with_is_made_once_and_is_the_owner_s_alone(tmp_path: Path) -> None:
    path, public = ssh.identity(tmp_path, None)
    assert ssh.identity(tmp_path, None) == (path, public)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public.split()[1] == Ed25519Key(filename=str(path)).get_base64()


def test_a_key_that_was_named_needs_its_public_part(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("private")
    with pytest.raises(InputError, match=r"no public part key\.pub"):
        ssh.identity(tmp_path, tmp_path / "key")
    (tmp_path / "key.pub").write_text("ssh-rsa AAAA me\n")
    assert ssh.identity(tmp_path, tmp_path / "key") == (tmp_path / "key", "ssh-rsa AAAA me")


def test_a_host_key_in_metadata_that_is_none_is_told() -> None:
    with pytest.raises(InputError, match="is no ed25519 host key"):
        ssh.connect(target())

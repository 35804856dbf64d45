# SPDX-License-Identifier: Apache-2.0
"""What a node makes of a Beehive's answer: kept when it is all of it and the node's own, else nothing of it counts."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundwork.errors import InputError, SageError
from virtual_waggle.beehive import authority
from virtual_waggle.node import registering

NODE, OTHER = "00000000000000aa", "00000000000000bb"
NOW = datetime.now(timezone.utc)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    authority.make_authority(folder / "ca-key.pem", folder / "beehive-ca.pem", now=NOW)
    ours = authority.open_authority(folder / "ca-key.pem", folder / "beehive-ca.pem")
    authority.certify(ours, folder / "node-key.pem", folder / "node-cert.pem", f"node-{NODE}", days=365, now=NOW)
    authority.make_ssh_key(folder / "upload-key", "node")
    (folder / "upload-key-cert.pub").write_text("ssh-ed25519-cert-v01@openssh.com AAAA\n")
    return {name: (folder / name).read_text() for name in registering.FILES}


def answer(files: dict[str, str], **changes: Any) -> bytes:
    return json.dumps({"node": NODE, "until": "2027-11-21T12:00:00Z", "files": files, **changes}).encode()


def test_a_whole_answer_is_kept_privately(tmp_path: Path, files: dict[str, str]) -> None:
    assert not registering.is_registered(tmp_path, NODE, NOW)
    assert registering.keep(tmp_path, NODE, answer(files)) == "2027-11-21T12:00:00Z"
    assert registering.is_registered(tmp_path, NODE, NOW)
    assert {path.name for path in tmp_path.iterdir()} == set(registering.FILES)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", registering.FILES)
def test_a_node_of_which_something_is_missing_is_not_registered(
    tmp_path: Path, files: dict[str, str], name: str
) -> None:
    registering.keep(tmp_path, NODE, answer(files))
    (tmp_path / name).unlink()
    assert not registering.is_registered(tmp_path, NODE, NOW)
    registering.keep(tmp_path, NODE, answer(files))
    assert registering.is_registered(tmp_path, NODE, NOW)


def test_a_node_is_not_registered_by_anothers_certificate_or_in_the_last_third_of_its_own(
    tmp_path: Path, files: dict[str, str]
) -> None:
    registering.keep(tmp_path, NODE, answer(files))
    assert not registering.is_registered(tmp_path, OTHER, NOW)
    assert registering.is_registered(tmp_path, NODE, NOW + timedelta(days=240))
    assert not registering.is_registered(tmp_path, NODE, NOW + timedelta(days=250))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 60_000,
        b'{"node": "00000000000000aa", "until": "x", "files": []}',
        b'{"node": "00000000000000aa", "until": "x", "files": {"node-key.pem": 5}}',
        b" " * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_answer_changes_nothing(tmp_path: Path, files: dict[str, str], body: bytes) -> None:
    with pytest.raises(SageError, match="answer is not what a registration gives"):
        registering.keep(tmp_path, NODE, body)
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=300))
def test_no_garbage_gets_through(body: bytes) -> None:
    with pytest.raises(SageError):
        registering.keep(Path("/nonexistent"), NODE, body)


def test_an_answer_for_another_node_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(SageError, match="answer is not what"):
        registering.keep(tmp_path, NODE, answer(files, node=OTHER))
    with pytest.raises(SageError, match="not this node's, or about to end"):
        registering.keep(tmp_path, OTHER, answer(files, node=OTHER))


def test_an_answer_cannot_name_files_of_its_own(tmp_path: Path, files: dict[str, str]) -> None:
    registering.keep(tmp_path / "private", NODE, answer({**files, "../outside": "x", "register.pem": "x"}))
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "private/register.pem").exists()


def test_what_the_operator_must_hand_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't read .*register\.pem") as error:
        registering.register(tmp_path, NODE, registering.Beehive("localhost"), deadline=0)
    assert error.value.hint == "the operator of the Beehive hands it out"

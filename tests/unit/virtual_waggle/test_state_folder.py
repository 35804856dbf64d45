# SPDX-License-Identifier: Apache-2.0
"""Where state is kept, and who can read the secrets in it."""

import os
from pathlib import Path

import pytest

from virtual_waggle import state_folder


def test_the_folder_given_counts_before_the_variable_and_the_machine(tmp_path: Path) -> None:
    environment = {"X_STATE_DIR": "/from/variable", "XDG_STATE_HOME": str(tmp_path)}
    assert state_folder.chosen("/given", "X_STATE_DIR", "x", environment) == Path("/given")
    assert state_folder.chosen(None, "X_STATE_DIR", "x", environment) == Path("/from/variable")


def test_who_cannot_write_the_machines_folder_has_one_of_his_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    assert state_folder.chosen(None, "X_STATE_DIR", "x", environment) == tmp_path / "x"


def test_passwords_are_random_and_stay(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert state_folder.password(one)
    assert state_folder.password(other)
    text = one.read_text()
    assert len(text) >= 27
    assert text != other.read_text()
    assert one.stat().st_mode & 0o777 == 0o600
    assert not state_folder.password(one)
    assert one.read_text() == text


def test_a_secret_that_others_can_read_is_guarded_again(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    state_folder.keep_secret(path, "text")
    path.chmod(0o644)
    assert state_folder.keep_secret(path, "text")
    assert path.stat().st_mode & 0o777 == 0o600
    assert not state_folder.keep_secret(path, "text")


def test_an_empty_password_file_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch()
    assert state_folder.password(path)
    assert path.read_text()


def test_a_private_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    assert state_folder.private_folder(folder)
    assert not state_folder.private_folder(folder)
    folder.chmod(0o755)
    assert state_folder.private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700

# SPDX-License-Identifier: Apache-2.0
"""Files are whole or absent; digests see what counts; locks hold."""

import hashlib
import os
from pathlib import Path

import pytest

from groundwork import files
from groundwork.errors import InputError, SageError


def test_a_file_appears_whole_and_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "new/secret"
    files.write_text(path, "word", mode=0o600)
    assert path.read_text() == "word"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.writing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_all_digests_of_one_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(3 << 20)
    path.write_bytes(data)
    assert files.digest_file(path) == files.Digests(
        len(data), hashlib.md5(data).hexdigest(), hashlib.sha256(data).hexdigest(), hashlib.sha512(data).hexdigest()
    )


def test_a_tree_digest_sees_names_contents_modes_and_links_alone(tmp_path: Path) -> None:
    def tree(name: str) -> Path:
        top = tmp_path / name
        (top / "a").mkdir(parents=True)
        (top / "a/script").write_text("x")
        (top / "link").symlink_to("a/script")
        (top / "folder").symlink_to("a")
        return top

    first = files.digest_tree(tree("first"))
    second = tree("second")
    assert files.digest_tree(second) == first
    (second / "a/__pycache__").mkdir()
    (second / "a/__pycache__/x.pyc").write_text("compiled")
    os.utime(second / "a/script", (1, 1))
    assert files.digest_tree(second) == first
    (second / "a/script").chmod(0o755)
    changed = {first, files.digest_tree(second)}
    (second / "a/script").write_text("y")
    changed.add(files.digest_tree(second))
    (second / "link").unlink()
    changed.add(files.digest_tree(second))
    (second / "a/script").rename(second / "a/other")
    changed.add(files.digest_tree(second))
    (second / "folder").unlink()
    (second / "folder").symlink_to("elsewhere")
    changed.add(files.digest_tree(second))
    assert len(changed) == 6


def test_a_lock_is_held_once_and_names_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    told: list[str] = []
    with files.lock(path), pytest.raises(SageError, match=f"pid {os.getpid()}"), files.lock(path, on_wait=told.append):
        pass
    assert told == [str(os.getpid())]
    with files.lock(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_file_in_the_way_of_a_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        files.make_folder(tmp_path / "file/below")


def test_a_removed_tree_is_gone_and_an_absent_one_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "tree/a/b").mkdir(parents=True)
    files.remove_tree(tmp_path / "tree")
    files.remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_was_killed_is_finished_but_not_a_living_ones(tmp_path: Path) -> None:
    (tmp_path / "dead.4194305.removing/x").mkdir(parents=True)
    (tmp_path / f"alive.{os.getpid()}.removing").mkdir()
    files.sweep_removals(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"alive.{os.getpid()}.removing"]


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(20000)))
    assert files.tail(path, 2) == "line 19998\nline 19999"
    assert files.tail(tmp_path / "absent", 2) == ""

# SPDX-License-Identifier: Apache-2.0
"""The one command that a node may give, and what of an upload that has come is kept."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtual_waggle.beehive import upload_server
from virtual_waggle.beehive.ssh_service import WRONG_INPUT, Refusal
from virtual_waggle.beehive.upload_server import INCOMING, Command, Uploads

NODE = "00000000000000aa"
SHA1 = hashlib.sha1(b"content").hexdigest()
NAME = f"5-{SHA1}"


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, tmp_path, tmp_path / "uploads", 1 << 20, 0)


def came(uploads: Uploads, content: bytes = b"content", **changes: Any) -> Path:
    staging = uploads.folder / INCOMING / f"node-{NODE}/job/task" / NAME
    staging.mkdir(parents=True)
    (staging / "data").write_bytes(content)
    told = {"timestamp": 5, "shasum": SHA1, "labels": {"filename": "a"}, "node": NODE, "job": "job", "task": "task"}
    (staging / "meta").write_text(json.dumps({**told, "plugin": "p", **changes}))
    return staging


COMMAND = Command("-te.LsfxCIvu", "job", "task", NAME)


@pytest.mark.parametrize(
    "words",
    [
        f"rsync --server -te.LsfxCIvu --timeout=60 --inplace . job/task/{NAME}/",
        f"rsync --server -vte.LsfxCIvu --inplace . job/task/{NAME}",
        f"rsync --server -te31.14LsfxC --inplace --partial . 'job/task/{NAME}/'",
    ],
)
def test_rsyncs_of_several_releases_are_understood(words: str) -> None:
    found = upload_server.parse_command(words)
    assert (found.job, found.task, found.name) == ("job", "task", NAME)


@given(st.text(max_size=100))
def test_no_other_command_is_taken(words: str) -> None:
    for command in (words, f"rsync --server {words}", f"rsync --server -te.LsfxCIvu {words} . job/task/{NAME}/ x"):
        with pytest.raises(Refusal) as refusal:
            upload_server.parse_command(command)
        assert refusal.value.status == WRONG_INPUT


@given(st.text(st.characters(blacklist_characters=" '\"\\\t\n\r"), min_size=1, max_size=40))
def test_no_option_of_a_nodes_own_reaches_rsync(option: str) -> None:
    try:
        upload_server.parse_command(f"rsync --server -te.LsfxCIvu {option} . job/task/{NAME}/")
    except Refusal:
        return
    assert upload_server._LONG_OPTIONS.fullmatch(option)


def test_an_upload_that_is_right_is_moved_to_its_place(uploads: Uploads) -> None:
    staging = came(uploads)
    (staging / "data").chmod(0)
    place = upload_server.keep(uploads, NODE, COMMAND, staging)
    assert place == uploads.folder / f"node-{NODE}/job/task" / NAME
    assert (place / "data").read_bytes() == b"content"
    assert (place / "data").stat().st_mode & 0o777 == 0o644
    assert not staging.exists()


def test_what_is_kept_is_never_replaced(uploads: Uploads) -> None:
    place = upload_server.keep(uploads, NODE, COMMAND, came(uploads))
    before = (place / "meta").read_bytes()
    staging = came(uploads, labels={"filename": "b"})
    assert upload_server.keep(uploads, NODE, COMMAND, staging) == place
    assert (place / "meta").read_bytes() == before
    assert not staging.exists()


def _spoil(staging: Path, what: str) -> None:
    data = staging / "data"
    if what == "no data":
        data.unlink()
    elif what == "one more":
        (staging / "more").touch()
    elif what == "link":
        data.rename(staging.parent / "data")
        data.symlink_to(staging.parent / "data")
    elif what == "hard link":
        os.link(data, staging.parent / "other")
    elif what == "folder":
        data.unlink()
        data.mkdir()
    elif what == "pipe":
        data.unlink()
        os.mkfifo(data)
    elif what == "huge meta":
        (staging / "meta").write_bytes(b" " * 100_000)


@pytest.mark.parametrize("what", ["no data", "one more", "link", "hard link", "folder", "pipe", "huge meta"])
def test_anything_but_two_plain_files_is_refused_and_gone(uploads: Uploads, what: str) -> None:
    staging = came(uploads)
    _spoil(staging, what)
    with pytest.raises(Refusal) as refusal:
        upload_server.keep(uploads, NODE, COMMAND, staging)
    assert refusal.value.status == WRONG_INPUT
    assert not staging.exists()
    assert not (uploads.folder / f"node-{NODE}").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"content": b"other"}, "SHA-1"),
        ({"node": "00000000000000bb"}, "node is another"),
        ({"job": "another"}, "job or task"),
        ({"task": "../task"}, "job or task"),
        ({"plugin": None}, "plugin"),
    ],
)
def test_an_upload_that_tells_of_another_is_refused(uploads: Uploads, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        upload_server.keep(uploads, NODE, COMMAND, came(uploads, **changes))
    assert not (uploads.folder / f"node-{NODE}").exists()


def test_what_was_broken_off_is_swept_after_a_week(uploads: Uploads) -> None:
    staging = came(uploads)
    changed = (staging / "data").stat().st_mtime
    for path in (staging, *staging.iterdir()):
        os.utime(path, (changed, changed))
    upload_server.sweep(uploads.folder / INCOMING, changed + 6 * 86400)
    assert staging.exists()
    upload_server.sweep(uploads.folder / INCOMING, changed + 8 * 86400)
    assert not staging.exists()

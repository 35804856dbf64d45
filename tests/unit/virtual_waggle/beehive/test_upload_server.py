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

from groundwork import process
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


def kept(uploads: Uploads, timestamp: int, job: str = "job", task: str = "task", node: str = NODE) -> Path:
    place = uploads.folder / f"node-{node}" / job / task / f"{timestamp}-{SHA1}"
    place.mkdir(parents=True)
    (place / "data").write_bytes(b"content")
    (place / "meta").write_text("{}")
    return place


def test_uploads_are_removed_by_the_time_in_their_name(uploads: Uploads) -> None:
    old = [kept(uploads, 9), kept(uploads, 99), kept(uploads, 5, "other%20job"), kept(uploads, 5, node="0" * 16)]
    new = [kept(uploads, 100), kept(uploads, 2**63 - 1)]
    assert upload_server.expire(uploads.folder, 100, 1000) == 4
    assert not any(place.exists() for place in old)
    assert all((place / "data").exists() for place in new)
    # folders in which nothing is left go too, but for the nodes'
    assert {path.name for path in uploads.folder.rglob("*") if path.is_dir()} == {
        f"node-{NODE}",
        "node-" + "0" * 16,
        "job",
        "task",
        *(place.name for place in new),
    }
    assert upload_server.expire(uploads.folder, 100, 1000) == 0


def test_no_more_than_so_many_uploads_are_removed_at_a_time(uploads: Uploads) -> None:
    for number in range(10):
        kept(uploads, number)
    assert [upload_server.expire(uploads.folder, 100, 4) for _ in range(4)] == [4, 4, 2, 0]


def test_nothing_else_is_removed_for_its_age_and_nothing_outside(uploads: Uploads, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for folder in (outside / "job/task" / NAME, outside / "task" / NAME, outside / NAME):
        folder.mkdir(parents=True)
        (folder / "data").touch()
    came(uploads)  # on its way
    task = kept(uploads, 1000).parent
    (uploads.folder / "node-00000000000000cc").symlink_to(outside)
    (uploads.folder / f"node-{NODE}/linked").symlink_to(outside)
    (task.parent / "linked").symlink_to(outside)
    (task / f"6-{SHA1}").symlink_to(outside)
    for name in (f"05-{SHA1}", "5-x", f"5-{SHA1}.old", SHA1):
        (task / name).mkdir()
    (task / f"7-{SHA1}").touch()
    (uploads.folder / f"another/job/task/{NAME}").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert upload_server.expire(uploads.folder, 900, 1000) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_service_had_begun_to_remove_is_removed(uploads: Uploads) -> None:
    place = kept(uploads, 5)
    kept(uploads, 6)
    place.rename(uploads.folder / ".expired")
    assert upload_server.expire(uploads.folder, 100, 1000) == 1
    assert [path.name for path in uploads.folder.rglob("*")] == [f"node-{NODE}"]


@pytest.mark.parametrize(
    ("given", "hours"),
    [
        ({}, None),
        ({"BEEHIVE_RETENTION": "2h"}, 2),
        ({"BEEHIVE_UPLOAD_RETENTION": "3h"}, 3),
        ({"BEEHIVE_RETENTION": "2h", "BEEHIVE_UPLOAD_RETENTION": "3h"}, 3),
    ],
)
def test_files_are_kept_as_long_as_measurements_where_nothing_else_is_said(
    given: dict[str, str], hours: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "require", lambda *programs: None)
    for name in ("ssh-ca-key.pub", "ssh-host-key"):
        (tmp_path / name).touch()
    folders = dict.fromkeys(("BEEHIVE_NODES", "BEEHIVE_UPLOADS", "WAGGLE_SECRETS"), str(tmp_path))
    found, _ = upload_server.uploads_of({**folders, **given})
    assert found.retention == (None if hours is None else hours * 3_600_000_000_000)

# SPDX-License-Identifier: Apache-2.0
"""Which of what plugins left is an upload, when, and what goes when there is no room."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from virtual_waggle.node import apps, uploader
from virtual_waggle.node.apps import App
from virtual_waggle.node.uploader import Known, Settings

APP = "birds-1"


@pytest.fixture
def given(tmp_path: Path) -> Settings:
    made = Settings("00000000000000aa", tmp_path / "uploads", tmp_path / "apps", tmp_path, "localhost", 1, 1 << 20)
    (made.uploads / APP).mkdir(parents=True)
    apps.add(made.apps, APP, App("birds:1", "job", "task"))
    return made


def left(given: Settings, timestamp: int, content: bytes = b"content", *, meta: str | None = None) -> Path:
    sha1 = hashlib.sha1(content).hexdigest()
    folder = given.uploads / APP / f"{timestamp}-{sha1}"
    folder.mkdir()
    (folder / "data").write_bytes(content)
    text = {"timestamp": timestamp, "shasum": sha1, "labels": {"filename": "a"}}
    (folder / "meta").write_text(json.dumps(text) if meta is None else meta)
    return folder


def found(given: Settings, known: Known, now: float) -> list[Path]:
    return [waiting.folder for waiting in uploader.look(given, known, now)]


def test_whole_uploads_go_the_oldest_first_with_job_and_node(given: Settings) -> None:
    new, old = left(given, 200), left(given, 100)
    waiting = uploader.look(given, Known(), time.time())
    assert [one.folder for one in waiting] == [old, new]
    assert waiting[0].upload.node == "00000000000000aa"
    assert (waiting[0].upload.job, waiting[0].upload.task, waiting[0].upload.plugin) == ("job", "task", "birds:1")


def test_what_is_still_being_written_is_waited_for(given: Settings) -> None:
    known = Known()
    folder = left(given, 100, meta='{"timest')
    assert found(given, known, time.time()) == []
    sha1 = folder.name.split("-")[1]
    (folder / "meta").write_text(json.dumps({"timestamp": 100, "shasum": sha1, "labels": {"filename": "a"}}))
    assert found(given, known, time.time()) == [folder]


def test_what_does_not_become_an_upload_is_told_once_and_stays(
    given: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    folder = left(given, 100, meta="{}")
    (given.uploads / APP / "empty").mkdir()
    known = Known()
    for _ in range(3):
        assert found(given, known, time.time() + 100) == []
    assert len([line for line in caplog.messages if "is no upload" in line]) == 2
    assert folder.exists()


def test_other_bytes_than_the_name_says_do_not_go(given: Settings) -> None:
    folder = left(given, 100)
    (folder / "data").write_bytes(b"other")
    assert found(given, Known(), time.time() + 100) == []


def test_a_file_that_was_written_anew_is_looked_at_anew(given: Settings) -> None:
    known = Known()
    folder = left(given, 100)
    (folder / "data").write_bytes(b"other")
    assert found(given, known, time.time() + 100) == []
    (folder / "data").write_bytes(b"content")
    assert found(given, known, time.time() + 100) == [folder]


def test_links_and_pipes_are_not_followed_or_read(given: Settings, tmp_path: Path) -> None:
    secret = tmp_path / "data"
    secret.write_bytes(b"content")
    one = left(given, 100)
    (one / "data").unlink()
    (one / "data").symlink_to(secret)
    two = left(given, 200)
    (two / "data").unlink()
    os.mkfifo(two / "data")
    outside = left(given, 300)
    outside.rename(tmp_path / outside.name)
    (given.uploads / APP / outside.name).symlink_to(tmp_path / outside.name)
    assert found(given, Known(), time.time() + 100) == []


def test_an_app_that_nobody_told_of_waits_until_somebody_does(
    given: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    known = Known()
    folder = left(given, 100)
    apps.remove(given.apps, APP)
    assert found(given, known, time.time()) == []
    assert found(given, known, time.time()) == []
    assert len([line for line in caplog.messages if "wait" in line]) == 1
    apps.add(given.apps, APP, App("birds:1", "job", "task"))
    assert found(given, known, time.time()) == [folder]


def test_an_app_that_ended_is_remembered_until_its_folder_is_empty(given: Settings) -> None:
    known = Known()
    folder = left(given, 100)
    assert found(given, known, time.time()) == [folder]
    apps.remove(given.apps, APP)
    uploader.tidy(given)
    assert found(given, Known(), time.time()) == [folder]
    uploader.forget(folder, known)
    uploader.tidy(given)
    assert [path.name for path in given.uploads.iterdir()] == [".apps"]
    assert list((given.uploads / ".apps").iterdir()) == []


def test_where_there_is_no_room_the_oldest_go_first_and_it_is_told(
    given: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [left(given, number, bytes([number]) * 100_000) for number in (3, 1, 2)]
    deleted = uploader.trim(given.uploads, 250_000)
    assert deleted == [folders[1]]
    assert folders[0].exists()
    assert folders[2].exists()
    assert "is deleted before it was uploaded" in caplog.text
    assert uploader.trim(given.uploads, 250_000) == []


def test_garbage_counts_too(given: Settings) -> None:
    garbage = given.uploads / APP / "deep/er/still"
    garbage.mkdir(parents=True)
    (garbage / "file").write_bytes(bytes(300_000))
    kept = left(given, time.time_ns() + 10**12)
    assert uploader.trim(given.uploads, 100_000) == [given.uploads / APP / "deep"]
    assert kept.exists()


def test_deleting_through_a_link_leaves_what_it_points_at(given: Settings, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(bytes(300_000))
    (given.uploads / APP / "link").symlink_to(outside)
    left(given, 5, bytes(200_000))
    uploader.trim(given.uploads, 0)
    assert (outside / "file").exists()
    assert list((given.uploads / APP).iterdir()) == []

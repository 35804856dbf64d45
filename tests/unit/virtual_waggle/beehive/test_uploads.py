# SPDX-License-Identifier: Apache-2.0
"""The file that a link names: found where the upload server puts it, and nowhere else."""

import os
from pathlib import Path

import pytest

from virtual_waggle import upload
from virtual_waggle.beehive import uploads
from virtual_waggle.upload import Upload

NODE = "00000000000000aa"
SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


def kept(top: Path, job: str, filename: str, sha1: str = SHA1) -> Upload:
    told = Upload(5, sha1, filename, {"filename": filename}, NODE, job, "task", "plugin")
    folder = top / f"node-{NODE}" / told.place
    folder.mkdir(parents=True)
    (folder / "data").write_text(filename)
    (folder / "meta").write_bytes(upload.encode(told))
    return told


def content(top: Path, job: str, name: str, *, task: str = "task", node: str = NODE) -> str | None:
    descriptor = uploads.find(top, job, task, node, name)
    if descriptor is None:
        return None
    with os.fdopen(descriptor) as stream:
        return stream.read()


@pytest.mark.parametrize("job", ["job", "Birds of/Chicago", "..", ".hidden", "a" * 256, "\u00e9" * 256, "%2E"])
def test_a_file_of_any_job_is_found_by_its_link(tmp_path: Path, job: str) -> None:
    kept(tmp_path, job, "a b.jpg")
    assert content(tmp_path, job, "5-a b.jpg") == "a b.jpg"


def test_two_files_of_one_moment_are_told_apart(tmp_path: Path) -> None:
    kept(tmp_path, "job", "one")
    kept(tmp_path, "job", "other", "0" * 40)
    assert content(tmp_path, "job", "5-one") == "one"
    assert content(tmp_path, "job", "5-other") == "other"
    assert content(tmp_path, "job", "5-third") is None
    assert content(tmp_path, "job", "6-one") is None


def test_no_link_leads_out_of_the_uploads(tmp_path: Path) -> None:
    top = tmp_path / "uploads"
    kept(top, "job", "one")
    kept(tmp_path / "other", "job", "one")
    for job, task in (("../../other", "task"), ("job", "../task"), ("", "task"), ("job", ""), ("job/task", ".")):
        assert content(top, job, "5-one", task=task) is None
    assert content(top, "job", "5-one", node="../other") is None
    assert content(top, "job", "5-../one") is None


def test_what_came_half_is_not_found(tmp_path: Path) -> None:
    told = kept(tmp_path, "job", "one")
    staging = tmp_path / ".incoming"
    staging.mkdir()
    (tmp_path / f"node-{NODE}").rename(staging / f"node-{NODE}")
    assert content(tmp_path, "job", f"{told.timestamp}-one") is None

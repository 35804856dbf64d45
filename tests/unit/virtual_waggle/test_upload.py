# SPDX-License-Identifier: Apache-2.0
"""What is an upload, and what is none; and that no name leads out of its folder."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtual_waggle import upload
from virtual_waggle.upload import Unfit

SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
NAME = f"1700000000000000001-{SHA1}"
SENT = {"node": "00000000000000aa", "job": "Birds", "task": "sampler", "plugin": "waggle/birds:1.2.3"}


def meta(**changes: Any) -> bytes:
    data = {
        "timestamp": 1700000000000000001,
        "shasum": SHA1,
        "labels": {"camera": "left", "filename": "a b.jpg"},
        **SENT,
        **changes,
    }
    return json.dumps(data).encode()


def test_what_pywaggle_writes_is_an_upload() -> None:
    found = upload.decode(NAME, meta(), sent=False)
    assert (found.timestamp, found.sha1, found.filename) == (1700000000000000001, SHA1, "a b.jpg")
    assert found.labels["camera"] == "left"
    assert found.name == NAME
    assert found.job == ""


def test_what_is_sent_comes_back_equal() -> None:
    found = upload.decode(NAME, meta(), sent=True)
    assert found.job == "Birds"
    assert upload.decode(NAME, upload.encode(found), sent=True) == found


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("x", meta(), "its name"),
        (f"01-{SHA1}", meta(), "its name"),
        (f"99999999999999999999-{SHA1}", meta(), "its name"),
        (f"9999999999999999999-{SHA1}", meta(), "its name"),
        (f"{NAME}\n", meta(), "its name"),
        (f"5-{SHA1}", meta(), "timestamp"),
        (NAME, meta(shasum="0" * 40), "shasum"),
        (NAME, meta(timestamp=1.7e18), "timestamp"),
        (NAME, b"", "no JSON"),
        (NAME, b"\xff\x00", "no JSON"),
        (NAME, b"[" * 50_000, "no JSON"),
        (NAME, b" " * 70_000, "at most 65536"),
        (NAME, b"[]", "no JSON object"),
        (NAME, meta(labels=[]), "labels"),
        (NAME, meta(labels={}), "labels.filename"),
        (NAME, meta(labels={"filename": "../a"}), "labels.filename"),
        (NAME, meta(labels={"filename": ".."}), "labels.filename"),
        (NAME, meta(labels={"filename": "a\0"}), "NUL"),
        (NAME, meta(labels={"filename": "a\udc80"}), "surrogate"),
        (NAME, meta(labels={"filename": "\u00e9" * 128}), "at most 255 bytes"),
        (NAME, meta(labels={"filename": "a", "b": {}}), "texts or numbers"),
        (NAME, meta(labels={"filename": "a", "b": None}), "texts or numbers"),
        (NAME, meta(labels={"filename": "a", "b": "c" * 257}), "at most 256"),
        (NAME, meta(labels={"filename": "a", **{str(n): 1 for n in range(64)}}), "at most 64"),
        (NAME, meta(job=""), "job"),
        (NAME, meta(job=5), "job"),
        (NAME, meta(task="a\0"), "NUL"),
        (NAME, meta(plugin="a" * 257), "plugin"),
        (NAME, meta(node="../../../etc/xyz"), "node"),
    ],
)
def test_what_is_none_is_told_why(name: str, body: bytes, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        upload.decode(name, body, sent=True)


@given(st.binary(max_size=200))
def test_garbage_is_unfit_and_nothing_else(body: bytes) -> None:
    with pytest.raises(Unfit):
        upload.decode(NAME, body, sent=True)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=256))
def test_any_job_is_a_folder_that_stays_where_it_belongs(job: str) -> None:
    place = upload.decode(NAME, meta(), sent=True)._replace(job=job, task=job).place
    assert upload.parse_place(place) == (upload.folder_name(job), upload.folder_name(job), NAME)
    assert ".." not in place.split("/")
    assert max(map(len, place.split("/"))) <= 200


def test_jobs_of_different_names_have_different_folders() -> None:
    names = ["a", "A", "a/b", "a%2Fb", ".", "..", "%2E", "a" * 256, "a" * 255, "\u00e9" * 256]
    assert len({upload.folder_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "place",
    [
        "",
        "/",
        NAME,
        f"a/{NAME}",
        f"a/b/c/{NAME}",
        f"../b/{NAME}",
        f"a/../{NAME}",
        f"a/./{NAME}",
        f"/a/{NAME}",
        f"a//{NAME}",
        f"a/b/{NAME}/..",
        f"a/.b/{NAME}",
        f"a b/c/{NAME}",
        f"a\n/c/{NAME}",
        "a/b/data",
    ],
)
def test_no_other_place_is_taken(place: str) -> None:
    with pytest.raises(Unfit):
        upload.parse_place(place)

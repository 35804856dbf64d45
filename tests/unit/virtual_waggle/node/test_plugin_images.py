# SPDX-License-Identifier: Apache-2.0
"""What `docker save` wrote is checked before Docker sees it."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from groundwork.errors import InputError
from virtual_waggle.node import plugin_images

ENTRY = {"Config": "config.json", "RepoTags": ["me/sky:1.0"], "Layers": ["1/layer.tar"]}


def save(path: Path, manifest: Any, names: tuple[str, ...] = ("config.json", "1/layer.tar")) -> Path:
    members = [(name, b"x") for name in names]
    if manifest is not None:
        members.append(("manifest.json", manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()))
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["image.tar", "image.tar.gz"])
def test_the_name_of_a_saved_image(tmp_path: Path, name: str) -> None:
    assert plugin_images.saved_name(save(tmp_path / name, [ENTRY])) == "me/sky:1.0"


def test_a_saved_image_without_a_name(tmp_path: Path) -> None:
    assert plugin_images.saved_name(save(tmp_path / "image.tar", [{**ENTRY, "RepoTags": None}])) is None


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "no manifest.json"),
        ([], "no manifest.json"),
        ({}, "no manifest.json"),
        ([1], "no manifest.json"),
        (b"[" * 100_000, "nested too deep|no manifest.json|no file of"),
        (b"not json", "no file of `docker save`"),
        ([ENTRY, ENTRY], "holds 2 images"),
        ([{**ENTRY, "Layers": "all"}], "Layers"),
        ([{**ENTRY, "Layers": ["1/layer.tar"] * 1000}], "Layers"),
        ([{**ENTRY, "Layers": ["2/layer.tar"]}], "cut off or damaged: '2/layer.tar'"),
        ([{**ENTRY, "Config": None}], "cut off or damaged"),
        ([{**ENTRY, "RepoTags": ["sage/rabbitmq:latest"]}], "take the place of sage/rabbitmq:latest"),
        ([{**ENTRY, "RepoTags": ["--privileged"]}], "is no image's name"),
        ([{**ENTRY, "RepoTags": [7]}], "is no image's name"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, manifest: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plugin_images.saved_name(save(tmp_path / "image.tar", manifest))


def test_a_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    for name in ("../../etc/cron.d/x", "/etc/passwd"):
        with pytest.raises(InputError, match="leads out"):
            plugin_images.saved_name(save(tmp_path / "image.tar", [ENTRY], (name,)))


def test_a_list_of_contents_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_images, "_MOST_MEMBERS", 10)
    with pytest.raises(InputError, match="more than 10 files"):
        plugin_images.saved_name(save(tmp_path / "image.tar", [ENTRY], tuple(f"{n}" for n in range(20))))
    monkeypatch.setattr(plugin_images, "_LARGEST_TEXT", 10)
    with pytest.raises(InputError, match=r"manifest\.json is larger"):
        plugin_images.saved_name(save(tmp_path / "image.tar", [ENTRY]))


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage" * 1000, gzip.compress(b"x" * 10_000, mtime=0), gzip.compress(b"x", mtime=0)[:-4]],
    ids=["empty", "garbage", "no tar", "cut off"],
)
def test_no_archive_at_all(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match="no file of `docker save`"):
        plugin_images.saved_name(path)


@pytest.mark.parametrize("text", ["nothing.tar", "image.tar.gz", "UPPER/case", "a b", "--privileged", "", "-v"])
def test_a_word_that_names_no_image_is_told_before_docker_is_asked(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image can have that name"):
        plugin_images.obtain(text)


@pytest.mark.parametrize(
    "text",
    [
        "sky",
        "sky:1.0",
        "waggle/plugin-base:1.1.1-base",
        "registry.sagecontinuum.org/me/sky:0.1.0",
        "localhost:5000/sky",
        "127.0.0.1:5000/a/b:c",
        "sky@sha256:" + "a" * 64,
    ],
)
def test_images_names(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_images, "has", lambda image: True)
    monkeypatch.setattr(plugin_images, "_look_at_architecture", lambda image: None)
    assert plugin_images.obtain(text) == text


def test_the_base_that_a_dockerfile_has_unless_told_otherwise() -> None:
    assert plugin_images.default_base("# x\nARG BASE=waggle/plugin-base:1.1.1-base\nFROM ${BASE}\n") == (
        "waggle/plugin-base:1.1.1-base"
    )
    assert plugin_images.default_base("FROM a\nARG BASE=b\n") is None
    assert plugin_images.default_base("ARG BASE\nFROM ${BASE}\n") is None
    assert plugin_images.default_base("ARG BASE=--bad\nFROM ${BASE}\n") is None

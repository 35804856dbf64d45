# SPDX-License-Identifier: Apache-2.0
"""What is collected: whole or absent, never outside of its folder, and enough to run it again."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_sites.sites import load_sites
from groundwork.errors import InputError, SageError
from node_automation import collect
from node_automation import experiment as experiments
from node_automation.collect import CollectedNode, CollectManifest

NODE = CollectedNode(
    name="sky-blank-1",
    role="blank",
    site="CHI@UC",
    node_type="compute_skylake",
    machine=None,
    server_id="s",
    image_id="i",
    image_name="Sage",
    image_sha512="ab" * 64,
    lease_id="l",
    lease_name="sage-sky-chi_uc-01234567",
    lease_starts_at="2026-11-20T10:00:00Z",
    lease_ends_at="2026-11-20T14:00:00Z",
    launched_at="2026-11-20T10:01:00Z",
    address="192.0.2.1",
    fixed_address="10.0.0.1",
    files=(),
    problems=(),
)


def manifest_of(*nodes: CollectedNode) -> CollectManifest:
    return CollectManifest(1, "sky", "01234567", "2026-11-20T11:00:00Z", "sage-chameleon 0", nodes)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        for info, content in members:
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_files_and_folders_come_out(tmp_path: Path) -> None:
    stream = archive((member("./a", tarfile.DIRTYPE), b""), (member("./a/b"), b"one"), (member("c"), b"two"))
    assert collect.unpack(stream, tmp_path / "files") == []
    assert (tmp_path / "files/a/b").read_bytes() == b"one"
    assert (tmp_path / "files/c").read_bytes() == b"two"


def test_nothing_comes_out_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    stream = archive(
        (member("../secret"), b"theirs"),
        (member(str(secret)), b"theirs"),
        (member("link", tarfile.SYMTYPE, str(tmp_path)), b""),
        (member("link/secret"), b"theirs"),
        (member("hard", tarfile.LNKTYPE, str(secret)), b""),
        (member("device", tarfile.CHRTYPE), b""),
    )
    left_out = collect.unpack(stream, tmp_path / "files")
    assert [line.partition(":")[0] for line in left_out] == ["../secret", str(secret), "link", "hard", "device"]
    assert secret.read_text() == "mine"
    assert (tmp_path / "files/link/secret").read_bytes() == b"theirs", "a plain folder"


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08"])
def test_what_is_no_archive_is_told(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SageError, match="can't be unpacked"):
        collect.unpack(io.BytesIO(content), tmp_path / "files")


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), collect.folder_beside(tmp_path / "out/one") as folder:
        (folder / "a").write_text("a")
        raise ZeroDivisionError
    assert list((tmp_path / "out").iterdir()) == []
    with collect.folder_beside(tmp_path / "out/one") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out/one").exists()
    assert (tmp_path / "out/one/a").read_text() == "a"
    with pytest.raises(InputError, match="is there already"), collect.folder_beside(tmp_path / "out/one"):
        pass


def test_what_was_collected_can_be_read_again(tmp_path: Path) -> None:
    experiment = experiments.of_role(
        "sky", "blank", load_sites(), sites=["CHI@UC"], node_types=["compute_skylake"], image="Sage"
    )
    manifest = manifest_of(NODE)
    collect.write(tmp_path, manifest, experiment)
    assert collect.read(tmp_path) == (manifest, experiment)
    images = collect.images_of(manifest)
    assert images["blank"]["CHI@UC"].digest == "ab" * 64
    pinned = experiments.on_same_images(experiment, images)
    assert pinned.groups[0].images == {"CHI@UC": "i"}
    assert pinned.groups[0].sites == ("CHI@UC",)
    collect.write(tmp_path, replace(manifest, format=99), experiment)
    with pytest.raises(InputError, match="later version"):
        collect.read(tmp_path)
    with pytest.raises(InputError, match=r"no manifest\.json"):
        collect.read(tmp_path / "elsewhere")


def test_nodes_of_one_role_on_two_images_can_not_be_run_again() -> None:
    other = replace(NODE, name="sky-blank-2", image_id="j")
    with pytest.raises(InputError, match="ran on two images, i and j"):
        collect.images_of(manifest_of(NODE, other))

# SPDX-License-Identifier: Apache-2.0
"""A backup gives the Beehive back as it was; what is damaged, forged or not ours is refused as a whole."""

import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest

from groundwork.errors import InputError, SageError
from virtual_waggle.beehive import backup, nodes, state
from virtual_waggle.beehive.backup import Damaged, Summary
from virtual_waggle.beehive.state import State
from virtual_waggle.beehive.store_sqlite import SQLiteStore
from virtual_waggle.broker import Place
from virtual_waggle.message import Measurement

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
PLACE = Place("/run/secrets", "192.0.2.7", "127.0.0.1")
NODE = "00000000000000aa"
UPLOAD = f"uploads/node-{NODE}/job/task/5-da39a3ee5e6b4b0d3255bfef95601890afd80709"


@dataclass(frozen=True)
class Hive:
    state: State
    archive: Path

    def backup(self, *, uploads: bool = True) -> Summary:
        return backup.backup(self.state, self.archive, uploads=uploads, now=NOW)


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    made = State(tmp_path / "beehive")
    state.deploy(made, {"BEEHIVE_HOST": "localhost"}, PLACE, now=NOW)
    nodes.admit(made.nodes, NODE, now=NOW)
    store = SQLiteStore(made.database)
    store.write([Measurement("env.temperature", number, 1.5, {"node": NODE}) for number in range(100)])
    store.close()
    for name in ("data", "meta"):
        path = made.folder / UPLOAD / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (made.uploads / ".incoming/half").mkdir(parents=True)
    (made.uploads / ".incoming/half/data").touch()
    return Hive(made, tmp_path / "backup.tar.gz")


def restored(archive: Path, folder: Path, *, force: bool = False) -> State:
    found = State(folder)
    backup.restore(archive, found, force=force, now=NOW)
    return found


def texts(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith((".", "data.db"))
    }


def test_what_is_restored_is_what_was_there(hive: Hive, tmp_path: Path) -> None:
    summary = hive.backup()
    assert (summary.head.store, summary.head.made, summary.head.uploads) == ("sqlite", "2026-11-21T12:00:00Z", True)
    again = restored(hive.archive, tmp_path / "again")
    expected = texts(hive.state.folder)
    del expected["uploads/.incoming/half/data"]
    assert texts(again.folder) == expected
    store = SQLiteStore(again.database)
    (series,) = store.series(None, 0, 0, 10)
    assert len(store.read(series.id, 0, 1000, 1000)[0]) == 100
    store.close()
    assert state.deploy(again, {}, PLACE, now=NOW) == ["rabbitmq/", "native/"]


def test_a_backup_and_what_is_restored_of_it_are_private(hive: Hive, tmp_path: Path) -> None:
    hive.backup()
    assert hive.archive.stat().st_mode & 0o777 == 0o600
    again = restored(hive.archive, tmp_path / "again")
    assert again.private.stat().st_mode & 0o777 == 0o700
    assert (again.private / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert not [path for path in again.folder.iterdir() if path.name.startswith(".re")]


def test_uploads_are_left_out_where_they_are_not_wanted(hive: Hive, tmp_path: Path) -> None:
    hive.backup(uploads=False)
    assert list(restored(hive.archive, tmp_path / "again").uploads.iterdir()) == []


def test_a_standing_beehive_is_replaced_only_by_force_and_kept_beside(hive: Hive) -> None:
    hive.backup()
    nodes.admit(hive.state.nodes, "00000000000000bb", now=NOW)
    before = texts(hive.state.folder)
    with pytest.raises(InputError, match="holds a Beehive"):
        restored(hive.archive, hive.state.folder)
    assert texts(hive.state.folder) == before
    again = restored(hive.archive, hive.state.folder, force=True)
    assert [node.id for node in nodes.every(again.nodes)] == [NODE]
    (kept,) = hive.state.folder.glob(".before-restore-*")
    assert (kept / "nodes/00000000000000bb.json").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.98])
def test_a_backup_that_was_cut_off_restores_nothing(hive: Hive, tmp_path: Path, share: float) -> None:
    hive.backup()
    whole = hive.archive.read_bytes()
    hive.archive.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Damaged):
        restored(hive.archive, tmp_path / "again")
    assert texts(tmp_path / "again") == {}


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b" + bytes(100), gzip.compress(b"text" * 1000, mtime=0)])
def test_what_is_no_backup_is_told_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "backup.tar.gz"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"backup\.tar\.gz"):
        restored(path, tmp_path / "again")


Members = list[tuple[tarfile.TarInfo, bytes]]


def unpacked(archive: Path) -> Members:
    with tarfile.open(archive) as packed:
        members = []
        for member in packed:
            stream = packed.extractfile(member)
            assert stream is not None
            members.append((member, stream.read()))
        return members


def packed_anew(archive: Path, members: Members) -> None:
    with tarfile.open(archive, "w:gz") as packed:
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["beehive.env", "private/ca-key.pem", "store/data.db", f"{UPLOAD}/data"])
def test_a_file_that_was_changed_or_left_out_is_found(hive: Hive, tmp_path: Path, name: str) -> None:
    hive.backup()
    members = unpacked(hive.archive)
    (number,) = (number for number, (member, _) in enumerate(members) if member.name == name)
    member, content = members[number]
    for instead in ([(member, content[:-1] + b"x")], []):
        packed_anew(hive.archive, [*members[:number], *instead, *members[number + 1 :]])
        with pytest.raises(Damaged, match="manifest"):
            restored(hive.archive, tmp_path / "again")
    assert texts(tmp_path / "again") == {}


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/outside",
        "private/../../outside",
        "private/./x",
        "private//x",
        "private",
        "rabbitmq/x",
        "x",
        "beehive.env/x",
        "private/" + "a/" * 3000 + "x",
    ],
)
def test_no_path_in_a_backup_leads_elsewhere(hive: Hive, tmp_path: Path, name: str) -> None:
    hive.backup()
    members = unpacked(hive.archive)
    members.insert(1, (tarfile.TarInfo(name), b"content"))
    packed_anew(hive.archive, members)
    with pytest.raises(Damaged, match="which no backup does"):
        restored(hive.archive, tmp_path / "again")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_a_backup_holds_plain_files_alone(hive: Hive, tmp_path: Path, kind: bytes) -> None:
    hive.backup()
    members = unpacked(hive.archive)
    member = tarfile.TarInfo("private/link")
    member.type, member.linkname = kind, "/etc/passwd"
    members.insert(1, (member, b""))
    packed_anew(hive.archive, members)
    with pytest.raises(Damaged, match="which no backup does"):
        restored(hive.archive, tmp_path / "again")


def test_a_backup_of_another_format_is_told_with_its_version(hive: Hive, tmp_path: Path) -> None:
    hive.backup()
    members = unpacked(hive.archive)
    head = json.loads(members[0][1])
    members[0] = (members[0][0], json.dumps({**head, "format": 9, "version": "7.0"}).encode())
    packed_anew(hive.archive, members)
    with pytest.raises(InputError, match=r"format 9, made by version '7\.0'"):
        restored(hive.archive, tmp_path / "again")


def test_a_backup_that_fails_leaves_no_file(hive: Hive) -> None:
    hive.state.database.write_bytes(b"no database" * 1000)
    with pytest.raises(SageError, match=r"can't copy .*data\.db"):
        hive.backup()
    assert list(hive.archive.parent.iterdir()) == [hive.state.folder]

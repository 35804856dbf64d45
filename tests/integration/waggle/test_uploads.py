# SPDX-License-Identifier: Apache-2.0
"""Files from a plugin to the Beehive: real rsync over real ssh, pywaggle's own Uploader at the one end."""

import contextlib
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from waggle.plugin.uploader import Uploader

from groundwork import files, process
from tests.integration.waggle import beehives
from tests.integration.waggle.beehives import NODE, OTHER, Beehive
from virtual_waggle import upload
from virtual_waggle.beehive import authority, nodes
from virtual_waggle.beehive.nodes import Node, Status
from virtual_waggle.beehive.upload_server import INCOMING
from virtual_waggle.node import apps, uploader
from virtual_waggle.node.apps import App

APP = "birds-1"
LARGEST = 8 << 20


@pytest.fixture(scope="module")
def hive() -> Iterator[Beehive]:
    with beehives.beehive() as running:
        running.start_uploads(BEEHIVE_UPLOAD_LARGEST=str(LARGEST), BEEHIVE_UPLOAD_FREE="1m")
        yield running


def certified(
    hive: Beehive, name: str, node_id: str = NODE, *, principals: list[str] | None = None, days: int = 30
) -> Path:
    """A node's ``private`` with what registration gives for uploads; ``principals`` may be another's, or ended."""
    private = hive.node_folder(name)
    node = nodes.read(hive.state.nodes, node_id)
    if node is None or node.status != Status.REGISTERED:
        node = Node(node_id, Status.REGISTERED, "", generation=nodes.new_generation())
        nodes.write(hive.state.nodes, node)
    now = beehives.now()
    authority.make_ssh_key(private / "upload-key", name)
    authority.certify_ssh_user(
        hive.state.private / "ssh-ca-key",
        private / "upload-key",
        private / "upload-key-cert.pub",
        principals or [nodes.user(node_id), nodes.principal(node)],
        end=now + timedelta(days=days),
        now=now - timedelta(days=2),
    )
    return private


def settings(hive: Beehive, name: str, *, most: int = 1 << 30, node_id: str = NODE) -> uploader.Settings:
    private = certified(hive, name, node_id)
    folder = private.parent
    made = uploader.Settings(
        node_id,
        files.make_folder(folder / "uploads"),
        files.make_folder(folder / "apps"),
        private,
        "localhost",
        hive.upload_port,
        most,
    )
    apps.add(made.apps, APP, App("waggle/birds:1.2.3", "Birds of/Chicago", "sampler"))
    uploader.make_inbox(made.uploads, APP)
    return made


def send(given: uploader.Settings, waiting: uploader.Waiting) -> None:
    with uploader.line(given) as line:
        uploader.send(given, line, waiting)


def running(given: uploader.Settings) -> "subprocess.Popen[bytes]":
    """The node's service as its own process; its log is beside the uploads."""
    with (given.uploads.parent / "log").open("ab") as log:
        return process.start(
            [sys.executable, "-m", "virtual_waggle.node.uploader"],
            stdout=log,
            stderr=log,
            env={
                "WAGGLE_NODE_ID": given.node_id,
                "WAGGLE_UPLOADS": str(given.uploads),
                "WAGGLE_APPS": str(given.apps),
                "WAGGLE_SECRETS": str(given.private),
                "WAGGLE_BEEHIVE_HOST": given.host,
                "WAGGLE_BEEHIVE_UPLOAD_PORT": str(given.port),
                "WAGGLE_UPLOADS_MOST": str(given.most),
            },
        )


def left(given: uploader.Settings, content: bytes, *, filename: str = "a b.jpg", **meta: Any) -> str:
    """Let a plugin upload a file; the upload's name."""
    path = given.uploads.parent / filename
    path.write_bytes(content)
    made = Uploader(given.uploads / APP).upload_file(path, meta=meta)
    return Path(made).name


def place(hive: Beehive, name: str, node_id: str = NODE) -> Path:
    return hive.state.uploads / f"node-{node_id}/Birds%20of%2FChicago/sampler" / name


def eventually(condition: Any, seconds: float = 60) -> None:
    for _ in process.poll_until(seconds, 0.1):
        if condition():
            return
    raise AssertionError(f"it did not come to pass within {seconds} s")


def rsync(
    hive: Beehive, private: Path, destination: str, *words: str | Path, user: str = f"node-{NODE}", rsync_path: str = ""
) -> Any:
    """rsync by OpenSSH, as a stranger would call it."""
    ssh = [
        *("ssh", "-F", "none", "-p", str(hive.upload_port), "-i", str(private / "upload-key")),
        *("-o", f"CertificateFile={private}/upload-key-cert.pub", "-o", f"UserKnownHostsFile={private}/known_hosts"),
        *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "ConnectTimeout=10"),
    ]
    more = ["--rsync-path", rsync_path] if rsync_path else []
    return subprocess.run(
        ["rsync", *more, "--rsh", shlex.join(ssh), *map(str, words), f"{user}@localhost:{destination}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def command(hive: Beehive, private: Path, words: str, given: bytes = b"", user: str = f"node-{NODE}") -> Any:
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-p", str(hive.upload_port), "-i", str(private / "upload-key"), "-l", user),
            *("-o", f"CertificateFile={private}/upload-key-cert.pub"),
            *("-o", f"UserKnownHostsFile={private}/known_hosts", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
            *("-o", "IdentityAgent=none", "localhost", words),
        ],
        input=given,
        capture_output=True,
        timeout=120,
        check=False,
    )


def made_upload(folder: Path, content: bytes, **changes: Any) -> tuple[str, Path, Path]:
    """The place, data and meta of an upload made by hand; ``changes`` to its meta."""
    sha1 = hashlib.sha1(content).hexdigest()
    stamp = time.time_ns()
    data, meta = folder / "data", folder / "meta"
    data.write_bytes(content)
    told = {
        "timestamp": stamp,
        "shasum": sha1,
        "labels": {"filename": "x.bin"},
        "node": NODE,
        "job": "job",
        "task": "task",
        "plugin": "p",
    }
    meta.write_text(json.dumps({**told, **changes}))
    return f"job/task/{stamp}-{sha1}/", data, meta


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if INCOMING not in path.parts}


def test_a_plugins_file_arrives_whole_with_its_labels_and_leaves_the_node(hive: Beehive) -> None:
    given = settings(hive, "end-to-end")
    content = random.Random(1).randbytes(3_000_000)  # noqa: S311
    name = left(given, content, camera="left", number=5)
    service = running(given)
    try:
        eventually(lambda: not (given.uploads / APP / name).exists())
    finally:
        process.stop(service)
    kept = place(hive, name)
    assert (kept / "data").read_bytes() == content
    told = json.loads((kept / "meta").read_text())
    assert told["labels"] == {"camera": "left", "number": 5, "filename": "a b.jpg"}
    assert (told["node"], told["job"], told["task"], told["plugin"]) == (
        NODE,
        "Birds of/Chicago",
        "sampler",
        "waggle/birds:1.2.3",
    )
    assert {path.name for path in kept.iterdir()} == {"data", "meta"}
    owner = hive.state.uploads.stat().st_uid
    assert (kept / "data").stat().st_uid == owner != 0


def test_all_that_was_left_while_the_beehive_was_away_arrives(hive: Beehive) -> None:
    given = settings(hive, "away")
    assert hive.stop("upload_server") == 0
    service = running(given)
    try:
        names = [left(given, f"{number}".encode() * 1000) for number in range(12)]
        eventually(lambda: "12 uploads wait" in (given.uploads.parent / "log").read_text())
        assert all((given.uploads / APP / name / "data").exists() for name in names)
        hive.start_uploads(BEEHIVE_UPLOAD_LARGEST=str(LARGEST), BEEHIVE_UPLOAD_FREE="1m")
        eventually(lambda: not any((given.uploads / APP / name).exists() for name in names), 120)
    finally:
        process.stop(service)
    for number, name in enumerate(names):
        assert (place(hive, name) / "data").read_bytes() == f"{number}".encode() * 1000


def test_an_uploader_or_a_server_killed_in_the_middle_loses_nothing(hive: Beehive) -> None:
    given = settings(hive, "killed")
    chance = random.Random(3)  # noqa: S311
    contents = {}
    for _ in range(6):
        content = chance.randbytes(chance.randrange(1, LARGEST))
        contents[left(given, content)] = content
    for turn in range(6):
        service = running(given)
        time.sleep(chance.uniform(0.3, 1.5))
        os.killpg(service.pid, signal.SIGKILL)
        service.wait(10)
        if turn % 2:
            hive.stop("upload_server")
            hive.start_uploads(BEEHIVE_UPLOAD_LARGEST=str(LARGEST), BEEHIVE_UPLOAD_FREE="1m")
        for name, content in contents.items():  # here, or there as a whole
            kept = place(hive, name) / "data"
            assert (given.uploads / APP / name / "data").exists() or kept.read_bytes() == content
    service = running(given)
    try:
        eventually(lambda: not any((given.uploads / APP / name).exists() for name in contents), 120)
    finally:
        process.stop(service)
    for name, content in contents.items():
        assert (place(hive, name) / "data").read_bytes() == content


def test_a_node_without_a_beehive_keeps_the_newest_files_up_to_the_limit(tmp_path: Path) -> None:
    given = uploader.Settings(
        NODE,
        files.make_folder(tmp_path / "uploads"),
        files.make_folder(tmp_path / "apps"),
        tmp_path / "nothing",
        host="",
        port=1,
        most=1 << 20,
    )
    uploader.make_inbox(given.uploads, APP)
    names = [left(given, bytes([number]) * 300_000) for number in range(6)]
    service = running(given)
    try:
        eventually(lambda: len(list((given.uploads / APP).iterdir())) < 4)
        assert service.poll() is None
    finally:
        process.stop(service)
    assert sorted(path.name for path in (given.uploads / APP).iterdir()) == names[3:]
    assert "no room" in (tmp_path / "log").read_text()


def test_an_upload_that_came_before_is_confirmed_again(hive: Beehive) -> None:
    given = settings(hive, "again")
    name = left(given, b"once")
    shutil.copytree(given.uploads / APP / name, given.uploads.parent / "copy")
    (waiting,) = uploader.look(given, uploader.Known(), time.time())
    send(given, waiting)
    before = (place(hive, name) / "data").stat()
    send(given, waiting)
    after = (place(hive, name) / "data").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert not (hive.state.uploads / INCOMING / f"node-{NODE}/Birds%20of%2FChicago/sampler" / name).exists()


def test_an_upload_that_broke_off_is_continued(hive: Beehive) -> None:
    given = settings(hive, "continued")
    content = random.Random(4).randbytes(LARGEST - 1)  # noqa: S311
    name = left(given, content)
    staging = hive.state.uploads / INCOMING / f"node-{NODE}/Birds%20of%2FChicago/sampler" / name
    files.make_folder(staging)
    (staging / "data").write_bytes(content[: LARGEST // 2])
    files.give_to_owner_of(staging, staging / "data")
    (waiting,) = uploader.look(given, uploader.Known(), time.time())
    send(given, waiting)
    assert (place(hive, name) / "data").read_bytes() == content
    # what was there and is wrong is mended too
    name = left(given, content, filename="other.bin")
    staging = staging.with_name(name)
    files.make_folder(staging)
    (staging / "data").write_bytes(bytes(LARGEST // 2))
    files.give_to_owner_of(staging, staging / "data")
    waiting = next(one for one in uploader.look(given, uploader.Known(), time.time()) if one.folder.name == name)
    send(given, waiting)
    assert (place(hive, name) / "data").read_bytes() == content


def test_only_a_certificate_of_its_own_lets_a_node_in(hive: Beehive, tmp_path: Path) -> None:
    good = certified(hive, "good")
    other = certified(hive, "other", OTHER)
    expired = certified(hive, "expired", days=-1)
    by_name_alone = certified(hive, "by-name", principals=[f"node-{NODE}"])
    both = certified(hive, "both", principals=[f"node-{NODE}", f"node-{OTHER}", "node-*"])
    none = hive.node_folder("none")
    authority.make_ssh_key(none / "upload-key", "none")
    forged = hive.node_folder("forged")
    node = nodes.read(hive.state.nodes, NODE)
    assert node is not None
    authority.make_ssh_key(forged / "ca", "forged")
    authority.make_ssh_key(forged / "upload-key", "forged")
    authority.certify_ssh_user(
        forged / "ca",
        forged / "upload-key",
        forged / "upload-key-cert.pub",
        [nodes.user(NODE), nodes.principal(node)],
        end=beehives.now() + timedelta(days=1),
        now=beehives.now(),
    )
    registering = hive.node_folder("registering")
    shutil.copy(registering / "register.pem", registering / "upload-key")
    before = everything(hive.state.uploads)
    to, data, meta = made_upload(tmp_path, b"mine")
    for private in (other, expired, by_name_alone, both, none, forged, registering):
        done = rsync(hive, private, to, "--times", "--inplace", data, meta)
        assert "Permission denied" in done.stderr, private
    for user in ("root", "node-", "node-*", f"node-{OTHER}", "node-0000000000000000", "sage_registration"):
        assert "Permission denied" in rsync(hive, good, to, "--times", "--inplace", data, meta, user=user).stderr, user
    assert everything(hive.state.uploads) == before
    done = rsync(hive, good, to, "--times", "--inplace", data, meta)
    assert done.returncode == 0, done.stderr


def test_a_removed_node_is_refused_also_when_it_is_admitted_anew(hive: Beehive, tmp_path: Path) -> None:
    node_id = "00000000000000c1"
    private = certified(hive, "removed", node_id)
    to, data, meta = made_upload(tmp_path, b"mine", node=node_id)
    user = f"node-{node_id}"
    assert rsync(hive, private, to, "--times", "--inplace", data, meta, user=user).returncode == 0
    nodes.remove(hive.state.nodes, node_id, now=beehives.now())
    assert "Permission denied" in rsync(hive, private, to, "--times", "--inplace", data, meta, user=user).stderr
    certified(hive, "anew", node_id)
    assert "Permission denied" in rsync(hive, private, to, "--times", "--inplace", data, meta, user=user).stderr


def test_no_path_leads_out_of_a_nodes_own_folder(hive: Beehive, tmp_path: Path) -> None:
    private = certified(hive, "paths")
    to, data, meta = made_upload(tmp_path, b"mine")
    name = to.split("/")[2]
    before = everything(hive.state.folder)
    for wrong in (
        "/etc/",
        "../",
        f"../node-{OTHER}/task/{name}/",
        f"../../task/{name}/",
        f"job/../../node-{OTHER}/{name}/",
        f"/{to}",
        f"./{to}",
        f"job/task/{name}/../../",
        "job/task/",
        f"{to} --remove-source-files",
        f"$HOME/task/{name}/",
        f"job/task/{name}/; touch /tmp/x",
    ):
        done = rsync(hive, private, wrong, "--times", "--inplace", data, meta)
        assert done.returncode != 0, wrong
        assert "refused: " in done.stderr, (wrong, done.stderr)
    assert everything(hive.state.folder) == before


def test_no_option_of_rsync_does_more_than_upload(hive: Beehive, tmp_path: Path) -> None:
    private = certified(hive, "options")
    to, data, meta = made_upload(tmp_path, b"mine")
    before = everything(hive.state.folder)
    for options in (
        ["--recursive", "--delete"],
        ["--links"],
        ["--copy-links", "--keep-dirlinks"],
        ["--archive"],
        ["--relative"],
        ["--devices"],
        ["--backup", "--backup-dir=/tmp/backup"],
        ["--partial-dir=/tmp/partial"],
        ["--temp-dir=/tmp"],
        ["--compare-dest=/etc"],
        ["--link-dest=/etc"],
        ["--chmod=4777", "--perms"],
        [f"--remote-option=--log-file={tmp_path}/log"],
        ["--remote-option=--daemon"],
        ["--secluded-args"],
        ["--files-from=:/etc/passwd"],
        ["--compress"],
        ["--mkpath"],
    ):
        done = rsync(hive, private, to, "--times", "--inplace", *options, data, meta)
        assert done.returncode != 0, options
        assert everything(hive.state.folder) == before, options
    for words in (
        "rsync --server --sender -te.LsfxCIvu . job/task",
        f"rsync --server --daemon -te.LsfxCIvu . {to}",
        f"rsync --server -te.LsfxCIvu --inplace --sender . {to}",
        f"rsync --server -e.Lsf --rsh=id . {to}",
        f"/usr/bin/rsync --server -te.LsfxCIvu . {to}",
        f"rsync --server -te.LsfxCIvu . {to} {to}",
        f"rsync --server -te.LsfxCIvu . '{to}",
        "rsync --server",
        "rsync",
        "sh",
        "cat /etc/passwd",
    ):
        done = command(hive, private, words)
        assert done.returncode == 2, words
        assert b"refused: " in done.stderr
    assert everything(hive.state.folder) == before
    assert not (tmp_path / "log").exists()


def test_links_folders_and_other_names_never_become_visible(hive: Beehive, tmp_path: Path) -> None:
    private = certified(hive, "names")
    before = everything(hive.state.uploads)
    to, data, meta = made_upload(tmp_path, b"mine")
    (tmp_path / "link").mkdir()
    link = tmp_path / "link/data"
    link.symlink_to("/etc/passwd")
    folder = tmp_path / "folder/data"
    folder.mkdir(parents=True)
    other = tmp_path / "other"
    other.write_text("other")
    for sources in ([link, meta], [folder, meta], [data], [meta], [data, meta, other]):
        # an honest rsync whose server was told that all is well
        done = rsync(hive, private, to, "--times", "--inplace", *sources)
        assert done.returncode != 0, sources
        assert "refused: " in done.stderr
    # a client that has other options than it tells the server
    forged = rsync(
        hive,
        private,
        to,
        "--times",
        "--links",
        "--recursive",
        link,
        meta,
        rsync_path=f"rsync --server -te.LsfxCIvu --inplace . {to} #",
    )
    assert forged.returncode != 0
    assert everything(hive.state.uploads) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"shasum": "0" * 40},
        {"timestamp": 5},
        {"node": OTHER},
        {"job": "another"},
        {"labels": {"filename": "../../x"}},
        {"labels": {"filename": "a", "b": "c" * 70_000}},
    ],
)
def test_an_upload_with_a_wrong_meta_is_refused_with_the_reason(
    hive: Beehive, tmp_path: Path, changes: dict[str, Any]
) -> None:
    private = certified(hive, "meta")
    before = everything(hive.state.uploads)
    to, data, meta = made_upload(tmp_path, b"mine", **changes)
    done = rsync(hive, private, to, "--times", "--inplace", data, meta)
    assert done.returncode != 0
    assert "refused: " in done.stderr
    assert everything(hive.state.uploads) == before


def test_other_bytes_than_the_name_says_are_refused_and_not_kept(hive: Beehive, tmp_path: Path) -> None:
    private = certified(hive, "bytes")
    to, data, meta = made_upload(tmp_path, b"mine")
    data.write_bytes(b"others")
    done = rsync(hive, private, to, "--times", "--inplace", data, meta)
    assert "its SHA-1 is another" in done.stderr
    assert not (hive.state.uploads / INCOMING / f"node-{NODE}" / to).exists()


def test_a_file_over_the_limit_is_refused_and_one_of_just_its_size_is_kept(hive: Beehive, tmp_path: Path) -> None:
    private = certified(hive, "large")
    for more in (1, 5_000_000):
        to, data, meta = made_upload(tmp_path, bytes(LARGEST + more))
        done = rsync(hive, private, to, "--times", "--inplace", data, meta)
        assert done.returncode != 0
        assert not (hive.state.uploads / f"node-{NODE}" / to).exists()
        # who comes again is told why before anything is sent, and no disk is held for it
        done = rsync(hive, private, to, "--times", "--inplace", data, meta)
        assert f"refused: {to.split('/')[2]}: larger than {LARGEST} bytes" in done.stderr
        assert (hive.state.uploads / INCOMING / f"node-{NODE}" / to / "data").stat().st_blocks == 0
    to, data, meta = made_upload(tmp_path, bytes(LARGEST))
    assert rsync(hive, private, to, "--times", "--inplace", data, meta).returncode == 0
    assert (hive.state.uploads / f"node-{NODE}" / to / "data").stat().st_size == LARGEST


def test_a_file_that_was_too_large_is_taken_when_the_limit_was_raised(hive: Beehive, tmp_path: Path) -> None:
    private = certified(hive, "raised")
    content = random.Random(8).randbytes(LARGEST + 1)  # noqa: S311
    to, data, meta = made_upload(tmp_path, content)
    assert rsync(hive, private, to, "--times", "--inplace", data, meta).returncode != 0
    hive.stop("upload_server")
    hive.start_uploads(BEEHIVE_UPLOAD_LARGEST="16m", BEEHIVE_UPLOAD_FREE="1m")
    try:
        assert rsync(hive, private, to, "--times", "--inplace", data, meta).returncode == 0
    finally:
        hive.stop("upload_server")
        hive.start_uploads(BEEHIVE_UPLOAD_LARGEST=str(LARGEST), BEEHIVE_UPLOAD_FREE="1m")
    assert (hive.state.uploads / f"node-{NODE}" / to / "data").read_bytes() == content


def test_a_file_over_the_limit_does_not_keep_others_from_the_beehive(hive: Beehive) -> None:
    given = settings(hive, "too-large")
    large = [left(given, random.Random(7).randbytes(LARGEST + more)) for more in (1, 3_000_000)]  # noqa: S311
    good = left(given, b"good")
    service = running(given)
    try:
        eventually(lambda: not (given.uploads / APP / good).exists())
        time.sleep(3)  # several looks at what waits
    finally:
        process.stop(service)
    assert (place(hive, good) / "data").read_bytes() == b"good"
    log = (given.uploads.parent / "log").read_text()
    for name in large:  # told of once, with the reason; here they stay
        assert (given.uploads / APP / name / "data").exists()
        assert log.count(f"{name}: larger than {LARGEST} bytes") == 1


def test_a_full_disk_makes_nodes_wait(hive: Beehive) -> None:
    given = settings(hive, "full")
    hive.stop("upload_server")
    hive.start_uploads(BEEHIVE_UPLOAD_FREE="1000000t")
    try:
        left(given, b"waits")
        (waiting,) = uploader.look(given, uploader.Known(), time.time())
        with pytest.raises(uploader.Away, match="disk is full"):
            send(given, waiting)
    finally:
        hive.stop("upload_server")
        hive.start_uploads(BEEHIVE_UPLOAD_LARGEST=str(LARGEST), BEEHIVE_UPLOAD_FREE="1m")
    send(given, waiting)


def test_files_go_when_they_are_older_than_is_set(tmp_path: Path) -> None:
    with beehives.beehive() as own:
        own.start_uploads(BEEHIVE_UPLOAD_FREE="1m")
        private = certified(own, "age")
        places = []
        for hours in (1, 3):
            to, data, meta = made_upload(tmp_path, b"mine", timestamp=time.time_ns() - hours * 3_600_000_000_000)
            to = f"job/task/{json.loads(meta.read_text())['timestamp']}-{to.rstrip('/').partition('-')[2]}/"
            assert rsync(own, private, to, "--times", "--inplace", data, meta).returncode == 0
            places.append(own.state.uploads / f"node-{NODE}" / to)
        assert own.stop("upload_server") == 0
        assert all(place.exists() for place in places)
        own.start_uploads(BEEHIVE_UPLOAD_FREE="1m", BEEHIVE_RETENTION="2h")
        eventually(lambda: not places[1].exists())
        assert (places[0] / "data").read_bytes() == b"mine"
        assert "removed 1 uploads for their age" in own.log("upload_server").read_text()


def test_what_a_plugin_leaves_that_is_no_upload_harms_nothing(hive: Beehive) -> None:
    given = settings(hive, "garbage")
    inbox = given.uploads / APP
    secret = given.private / "upload-key"
    sha1 = hashlib.sha1(secret.read_bytes()).hexdigest()
    stolen = inbox / f"5-{sha1}"
    stolen.mkdir()
    (stolen / "data").symlink_to(secret)
    (stolen / "meta").write_text(json.dumps({"timestamp": 5, "shasum": sha1, "labels": {"filename": "key"}}))
    (inbox / f"6-{sha1}").symlink_to(given.private)
    for name, meta in {"7": "[" * 100_000, "8": "x" * 200_000, "9": '{"timestamp": 9}'}.items():
        folder = inbox / f"{name}-{'0' * 40}"
        folder.mkdir()
        (folder / "data").touch()
        (folder / "meta").write_text(meta)
    pipe = inbox / f"10-{'0' * 40}"
    pipe.mkdir()
    os.mkfifo(pipe / "data")
    os.mkfifo(pipe / "meta")
    (inbox / "some file").touch()
    (inbox / "..bad").mkdir()
    uploader.make_inbox(given.uploads, "unknown-app")
    (given.uploads / "link").symlink_to("/")
    service = running(given)
    try:
        name = left(given, b"good")
        eventually(lambda: not (inbox / name).exists())
        assert service.poll() is None
    finally:
        process.stop(service)
    assert (place(hive, name) / "data").read_bytes() == b"good"
    assert not any(sha1 in path for path in everything(hive.state.uploads))


def test_the_service_ends_in_time_when_told_to(hive: Beehive) -> None:
    given = settings(hive, "ending")
    service = running(given)
    eventually(lambda: "go to localhost" in (given.uploads.parent / "log").read_text())
    os.killpg(service.pid, signal.SIGTERM)
    assert service.wait(5) == 0


def test_what_root_wrote_in_a_plugins_container_can_be_deleted_by_the_uploader(hive: Beehive) -> None:
    given = settings(hive, "root")
    for path in (given.uploads, given.uploads / APP):
        os.chown(path, 990, 990)
    uploader.make_inbox(given.uploads, APP)
    name = left(given, b"by root")
    assert (given.uploads / APP / name / "data").stat().st_uid == 0
    done = process.run(
        ["setpriv", "--reuid=990", "--regid=990", "--clear-groups", "rm", "-r", given.uploads / APP / name]
    )
    assert done == ""
    assert not (given.uploads / APP / name).exists()


def test_a_slow_disk_does_not_fill_the_servers_memory(tmp_path: Path) -> None:
    with beehives.beehive() as own:
        server = own.start_uploads(BEEHIVE_UPLOAD_LARGEST="1g", BEEHIVE_UPLOAD_FREE="1m")
        given = settings(own, "slow")
        path = tmp_path / "large"
        with path.open("wb") as stream:
            stream.truncate(256 << 20)
        name = Path(Uploader(given.uploads / APP).upload_file(path)).name
        before = memory(server.pid)
        service = running(given)
        try:
            eventually(lambda: children(server.pid))
            most = 0
            while (given.uploads / APP / name).exists():
                for signal_number, seconds in ((signal.SIGSTOP, 0.05), (signal.SIGCONT, 0.005)):
                    for child in children(server.pid):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child, signal_number)
                    time.sleep(seconds)
                most = max(most, memory(server.pid))
        finally:
            process.stop(service)
    assert most - before < 64 << 20


def memory(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_garbage_at_the_port_leaves_the_server_at_work(hive: Beehive, tmp_path: Path) -> None:
    chance = random.Random(6)  # noqa: S311
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", hive.upload_port), timeout=10) as connection:
            connection.sendall(b"SSH-2.0-x\r\n" + chance.randbytes(chance.randrange(1, 4000)))
    private = certified(hive, "fuzz")
    for number in range(15):  # who is let in, and does not speak rsync
        to, data, meta = made_upload(tmp_path, f"{number}".encode())
        words = f"rsync --server -te.LsfxCIvu --inplace . {to}"
        assert command(hive, private, words, chance.randbytes(chance.randrange(0, 5000))).returncode != 0
        assert not (hive.state.uploads / f"node-{NODE}" / to).exists()
    assert rsync(hive, private, to, "--times", "--inplace", data, meta).returncode == 0


def test_the_folder_that_a_link_names_is_where_it_lies(hive: Beehive, tmp_path: Path) -> None:
    private = certified(hive, "layout")
    to, data, meta = made_upload(tmp_path, b"mine")
    assert rsync(hive, private, to, "--times", "--inplace", data, meta).returncode == 0
    told = upload.decode(to.split("/")[2], meta.read_bytes(), sent=True)
    assert (hive.state.uploads / f"node-{told.node}" / told.place / "data").read_bytes() == b"mine"

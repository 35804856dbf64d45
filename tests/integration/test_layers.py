# SPDX-License-Identifier: Apache-2.0
"""Layers are kept, shared and never broken; a build takes no root, and the same recipe gives the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from groundwork import files, process
from groundwork.errors import SageError
from image_builder import comparison, inside, inventory, layers, manifest
from image_builder.inside import ArchiveMovedError, LayerJob, LayersJob
from tests.integration import commands, toolkit_archive
from tests.integration.commands import Ran

PROJECT = Path(__file__).parents[2]
BASE = ("--variant", "base", "--release", "bookworm", "--no-verify")
USER = 2001


@dataclass(frozen=True)
class Made:
    """A build of ``base`` in folders of its own."""

    top: Path
    ran: Ran

    def places(self) -> tuple[str, ...]:
        return ("--output-dir", str(self.top / "build"), "--cache-dir", str(self.top / "cache"))

    @property
    def folder(self) -> Path:
        return next(self.top.glob("build/Sage-Debian12-Base/*"))

    def layers(self) -> dict[str, dict[str, object]]:
        """By name: what is told of each layer that stands."""
        records = [json.loads(path.read_text()) for path in self.top.glob("cache/layers/*/layer.json")]
        return {record["name"]: record for record in records}


@pytest.fixture(scope="module")
def by_root(tmp_path_factory: pytest.TempPathFactory) -> Made:
    top = tmp_path_factory.mktemp("root")
    made = Made(top, Ran(0, "", ""))
    ran = commands.run("create-image", *BASE, *made.places())
    assert ran.code == 0, ran.err
    return Made(top, ran)


# As an ordinary user with a range of subordinate ids, in a mount namespace where this machine has one, and where that
# user may read what this Python and this project are.
_AS_USER = r"""
set -eu
user=$1 top=$2; shift 2
while [ "$1" != -- ]; do  # folders that are to be seen, although one above them is closed to others
    shown=$1 closed=$1; shift
    while [ "$closed" != / ]; do
        closed=$(dirname "$closed")
        if [ "$(stat --format=%A "$closed" | cut -c 10)" = - ]; then
            kept=$(mktemp --directory)
            mount --bind "$shown" "$kept"
            mount -t tmpfs -o mode=755 tmpfs "$closed"
            mkdir -p "$shown"
            mount --move "$kept" "$shown"
            rmdir "$kept"
            break
        fi
    done
done
shift
for file in passwd subuid subgid; do
    cp "/etc/$file" "$top/$file"
    sed -i '/^sage-test:/d' "$top/$file"
done
echo "sage-test:x:$user:$user::$top:/bin/bash" >> "$top/passwd"
echo "sage-test:500000:65536" | tee -a "$top/subuid" >> "$top/subgid"
for file in passwd subuid subgid; do mount --bind "$top/$file" "/etc/$file"; done
exec setpriv --reuid "$user" --regid "$user" --clear-groups env HOME="$top" USER=sage-test LOGNAME=sage-test "$@"
"""


@pytest.fixture(scope="module")
def by_user() -> Iterator[Made]:
    if os.geteuid() != 0:
        pytest.skip("takes root, to become an ordinary user")
    top = Path(tempfile.mkdtemp(prefix="sage-user-"))  # pytest's own folders are closed to others
    os.chown(top, USER, USER)
    top.chmod(0o755)
    shown = [str(path.resolve()) for path in (Path(sys.base_prefix), PROJECT)]
    try:
        made = Made(top, Ran(0, "", ""))
        words: list[str | Path] = [commands.command("create-image"), *BASE, *made.places()]
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", _AS_USER, "-", str(USER), top, *shown, "--", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
            cwd="/",
        )
        yield Made(top, Ran(done.returncode, done.stdout, done.stderr))
    finally:
        shutil.rmtree(top)


def test_an_ordinary_user_builds_without_root(by_user: Made) -> None:
    assert by_user.ran.code == 0, by_user.ran.err
    assert "in a user namespace" in by_user.ran.err
    assert "sudo" not in by_user.ran.err


def test_nothing_is_left_of_it_on_the_host(by_user: Made) -> None:
    assert commands.mounts_below(by_user.top) == []
    assert commands.processes_that_name(by_user.top) == []
    assert list((by_user.top / "cache/work").iterdir()) == []
    for folder, _, names in os.walk(by_user.top / "build"):
        for name in names:
            assert Path(folder, name).stat().st_uid == USER
    owners = {path.lstat().st_uid for path in by_user.top.glob("cache/layers/*/tree/*")}
    assert 0 not in owners


def test_both_ways_and_other_folders_give_the_same_bits(by_root: Made, by_user: Made) -> None:
    one, other = (manifest.read(made.folder)[0] for made in (by_root, by_user))
    assert one.recipe_digest == other.recipe_digest
    before, after = (inventory.read(made.folder / inventory.INVENTORY) for made in (by_root, by_user))
    found = comparison.compare(before, after).files
    assert found == (), f"these files differ: {found}"
    assert [(file.format, file.sha256) for file in one.files] == [(file.format, file.sha256) for file in other.files]


def own_variant(folder: Path, script: str, **keys: object) -> tuple[str, ...]:
    """A variant upon ``base`` whose one element runs ``script`` in its layer."""
    hook = folder / "elements/own/install.d/50-own"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/bash\nset -eu\n{script}\n")
    hook.chmod(0o755)
    (folder / "variants").mkdir(exist_ok=True)
    more = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
    (folder / "variants/own.yaml").write_text(
        f'description: a test\'s own\nextends: base\nimage_name: "Own"\nelements: [own]\n{more}'
    )
    return (
        *("--variant", "own", "--release", "bookworm", "--no-verify"),
        *("--variants-dir", str(folder / "variants"), "--elements-dir", str(folder / "elements")),
    )


def test_a_change_builds_its_own_layer_alone(by_root: Made, tmp_path: Path) -> None:
    first = commands.run("create-image", *own_variant(tmp_path, "echo one > /opt/own"), *by_root.places())
    assert first.code == 0, first.err
    assert "; built own" in first.err
    again = commands.run("create-image", *own_variant(tmp_path, "echo other > /opt/own"), *by_root.places())
    assert again.code == 0, again.err
    assert "; built own" in again.err
    one, other = sorted(by_root.top.glob("build/Own/*"))
    before, after = (inventory.read(folder / inventory.INVENTORY) for folder in (one, other))
    paths = {change.path.lstrip("/") for change in comparison.compare(before, after).files}
    assert "opt/own" in paths
    assert paths <= {"opt/own", "opt/chameleon/provenance.json"}


def test_an_element_s_own_archive_is_asked_while_its_layer_is_built(by_root: Made, tmp_path: Path) -> None:
    """The element is ``cuda`` but for what takes NVIDIA's driver: 3 GB."""
    words = own_variant(tmp_path, "true")
    for name in ("package-installs.yaml", "post-install.d", "pkg-map"):
        assert (PROJECT / "elements/cuda" / name).exists()
    shutil.copytree(
        PROJECT / "elements/cuda",
        tmp_path / "elements/cuda",
        ignore=shutil.ignore_patterns("package-installs.yaml", "post-install.d", "pkg-map"),
    )
    with toolkit_archive.serving(files.make_folder(tmp_path / "served")) as archive:
        settings = {"SAGE_NVIDIA_CONTAINER_TOOLKIT": archive.setting()}
        path = tmp_path / "variants/own.yaml"
        text = path.read_text().replace("[own]", "[own, cuda]")
        path.write_text(f"{text}settings: {json.dumps(settings)}\n")
        done = commands.run("create-image", *words, *by_root.places())
    assert done.code == 0, done.err
    made, _ = manifest.read(sorted(by_root.top.glob("build/Own/*"))[-1])
    assert [row.version for row in made.packages if row.name == toolkit_archive.PACKAGE] == ["1.0"]


def test_a_layer_that_fails_leaves_those_below_and_nothing_of_itself(by_root: Made, tmp_path: Path) -> None:
    before = set(by_root.layers())
    words = (*own_variant(tmp_path, "echo no luck today; exit 7"), *by_root.places())
    done = commands.run("create-image", *words)
    assert done.code == 1
    assert "diskimage-builder failed in install.d/50-own" in done.err
    assert "no luck today" in done.err
    assert set(by_root.layers()) == before
    assert not list((by_root.top / "cache/layers").glob(".*"))
    assert list((by_root.top / "cache/work").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_build_leaves_no_broken_layer(by_root: Made, tmp_path: Path, number: signal.Signals) -> None:
    before = sorted(path.name for path in (by_root.top / "cache/layers").iterdir())
    words = own_variant(tmp_path, f"echo reached > /proc/self/fd/2; sleep 300  # {number}")
    running = commands.start("create-image", *words, *by_root.places())
    for _ in process.poll_until(120):
        if any(line.rstrip().endswith("sleep 300") for line in commands.processes_that_name(by_root.top)):
            break
        if running.poll() is not None:
            break
    running.send_signal(number)
    done = commands.finish(running, timeout=60)
    assert done.code == (-9 if number == signal.SIGKILL else 130), done.err
    for _ in process.poll_until(10):
        if not commands.processes_that_name(by_root.top):
            break
    assert commands.processes_that_name(by_root.top) == []
    assert commands.mounts_below(by_root.top) == []
    assert sorted(path.name for path in (by_root.top / "cache/layers").iterdir()) == before


def test_a_full_disk_is_told_and_leaves_nothing(by_root: Made, tmp_path: Path) -> None:
    words = own_variant(tmp_path, "dd if=/dev/zero of=/opt/large bs=1M count=1500", space_gib=1)
    done = commands.run("create-image", *words, *by_root.places())
    assert done.code == 1
    assert "No space left on device" in done.err
    assert "space_gib" in done.err
    assert "own" not in by_root.layers() or by_root.layers()["own"]["size"] != 0
    assert list((by_root.top / "cache/work").iterdir()) == []


def test_a_cache_of_a_newer_version_is_refused(by_root: Made, tmp_path: Path) -> None:
    records = {path: path.read_text() for path in by_root.top.glob("cache/layers/*/layer.json")}
    try:
        for path in records:
            path.write_text(json.dumps({"format": 99, "made_of": "something new"}))
        done = commands.run("create-image", *own_variant(tmp_path, "true"), *by_root.places())
        assert done.code == 2
        assert "was written by a newer version of this program (format 99; this one knows 1)" in done.err
        assert "--cache-dir" in done.err
    finally:
        for path, record in records.items():
            path.write_text(record)


def test_force_builds_all_layers_anew_and_ends_in_the_same_bits(by_root: Made) -> None:
    (first,) = manifest.read(by_root.folder)[0].files
    done = commands.run("create-image", *BASE, *by_root.places(), "--force")
    assert done.code == 0, done.err
    newest = sorted(by_root.top.glob("build/Sage-Debian12-Base/*"))[-1]
    (again,) = manifest.read(newest)[0].files
    assert "built debian-minimal," in done.err
    assert again.sha256 == first.sha256


@pytest.mark.parametrize(
    ("said", "kind"), [("Err:1\n  404  Not Found [IP: 192.0.2.1 80]", ArchiveMovedError), ("no", SageError)]
)
def test_a_planned_package_that_the_archive_no_longer_has_is_told_as_such(
    tmp_path: Path, said: str, kind: type[SageError]
) -> None:
    command = ("sh", "-c", f"printf '%s\\n' '{said}'; exit 100")
    layer = LayerJob("docker", "0" * 64, tmp_path / "place", command, {}, {})
    log, failure = tmp_path / "log", tmp_path / "failure"
    job = LayersJob((), (layer,), None, files.make_folder(tmp_path / "work"), 0, None, 0, log, failure)
    with pytest.raises(SageError) as caught:
        inside.build_layers(job)
    assert isinstance(caught.value, ArchiveMovedError) == (kind is ArchiveMovedError)
    assert not layer.place.exists()


def rebuilt(folder: Path, ending: str) -> tuple[LayerJob, LayersJob]:
    """A job that builds a layer anew which stands in the cache; while it goes on the old one is there."""
    place = folder / "layers" / ("0" * 64)
    (place / "tree").mkdir(parents=True)
    (place / "tree/old").touch()
    script = (
        f'test -e {place}/tree/old && mkdir -p "$SAGE_TREE/etc" "$SAGE_TREE/var/lib/dpkg" && '
        f'touch "$SAGE_TREE/etc/os-release" "$SAGE_TREE/var/lib/dpkg/status" && {ending}'
    )
    layer = LayerJob("docker", place.name, place, ("sh", "-c", script), {}, {})
    work = files.make_folder(folder / "work")
    return layer, LayersJob((), (layer,), None, work, 0, None, 0, folder / "log", folder / "failure")


def test_a_layer_that_is_built_anew_stands_until_the_new_one_is_there(tmp_path: Path) -> None:
    layer, job = rebuilt(tmp_path, "true")
    inside.build_layers(job)
    assert (layer.place / "tree/etc/os-release").exists()
    (old,) = layer.place.parent.glob(".*")  # another run may have it mounted
    assert (old / "tree/old").exists()
    assert layers.prune(tmp_path, 1 << 30, ()) == []
    assert [path.name for path in layer.place.parent.iterdir()] == [layer.digest]


def test_a_layer_that_could_not_be_built_anew_is_the_old_one(tmp_path: Path) -> None:
    layer, job = rebuilt(tmp_path, "false")
    with pytest.raises(process.ProcessError):
        inside.build_layers(job)
    assert (layer.place / "tree/old").exists()

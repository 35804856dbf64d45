# SPDX-License-Identifier: Apache-2.0
"""The archive's state is what the archive has signed, and a refresh sees what has changed in it, or nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundwork import console, process
from groundwork.errors import InputError, SageError
from image_builder import archive
from image_builder.archive import Change, Source, State
from image_builder.manifest import Package
from image_builder.variant import Arch
from image_builder.wanted import Wanted
from tests.integration import tiny_archive
from tests.integration.tiny_archive import SUITES, Archive, Key

NAMES = ("engine",)
BASE = {"apt", "base-files", "dpkg", "libc6", "tzdata"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, Key]:
    """The archive's key and a stranger's."""
    folder = tmp_path_factory.mktemp("k")
    return tiny_archive.new_key(folder, "archive"), tiny_archive.new_key(folder, "stranger")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Key, Key]) -> Archive:
    made = Archive(tmp_path_factory.mktemp("filled") / "top", keys[0])
    tiny_archive.fill(made)
    return made


@pytest.fixture
def served(tmp_path: Path, filled: Archive) -> Iterator[Archive]:
    """A copy of the archive, for one test to change."""
    shutil.copytree(filled.top, tmp_path / "top")
    own = Archive(tmp_path / "top", filled.key, {suite: dict(names) for suite, names in filled.suites.items()})
    own.publish()
    with tiny_archive.serving(own):
        yield own


def suites(served: Archive, *, snapshot: bool = False) -> tuple[Source, ...]:
    return archive.sources(served.url, None, SUITES[0], ["main"], snapshot=snapshot)


def opened(
    served: Archive,
    cache: Path,
    *,
    refresh: bool = False,
    keyring: Path | None = None,
    arch: Arch = Arch.AMD64,
    snapshot: bool = False,
) -> State:
    return archive.open_state(
        suites(served, snapshot=snapshot),
        keyring or served.key.public,
        arch,
        cache,
        refresh=refresh,
        stage=console.Stage("test"),
    )


def names_of(state: State, *names: str) -> set[str]:
    return {package.name for package in archive.plan(state, names)}


def test_plan_is_what_apt_installs_on_an_empty_system(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    found = {package.name: package for package in archive.plan(state, NAMES)}
    assert set(found) == BASE | {"engine", "runtime"}  # no Recommends, nothing of this machine
    assert found["engine"].version == "1:20.10-1"
    assert found["runtime"].version == "1.6+security1"
    assert found["runtime"].arch == "amd64"
    assert found["engine"].uri == f"{served.url}/pool/engine_1%253a20.10-1_amd64.deb"
    deb = (served.top / "pool/engine_1%3a20.10-1_amd64.deb").stat()
    assert found["engine"].size == deb.st_size
    assert found["engine"].sha256 == served.suites[SUITES[0]]["engine"]["SHA256"]


def test_state_names_what_was_signed_and_when(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    assert [release.suite for release in state.releases] == list(SUITES)
    assert all(release.date.startswith("20") and release.date.endswith("Z") for release in state.releases)
    again = opened(served, tmp_path / "another cache")
    assert again.digest == state.digest
    assert archive.plan(again, NAMES) == archive.plan(state, NAMES)


def test_cached_state_asks_the_archive_nothing(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    planned = archive.plan(state, NAMES)
    served.requests.clear()
    assert opened(served, tmp_path / "cache") == state
    assert archive.plan(state, NAMES) == planned
    assert served.requests == []


def test_refresh_of_an_unchanged_archive_fetches_no_index_and_keeps_the_state(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    served.requests.clear()
    again = opened(served, tmp_path / "cache", refresh=True)
    assert (again.folder, again.digest) == (state.folder, state.digest)
    assert not [line for line in served.requests if "Packages" in line]
    assert [line for line in served.requests if line.startswith("304")]


def test_refresh_notices_a_new_version_of_a_wanted_package(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    before = archive.plan(state, NAMES)
    served.add("runtime", "1.6+security2", suite=SUITES[2])
    served.publish()
    assert opened(served, tmp_path / "cache").digest == state.digest  # not asked for
    fresh = opened(served, tmp_path / "cache", refresh=True)
    after = archive.plan(fresh, NAMES)
    assert archive.digest(after) != archive.digest(before)
    assert archive.differences(before, after) == (Change("runtime", "1.6+security1", "1.6+security2"),)
    installed = [Package(one.name, one.version, one.arch) for one in before]
    assert archive.moved(fresh, installed) == (Change("runtime", "1.6+security1", "1.6+security2"),)
    assert archive.moved(state, installed) == ()  # what was, is as it was


def test_refresh_passes_over_new_versions_of_other_packages(served: Archive, tmp_path: Path) -> None:
    before = archive.digest(archive.plan(opened(served, tmp_path / "cache"), NAMES))
    served.add("other", "6.0")
    served.publish()
    fresh = opened(served, tmp_path / "cache", refresh=True)
    assert {one.version for one in archive.plan(fresh, ["other"]) if one.name == "other"} == {"6.0"}
    assert archive.digest(archive.plan(fresh, NAMES)) == before


def test_new_content_under_the_same_version_is_another_plan(served: Archive, tmp_path: Path) -> None:
    before = archive.plan(opened(served, tmp_path / "cache"), NAMES)
    served.add("engine", "1:20.10-1", Depends="runtime (>= 1.0)", Section="admin")
    served.publish()
    after = archive.plan(opened(served, tmp_path / "cache", refresh=True), NAMES)
    assert archive.differences(before, after) == ()
    assert archive.digest(before) != archive.digest(after)


def test_package_that_is_gone_has_moved(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    assert archive.moved(state, [Package("departed", "1.0", "all")]) == (Change("departed", "1.0", None),)


def test_lacking_package_is_told_with_who_asks_for_it(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    assert archive.lacking(state, ["engine", "enginee", "mail", "the-editor"]) == ("enginee",)
    assert archive.lacking(state, ["engine:amd64", "engine=1:20.10-1", "engine/quiet"]) == ()
    here = Path("/elements/docker/package-installs.yaml")
    archive.check([Wanted("engine", "docker", here, 1), Wanted("the-editor", "docker", here, 2)], state)
    with pytest.raises(InputError, match=r"no package 'enginee'; element 'docker' asks .*installs\.yaml:3") as caught:
        archive.check([Wanted("enginee", "docker", here, 3)], state)
    assert caught.value.hint == "did you mean 'engine'?"
    with pytest.raises(InputError, match="provided by several") as caught:
        archive.check([Wanted("mail", None, None, None)], state)
    assert caught.value.hint == "instead of 'mail' name one of mail-one, mail-two"


def test_packages_that_cannot_be_installed_are_told_with_the_reason(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    here = Path("/elements/odd/package-installs.yaml")
    with pytest.raises(SageError, match="broken : Depends: nowhere") as caught:
        archive.plan(
            state, ["broken", "other"], asking=[Wanted("broken", "odd", here, 7), Wanted("other", "x", here, 8)]
        )
    assert f"element 'odd' asks for it ({here}:7)" in str(caught.value)
    assert ":8" not in str(caught.value)


def test_layer_adds_to_what_the_layers_below_have(served: Archive, tmp_path: Path) -> None:
    served.add("choosy", "1.0", Depends="mail-two | mail-one")
    served.add("sendmail", "1.0", Depends="mail-one")
    served.publish()
    state = opened(served, tmp_path / "cache")
    below = archive.plan(state, ["sendmail"])
    assert {one.name for one in below} == BASE | {"sendmail", "mail-one"}
    assert {one.name for one in archive.plan(state, ["choosy"], below=below)} == {"choosy"}  # mail-one is there
    assert "mail-two" in names_of(state, "choosy")
    assert archive.plan(state, ["sendmail"], below=below) == ()
    assert archive.plan(state, [], below=below) == ()


def test_layer_that_would_remove_packages_of_those_below_is_told(served: Archive, tmp_path: Path) -> None:
    served.add("jealous", "1.0", Conflicts="engine")
    served.publish()
    state = opened(served, tmp_path / "cache")
    below = archive.plan(state, NAMES)
    asking = [Wanted("jealous", "odd", None, None), Wanted("other", "even", None, None)]
    with pytest.raises(
        SageError, match="to install jealous, apt would remove engine\n jealous: element 'odd'"
    ) as caught:
        archive.plan(state, ["jealous", "other"], below=below, asking=asking)
    assert "even" not in str(caught.value)


def test_apt_takes_the_lists_for_its_own(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    root = tmp_path / "root"
    (root / "lists/partial").mkdir(parents=True)
    lists = list(archive.lists_folder(state).iterdir())
    assert all(path.is_file() and path.stat().st_mode & 0o777 == 0o644 for path in lists)
    for path in lists:
        shutil.copy2(path, root / "lists")
    conf = (state.folder / "apt.conf").read_text().replace(str(state.folder / "lists"), str(root / "lists"))
    (root / "apt.conf").write_text(conf)
    served.requests.clear()
    said = subprocess.run(
        ["apt-get", "update"], env={**os.environ, "APT_CONFIG": str(root / "apt.conf"), "LC_ALL": "C"},
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert [line.split(":")[0] for line in said.splitlines() if "http" in line] == ["Hit"] * 3
    assert all(line.startswith("304") for line in served.requests)


# What goes wrong


def expect_failure(served: Archive, cache: Path, match: str, *, keyring: Path | None = None) -> SageError:
    with pytest.raises(SageError, match=match) as caught:
        opened(served, cache, refresh=True, keyring=keyring)
    assert caught.value.hint
    assert served.url in str(caught.value)
    return caught.value


def test_unknown_key_is_told_with_archive_and_keyring(served: Archive, tmp_path: Path, keys: tuple[Key, Key]) -> None:
    error = expect_failure(served, tmp_path / "cache", "not signed with a key of", keyring=keys[1].public)
    assert str(keys[1].public) in str(error)
    served.publish(key=keys[1])
    expect_failure(served, tmp_path / "cache", "not signed with a key of")


def test_missing_and_broken_signatures_are_told(served: Archive, tmp_path: Path) -> None:
    for suite in SUITES:
        (served.top / "dists" / suite / "InRelease").unlink()
    expect_failure(served, tmp_path / "cache", "not signed with a key of")
    served.publish()
    path = served.top / "dists" / SUITES[0] / "InRelease"
    path.write_text(path.read_text().replace("Origin: Quiet", "Origin: Quite"))
    expect_failure(served, tmp_path / "cache", "not signed with a key of")


@pytest.mark.parametrize("change", ["tampered", "truncated", "InRelease truncated", "login page"])
def test_damaged_index_is_told_and_the_old_state_stays(served: Archive, tmp_path: Path, change: str) -> None:
    state = opened(served, tmp_path / "cache")
    served.add("runtime", "9.0", suite=SUITES[0])
    served.publish()
    path = served.packages_file()
    if change == "tampered":
        broken = bytearray(path.read_bytes())
        broken[len(broken) // 2] ^= 0xFF
        path.write_bytes(broken)
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path = served.top / "dists" / SUITES[0] / "InRelease"
        content = b"<html>Please log in</html>" if change == "login page" else path.read_bytes()[:200]
        path.write_bytes(content)
    error = expect_failure(served, tmp_path / "cache", "damaged or by half")
    assert "try again" in str(error.hint)
    assert opened(served, tmp_path / "cache") == state
    assert "runtime" in names_of(state, *NAMES)
    assert {one.version for one in archive.plan(state, ["runtime"]) if one.name == "runtime"} == {"1.6+security1"}


def test_mirror_out_of_reach_is_told_and_the_old_state_stays(served: Archive, tmp_path: Path) -> None:
    away = Archive(served.top, served.key)
    away.publish()
    with tiny_archive.serving(away):
        state = opened(away, tmp_path / "cache")
    error = expect_failure(away, tmp_path / "cache", "out of reach.*refused")
    assert "--mirror" in str(error.hint)
    assert error.exit_code == 1
    assert opened(away, tmp_path / "cache") == state
    assert [path for path in state.folder.parent.iterdir() if path.is_dir() and not path.is_symlink()] == [state.folder]


def test_mirror_without_the_release_is_told(served: Archive, tmp_path: Path) -> None:
    shutil.rmtree(served.top / "dists" / SUITES[1])
    expect_failure(served, tmp_path / "cache", f"no archive at http://.* {SUITES[1]}")


def test_mirror_without_the_architecture_is_told(served: Archive, tmp_path: Path) -> None:
    with pytest.raises(SageError, match="no packages for arm64"):
        opened(served, tmp_path / "cache", arch=Arch.ARM64)


def test_expired_archive_is_told_but_for_a_snapshot(served: Archive, tmp_path: Path) -> None:
    served.publish(days=-1)
    expect_failure(served, tmp_path / "cache", "past its date of expiry")
    assert "engine" in names_of(opened(served, tmp_path / "cache", snapshot=True), *NAMES)


def test_missing_keyring_is_wrong_input(served: Archive, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"keyring .*nowhere\.gpg is not here"):
        opened(served, tmp_path / "cache", keyring=tmp_path / "nowhere.gpg")


# Two at once, killed, another user


def test_two_at_once_fetch_once(served: Archive, tmp_path: Path) -> None:
    found: list[State] = []
    threads = [
        threading.Thread(target=lambda: found.append(opened(served, tmp_path / "cache", refresh=True)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({state.folder for state in found}) == 1
    assert len([line for line in served.requests if line == f"200 /dists/{SUITES[0]}/InRelease"]) == 1


def test_state_in_use_outlives_a_refresh(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    served.add("runtime", "2.0")
    served.publish()
    assert opened(served, tmp_path / "cache", refresh=True).folder != state.folder
    assert {one.version for one in archive.plan(state, ["runtime"]) if one.name == "runtime"} == {"1.6+security1"}


def test_cache_of_a_newer_version_is_fetched_again(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    (state.folder / "state.json").write_text(json.dumps({"something": "else"}))
    again = opened(served, tmp_path / "cache")
    assert again.digest == state.digest
    assert "engine" in names_of(again, *NAMES)


def test_cache_may_be_moved(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "moved cache")
    served.requests.clear()
    moved = opened(served, tmp_path / "moved cache")
    assert moved.digest == state.digest
    assert "other" in names_of(moved, "other")
    assert served.requests == []


def another_program(served: Archive, cache: Path, *, uid: int, refresh: bool) -> "subprocess.Popen[str]":
    """Another process that opens the state and prints the names of a plan."""
    # It changes user when all is imported: Python itself may lie in root's own folders.
    script = f"""
import os
from pathlib import Path
from groundwork import console
from image_builder import archive
from image_builder.variant import Arch
if os.geteuid() != {uid}:
    os.setgroups([])
    os.setgid({uid})
    os.setuid({uid})
sources = archive.sources({served.url!r}, None, {SUITES[0]!r}, ["main"])
stage = console.Stage("test")
keyring, cache = Path({str(served.key.public)!r}), Path({str(cache)!r})
state = archive.open_state(sources, keyring, Arch.AMD64, cache, refresh={refresh}, stage=stage)
print(*(package.name for package in archive.plan(state, ["engine"])))
"""
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], env={**os.environ, "HOME": str(cache.parent)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_killed_refresh_leaves_the_old_state(served: Archive, tmp_path: Path) -> None:
    state = opened(served, tmp_path / "cache")
    served.add("runtime", "9.0")
    served.publish()
    served.delay = 5.0
    served.requests.clear()
    refreshing = another_program(served, tmp_path / "cache", uid=os.geteuid(), refresh=True)
    for _ in process.poll_until(20):
        if any(line.startswith("...") for line in served.requests):
            break
    refreshing.kill()
    refreshing.communicate(timeout=20)
    served.delay = 0.0
    assert len(list(state.folder.parent.glob("2*"))) == 2
    assert opened(served, tmp_path / "cache") == state
    assert "engine" in names_of(state, *NAMES)
    fresh = opened(served, tmp_path / "cache", refresh=True)  # the lock is free again
    assert {one.version for one in archive.plan(fresh, ["runtime"]) if one.name == "runtime"} == {"9.0"}
    assert sorted(state.folder.parent.glob("2*")) == sorted([state.folder, fresh.folder])


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as an ordinary user already")
def test_ordinary_user_needs_no_privilege(served: Archive, tmp_path: Path) -> None:
    tiny_archive.readable_by_all(tmp_path)
    tiny_archive.readable_by_all(served.key.public.parent)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    out, err = another_program(served, home / "cache", uid=65534, refresh=False).communicate(timeout=60)
    assert out.split() == sorted(BASE | {"engine", "runtime"}), err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave files that are not the user's")
def test_what_root_fetches_into_a_users_cache_is_the_users(served: Archive, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    archive.plan(opened(served, home / "cache"), NAMES)
    strangers = [path for path in home.rglob("*") if path.lstat().st_uid != 65534]
    assert strangers == []

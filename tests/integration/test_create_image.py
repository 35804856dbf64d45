# SPDX-License-Identifier: Apache-2.0
"""The main job with real parts: diskimage-builder builds, QEMU boots, real Glances take the image."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from groundwork import process
from image_builder import inventory, manifest, provenance, rootfs
from local_chameleon.cloud import State
from tests.integration import commands
from tests.integration.commands import Ran

SITES = ("--site", "CHI@UC", "--site", "CHI@TACC", "--site", "KVM@TACC")
IMAGE = ("--variant", "sage", "--release", "bookworm")


@dataclass(frozen=True)
class Built:
    """A build that two runs at once asked for, signed by ``key``; ``first`` and ``second`` are how they ended."""

    output: Path
    cache: Path
    key: Path
    first: Ran
    second: Ran

    @property
    def folder(self) -> Path:
        return next(self.output.glob("Sage-Debian12/*"))

    def places(self) -> tuple[str, ...]:
        return ("--output-dir", str(self.output), "--cache-dir", str(self.cache))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One cold build of ``sage``, verified, for the three sites."""
    top = tmp_path_factory.mktemp("built")
    key = top / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    words = (
        *IMAGE,
        *SITES,
        "--output-dir",
        str(top / "build"),
        "--cache-dir",
        str(top / "cache"),
        "--sign-key",
        str(key),
    )
    one = commands.start("create-image", *words)
    time.sleep(2)
    other = commands.start("create-image", *words)
    made = Built(top / "build", top / "cache", key, commands.finish(one), commands.finish(other))
    assert made.first.code == 0, made.first.err
    return made


def test_the_image_is_built_booted_and_described(built: Built) -> None:
    assert f"Image built in {built.folder}/Sage-Debian12.zstd.qcow2\n" in built.first.out
    assert "openstack --os-cloud kvm_tacc image create --disk-format qcow2" in built.first.out
    made, folder = manifest.read(built.folder)
    assert (made.image_name, made.variant, made.release, made.arch) == ("Sage-Debian12", "sage", "bookworm", "amd64")
    assert [file.name for file in made.files] == ["Sage-Debian12.zstd.qcow2", "Sage-Debian12.zlib.qcow2"]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    names = {package.name for package in made.packages}
    assert {"cloud-init", "docker.io", "chrony", "firewalld", "linux-image-amd64"} <= names
    assert set(made.stage_seconds) == {"root tree", "disk", "verify"}
    assert {"docker", "virtual-waggle", "root-tree"} <= set(made.elements)


def test_its_documents_tell_what_is_in_it(built: Built) -> None:
    made, folder = manifest.read(built.folder)
    text = (folder / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = json.loads(text)["components"]
    urls = [row["purl"] for row in components if "purl" in row]
    containers = {row["name"]: len(row["components"]) for row in components if row["type"] == "container"}
    assert set(containers) >= {"sage/rabbitmq", "sage/waggle"}
    assert min(containers.values()) > 20, "each with the packages in it"
    assert len([url for url in urls if url.startswith("pkg:deb/debian/")]) == len(made.packages)
    assert any(re.fullmatch(r"pkg:deb/debian/docker.io@.*\?arch=amd64&distro=debian-12.*", url) for url in urls)
    assert f"pkg:generic/sage-chameleon/virtual_waggle@{made.project_version}" in urls
    assert not [url for url in urls if url.startswith("pkg:pypi/")], "all Python comes from the distribution"
    statement = provenance.read(folder / "provenance.intoto.json")
    assert provenance.subjects(statement) == {file.name: file.sha256 for file in made.files}
    entries = {entry.path: entry for entry in inventory.read(folder / "inventory.jsonl.gz")}
    shell, shadow = entries["usr/bin/bash"], entries["etc/shadow"]
    assert (shell.mode, shell.uid, shell.gid, shell.package) == (0o755, 0, 0, "bash")
    assert (shadow.mode, shadow.uid, shadow.gid) == (0o640, 0, 42), "owners are those that the image has"
    assert entries["opt/chameleon/provenance.json"].size > 0, "what is added last counts too"
    assert len(entries) > 20_000
    owned = sum(entry.size for entry in entries.values() if entry.package)
    assert owned > 0.85 * sum(entry.size for entry in entries.values())


def test_it_is_signed_and_signing_changes_nothing_else(built: Built, tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    signers.write_text(f"builder@example.org {built.key.with_suffix('.pub').read_text()}")
    done = commands.run("sage-image", "verify", built.folder, "--no-boot", "--signers", signers)
    assert done.code == 0, done.err
    assert "signed by builder@example.org" in done.out
    again = commands.run("create-image", *IMAGE, *SITES, *built.places(), "--sign-key", built.key)
    assert "Nothing has changed" in again.err


def test_an_image_over_its_budget_is_not_finished(built: Built, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("extends: sage\ndescription: too little room\nsize_budget_mib: 100\n")
    words = ("--variant", "small", "--release", "bookworm", "--no-verify", "--variants-dir", tmp_path)
    done = commands.run("create-image", *words, *built.places())
    assert done.code == 1
    assert "more than its budget of 100 MiB" in done.err
    assert f"than build {built.folder.name}" in done.err
    assert re.search(r"MiB  linux-image-\S+-amd64$", done.err, re.MULTILINE)
    assert "size_budget_mib of variant small" in done.err
    assert [path.name for path in (built.output / "Sage-Debian12").iterdir()] == [built.folder.name]


def test_it_kept_all_promises_on_both_firmwares(built: Built) -> None:
    made, _ = manifest.read(built.folder)
    assert made.checks is not None
    for firmware in ("bios", "uefi"):
        passed = {result.name for result in made.checks.results if result.firmware == firmware and result.passed}
        assert {
            "login as cc by key",
            "cc is uid 1000 with passwordless sudo",
            "cc runs a container without sudo",
            "virtual-waggle and beehive-server answer",
            "no unit of systemd has failed",
            "cloud-init is done, without errors",
            "the root file system fills the disk",
            "ssh refuses passwords",
            "ssh refuses root",
            "provenance says what built the image",
            "shuts down cleanly",
        } <= passed
        assert "login:" in (built.folder / f"console-{firmware}.log").read_text(errors="replace")


def test_the_second_of_two_runs_at_once_waits_and_takes_the_result(built: Built) -> None:
    assert built.second.code == 0
    told = "another build of Sage-Debian12 goes on; waiting for its result"
    # On a busy machine the one that was started later may come first.
    (waited,) = (ran for ran in (built.first, built.second) if told in ran.err)
    assert "root tree" not in waited.err
    assert len(list(built.output.glob("Sage-Debian12/*"))) == 1


def test_nothing_but_caches_is_left(built: Built) -> None:
    assert list((built.cache / "work").iterdir()) == []
    assert list((built.cache / "disks").iterdir()) == []
    assert commands.processes_that_name(built.cache) == []
    assert commands.mounts_below(built.cache) == []


def test_a_run_without_changes_does_nothing(built: Built) -> None:
    before = (built.folder / "manifest.json").stat().st_mtime_ns
    again = commands.run("create-image", *IMAGE, *SITES, *built.places())
    assert again.code == 0
    assert "Nothing has changed: not built, booted or uploaded again" in again.err
    assert "root tree" not in again.err
    assert "verify" not in again.err
    assert (built.folder / "manifest.json").stat().st_mtime_ns == before


def test_json_is_one_document(built: Built) -> None:
    again = commands.run("create-image", *IMAGE, *SITES, *built.places(), "--json")
    image = json.loads(again.out)["images"][0]
    assert image["manifest"] == str(built.folder / "manifest.json")
    assert (image["changed"], image["verified"]) == (False, True)


def test_publishing_goes_to_three_sites_and_then_has_nothing_to_do(
    built: Built, local_chameleon: State, tmp_path: Path
) -> None:
    env = {"OS_CLIENT_CONFIG_FILE": str(local_chameleon.clouds_yaml)}
    done = commands.run("create-image", *IMAGE, *SITES, *built.places(), "--publish", env=env)
    assert done.code == 0, done.err
    listed = commands.run("sage-image", "list", *SITES, "--json", env=env)
    made, _ = manifest.read(built.folder)
    digests = {file.format.value: file.sha512 for file in made.files}
    for site in json.loads(listed.out):
        (image,) = site["images"]
        assert image["name"] == "Sage-Debian12"
        assert image["properties"]["sage_state"] == "current"
        form = "qcow2-zlib" if site["site"] == "KVM@TACC" else "qcow2-zstd"
        assert image["os_hash_value"] == digests[form]
    again = commands.run("create-image", *IMAGE, *SITES, *built.places(), "--publish", "--json", env=env)
    assert "Nothing has changed" in again.err
    (publication,) = json.loads(again.out)["publications"]
    assert [site["outcome"] for site in publication["sites"]] == ["unchanged"] * 3
    assert sum(site["uploaded"] for site in publication["sites"]) == 0
    # On a machine that never built it, what stands at the sites is not built either.
    elsewhere = ("--output-dir", str(tmp_path / "build"), "--cache-dir", str(tmp_path / "cache"))
    there = commands.run("create-image", *IMAGE, *SITES, *elsewhere, "--publish", env=env, timeout=60)
    assert there.code == 0
    assert "Nothing has changed" in there.err
    assert not (tmp_path / "build").exists()
    # A rehearsal of a rebuild tells each step and does none.
    dry = commands.run("create-image", *IMAGE, *SITES, *elsewhere, "--publish", "--force", "--dry-run", env=env)
    assert dry.code == 0, dry.err
    assert dry.out.count("upload Sage-Debian12.z") == 3
    assert dry.out.count("its name kept") == 3
    assert json.loads(commands.run("sage-image", "list", *SITES, "--json", env=env).out) == json.loads(listed.out)


def test_the_canary_boots_what_each_site_gives_back(built: Built, local_chameleon: State, tmp_path: Path) -> None:
    """Two sites pass with one boot between them; the third fails, by a check that is kept on bare metal alone."""
    cache = tmp_path / "cache"
    # In a second project nothing of the name stands yet.
    (tmp_path / "sites.yaml").write_text(
        "CHI@UC: {cloud: chi_uc_2}\nCHI@TACC: {cloud: chi_tacc_2}\nKVM@TACC: {cloud: kvm_tacc_2}\n"
    )
    (tmp_path / "sage.yaml").write_text(
        "description: fewer promises\nimage_name: x\nelements: [root-tree]\nchecks:\n"
        "- {name: cc is here, run: 'test $(id -un) = cc'}\n"
        "- {name: it is bare metal, run: 'test $SAGE_MACHINE = bare-metal'}\n"
    )
    words: list[str | Path] = ["publish", built.folder, *SITES, "--canary", "--json", "--visibility", "private"]
    words += ["--sites-file", tmp_path / "sites.yaml", "--variants-dir", tmp_path, "--cache-dir", cache]
    env = {"OS_CLIENT_CONFIG_FILE": str(local_chameleon.clouds_yaml)}
    killed = commands.start("sage-image", *words, env=env)
    for _ in process.poll_until(300):
        if killed.poll() is not None or any(
            line.startswith("qemu-system") for line in commands.processes_that_name(cache)
        ):
            break
    assert killed.poll() is None, killed.communicate()[1]
    killed.kill()
    commands.finish(killed)
    for _ in process.poll_until(10):  # the kernel ends what a killed program started
        if not commands.processes_that_name(cache):
            break
    assert commands.processes_that_name(cache) == []
    assert sum(path.stat().st_blocks << 9 for path in cache.rglob("*")) < 100 << 20, "what was read back is gone"

    done = commands.run("sage-image", *words, env=env)
    assert done.code == 3, done.err
    rows = {row["site"]: row for row in json.loads(done.out)["sites"]}
    assert [row["outcome"] for row in rows.values()] == ["published", "published", "failed"]
    assert [row["canary"]["verdict"] for row in rows.values()] == ["pass", "pass", "fail"]
    assert 0 in [row["uploaded"] for row in rows.values()], "the killed run's candidate was taken over"
    said = {site: json.loads(Path(row["canary"]["report"]).read_text())["said"] for site, row in rows.items()}
    assert {site: report["firmware"] for site, report in said.items()} == {
        "CHI@UC": "uefi",
        "CHI@TACC": "uefi",
        "KVM@TACC": "bios",
    }
    assert sorted([said["CHI@UC"]["boot"], said["CHI@TACC"]["boot"]]) == ["own", "shared"]
    assert "it is bare metal" in rows["KVM@TACC"]["problem"]["message"]
    assert Path(rows["KVM@TACC"]["canary"]["report"]).with_name("console-bios.log").stat().st_size > 0
    assert list((cache / "work").iterdir()) == []
    assert commands.processes_that_name(cache) == []


def test_checks_that_fail_are_shown_with_command_output_and_console(built: Built, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(
        "description: promises too much\nimage_name: x\nelements: [root-tree]\nchecks:\n"
        "- {name: there is a unicorn, run: 'echo looked everywhere; test -e /unicorn'}\n"
        "- {name: it answers in time, run: 'echo wait; sleep 60', timeout: 2}\n"
        "- {name: that is over, run: '(! pgrep -x sleep)'}\n"
        "- {name: cc is here, run: 'test $(id -un) = cc'}\n"
    )
    image = built.folder / "Sage-Debian12.zstd.qcow2"
    done = commands.run(
        "sage-image", "verify", image, "-v", "broken", "--variants-dir", tmp_path, "--cache-dir", built.cache
    )
    assert done.code == 1
    assert "4 of 12 checks failed" in done.err
    assert "test -e /unicorn" in done.err
    assert "looked everywhere\n    failed: test -e /unicorn\n    exit status 1" in done.err
    assert "] it answers in time\n" in done.err
    assert "not done within 2 s: stopped" in done.err
    assert "--- the end of the console:" in done.err
    assert "passed  bios" in done.out


def test_a_file_that_was_changed_is_not_verified(built: Built, tmp_path: Path) -> None:
    copy = tmp_path / "build"
    shutil.copytree(built.folder, copy)
    image = copy / "Sage-Debian12.zstd.qcow2"
    with image.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(b"changed")
    done = commands.run("sage-image", "verify", copy)
    assert done.code == 2
    assert "is not the file that was built" in done.err


# ------------------------------------------------------------------------------- what fails, and what is left then


def own_variant(folder: Path, script: str) -> tuple[str, ...]:
    """A variant whose element ``own`` runs ``script`` before anything is downloaded."""
    hook = folder / "elements/own/root.d/01-own"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/bash\nset -eu\n{script}\n")
    hook.chmod(0o755)
    (folder / "variants").mkdir()
    (folder / "variants/own.yaml").write_text(
        'description: a test\'s own\nimage_name: "Own"\nelements: [root-tree, own]\n'
    )
    return (
        *("--variant", "own", "--release", "bookworm", "--no-verify"),
        *("--variants-dir", str(folder / "variants"), "--elements-dir", str(folder / "elements")),
        *("--output-dir", str(folder / "build"), "--cache-dir", str(folder / "cache")),
    )


def test_an_element_that_fails_is_named_with_the_end_of_the_log(tmp_path: Path) -> None:
    done = commands.run("create-image", *own_variant(tmp_path, "echo no luck today; exit 7"))
    assert done.code == 1
    assert "diskimage-builder failed in root.d/01-own" in done.err
    assert "no luck today" in done.err
    log = next(line.split(": ", 2)[2] for line in done.err.splitlines() if "the whole log:" in line)
    assert "no luck today" in Path(log).read_text()
    assert list((tmp_path / "cache/work").iterdir()) == []


def test_a_mirror_out_of_reach_ends_the_build(tmp_path: Path) -> None:
    words = own_variant(tmp_path, "true")
    done = commands.run("create-image", *words, "--mirror", "http://127.0.0.1:9/debian", timeout=300)
    assert done.code == 1
    assert "http://127.0.0.1:9/debian bookworm is out of reach" in done.err
    assert "--mirror" in done.err
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_broken_off_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    loops = commands.loop_devices()
    script = "mount -t tmpfs none $TARGET_ROOT; touch $ELEMENTS_PATH_MARK; sleep 300"
    mark = tmp_path / "elements/reached"
    words = own_variant(tmp_path, script.replace("$ELEMENTS_PATH_MARK", str(mark)))
    running = commands.start("create-image", *words)
    for _ in process.poll_until(60):
        if mark.exists() or running.poll() is not None:
            break
    assert mark.exists(), running.communicate()[1]
    running.send_signal(number)
    done = commands.finish(running, timeout=60)
    for _ in process.poll_until(10):  # the kernel ends what a killed program started
        if not commands.processes_that_name(tmp_path):
            break
    assert commands.processes_that_name(tmp_path) == []
    assert commands.mounts_below(tmp_path) == []
    assert commands.loop_devices() == loops
    assert not list(tmp_path.glob("build/*/*"))
    if number == signal.SIGKILL:
        assert done.code == -9
        with rootfs.workspace(tmp_path / "cache") as work:  # the next run cleans up after it
            assert [path.name for path in (tmp_path / "cache/work").iterdir() if path.is_dir()] == [work.name]
    else:
        assert done.code == 128 + number
        assert "error: interrupted" in done.err
        assert list((tmp_path / "cache/work").iterdir()) == []


def test_a_verification_broken_off_leaves_no_machine(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    running = commands.start("sage-image", "verify", built.folder, "--cache-dir", cache)
    for _ in process.poll_until(60):
        if len([line for line in commands.processes_that_name(cache) if line.startswith("qemu-system")]) == 2:
            break
    running.send_signal(signal.SIGINT)
    done = commands.finish(running, timeout=60)
    assert done.code == 130
    assert commands.processes_that_name(cache) == []
    assert list((cache / "work").iterdir()) == []


# ------------------------------------------------------------------------------------------------------- elsewhere


def test_the_wheel_works_outside_the_clone(tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        tmp_path,
        project,
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "there"
    uv = commands.command("uv")
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--target", target, wheel],
        check=True,
    )
    start = "import sys; from image_builder.create_image import main; main()"
    # our own packages from the wheel, the others from this environment
    others = tmp_path / "others"
    others.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("__editable__", "sage_chameleon")) and path.suffix != ".pth":
            (others / path.name).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", start, *IMAGE, "--dry-run", "--json"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": f"{target}:{others}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    recipe = json.loads(done.stdout)["images"][0]["recipe"]
    assert recipe["element_folders"] == [str(target / "image_builder/data/elements")]
    scripts = list((target / "image_builder/data/elements").glob("*/*.d/[0-9]*"))
    here = list((project / "elements").glob("*/*.d/[0-9]*"))
    assert len(scripts) == len(here) > 20
    assert {path.name for path in scripts if os.access(path, os.X_OK)} == {
        path.name for path in here if os.access(path, os.X_OK)
    }

# SPDX-License-Identifier: Apache-2.0
"""Builds are signed and checked with a real ssh-keygen and agent, and compared: as a user does, with the commands."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chameleon_sites.sites import DiskFormat
from groundwork import files, process, products
from image_builder import cli, inventory, manifest, papers, recipe, signing, software, variant
from image_builder.inventory import INVENTORY
from image_builder.manifest import ImageFile, Manifest, Package
from image_builder.papers import Circumstances
from image_builder.software import Software
from image_builder.variant import Arch
from tests.integration import commands
from tests.integration.commands import Ran

SUMS, SBOM, PROVENANCE = papers.SIGNED


def make_build(folder: Path, build_id: str, files_in_it: dict[str, str], packages: dict[str, str]) -> Path:
    """A finished build of a small tree and a small disk, by the code that makes real ones."""
    root, place = folder / "root", folder / build_id
    place.mkdir(parents=True)
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    for path, content in files_in_it.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (info / "tool.list").write_text("/usr/bin/tool\n")
    software.survey(root, place / INVENTORY)
    installed = tuple(Package(name, version, "amd64", name, version) for name, version in packages.items())
    image = place / "Sage-Debian12.zstd.qcow2"
    process.run(["qemu-img", "create", "-f", "qcow2", image, "64M"], timeout=60)
    digests = files.digest_file(image)
    found = variant.load("sage", [cli.project_folder("variants")])
    made_of = recipe.make(found, "bookworm", Arch.AMD64, element_folders=[cli.project_folder("elements")])
    made = Manifest(
        build_id=build_id,
        image_name=made_of.image_name,
        variant="sage",
        release="bookworm",
        os_name="Debian",
        os_version="12",
        arch="amd64",
        recipe_digest=made_of.digest,
        checks_digest=made_of.checks_digest,
        built_at="2026-11-20T03:15:00Z",
        project_version="0.1.0",
        commit=None,
        clean=None,
        elements=made_of.element_digests,
        packages=installed,
        disk_size=64 << 20,
        files=(ImageFile(DiskFormat.QCOW2_ZSTD, image.name, digests.size, "", digests.sha256, digests.sha512),),
        checks=None,
        stage_seconds={},
    )
    manifest.write(papers.write(made_of, made, Software(installed), place, Circumstances()), place)
    shutil.rmtree(root)
    return place


@dataclass(frozen=True)
class Keys:
    """Ours, another's, one with a passphrase; and who may sign: ours alone, as ``builder@example.org``."""

    ours: Path
    other: Path
    locked: Path
    signers: Path


def new_key(path: Path, *, passphrase: str = "") -> Path:
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", path], timeout=60)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    top = tmp_path_factory.mktemp("keys")
    ours, other = new_key(top / "ours"), new_key(top / "other")
    locked = new_key(top / "locked", passphrase="secret words")
    signers = top / "signers"
    signers.write_text(f"# who builds\nbuilder@example.org,also@example.org {ours.with_suffix('.pub').read_text()}")
    return Keys(ours, other, locked, signers)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A finished build without signatures."""
    return make_build(tmp_path, "20261120T031500Z-aaaaaaaa", {"usr/bin/tool": "tool"}, {"tool": "1"})


@pytest.fixture
def signed(plain: Path, keys: Keys) -> Path:
    done = commands.run("sage-image", "sign", plain, "--sign-key", keys.ours)
    assert done.code == 0, done.err
    return plain


def verify(build: Path, signers: Path, *words: str) -> Ran:
    return commands.run("sage-image", "verify", build, "--no-boot", "--signers", signers, *words)


def test_a_signed_build_is_verified_and_its_signer_named(signed: Path, keys: Keys) -> None:
    assert {path.name for path in signed.glob("*.sig")} == {f"{name}.sig" for name in papers.SIGNED}
    done = verify(signed, keys.signers)
    assert done.code == 0, done.err
    assert "signed by builder@example.org" in done.out
    assert verify(signed / "manifest.json", keys.signers).code == 0
    assert verify(signed / "Sage-Debian12.zstd.qcow2", keys.signers).code == 0
    assert json.loads(verify(signed, keys.signers, "--json").out) == {"digests": True, "signed": True}
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=signed, check=True)


def test_anyone_can_check_the_signature_without_this_program(signed: Path, keys: Keys) -> None:
    for name in papers.SIGNED:
        words: list[str | Path] = [
            "-f",
            keys.signers,
            "-I",
            "builder@example.org",
            "-n",
            "sage-image",
            "-s",
            f"{name}.sig",
        ]
        with (signed / name).open() as content:
            subprocess.run(["ssh-keygen", "-Y", "verify", *words], cwd=signed, stdin=content, check=True)


def append(name: str) -> Callable[[Path], object]:
    return lambda build: (build / name).write_bytes((build / name).read_bytes() + b"\n")


def swap(one: str, other: str) -> Callable[[Path], object]:
    return lambda build: shutil.copy(build / one, build / other)


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (append(SBOM), 1, f"{SBOM}.sig does not fit: {SBOM} was changed since"),
        (append(PROVENANCE), 1, f"{PROVENANCE}.sig does not fit"),
        (append(SUMS), 1, f"{SUMS}.sig does not fit"),
        (append("manifest.json"), 2, "manifest.json is not the file that was built"),
        (append(INVENTORY), 2, f"{INVENTORY} is not the file that was built"),
        (swap(f"{SBOM}.sig", f"{PROVENANCE}.sig"), 1, f"{PROVENANCE}.sig does not fit"),
        (lambda build: (build / f"{SUMS}.sig").unlink(), 1, f"is not signed: there is no {SUMS}.sig"),
        (lambda build: (build / f"{SBOM}.sig").unlink(), 1, f"is not signed: there is no {SBOM}.sig"),
        (lambda build: (build / f"{SUMS}.sig").write_text("hello"), 1, "is not a signature of OpenSSH"),
    ],
)
def test_what_was_changed_after_signing_is_told(
    signed: Path, keys: Keys, harm: Callable[[Path], object], code: int, words: str
) -> None:
    harm(signed)
    done = verify(signed, keys.signers)
    assert done.code == code
    assert words in done.err


def test_an_image_that_was_exchanged_with_all_checksums_mended_is_told(signed: Path, keys: Keys) -> None:
    image = signed / "Sage-Debian12.zstd.qcow2"
    process.run(["qemu-img", "create", "-f", "qcow2", image, "65M"], timeout=60)
    digests = files.digest_file(image)
    made = products.load(Manifest, signed / "manifest.json")
    row = replace(made.files[0], size=digests.size, sha256=digests.sha256)
    manifest.write(papers.add_files(replace(made, files=(row,)), signed), signed)
    assert commands.run("sage-image", "verify", signed, "--no-boot").code == 0, "digests alone can't tell"
    done = verify(signed, keys.signers)
    assert done.code == 1
    assert f"{SUMS}.sig does not fit" in done.err


def test_a_key_that_is_not_trusted_does_not_count(plain: Path, keys: Keys) -> None:
    assert commands.run("sage-image", "sign", plain, "--sign-key", keys.other).code == 0
    done = verify(plain, keys.signers)
    assert done.code == 1
    assert f"is signed by the key {signing.fingerprint(keys.other)}, which is none of those in" in done.err


def test_a_signature_for_another_purpose_does_not_count(signed: Path, keys: Keys) -> None:
    (signed / f"{SBOM}.sig").unlink()
    process.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", keys.ours, signed / SBOM], timeout=60)
    done = verify(signed, keys.signers)
    assert done.code == 1
    assert "was made for another purpose than 'sage-image'" in done.err


@pytest.mark.parametrize("limit", ['namespaces="git"', 'valid-before="20200101"'])
def test_a_key_may_be_limited_in_the_signers_file(signed: Path, keys: Keys, tmp_path: Path, limit: str) -> None:
    signers = tmp_path / "limited"
    signers.write_text(f"builder@example.org {limit} {keys.ours.with_suffix('.pub').read_text()}")
    done = verify(signed, signers)
    assert done.code == 1
    assert signing.fingerprint(keys.ours) in done.err


@pytest.mark.parametrize(("text", "code"), [(None, 2), ("hello\n", 1), ("", 1)])
def test_a_signers_file_of_no_use_is_named(signed: Path, tmp_path: Path, text: str | None, code: int) -> None:
    signers = tmp_path / "useless"
    if text is not None:
        signers.write_text(text)
    done = verify(signed, signers)
    assert done.code == code
    assert str(signers) in done.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("locked", "has a passphrase"),
        ("signers", "is not a key"),
        ("nowhere", "there is no key file"),
        ("lone.pub", "there is no private key for"),
        ("open", "others may read the key"),
    ],
)
def test_a_key_of_no_use_is_told_before_the_build(keys: Keys, tmp_path: Path, name: str, words: str) -> None:
    lone, left_open = keys.ours.with_name("lone.pub"), keys.ours.with_name("open")
    shutil.copy(new_key(tmp_path / "gone").with_suffix(".pub"), lone)
    shutil.copy(keys.other, left_open)
    left_open.chmod(0o644)
    done = commands.run(
        *("create-image", "--variant", "base", "--release", "bookworm", "--no-verify"),
        *("--sign-key", keys.ours.with_name(name), "--output-dir", tmp_path / "out", "--cache-dir", tmp_path / "cache"),
        timeout=60,
    )
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def agent(keys: Keys, tmp_path: Path) -> Iterator[dict[str, str]]:
    """An agent that holds the key with the passphrase."""
    socket, asker = tmp_path / "agent", tmp_path / "ask"
    asker.write_text("#!/bin/sh\necho secret words\n")
    asker.chmod(0o755)
    running = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    env = {"SSH_AUTH_SOCK": str(socket)}
    try:
        for _ in process.poll_until(10):
            if socket.exists():
                break
        ask = {**os.environ, **env, "SSH_ASKPASS": str(asker), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":"}
        subprocess.run(["ssh-add", "-q", keys.locked], env=ask, check=True, stdin=subprocess.DEVNULL)
        yield env
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(10)


@pytest.mark.parametrize("suffix", ["", ".pub"])
def test_a_key_in_an_agent_signs(plain: Path, keys: Keys, agent: dict[str, str], tmp_path: Path, suffix: str) -> None:
    public = tmp_path / "lone.pub"
    shutil.copy(keys.locked.with_suffix(".pub"), public)
    key = public if suffix else keys.locked
    done = commands.run("sage-image", "sign", plain, "--sign-key", key, env=agent)
    assert done.code == 0, done.err
    signers = tmp_path / "signers"
    signers.write_text(f"locked@example.org {public.read_text()}")
    assert "signed by locked@example.org" in verify(plain, signers).out


def test_it_is_known_which_key_signed(signed: Path, keys: Keys) -> None:
    assert papers.is_signed_by(signed, keys.ours)
    assert papers.is_signed_by(signed, keys.ours.with_suffix(".pub"))
    assert not papers.is_signed_by(signed, keys.other)
    (signed / SBOM).write_text("changed")
    assert not papers.is_signed_by(signed, keys.ours)


def test_a_build_that_was_changed_is_not_signed(plain: Path, keys: Keys) -> None:
    append(SBOM)(plain)
    done = commands.run("sage-image", "sign", plain, "--sign-key", keys.ours)
    assert done.code == 2
    assert f"{SBOM} is not the file that was built" in done.err
    assert not list(plain.glob("*.sig"))


# --------------------------------------------------------------------------------------------- show --size and diff


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two builds; from the first to the second a package was updated, one came, and files changed."""
    top = tmp_path_factory.mktemp("two")
    one = {"usr/bin/tool": "1", "etc/motd": "hello", "etc/gone": "x", "var/lib/kept": "y"}
    other = {"usr/bin/tool": "2", "etc/motd": "good day", "opt/new/large": "z" * (3 << 20), "var/lib/kept": "y"}
    return (
        make_build(top, "20261120T031500Z-aaaaaaaa", one, {"tool": "1.0", "same": "1"}),
        make_build(top, "20261121T031500Z-bbbbbbbb", other, {"tool": "1.1", "same": "1", "more": "3"}),
    )


def test_diff_tells_packages_files_and_sizes(two: tuple[Path, Path]) -> None:
    done = commands.run("sage-image", "diff", two[0], two[1] / "manifest.json")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert "packages: 1 added, 0 removed, 1 changed" in done.out
    assert ["added", "more", "-", "3"] in lines
    assert ["changed", "tool", "1.0", "1.1"] in lines
    assert "files: 3 added, 1 removed, 2 changed; 1 of them belong to the packages above, 5 do not" in done.out
    assert ["changed", "/etc/motd", "5", "8", "content"] in lines
    assert ["removed", "/etc/gone", "1", "-"] in lines
    assert ["added", "/opt/new/large", "-", "3,145,728"] in lines
    assert "/var/lib/kept" not in done.out
    assert ["/opt/new", "0.0", "MiB", "3.0", "MiB", "+3.0", "MiB"] in lines


def test_diff_as_json(two: tuple[Path, Path]) -> None:
    document = json.loads(commands.run("sage-image", "diff", two[0], two[1], "--json").out)
    assert (document["before"], document["after"]) == tuple(f"Sage-Debian12/{build.name}" for build in two)
    found = document["difference"]
    assert {row["name"]: row["change"] for row in found["packages"]} == {"more": "added", "tool": "changed"}
    assert {row["path"]: row["what"] for row in found["files"] if row["change"] == "changed"} == {
        "etc/motd": ["content"],
        "usr/bin/tool": ["content"],
    }
    assert found["folder_sizes"][0] == {"name": "/opt/new", "before": 0, "after": 3 << 20}


def test_show_tells_where_the_bytes_go(two: tuple[Path, Path]) -> None:
    done = commands.run("sage-image", "show", two[1], "--size")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert ["3.0", "MiB", "/opt/new"] in lines
    assert ["3.0", "MiB", "/opt/new/large"] in lines
    sizes = json.loads(commands.run("sage-image", "show", two[1], "--size", "--json").out)
    assert sizes["total"] == sum(sizes["packages"].values()) == sum(sizes["folders"].values())
    assert next(iter(sizes["folders"])) == "/opt/new"


def with_many_files(build: Path, folder: Path, number: int) -> Path:
    """A copy of a build below ``folder``, with an inventory of 40,000 files; of each ``number`` all are others."""
    copy = folder / build.name
    shutil.copytree(build, copy)
    digest = str(number) * 64
    rows = [
        inventory.Entry(f"usr/share/{n % 97}/{n}", "file", 0o644, 0, 0, n, "", digest, f"p{n % 300}")
        for n in range(40_000)
    ]
    inventory.write(rows, copy / INVENTORY)
    return copy


def test_diff_of_large_builds(two: tuple[Path, Path], tmp_path: Path) -> None:
    builds = [with_many_files(build, tmp_path, number) for number, build in enumerate(two)]
    done = commands.run("sage-image", "diff", *builds)
    assert done.code == 0, done.err
    assert "39" in done.out or "40,000" in done.out

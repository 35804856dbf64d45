# SPDX-License-Identifier: Apache-2.0
"""What is wrong is told before any work begins, with exit code 2 and what to do about it."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from chameleon_sites.sites import DiskFormat
from groundwork import files, process, products
from groundwork.errors import InputError, Interrupted, SageError
from image_builder import (
    build,
    cli,
    create_image,
    disk,
    emulation,
    inventory,
    machine,
    manifest,
    pipeline,
    privilege,
    recipe,
    variant,
)
from image_builder import sage_image as sage_command
from image_builder import settings as table
from image_builder.build import Places
from image_builder.cli import default_arch
from image_builder.disk import Disk
from image_builder.manifest import CheckReport, CheckResult, ImageFile, Manifest
from image_builder.recipe import Recipe
from image_builder.software import Software
from image_builder.variant import Arch

IMAGE = ["--variant", "sage", "--release", "bookworm"]


def told(*words: str, sage_image: bool = False) -> InputError:
    """The InputError that these words end in."""
    main: Callable[[list[str]], int] = sage_command._sage_image if sage_image else create_image._create_image
    with pytest.raises(InputError) as caught:
        main(list(words))
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "no variant given", "--variant base | base-arm64 | base-cuda | sage | sage-arm64 | sage-cuda"),
        (["-v", "sgae"], "unknown variant 'sgae'", "did you mean 'sage'?"),
        (["-v", "sage", "-n", "nobel"], "unknown release 'nobel'", "did you mean 'noble'?"),
        (["-v", "sage", "--arch", "arm46"], "--arch: unknown architecture 'arm46'", "did you mean 'arm64'?"),
        (["-v", "sage", "--site", "CHI@UX"], "unknown site 'CHI@UX'", "did you mean 'CHI@UC'?"),
        (["-v", "sage", "-g", "CHI@Edge"], "CHI@Edge takes no images of ours", "containers"),
        (["-v", "sage", "--publish"], "--publish needs at least one --site", "CHI@UC"),
        (["-v", "sage", "--publish", "--no-verify", "-g", "CHI@UC"], "not booted is not published", "--no-verify"),
        (["-v", "sage", "--mirror", "ftp://x"], "--mirror: expected a URL", None),
        (["-v", "sage", "--cuda-version", "12"], "--cuda-version: no element of this variant", None),
        (["-v", "sage", "--keep", "0"], "--keep: expected a whole number from 1", None),
        (["-v", "sage", "--visibility", "pubic"], "--visibility: unknown visibility 'pubic'", "'public'"),
        (["-v", "sage", "--variants-dir", "/nowhere"], "there is no folder /nowhere", None),
        (["-v", "sage", "--sites-file", "/nowhere"], "can't read /nowhere", None),
        (["-v", "sage", "--config", "/nowhere"], "can't read /nowhere", None),
        (["-v", "sage", "--varient"], "unknown flag --varient", "did you mean '--variant'?"),
        (["-v", "sage", "extra"], "unexpected word 'extra'", "create-image --help"),
    ],
)
def test_wrong_words_are_answered(words: list[str], message: str, hint: str | None) -> None:
    error = told(*words)
    assert message in str(error)
    assert hint is None or (error.hint is not None and hint in error.hint)


def test_the_flags_of_the_tool_of_2020_are_kept() -> None:
    flags = {flag for setting in table.CREATE_IMAGE for flag in (*setting.also, setting.flag)}
    assert {
        "-v",
        "-n",
        "--release",
        "-g",
        "--region",
        "-k",
        "--kvm",
        "-c",
        "--cuda-version",
        "-r",
        "--revision",
    } <= flags


def test_the_settings_manual_is_up_to_date() -> None:
    from groundwork.settings import manual

    text = (Path(__file__).parents[3] / "docs/settings.md").read_text()
    assert text.endswith(manual(table.ALL)), "run: make docs"


def test_releases_have_what_a_build_takes() -> None:
    rows = recipe.releases()
    assert list(rows) == ["noble", "jammy", "resolute", "bookworm"]
    for name, row in rows.items():
        assert set(row["mirrors"]) == {"amd64", "arm64"}, name


def test_the_releases_that_are_offered_are_those_that_there_are() -> None:
    rows = set(recipe.releases())
    docs = Path(__file__).parents[3]
    assert set(re.split(", | or ", table.RELEASE.help)) == rows
    cuda = (docs / "docs/images.md").read_text().partition("| release | CUDA |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", cuda, re.MULTILINE)) == rows
    assert "unknown release 'trixie'" in str(told("--variant", "sage", "--release", "trixie"))


# ------------------------------------------------------------------------------------------------ this machine


@pytest.fixture
def sage() -> Recipe:
    found = variant.load("sage", [cli.project_folder("variants")])
    return recipe.make(found, "bookworm", Arch.AMD64, element_folders=[cli.project_folder("elements")])


@pytest.fixture
def as_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *args, **kwargs: "amd64\n")
    monkeypatch.setattr(process, "find", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(machine, "uefi_files", lambda arch: (Path("a"), Path("b")))


@pytest.mark.usefixtures("as_amd64")
def test_a_missing_program_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, sage: Recipe, tmp_path: Path
) -> None:
    absent = {"mmdebstrap", "qemu-img", "mmd"}
    monkeypatch.setattr(process, "find", lambda program: None if program in absent else f"/usr/bin/{program}")
    with pytest.raises(InputError, match="missing system programs: mmd, mmdebstrap, qemu-img") as caught:
        build.check_machine(sage, [DiskFormat.QCOW2_ZSTD], Places(tmp_path, tmp_path), verified=True, tree=True)
    assert caught.value.hint == "install with: apt-get install mmdebstrap mtools qemu-utils"


@pytest.mark.usefixtures("as_amd64")
def test_a_disk_too_full_is_told_before_the_build(
    monkeypatch: pytest.MonkeyPatch, sage: Recipe, tmp_path: Path
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 3 << 30)
    with pytest.raises(InputError, match=r"has 3.0 GiB free; this needs 8.0 GiB") as caught:
        build.check_machine(sage, [DiskFormat.QCOW2_ZSTD], Places(tmp_path, tmp_path), verified=True, tree=True)
    assert caught.value.hint is not None
    assert "--cache-dir" in caught.value.hint


@pytest.mark.parametrize(
    ("machine_arch", "arches", "arch"),
    [
        ("amd64", (Arch.AMD64, Arch.ARM64), Arch.AMD64),
        ("arm64", (Arch.AMD64, Arch.ARM64), Arch.ARM64),
        ("amd64", (Arch.ARM64,), Arch.ARM64),
        ("riscv64", (Arch.ARM64,), Arch.ARM64),
    ],
)
def test_without_arch_it_is_this_machines_or_the_variants_only_one(
    monkeypatch: pytest.MonkeyPatch, machine_arch: str, arches: tuple[Arch, ...], arch: Arch
) -> None:
    monkeypatch.setattr(emulation, "machine_arch", lambda: machine_arch)
    assert default_arch(arches) is arch


def test_a_machine_of_another_kind_must_be_told_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "machine_arch", lambda: "riscv64")
    with pytest.raises(InputError, match="unknown architecture 'riscv64'"):
        default_arch((Arch.AMD64, Arch.ARM64))


def test_without_root_and_sudo_the_build_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda program: None)
    with pytest.raises(InputError, match="needs root, and there is no sudo") as caught:
        privilege.rerun_as_root("image_builder.cli:create_image", [])
    assert caught.value.hint is not None
    assert "apt-get install sudo" in caught.value.hint


def test_sudo_gets_every_setting_and_the_users_clouds_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[list[str]] = []

    def execvp(program: str, words: list[str]) -> None:
        ran.append(words)
        raise StopIteration  # the real one never returns

    monkeypatch.setattr(process, "find", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(process, "run", lambda *args, **kwargs: "")
    monkeypatch.setattr(os, "execvp", execvp)
    monkeypatch.delenv("SUDO_UID", raising=False)
    for name in [name for name in os.environ if name.startswith("OS_") or name in privilege._KEPT]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OS_CLOUD", "mine")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    with pytest.raises(StopIteration):
        privilege.rerun_as_root("image_builder.cli:create_image", ["--variant=sage"])
    (words,) = ran
    assert words[:5] == ["sudo", "-u", "root", "--preserve-env=OS_CLIENT_CONFIG_FILE,OS_CLOUD", "--"]
    assert words[-1] == "--variant=sage"
    assert "from image_builder.cli import create_image" in words[-2]
    assert "import sys; sys.path[:] = [" in words[-2], "root imports nothing from the folder the user is in"


def test_sudo_that_makes_no_root_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda program: f"/usr/bin/{program}")
    monkeypatch.setenv("SUDO_UID", "1000")
    with pytest.raises(InputError, match="sudo did not make this root"):
        privilege.rerun_as_root("image_builder.cli:create_image", [])


# ------------------------------------------------------------------------------------------------ manifests


def a_manifest(*, checked: bool = True) -> Manifest:
    result = CheckResult("login as cc by key", "bios", True, 50.0, "", "")
    return Manifest(
        build_id="20261120T031500Z-dddddddd",
        image_name="Sage-Debian12",
        variant="sage",
        release="bookworm",
        os_name="Debian",
        os_version="12",
        arch="amd64",
        recipe_digest="d" * 64,
        checks_digest="c" * 64,
        built_at="2026-11-20T03:15:00Z",
        project_version="0.1.0",
        commit=None,
        clean=None,
        elements={},
        packages=(),
        disk_size=3 << 30,
        files=(ImageFile(DiskFormat.QCOW2_ZSTD, "Sage-Debian12.zstd.qcow2", 4, "m", "s", "t"),),
        checks=CheckReport((result,), {"bios": 50.0}) if checked else None,
        stage_seconds={},
    )


def put_facts(place: Path) -> None:
    """What is known of a disk in the cache."""
    inventory.write([], place / inventory.INVENTORY)
    products.save(build._Facts("id", "2026-11-20T03:15:00Z", Software(())), place / "facts.json")


def put(folder: Path, made: Manifest) -> Path:
    for file in made.files:
        (folder / file.name).write_bytes(b"\0" * file.size)
    return manifest.write(made, folder)


def test_a_manifest_comes_back_with_its_checksums(tmp_path: Path) -> None:
    path = put(tmp_path, a_manifest())
    assert manifest.read(path) == manifest.read(tmp_path) == (a_manifest(), tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert lines[0] == "s  Sage-Debian12.zstd.qcow2"
    assert lines[1] == f"{files.digest_file(path).sha256}  manifest.json"


def test_a_build_that_was_not_checked_is_not_published(tmp_path: Path) -> None:
    path = put(tmp_path, a_manifest(checked=False))
    error = told("publish", str(path), "--site", "CHI@UC", sage_image=True)
    assert "was not booted and checked" in str(error)


@pytest.mark.parametrize("harm", ["absent", "short", "outside", "text", "other"])
def test_a_damaged_build_is_told(tmp_path: Path, harm: str) -> None:
    path = put(tmp_path, a_manifest())
    image = tmp_path / "Sage-Debian12.zstd.qcow2"
    if harm == "absent":
        image.unlink()
    elif harm == "short":
        image.write_bytes(b"")
    elif harm == "outside":
        path.write_text(path.read_text().replace(image.name, "../../etc/passwd"))
    elif harm == "text":
        path.write_text("hello")
    else:
        path.write_text('{"some": "thing"}')
    for command in ("publish", "show"):
        error = told(command, str(path), *(["--site", "CHI@UC"] if command == "publish" else []), sage_image=True)
        assert str(tmp_path) in str(error)


def test_an_image_without_manifest_needs_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "some.qcow2"
    image.write_bytes(b"x")
    monkeypatch.setattr(disk, "check_is_image", lambda path: 1)
    error = told("verify", str(image), sage_image=True)
    assert "no manifest beside" in str(error)
    assert error.hint is not None
    assert "--variant" in error.hint


def test_a_standing_build_is_found_by_its_recipe(sage: Recipe, tmp_path: Path) -> None:
    from dataclasses import replace

    made = replace(a_manifest(), recipe_digest=sage.digest, checks_digest=sage.checks_digest)
    folder = tmp_path / f"Sage-Debian12/20261120T031500Z-{sage.digest[:8]}"
    folder.mkdir(parents=True)
    put(folder, made)
    found = build.find(sage, tmp_path)
    assert found is not None
    assert build.is_complete(found, sage, [DiskFormat.QCOW2_ZSTD], verified=True)
    assert not build.is_complete(found, sage, [DiskFormat.QCOW2_ZLIB], verified=True)
    assert not build.is_complete(found, replace(sage, checks_digest="other"), [DiskFormat.QCOW2_ZSTD], verified=True)
    assert build.find(replace(sage, digest="e" * 64), tmp_path) is None
    assert not build.needs_root(sage, Places(tmp_path, tmp_path / "cache"), force=False)
    assert build.needs_root(sage, Places(tmp_path, tmp_path / "cache"), force=True)


def test_checks_that_were_not_made_are_not_recorded_as_made(sage: Recipe, tmp_path: Path) -> None:
    from dataclasses import replace

    folder = tmp_path / f"Sage-Debian12/20261120T031500Z-{sage.digest[:8]}"
    folder.mkdir(parents=True)
    put(folder, replace(a_manifest(), recipe_digest=sage.digest, checks_digest="those of then"))
    found = build.find(sage, tmp_path)
    assert found is not None
    done = build._complete(found, sage, [DiskFormat.QCOW2_ZSTD], None, tmp_path, None)
    assert done.manifest.checks_digest == "those of then"
    assert not build.is_complete(done, sage, [DiskFormat.QCOW2_ZSTD], verified=True)


@pytest.mark.parametrize("broken_off", [False, True])
def test_an_interruption_before_the_last_rename_loses_nothing(
    sage: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_off: bool
) -> None:
    from dataclasses import replace

    made = replace(a_manifest(), recipe_digest=sage.digest)
    place, logs, output = tmp_path / "cache/disks" / sage.digest, tmp_path / "logs", tmp_path / "build"
    logs.mkdir()
    (logs / "build.log").write_text("log")
    place.mkdir(parents=True)
    (place / made.files[0].name).write_bytes(b"disk")
    put_facts(place)
    products.save(Disk(3 << 30, 1 << 30, made.files), place / "disk.json")
    if broken_off:

        def interrupt(*args: object) -> Path:
            raise Interrupted(15)

        monkeypatch.setattr(manifest, "write", interrupt)
        with pytest.raises(Interrupted):
            build._put_out(made, place, logs, output)
        assert list((output / "Sage-Debian12").iterdir()) == []
        assert build._standing_disk(sage, tmp_path / "cache") is not None
    else:
        folder = build._put_out(made, place, logs, output)
        assert manifest.read(folder)[0] == made
        assert (folder / "build.log").read_text() == "log"
        assert not place.exists()
        assert not logs.exists()


def test_a_disk_in_the_cache_counts_only_when_it_is_whole(sage: Recipe, tmp_path: Path) -> None:
    place = tmp_path / "disks" / sage.digest
    place.mkdir(parents=True)
    (place / "disk.json").write_text("{")
    assert build._standing_disk(sage, tmp_path) is None
    file = a_manifest().files[0]
    products.save(Disk(3 << 30, 1 << 30, (file,)), place / "disk.json")
    assert build._standing_disk(sage, tmp_path) is None
    (place / file.name).write_bytes(b"1234")
    assert build._standing_disk(sage, tmp_path) is None, "it is not known what the disk holds"
    put_facts(place)
    assert build._standing_disk(sage, tmp_path) is not None


def test_the_upload_command_is_exact(tmp_path: Path) -> None:
    made = build.Build(a_manifest(), tmp_path, fresh=True)
    assert pipeline.upload_commands(made, []) == [
        "openstack image create --disk-format qcow2 --container-format bare --min-disk 3 "
        "--property build-variant=sage --property build-tag=20261120T031500Z-dddddddd "
        f"--file {tmp_path}/Sage-Debian12.zstd.qcow2 Sage-Debian12"
    ]


def test_a_failed_report_shows_command_and_output() -> None:
    from image_builder import verify

    bad = CheckResult("docker runs", "uefi", False, 1.0, "docker run x", "no such image\nexit status 125")
    error = verify.explain(CheckReport((bad,), {}), Path("/logs"))
    assert isinstance(error, SageError)
    for words in ("1 of 1 checks failed", "[uefi] docker runs", "    docker run x", "    no such image"):
        assert words in str(error)

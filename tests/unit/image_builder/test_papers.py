# SPDX-License-Identifier: Apache-2.0
"""Checksums, manifest, documents and provenance of a build fit together; where they do not, it is told."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_sites.sites import DiskFormat
from groundwork import files, products
from groundwork.errors import InputError
from image_builder import build, cli, disk, inventory, manifest, papers, provenance, recipe, variant
from image_builder.inventory import INVENTORY
from image_builder.manifest import ImageFile, Manifest
from image_builder.papers import Circumstances
from image_builder.recipe import Recipe
from image_builder.software import Software
from image_builder.variant import Arch
from tests.unit.image_builder.test_cli import a_manifest, told
from tests.unit.image_builder.trees import file, package

IMAGE = "Sage-Debian12.zstd.qcow2"


def image_file(folder: Path, name: str = IMAGE, form: DiskFormat = DiskFormat.QCOW2_ZSTD) -> ImageFile:
    (folder / name).write_text(f"the disk of {name}")
    digests = files.digest_file(folder / name)
    return ImageFile(form, name, digests.size, digests.md5, digests.sha256, digests.sha512)


@pytest.fixture
def sage() -> Recipe:
    found = variant.load("sage", [cli.project_folder("variants")])
    return recipe.make(found, "bookworm", Arch.AMD64, element_folders=[cli.project_folder("elements")])


@pytest.fixture
def finished(sage: Recipe, tmp_path: Path) -> Path:
    """A finished build's folder."""
    folder = tmp_path / "build"
    folder.mkdir()
    inventory.write([file("usr/bin/bash", 5000, package="bash")], folder / INVENTORY)
    made = replace(a_manifest(), files=(image_file(folder),), recipe_digest=sage.digest)
    circumstances = Circumstances("20261101T000000Z", "https://example.org/builder")
    manifest.write(papers.write(sage, made, Software((package("bash"),)), folder, circumstances), folder)
    return folder


def test_a_build_has_inventory_sbom_and_provenance_and_all_have_checksums(finished: Path) -> None:
    made, folder = manifest.read(finished)
    assert [row.name for row in made.documents] == ["inventory.jsonl.gz", "sbom.cdx.json", "provenance.intoto.json"]
    assert list(manifest.checksums(folder)) == [IMAGE, *(row.name for row in made.documents), "manifest.json"]
    for name, digest in manifest.checksums(folder).items():
        assert files.digest_file(folder / name).sha256 == digest
    papers.check_digests(made, folder, [IMAGE])
    statement = provenance.read(folder / "provenance.intoto.json")["predicate"]
    assert statement["runDetails"]["builder"]["id"] == "https://example.org/builder"
    assert statement["buildDefinition"]["externalParameters"]["revision"] == "20261101T000000Z"
    assert {row["name"] for row in statement["runDetails"]["byproducts"]} == {"inventory.jsonl.gz", "sbom.cdx.json"}


def replace_in(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def other_subject(folder: Path) -> None:
    """A provenance about another image, with all digests of it mended."""
    made, _ = manifest.read(folder)
    statement = provenance.with_files(provenance.read(folder / "provenance.intoto.json"), [])
    (folder / "provenance.intoto.json").write_text(provenance.text(statement))
    row = papers._document(folder / "provenance.intoto.json")
    manifest.write(replace(made, documents=(*made.documents[:2], row)), folder)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (replace_in("sbom.cdx.json", "bash", "dash"), "sbom.cdx.json is not the file that was built"),
        (replace_in("provenance.intoto.json", "sage", "safe"), "provenance.intoto.json is not the file"),
        (replace_in("manifest.json", '"variant": "sage"', '"variant": "base"'), "manifest.json is not the file"),
        (replace_in(IMAGE, "disk", "dish"), f"{IMAGE} is not the file that was built"),
        (replace_in("SHA256SUMS", "  sbom", "  sbon"), "do not tell the same of sbom.cdx.json"),
        (lambda folder: (folder / "sbom.cdx.json").unlink(), "sbom.cdx.json is not there"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "can't read .*SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS").write_text("hello\n"), "not a list of SHA-256 checksums"),
        (other_subject, "provenance.intoto.json is about other files"),
    ],
)
def test_whatever_was_changed_is_named(finished: Path, harm: Callable[[Path], object], words: str) -> None:
    made, _ = manifest.read(finished)
    harm(finished)
    if harm is other_subject:
        made, _ = manifest.read(finished)
    with pytest.raises(InputError, match=words):
        papers.check_digests(made, finished, [IMAGE])


def test_a_build_of_version_0_1_is_still_read(tmp_path: Path) -> None:
    made = replace(a_manifest(), files=(image_file(tmp_path),), packages=(package("bash"),))
    data = products.to_data(made)
    del data["documents"], data["packages"][0]["source"], data["packages"][0]["source_version"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    (tmp_path / "SHA256SUMS").write_text(f"{made.files[0].sha256}  {IMAGE}\n")
    found, _ = manifest.read(tmp_path)
    assert found == made
    papers.check_digests(found, tmp_path, [IMAGE])
    assert "has no inventory.jsonl.gz" in str(told("show", "--size", str(tmp_path), sage_image=True))


def test_a_form_added_to_a_build_is_in_its_provenance(
    finished: Path, sage: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    zlib = image_file(finished, "Sage-Debian12.zlib.qcow2", DiskFormat.QCOW2_ZLIB)

    def make(standing: disk.Disk, *rest: object) -> disk.Disk:
        return replace(standing, files=(*standing.files, zlib))

    monkeypatch.setattr(disk, "more_formats", make)
    for name in papers.SIGNED:
        (finished / f"{name}.sig").write_text("by someone")
    standing = build.Build(*manifest.read(finished), fresh=False)
    done = build._complete(standing, sage, [DiskFormat.QCOW2_ZLIB], None, tmp_path, None)
    papers.check_digests(done.manifest, finished, [IMAGE, zlib.name])
    assert set(provenance.subjects(provenance.read(finished / "provenance.intoto.json"))) == {IMAGE, zlib.name}
    assert not list(finished.glob("*.sig")), "signatures that no longer fit are gone"


def test_a_build_that_lacks_nothing_but_a_signature_keeps_its_manifest(
    finished: Path, sage: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signed: list[Path] = []
    monkeypatch.setattr(papers, "sign", lambda folder, key: signed.append(folder))
    before: tuple[Manifest, Path] = manifest.read(finished)
    build._complete(build.Build(*before, fresh=False), sage, [], None, tmp_path, tmp_path / "key")
    assert manifest.read(finished) == before
    assert signed == [finished]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "--no-boot"], "without booting there is nothing to check"),
        (["verify", "--signers", "/nowhere"], "so nobody signed what it is"),
    ],
)
def test_an_image_without_a_manifest_has_nothing_to_compare_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(disk, "check_is_image", lambda path: 1)
    (tmp_path / "some.qcow2").write_bytes(b"x")
    assert message in str(told(*words, str(tmp_path / "some.qcow2"), sage_image=True))


def test_signing_needs_a_key(finished: Path) -> None:
    error = told("sign", str(finished), sage_image=True)
    assert "sign needs a key" in str(error)
    assert "there is no key file /nowhere" in str(told("sign", str(finished), "--sign-key=/nowhere", sage_image=True))

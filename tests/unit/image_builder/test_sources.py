# SPDX-License-Identifier: Apache-2.0
"""A variant's further sources are told wrong in their file, and an archive puts nothing outside its place."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from groundwork.errors import InputError, SageError
from image_builder import recipe, sources, variant
from image_builder.variant import Arch, SourceKind
from tests.unit.image_builder.conftest import BASE, Folders

COMMIT, TREE, SHA256 = "c" * 40, "d" * 40, "e" * 64
GIT = f"{{name: plugin, git: 'https://h/p.git', commit: {COMMIT}, tree: {TREE}, to: /opt/edge-plugins/p}}"
ARCHIVE = f"{{name: data, archive: 'https://h/d.tar.gz', sha256: {SHA256}, to: /opt/data}}"


def packed(folder: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    path = folder / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size, info.mtime = len(member[1]), 1_000_000_000
                archive.addfile(info, io.BytesIO(member[1]))
            else:
                archive.addfile(member)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


# ---------------------------------------------------------------------------------------------------- in the variant


def test_a_variant_names_sources_and_a_child_replaces_one(folders: Folders) -> None:
    folders.variant("base", BASE + f"sources:\n- {GIT}\n- {ARCHIVE}\n")
    other = ARCHIVE.replace("d.tar.gz", "e.tar.gz")
    folders.variant("mine", f"extends: base\nsources: [{other}]\n")
    first, second = variant.load("mine", [folders.variants]).sources
    assert (first.kind, first.digest, first.tree, first.to) == (SourceKind.GIT, COMMIT, TREE, "/opt/edge-plugins/p")
    assert (second.kind, second.digest, second.url) == (SourceKind.ARCHIVE, SHA256, "https://h/e.tar.gz")
    assert variant.load("mine", [folders.variants]).elements == ("one", "sources")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f", tree: {TREE}", "", "sources[0]: source 'plugin' with 'git' lacks the key 'tree'"),
        (COMMIT, "main", "sources[0].commit: 'main' does not match"),
        ("https://h/p.git", "file:///etc", "sources[0].git: 'file:///etc' does not match"),
        ("https://h/p.git", "--upload-pack=x", "sources[0].git: '--upload-pack=x' does not match"),
        ("/opt/edge-plugins/p", "/etc", "sources[0].to: '/etc' does not match"),
        ("/opt/edge-plugins/p", "/opt/../etc", "sources[0].to: '/opt/../etc' does not match"),
        ("/opt/edge-plugins/p", "/opt/data/in", "sources[0].to: /opt/data/in is where source 'data' lies already"),
        (f"sha256: {SHA256}", f"commit: {COMMIT}", "sources[1]: source 'data' with 'archive' is no use for the key"),
        ("archive: 'https://h/d.tar.gz', ", "", "sources[1]: source 'data' needs either 'git' or 'archive'"),
        ("name: data", "name: ../data", "sources[1].name: '../data' does not match"),
    ],
)
def test_a_mistake_is_named_with_its_place(folders: Folders, old: str, new: str, words: str) -> None:
    text = BASE + f"sources:\n- {GIT}\n- {ARCHIVE}\n"
    path = folders.variant("base", text.replace(old, new))
    with pytest.raises(InputError) as caught:
        variant.load("base", [folders.variants])
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{13 if 'sources[0]' in words else 14}: ")


@pytest.mark.parametrize(
    ("old", "new", "key", "hint"),
    [
        ("https://h/p.git", "https://user:s3cret@h/p.git", "git", "ssh://git@host/path"),
        ("https://h/p.git", "https://s3cret@h/p.git", "git", "~/.netrc"),
        ("https://h/p.git", "ssh://git:s3cret@h/p.git", "git", "~/.netrc"),
        ("https://h/d.tar.gz", "https://user:s3cret@h?file=d", "archive", "an archive that needs none"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(
    folders: Folders, old: str, new: str, key: str, hint: str
) -> None:
    path = folders.variant("base", BASE + f"sources:\n- {GIT}\n- {ARCHIVE}\n".replace(old, new))
    with pytest.raises(InputError) as caught:
        variant.load("base", [folders.variants])
    number = ("git", "archive").index(key)
    assert str(caught.value).startswith(f"{path}:{13 + number}: sources[{number}].{key}: expected an address without")
    assert "s3cret" not in str(caught.value)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("url", ["ssh://git@h/p.git", "https://h/a@b.git", "https://h:8443/p.git?who=a@b"])
def test_other_addresses_are_taken_as_they_are(folders: Folders, url: str) -> None:
    folders.variant("base", BASE + f"sources:\n- {GIT}\n".replace("https://h/p.git", url))
    assert variant.load("base", [folders.variants]).sources[0].url == url


def test_sources_are_ingredients_but_not_where_they_were_named(folders: Folders) -> None:
    folders.element("one", settings="SAGE_KEY: {type: string}\n")
    hook = folders.element("sources") / "install.d/50-sources"
    hook.write_text("#!/bin/bash\nls $SAGE_SOURCES\n")

    def digest(text: str) -> str:
        folders.variant("base", text)
        found = variant.load("base", [folders.variants])
        return recipe.make(found, "bookworm", Arch.AMD64, element_folders=[folders.elements]).digest

    first = digest(BASE + f"sources: [{GIT}]\n")
    assert digest(BASE + f"\n\nsources:\n- {GIT}\n") == first
    assert digest(BASE + f"sources: [{GIT.replace(TREE, COMMIT)}]\n") != first
    assert digest(BASE) != first


def test_git_is_needed_for_git_alone(folders: Folders) -> None:
    folders.variant("base", BASE + f"sources: [{GIT}]\n")
    folders.variant("other", BASE + f"sources: [{ARCHIVE}]\n")
    assert sources.programs(variant.load("base", [folders.variants]).sources) == {"git", "prlimit"}
    assert sources.programs(variant.load("other", [folders.variants]).sources) == set()


# -------------------------------------------------------------------------------------------------------- unpacking


def test_the_one_folder_of_an_archive_is_left_out(tmp_path: Path) -> None:
    sources.unpack(packed(tmp_path, ("top-1.0/a", b"A"), ("top-1.0/b/c", b"C")), tmp_path / "t", "x", strip=True)
    assert sorted(str(path.relative_to(tmp_path / "t")) for path in (tmp_path / "t").rglob("*")) == ["a", "b", "b/c"]


def test_what_stands_in_no_folder_of_its_own_stays_as_it_is(tmp_path: Path) -> None:
    sources.unpack(packed(tmp_path, ("top/a", b"A"), ("b", b"B")), tmp_path / "t", "x", strip=True)
    assert (tmp_path / "t/top/a").read_bytes() == b"A"


def test_modes_and_times_are_the_archives_not_this_machines(tmp_path: Path) -> None:
    program = tarfile.TarInfo("top/bin/run")
    program.mode, program.mtime = 0o6777, 1_000_000_000
    path = packed(tmp_path, ("top/a", b"A"), program, link("top/l", "a"))
    before = os.umask(0o077)
    try:
        sources.unpack(path, tmp_path / "t", "x", strip=True)
    finally:
        os.umask(before)
    found = {name: (tmp_path / "t" / name).lstat() for name in ("", "a", "bin", "bin/run", "l")}
    modes = {name: stat.S_IMODE(status.st_mode) for name, status in found.items() if name != "l"}
    assert modes == {"": 0o755, "a": 0o644, "bin": 0o755, "bin/run": 0o755}
    assert {status.st_mtime for status in found.values()} == {1_000_000_000}


def test_links_inside_are_kept(tmp_path: Path) -> None:
    sources.unpack(packed(tmp_path, ("a", b"A"), link("b/l", "../a")), tmp_path / "t", "x", strip=True)
    assert os.readlink(tmp_path / "t/b/l") == "../a"


@pytest.mark.parametrize(
    "members",
    [
        (("../evil", b"x"),),
        (("/evil", b"x"),),
        (("a/../../evil", b"x"),),
        (link("l", "/etc/passwd"),),
        (link("l", "../../outside"),),
        (link("a/b/x", "../.."), link("a/b/y", "x/../..")),  # right by its words, wrong on the disk
        (link("l", "."), ("l/../../evil", b"x")),
        (link("l", "a"), ("l/evil", b"x")),
        (link("h", "../../outside", tarfile.LNKTYPE),),
        (link("d", "", tarfile.CHRTYPE),),
        (link("p", "", tarfile.FIFOTYPE),),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(
    tmp_path: Path, members: tuple[tarfile.TarInfo | tuple[str, bytes], ...]
) -> None:
    top = tmp_path / "deep/down"
    top.mkdir(parents=True)
    with pytest.raises(SageError, match="nothing of it was taken"):
        sources.unpack(packed(tmp_path, ("fine", b"x"), *members), top / "t", "x", strip=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar.gz", "deep", "down", "t"]


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(SageError, match="source x is no tar archive"):
        sources.unpack(tmp_path / "a.tar.gz", tmp_path / "t", "x", strip=True)


def test_half_an_archive_is_told(tmp_path: Path) -> None:
    path = packed(tmp_path, ("a", os.urandom(50_000)))
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(SageError, match="source x is no tar archive"):
        sources.unpack(path, tmp_path / "t", "x", strip=True)

# SPDX-License-Identifier: Apache-2.0
"""Container images made of real packages, the same bits each time, and what Docker is given.

That Docker takes them and that containers of them run is checked in the booted image (``variants/sage.yaml``).
"""

import io
import json
import os
import py_compile
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from groundwork.errors import InputError, SageError
from virtual_waggle.containers import debs, definition, layout, load, make
from virtual_waggle.containers.debs import Deb

IMAGES = """\
base:
  packages: [base]
  without: [/usr/lib/*/gconv]
images:
  sage/other:
    packages: [tool]
    command: [tool]
  sage/waggle:
    packages: [tool, module]
    project: true
    users: {waggle: {id: 990, home: /var/lib/waggle}}
    user: waggle
    environment: {KEY: value}
    command: [virtual-waggle]
"""
MODULE = "answer = 42\n"


@dataclass(frozen=True)
class World:
    """Packages, a tree in which they are installed, and the images to make of them."""

    found: list[Deb]
    tree: Path
    wanted: definition.Definition
    top: Path

    def make(self, name: str, cache: str = "cache") -> Path:
        store = self.top / name
        make.make(self.wanted, self.found, self.tree, store, self.top / cache, 1000)
        return store


def build(folder: Path, name: str, contents: dict[str, str], depends: str = "") -> Deb:
    """A real package."""
    top = folder / name
    for path, text in contents.items():
        place = top / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            place.symlink_to(text[3:])
        else:
            place.write_text(text)
            os.utime(place, (500, 500))
            place.chmod(0o755 if "bin/" in path else 0o644)
    (top / "DEBIAN").mkdir()
    (top / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1.0\nArchitecture: amd64\nMaintainer: t <t@t>\n"
        + (f"Depends: {depends}\n" if depends else "")
        + "Description: test\n"
    )
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", "-Znone", top, folder / f"{name}.deb"],
        env={**os.environ, "SOURCE_DATE_EPOCH": "500"},
        check=True,
        capture_output=True,
    )
    return debs.read(folder / f"{name}.deb")


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "debs"
    folder.mkdir()
    found = [
        build(
            folder,
            "base",
            {
                "bin/sh": "#!shell\n",
                "lib64/ld.so": "-> /lib/real.so",
                "usr/share/base-passwd/passwd.master": "root:*:0:0:root:/root:/bin/bash\n",
                "usr/share/base-passwd/group.master": "root:*:0:\n",
                "usr/share/doc/base/copyright": "free\n",
                "usr/share/doc/base/NEWS": "none\n",
                "usr/share/man/man1/sh.1": "manual\n",
                "usr/lib/x86/gconv/EBCDIC.so": "library\n",
            },
        ),
        build(folder, "module", {"usr/lib/python3/dist-packages/answer.py": MODULE}, depends="base"),
        build(folder, "tool", {"usr/bin/tool": "#!tool\n"}, depends="base, absent"),
        build(folder, "unrelated", {"usr/bin/unrelated": ""}),
    ]
    tree = tmp_path / "tree"
    source = tree / "usr/lib/python3/dist-packages/answer.py"
    source.parent.mkdir(parents=True)
    source.write_text(MODULE)
    os.utime(source, (500, 500))
    py_compile.compile(str(source))
    for path in ("opt/virtual-waggle/groundwork", "opt/virtual-waggle/virtual_waggle", "usr/local/bin"):
        (tree / path).mkdir(parents=True)
    (tree / "opt/virtual-waggle/groundwork/__init__.py").write_text("")
    for program in ("virtual-waggle", "beehive-server"):
        (tree / "usr/local/bin" / program).write_text("#!program\n")
    (tmp_path / "images.yaml").write_text(IMAGES)
    return World(found, tree, definition.load(tmp_path / "images.yaml"), tmp_path)


def members(store: Path, layer: layout.StoredLayer) -> dict[str, tarfile.TarInfo]:
    with layout.plain(store, layer) as stream:
        data = stream.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def digests(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_images_share_their_base_and_hold_their_packages(world: World) -> None:
    store = world.make("store")
    other, waggle = layout.read(store)
    assert (other.name, waggle.name) == ("sage/other", "sage/waggle")
    assert other.layers[0] == waggle.layers[0]
    assert [len(other.layers), len(waggle.layers)] == [2, 3]
    base = members(store, other.layers[0])
    assert base["bin"].linkname == "usr/bin"
    assert {"usr/bin/sh", "usr/lib64/ld.so", "usr/share/doc/base/copyright", "var/lib/dpkg/status.d/base"} <= set(base)
    assert not [name for name in base if "gconv" in name]
    assert not {"usr/share/doc/base/NEWS", "usr/share/man/man1/sh.1", "bin/sh"} & set(base)
    assert {(member.uid, member.uname) for member in base.values()} == {(0, "")}
    assert "usr/bin/tool" in members(store, other.layers[1])
    top = members(store, waggle.layers[1])
    assert {"usr/lib/python3/dist-packages/answer.py", "var/lib/waggle"} <= set(top)
    assert "usr/bin/unrelated" not in {*base, *top}
    assert {"opt/virtual-waggle/groundwork/__init__.py", "usr/local/bin/virtual-waggle"} <= set(
        members(store, waggle.layers[2])
    )
    config = json.loads(waggle.config)
    assert (config["architecture"], config["config"]["User"]) == ("amd64", "waggle")
    assert "KEY=value" in config["config"]["Env"]
    assert config["created"] == "1970-01-01T00:16:40Z"


def test_the_record_lists_each_images_packages(world: World) -> None:
    rows = json.loads((world.make("store") / make.RECORD).read_text())
    assert [row["name"] for row in rows] == ["sage/other", "sage/waggle"]
    assert [package["name"] for package in rows[1]["packages"]] == ["base", "module", "tool"]
    assert rows[0]["packages"][0] == {
        "name": "base",
        "version": "1.0",
        "arch": "amd64",
        "source": "base",
        "source_version": "1.0",
    }
    assert rows[0]["digest"].startswith("sha256:")


def test_bytecode_of_the_tree_is_taken_where_it_fits_alone(world: World) -> None:
    def taken(name: str) -> bool:
        _, waggle = layout.read(world.make(name))
        return any(path.endswith(".pyc") for path in members(world.top / name, waggle.layers[1]))

    assert taken("fits")
    source = world.tree / "usr/lib/python3/dist-packages/answer.py"
    source.write_text(MODULE.replace("42", "43"))
    py_compile.compile(str(source))
    assert not taken("of another source")
    source.write_text(MODULE)
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert taken("bound to no time")


def test_two_builds_are_the_same_bits_with_and_without_the_cache(world: World) -> None:
    first = digests(world.make("one", cache="a"))
    assert digests(world.make("two", cache="b")) == first
    assert digests(world.make("three", cache="a")) == first


def test_a_damaged_cache_is_not_used(world: World) -> None:
    first = digests(world.make("one"))
    for kept in (world.top / "cache").glob("*/blob"):
        kept.write_bytes(b"damaged")
    assert digests(world.make("two")) == first


def test_a_changed_package_changes_its_layer_alone(world: World) -> None:
    one = layout.read(world.make("one"))[0]
    shutil.rmtree(world.top / "debs/tool")
    changed = build(world.top / "debs", "tool", {"usr/bin/tool": "#!other\n"}, depends="base")
    found = [changed if deb.name == "tool" else deb for deb in world.found]
    two = layout.read(World(found, world.tree, world.wanted, world.top).make("two"))[0]
    assert two.layers[0] == one.layers[0]
    assert two.layers[1].diff_id != one.layers[1].diff_id
    assert two.content != one.content


def test_a_package_that_is_cut_off_is_told(world: World) -> None:
    path = world.top / "debs/tool.deb"
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(SageError, match=r"tool\.deb can't be unpacked"):
        world.make("store")


# --------------------------------------------------------------------------------------------------------- to Docker


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the command ``docker``, which keeps what it is given; returns its folder."""
    folder = tmp_path / "docker"
    folder.mkdir()
    (folder / "docker").write_text(
        f"""#!/bin/bash
case $1 in
    load) cat > {folder}/loaded.tar; test ! -e {folder}/refuses || {{ echo no space left; exit 1; }} ;;
    image) cat {folder}/label 2> /dev/null || {{ cat {folder}/error >&2; exit 1; }} ;;
esac
"""
    )
    (folder / "docker").chmod(0o755)
    (folder / "error").write_text("Error: No such image: sage/waggle\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_docker_is_given_the_archive_that_it_saves_itself_with_each_layer_once(world: World, docker: Path) -> None:
    store = world.make("store")
    images = load.stored(store)
    assert load.missing(images) == images
    load.load(images, store)
    with tarfile.open(docker / "loaded.tar") as archive:
        names = archive.getnames()
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        rows = json.loads(manifest.read())
        assert [row["RepoTags"] for row in rows] == [["sage/other:latest"], ["sage/waggle:latest"]]
        layers = [*rows[0]["Layers"], *rows[1]["Layers"][1:]]
        assert rows[0]["Layers"][0] == rows[1]["Layers"][0]
        assert sorted(names) == sorted(["manifest.json", *(row["Config"] for row in rows), *layers])
        for name, layer in zip(rows[1]["Layers"], images[1].layers, strict=True):
            assert archive.getmember(name).size == layer.plain_size


def test_an_image_that_docker_has_is_not_loaded_again_but_another_of_its_name_is(world: World, docker: Path) -> None:
    image = load.stored(world.make("store"))[1]
    (docker / "label").write_text(image.content + "\n")
    assert load.missing([image]) == []
    (docker / "label").write_text("0" * 64 + "\n")
    assert load.missing([image]) == [image]


def test_what_docker_says_is_told(world: World, docker: Path) -> None:
    store = world.make("store")
    image = load.stored(store)[0]
    (docker / "refuses").touch()
    with pytest.raises(SageError, match="Docker does not take sage/other: no space left"):
        load.load([image], store)
    (docker / "error").write_text("permission denied while trying to connect\n")
    with pytest.raises(InputError, match="does not answer to this user") as caught:
        load.missing([image])
    assert caught.value.hint == "log in as cc, or use sudo"


def test_a_damaged_layer_is_told(world: World, docker: Path) -> None:
    store = world.make("store")
    image = load.stored(store)[0]
    layout.blob(store, image.layers[1].digest).write_bytes(b"damaged")
    with pytest.raises(SageError, match="is damaged"):
        load.load([image], store)

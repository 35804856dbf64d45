# SPDX-License-Identifier: Apache-2.0
"""What the containers' images are made of, and what is said where something is wrong with it."""

import io
import tarfile
from pathlib import Path

import pytest

from groundwork.errors import InputError, SageError
from virtual_waggle.containers import debs, definition, layout, load
from virtual_waggle.containers.debs import Deb
from virtual_waggle.containers.definition import Layer, User
from virtual_waggle.containers.layers import LayerTar
from virtual_waggle.containers.layout import StoredImage

IMAGES = """\
base:
  packages: [libc6]
images:
  sage/one:
    packages: [python3]
    users: {one: {id: 900, home: /var/lib/one}}
    folders: {/var/log/one: one}
    user: one
    command: [python3]
"""


# ------------------------------------------------------------------------------------------------------- definition


def read(folder: Path, text: str) -> definition.Definition:
    (folder / "images.yaml").write_text(text)
    return definition.load(folder / "images.yaml")


def test_our_own_images_are_well_defined() -> None:
    found = definition.load()
    assert [image.name for image in found.images] == ["sage/waggle", "sage/rabbitmq"]
    assert not {package for names in found.layers().values() for package in names} & set(found.absent)
    ids = [user.id for image in found.images for user in image.layer.users]
    assert len(set(ids)) == len(ids)


def test_an_image_has_the_packages_of_the_base_too(tmp_path: Path) -> None:
    assert read(tmp_path, IMAGES).layers() == {"base": ("libc6",), "sage/one": ("libc6", "python3")}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("user: one\n", "user: two\n", "images.yaml:4: images.sage/one: user: the image has no user 'two'"),
        ("/var/log/one: one", "/var/log/one: two", "images.yaml:4: images.sage/one: folders./var/log/one: the image"),
        ("sage/one:", "Sage/One:", "does not match"),
        ("id: 900", "id: 0", "images.yaml:6: images.sage/one.users.one.id: 0 is less than the minimum of 900"),
        ("user: one\n", "user: one\n    usr: one\n", "images.yaml:9: images.sage/one.usr: unknown key"),
        ("    command: [python3]\n", "", "the key 'command' is missing"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, IMAGES.replace(old, new))
    assert words in str(caught.value)


# --------------------------------------------------------------------------------------------------------- packages


def deb(name: str, depends: str = "", **more: str) -> Deb:
    fields = {"Package": name, "Version": "1:2.3-4", "Architecture": "amd64", "Depends": depends, **more}
    return debs.parse(Path(f"{name}.deb"), "".join(f"{key}: {value}\n" for key, value in fields.items() if value))


def test_a_control_file_is_read_as_dpkg_does() -> None:
    text = (
        "Package: a\nSource: src (1.0)\nVersion: 1:2.3-4\nArchitecture: all\nPre-Depends: libc6 (>= 2.36),\n"
        " init-system-helpers (>= 1.54~)\nDepends: python3:any, mawk | gawk (>= 1)\nProvides: awk (= 1), b\n"
        "Description: short\n Depends: not a field\n"
    )
    found = debs.parse(Path("a.deb"), text)
    assert (found.name, found.version, found.arch) == ("a", "1:2.3-4", "all")
    assert (found.source, found.source_version) == ("src", "1.0")
    assert deb("b").source_version == "1:2.3-4"
    assert found.needs == (("libc6",), ("init-system-helpers",), ("python3",), ("mawk", "gawk"))
    assert found.provides == ("awk", "b")


def test_what_is_no_control_file_is_told() -> None:
    with pytest.raises(SageError, match="is no package"):
        debs.parse(Path("x.deb"), "Something: else\n")


def test_a_closure_is_all_that_is_needed_and_no_more() -> None:
    available = [
        deb("a", "b (>= 1), awk | c, left-out"),
        deb("b", "a"),
        deb("mawk", Provides="awk"),
        deb("c"),
        deb("other"),
    ]
    assert [found.name for found in debs.closure(["a"], available)] == ["a", "b", "mawk"]
    assert debs.closure(["a"], available) == debs.closure(["a"], available[::-1])


def test_a_package_that_apt_did_not_give_is_told() -> None:
    with pytest.raises(SageError, match="package absent was not among those") as caught:
        debs.closure(["absent"], [deb("a")])
    assert caught.value.hint


# ----------------------------------------------------------------------------------------------------------- layers


def test_a_layer_holds_what_its_definition_says() -> None:
    content = Layer(
        packages=(),
        users=(User("one", 900, "/var/lib/one"),),
        folders=(("/var/log/one", "one"),),
        links=(("/bin/awk", "mawk"),),
        files=(("/etc/one.conf", "a = b\n"),),
    )
    written = io.BytesIO()
    layer = LayerTar(written, content, epoch=1000)
    layer.accounts("root:x:0:0:root:/root:/bin/sh\n", "root:x:0:\n", content.users)
    layer.additions()
    layer.close()
    written.seek(0)
    with tarfile.open(fileobj=written) as tar:
        found = {member.name: member for member in tar}
        passwd = tar.extractfile("etc/passwd")
        assert passwd is not None
        assert passwd.read().decode().splitlines()[1] == "one:x:900:900::/var/lib/one:/usr/sbin/nologin"
    # folders before what is in them; /bin lies in /usr
    assert list(found) == [
        *("etc", "etc/passwd", "etc/group", "var", "var/lib", "var/lib/one", "var/log", "var/log/one"),
        *("usr", "usr/bin", "usr/bin/awk", "etc/one.conf"),
    ]
    assert {name: member.uid for name, member in found.items() if member.uid} == {
        "var/lib/one": 900,
        "var/log/one": 900,
    }
    assert {member.mtime for member in found.values()} == {1000}
    assert found["usr/bin/awk"].linkname == "mawk"


# ------------------------------------------------------------------------------------------------------------ layout


def test_a_layout_that_is_not_there_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(SageError, match="can't read"):
        layout.read(tmp_path)
    (tmp_path / "index.json").write_text('{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}')
    with pytest.raises(SageError, match="is no digest"):
        layout.read(tmp_path)


def test_an_unknown_image_is_answered_with_the_nearest() -> None:
    images = [StoredImage(name, "", "", b"", ()) for name in ("sage/waggle", "sage/rabbitmq")]
    assert load.chosen([], images) == images
    assert load.chosen(["sage/rabbitmq"], images) == images[1:]
    with pytest.raises(InputError, match="unknown image 'sage/rabitmq'") as caught:
        load.chosen(["sage/rabitmq"], images)
    assert caught.value.hint == "did you mean 'sage/rabbitmq'?"

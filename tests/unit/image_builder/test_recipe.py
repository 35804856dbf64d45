# SPDX-License-Identifier: Apache-2.0
"""The recipe's digest says what goes into an image, no more and no less; what does not fit together is told."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from groundwork.errors import InputError
from image_builder import recipe, variant
from image_builder.recipe import Recipe
from image_builder.variant import Arch
from tests.unit.image_builder.conftest import BASE, Folders

SETTINGS = "SAGE_KEY: {type: string, pattern: '^[a-z]+$', description: lower case}\n"


@pytest.fixture
def ready(folders: Folders) -> Folders:
    folders.variant("base", BASE)
    folders.element("one", deps="two\npackage-installs\n", settings=SETTINGS)
    folders.element("two")
    return folders


def make(folders: Folders, release: str = "bookworm", arch: Arch = Arch.AMD64, **more: Any) -> Recipe:
    found = variant.load("base", [folders.variants])
    return recipe.make(found, release, arch, element_folders=[folders.elements], **more)


def test_a_recipe_of_ubuntu_by_default_archive(ready: Folders) -> None:
    made = make(ready, "noble")
    assert made.image_name == "Sage-Ubuntu24.04-Base"
    assert [layer.elements for layer in made.layers] == [("ubuntu-minimal", "layer", "one")]
    assert list(made.element_digests) == ["layer", "layer-above", "one", "two"]
    assert made.archive.mirror == "http://archive.ubuntu.com/ubuntu"
    assert made.archive.security_mirror is None
    assert "noble-security main restricted universe multiverse\n" in made.archive.sources


def test_arm64_has_its_mirror_and_name(ready: Folders) -> None:
    made = make(ready, "jammy", Arch.ARM64)
    assert made.image_name == "Sage-Ubuntu22.04-Base-ARM64"
    assert made.archive.mirror == "http://ports.ubuntu.com/ubuntu-ports"


def test_the_image_never_hears_of_the_build_mirror(ready: Folders) -> None:
    made = make(ready, mirror="http://127.0.0.1:8000/debian")
    assert made.archive.mirror == "http://127.0.0.1:8000/debian"
    assert made.archive.security_mirror == "http://127.0.0.1:8000/debian-security"
    assert "127.0.0.1" not in made.archive.sources


def test_a_keyring_of_the_users_counts_by_its_content(ready: Folders, tmp_path: Path) -> None:
    stock = make(ready, "noble")
    assert stock.archive.keyring == "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
    for name, key in (("one", b"\x98\1\4"), ("same", b"\x98\1\4"), ("other", b"\x98\1\5")):
        (tmp_path / name).write_bytes(key)
    one, same, other = (make(ready, "noble", keyring=tmp_path / name) for name in ("one", "same", "other"))
    assert one.archive.keyring == str(tmp_path / "one")
    assert one.digest == same.digest
    assert len({stock.digest, one.digest, other.digest}) == 3
    assert make(ready, "noble").digest == stock.digest  # where the distribution's keyring is not even there
    with pytest.raises(InputError, match="can't read the keyring"):
        make(ready, "noble", keyring=tmp_path / "none")


def test_a_revision_takes_a_snapshot(ready: Folders) -> None:
    made = make(ready, revision="20261101T000000Z")
    assert made.archive.mirror == "https://snapshot.debian.org/archive/debian/20261101T000000Z"
    assert made.archive.security_mirror == "https://snapshot.debian.org/archive/debian-security/20261101T000000Z"
    own = make(ready, revision="20261101T000000Z", mirror="http://h/{revision}/ubuntu")
    assert own.archive.mirror == "http://h/20261101T000000Z/ubuntu"
    with pytest.raises(InputError, match="no snapshots"):
        make(ready, revision="20261101T000000Z", mirror="http://h/ubuntu")
    with pytest.raises(InputError, match="YYYYMMDDTHHMMSSZ"):
        make(ready, revision="yesterday")


def test_the_same_ingredients_have_the_same_digest(ready: Folders) -> None:
    assert make(ready).digest == make(ready).digest


def test_each_ingredient_changes_the_digest(ready: Folders) -> None:
    digests = [make(ready).digest, make(ready, "noble").digest, make(ready, arch=Arch.ARM64).digest]
    digests.append(make(ready, mirror="http://127.0.0.1/debian").digest)
    path = ready.variants / "base.yaml"
    for old, new in (("[curl]", "[curl, jq]"), ("SAGE_KEY: abc", "SAGE_KEY: abd"), ("Base", "Bass")):
        path.write_text(path.read_text().replace(old, new))
        digests.append(make(ready).digest)
    for name in ("one", "two"):  # also one that is only depended on
        (ready.elements / name / "install.d" / f"50-{name}").write_text("#!/bin/bash\ntrue\n")
        digests.append(make(ready).digest)
    (ready.elements / "two/install.d/50-two").chmod(0o755)
    digests.append(make(ready).digest)
    assert len(set(digests)) == len(digests)


def test_this_program_is_an_ingredient(ready: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = shutil.copytree(Path(recipe.__file__).parent, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(recipe, "__file__", str(own / "recipe.py"))
    made = [make(ready)]
    for name in ("rootfs.py", "sources.py", "programs/mount"):
        (own / name).write_text((own / name).read_text() + "# other\n")
        made.append(make(ready))
    assert len({one.layers[0].digest for one in made}) == len(made)
    for name in ("build.py", "disk.py"):
        (own / name).write_text((own / name).read_text() + "# other\n")
        made.append(make(ready))
    monkeypatch.setattr("groundwork.__version__", "99.0")
    made.append(make(ready))
    assert len({one.digest for one in made}) == len(made)
    assert len({one.layers[0].digest for one in made[3:]}) == 1  # disks are made anew, layers are not
    (own / "catalog.py").write_text("# other\n")
    assert make(ready).digest == made[-1].digest


def test_checks_and_descriptions_are_no_ingredients(ready: Folders) -> None:
    before = make(ready)
    path = ready.variants / "base.yaml"
    path.write_text(path.read_text().replace('"true"', '"false"').replace("the least", "the very least"))
    after = make(ready)
    assert after.digest == before.digest
    assert after.checks_digest != before.checks_digest


def test_an_unknown_release_or_arch_is_told(ready: Folders) -> None:
    with pytest.raises(InputError) as caught:
        make(ready, "nobel")
    assert (str(caught.value), caught.value.hint) == ("unknown release 'nobel'", "did you mean 'noble'?")
    path = ready.variants / "base.yaml"
    path.write_text(path.read_text() + "arches: [amd64]\n")
    with pytest.raises(InputError, match="variant base has no arm64 image"):
        make(ready, arch=Arch.ARM64)


def test_an_element_that_does_not_exist_is_named_with_its_place(ready: Folders) -> None:
    path = ready.variants / "base.yaml"
    path.write_text(path.read_text().replace("[one]", "\n- one\n- tow"))
    with pytest.raises(InputError) as caught:
        make(ready)
    assert str(caught.value) == f"{path}:5: elements[1]: there is no element 'tow'"
    assert caught.value.hint == "did you mean 'two'?"


def test_so_is_one_that_another_element_depends_on(ready: Folders) -> None:
    deps = ready.elements / "one/element-deps"
    deps.write_text("package-installs\ntoo\n")
    with pytest.raises(InputError) as caught:
        make(ready)
    assert str(caught.value) == f"{deps}:2: there is no element 'too'"


def test_settings_are_checked_against_the_elements(ready: Folders) -> None:
    path = ready.variants / "base.yaml"
    text = path.read_text()
    path.write_text(text.replace("SAGE_KEY", "SAGE_KYE"))
    with pytest.raises(InputError, match=r"base.yaml:5: settings.SAGE_KYE: no element of this variant") as caught:
        make(ready)
    assert caught.value.hint == "did you mean 'SAGE_KEY'?"
    path.write_text(text.replace("abc", "ABC"))
    with pytest.raises(InputError, match=r"base.yaml:5: settings.SAGE_KEY: 'ABC' does not match") as caught:
        make(ready)
    assert caught.value.hint == "lower case"


def test_a_flag_for_a_setting_that_no_element_takes_is_refused(ready: Folders) -> None:
    assert make(ready, overrides={"SAGE_KEY": ("--key", "zzz")}).settings == {"SAGE_KEY": "zzz"}
    with pytest.raises(InputError, match="--cuda-version: no element of this variant takes this setting"):
        make(ready, overrides={"SAGE_CUDA_VERSION": ("--cuda-version", "12")})


def layered(ready: Folders) -> list[str]:
    found = variant.load("more", [ready.variants])
    made = recipe.make(found, "bookworm", Arch.AMD64, element_folders=[ready.elements])
    return [layer.digest for layer in made.layers]


def test_a_change_touches_its_layer_and_those_above_alone(ready: Folders) -> None:
    ready.element("three", settings="SAGE_THREE: {type: string}\n")
    ready.element("four")
    ready.variant("more", "extends: base\ndescription: more\nelements: [[three], [four]]\n")
    before = layered(ready)
    assert before[0] == make(ready).layers[0].digest  # shared with the variant that it extends
    for name, kept in (("one", 0), ("three", 1), ("four", 2), ("layer-above", 1)):
        (ready.elements / name / "install.d" / f"50-{name}").write_text(f"#!/bin/bash\necho {name}\n")
        after = layered(ready)
        assert [old == new for old, new in zip(before, after, strict=True)] == [True] * kept + [False] * (3 - kept)
        before = after
    path = ready.variants / "more.yaml"
    path.write_text(path.read_text() + "settings: {SAGE_THREE: x}\n")
    assert [old == new for old, new in zip(before, layered(ready), strict=True)] == [True, False, False]


def test_a_layer_runs_no_element_of_those_below(ready: Folders) -> None:
    ready.element("three", deps="one\n")
    ready.variant("more", "extends: base\ndescription: more\nelements: [three]\n")
    found = variant.load("more", [ready.variants])
    first, second = recipe.make(found, "bookworm", Arch.AMD64, element_folders=[ready.elements]).layers
    assert first.done == ()
    assert second.elements == ("layer-above", "three")
    assert {"one", "two", "debian-minimal", "debootstrap"} <= set(second.done)
    assert not {"layer", "layer-above", "package-installs"} & set(second.done)


RELEASES = """\
SAGE_NUMBER:
  type: string
  releases: {bookworm: {enum: ["", "11.8"]}, noble: {enum: ["", "12.0", "12.4"]}}
"""


def test_a_setting_may_have_its_own_values_for_each_release(ready: Folders) -> None:
    ready.element("three", settings=RELEASES)
    path = ready.variants / "base.yaml"
    path.write_text(path.read_text().replace("[one]", "[one, three]"))
    flag = {"SAGE_NUMBER": ("--number", "12.4")}
    assert make(ready, "noble", overrides=flag).settings["SAGE_NUMBER"] == "12.4"
    with pytest.raises(InputError, match=r"--number: bookworm does not have '12\.4'") as caught:
        make(ready, "bookworm", overrides=flag)
    assert caught.value.hint == "it has: 11.8"
    with pytest.raises(InputError, match="variant base can't be made of jammy: its element three") as caught:
        make(ready, "jammy")
    assert caught.value.hint == "it is for: bookworm, noble"

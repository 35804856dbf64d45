# SPDX-License-Identifier: Apache-2.0
"""A variant carries what it extends; each mistake in its file is named with file, line and key."""

import pytest

from groundwork.errors import InputError
from image_builder import variant
from image_builder.variant import Arch, Check, Group, Probe
from tests.unit.image_builder.conftest import BASE, Folders


def test_a_variant_carries_what_it_extends(folders: Folders) -> None:
    folders.variant("base", BASE)
    folders.variant(
        "sage",
        'description: more\nextends: base\nimage_name: "Sage-{os}{version}{arch}"\narches: [arm64]\n'
        "elements: [two, one]\npackages: [jq]\nsettings: {SAGE_KEY: xyz, SAGE_ON: true}\n"
        "checks:\n- {name: first, run: 'false', timeout: 7}\n- {name: third, run: id}\n",
    )
    found = variant.load("sage", [folders.variants])
    assert found.description == "more"
    assert found.image_name == "Sage-{os}{version}{arch}"
    assert found.arches == (Arch.ARM64,)
    assert found.elements == ("one", "two")
    assert found.packages == ("curl", "jq")
    assert found.layers == (Group(("one",), ("curl",)), Group(("two",), ("jq",)))
    assert found.settings == {"SAGE_KEY": "xyz", "SAGE_ON": "1"}
    assert found.checks == (
        Check("first", "false", None, 7.0),  # the child's takes the place of the parent's
        Check("second", None, Probe.SSH_ROOT_REFUSED, 5.0),
        Check("third", "id", None, 60.0),
    )


def test_a_variant_may_extend_several_in_their_order(folders: Folders) -> None:
    folders.variant("base", BASE)
    folders.variant("sage", "extends: base\ndescription: s\nelements: [two]\narches: [amd64, arm64]\n")
    folders.variant("gpu", "extends: base\ndescription: g\nelements: [three]\narches: [amd64]\n"
                    "checks:\n- {name: fourth, run: id}\n")  # fmt: skip
    folders.variant("both", "extends: [sage, gpu]\nsettings: {SAGE_KEY: xyz}\n")
    found = variant.load("both", [folders.variants])
    assert found.elements == ("one", "two", "three")
    assert [layer.elements for layer in found.layers[:2]] == [
        layer.elements for layer in variant.load("sage", [folders.variants]).layers
    ]
    assert (found.description, found.arches, found.settings) == ("g", (Arch.AMD64,), {"SAGE_KEY": "xyz"})
    assert [check.name for check in found.checks] == ["first", "second", "fourth"]


def test_a_folder_of_ones_own_counts_first_and_may_extend_ours(folders: Folders) -> None:
    folders.variant("base", BASE)
    own = folders.variants / "own"
    own.mkdir()
    (own / "mine.yaml").write_text("extends: base\ndescription: mine\n")
    assert variant.load("mine", [own, folders.variants]).elements == ("one",)


def test_an_unknown_variant_is_answered_with_the_nearest(folders: Folders) -> None:
    folders.variant("sage", BASE)
    with pytest.raises(InputError, match="unknown variant 'saeg'") as caught:
        variant.load("saeg", [folders.variants])
    assert caught.value.hint == "did you mean 'sage'?"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (BASE + "elemnts: [x]\n", 12, "elemnts: unknown key"),
        (BASE.replace("[one]", "one"), 3, "elements: expected a list, found 'one'"),
        (BASE.replace("[curl]", "['bad name; rm']"), 4, "packages[0]: 'bad name; rm' does not match"),
        (BASE.replace("ssh-root-refused", "ssh-rot-refused"), 10, "checks[1].probe: 'ssh-rot-refused'"),
        (BASE.replace('run: "true"', "timeout: 5"), 7, "checks[0]: check 'first' needs either 'run' or 'probe'"),
        (BASE.replace("timeout: 5", "timeout: -5"), 11, "checks[1].timeout"),
        (BASE.replace("{version}", "{verson}"), 2, "image_name: expected a name with no fields but"),
        (BASE.replace("Sage-{os}", "Sage {os}"), 2, "image_name: 'Sage {os}"),
        (BASE + "extends: bsae\n", 12, "extends: there is no variant 'bsae'"),
        (BASE + "extends: here\n", 12, "extends: goes round in a circle: here -> here"),
        (BASE.replace("description: the least\n", ""), 1, "the key 'description' is missing"),
    ],
)
def test_a_mistake_is_named_with_its_place(folders: Folders, text: str, line: int, words: str) -> None:
    path = folders.variant("here", text)
    with pytest.raises(InputError) as caught:
        variant.load("here", [folders.variants])
    assert f"{path}:{line}: {words}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_longer_circle_is_found(folders: Folders) -> None:
    folders.variant("a", BASE + "extends: b\n")
    folders.variant("b", BASE + "extends: a\n")
    with pytest.raises(InputError, match="a -> b -> a"):
        variant.load("a", [folders.variants])


def test_a_list_within_the_elements_is_a_layer(folders: Folders) -> None:
    text = BASE.replace("[one]", "[one, two, [three, one], [one], four, five]")
    folders.variant("base", text)
    layers = variant.load("base", [folders.variants]).layers
    assert [layer.elements for layer in layers] == [("one", "two"), ("three",), ("four", "five")]
    assert [layer.packages for layer in layers] == [(), (), ("curl",)]

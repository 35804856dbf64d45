# SPDX-License-Identifier: Apache-2.0
"""Roles: data out of files, and errors that name file, line and key."""

from pathlib import Path

import pytest

from groundwork import products
from groundwork.errors import InputError
from image_builder.variant import Arch
from node_automation import role
from node_automation.role import Role


def written(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(role.available([])))
def test_roles_that_come_along_are_whole(name: str) -> None:
    found = role.load(name)
    assert found.description
    assert found.user == "cc"
    assert all(command.deadline >= 1 for command in (*found.start, *found.collect.commands))
    assert products.parse(Role, products.to_text(found).encode(), "here") == found


def test_the_beehive_gives_what_a_waggle_node_takes() -> None:
    waggle, beehive = role.load("waggle"), role.load("beehive")
    assert waggle.needs.keys() == {"beehive"}
    assert waggle.needs["beehive"].files.keys() == beehive.offers["beehive"].files.keys()


def test_a_role_of_ones_own_extends_ours(tmp_path: Path) -> None:
    (tmp_path / "plugin.tar").write_bytes(b"\x00\xff")
    written(
        tmp_path,
        """
extends: waggle
description: A node with a camera's plugin
arch: arm64
variables: {RATE: 5, LOUD: true}
files:
  - {to: "plugins/${SAGE_NODE}.tar", from: plugin.tar, mode: "0600", owner: root}
start:
  - run: virtual-waggle run --native plugin -- --rate "$RATE"
health:
  - {name: it is registered at the Beehive, run: "true", deadline: 5}
collect:
  paths: [plugins]
""",
    )
    found, waggle = role.load("mine", [tmp_path]), role.load("waggle")
    assert (found.arch, found.image) == (Arch.ARM64, waggle.image)
    assert found.variables == {**waggle.variables, "RATE": "5", "LOUD": "1"}
    assert [command.run for command in found.start[:-1]] == [command.run for command in waggle.start]
    assert found.start[-1].name.startswith("virtual-waggle run --native plugin")
    assert [check.name for check in found.health] == [check.name for check in waggle.health], "the same name: replaced"
    assert found.health[0].run == "true"
    (put,) = found.files
    assert (put.mode, put.owner, put.content, put.source) == (0o600, "root", None, tmp_path / "plugin.tar")
    assert put.sha256 == role.digest_of_source(b"\x00\xff")
    assert found.collect.paths == ("plugins",)
    assert {command.name for command in found.collect.commands} == {"report.json", "services.log"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("describtion: x\n", ":1: describtion: unknown key"),
        ("description: x\narch: sparc\n", ":2: arch: 'sparc' is none of the values"),
        ("ports: [22, 70000]\n", ":1: ports[1]: 70000"),
        ("start:\n  - {deadline: 3}\n", ":2: start[0]: the key 'run' is missing"),
        ("health:\n  - {name: well}\n", ":2: health[0]: 'well' needs either 'run' or 'url'"),
        ("health:\n  - {name: a, run: 'true', url: 'http://x'}\n", ":2: health[0]: 'a' needs either"),
        ("files:\n  - {to: a}\n", ":2: files[0]: a needs either 'content' or 'from'"),
        ("files:\n  - {to: a, content: b, mode: '9'}\n", ":2: files[0].mode: '9' does not match"),
        ("files:\n  - to: a\n    from: nothing.here\n", ":3: files[0].from: can't read"),
        ("files:\n  - {to: '${SAGE_NODES}', content: b}\n", ":2: files[0].to: nothing gives ${SAGE_NODES} a value"),
        ("files:\n  - {to: 'a$ b', content: b}\n", ":2: files[0].to: 'a$ b' does not match"),
        ("collect:\n  paths:\n    - a\n    - cost$\n", ":4: collect.paths[1]: 'cost$' has a $ without a name"),
        ("health:\n  - {name: a, url: 'http://${HOST}/'}\n", ":2: health[0].url: nothing gives ${HOST} a value"),
        ("needs:\n  beehive:\n    files: {a: '${SAGE_TAKER}'}\n", ":3: needs.beehive.files.a: nothing gives"),
        ("variables: {rate: 1}\n", ":1: variables"),
        ("extends: nobody\n", ":1: extends: there is no role 'nobody'"),
        ("description: x\nextends: mine\n", ":2: extends: goes round in a circle: mine -> mine"),
        ("collect: {commands: [{name: ../x, run: a}]}\n", ":1: collect.commands[0].name: '../x' does not match"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        role.load("mine", [tmp_path])
    assert f"{path}{said}" in str(caught.value)


def test_an_unknown_role_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        role.load("beehiev", [tmp_path])
    assert caught.value.hint == "did you mean 'beehive'?"


def test_a_file_that_is_too_large_is_not_put(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    written(tmp_path, "files: [{to: a, from: large}]\n")
    with pytest.raises(InputError, match="larger than 1 MiB"):
        role.load("mine", [tmp_path])


def test_names_are_filled_in() -> None:
    assert role.fill_in("http://${SAGE_ADDRESS}:8080/$$", {"SAGE_ADDRESS": "192.0.2.1"}) == "http://192.0.2.1:8080/$"
    assert list(role.used_names("${A}/$B/$$/$")) == ["A", "B", None]

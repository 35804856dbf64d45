# SPDX-License-Identifier: Apache-2.0
"""What the node's state folder promises: made whole, repaired, never made anew over what stands; and its apps."""

import json
from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle import broker
from virtual_waggle.broker import Place
from virtual_waggle.node import apps, settings, state
from virtual_waggle.node.apps import App

PLACE = Place("/run/secrets", "127.0.0.1", "127.0.0.1")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_is_a_node_with_passwords_of_its_own(tmp_path: Path) -> None:
    one, two = (state.make_ready(tmp_path / name) for name in ("one", "two"))
    assert one.settings.node_id != two.settings.node_id
    passwords = [(node.private / name).read_text() for node in (one, two) for name in broker.NODE_USERS.values()]
    assert len(set(passwords)) == 2 * len(broker.NODE_USERS)
    assert min(map(len, passwords)) >= 27


def test_what_stands_is_left_as_it_is(tmp_path: Path) -> None:
    made = state.make_ready(tmp_path / "node")
    state.write_broker_files(made, PLACE)
    before = contents(tmp_path)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before if not name.endswith(".lock")}
    state.write_broker_files(state.make_ready(tmp_path / "node"), PLACE)
    assert contents(tmp_path) == before
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times


def test_what_is_missing_or_open_to_others_is_repaired(tmp_path: Path) -> None:
    made = state.make_ready(tmp_path / "node")
    (made.private / "plugin-password").unlink()
    (made.private / "sharing-password").write_text("")
    (made.private / "register.pem").write_text("key")
    (made.private / "register.pem").chmod(0o644)
    made.private.chmod(0o755)
    made.apps.rmdir()
    state.make_ready(tmp_path / "node")
    assert made.private.stat().st_mode & 0o777 == 0o700
    assert made.apps.is_dir()
    for path in made.private.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
        assert path.read_text()


def test_what_an_operator_puts_there_as_root_belongs_to_the_services(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/register.pem").write_text("key")
    (tmp_path / "waggle-node.env").touch()
    made = state.make_ready(tmp_path)
    assert {path.stat().st_uid for path in (made.private, made.private / "register.pem")} == {tmp_path.stat().st_uid}
    assert (made.private / "register.pem").stat().st_mode & 0o777 == 0o600


def test_who_looks_for_the_machines_node_without_its_rights_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.make_ready(tmp_path / "machine")
    monkeypatch.setattr(state, "_OF_THE_MACHINE", tmp_path / "machine")
    with pytest.raises(InputError, match="no Waggle node in") as caught:
        state.read(tmp_path / "user")
    assert str(caught.value.hint).endswith("use sudo")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="something else"):
        state.make_ready(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"x"}


def test_settings_that_stand_are_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "waggle-node.env").write_text("WAGGLE_NODE_VSN=W023\n")
    made = state.make_ready(tmp_path)
    assert made.settings.vsn == "W023"
    assert state.read(tmp_path).settings == made.settings
    with pytest.raises(InputError, match="no Waggle node"):
        state.read(tmp_path / "elsewhere")


def test_the_shovel_is_there_when_the_node_is_registered_with_a_beehive(tmp_path: Path) -> None:
    (tmp_path / "waggle-node.env").write_text("WAGGLE_BEEHIVE_HOST=beehive.example\n")
    made = state.make_ready(tmp_path)

    def shovels() -> list[str]:
        state.write_broker_files(made, PLACE)
        definitions = json.loads((made.private / "definitions.json").read_text())
        return [entry["value"]["dest-uri"] for entry in definitions["parameters"]]

    assert shovels() == []
    for name in ("beehive-ca.pem", "node-cert.pem", "node-key.pem"):
        (made.private / name).write_text("pem")
    where = made.private / "registered-as"
    assert shovels() == []
    where.write_text(state.registered_as(made.settings.node_id, "beehive.example", 20022))
    (uri,) = shovels()
    assert uri.startswith("amqps://beehive.example:5671?cacertfile=/run/secrets/beehive-ca.pem")


def test_what_another_beehive_gave_or_to_another_node_is_no_registration(tmp_path: Path) -> None:
    (tmp_path / "waggle-node.env").write_text("WAGGLE_NODE_ID=00000000000000aa\nWAGGLE_BEEHIVE_HOST=one.example\n")
    made = state.make_ready(tmp_path)
    for name in ("beehive-ca.pem", "node-cert.pem", "node-key.pem"):
        (made.private / name).write_text("pem")
    where = made.private / "registered-as"
    where.write_text(state.registered_as("00000000000000aa", "one.example", 20022))
    assert state.read(tmp_path).registered
    for other in (("00000000000000aa", "two.example", 20022), ("00000000000000aa", "one.example", 20023)):
        where.write_text(state.registered_as(*other))
        assert not state.read(tmp_path).registered
    where.write_text(state.registered_as("00000000000000bb", "one.example", 20022))
    assert not state.read(tmp_path).registered


@pytest.mark.parametrize("text", ["WAGGLE_NODE_VSN=W1\nWAGGLE_NODE_ID=\n", "WAGGLE_NODE_VSN=W1", ""])
def test_settings_without_an_id_get_one_and_keep_the_rest(tmp_path: Path, text: str) -> None:
    (tmp_path / settings.FILE).write_text(text)
    made = state.make_ready(tmp_path)
    assert made.settings.vsn == ("W1" if "W1" in text else f"V{made.settings.node_id[-3:].upper()}")
    assert state.make_ready(tmp_path).settings == made.settings


def test_new_settings_name_every_key(tmp_path: Path) -> None:
    made = state.make_ready(tmp_path / "node")
    for variable in settings.TABLE:
        assert f"{variable.name}=" in (made.folder / settings.FILE).read_text()


def test_an_app_is_written_and_read_and_taken_away(tmp_path: Path) -> None:
    app = App("waggle/plugin-x:1.0", "test", "x")
    apps.add(tmp_path, "plugin-1", app)
    (path,) = tmp_path.iterdir()
    assert apps.app_id_of(path) == "plugin-1"
    assert apps.read(path) == app
    apps.remove(tmp_path, "plugin-1")
    apps.remove(tmp_path, "plugin-1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("app_id", ["", "..", "../x", ".x", "a/b", "a b", "x" * 128, "a\n"])
def test_an_app_id_is_no_path(tmp_path: Path, app_id: str) -> None:
    with pytest.raises(InputError, match="no app id"):
        apps.add(tmp_path, app_id, App("x", "x", "x"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"plugin": "x", "job": "y"}',
        '{"plugin": "x", "job": "y", "task": 1}',
        '{"plugin": "\\ud800", "job": "y", "task": "z"}',
        json.dumps({"plugin": "x" * 257, "job": "y", "task": "z"}),
        "[" * 10_000,
        json.dumps({"plugin": "x", "job": "y", "task": "z", "more": "m" * 20_000}),
    ],
)
def test_a_file_that_is_no_app_is_told_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        apps.read(tmp_path / "x.json")

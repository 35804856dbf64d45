# SPDX-License-Identifier: Apache-2.0
"""The command manifests: what it writes where, what it keeps to itself, what it tells."""

import base64
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.unit.virtual_waggle.compose import FOLDER
from virtual_waggle import cli, manifest_commands
from virtual_waggle.node import apps, deployment, state

Call = Callable[..., int]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setenv("WAGGLE_STATE_DIR", str(tmp_path / "no-node"))
    monkeypatch.setenv("BEEHIVE_STATE_DIR", str(tmp_path / "no-beehive"))
    monkeypatch.setenv("MYSQL_USER", "wp")

    def program(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["virtual-waggle", "manifests", *words])
        with pytest.raises(SystemExit) as ended:
            cli.virtual_waggle()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return program


def test_standard_output_has_all_but_secrets(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(FOLDER / "wordpress.yaml")) == 0
    printed = capsys.readouterr()
    kinds = [document["kind"] for document in yaml.safe_load_all(printed.out)]
    assert "StatefulSet" in kinds
    assert "Secret" not in kinds
    assert "left out: the Secrets db-env, db-password" in printed.err
    assert "wordpress.yaml:17: volumes.wordpress: several pods write it" in printed.err
    assert call(str(FOLDER / "wordpress.yaml"), "--secrets") == 0
    assert "kind: Secret" in capsys.readouterr().out


def test_a_folder_gets_a_file_a_kind_and_secrets_are_for_their_owner_alone(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert call(str(FOLDER / "wordpress.yaml"), "--output", str(folder), "--namespace", "blog") == 0
    found = sorted(path.name for path in folder.iterdir())
    assert found == [
        *("10-namespace.yaml", "30-secrets.yaml", "40-volumes.yaml", "50-services.yaml"),
        *("60-networkpolicies.yaml", "70-workloads.yaml"),
    ]
    assert stat.S_IMODE((folder / "30-secrets.yaml").stat().st_mode) == 0o600
    (folder / "mine.yaml").write_text("")
    assert call(str(FOLDER / "profiles.yaml"), "--output", str(folder)) == 0
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["50-services.yaml", "60-networkpolicies.yaml", "70-workloads.yaml", "mine.yaml"]


def test_json_tells_what_was_made_and_what_is_lost(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(str(FOLDER / "monitoring.yaml"), "--output", str(tmp_path / "out"), "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert {"kind": "DaemonSet", "name": "cadvisor"} in data["objects"]
    assert {
        "file": str(FOLDER / "monitoring.yaml"),
        "line": 40,
        "key": "services.cadvisor.devices",
        "why": "a device of the host takes a device plugin of the cluster",
    } in data["losses"]


@pytest.mark.parametrize(("flag", "service"), [("--node", "sharing"), ("--beehive", "loader")])
def test_ours_are_made_without_a_state_folder_too(
    call: Call, flag: str, service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(flag) == 0
    printed = capsys.readouterr()
    names = [(one["kind"], one["metadata"]["name"]) for one in yaml.safe_load_all(printed.out)]
    assert ("StatefulSet", service) in names
    assert "make rabbitmq-conf with the key rabbitmq.conf by hand" in printed.err


def test_a_nodes_secrets_are_as_containers_see_them(call: Call, tmp_path: Path) -> None:
    node = state.make_ready(tmp_path / "node")
    state.write_broker_files(node, deployment.place(node, native=True))
    apps.add(node.apps, "node-metrics", apps.App("virtual-waggle", "system", "node-metrics"))
    assert call("--node", "--state-dir", str(node.folder), "--output", str(tmp_path / "out")) == 0
    text = (tmp_path / "out/30-secrets.yaml").read_text()
    secrets = {one["metadata"]["name"]: one["data"] for one in yaml.safe_load_all(text)}
    configuration = base64.b64decode(secrets["rabbitmq-conf"]["rabbitmq.conf"]).decode()
    assert "load_definitions = /run/secrets/definitions.json" in configuration
    assert "127.0.0.1" not in configuration
    password = (node.private / "sharing-password").read_bytes()
    assert base64.b64decode(secrets["sharing-password"]["sharing-password"]) == password
    others = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.name != "30-secrets.yaml")
    assert password.decode().strip() not in others
    assert "node-metrics.json" in (tmp_path / "out/20-configmaps.yaml").read_text()  # the apps that may publish


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.yaml"], "can't read absent.yaml"),
        (["--json"], "give --output DIR"),
        (["--namespace", "Über"], "no name of a namespace"),
        (["--storage", "lots"], "expected a size as 10Gi"),
        (["--node", "--beehive"], "not allowed with"),
        (["--node", "--state-dir", "nowhere"], "there is no waggle-node.env in"),
        ([str(FOLDER / "profiles.yaml"), "--profile", "test"], "mailhog is off"),
    ],
)
def test_wrong_input_is_told(call: Call, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_every_kind_has_its_file() -> None:
    assert sorted(manifest_commands._FILES.values()) == list(manifest_commands._FILES.values())

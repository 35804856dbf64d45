# SPDX-License-Identifier: Apache-2.0
"""What is asked of a Chameleon is checked before anything is done."""

import json
from pathlib import Path

import pytest

from groundwork import console
from groundwork.errors import InputError
from local_chameleon import cli, cloud
from local_chameleon.cloud import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(state_dir=tmp_path / "state", env_dir=tmp_path / "env")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("local_chameleon.environment.ensure", lambda folder, requirements: folder / "0123")


def test_status_of_nothing(config: Config) -> None:
    state = cloud.status(config)
    assert not state.up
    assert [one.name for one in state.services] == ["keystone", "glance-chi_uc", "glance-chi_tacc", "glance-kvm_tacc"]
    assert not any(one.works or one.pid for one in state.services)
    assert state.endpoints["CHI@UC"]["image"] == "http://127.0.0.1:15011"
    assert not config.state_dir.exists()


def test_status_of_a_lease_profile_that_was_never_started(config: Config) -> None:
    state = cloud.status(Config(config.state_dir, config.env_dir, profile="lease"))
    kinds = ("glance", "placement", "neutron", "nova", "blazar")
    slugs = ("chi_uc", "chi_tacc", "kvm_tacc")
    assert [one.name for one in state.services] == ["keystone", *(f"{kind}-{slug}" for kind in kinds for slug in slugs)]
    assert state.endpoints["KVM@TACC"]["compute"] == "http://127.0.0.1:15033/v2.1"
    assert state.endpoints["KVM@TACC"]["reservation"] == "http://127.0.0.1:15035/v1"


def test_status_of_a_boot_profile_that_was_never_started(config: Config) -> None:
    state = cloud.status(Config(config.state_dir, config.env_dir, profile="boot"))
    assert [(one.name, one.url) for one in state.services[:3]] == [
        ("qemu", "http://127.0.0.1:15001"),
        ("network", "http://127.0.0.1:15002"),
        ("keystone", "http://127.0.0.1:15000"),
    ]
    assert list(state.endpoints) == ["CHI@UC", "CHI@TACC"]


def test_only_root_starts_a_boot_profile(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(InputError, match="takes root") as caught:
        cloud.up(Config(config.state_dir, config.env_dir, profile="boot"))
    assert "sudo" in str(caught.value.hint)
    assert not config.state_dir.exists()


def test_what_a_boot_profile_lacks_is_told_with_its_packages(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("groundwork.process.search_path", lambda: "/nonexistent")
    with pytest.raises(InputError, match="missing system programs: libvirtd") as caught:
        cloud.up(Config(config.state_dir, config.env_dir, profile="boot"))
    assert "apt-get install" in str(caught.value.hint)
    assert "libvirt-daemon" in str(caught.value.hint)


def test_down_of_nothing(config: Config) -> None:
    assert cloud.down(config) == []
    assert cloud.down(config, purge=True) == []


def test_a_folder_that_holds_something_else_is_neither_used_nor_purged(config: Config) -> None:
    config.state_dir.mkdir()
    (config.state_dir / "thesis.tex").touch()
    with pytest.raises(InputError, match="something else"):
        cloud.up(config)
    with pytest.raises(InputError, match="stays as it is"):
        cloud.down(config, purge=True)
    assert [path.name for path in config.state_dir.iterdir()] == ["thesis.tex"]


def test_other_ports_than_the_state_was_made_for_are_refused(config: Config) -> None:
    config.state_dir.mkdir()
    record = {"profile": "images", "port": 16000, "environment": "0123", "complete": True}
    (config.state_dir / "state.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="from 16000 on"):
        cloud.up(Config(config.state_dir, config.env_dir, port=17000))
    assert cloud.status(config).endpoints["CHI@UC"]["image"] == "http://127.0.0.1:16011"


def test_another_profile_than_the_state_was_made_for_is_refused(config: Config) -> None:
    config.state_dir.mkdir()
    record = {"profile": "images", "port": 16000, "environment": "0123", "complete": True}
    (config.state_dir / "state.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="the profile 'images'") as caught:
        cloud.up(Config(config.state_dir, config.env_dir, profile="lease"))
    assert "--purge" in str(caught.value.hint)


def test_services_are_started_once_those_that_they_need_work(config: Config) -> None:
    every = cloud._services(config.state_dir, cloud._Record("lease", 15000, "0123"))
    ranks = [{one.name.partition("-")[0] for one in rank} for rank in cloud._ranks(every)]
    assert ranks == [{"keystone", "glance", "placement", "neutron"}, {"nova"}, {"blazar"}]
    assert [one.name for one in cloud._ranks(every[-1:])[0]] == ["blazar-kvm_tacc"]
    assert cloud._names(cloud._ranks(every)[0]) == "10 services: keystone, glance, placement and neutron"
    assert cloud._names(cloud._ranks(every)[1]) == "nova-chi_uc, nova-chi_tacc and nova-kvm_tacc"


def test_a_broken_record_is_told(config: Config) -> None:
    config.state_dir.mkdir()
    (config.state_dir / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json"):
        cloud.status(config)


def test_an_unknown_profile_is_refused(config: Config) -> None:
    with pytest.raises(InputError, match="unknown profile") as caught:
        cloud.up(Config(config.state_dir, config.env_dir, profile="image"))
    assert caught.value.hint == "did you mean 'images'?"


def test_a_purge_removes_only_what_is_ours(config: Config) -> None:
    config.state_dir.mkdir()
    record = {"profile": "images", "port": 16000, "environment": "0123", "complete": False}
    (config.state_dir / "state.json").write_text(json.dumps(record))
    cloud.down(config, purge=True)
    assert not config.state_dir.exists()


def test_the_command_line_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown flag --prt"):
        cli._main(["up", "--prt", "1"])
    with pytest.raises(InputError, match="--port: expected a whole number"):
        cli._main(["up", "--port", "80"])


def test_status_as_json(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--state-dir", str(config.state_dir), "--env-dir", str(config.env_dir)]
    assert cli._main(["status", "--json", *words]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["up"] is False
    assert told["clouds_yaml"] == str(config.state_dir / "clouds.yaml")
    console.configure()

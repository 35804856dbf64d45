# SPDX-License-Identifier: Apache-2.0
"""A Chameleon of one's own: what it promises to its users, and that it starts, repairs and stops itself."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest
import yaml
from openstack.exceptions import ForbiddenException

from groundwork import process
from local_chameleon import cloud, services
from local_chameleon.cloud import Config, State
from tests.integration.conftest import free_ports, new_config

CLOUDS = ("chi_uc", "chi_tacc", "kvm_tacc")


def connect(state: State, name: str) -> Any:
    config = openstack.config.OpenStackConfig(config_files=[str(state.clouds_yaml)], load_envvars=False)
    return openstack.connection.Connection(config=config.get_one(name))


def upload(connection: Any, data: bytes = b"x" * 100_000) -> Any:
    made = connection.image.create_image(
        "test", data=data, disk_format="raw", container_format="bare", visibility="private", allow_duplicates=True
    )
    return connection.image.get_image(made.id)


def command(config: Config, *words: str, check: bool = True) -> str:
    return process.run(line(config, *words), check=check, timeout=300)


def line(config: Config, *words: str) -> list[str | Path]:
    places: list[str | Path] = ["--state-dir", config.state_dir, "--env-dir", config.env_dir]
    return [sys.executable, "-m", "local_chameleon.cli", *words, *places]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_user_uploads_and_lists_in_every_region(local_chameleon: State, name: str) -> None:
    connection = connect(local_chameleon, name)
    assert connection.config.region_name == name.upper().replace("_", "@")
    image = upload(connection)
    assert image.status == "active"
    assert [one.id for one in connection.image.images(name="test")] == [image.id]
    assert connection.image.download_image(image).content == b"x" * 100_000
    connection.image.delete_image(image)


def test_regions_and_projects_see_only_their_own(local_chameleon: State) -> None:
    image = upload(connect(local_chameleon, "chi_uc"))
    assert list(connect(local_chameleon, "chi_tacc").image.images(name="test")) == []
    assert list(connect(local_chameleon, "chi_uc_2").image.images(name="test")) == []
    connect(local_chameleon, "chi_uc").image.delete_image(image)


def test_only_an_administrator_makes_an_image_public(local_chameleon: State) -> None:
    user, admin = connect(local_chameleon, "chi_uc"), connect(local_chameleon, "admin_chi_uc")
    image = upload(user)
    with pytest.raises(ForbiddenException):
        user.image.update_image(image.id, visibility="public")
    assert user.image.update_image(image.id, visibility="community").visibility == "community"
    assert admin.image.update_image(image.id, visibility="public").visibility == "public"
    assert [one.id for one in connect(local_chameleon, "chi_uc_2").image.images(name="test")] == [image.id]
    user.image.delete_image(image)


def test_the_user_is_no_administrator_and_the_credential_is_unrestricted(local_chameleon: State) -> None:
    connection = connect(local_chameleon, "chi_uc")
    access = connection.session.auth.get_access(connection.session)
    assert access.project_name == "CH-822154"
    assert set(access.role_names) == {"member", "reader"}
    assert connection.identity.find_application_credential(access.user_id, "automation").unrestricted


def test_images_created_at_once_all_succeed(local_chameleon: State) -> None:
    from concurrent.futures import ThreadPoolExecutor

    connections = [connect(local_chameleon, "chi_uc") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda number: upload(connections[number % 8]), range(32)))
    assert {image.status for image in images} == {"active"}
    for image in images:
        connections[0].image.delete_image(image)


def test_what_is_secret_is_readable_by_its_owner_only(local_chameleon: State) -> None:
    secret = yaml.safe_load(local_chameleon.clouds_yaml.read_text())["clouds"]["chi_uc"]["auth"]
    passwords = json.loads((local_chameleon.state_dir / "secrets.json").read_text())
    words = {secret["application_credential_secret"], *passwords.values()}
    assert local_chameleon.state_dir.stat().st_mode & 0o777 == 0o700
    for path in (local_chameleon.clouds_yaml, local_chameleon.state_dir / "secrets.json"):
        assert path.stat().st_mode & 0o777 == 0o600
    for log in local_chameleon.state_dir.glob("*/service.log"):
        assert not any(word in log.read_text() for word in words)
    for running in services.scan(local_chameleon.state_dir):
        line = Path(f"/proc/{running.pid}/cmdline").read_text()
        assert not any(word in line for word in words)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """A Chameleon for the tests that break it."""
    config = new_config(tmp_path_factory)
    try:
        cloud.up(config)
        yield config
    finally:
        cloud.down(config, purge=True)
        assert services.scan(config.state_dir) == []
        assert not config.state_dir.exists()


def pids(config: Config) -> dict[str, int]:
    return {one.name: one.pid for one in services.scan(config.state_dir)}


def test_a_second_up_changes_nothing(own: Config) -> None:
    before = pids(own)
    assert len(before) == 4
    clouds = (own.state_dir / "clouds.yaml").read_text()
    out = command(own, "up")
    assert out.strip() == f"export OS_CLIENT_CONFIG_FILE={own.state_dir}/clouds.yaml"
    assert pids(own) == before
    assert (own.state_dir / "clouds.yaml").read_text() == clouds


def test_status_tells_what_was_killed_and_up_repairs_only_that(own: Config) -> None:
    before = pids(own)
    victim = before["glance-chi_tacc"]
    os.kill(victim, signal.SIGKILL)
    for _ in process.poll_until(10):
        if victim not in pids(own).values():
            break
    told = json.loads(command(own, "status", "--json", check=False))
    assert not told["up"]
    assert {one["name"]: one["works"] for one in told["services"]} == {
        name: name != "glance-chi_tacc" for name in before
    }
    with pytest.raises(process.ProcessError) as caught:
        command(own, "status")
    assert caught.value.returncode == 1
    assert cloud.up(own).up
    after = pids(own)
    assert after.pop("glance-chi_tacc") != before.pop("glance-chi_tacc")
    assert after == before


def test_allow_public_restarts_the_glances_with_another_policy(own: Config) -> None:
    keystone = pids(own)["keystone"]
    state = cloud.up(Config(own.state_dir, own.env_dir, allow_public=True))
    assert pids(own)["keystone"] == keystone
    user = connect(state, "chi_uc")
    image = upload(user)
    assert user.image.update_image(image.id, visibility="public").visibility == "public"
    user.image.delete_image(image)


def test_data_outlive_down_and_up(own: Config) -> None:
    image = upload(connect(cloud.up(own), "kvm_tacc"))
    assert cloud.down(own) == ["glance-chi_tacc", "glance-chi_uc", "glance-kvm_tacc", "keystone"]
    assert pids(own) == {}
    assert cloud.down(own) == []
    assert [one.id for one in connect(cloud.up(own), "kvm_tacc").image.images()] == [image.id]


def test_a_port_that_is_taken_is_named(own: Config) -> None:
    cloud.down(own)
    assert own.port is not None
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", own.port + 11))
        other.listen()
        with pytest.raises(process.ProcessError) as caught:
            command(own, "up")
    assert caught.value.returncode == 2
    assert f"port {own.port + 11}" in caught.value.output
    assert pids(own) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_up_that_is_interrupted_leaves_nothing_running_or_is_mended(
    tmp_path_factory: pytest.TempPathFactory, own: Config, number: signal.Signals
) -> None:
    config = Config(tmp_path_factory.mktemp("chameleon") / "state", own.env_dir, port=free_ports())
    started = process.start(line(config, "up", "--port", str(config.port)))
    try:
        for _ in process.poll_until(120, 0.05):
            if pids(config):
                break
        assert started.poll() is None
        os.kill(started.pid, number)
        code = started.wait(60)
        if number is signal.SIGINT:
            assert code == 128 + number
            assert pids(config) == {}
        else:
            assert cloud.up(config).up  # what was left unfinished is made anew
    finally:
        process.stop(started)
        cloud.down(config, purge=True)
    assert pids(config) == {}
    assert not config.state_dir.exists()

# SPDX-License-Identifier: Apache-2.0
"""What a plugin is started with."""

import json
import os
import stat
from pathlib import Path

import pytest

from groundwork.errors import InputError
from virtual_waggle.node import apps, data_config, plugins, state
from virtual_waggle.node.state import NodeState


@pytest.fixture
def node(tmp_path: Path) -> NodeState:
    return state.make_ready(tmp_path / "state")


def test_pywaggle_finds_all_that_it_reads() -> None:
    assert plugins.environment("app-1", "secret", "rabbitmq", 5672, plugins.UPLOADS) == {
        "WAGGLE_PLUGIN_HOST": "rabbitmq",
        "WAGGLE_PLUGIN_PORT": "5672",
        "WAGGLE_PLUGIN_USERNAME": "plugin",
        "WAGGLE_PLUGIN_PASSWORD": "secret",
        "WAGGLE_APP_ID": "app-1",
        "WAGGLE_PLUGIN_UPLOAD_PATH": "/run/waggle/uploads",
    }


def test_a_plugin_is_an_app_while_it_runs_and_for_a_while_after(node: NodeState) -> None:
    with plugins.opened(node, "sky:1.0", "my-job", "sky") as plugin:
        assert apps.read(node.apps / f"{plugin.app_id}.json") == apps.App("sky:1.0", "my-job", "sky")
        assert plugin.app_id.startswith("sky-")
        assert plugin.uploads.is_dir()
    path = node.apps / f"{plugin.app_id}.json"
    assert apps.read(path).plugin == "sky:1.0"
    closed = json.loads(path.read_text())["closed"]
    apps.sweep(node.apps, node.uploads, now=closed + apps.LATE - 1)
    assert path.exists()
    apps.sweep(node.apps, node.uploads, now=closed + apps.LATE + 1)
    assert not path.exists()
    assert not plugin.uploads.exists()


def test_an_app_that_runs_is_never_swept(node: NodeState) -> None:
    apps.add(node.apps, "runs", apps.App("a", "b", "c"))
    (node.apps / "odd.json").write_text("[1")
    apps.sweep(node.apps, node.uploads, now=1e12)
    assert (node.apps / "runs.json").exists()


def test_two_plugins_are_two_apps(node: NodeState) -> None:
    with plugins.opened(node, "a:1", "j", "a") as one, plugins.opened(node, "a:1", "j", "a") as other:
        assert one.app_id != other.app_id


def test_an_app_with_files_to_upload_stays_known(node: NodeState) -> None:
    with plugins.opened(node, "a:1", "j", "a") as plugin:
        (plugin.uploads / "1-abc").mkdir()
    apps.sweep(node.apps, node.uploads, now=1e12)
    assert (plugin.uploads / "1-abc").exists()
    assert (node.apps / f"{plugin.app_id}.json").exists()


def test_anyone_writes_uploads_and_the_folders_owner_has_rights_to_them(node: NodeState) -> None:
    folder = plugins.make_upload_folder(node, "app")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777
    assert stat.S_IMODE(node.uploads.stat().st_mode) == 0o700
    acl = os.getxattr(folder, "system.posix_acl_default")
    assert acl[:4] == b"\2\0\0\0"
    assert folder.stat().st_uid.to_bytes(4, "little") in acl
    umask = os.umask(0o077)
    try:
        (folder / "1-abc").mkdir()
    finally:
        os.umask(umask)
    assert os.getxattr(folder / "1-abc", "system.posix_acl_access")[4:] == acl[4:]


def test_the_password_lies_in_a_file_of_its_owner_that_goes_away() -> None:
    with plugins.environment_file({"WAGGLE_PLUGIN_PASSWORD": "secret"}) as path:
        assert path.read_text() == "WAGGLE_PLUGIN_PASSWORD=secret\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.mark.parametrize(
    ("image", "task"),
    [
        ("registry.sagecontinuum.org/yonghokim/object-counter:0.5.1", "object-counter"),
        ("waggle/plugin-image-sampler", "plugin-image-sampler"),
        ("My_Plugin:1", "my-plugin"),
        ("a@sha256:" + "0" * 64, "a"),
        ("_", "plugin"),
    ],
)
def test_a_task_is_named_after_its_image(image: str, task: str) -> None:
    assert plugins.task_name(image) == task


def test_the_script_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither main\.py nor plugin\.py"):
        plugins.find_script(tmp_path)
    (tmp_path / "plugin.py").touch()
    assert plugins.find_script(tmp_path) == tmp_path / "plugin.py"
    (tmp_path / "main.py").touch()
    assert plugins.find_script(tmp_path) == tmp_path / "main.py"
    with pytest.raises(InputError, match="there is no"):
        plugins.find_script(tmp_path / "nothing")


def test_a_camera_by_name_is_the_playback_servers_unless_the_user_says_otherwise(node: NodeState) -> None:
    rows = json.loads(data_config.make(node, "playback", 8090).read_text())
    addresses = {row["match"]["id"]: row["handler"]["args"]["url"] for row in rows}
    assert addresses["bottom"] == "http://playback:8090/bottom/live.mp4"
    assert addresses["top_image"] == "http://playback:8090/top/image.jpg"
    own = node.folder / data_config.OWN
    own.write_text("[]")
    assert data_config.make(node, "playback", 8090) == own

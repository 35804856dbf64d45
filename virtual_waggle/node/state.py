# SPDX-License-Identifier: Apache-2.0
"""The node's state folder: made where it is missing, repaired where it is not as it should be, else left as it is.

waggle-node.env     settings (node/settings.py)
private/            0700: passwords, the broker's files, what registration gave
apps/               the apps that may publish (node/apps.py)
uploads/            a folder an app, which it sees as /run/waggle/uploads
data/               measurements where there is no Beehive
playback/           the user's pictures and films, for the camera stand-ins
rabbitmq/           the broker's data
native/             pids and logs of services that run as plain processes
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError
from virtual_waggle import broker, env_file, state_folder
from virtual_waggle.broker import Place, ToBeehive
from virtual_waggle.node import settings
from virtual_waggle.node.settings import NodeSettings

_OF_THE_MACHINE = Path("/var/lib/virtual-waggle")  # of root's node
_OURS = (settings.FILE, ".lock")  # what tells a node's folder from others
_FOLDERS = {
    "private": 0o700,
    "apps": 0o755,
    "uploads": 0o700,
    "data": 0o755,
    "playback": 0o755,
    "rabbitmq": 0o700,
    "native": 0o700,
}
_REGISTRATION = ("beehive-ca.pem", "node-cert.pem", "node-key.pem")
REGISTERED_AS = "registered-as"  # in `private`: who registered, and where; another Beehive does not know these keys


@dataclass(frozen=True)
class NodeState:
    """A node's state folder that is ready."""

    folder: Path
    settings: NodeSettings

    @property
    def private(self) -> Path:
        return self.folder / "private"

    @property
    def apps(self) -> Path:
        return self.folder / "apps"

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def registered(self) -> bool:
        """Whether the node has a Beehive and what that one gave it to come in there."""
        given = self.settings
        if not given.beehive_host or not all((self.private / name).is_file() for name in _REGISTRATION):
            return False
        try:
            text = (self.private / REGISTERED_AS).read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return text == registered_as(given.node_id, given.beehive_host, given.registration_port)

    @property
    def user(self) -> str:
        """``uid:gid`` of the folder's owner: whom services run as."""
        owner = self.folder.stat()
        return f"{owner.st_uid}:{owner.st_gid}"


def registered_as(node_id: str, host: str, port: int) -> str:
    """What the file REGISTERED_AS holds after this node registered at this Beehive."""
    return f"node-{node_id}@{host}:{port}\n"


def choose_folder(named: str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The state folder: the one named, WAGGLE_STATE_DIR, the machine's where it can be written, else the user's."""
    return state_folder.chosen(named, "WAGGLE_STATE_DIR", "virtual-waggle", environment)


def read(folder: Path) -> NodeState:
    """The state of a folder as it stands.  Raises InputError where no node has been set up there."""
    path = folder / settings.FILE
    if not path.exists():
        hint = "`virtual-waggle up` makes one; or give --state-dir"
        if folder != _OF_THE_MACHINE and (_OF_THE_MACHINE / settings.FILE).exists():
            hint = f"the machine's own is in {_OF_THE_MACHINE}: use sudo"
        raise InputError(f"no Waggle node in {folder}", hint=hint)
    return NodeState(folder, settings.read(path))


def make_ready(folder: Path) -> NodeState:
    """Make the folder, the settings, the passwords: what is missing alone, with the modes that it must have."""
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in _OURS):
        raise InputError(f"{folder} holds something else than a Waggle node", hint="name an empty folder")
    state_folder.prepare(folder)
    with files.lock(folder / ".lock", wait=60):
        for name, mode in _FOLDERS.items():
            files.make_folder(folder / name).chmod(mode)
            files.give_to_owner_of(folder, folder / name)  # what an operator, as root, put there
        _make_settings(folder / settings.FILE)
        state = read(folder)
        for name in broker.NODE_USERS.values():
            state_folder.password(state.private / name)
        for path in state.private.iterdir():
            files.give_to_owner_of(folder, path)
            if path.is_file() and path.stat().st_mode & 0o077:
                path.chmod(0o600)
    return state


def write_broker_files(state: NodeState, place: Place) -> None:
    """Write rabbitmq.conf, enabled_plugins and definitions.json into ``private``; what is so already is left alone."""
    passwords = {name: (state.private / file).read_text().strip() for name, file in broker.NODE_USERS.items()}
    for name, text in (
        ("rabbitmq.conf", broker.node_configuration(place)),
        ("enabled_plugins", broker.enabled_plugins(beehive=False)),
        ("definitions.json", broker.node_definitions(passwords, place, to_beehive(state))),
    ):
        path = state.private / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text, mode=0o600)


def to_beehive(state: NodeState) -> ToBeehive | None:
    """Where the shovel goes; None where the node has no Beehive, or is not registered yet."""
    given = state.settings
    return ToBeehive(given.node_id, given.beehive_hosts, given.beehive_port) if state.registered else None


def _make_settings(path: Path) -> None:
    if not path.exists() or not env_file.read(path, (*settings.TABLE, *settings.LOCAL))[settings.NODE_ID]:
        env_file.change(path, (*settings.TABLE, *settings.LOCAL), {settings.NODE_ID: secrets.token_hex(8)})

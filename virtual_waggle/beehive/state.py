# SPDX-License-Identifier: Apache-2.0
"""The state folder of a Beehive: made, and repaired where something is missing or near its end.

beehive.env         its settings
private/            keys, certificates, passwords, the broker's files; its owner alone can enter it
nodes/              who may be a node (nodes.py)
store/  uploads/    what came in
rabbitmq/  native/  of the broker; of services that run without containers
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError
from virtual_waggle import broker, env_file, state_folder
from virtual_waggle.beehive import authority, settings
from virtual_waggle.beehive.settings import Settings

NAME = "beehive"
VARIABLE = "BEEHIVE_STATE_DIR"
OWN_NAMES = ("rabbitmq", "localhost")  # by which the Beehive's own services call its broker
COOKIE = "erlang-cookie"  # by which the brokers of a cluster know each other; each has it where Erlang looks for it
SERVICES = ("loader", "api")  # each has a certificate with its name, which is its user at the broker
_FIRST_WAITS, _OTHERS_WAIT = 5, 120  # seconds for other brokers of a cluster, at a broker's first start


@dataclass(frozen=True)
class State:
    """Where things are in a Beehive's state folder."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        return self.folder / settings.FILE

    @property
    def private(self) -> Path:
        return self.folder / "private"

    @property
    def nodes(self) -> Path:
        return self.folder / "nodes"

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def database(self) -> Path:
        """The SQLite store."""
        return self.store / "data.db"


def chosen(given: str | None, environment: Mapping[str, str] = os.environ) -> State:
    """The Beehive's state folder, as the command or the environment names it."""
    return State(state_folder.chosen(given, VARIABLE, NAME, environment))


def deploy(state: State, given: Mapping[str, str], place: broker.Place, *, now: datetime) -> list[str]:
    """Make all that a Beehive needs, or repair it; names of the files that changed.  Again: nothing changes.

    ``given``: settings to be set in beehive.env.  ``place``: where the broker listens and sees its files.
    """
    if not state.settings_file.exists() and "BEEHIVE_HOST" not in given:
        raise InputError(
            "BEEHIVE_HOST is not set", hint="give the name or address that nodes reach this Beehive by: --host NAME"
        )
    state_folder.prepare(state.folder)
    changed = []
    with files.lock(state.folder / ".lock", wait=30):
        if env_file.change(state.settings_file, (*settings.TABLE, *settings.LOCAL), given):
            changed.append(settings.FILE)
        known = settings.read(state.settings_file)
        for folder in (state.private, state.nodes):
            if state_folder.private_folder(folder):
                changed.append(f"{folder.name}/")
        for name in ("uploads", "store", "rabbitmq", "native"):
            if not (state.folder / name).is_dir():
                files.make_folder(state.folder / name)
                changed.append(f"{name}/")
        changed += [f"private/{name}" for name in _make_private(state.private, known, place, now)]
        if known.cluster:
            cookie = (state.private / COOKIE).read_text(encoding="utf-8")
            if state_folder.keep_secret(state.folder / "rabbitmq/.erlang.cookie", cookie):
                changed.append("rabbitmq/.erlang.cookie")
    return changed


def _make_private(private: Path, known: Settings, place: broker.Place, now: datetime) -> list[str]:
    """Keys, certificates, passwords, the broker's files; the names of those that changed."""
    done: dict[str, bool] = {}
    keys = private / "ca-key.pem", private / "ca-cert.pem"
    if not known.is_first and not keys[0].exists():
        raise InputError(
            f"{private} has no keys of the cluster", hint=f"copy the folder private of {known.cluster[0]} there first"
        )
    done["ca-cert.pem"] = authority.make_authority(*keys, now=now)
    ours = authority.open_authority(*keys)
    done["server-cert.pem"] = authority.certify(
        ours,
        private / "server-key.pem",
        private / "server-cert.pem",
        known.host[:64],  # the longest common name
        hosts=tuple(dict.fromkeys((*known.hosts, *known.cluster, *OWN_NAMES))),
        days=authority.SERVICE_DAYS,
        now=now,
    )
    for name in SERVICES:
        done[f"{name}-cert.pem"] = authority.certify(
            ours,
            private / f"{name}-key.pem",
            private / f"{name}-cert.pem",
            name,
            days=authority.SERVICE_DAYS,
            now=now,
        )
    for name in ("ssh-ca-key", "ssh-host-key"):
        done[name] = authority.make_ssh_key(private / name, NAME, public_file=private / f"{name}.pub")
    done["register.pem"] = authority.make_ssh_key(
        private / "register.pem", "registration", public_file=private / "register.pub"
    )
    done["known_hosts"] = state_folder.keep_secret(private / "known_hosts", known_hosts(private, known))
    done["admin-password"] = state_folder.password(private / "admin-password")
    if known.cluster:
        done[COOKIE] = state_folder.password(private / COOKIE)
    # No node is in the definitions, which the broker reads at each start: one that was removed would be back.
    texts = {
        "rabbitmq.conf": broker.beehive_configuration(
            place,
            cluster=[broker.name_in_cluster(machine) for machine in known.cluster],
            # The others have nothing to begin with: they wait for the first.
            patience=_FIRST_WAITS if known.is_first else _OTHERS_WAIT,
        ),
        "definitions.json": broker.beehive_definitions(
            (private / "admin-password").read_text(), queue_type=broker.QueueType(known.queue_type)
        ),
        "enabled_plugins": broker.enabled_plugins(beehive=True),
    }
    for name, text in texts.items():
        done[name] = state_folder.keep_secret(private / name, text)
    return [name for name, changed in done.items() if changed]


def known_hosts(private: Path, known: Settings) -> str:
    """The lines by which nodes know this Beehive's two ssh servers."""
    key = authority.ssh_public(private / "ssh-host-key")
    return "".join(
        f"[{host}]:{port} {key}\n" for host in known.hosts for port in (known.registration_port, known.upload_port)
    )


def handout(state: State) -> dict[str, str]:
    """What the operator gives to those who set up a node: names and texts of files for the node's ``private/``."""
    return {name: (state.private / name).read_text() for name in ("register.pem", "known_hosts")}

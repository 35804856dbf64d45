# SPDX-License-Identifier: Apache-2.0
"""What a node's services are run with: where its broker listens, and the variables of ``stacks/node/compose.yaml``.

The same file runs as containers and as plain processes.  Ports on loopback are settings (settings.LOCAL).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from groundwork import console, files
from groundwork.errors import SageError
from virtual_waggle import env_file
from virtual_waggle.broker import ADMIN, NODE_USERS, TO_VALIDATOR, Place
from virtual_waggle.forms import Deployment
from virtual_waggle.node import apps, settings
from virtual_waggle.node.state import NodeState

if TYPE_CHECKING:
    from virtual_waggle.broker_client import Management

PROJECT = "virtual-waggle"
COMPOSE_FILE = Path(__file__).parents[1] / "stacks/node/compose.yaml"
IN_CONTAINER = "/run/secrets"

NETWORK = f"{PROJECT}_default"
BROKER_IN_NETWORK = ("rabbitmq", 5672)
PLAYBACK_IN_NETWORK = ("playback", 8090)
_HEALTH = 120.0  # seconds
_IN_BOTH_FORMS = (
    *("WAGGLE_BROKER_PORT", "WAGGLE_MANAGEMENT_PORT", "WAGGLE_PLAYBACK_PORT", "WAGGLE_HEALTH_INTERVAL"),
    *("WAGGLE_METRICS_INTERVAL", "WAGGLE_PLAYBACK_RATE", "WAGGLE_RETENTION", "WAGGLE_UPLOADS_MOST"),
)
_REGISTRATION = ("known_hosts", "beehive-ca.pem", "node-cert.pem", "node-key.pem", "upload-key", "upload-key-cert.pub")
_ANYWHERE = "0.0.0.0"  # noqa: S104 - a container's network is the stack's own


def place(state: NodeState, *, native: bool, environment: Mapping[str, str] = os.environ) -> Place:
    """Where the broker listens and sees its files, for ``state.write_broker_files``."""
    if not native:
        return Place(IN_CONTAINER, _ANYWHERE, _ANYWHERE)
    local = _local(state, environment)
    return Place(
        secrets=str(state.private),
        address="127.0.0.1",
        management_address="127.0.0.1",
        port=int(local["WAGGLE_BROKER_PORT"]),
        management_port=int(local["WAGGLE_MANAGEMENT_PORT"]),
        prometheus_port=int(local["WAGGLE_PROMETHEUS_PORT"]),
    )


def deployment(state: NodeState, *, native: bool, environment: Mapping[str, str] = os.environ) -> Deployment:
    """The node's services, ready to be started; where it is not registered, nothing goes to its Beehive yet."""
    local = _local(state, environment)
    given = state.settings
    variables = {
        "WAGGLE_STATE_DIR": str(state.folder),
        "WAGGLE_USER": state.user,
        "WAGGLE_NODE_ID": given.node_id,
        "WAGGLE_NODE_VSN": given.vsn,
        "WAGGLE_NODE_HOST": given.host,
        # until there is a registration the uploader only sees to it that files don't fill the disk
        "WAGGLE_BEEHIVE_HOST": given.beehive_host if state.registered else "",
        "WAGGLE_BEEHIVE_UPLOAD_PORT": str(given.upload_port),
        "WAGGLE_REGISTRATION": str(_registration(state)),
        **{name: local[name] for name in _IN_BOTH_FORMS if local[name]},
    }
    if native:
        variables.update(_native_variables(state, local))
    # One that is to be registered keeps what is for its Beehive until then.
    profiles = () if given.beehive_host else ("alone",)
    return Deployment(PROJECT, COMPOSE_FILE, state.folder, variables, profiles)


def addresses(state: NodeState, environment: Mapping[str, str] = os.environ) -> dict[str, tuple[str, int]]:
    """Where this machine reaches ``broker``, ``management`` and ``playback``, in both forms."""
    local = _local(state, environment)
    return {
        name: ("127.0.0.1", int(local[f"WAGGLE_{name.upper()}_PORT"])) for name in ("broker", "management", "playback")
    }


def wait_for_broker(state: NodeState) -> None:
    """Return when the broker takes plugins in: what they send before that is lost.  Raises SageError after 2 min."""
    from virtual_waggle import broker_client  # and pika

    secret = broker_client.read_secret(state.private / NODE_USERS["plugin"])
    parameters = broker_client.by_password(addresses(state)["broker"], "plugin", secret)
    with console.stage("waiting for the node's broker", brief=True):
        try:
            broker_client.connect(parameters, deadline=_HEALTH).close()
        except broker_client.BrokerError as error:
            raise SageError(str(error), hint="is the node up? virtual-waggle status") from None


def end_shovel(state: NodeState) -> None:
    """Take away a shovel to a Beehive that the node had before: the broker keeps what its definitions once named."""
    from virtual_waggle import broker_client  # and pika

    broker_client.delete_shovel(_management(state))


def sweep_apps(state: NodeState) -> None:
    """Let apps that ended an hour ago publish no more, while nothing of theirs can wait in the broker.

    It may wait there for long: while the node is down, or the sharing service is.
    """
    from virtual_waggle import broker_client  # and pika

    try:
        waiting = broker_client.queue(_management(state), TO_VALIDATOR).get("messages")
    except broker_client.BrokerError:
        return
    if waiting == 0:  # a broker that has just started has not counted yet, and says nothing
        apps.sweep(state.apps, state.uploads)


def _management(state: NodeState) -> "Management":
    from virtual_waggle import broker_client

    secret = broker_client.read_secret(state.private / NODE_USERS[ADMIN])
    host, port = addresses(state)["management"]
    return broker_client.Management(f"http://{host}:{port}", secret)


def _native_variables(state: NodeState, local: Mapping[str, str]) -> dict[str, str]:
    return {
        "WAGGLE_SECRETS": str(state.private),
        "WAGGLE_PYTHONPATH": str(Path(__file__).parents[2]),
        "WAGGLE_BROKER": f"127.0.0.1:{local['WAGGLE_BROKER_PORT']}",
        "WAGGLE_BROKER_PORT_INSIDE": local["WAGGLE_BROKER_PORT"],
        "WAGGLE_EPMD_PORT": local["WAGGLE_EPMD_PORT"],
        "WAGGLE_DISTRIBUTION_PORT": local["WAGGLE_DISTRIBUTION_PORT"],
        "WAGGLE_PLAYBACK": f"127.0.0.1:{local['WAGGLE_PLAYBACK_PORT']}",
        "WAGGLE_RECORDER_LISTEN": f"127.0.0.1:{local['WAGGLE_RECORDER_PORT']}",
        "WAGGLE_PROC": "/proc",
        "WAGGLE_SYS": "/sys",
        "WAGGLE_ROOT": "/",
    }


def _local(state: NodeState, environment: Mapping[str, str]) -> dict[str, str]:
    return env_file.layered(state.folder / settings.FILE, environment, settings.LOCAL)


def _registration(state: NodeState) -> Path:
    """The folder of what registration gave; before that, one of empty files, for Compose wants a file for a secret."""
    if state.registered and all((state.private / name).is_file() for name in _REGISTRATION):
        return state.private
    folder = files.make_folder(state.private / "unregistered")
    for name in _REGISTRATION:
        if not (folder / name).exists():
            files.write_text(folder / name, "", mode=0o600)
    return folder

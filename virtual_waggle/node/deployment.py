# SPDX-License-Identifier: Apache-2.0
"""What a node's services are run with: where its broker listens, and the variables of ``stacks/node/compose.yaml``.

Ports on loopback are chosen by the environment (PORTS); the same file runs as containers and as plain processes.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundwork import files
from groundwork.settings import whole_number
from virtual_waggle import env_file
from virtual_waggle.broker import Place
from virtual_waggle.env_file import Variable
from virtual_waggle.forms import Deployment
from virtual_waggle.node.state import NodeState

PROJECT = "virtual-waggle"  # its network is virtual-waggle_default
COMPOSE_FILE = Path(__file__).parents[1] / "stacks/node/compose.yaml"
IN_CONTAINER = "/run/secrets"

_PORT = whole_number(1, 65535)
PORTS = (
    Variable("WAGGLE_BROKER_PORT", "port of the node's broker, on loopback", _PORT, "5672"),
    Variable("WAGGLE_MANAGEMENT_PORT", "port of its management API, on loopback", _PORT, "15672"),
    Variable("WAGGLE_PLAYBACK_PORT", "port of the playback server, on loopback", _PORT, "8090"),
)
NATIVE_PORTS = (
    Variable("WAGGLE_PROMETHEUS_PORT", "port of the broker's metrics, on loopback", _PORT, "15692"),
    Variable("WAGGLE_RECORDER_PORT", "port of the recorder's metrics, on loopback", _PORT, "8081"),
    Variable("WAGGLE_EPMD_PORT", "port of Erlang's names, on loopback", _PORT, "14369"),
    Variable("WAGGLE_DISTRIBUTION_PORT", "port of Erlang's nodes, on loopback", _PORT, "25682"),
)
_REGISTRATION = ("known_hosts", "beehive-ca.pem", "node-cert.pem", "node-key.pem", "upload-key", "upload-key-cert.pub")
_ANYWHERE = "0.0.0.0"  # noqa: S104 - a container's network is the stack's own


def place(state: NodeState, *, native: bool, environment: Mapping[str, str] = os.environ) -> Place:
    """Where the broker listens and sees its files, for ``state.write_broker_files``."""
    if not native:
        return Place(IN_CONTAINER, _ANYWHERE, _ANYWHERE)
    ports = _ports(environment)
    return Place(
        secrets=str(state.private),
        address="127.0.0.1",
        management_address="127.0.0.1",
        port=ports["WAGGLE_BROKER_PORT"],
        management_port=ports["WAGGLE_MANAGEMENT_PORT"],
        prometheus_port=ports["WAGGLE_PROMETHEUS_PORT"],
    )


def deployment(state: NodeState, *, native: bool, environment: Mapping[str, str] = os.environ) -> Deployment:
    """The node's services, ready to be started; where it is not registered, without what is for the Beehive."""
    ports = _ports(environment)
    given = state.settings
    variables = {
        "WAGGLE_STATE_DIR": str(state.folder),
        "WAGGLE_USER": state.user,
        "WAGGLE_NODE_ID": given.node_id,
        "WAGGLE_NODE_VSN": given.vsn,
        "WAGGLE_NODE_HOST": given.host,
        "WAGGLE_BEEHIVE_HOST": given.beehive_host,
        "WAGGLE_BEEHIVE_UPLOAD_PORT": str(given.upload_port),
        "WAGGLE_REGISTRATION": str(_registration(state)),
        **{name: str(ports[name]) for name in ("WAGGLE_BROKER_PORT", "WAGGLE_MANAGEMENT_PORT", "WAGGLE_PLAYBACK_PORT")},
    }
    for name in ("WAGGLE_METRICS_INTERVAL", "WAGGLE_PLAYBACK_RATE", "WAGGLE_RETENTION"):
        if environment.get(name):
            variables[name] = environment[name]
    if native:
        variables.update(_native_variables(state, ports))
    profile = "beehive" if state.registered else "alone"
    return Deployment(PROJECT, COMPOSE_FILE, state.folder, variables, (profile,))


def _native_variables(state: NodeState, ports: Mapping[str, Any]) -> dict[str, str]:
    return {
        "WAGGLE_SECRETS": str(state.private),
        "WAGGLE_PYTHONPATH": str(Path(__file__).parents[2]),
        "WAGGLE_BROKER": f"127.0.0.1:{ports['WAGGLE_BROKER_PORT']}",
        "WAGGLE_BROKER_PORT_INSIDE": str(ports["WAGGLE_BROKER_PORT"]),
        "WAGGLE_EPMD_PORT": str(ports["WAGGLE_EPMD_PORT"]),
        "WAGGLE_DISTRIBUTION_PORT": str(ports["WAGGLE_DISTRIBUTION_PORT"]),
        "WAGGLE_PLAYBACK": f"127.0.0.1:{ports['WAGGLE_PLAYBACK_PORT']}",
        "WAGGLE_RECORDER_LISTEN": f"127.0.0.1:{ports['WAGGLE_RECORDER_PORT']}",
        "WAGGLE_PROC": "/proc",
        "WAGGLE_SYS": "/sys",
        "WAGGLE_ROOT": "/",
    }


def _ports(environment: Mapping[str, str]) -> dict[str, Any]:
    return env_file.from_environment(environment, (*PORTS, *NATIVE_PORTS))


def _registration(state: NodeState) -> Path:
    """The folder of what registration gave; before that, one of empty files, for Compose wants a file for a secret."""
    if state.registered and all((state.private / name).is_file() for name in _REGISTRATION):
        return state.private
    folder = files.make_folder(state.private / "unregistered")
    for name in _REGISTRATION:
        if not (folder / name).exists():
            files.write_text(folder / name, "", mode=0o600)
    return folder

# SPDX-License-Identifier: Apache-2.0
"""What a Beehive's services are run with: where its broker listens, the variables of ``stacks/beehive/compose.yaml``.

Ports for nodes and readers are settings of the Beehive; those on loopback are chosen by the environment (PORTS).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundwork import files
from groundwork.settings import whole_number
from virtual_waggle import env_file, state_folder
from virtual_waggle.beehive import settings
from virtual_waggle.beehive.settings import Settings
from virtual_waggle.beehive.state import State
from virtual_waggle.broker import Place
from virtual_waggle.env_file import Variable
from virtual_waggle.forms import Deployment

PROJECT = "beehive"
COMPOSE_FILE = Path(__file__).parents[1] / "stacks/beehive/compose.yaml"
IN_CONTAINER = "/run/secrets"

_PORT = whole_number(1, 65535)
PORTS = (Variable("BEEHIVE_MANAGEMENT_PORT", "port of the broker's management API, on loopback", _PORT, "15673"),)
NATIVE_PORTS = (
    Variable("BEEHIVE_PROMETHEUS_PORT", "port of the broker's metrics, on loopback", _PORT, "15693"),
    Variable("BEEHIVE_LOADER_PORT", "port of the loader's metrics, on loopback", _PORT, "8082"),
    Variable("BEEHIVE_EPMD_PORT", "port of Erlang's names, on loopback", _PORT, "14370"),
    Variable("BEEHIVE_DISTRIBUTION_PORT", "port of Erlang's nodes, on loopback", _PORT, "25683"),
    Variable("BEEHIVE_ADDRESS", "address that services listen at for nodes and readers", str, "0.0.0.0"),  # noqa: S104
)
_ANYWHERE = "0.0.0.0"  # noqa: S104 - a container's network is the stack's own


def place(state: State, known: Settings, *, native: bool, environment: Mapping[str, str] = os.environ) -> Place:
    """Where the broker listens and sees its files, for ``state.deploy``."""
    if not native:
        return Place(IN_CONTAINER, _ANYWHERE, _ANYWHERE, port=5671)
    ports = _ports(environment)
    return Place(
        secrets=str(state.private),
        address=ports["BEEHIVE_ADDRESS"],
        management_address="127.0.0.1",
        port=known.port,
        management_port=ports["BEEHIVE_MANAGEMENT_PORT"],
        prometheus_port=ports["BEEHIVE_PROMETHEUS_PORT"],
    )


def deployment(state: State, *, native: bool, environment: Mapping[str, str] = os.environ) -> Deployment:
    """The Beehive's services, ready to be started."""
    ports = _ports(environment)
    texts = env_file.texts(state.settings_file)
    user, group = state_folder.owner(state.folder)
    variables = {
        **{name: text for name, text in texts.items() if text},
        "BEEHIVE_STATE_DIR": str(state.folder),
        "BEEHIVE_USER": f"{user}:{group}",
        "BEEHIVE_STORE_PASSWORD": str(_store_password(state)),
        "BEEHIVE_MANAGEMENT_PORT": str(ports["BEEHIVE_MANAGEMENT_PORT"]),
    }
    known = settings.read(state.settings_file)
    variables["BEEHIVE_API_URL"] = known.api_url
    if native:
        variables.update(_native_variables(state, known, ports))
    return Deployment(PROJECT, COMPOSE_FILE, state.folder, variables)


def _native_variables(state: State, known: Settings, ports: Mapping[str, Any]) -> dict[str, str]:
    address = ports["BEEHIVE_ADDRESS"]
    return {
        "WAGGLE_SECRETS": str(state.private),
        "WAGGLE_PYTHONPATH": str(Path(__file__).parents[2]),
        "BEEHIVE_BROKER": f"localhost:{known.port}",
        "BEEHIVE_BROKER_PORT_INSIDE": str(known.port),
        "BEEHIVE_MANAGEMENT": f"http://127.0.0.1:{ports['BEEHIVE_MANAGEMENT_PORT']}",
        "BEEHIVE_EPMD_PORT": str(ports["BEEHIVE_EPMD_PORT"]),
        "BEEHIVE_DISTRIBUTION_PORT": str(ports["BEEHIVE_DISTRIBUTION_PORT"]),
        "BEEHIVE_REGISTRATION_LISTEN": f"{address}:{known.registration_port}",
        "BEEHIVE_UPLOAD_LISTEN": f"{address}:{known.upload_port}",
        "BEEHIVE_API_LISTEN": f"{address}:{known.api_port}",
        "BEEHIVE_LOADER_LISTEN": f"127.0.0.1:{ports['BEEHIVE_LOADER_PORT']}",
    }


def _ports(environment: Mapping[str, str]) -> dict[str, Any]:
    return env_file.from_environment(environment, (*PORTS, *NATIVE_PORTS))


def _store_password(state: State) -> Path:
    """The file of PostgreSQL's password; an empty one where there is none, for Compose wants a file for a secret."""
    path = state.private / "store-password"
    if path.is_file():
        return path
    empty = state.private / "absent" / path.name
    if not empty.exists():
        files.write_text(empty, "", mode=0o600)
    return empty

# SPDX-License-Identifier: Apache-2.0
"""What a Beehive's services are run with: where its broker listens, the variables of ``stacks/beehive/compose.yaml``.

Ports for nodes and readers are settings of the Beehive, and so are those on loopback (settings.LOCAL).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from groundwork import files
from virtual_waggle import env_file, state_folder
from virtual_waggle.beehive import settings
from virtual_waggle.beehive.settings import Settings
from virtual_waggle.beehive.state import State
from virtual_waggle.broker import Place
from virtual_waggle.forms import Deployment

PROJECT = "beehive"
COMPOSE_FILE = Path(__file__).parents[1] / "stacks/beehive/compose.yaml"
IN_CONTAINER = "/run/secrets"

_ANYWHERE = "0.0.0.0"  # noqa: S104 - a container's network is the stack's own


def place(state: State, known: Settings, *, native: bool, environment: Mapping[str, str] = os.environ) -> Place:
    """Where the broker listens and sees its files, for ``state.deploy``."""
    if not native:
        return Place(IN_CONTAINER, _ANYWHERE, _ANYWHERE, port=5671)
    local = _local(state, environment)
    return Place(
        secrets=str(state.private),
        address=local["BEEHIVE_ADDRESS"],
        management_address="127.0.0.1",
        port=known.port,
        management_port=int(local["BEEHIVE_MANAGEMENT_PORT"]),
        prometheus_port=int(local["BEEHIVE_PROMETHEUS_PORT"]),
    )


def deployment(state: State, *, native: bool, environment: Mapping[str, str] = os.environ) -> Deployment:
    """The Beehive's services, ready to be started."""
    local = _local(state, environment)
    texts = env_file.texts(state.settings_file)
    user, group = state_folder.owner(state.folder)
    variables = {
        **{name: text for name, text in texts.items() if text},
        "BEEHIVE_STATE_DIR": str(state.folder),
        "BEEHIVE_USER": f"{user}:{group}",
        "BEEHIVE_STORE_PASSWORD": str(_store_password(state)),
        "BEEHIVE_MANAGEMENT_PORT": local["BEEHIVE_MANAGEMENT_PORT"],
    }
    known = settings.read(state.settings_file)
    variables["BEEHIVE_API_URL"] = known.api_url
    if native:
        variables.update(_native_variables(state, known, local))
    return Deployment(PROJECT, COMPOSE_FILE, state.folder, variables)


def addresses(state: State) -> dict[str, str]:
    """Where readers and nodes reach it."""
    known = settings.read(state.settings_file)
    ports = {"broker": known.port, "registration": known.registration_port, "uploads": known.upload_port}
    return {"data API": known.api_url, **{name: f"{known.host}:{port}" for name, port in ports.items()}}


def _native_variables(state: State, known: Settings, local: Mapping[str, str]) -> dict[str, str]:
    address = local["BEEHIVE_ADDRESS"]
    return {
        "WAGGLE_SECRETS": str(state.private),
        "WAGGLE_PYTHONPATH": str(Path(__file__).parents[2]),
        "BEEHIVE_BROKER": f"localhost:{known.port}",
        "BEEHIVE_BROKER_PORT_INSIDE": str(known.port),
        "BEEHIVE_MANAGEMENT": f"http://127.0.0.1:{local['BEEHIVE_MANAGEMENT_PORT']}",
        "BEEHIVE_EPMD_PORT": local["BEEHIVE_EPMD_PORT"],
        "BEEHIVE_DISTRIBUTION_PORT": local["BEEHIVE_DISTRIBUTION_PORT"],
        "BEEHIVE_REGISTRATION_LISTEN": f"{address}:{known.registration_port}",
        "BEEHIVE_UPLOAD_LISTEN": f"{address}:{known.upload_port}",
        "BEEHIVE_API_LISTEN": f"{address}:{known.api_port}",
        "BEEHIVE_LOADER_LISTEN": f"127.0.0.1:{local['BEEHIVE_LOADER_PORT']}",
    }


def _local(state: State, environment: Mapping[str, str]) -> dict[str, str]:
    return env_file.layered(state.settings_file, environment, settings.LOCAL)


def _store_password(state: State) -> Path:
    """The file of PostgreSQL's password; an empty one where there is none, for Compose wants a file for a secret."""
    path = state.private / "store-password"
    if path.is_file():
        return path
    empty = state.private / "absent" / path.name
    if not empty.exists():
        files.write_text(empty, "", mode=0o600)
    return empty

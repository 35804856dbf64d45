# SPDX-License-Identifier: Apache-2.0
"""What a Beehive's services are run with: where its broker listens, the variables of ``stacks/beehive/compose.yaml``.

Ports for nodes and readers are settings of the Beehive, and so are those on loopback (settings.LOCAL).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from groundwork import files
from groundwork.errors import InputError, unknown
from virtual_waggle import env_file, state_folder
from virtual_waggle.beehive import settings
from virtual_waggle.beehive.settings import Settings
from virtual_waggle.beehive.state import State
from virtual_waggle.broker import Place, name_in_cluster
from virtual_waggle.forms import Deployment

if TYPE_CHECKING:
    from virtual_waggle.beehive.cluster import Cluster
    from virtual_waggle.broker_client import Management

PROJECT = "beehive"
COMPOSE_FILE = Path(__file__).parents[1] / "stacks/beehive/compose.yaml"
IN_CONTAINER = "/run/secrets"

_ANYWHERE = "0.0.0.0"  # noqa: S104 - a container's network is the stack's own


def place(state: State, known: Settings, *, native: bool, environment: Mapping[str, str] = os.environ) -> Place:
    """Where the broker listens and sees its files, for ``state.deploy``."""
    if not native:
        if known.cluster:
            raise InputError("BEEHIVE_CLUSTER: a cluster's services run without containers", hint="add --native")
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
        **{name: local[name] for name in ("BEEHIVE_MANAGEMENT_PORT", "BEEHIVE_HEALTH_INTERVAL") if local[name]},
    }
    known = settings.read(state.settings_file)
    if known.cluster:
        variables["BEEHIVE_API_URL"] = known.api_url  # the first machine's, for there the files are
    if native:
        variables.update(_native_variables(state, known, local))
    return Deployment(PROJECT, COMPOSE_FILE, state.folder, variables, ("nodes",) if known.is_first else ())


def addresses(state: State) -> dict[str, str]:
    """Where readers and nodes reach it."""
    known = settings.read(state.settings_file)
    ports = {"broker": known.port, "registration": known.registration_port, "uploads": known.upload_port}
    return {"data API": known.api_url, **{name: f"{known.host}:{port}" for name, port in ports.items()}}


def management(state: State, environment: Mapping[str, str] = os.environ) -> "Management":
    """The management API of this machine's broker."""
    from virtual_waggle.broker_client import Management  # and pika

    port = _local(state, environment)["BEEHIVE_MANAGEMENT_PORT"]
    password = (state.private / "admin-password").read_text(encoding="utf-8")
    return Management(f"http://127.0.0.1:{port}", password)


def join_cluster(state: State, environment: Mapping[str, str] = os.environ) -> "Cluster":
    """After a start: have a copy of the loaders' queue on this machine too.  Raises SageError."""
    from virtual_waggle.beehive import cluster

    known = settings.read(state.settings_file)
    own = name_in_cluster(known.member)
    variables = _of_commands(state, known, environment)
    return cluster.join(management(state, environment), own, variables, first=known.is_first)


def forget_machine(state: State, machine: str, environment: Mapping[str, str] = os.environ) -> None:
    """Take a lost machine's broker out of the cluster: a new machine can join under its name then.

    Raises InputError for what is no other machine of the cluster, SageError where its broker runs.
    """
    from virtual_waggle.beehive import cluster

    known = settings.read(state.settings_file)
    others = [one for one in known.cluster if one != known.member]
    if machine not in others:
        raise unknown("other machine of the cluster", machine, others)
    variables = _of_commands(state, known, environment)
    cluster.forget(name_in_cluster(known.member), name_in_cluster(machine), variables)


def _of_commands(state: State, known: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """What RabbitMQ's commands need to reach this machine's broker."""
    return {
        "HOME": str(state.folder / "rabbitmq"),  # where the cookie lies
        "ERL_EPMD_PORT": _local(state, environment)["BEEHIVE_EPMD_PORT"],
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_USE_LONGNAME": _long_names(known),
        "LANG": "C.UTF-8",
    }


def _long_names(known: Settings) -> str:
    """What RABBITMQ_USE_LONGNAME has to be: Erlang is to be told of names with a dot in them, and of addresses."""
    return str("." in known.member).lower()


def _broker_variables(known: Settings, local: Mapping[str, str]) -> dict[str, str]:
    """How a cluster's broker is named, and where the others reach its Erlang."""
    address = local["BEEHIVE_ADDRESS"]
    everywhere = address in (_ANYWHERE, "::")
    return {
        "BEEHIVE_BROKER_NAME": name_in_cluster(known.member),
        "BEEHIVE_LONG_NAMES": _long_names(known),
        "BEEHIVE_EPMD_ADDRESS": "" if everywhere else address,
        "BEEHIVE_DISTRIBUTION_ADDRESS": "0,0,0,0" if everywhere else address.replace(".", ","),
    }


def _native_variables(state: State, known: Settings, local: Mapping[str, str]) -> dict[str, str]:
    address = local["BEEHIVE_ADDRESS"]
    others = [machine for machine in known.cluster if machine != known.member]
    return {
        **(_broker_variables(known, local) if known.cluster else {}),
        "WAGGLE_SECRETS": str(state.private),
        "WAGGLE_PYTHONPATH": str(Path(__file__).parents[2]),
        "BEEHIVE_BROKER": ",".join(f"{host}:{known.port}" for host in ("localhost", *others)),
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

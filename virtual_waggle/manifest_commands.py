# SPDX-License-Identifier: Apache-2.0
"""``virtual-waggle manifests``: a stack's Compose file, or anyone's, as Kubernetes manifests.

What of the file can't be carried over is told with its line and the reason; that is no failure.
"""

import os
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundwork.errors import InputError

if TYPE_CHECKING:
    from virtual_waggle.compose_model import Stack
    from virtual_waggle.kubernetes import Manifests
    from virtual_waggle.kubernetes_objects import Loss

    # A stack, the profiles that are on in it, and folders whose contents go along.
    _Found = tuple[Stack, Sequence[str], Sequence[Path]]

OUR_IMAGE = "sage/waggle"  # has what waiting for other services takes
# What lies at another place in a pod than in a container with the host's folders.
_OF_A_POD = {"WAGGLE_PROC": "/proc", "WAGGLE_SYS": "/sys", "WAGGLE_ROOT": "/"}
_SECRET = "Secret"  # noqa: S105 - a kind of object
# In the order in which `kubectl apply --filename DIR` takes them.
_FILES = {
    "Namespace": "10-namespace.yaml",
    "ConfigMap": "20-configmaps.yaml",
    _SECRET: "30-secrets.yaml",
    "PersistentVolumeClaim": "40-volumes.yaml",
    "Service": "50-services.yaml",
    "NetworkPolicy": "60-networkpolicies.yaml",
}
_WORKLOADS = "70-workloads.yaml"


def add(commands: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the command to the parser."""
    text = "Kubernetes manifests of the node's services, the Beehive's, or any Compose file's"
    made = commands.add_parser("manifests", help=text, description=text)
    made.set_defaults(act=manifests)
    what = made.add_mutually_exclusive_group()
    what.add_argument("--node", action="store_true", help="of the node (the default)")
    what.add_argument("--beehive", action="store_true", help="of the Beehive")
    what.add_argument("file", nargs="?", type=Path, metavar="FILE", help="of this Compose file")
    made.add_argument("--state-dir", metavar="DIR", help="of the node or Beehive, whose settings and keys are taken")
    made.add_argument("--output", default="-", metavar="DIR", help="folder to write to (default: -, standard output)")
    made.add_argument("--namespace", default="", metavar="NAME", help="to make and to put all into")
    made.add_argument("--profile", action="append", default=[], metavar="NAME", help="services of it too; * is all")
    made.add_argument("--storage", metavar="SIZE", help="that each claim asks for (default: 1Gi)")
    made.add_argument(
        "--wait-image", metavar="IMAGE", help="for waiting for other services; needs a shell, and getent or nslookup"
    )
    made.add_argument(
        "--one-machine",
        action="store_true",
        help="all pods on one machine: its own storage will do for what they share",
    )
    made.add_argument("--secrets", action="store_true", help="also where they go to standard output")
    made.add_argument("--json", action="store_true", help="what was made and what is lost, as JSON; needs --output")


def manifests(given: Namespace) -> int:
    """Write the manifests; tell what is lost."""
    import re

    from groundwork import console
    from virtual_waggle import kubernetes, kubernetes_text

    to_folder = given.output != "-"
    if given.json and not to_folder:
        raise InputError("--json and the manifests both go to standard output", hint="give --output DIR")
    if given.namespace and not kubernetes_text.is_hostname(given.namespace):
        raise InputError(f"--namespace: {given.namespace!r} is no name of a namespace", hint="a-z, 0-9 and -")
    storage = given.storage or kubernetes.STORAGE
    if not re.fullmatch(r"[1-9][0-9]{0,5}(Ki|Mi|Gi|Ti|k|M|G|T)?", storage):
        raise InputError(f"--storage: expected a size as 10Gi, found {storage!r}")
    stack, profiles, carried = _stack(given)
    for name in stack.unset:
        console.warn(f"the variable {name} is not set; an empty text stands for it")
    made = kubernetes.convert(
        stack,
        namespace=given.namespace,
        profiles=[*profiles, *given.profile],
        storage=storage,
        wait_image=given.wait_image or (kubernetes.WAIT_IMAGE if given.file else OUR_IMAGE),
        carried=carried,
        one_machine=given.one_machine,
    )
    if to_folder:
        written = write(made, Path(given.output))
        _tell(made.losses)
        console.result_json(_as_data(made, written))
        console.result(f"{len(made.documents)} objects in {given.output}: kubectl apply --filename {given.output}")
        return 0
    shown = [one for one in made.documents if given.secrets or one["kind"] != _SECRET]
    _tell(made.losses)
    hidden = [one["metadata"]["name"] for one in made.documents if one["kind"] == _SECRET and not given.secrets]
    if hidden:
        console.warn(
            f"left out: the Secrets {', '.join(hidden)}", hint="--secrets shows them, --output DIR writes them"
        )
    sys.stdout.write(kubernetes_text.to_yaml(shown))
    sys.stdout.flush()
    return 0


def write(made: "Manifests", folder: Path) -> list[Path]:
    """A file a kind of object; those that an earlier call wrote and that are not needed any more are gone."""
    from groundwork import files
    from virtual_waggle import kubernetes_text

    by_file: dict[str, list[Mapping[str, Any]]] = {}
    for document in made.documents:
        by_file.setdefault(_FILES.get(document["kind"], _WORKLOADS), []).append(document)
    files.make_folder(folder)
    written = []
    for name in sorted({*_FILES.values(), _WORKLOADS}):
        path = folder / name
        if name in by_file:
            mode = 0o600 if name == _FILES[_SECRET] else 0o644
            files.write_text(path, kubernetes_text.to_yaml(by_file[name]), mode=mode)
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written


def _stack(given: Namespace) -> "_Found":
    """The stack that is asked for."""
    from virtual_waggle import compose

    if given.file:
        return compose.load(given.file, compose.with_dotenv(given.file, os.environ)), (), ()
    return _beehive(given.state_dir) if given.beehive else _node(given.state_dir)


def _node(named: str | None) -> "_Found":
    from virtual_waggle import broker, broker_client, compose
    from virtual_waggle.node import deployment, settings, state

    folder = state.choose_folder(named)
    if not (folder / settings.FILE).exists():
        _no_state(named, folder, settings.FILE)
        return compose.load(deployment.COMPOSE_FILE, _OF_A_POD, name=deployment.PROJECT), ("alone",), ()
    node = state.read(folder)
    ready = deployment.deployment(node, native=False)
    found = compose.load(ready.compose_file, {**ready.variables, **_OF_A_POD}, name=ready.name)
    place = deployment.place(node, native=False)
    passwords = {name: broker_client.read_secret(node.private / file) for name, file in broker.NODE_USERS.items()}
    texts = {
        "rabbitmq.conf": broker.node_configuration(place),
        "enabled_plugins": broker.enabled_plugins(beehive=False),
        "definitions.json": broker.node_definitions(passwords, place, state.to_beehive(node)),
    }
    return _with_secrets(found, texts), ready.profiles, (node.apps,)


def _beehive(named: str | None) -> "_Found":
    from virtual_waggle import broker, compose
    from virtual_waggle.beehive import deployment, settings, state

    chosen = state.chosen(named)
    if not chosen.settings_file.exists():
        _no_state(named, chosen.folder, settings.FILE)
        return compose.load(deployment.COMPOSE_FILE, {}, name=deployment.PROJECT), ("nodes",), ()
    ready = deployment.deployment(chosen, native=False)
    found = compose.load(ready.compose_file, ready.variables, name=ready.name)
    place = deployment.place(chosen, settings.read(chosen.settings_file), native=False)
    return _with_secrets(found, {"rabbitmq.conf": broker.beehive_configuration(place)}), ready.profiles, ()


def _no_state(named: str | None, folder: Path, file: str) -> None:
    """Without a state folder there are still manifests, of which all secrets are told to be missing."""
    if named:
        raise InputError(f"there is no {file} in {folder}", hint="name the folder of one that was set up")


def _with_secrets(stack: "Stack", texts: Mapping[str, str]) -> "Stack":
    """The broker's files as containers see them, whatever form was started last."""
    secrets = dict(stack.secrets)
    for name, text in texts.items():
        secrets[name] = replace(secrets[name], content=text.encode())
    return replace(stack, secrets=secrets)


def _tell(losses: "Sequence[Loss]") -> None:
    from groundwork import console

    if losses:
        console.say(f"not carried over, or not as it was ({len(losses)}):")
    for loss in losses:
        console.say(f"  {loss.place}: {loss.name}: {loss.why}")


def _as_data(made: "Manifests", written: Sequence[Path]) -> dict[str, Any]:
    return {
        "files": [str(path) for path in written],
        "objects": [{"kind": one["kind"], "name": one["metadata"]["name"]} for one in made.documents],
        "losses": [
            {"file": str(loss.place.path), "line": loss.place.line, "key": loss.name, "why": loss.why}
            for loss in made.losses
        ],
    }

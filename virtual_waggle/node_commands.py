# SPDX-License-Identifier: Apache-2.0
"""The commands of virtual-waggle, but for its images: flags in, results out; the work is done in ``node/``.

What a command does not need is not imported: the machines that run it may be slow.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from groundwork.errors import InputError
from virtual_waggle import forms

if TYPE_CHECKING:
    from virtual_waggle.forms import Deployment, Row
    from virtual_waggle.node.state import NodeState
    from virtual_waggle.stack import Form

_REGISTER = 30.0  # seconds to try to reach the Beehive
_UNSETTLED = "unsettled"  # in the state folder: registration gave what services may not have taken yet
_TROUBLED = 1  # exit code of status and report where something is not as it should be


def add(commands: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the commands to the parser; each sets ``act`` to what does it."""

    def command(name: str, act: Callable[[Namespace], int], text: str, *, state: bool = True) -> ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        if state:
            made.add_argument("--state-dir", metavar="DIR", help="the node's folder (default: $WAGGLE_STATE_DIR)")
        made.add_argument("--json", action="store_true", help="the result as JSON")
        return made

    made = command("up", up, "start the node's services, and make what they need")
    made.add_argument("--native", action="store_true", help="as plain processes instead of containers")
    command("renew", renew, "register a node that runs, or renew that, where it is due; for a timer")
    command("down", down, "stop the node's services and its plugins' containers; its data stay")
    command("status", status, "how each service does; exit code 1 where one does not do well")

    made = command("run", run, "run a plugin until it ends; its exit code is that of this command")
    made.add_argument(
        "plugin", metavar="IMAGE", help="an image's name, a file of `docker save`; with --native a folder or script"
    )
    made.add_argument("--native", action="store_true", help="as a plain process instead of a container")
    made.add_argument("--python", metavar="FILE", help="with --native: the Python that runs it (default: its .venv's)")
    made.add_argument("--job", default="virtual-waggle", help="the job that its data name (default: %(default)s)")
    made.add_argument("--name", help="what its data call it (default: the image's name)")
    made.add_argument(
        "--docker", action="append", default=[], metavar="OPTION", help="of docker run, as --docker=--gpus=all"
    )
    made.epilog = "What stands after -- goes to the plugin: virtual-waggle run sky:1.0 -- --interval 5"

    made = command("build", build, "build a plugin's image, by its sage.yaml and Dockerfile", state=False)
    made.add_argument("folder", metavar="DIR", type=Path)
    made.add_argument("--platform", metavar="OS/ARCH", help="as linux/arm64 (default: this machine's)")
    made.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="for the Dockerfile's ARG")
    made.add_argument("--tag", metavar="NAME:TAG", help="the image's name (default: name:version of sage.yaml)")

    made = command(
        "newplugin", newplugin, "make a folder with a plugin that builds and publishes as it stands", state=False
    )
    made.add_argument("name", metavar="NAME")
    made.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where (default: here)")

    made = command("logs", logs, "what the services said")
    made.add_argument("service", nargs="*", metavar="SERVICE")
    made.add_argument("--follow", "-f", action="store_true", help="go on with what they say from now on")
    made.add_argument("--lines", type=int, default=100, metavar="N", help="of each (default: %(default)s)")

    command("report", report, "queues, rates, last measurements, what is wrong; exit code 1 where something is")

    made = command("upload", upload, "hand a file to the uploader, as a plugin does")
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument("--meta", action="append", default=[], metavar="KEY=VALUE", help="to go with it")

    made = command("data", data, "the node's own measurements, where there is no Beehive")
    made.add_argument("--name", metavar="PATTERN", help="of the measurement, as env.* or a|b")
    made.add_argument("--filter", action="append", default=[], metavar="KEY=PATTERN", help="of the meta, as task=sky")
    made.add_argument("--start", default="-1h", metavar="TIME", help="RFC 3339, or before now (default: %(default)s)")
    made.add_argument("--end", metavar="TIME", help="likewise (default: now)")
    made.add_argument("--head", type=int, metavar="N", help="the first of each series")
    made.add_argument("--tail", type=int, metavar="N", help="the last of each series")


# ----------------------------------------------------------------------------------------------------------- services


def up(given: Namespace) -> int:
    """Make the node's state, register it where it has a Beehive, start the services, tell what runs where."""
    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.node import apps, deployment, metrics, state

    node = state.make_ready(state.choose_folder(given.state_dir))
    form = stack.Form.NATIVE if given.native else stack.Form.DOCKER
    stack.choose(node.folder, form, _making(node))
    apps.add(node.apps, metrics.APP_ID, apps.App("virtual-waggle", "system", "node-metrics"))
    if _is_due(node):
        _register(node)
    rows = _start(node, form)
    addresses = {name: f"{host}:{port}" for name, (host, port) in deployment.addresses(node).items()}
    data = {
        "node": node.settings.node_id,
        "vsn": node.settings.vsn,
        "state_dir": str(node.folder),
        "form": str(form),
        "beehive": node.settings.beehive_host,
        "registered": node.registered,
        "addresses": addresses,
        "services": forms.as_data(rows),
    }
    console.result_json(data)
    forms.print_table(rows)
    console.result(f"node {node.settings.node_id} ({node.settings.vsn}) is up; its folder is {node.folder}")
    for name, place in addresses.items():
        console.result(f"  {name:10} {place}")
    if not node.settings.beehive_host:
        console.result(
            "no Beehive: data stay here (virtual-waggle data); WAGGLE_BEEHIVE_HOST in waggle-node.env names one"
        )
    return 0


def renew(given: Namespace) -> int:
    """Register a node that runs, or renew that, where it is due; services take what came as by `up`.

    A node that is stopped stays so.  Exit code 1 where the node could not be registered.
    """
    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.node import state

    node = state.read(state.choose_folder(given.state_dir))

    def runs() -> bool:
        return any(row.state == "running" for row in stack.status(node.folder, _making(node)))

    renewed = False
    if not _is_due(node):
        told = "nothing is due"
    elif not runs():
        told = "the node is stopped: `virtual-waggle up` registers it"
    else:
        renewed = _register(node)
        told = f"registered at {node.settings.beehive_host}" if renewed else "not registered"
        if renewed and runs():  # `down` may have come in between
            _start(node, stack.form_of(node.folder))
    console.result_json({"node": node.settings.node_id, "registered": node.registered, "renewed": renewed})
    console.result(told)
    return _TROUBLED if told == "not registered" else 0


def down(given: Namespace) -> int:
    """Stop plugins that are containers, then services."""
    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.node import plugins, state

    node = state.read(state.choose_folder(given.state_dir))
    if stack.form_of(node.folder) == stack.Form.DOCKER:
        for name in plugins.containers(node):
            with console.stage(f"stopping {name}", brief=True):
                plugins.stop_container(name)
    stack.down(node.folder, _making(node))
    rows = stack.status(node.folder, _making(node))
    console.result_json({"node": node.settings.node_id, "services": forms.as_data(rows)})
    console.result("the node's services are stopped; its data stay")
    return 0


def status(given: Namespace) -> int:
    """How each service does."""
    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.node import state

    node = state.read(state.choose_folder(given.state_dir))
    rows = stack.status(node.folder, _making(node))
    form = stack.form_of(node.folder)
    console.result_json({"node": node.settings.node_id, "form": str(form), "services": forms.as_data(rows)})
    forms.print_table(rows)
    return 0 if all(row.ready for row in rows) else _TROUBLED


def logs(given: Namespace) -> int:
    """What the services said, line by line."""
    import sys

    from virtual_waggle import stack
    from virtual_waggle.node import state

    node = state.read(state.choose_folder(given.state_dir))
    for line in stack.logs(node.folder, _making(node), given.service, follow=given.follow, lines=given.lines):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


def report(given: Namespace) -> int:
    """All that is to be known of the node."""
    import time

    from groundwork import console
    from virtual_waggle import stack
    from virtual_waggle.node import deployment, reporting, state

    node = state.read(state.choose_folder(given.state_dir))
    with console.stage("asking the node's parts", brief=True):
        rows = stack.status(node.folder, _making(node))
        made = reporting.gather(node, rows, deployment.addresses(node)["management"], time.time())
    console.result_json(reporting.as_data(made))
    reporting.show(made)
    return _TROUBLED if made.problems else 0


def _making(node: "NodeState") -> "Callable[[Form], Deployment]":
    from virtual_waggle.node import deployment

    return lambda form: deployment.deployment(node, native=form == "native")


def _is_due(node: "NodeState") -> bool:
    """Whether the node has a Beehive where it is to register, or services that may not have taken what it gave."""
    from datetime import datetime, timezone

    if not node.settings.beehive_host:
        return False
    if not node.registered or (node.folder / _UNSETTLED).exists():
        return True
    from virtual_waggle.node import registering  # and asyncssh

    return not registering.is_registered(node.private, node.settings.node_id, datetime.now(timezone.utc))


def _register(node: "NodeState") -> bool:
    """Register the node; whether it is.  Where it can't be that is no failure: data wait on the node."""
    from groundwork import console, files
    from groundwork.errors import SageError
    from virtual_waggle.node import registering

    known = node.settings
    with console.stage(f"registering at {known.beehive_host}") as stage:
        try:
            beehive = registering.Beehive(known.beehive_host, known.registration_port)
            files.write_text(node.folder / _UNSETTLED, "")
            stage.note = f"until {registering.register(node.private, known.node_id, beehive, deadline=_REGISTER)}"
        except SageError as error:
            hint = f"{error.hint}; " if error.hint else ""
            console.warn(f"not registered: {error}", hint=f"{hint}data wait here; `virtual-waggle renew` tries again")
            return False
    return True


def _start(node: "NodeState", form: "Form") -> "list[Row]":
    """Start the services, with what the node has now."""
    from virtual_waggle import stack
    from virtual_waggle.node import deployment, state

    state.write_broker_files(node, deployment.place(node, native=form == stack.Form.NATIVE))
    rows = stack.up(node.folder, _making(node))
    if not node.registered:
        deployment.end_shovel(node)
    (node.folder / _UNSETTLED).unlink(missing_ok=True)
    return rows


# ------------------------------------------------------------------------------------------------------------ plugins


def run(given: Namespace) -> int:
    """Run a plugin; Ctrl-C stops it."""
    from groundwork import process
    from virtual_waggle import stack
    from virtual_waggle.node import deployment, plugin_images, plugins, state

    node = state.read(state.choose_folder(given.state_dir))
    if given.native:
        plugins.find_script(Path(given.plugin))
        deployment.wait_for_broker(node)
        deployment.sweep_apps(node)
        return plugins.run_native(
            node,
            Path(given.plugin),
            given.words,
            address=deployment.addresses(node)["broker"],
            playback=deployment.addresses(node)["playback"],
            job=given.job,
            python=Path(given.python) if given.python else None,
            name=given.name,
        )
    process.require("docker")
    if stack.form_of(node.folder) == stack.Form.NATIVE:
        raise InputError(
            "the node runs as plain processes, which no container reaches",
            hint="run the plugin so too: --native; or `virtual-waggle down`, then `up`",
        )
    image = plugin_images.obtain(given.plugin)
    deployment.wait_for_broker(node)
    deployment.sweep_apps(node)
    return plugins.run_container(
        node,
        image,
        given.words,
        name=given.name or image,
        network=deployment.NETWORK,
        address=deployment.BROKER_IN_NETWORK,
        playback=deployment.PLAYBACK_IN_NETWORK,
        job=given.job,
        options=given.docker,
    )


def build(given: Namespace) -> int:
    """Build a plugin's image."""
    from groundwork import console, process
    from virtual_waggle.node import plugin_images, sage_yaml

    sage_yaml.load(given.folder)
    process.require("docker")
    image = plugin_images.build(given.folder, platform=given.platform, build_args=given.build_arg, tag=given.tag)
    console.result_json({"image": image})
    console.result(f"built {image}; run it: virtual-waggle run {image}")
    return 0


def newplugin(given: Namespace) -> int:
    """Make a plugin's folder."""
    from groundwork import console
    from virtual_waggle.node import new_plugin

    made = new_plugin.make(given.name, given.folder)
    folder = given.folder / given.name
    console.result_json({"folder": str(folder), "files": [path.name for path in made]})
    for path in made:
        console.result(f"{path}")
    console.result(f"build it: virtual-waggle build {folder}; or run it as it is: virtual-waggle run --native {folder}")
    return 0


# --------------------------------------------------------------------------------------------------------------- data


def upload(given: Namespace) -> int:
    """Hand a file over, and publish that."""
    labels = _pairs("--meta", given.meta)
    if not given.file.is_file():
        raise InputError(f"there is no file {given.file}")

    from groundwork import console
    from virtual_waggle.node import deployment, plugins, state

    node = state.read(state.choose_folder(given.state_dir))
    deployment.wait_for_broker(node)
    deployment.sweep_apps(node)
    made = plugins.upload_file(node, given.file, labels, address=deployment.addresses(node)["broker"])
    console.result_json({"upload": str(made)})
    console.result(f"{given.file} waits for its upload as {made}")
    return 0


def data(given: Namespace) -> int:
    """Measurements, as a table or as the data API's lines of JSON."""
    import json
    import sys

    from groundwork import console
    from virtual_waggle.node import reporting, state

    patterns = _pairs("--filter", given.filter)
    if given.name:
        patterns["name"] = given.name
    node = state.read(state.choose_folder(given.state_dir))
    rows = reporting.query(node, start=given.start, end=given.end, head=given.head, tail=given.tail, patterns=patterns)
    if given.json:
        for row in rows:
            sys.stdout.write(json.dumps(row, separators=(",", ":")) + "\n")
        return 0
    count = 0
    for row in rows:
        count += 1
        meta = " ".join(f"{key}={value}" for key, value in sorted(row["meta"].items()) if key not in _SAME_IN_ALL)
        value = row["value"] if isinstance(row["value"], str) else json.dumps(row["value"])
        console.result(f"{row['timestamp']}  {row['name']}  {value}  {meta}")
    if not count:
        console.say("nothing was measured under that name in that time")
    return 0


_SAME_IN_ALL = ("node", "vsn", "host")


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"{flag}: expected KEY=VALUE, found {text!r}")
        found[key] = value
    return found

# SPDX-License-Identifier: Apache-2.0
"""Runs a plugin: as a container, or as a plain process.

Either way it is an app of its own: an id, a file in ``apps`` that tells what it is, a folder for its uploads, and the
environment that pywaggle reads.  Its password goes into that environment, for pywaggle takes it from nowhere else: by
a file of mode 0600 that is gone when the plugin starts, never in a command line.
"""

import contextlib
import errno
import logging
import os
import platform
import re
import secrets
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import virtual_waggle
from groundwork import console, files, process
from groundwork.errors import InputError
from groundwork.process import ProcessError
from virtual_waggle import broker, broker_client
from virtual_waggle.message import Unfit
from virtual_waggle.node import apps, data_config
from virtual_waggle.node.apps import App
from virtual_waggle.node.state import NodeState
from virtual_waggle.plugin import Plugin

logger = logging.getLogger(__name__)

LABEL = "org.sagecontinuum.app"  # on a plugin's container: its app id
FOLDER = "org.sagecontinuum.state"  # and its node's state folder, as on the services' containers
UPLOADS = "/run/waggle/uploads"
DATA_CONFIG = "/run/waggle/data-config.json"
SCRIPTS = ("main.py", "plugin.py")  # what of a folder is run, without a container
_PATIENCE = 10  # seconds that a plugin has after SIGTERM
_DOCKER = 120.0  # seconds for what Docker does at once
_LOGGING = ("--log-driver", "json-file", "--log-opt", "max-size=4m", "--log-opt", "max-file=2")
_ACL = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF


@dataclass(frozen=True)
class Opened:
    """A plugin that may publish: its app id, and its folder for uploads."""

    app_id: str
    uploads: Path


def password(state: NodeState) -> str:
    """The plugins' password at the node's broker."""
    return broker_client.read_secret(state.private / broker.NODE_USERS["plugin"])


@contextlib.contextmanager
def opened(state: NodeState, plugin: str, job: str, task: str) -> Iterator[Opened]:
    """Let a plugin publish under a new app id while the block runs; what comes late is taken for a while yet."""
    app_id = f"{task_name(task)}-{secrets.token_hex(8)}"
    apps.add(state.apps, app_id, App(plugin, job, task))
    try:
        yield Opened(app_id, make_upload_folder(state, app_id))
    finally:
        apps.close(state.apps, app_id)


def environment(app_id: str, secret: str, host: str, port: int, uploads: str) -> dict[str, str]:
    """What pywaggle reads."""
    return {
        "WAGGLE_PLUGIN_HOST": host,
        "WAGGLE_PLUGIN_PORT": str(port),
        "WAGGLE_PLUGIN_USERNAME": "plugin",
        "WAGGLE_PLUGIN_PASSWORD": secret,
        "WAGGLE_APP_ID": app_id,
        "WAGGLE_PLUGIN_UPLOAD_PATH": uploads,
    }


def make_upload_folder(state: NodeState, app_id: str) -> Path:
    """An app's folder for uploads, in which whoever the plugin runs as may write, and the uploader may delete.

    Plugins in containers are root or anyone; the uploader is the state folder's owner.  A default ACL gives it the
    rights to all that is made in there.  Others on the machine don't get into the folder above.
    """
    state.uploads.chmod(0o700)
    folder = files.make_folder(state.uploads / app_id)
    folder.chmod(0o777)
    owner = folder.stat().st_uid
    entries = [
        (0x01, 7, _NO_ID),  # who makes it
        (0x02, 7, owner),
        (0x04, 5, _NO_ID),  # its group
        (0x10, 7, _NO_ID),  # at most
        (0x20, 5, _NO_ID),  # others
    ]
    acl = struct.pack("<I", 2) + b"".join(_ACL.pack(*entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_default", acl)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise
        logger.warning("%s: no ACLs on this file system; uploads of plugins that are root may stay", folder)
    return folder


def task_name(name: str) -> str:
    """A plugin's name as the name of a task: ``registry/user/camera:1.0`` is ``camera``."""
    last = name.rpartition("/")[2].partition("@")[0].partition(":")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:40] or "plugin"


# ---------------------------------------------------------------------------------------------------------- container


def run_container(
    state: NodeState,
    image: str,
    words: Sequence[str],
    *,
    name: str,
    network: str,
    address: tuple[str, int],
    playback: tuple[str, int],
    job: str,
    options: Sequence[str] = (),
) -> int:
    """Run a plugin's image, which Docker has, and give its exit code.

    ``name`` is what the data call it; ``address`` and ``playback`` are the broker's and the cameras' in
    ``network``; ``options`` are more of Docker's own.
    """
    secret = password(state)
    _check_network(network)
    with opened(state, name, job, task_name(name)) as plugin:
        container = f"waggle-{plugin.app_id}"
        mounts = [
            f"type=bind,source={plugin.uploads},target={UPLOADS}",
            f"type=bind,source={data_config.make(state, *playback)},target={DATA_CONFIG},readonly",
        ]
        attached = None
        try:
            with environment_file(environment(plugin.app_id, secret, *address, UPLOADS)) as path:
                command: list[str | Path] = [
                    *("docker", "create", "--rm", "--pull", "never", "--name", container, "--network", network),
                    *("--label", f"{LABEL}={plugin.app_id}", "--label", f"{FOLDER}={state.folder}", "--init"),
                    *("--env-file", path, *_LOGGING),
                    *(word for mount in mounts for word in ("--mount", mount)),
                ]
                try:
                    process.run([*command, *options, image, *words], timeout=_DOCKER)
                except ProcessError as error:
                    hint = _docker_hint(error.output)
                    raise InputError(f"Docker does not start {image}: {error}", hint=hint) from None
            console.say(f"{name} runs as {plugin.app_id}; Ctrl-C stops it")
            attached = process.start(["docker", "start", "--attach", container])
            return attached.wait()
        finally:
            if attached is None or attached.poll() is None:
                stop_container(container)
            if attached is not None:
                process.stop(attached)


def _check_network(name: str) -> None:
    try:
        process.run(["docker", "network", "inspect", "--format", "{{.Id}}", name], timeout=_DOCKER)
    except ProcessError as error:
        if "no such network" in error.output.lower() or "not found" in error.output.lower():
            raise InputError(f"Docker has no network {name}", hint="start the node first: virtual-waggle up") from None
        raise InputError(f"Docker does not answer: {error}", hint=_docker_hint(error.output)) from None


@contextlib.contextmanager
def environment_file(values: dict[str, str]) -> Iterator[Path]:
    """A file of ``NAME=value`` that its owner alone can read; gone after the block."""
    descriptor, name = tempfile.mkstemp(prefix="waggle-", suffix=".env")
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.writelines(f"{key}={value}\n" for key, value in values.items())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def stop_container(name: str) -> None:
    """Stop a container: SIGTERM, SIGKILL 10 s later.  One that never started is taken away."""
    try:
        process.run(["docker", "stop", "--time", str(_PATIENCE), name], timeout=_PATIENCE + 60)
        process.run(["docker", "rm", "--force", name], timeout=_DOCKER)
    except ProcessError as error:
        said = error.output.lower()
        if "no such container" not in said and "already in progress" not in said:  # Docker removes what it stopped
            console.warn(f"{name} may still be there: {error}", hint=f"docker rm --force {name}")


def containers(state: NodeState) -> list[str]:
    """The names of containers of this node's plugins, of such as never started too: they have the password."""
    wanted = [f"--filter=label={FOLDER}={state.folder}", f"--filter=label={LABEL}"]
    words = ["docker", "ps", "--all", *wanted, "--format", "{{.Names}}"]
    return process.run(words, timeout=_DOCKER).split()


def _docker_hint(said: str) -> str | None:
    said = said.lower()
    if "permission denied" in said and "sock" in said:
        return "log in as cc, or use sudo"
    if "cannot connect" in said or "docker daemon" in said:
        return "sudo systemctl start docker; or run the plugin without Docker: --native"
    return None


# ------------------------------------------------------------------------------------------------------- plain process


def run_native(
    state: NodeState,
    path: Path,
    words: Sequence[str],
    *,
    address: tuple[str, int],
    playback: tuple[str, int],
    job: str,
    name: str | None = None,
    python: Path | None = None,
) -> int:
    """Run a plugin's script, or its folder's, as a process of this user, and give its exit code."""
    script = find_script(path)
    interpreter = python or _interpreter(script.parent)
    secret = password(state)
    name = name or f"{script.resolve().parent.name if script.name in SCRIPTS else script.stem}:native"
    with opened(state, name, job, task_name(name)) as plugin:
        values = environment(plugin.app_id, secret, *address, str(plugin.uploads))
        values["WAGGLE_DATA_CONFIG_PATH"] = str(data_config.make(state, *playback))
        if interpreter == Path(sys.executable):
            # for plugins that take the stand-in of pywaggle (virtual_waggle.plugin)
            ours = str(Path(virtual_waggle.__file__).parents[1])
            values["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), ours]))
        console.say(f"{name} runs as {plugin.app_id}; Ctrl-C stops it")
        child = process.start([interpreter, "-u", script.resolve(), *words], env=values, cwd=script.parent)
        try:
            return _exit_code(child)
        finally:
            process.stop(child, patience=_PATIENCE)


def upload_file(state: NodeState, path: Path, labels: Mapping[str, str], *, address: tuple[str, int]) -> Path:
    """Hand a copy of a file to the uploader and publish that, as a plugin would; where it lies now.

    Raises BrokerError where the broker did not take the message, InputError for labels that none can hold.
    """
    secret = password(state)
    with opened(state, "virtual-waggle:upload", "virtual-waggle", "upload") as app:
        given = environment(app.app_id, secret, *address, str(app.uploads))
        with Plugin(given) as plugin:
            try:
                made = plugin.upload_file(path, labels, keep=True)
            except Unfit as error:
                raise InputError(f"{path}: {error}") from None
        assert made is not None  # there is a folder for uploads
        return made


def find_script(path: Path) -> Path:
    """The script of a plugin's folder, or the one given itself.  Raises InputError."""
    if path.is_file():
        return path
    for name in SCRIPTS:
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise InputError(f"{path} has neither {' nor '.join(SCRIPTS)}", hint="name the script itself")
    raise InputError(f"there is no {path}")


def _interpreter(folder: Path) -> Path:
    own = folder / ".venv/bin/python"
    return own if own.exists() else Path(sys.executable)


def _exit_code(child: "subprocess.Popen[bytes]") -> int:
    code = child.wait()
    return code if code >= 0 else 128 - code


def machine() -> str:
    """This machine's architecture, by Docker's name for it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

# SPDX-License-Identifier: Apache-2.0
"""The services of a Compose file as containers, by ``docker compose`` (2) or ``docker-compose`` (1.29).

Images that lie on this machine are given to Docker first; no registry is asked for those.  How services do is asked of
Docker itself, which answers the same whichever Compose there is.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from groundwork import console, files, process
from groundwork.errors import InputError, SageError, unknown
from groundwork.process import ProcessError
from virtual_waggle import compose
from virtual_waggle.compose_model import MountKind, Service, Stack
from virtual_waggle.containers import load
from virtual_waggle.forms import Deployment, Row

DEADLINE = 600.0  # seconds until all services are ready; emulated machines are slow
_ANSWER = 120.0  # seconds for a question to Docker
_START = 1800.0  # seconds for Compose to start containers, images that have to be pulled included
_STOP = 300.0
_CRASHES = 3  # restarts after which a service counts as one that does not start
_LINES = 15  # of what it said, in an error
_LOCK_WAIT = 300.0
_PROJECT, _SERVICE, _ONE_OFF = (f"com.docker.compose.{label}" for label in ("project", "service", "oneoff"))
_STATE = "org.sagecontinuum.state"  # the state folder whose services these are
# What Docker's own programs read of the environment; the rest is no concern of a stack.
_OURS = ("HOME", "LANG", "XDG_RUNTIME_DIR", "SSH_AUTH_SOCK")


def up(given: Deployment, *, deadline: float = DEADLINE) -> list[Row]:
    """Start what does not run, and return when all services are ready.

    Where none ran before and it fails or is interrupted, what it started is taken away again.
    """
    words = _compose()
    _check_engine(given)
    stack = _stack(given)
    services = compose.selected(stack, given.profiles)
    _prepare(given, stack, services)
    with _locked(given):
        _check_ours(given)
        _load_images(given, services)
        ran_before = any(row.state == "running" for row in status(given))
        try:
            with console.stage(f"containers of {given.name}", brief=True):
                # What was put out of the selection since (a profile) is no orphan for Compose, so it is told by name.
                _stop_others(given, services)
                up_words = ["up", "--detach", "--no-build", "--remove-orphans"]
                try:
                    _run(given, [*words, *_of(given, stack), *up_words], timeout=_START)
                except SageError:
                    for row in status(given):  # a service that others wait for: what it said tells more than Compose
                        _check(given, row)
                    raise
            return _wait(given, [service.name for service in services], deadline)
        except BaseException:  # also when interrupted
            if not ran_before:
                _down(given, words, stack)
            raise


def down(given: Deployment) -> None:
    """Stop all containers of the stack and take them away; volumes stay.  Nothing runs: nothing to do."""
    words = _compose()
    _check_engine(given)
    with _locked(given):
        _check_ours(given)
        _down(given, words, _stack(given))


def status(given: Deployment) -> list[Row]:
    """How each service does; those of another state folder are none of ours."""
    _check_engine(given)
    ours = [container for container in _inspected(given) if not other_folders([container], given.folder)]
    rows = {row.service: row for row in rows_of(ours)}
    names = [service.name for service in compose.selected(_stack(given), given.profiles)]
    return [*(rows.pop(name, Row(name, "stopped")) for name in names), *rows.values()]


def logs(given: Deployment, services: Sequence[str] = (), *, follow: bool = False, lines: int = 100) -> Iterator[str]:
    """The last lines that the services said, each with the container's name; with ``follow`` those to come."""
    words = _compose()
    _check_engine(given)
    stack = _stack(given)
    for name in services:
        if name not in stack.services:
            raise unknown("service", name, stack.services)
    more = [f"--tail={lines}", *(["--follow"] if follow else []), *services]
    command = [*words, *_of(given, stack), "logs", "--no-color", *more]
    running = process.start(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(given, stack),
        inherit=False,
    )
    try:
        assert running.stdout is not None
        for line in running.stdout:
            yield line.decode(errors="replace").rstrip("\n")
    finally:
        process.stop(running)
        if running.stdout is not None:
            running.stdout.close()


def rows_of(containers: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of what ``docker inspect`` says of a stack's containers; of several of one service the worst counts."""
    found: dict[str, Row] = {}
    for container in containers:
        labels = container.get("Config", {}).get("Labels") or {}
        if labels.get(_ONE_OFF, "False").lower() == "true" or _SERVICE not in labels:
            continue
        row = _row(labels[_SERVICE], container.get("State", {}), container.get("RestartCount", 0))
        other = found.get(row.service)
        if other is None or (other.ready and not row.ready):
            found[row.service] = row
    return [found[name] for name in sorted(found)]


def _row(service: str, state: Mapping[str, Any], restarts: int) -> Row:
    word = state.get("Status", "")
    ended = word in ("exited", "dead")
    health = (state.get("Health") or {}).get("Status", "none")
    return Row(
        service,
        state={"created": "starting", "dead": "exited", "removing": "stopped", "paused": "stopped"}.get(word, word),
        health="" if health == "none" or word != "running" else health,
        since=_time(state.get("FinishedAt" if ended else "StartedAt", "")),
        restarts=restarts,
        exit_code=state.get("ExitCode") if ended or word == "restarting" else None,
    )


def _time(text: str) -> str:
    """``2026-01-02T03:04:05.678901234Z`` to the second; the year 1 is Docker's "never"."""
    whole = text.partition(".")[0].rstrip("Z")
    try:
        return "" if datetime.fromisoformat(whole).year < 1970 else f"{whole}Z"
    except ValueError:
        return ""


# -------------------------------------------------------------------------------------------------------------- Docker


def _compose() -> list[str]:
    """The Compose that is here.  Raises InputError where there is none."""
    process_hint = "install docker-compose-v2 or docker-compose; or run the services as plain processes: --native"
    if process.find("docker") is None:
        raise InputError("Docker is not installed", hint="install docker.io; or plain processes: --native")
    try:
        process.run(["docker", "compose", "version"], timeout=_ANSWER)
    except ProcessError:
        if process.find("docker-compose") is None:
            raise InputError("there is no Docker Compose on this machine", hint=process_hint) from None
        return ["docker-compose"]
    return ["docker", "compose"]


def _check_engine(given: Deployment) -> None:
    if process.find("docker") is None:
        raise InputError("Docker is not installed", hint="install docker.io; or plain processes: --native")
    try:
        process.run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=_ANSWER)
    except ProcessError as error:
        if "permission denied" in error.output.lower():
            raise InputError("Docker does not answer to this user", hint="log in as cc, or use sudo") from None
        raise InputError(
            f"Docker does not answer, so the containers of {given.name} can't be reached",
            hint="sudo systemctl start docker; or run the services as plain processes: --native",
        ) from None


def _inspected(given: Deployment) -> list[dict[str, Any]]:
    """What Docker knows of the stack's containers, ended ones too."""
    ids = process.run(
        ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={_PROJECT}={given.name}"],
        timeout=_ANSWER,
    ).split()
    if not ids:
        return []
    # One that was taken away in between is left out of the answer, and makes the exit status 1.
    text = process.run(["docker", "inspect", "--type", "container", *ids], timeout=_ANSWER, check=False)
    found: list[dict[str, Any]] = json.loads(text or "[]")
    return found


def _check_ours(given: Deployment) -> None:
    """Raise InputError where containers of this name run for another state folder: it is one name a machine."""
    others = other_folders(_inspected(given), given.folder)
    if others:
        raise InputError(
            f"the containers of {given.name} that run belong to {files.join_names(others)}, not to {given.folder}",
            hint=f"stop those first: down --state-dir {others[0]}; or run these services as plain processes: --native",
        )


def other_folders(containers: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """The state folders, other than this one, whose containers run, of what ``docker inspect`` says."""
    labels = [
        container.get("Config", {}).get("Labels") or {}
        for container in containers
        if container.get("State", {}).get("Running")
    ]
    return sorted({label[_STATE] for label in labels if label.get(_STATE, str(folder)) != str(folder)})


def _stack(given: Deployment) -> Stack:
    return compose.load(given.compose_file, given.variables, name=given.name)


def _of(given: Deployment, stack: Stack) -> list[str]:
    """The flags that name the stack: its file, and the profiles that are on."""
    flags = ["--project-name", given.name, "--file", str(given.compose_file)]
    return [*flags, *(word for profile in given.profiles for word in ("--profile", profile))]


def _environment(given: Deployment, stack: Stack) -> dict[str, str]:
    """The variables of the stack, and what Docker's programs read; nothing else of ours fills in the file."""
    own = {name: value for name, value in os.environ.items() if name in _OURS or name.startswith("DOCKER_")}
    return {
        **own,
        "COMPOSE_IGNORE_ORPHANS": "false",
        "COMPOSE_HTTP_TIMEOUT": f"{_START:.0f}",  # 1.29 waits a minute else; an emulated machine may take longer
        **given.variables,
        "WAGGLE_SECRETS_DIGEST": _digest(stack),
    }


def _digest(stack: Stack) -> str:
    """Of all secrets' contents.  A container sees the file that was there when it was made, so it is made anew."""
    total = hashlib.sha256()
    for key, secret in sorted(stack.secrets.items()):
        total.update(f"{key}\0{len(secret.content or b'')}\0".encode() + (secret.content or b""))
    return total.hexdigest()[:32]


def _run(given: Deployment, command: Sequence[str], *, timeout: float) -> None:
    try:
        process.run(
            command,
            env=_environment(given, _stack(given)),
            inherit=False,
            cwd=given.compose_file.absolute().parent,
            timeout=timeout,
        )
    except ProcessError as error:
        said = [line for line in error.output.strip().splitlines() if line.strip()][-_LINES:]
        verb = next((word for word in command if word in ("up", "down", "rm")), command[-1])
        raise SageError(
            f"Docker Compose can't do {verb} for {given.name}: {error}" + "".join(f"\n   {line}" for line in said),
            hint="see: systemctl status docker",
        ) from None


def _down(given: Deployment, words: Sequence[str], stack: Stack) -> None:
    # Of all profiles: those that ran may be others than those that are on now.
    profiles = sorted({profile for service in stack.services.values() for profile in service.profiles})
    flags = ["--project-name", given.name, "--file", str(given.compose_file)]
    flags += [word for profile in profiles for word in ("--profile", profile)]
    with console.stage(f"stopping the containers of {given.name}", brief=True):
        _run(given, [*words, *flags, "down", "--remove-orphans"], timeout=_STOP)


def _stop_others(given: Deployment, services: Sequence[Service]) -> None:
    """Take away containers of services that are not to run (any more)."""
    names = {service.name for service in services}
    others = [
        container["Id"]
        for container in _inspected(given)
        if container.get("Config", {}).get("Labels", {}).get(_SERVICE, "") not in names
    ]
    if others:
        process.run(["docker", "stop", *others], timeout=_STOP)
        process.run(["docker", "rm", *others], timeout=_STOP)


# ------------------------------------------------------------------------------------------------------- what it takes


def _locked(given: Deployment) -> Any:
    def told(owner: str) -> None:
        console.say(f"waiting for another command (pid {owner}) that is at these services")

    return files.lock(given.folder / f".{given.name}.lock", wait=_LOCK_WAIT, on_wait=told)


def _prepare(given: Deployment, stack: Stack, services: Sequence[Service]) -> None:
    """Make the folders of the state folder that are mounted.  Raises InputError for files that are not there.

    Docker would make folders in their places, which belong to root.
    """
    for service in services:
        for grant in (*service.secrets, *service.configs):
            material = stack.secrets.get(grant.source) or stack.configs.get(grant.source)
            if material is not None and material.missing:
                raise InputError(f"{material.place}: {material.key}: can't read {material.file}")
        for mount in service.mounts:
            source = Path(mount.source)
            if mount.kind is MountKind.BIND and not source.exists():
                if not source.is_relative_to(given.folder):
                    raise InputError(f"{mount.place}: services.{service.name}.volumes: there is no {source}")
                files.make_folder(source)


def _load_images(given: Deployment, services: Sequence[Service]) -> None:
    """Give Docker those of the images that lie on this machine."""
    names = {_without_tag(service.image) for service in services}
    try:
        here = [image for image in load.stored() if image.name in names]
    except SageError:
        here = []  # no Sage image: Docker may have them
    lacking = load.missing(here) if here else []
    if lacking:
        with console.stage("giving Docker the images that came with this machine") as stage:
            stage.note = files.join_names([image.name for image in lacking])
            load.load(lacking)
    ours = [name for name in sorted(names) if name.startswith("sage/") and name not in {image.name for image in here}]
    for name in ours:  # they are in no registry
        try:
            process.run(["docker", "image", "inspect", "--format", "{{.Id}}", name], timeout=_ANSWER)
        except ProcessError:
            raise InputError(
                f"Docker does not have the image {name}, and it does not lie in {load.FOLDER}",
                hint="it comes with every Sage image; elsewhere run the services as plain processes: --native",
            ) from None


def _without_tag(image: str) -> str:
    return image.partition(":")[0]


def _wait(given: Deployment, names: Sequence[str], deadline: float) -> list[Row]:
    """Until all are ready.  Raises SageError as soon as one can't get so."""
    with console.stage(f"services of {given.name}", brief=True) as stage:
        late: list[str] = []
        for _ in process.poll_until(deadline, 1.0):
            found = {row.service: row for row in rows_of(_inspected(given))}
            rows = [found.get(name, Row(name, "stopped")) for name in names]
            late = [row.service for row in rows if not row.ready]
            if not late:
                return rows
            stage.detail(f"waiting for {', '.join(late)}")
            for row in rows:
                _check(given, row)
        raise _failure(given, late[0], f"{files.join_names(late)} did not get ready within {deadline:g} s")


def _check(given: Deployment, row: Row) -> None:
    if row.state == "exited" and row.exit_code != 0:
        raise _failure(given, row.service, f"{row.service} ended with status {row.exit_code}")
    if row.restarts >= _CRASHES and row.state != "running":
        raise _failure(
            given, row.service, f"{row.service} ended {row.restarts} times, the last time with status {row.exit_code}"
        )
    if row.health == "unhealthy":
        raise _failure(given, row.service, f"{row.service} is unhealthy")


def _failure(given: Deployment, service: str, message: str) -> SageError:
    last = "\n".join(logs(given, [service], lines=_LINES))
    return SageError(message + (f"; it said last:\n{last}" if last else ""))

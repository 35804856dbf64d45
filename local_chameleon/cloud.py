# SPDX-License-Identifier: Apache-2.0
"""A Chameleon of one's own: made, started, looked at, stopped.

All of it lives in one state folder (see :class:`Config`); ``state.json`` there is marked complete when the cloud has
been filled, and one that was left unfinished is made anew.
"""

import contextlib
import datetime
import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from groundwork import console, files, process, products
from groundwork.errors import InputError, SageError, unknown
from local_chameleon import (
    configuration,
    environment,
    furnish,
    host_network,
    hypervisor,
    kept,
    keystone,
    neutron,
    nova,
    profiles,
    seed,
    services,
)
from local_chameleon.catalog import SERVICES
from local_chameleon.profiles import PROFILES, Profile
from local_chameleon.services import Running, Service

_LOCK_WAIT = 300.0  # seconds


@dataclass(frozen=True)
class Config:
    """What the user chooses.  ``port`` is the first of the ports; None: the state's, or 15000."""

    state_dir: Path
    env_dir: Path
    port: int | None = None
    profile: str = "images"
    allow_public: bool = False


@dataclass(frozen=True)
class ServiceState:
    """A service.  ``since`` is RFC 3339, ``memory`` is in bytes; ``works`` is whether it answers as it should."""

    name: str
    url: str
    pid: int | None
    since: str | None
    memory: int | None
    works: bool


@dataclass(frozen=True)
class State:
    """What is there.  ``endpoints`` is region -> service type -> URL."""

    up: bool
    profile: str
    state_dir: Path
    clouds_yaml: Path
    endpoints: dict[str, dict[str, str]]
    services: tuple[ServiceState, ...]


@dataclass(frozen=True)
class _Record:
    """``state.json``.  ``environment`` is the key of the environment that the databases were last brought up to."""

    profile: str
    port: int
    environment: str
    complete: bool = False


def up(config: Config) -> State:
    """Make what is not made and start what does not run; nothing is done where all is well.

    Raises InputError for a port that is taken and for folders that can't be used, SageError when a service fails;
    then, and when it is interrupted, nothing is left running.
    """
    config = _checked(config)
    if PROFILES[config.profile].boots:
        _require_host(config)
    env = environment.ensure(config.env_dir, PROFILES[config.profile].requirements_file)
    with _locked(config):
        record = _settle(config, env)
        profile = PROFILES[record.profile]
        wanted = _configure(config.state_dir, env, record, allow_public=config.allow_public)
        running = services.scan(config.state_dir)
        healthy = _healthy(wanted, running, env) if record.complete and record.environment == env.name else []
        if profile.boots and hypervisor.NAME not in {one.name for one in healthy}:
            # Its machines are off; Nova starts them as it is started.
            healthy = [one for one in healthy if not _is_nova(one)]
        missing = [service for service in wanted if service.name not in {one.name for one in healthy}]
        services.stop(config.state_dir, [one for one in running if one not in healthy])
        if missing:
            services.require_free(missing)
            if profile.boots:
                hypervisor.make_places(config.state_dir / hypervisor.NAME)
            try:
                _bring_up(config.state_dir, env, record, profile, missing)
            except BaseException:
                with console.stage("stopping what was started"):
                    _stop_all(config.state_dir)
                raise
        return _look(config.state_dir, replace(record, complete=True))


def down(config: Config, *, purge: bool = False) -> list[str]:
    """Stop all services, whatever state they are in; gives the names of those that ran.

    With ``purge`` images, databases and clouds.yaml are removed as well.
    """
    config = _checked(config)
    with _locked(config):
        stopped = _stop_all(config.state_dir)
        if purge and _read(config.state_dir) is not None:
            files.remove_tree(config.state_dir)
        elif purge and config.state_dir.exists():
            raise InputError(f"{config.state_dir} is no state folder of local-chameleon's; it stays as it is")
    return stopped


def status(config: Config) -> State:
    """What runs.  Changes nothing and waits for nobody."""
    config = _checked(config)
    record = _read(config.state_dir) or _Record(config.profile, config.port or profiles.DEFAULT_PORT, "")
    return _look(config.state_dir, record)


def _checked(config: Config) -> Config:
    if config.profile not in PROFILES:
        raise unknown("profile", config.profile, PROFILES)
    # Processes are known by the state folder's path, so it must be the same by whatever links it was named.
    config = replace(config, state_dir=config.state_dir.resolve(), env_dir=config.env_dir.resolve())
    for path in (config.state_dir, config.env_dir):
        configuration.require_plain(path)
    if config.state_dir.exists() and not os.access(config.state_dir, os.R_OK | os.W_OK | os.X_OK):
        raise InputError(f"{config.state_dir} belongs to another user", hint="name your own with --state-dir")
    return config


@contextlib.contextmanager
def _locked(config: Config) -> Iterator[None]:
    parent = files.make_folder(config.state_dir.parent)
    if not os.access(parent, os.W_OK):
        raise InputError(f"can't write to {parent}", hint="name another folder with --state-dir")
    # Beside the folder, for a purge removes the folder while others may wait.
    with files.lock(
        config.state_dir.with_name(config.state_dir.name + ".lock"),
        wait=_LOCK_WAIT,
        on_wait=lambda owner: console.say(f"waiting for pid {owner}, which works on {config.state_dir}"),
    ):
        yield


def _require_host(config: Config) -> None:
    """Raise InputError where servers can't run on this machine."""
    if os.geteuid() != 0:
        raise InputError(
            f"profile {config.profile} makes machines, bridges and rules of the firewall, which takes root",
            hint="run it by sudo; the profile lease takes none, and its servers are records",
        )
    hypervisor.require(config.state_dir)
    host_network.require([region.shared for region in PROFILES[config.profile].lends.values()], config.state_dir)


def _read(state_dir: Path) -> _Record | None:
    path = state_dir / "state.json"
    return products.load(_Record, path) if path.exists() else None


def _write(state_dir: Path, record: _Record) -> None:
    products.save(record, state_dir / "state.json")


def _settle(config: Config, env: Path) -> _Record:
    """The record of the cloud that is there; of a new one where there is none, or an unfinished one."""
    record = _read(config.state_dir)
    if record is None and config.state_dir.exists() and any(config.state_dir.iterdir()):
        raise InputError(
            f"{config.state_dir} holds something else than a Chameleon", hint="name another folder with --state-dir"
        )
    if record is not None and record.complete:
        if record.profile != config.profile:
            raise InputError(
                f"the Chameleon in {config.state_dir} has the profile {record.profile!r}",
                hint=f"give --profile {record.profile}; or remove it with local-chameleon down --purge; or name another"
                " folder with --state-dir",
            )
        if config.port not in (None, record.port):
            raise InputError(
                f"the Chameleon in {config.state_dir} was made for the ports from {record.port} on",
                hint="leave out --port; or remove it with local-chameleon down --purge",
            )
        return record
    if record is not None:
        _stop_all(config.state_dir)
        files.remove_tree(config.state_dir)
    record = _Record(config.profile, config.port or profiles.DEFAULT_PORT, env.name)
    files.make_folder(config.state_dir).chmod(0o700)
    _write(config.state_dir, record)
    profile = PROFILES[config.profile]
    filled = kept.filled(env, profile)
    names = ("admin", *sorted(SERVICES[kind].USER for kind in profile.services))
    passwords = kept.passwords(filled) if filled else {name: secrets.token_hex(24) for name in names}
    files.write_text(config.state_dir / kept.SECRETS, json.dumps(passwords) + "\n", mode=0o600)
    return record


def _passwords(state_dir: Path) -> dict[str, str]:
    try:
        return kept.passwords(state_dir)
    except (OSError, ValueError) as error:
        raise SageError(
            f"the passwords in {state_dir}/{kept.SECRETS} can't be read: {error}",
            hint="make a new Chameleon: local-chameleon down --purge, then up",
        ) from None


def _configure(state_dir: Path, env: Path, record: _Record, *, allow_public: bool) -> list[Service]:
    """Write all services' configurations."""
    keystone.configure(files.make_folder(state_dir / keystone.NAME))
    passwords = _passwords(state_dir)
    profile = PROFILES[record.profile]
    for region, kind in _regional(profile):
        SERVICES[kind].configure(
            files.make_folder(kept.folder(state_dir, region, kind)),
            env,
            keystone_port=record.port,
            port=profiles.service_port(record.port, profile, region, kind),
            region=region,
            password=passwords[SERVICES[kind].USER],
            **({"allow_public": allow_public} if kind == "image" else {}),
            **({"profile": profile} if kind == "compute" else {}),
        )
    if profile.boots:
        hypervisor.configure(files.make_folder(state_dir / hypervisor.NAME))
        networks = {
            kept.folder(state_dir, name, "network") / neutron.DATABASES[0]: region.shared
            for name, region in profile.lends.items()
        }
        host_network.configure(files.make_folder(state_dir / host_network.NAME), networks)
    return _services(state_dir, record)


def _services(state_dir: Path, record: _Record) -> list[Service]:
    profile = PROFILES[record.profile]
    on_host = (hypervisor, host_network) if profile.boots else ()
    return [
        *(one.service(state_dir / one.NAME, profiles.host_port(record.port, one.NAME)) for one in on_host),
        keystone.service(state_dir / keystone.NAME, record.port),
        *(
            SERVICES[kind].service(
                kept.folder(state_dir, region, kind), profiles.service_port(record.port, profile, region, kind), region
            )
            for region, kind in _regional(profile)
        ),
    ]


def _regional(profile: Profile) -> list[tuple[str, str]]:
    """Region and service type of each service but Keystone."""
    return [(region, kind) for kind in profile.services for region in profile.regions]


def _healthy(wanted: list[Service], running: list[Running], env: Path) -> list[Running]:
    """Those of the processes that may go on: of this configuration, alone in their service, and answering."""
    by_name = {service.name: service for service in wanted}
    names = [one.name for one in running]
    return [
        one
        for one in running
        if names.count(one.name) == 1
        and one.name in by_name
        and one.content == services.content_digest(by_name[one.name], env)
        and services.answers(by_name[one.name])
    ]


def _bring_up(state_dir: Path, env: Path, record: _Record, profile: Profile, missing: list[Service]) -> None:
    passwords = _passwords(state_dir)
    empty = False
    if not record.complete:
        with console.stage("making the databases"):
            empty = _make_databases(state_dir, env, profile, record.port, passwords)
    elif record.environment != env.name:
        with console.stage("bringing the databases to the services' new version"):
            keystone.sync_database(state_dir / keystone.NAME, env)
            for region, kind in _regional(profile):
                SERVICES[kind].sync_databases(kept.folder(state_dir, region, kind), env)
    first, *later = _ranks(missing)
    with console.stage(f"starting {_names(first)}") as stage:
        started = {service.name: services.start(service, env) for service in first}
        # Keystone is the first, and what the others' probes need
        _wait_all(stage, [one for one in first if one.name == keystone.NAME or not empty], started)
    if empty:
        with console.stage("filling Keystone: regions, projects, users"):
            credentials = seed.seed(
                record.port, profile, admin_password=passwords["admin"], service_passwords=passwords
            )
            document = seed.clouds(record.port, profile, admin_password=passwords["admin"], credentials=credentials)
            files.write_text(state_dir / kept.CLOUDS, yaml.safe_dump(document, sort_keys=False), mode=0o600)
        with console.stage("waiting for them to answer") as stage:
            _wait_all(stage, first, started)
    for rank in later:
        with console.stage(f"starting {_names(rank)}") as stage:
            _wait_all(stage, rank, {service.name: services.start(service, env) for service in rank})
    if empty and profile.lends:
        with console.stage("filling the regions: networks, flavors, hosts, floating IPs (once)"):
            furnish.furnish(record.port, profile, admin_password=passwords["admin"])
            kept.keep_filled(state_dir, env, profile, record.port)
    if not record.complete or record.environment != env.name:
        _write(state_dir, replace(record, environment=env.name, complete=True))


def _make_databases(state_dir: Path, env: Path, profile: Profile, port: int, passwords: Mapping[str, str]) -> bool:
    """Make the databases; gives whether they are empty."""
    keystone_folder = state_dir / keystone.NAME
    keystone.make_keys(keystone_folder)
    filled = kept.filled(env, profile)
    # Another Chameleon may have been filled since this one's passwords were made.
    if filled and kept.passwords(filled) == passwords:
        kept.take_filled(state_dir, filled, profile, port)
        return False
    kept.take_empty(state_dir, env, profile)
    keystone.bootstrap(keystone_folder, env, port, profile.regions[0], passwords["admin"])
    return True


def _ranks(every: list[Service]) -> list[list[Service]]:
    """The services in groups, each of which may be started once those before it work."""
    return [[one for one in every if one.rank == rank] for rank in sorted({one.rank for one in every})]


def _names(every: list[Service]) -> str:
    names = [service.name for service in every]
    if len(names) <= 4:
        return files.join_names(names)
    kinds = list(dict.fromkeys(name.partition("-")[0] for name in names))
    return f"{len(names)} services: {files.join_names(kinds)}"


def _wait_all(stage: console.Stage, every: list[Service], started: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    for service in every:
        stage.detail(f"waiting for {service.name}")
        services.wait_ready(service, started[service.name])


def _stop_all(state_dir: Path) -> list[str]:
    stopped = set()
    # First what would take note of its machines' end: they are to run again with the next `up`.
    every = services.scan(state_dir)
    services.stop(state_dir, [one for one in every if _is_nova(one)])
    stopped |= {one.name for one in every}
    # Twice: an interruption may fall between fork and exec, when a child can't be known yet for what it will be.
    for _ in process.poll_until(0.15, 0.1):
        found = services.scan(state_dir)
        services.stop(state_dir, found)
        stopped |= {one.name for one in found}
    for one in (hypervisor, host_network):
        if (state_dir / one.NAME).exists():
            one.remove(state_dir / one.NAME)
    return sorted(stopped)


def _is_nova(running: Running) -> bool:
    return running.name.partition("-")[0] == nova.USER


def _look(state_dir: Path, record: _Record) -> State:
    profile = PROFILES[record.profile]
    running = {one.name: one for one in services.scan(state_dir)}
    states = []
    for service in _services(state_dir, record):
        one = running.get(service.name)
        since = datetime.datetime.fromtimestamp(one.since, datetime.timezone.utc) if one else None
        states.append(
            ServiceState(
                name=service.name,
                url=f"http://127.0.0.1:{service.port}",
                pid=one.pid if one else None,
                since=since.strftime("%Y-%m-%dT%H:%M:%SZ") if since else None,
                memory=one.memory if one else None,
                works=one is not None and services.answers(service),
            )
        )
    return State(
        up=record.complete and all(one.works for one in states),
        profile=record.profile,
        state_dir=state_dir,
        clouds_yaml=state_dir / kept.CLOUDS,
        endpoints={
            region: {
                "identity": profiles.keystone_url(record.port),
                **{kind: profiles.endpoint(record.port, profile, region, kind) for kind in profile.services},
            }
            for region in profile.regions
        },
        services=tuple(states),
    )

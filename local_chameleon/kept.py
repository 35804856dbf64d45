# SPDX-License-Identifier: Apache-2.0
"""Databases that are kept beside the programs that made them, for the next Chameleon.

Empty ones of every service: making them takes longer than all that follows.  Filled ones of profiles that lend nodes:
filling takes a minute, copying a second.  With the filled ones come their passwords and credentials, so that all
Chameleons made of them have the same; they are readable by their owner alone.
"""

import contextlib
import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from groundwork import files, process
from local_chameleon import configuration, furnish, keystone, nova, profiles, regions, seed
from local_chameleon.catalog import SERVICES
from local_chameleon.profiles import Profile

CLOUDS = "clouds.yaml"
SECRETS = "secrets.json"


def folder(state_dir: Path, region: str, kind: str) -> Path:
    """Where a region's service is: ``nova-chi_uc``."""
    return state_dir / f"{SERVICES[kind].USER}-{profiles.slug(region)}"


def take_empty(state_dir: Path, env: Path, profile: Profile) -> None:
    """Give each service its empty databases; those that are not kept yet are made.  Raises ProcessError."""
    model = {kind: folder(state_dir, profile.regions[0], kind) for kind in profile.services}
    makers = [
        (keystone.sync_database, state_dir / keystone.NAME, keystone.DATABASES),
        *((SERVICES[kind].sync_databases, place, SERVICES[kind].DATABASES) for kind, place in model.items()),
    ]
    missing = [one for one in makers if not all((env / name).exists() for name in one[2])]
    with ThreadPoolExecutor(len(makers)) as pool:
        jobs = [pool.submit(make, place, env) for make, place, _ in missing]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            process.stop_all()
            raise
    for _, place, names in missing:
        for name in names:
            _copy(place / name, env / name)
    for path in _databases(state_dir, profile):
        _copy(env / path.name, path)
        configuration.prepare_database(path)
    _map_cells(state_dir, profile)


def filled(env: Path, profile: Profile) -> Path | None:
    """The folder of the filled databases of this profile as it is now, where they are kept."""
    place = _filled(env, profile)
    return place if place.exists() else None


def passwords(place: Path) -> dict[str, str]:
    """The passwords that the filled databases in this folder take, by user."""
    found: dict[str, str] = json.loads((place / SECRETS).read_text())
    return found


def take_filled(state_dir: Path, place: Path, profile: Profile, port: int) -> None:
    """Give each service its filled databases, and make clouds.yaml."""
    for path in _databases(state_dir, profile):
        _copy(place / path.relative_to(state_dir), path)
        configuration.prepare_database(path)
    _map_cells(state_dir, profile)
    shift = port - int((place / "port").read_text())
    with (
        contextlib.closing(sqlite3.connect(state_dir / keystone.NAME / keystone.DATABASES[0])) as connection,
        connection,
    ):
        for identity, url in connection.execute("SELECT id, url FROM endpoint").fetchall():
            connection.execute("UPDATE endpoint SET url = ? WHERE id = ?", (_moved(url, shift), identity))
    old, new = (profiles.keystone_url(one) for one in (port - shift, port))
    files.write_text(state_dir / CLOUDS, (place / CLOUDS).read_text().replace(old, new), mode=0o600)


def keep_filled(state_dir: Path, env: Path, profile: Profile, port: int) -> None:
    """Keep the databases of a Chameleon that was filled just now, whose services run, for others."""
    files.sweep_removals(env)
    place = _filled(env, profile)
    beside = files.removal_name(place)  # so that the next sweep finds what a killed program leaves
    files.make_folder(beside).chmod(0o700)
    for path in _databases(state_dir, profile):
        target = beside / path.relative_to(state_dir)
        files.make_folder(target.parent)
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
    for name in (CLOUDS, SECRETS):
        _copy(state_dir / name, beside / name)
    (beside / "port").write_text(str(port))
    try:
        beside.rename(place)
    except OSError:  # another program was first
        shutil.rmtree(beside)


def _moved(url: str, shift: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.hostname}:{(parts.port or 0) + shift}").geturl()


def _filled(env: Path, profile: Profile) -> Path:
    makers = [Path(str(module.__file__)).read_text() for module in (furnish, profiles, regions, seed)]
    return env / f"filled-{profile.name}-{files.digest_text(*makers)[:16]}"


def _databases(state_dir: Path, profile: Profile) -> list[Path]:
    return [
        *(state_dir / keystone.NAME / name for name in keystone.DATABASES),
        *(
            folder(state_dir, region, kind) / name
            for kind in profile.services
            for region in profile.regions
            for name in SERVICES[kind].DATABASES
        ),
    ]


def _map_cells(state_dir: Path, profile: Profile) -> None:
    if "compute" in profile.services:
        for region in profile.regions:
            nova.map_cells(folder(state_dir, region, "compute"))


def _copy(source: Path, target: Path) -> None:
    with files.writing(target, mode=0o600) as temporary:
        shutil.copyfile(source, temporary)

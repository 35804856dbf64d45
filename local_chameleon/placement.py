# SPDX-License-Identifier: Apache-2.0
"""A region's Placement: its configuration, its database, its service."""

from pathlib import Path

from groundwork import process
from local_chameleon import configuration
from local_chameleon.services import Service

USER = "placement"
DATABASES = ("placement.db",)

_SYNC_TIMEOUT = 300.0  # seconds; takes 2


def configure(folder: Path, environment: Path, *, keystone_port: int, port: int, region: str, password: str) -> None:
    """Write its configuration."""
    configuration.write(
        folder / "placement.conf",
        {
            "DEFAULT": configuration.logging(),
            "api": {"auth_strategy": "keystone"},
            "placement_database": configuration.database(folder / DATABASES[0]),
            "keystone_authtoken": configuration.keystone_client(keystone_port, region, USER, password),
        },
    )


def service(folder: Path, port: int, region: str) -> Service:
    """The service; :func:`configure` must have been called."""
    return Service(
        folder=folder,
        port=port,
        application="placement.wsgi.api",
        environ={"OS_PLACEMENT_CONFIG_DIR": str(folder)},
        probe="/resource_providers",  # 401: it has asked Keystone about the token that does not exist
        answers=(401,),
    )


def sync_databases(folder: Path, environment: Path) -> None:
    """Make the database, or bring it to this version.  Raises ProcessError."""
    process.run(
        [environment / "bin/placement-manage", "--config-file", folder / "placement.conf", "db", "sync"],
        env={"HOME": str(folder), "LANG": "C.UTF-8"},
        inherit=False,
        cwd=folder,
        timeout=_SYNC_TIMEOUT,
    )

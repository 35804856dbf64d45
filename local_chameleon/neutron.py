# SPDX-License-Identifier: Apache-2.0
"""A region's Neutron: its configuration, its database, its service.

There are no agents: networks, routers and floating IPs are records, and every port is bound (``hooks/``).
"""

from pathlib import Path

from groundwork import files, process
from groundwork.errors import SageError
from local_chameleon import configuration
from local_chameleon.services import HOOKS, Service

USER = "neutron"
DATABASES = ("neutron.db",)

_SYNC_TIMEOUT = 300.0  # seconds; takes 4


def configure(folder: Path, environment: Path, *, keystone_port: int, port: int, region: str, password: str) -> None:
    """Write its configuration."""
    login = configuration.service_login(keystone_port, region, USER, password)
    configuration.write(
        folder / "neutron.conf",
        {
            "DEFAULT": {
                **configuration.logging(),
                "state_path": folder,
                "core_plugin": "ml2",
                "service_plugins": "routers.Routers",
                "transport_url": "fake://",  # no message bus
                "rpc_workers": 0,
                "dhcp_agent_notification": "false",
                "notify_nova_on_port_status_changes": "false",  # Nova does not wait for agents either
                "notify_nova_on_port_data_changes": "true",  # so that a server shows its floating IP at once
                "api_paste_config": environment / "etc/neutron/api-paste.ini",
            },
            "database": configuration.database(folder / DATABASES[0]),
            "keystone_authtoken": configuration.keystone_client(keystone_port, region, USER, password),
            "nova": login,
            "placement": login,
            "oslo_concurrency": {"lock_path": files.make_folder(folder / "lock")},
            "oslo_messaging_notifications": {"driver": "noop"},
            "ml2": {
                "type_drivers": "local,flat",
                "tenant_network_types": "local",
                "mechanism_drivers": "everywhere",
                "extension_drivers": "port_security",
            },
            "ml2_type_flat": {"flat_networks": "*"},
        },
    )


def service(folder: Path, port: int, region: str) -> Service:
    """The service; :func:`configure` must have been called."""
    return Service(
        folder=folder,
        port=port,
        application="neutron.wsgi.api",
        environ={"OS_NEUTRON_CONFIG_DIR": str(folder), "OS_NEUTRON_CONFIG_FILES": str(folder / "neutron.conf")},
        probe="/v2.0/networks",
        answers=(401,),
    )


def sync_databases(folder: Path, environment: Path) -> None:
    """Make the database.  Raises ProcessError, and SageError where there is one: it can't be brought to a version."""
    database = folder / DATABASES[0]
    if database.exists():
        raise SageError(
            "Neutron's database on SQLite can't be brought to another version",
            hint="make a new Chameleon: local-chameleon down --purge, then up",
        )
    process.run(
        [environment / "bin/python", HOOKS / "neutron_schema.py", configuration.database_url(database)],
        env={"HOME": str(folder), "LANG": "C.UTF-8"},
        inherit=False,
        cwd=folder,
        timeout=_SYNC_TIMEOUT,
    )

# SPDX-License-Identifier: Apache-2.0
"""A region's Blazar: its configuration, its database, its one process with both its services in it."""

from pathlib import Path

import yaml

from groundwork import files
from local_chameleon import configuration
from local_chameleon.regions import FREEPOOL, LONGEST_LEASE, REGIONS
from local_chameleon.services import Service

USER = "blazar"
DATABASES = ("blazar.db",)

# Chameleon lets its users see the hosts and when they are free; stock Blazar only administrators.
_POLICY = {
    "blazar:oshosts:get": "@",
    "blazar:oshosts:get_allocations": "@",
    "blazar:oshosts:get_resource_properties": "@",
}


def configure(folder: Path, environment: Path, *, keystone_port: int, port: int, region: str, password: str) -> None:
    """Write its configuration."""
    plugins = ["physical.host.plugin", "virtual.floatingip.plugin"]
    if not REGIONS[region].baremetal:
        plugins.append("flavor.instance.plugin")
    internal = {"endpoint_type": "internal"}
    sections: configuration.Sections = {
        "DEFAULT": {
            **configuration.logging(),
            "host": "controller",
            "port": port,
            "transport_url": "fake://",  # no message bus
            "os_auth_protocol": "http",
            "os_auth_host": "127.0.0.1",
            "os_auth_port": keystone_port,
            "os_auth_prefix": "",
            "os_auth_version": "v3",
            "os_admin_username": USER,
            "os_admin_password": password,
            "os_admin_project_name": "service",
            "os_region_name": region,
            **internal,
        },
        "database": configuration.unsynced_database(folder / DATABASES[0]),
        "keystone_authtoken": configuration.keystone_client(keystone_port, region, USER, password),
        "manager": {"plugins": ",".join(plugins)},
        "nova": {**internal, "aggregate_freepool_name": FREEPOOL},
        "neutron": internal,
        "placement": internal,
        "enforcement": {"enabled_filters": "MaxLeaseDurationFilter", "max_lease_duration": LONGEST_LEASE}
        if REGIONS[region].baremetal
        else {},
        "oslo_policy": {"policy_file": folder / "policy.yaml"},
        "oslo_messaging_notifications": {"driver": "noop"},
    }
    configuration.write(folder / "blazar.conf", sections)
    files.write_text(folder / "policy.yaml", yaml.safe_dump(_POLICY), mode=0o600)


def service(folder: Path, port: int, region: str) -> Service:
    """The service; :func:`configure` must have been called.

    It is started last: what is due to begin or to end is tried as soon as it runs, and fails for good where Nova or
    Neutron do not answer.
    """
    return Service(
        folder=folder,
        port=port,
        application="blazar_services.py",
        environ={"LOCAL_CHAMELEON_CONFIG": str(folder / "blazar.conf")},
        probe="/v1/leases",
        answers=(401,),
        rank=2,
    )


def sync_databases(folder: Path, environment: Path) -> None:
    """Make an empty database: Blazar makes the tables that are missing at each start."""
    configuration.prepare_database(folder / DATABASES[0])

# SPDX-License-Identifier: Apache-2.0
"""A region's Nova: its configuration, its databases, its one process with all its services in it.

One process, for then the services need no message bus to reach each other.  The hosts are computes with the fake
driver: servers become ACTIVE, and nothing runs.  Where the profile boots they are computes with libvirt's driver, all
on one libvirt.
"""

import contextlib
import shutil
import sqlite3
import uuid
from pathlib import Path

import yaml

from groundwork import files, process
from local_chameleon import configuration, hypervisor, profiles
from local_chameleon.profiles import Profile
from local_chameleon.services import Service

USER = "nova"
_API, _CELL0, _CELL1 = "nova_api.db", "nova_cell0.db", "nova_cell1.db"
DATABASES = (_API, _CELL0, _CELL1)

_HOSTS = "hosts.yaml"
_SYNC_TIMEOUT = 300.0  # seconds; takes 5
_CELL0_ID = "00000000-0000-0000-0000-000000000000"  # Nova's own for the cell of servers that found no host


def configure(
    folder: Path,
    environment: Path,
    *,
    keystone_port: int,
    port: int,
    region: str,
    password: str,
    profile: Profile,
) -> None:
    """Write its configuration."""
    login = configuration.service_login(keystone_port, region, USER, password)
    filters = ("nova.scheduler.filters.all_filters", "blazarnova.scheduler.filters.blazar_filter.BlazarFilter")
    sections: configuration.Sections = {
        "DEFAULT": {
            **configuration.logging(),
            "state_path": folder,
            "my_ip": "127.0.0.1",
            "host": "controller",
            "transport_url": "fake://",  # no message bus
            "compute_driver": _driver(profile, region),
            "enabled_apis": "osapi_compute",
            "osapi_compute_listen": "127.0.0.1",
            "osapi_compute_listen_port": port,
            "osapi_compute_workers": 1,
            "report_interval": 10,
            "periodic_fuzzy_delay": 0,
            "update_resources_interval": 600,  # seconds; the hosts never change
            # No agent tells that a port is plugged.
            "vif_plugging_is_fatal": "false",
            "vif_plugging_timeout": 0,
            "initial_cpu_allocation_ratio": 4.0,
            "initial_ram_allocation_ratio": 1.0,
            "initial_disk_allocation_ratio": 1.0,
            "reserved_host_memory_mb": 0,
        },
        "api": {"auth_strategy": "keystone"},
        "wsgi": {"api_paste_config": environment / "etc/nova/api-paste.ini"},
        "api_database": configuration.unsynced_database(folder / _API),
        "database": configuration.unsynced_database(folder / _CELL1),
        "keystone_authtoken": configuration.keystone_client(keystone_port, region, USER, password),
        "service_user": {**login, "send_service_user_token": "true"},
        "placement": login,
        "neutron": login,
        "keystone": login,
        "glance": {"region_name": region},
        "cinder": {"os_region_name": region},
        "oslo_concurrency": {"lock_path": files.make_folder(folder / "lock")},
        "oslo_messaging_notifications": {"driver": "noop"},
        "vnc": {"enabled": "false"},
        "conductor": {"workers": 1},
        "scheduler": {"workers": 1},
        "quota": {"instances": -1, "cores": -1, "ram": -1},  # leases bound what a project has
        "filter_scheduler": {
            # an option that is given more than once
            "available_filters": "\navailable_filters = ".join(filters),
            "enabled_filters": "ComputeFilter,ComputeCapabilitiesFilter,ImagePropertiesFilter,"
            "AggregateInstanceExtraSpecsFilter,BlazarFilter",
        },
    }
    if profile.boots:
        # machines of all regions are on one libvirt
        machines = {**_MACHINES, "instance_name_template": profiles.slug(region) + "-%08x"}
        sections = {**sections, "DEFAULT": {**sections["DEFAULT"], **machines}, **_libvirt(folder)}
    configuration.write(folder / "nova.conf", sections)
    hosts = {host.name: host.architecture for host in profile.lends[region].hosts}
    files.write_text(folder / _HOSTS, yaml.safe_dump(hosts))
    # nova-compute starts a second time only where this identity is; the fake driver's hosts have others of their own.
    files.write_text(folder / "compute_id", str(uuid.uuid5(uuid.NAMESPACE_DNS, region)))
    files.make_folder(folder / "instances")


_MACHINES = {
    # All that a machine is told it is told by its config drive: no metadata service and no DHCP server is there.
    "force_config_drive": "true",
    "config_drive_format": "iso9660",
    "flat_injected": "false",
    "force_raw_images": "false",  # a qcow2 is what a server's disk is laid over, as it stands
    "resume_guests_state_on_host_boot": "true",  # what ran when Nova was stopped runs again
}


def _driver(profile: Profile, region: str) -> str:
    if profile.boots:
        return "libvirt.Machines"
    return "fake.BareMetal" if profile.lends[region].baremetal else "fake.VirtualMachines"


def _libvirt(folder: Path) -> configuration.Sections:
    return {
        "libvirt": {
            "connection_uri": hypervisor.uri(folder.parent / hypervisor.NAME),
            "virt_type": "qemu",
            "cpu_mode": "host-model",  # x86-64-v3; without it v1, on which not every distribution runs
            "tb_cache_size": 256,  # MiB of translated code a machine
            "disk_cachemodes": "file=unsafe",
            "images_type": "qcow2",
        },
        "spice": {"enabled": "false"},
        "workarounds": {"skip_cpu_compare_on_dest": "true"},
    }


def service(folder: Path, port: int, region: str) -> Service:
    """The service; :func:`configure` must have been called.  It answers once every host takes servers."""
    return Service(
        folder=folder,
        port=port,
        application="nova_services.py",
        environ={
            "LOCAL_CHAMELEON_CONFIG": str(folder / "nova.conf"),
            "LOCAL_CHAMELEON_HOSTS": str(folder / _HOSTS),
        },
        probe="/v2.1/servers",
        answers=(401,),
        rank=1,
    )


def sync_databases(folder: Path, environment: Path) -> None:
    """Make the databases, or bring them to this version.  Raises ProcessError."""
    made = (folder / _CELL0).exists()
    _manage(folder, environment, "api_db", "sync")
    # With the cells known to the API's database this does both; before, the two are made alike.
    _manage(folder, environment, "db", "sync", *([] if made else ["--local_cell"]))
    if not made:
        with files.writing(folder / _CELL0, mode=0o600) as temporary:
            shutil.copyfile(folder / _CELL1, temporary)


def map_cells(folder: Path) -> None:
    """Tell the API's database where the two cells' databases are."""
    cells = ((_CELL0_ID, "cell0", _CELL0), (str(uuid.uuid4()), "cell1", _CELL1))
    with contextlib.closing(sqlite3.connect(folder / _API)) as connection, connection:
        known = {name for (name,) in connection.execute("SELECT name FROM cell_mappings")}
        for identity, name, database in cells:
            url = configuration.database_url(folder / database)
            if name in known:
                connection.execute("UPDATE cell_mappings SET database_connection = ? WHERE name = ?", (url, name))
            else:
                connection.execute(
                    "INSERT INTO cell_mappings (uuid, name, transport_url, database_connection, disabled)"
                    " VALUES (?, ?, 'fake://', ?, 0)",
                    (identity, name, url),
                )


def _manage(folder: Path, environment: Path, *words: str) -> None:
    process.run(
        [environment / "bin/nova-manage", "--config-file", folder / "nova.conf", *words],
        env={"HOME": str(folder), "LANG": "C.UTF-8"},
        inherit=False,
        cwd=folder,
        timeout=_SYNC_TIMEOUT,
    )

# SPDX-License-Identifier: Apache-2.0
"""A region's Glance: its configuration, its database, its service."""

from pathlib import Path

import yaml

from groundwork import files, process
from local_chameleon import configuration
from local_chameleon.services import Service

USER = "glance"
DATABASES = ("glance.db",)

_SYNC_TIMEOUT = 300.0  # seconds; takes 4
# Bytes that the store hashes and writes at a time.  An upload of 1 GiB costs 4 s of processor time, 2 of it for the
# two digests; with Glance's own 64 KiB it costs 5.
_CHUNK = 1 << 20
_FOLDERS = ("images", "staging", "tasks")


def configure(
    folder: Path, environment: Path, *, keystone_port: int, port: int, region: str, password: str, allow_public: bool
) -> None:
    """Write its configuration.  ``allow_public`` lets members publish their own images, which stock Glance refuses."""
    for name in _FOLDERS:
        files.make_folder(folder / name)
    sections: configuration.Sections = {
        "DEFAULT": {
            **configuration.logging(),
            "enabled_backends": "local:file",
            "enabled_import_methods": "[glance-direct,web-download]",  # a list needs the brackets here
            "worker_self_reference_url": f"http://127.0.0.1:{port}",
            "transport_url": "fake://",  # no message bus
        },
        "database": configuration.database(folder / DATABASES[0]),
        "glance_store": {"default_backend": "local"},
        "local": {
            "filesystem_store_datadir": folder / "images",
            "filesystem_store_chunk_size": _CHUNK,
        },
        # Stock Glance downloads from the ports 80 and 443 alone; what it is to download here is on loopback.
        "import_filtering_opts": {"allowed_ports": "[]"},
        "os_glance_staging_store": {"filesystem_store_datadir": folder / "staging"},
        "os_glance_tasks_store": {"filesystem_store_datadir": folder / "tasks"},
        "paste_deploy": {"flavor": "keystone", "config_file": environment / "etc/glance/glance-api-paste.ini"},
        "keystone_authtoken": configuration.keystone_client(keystone_port, region, USER, password),
        "oslo_messaging_notifications": {"driver": "noop"},
        "oslo_policy": {"policy_file": folder / "policy.yaml"},
        "taskflow_executor": {"engine_mode": "serial"},
        "wsgi": {"task_pool_threads": 8},
    }
    configuration.write(folder / "glance-api.conf", sections)
    files.write_text(folder / "policy.yaml", yaml.safe_dump(policy(allow_public=allow_public)), mode=0o600)


def policy(*, allow_public: bool) -> dict[str, str]:
    """What differs from Glance's stock policy, by the rule's name."""
    if not allow_public:
        return {}
    return {"publicize_image": "rule:context_is_admin or (role:member and project_id:%(project_id)s)"}


def service(folder: Path, port: int, region: str) -> Service:
    """The service; :func:`configure` must have been called."""
    return Service(
        folder=folder,
        port=port,
        application="glance.wsgi.api",
        environ={"OS_GLANCE_CONFIG_DIR": str(folder)},
        # The probe brings a token that does not exist: 401 says that Glance has reached Keystone, 503 that it has not.
        probe="/v2/images?limit=1",
        answers=(401,),
    )


def sync_databases(folder: Path, environment: Path) -> None:
    """Make the database, or bring it to this version.  Raises ProcessError."""
    process.run(
        [environment / "bin/glance-manage", "--config-file", folder / "glance-api.conf", "db_sync"],
        env={"HOME": str(folder), "LANG": "C.UTF-8"},
        inherit=False,
        cwd=folder,
        timeout=_SYNC_TIMEOUT,
    )

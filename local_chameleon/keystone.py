# SPDX-License-Identifier: Apache-2.0
"""The one Keystone of all regions: its configuration, its database, its service."""

import base64
import os
from pathlib import Path

from groundwork import files, process
from local_chameleon import configuration, profiles
from local_chameleon.services import Service

NAME = "keystone"
DATABASES = ("keystone.db",)

_SYNC_TIMEOUT = 300.0  # seconds; takes 3


def configure(folder: Path) -> None:
    """Write its configuration."""
    sections: configuration.Sections = {
        "DEFAULT": configuration.logging(),
        "database": configuration.database(folder / DATABASES[0]),
        "token": {"provider": "fernet"},
        "fernet_tokens": {"key_repository": folder / "fernet-keys"},
        "fernet_receipts": {"key_repository": folder / "fernet-keys"},  # else Keystone looks in /etc
        "credential": {"key_repository": folder / "credential-keys"},
        # No memcached here: what was looked up is kept in the process.
        "cache": {"enabled": "true", "backend": "oslo_cache.dict"},
        # The passwords are random and long; stretching them would only make each login slow.
        "identity": {"password_hash_rounds": 4},
    }
    configuration.write(folder / "keystone.conf", sections)


def service(folder: Path, port: int) -> Service:
    """The service; :func:`configure` must have been called."""
    return Service(
        folder=folder,
        port=port,
        application="keystone_api",
        environ={
            "OS_KEYSTONE_CONFIG_FILES": str(folder / "keystone.conf"),
            "LOCAL_CHAMELEON_BEGIN": "told",
        },
        probe="/v3",
        answers=(200,),
    )


def make_keys(folder: Path) -> None:
    """The two key repositories, as ``keystone-manage fernet_setup`` makes them, without its 2 s a start."""
    for name in ("fernet-keys", "credential-keys"):
        repository = files.make_folder(folder / name)
        repository.chmod(0o700)
        for number in ("0", "1"):  # the next key and the one in use
            key = base64.urlsafe_b64encode(os.urandom(32)).decode()
            files.write_text(repository / number, key, mode=0o600)


def sync_database(folder: Path, environment: Path) -> None:
    """Make the database, or bring it to this version.  Raises ProcessError."""
    _manage(folder, environment, ["db_sync"])


def bootstrap(folder: Path, environment: Path, port: int, region: str, password: str) -> None:
    """The default domain, the roles, the user ``admin`` and Keystone's own endpoints in a region.

    Raises ProcessError.
    """
    url = profiles.keystone_url(port)
    words = ["bootstrap", "--bootstrap-region-id", region]
    for interface in ("public", "internal", "admin"):
        words += [f"--bootstrap-{interface}-url", url]
    # By the environment, for arguments can be seen by everyone on the machine.
    _manage(folder, environment, words, OS_BOOTSTRAP_PASSWORD=password)


def _manage(folder: Path, environment: Path, words: list[str], **env: str) -> None:
    process.run(
        [environment / "bin/keystone-manage", "--config-file", folder / "keystone.conf", *words],
        env={"HOME": str(folder), "LANG": "C.UTF-8", **env},
        inherit=False,
        cwd=folder,
        timeout=_SYNC_TIMEOUT,
    )

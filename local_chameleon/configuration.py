# SPDX-License-Identifier: Apache-2.0
"""What the services' configurations have in common: the form of the files, SQLite, who may ask Keystone."""

import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError
from local_chameleon import profiles

Sections = Mapping[str, Mapping[str, object]]

# In these files, in SQLite's URLs or in uwsgi's options other characters ($ % # ?) would have a meaning of their own.
_PLAIN = re.compile(r"[A-Za-z0-9_./+@=,~-]+")


def require_plain(path: Path) -> None:
    """Raise InputError for a path that can't stand in the services' configuration files."""
    if not _PLAIN.fullmatch(str(path)):
        raise InputError(
            f"the services can't work in {str(path)!r}",
            hint="name a folder of letters, digits and _ . + @ = , ~ - with --state-dir or --env-dir",
        )


def render(sections: Sections) -> str:
    """The sections in the form that oslo.config reads."""
    blocks = (
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in section.items())
        for name, section in sections.items()
    )
    return "\n".join(blocks)


def write(path: Path, sections: Sections) -> None:
    """Write a configuration file that only its owner may read, for passwords stand in some."""
    files.write_text(path, render(sections), mode=0o600)


def logging() -> dict[str, object]:
    """Logging to standard error, which is the service's log."""
    return {"use_stderr": "true", "debug": "false"}


def database_url(path: Path) -> str:
    """The URL of a SQLite database in a file."""
    return f"sqlite:///{path}?timeout=30"


def database(path: Path) -> dict[str, object]:
    """A SQLite database in a file."""
    return {"connection": database_url(path)}


def unsynced_database(path: Path) -> dict[str, object]:
    """The same for processes with green threads: one that waits for the disk would make all of them wait."""
    return {**database(path), "sqlite_synchronous": "false"}


def prepare_database(path: Path) -> None:
    """Switch a database to write-ahead logging for good; the switch needs it to itself, so do it before any service."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def service_login(port: int, region: str, user: str, password: str) -> dict[str, object]:
    """How a service of a region logs in, to call others of the region."""
    return {
        "auth_url": profiles.keystone_url(port),
        "auth_type": "password",
        "region_name": region,
        "project_domain_id": "default",
        "user_domain_id": "default",
        "project_name": "service",
        "username": user,
        "password": password,
    }


def keystone_client(port: int, region: str, user: str, password: str) -> dict[str, object]:
    """How a service of a region asks Keystone about the tokens it is given."""
    return {
        "www_authenticate_uri": profiles.keystone_url(port),
        # its region_name matters: without it Glance takes the endpoint of any region, and drops connections
        **service_login(port, region, user, password),
        "service_token_roles_required": "true",
    }

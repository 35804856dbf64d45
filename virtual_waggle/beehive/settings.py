# SPDX-License-Identifier: Apache-2.0
"""The settings of a Beehive: ``beehive.env`` in its state folder."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from groundwork.compat import StrEnum
from groundwork.errors import InputError
from groundwork.settings import one_of, whole_number
from virtual_waggle import env_file
from virtual_waggle.env_file import Variable, size

FILE = "beehive.env"

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_AGE = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_AGES = {"h": 3_600_000_000_000, "d": 86_400_000_000_000, "w": 604_800_000_000_000}


class Admit(StrEnum):
    """Who may register as a node."""

    LISTED = "listed"
    KEY = "key"


@dataclass(frozen=True)
class Settings:
    """What a Beehive is told.  ``retention`` is in nanoseconds, None: for ever; sizes are in bytes.

    ``upload_retention`` is of files; None: ``retention`` counts.
    """

    hosts: tuple[str, ...]
    port: int
    registration_port: int
    upload_port: int
    api_port: int
    api_url: str
    store: str
    retention: int | None
    admit: Admit
    queue_type: str
    cluster: tuple[str, ...]
    member: str
    upload_largest: int
    upload_free: int
    upload_retention: int | None

    @property
    def host(self) -> str:
        """The name or address that nodes are told."""
        return self.hosts[0]

    @property
    def is_first(self) -> bool:
        """Whether this machine is the one where nodes register and bring their files."""
        return not self.cluster or self.member == self.cluster[0]


def hosts(text: str) -> tuple[str, ...]:
    """Names and addresses, separated by commas."""
    found = tuple(dict.fromkeys(_host(part.strip().lower()) for part in text.split(",") if part.strip()))
    if not found:
        raise InputError("expected a name or an address")
    return found


def cluster(text: str) -> tuple[str, ...]:
    """The machines of a cluster, or none."""
    found = hosts(text) if text else ()
    if found and len(found) < 3:
        raise InputError("expected three machines or more", hint="of two none goes on without the other")
    if any(":" in name for name in found):
        raise InputError("expected names, or addresses of IPv4")
    if len({"." in name for name in found}) > 1:
        raise InputError("names with a dot and names without one don't go together", hint="Erlang keeps them apart")
    return found


def retention(text: str) -> int | None:
    """Nanoseconds of a length of time such as ``90d``; None for "": for ever."""
    if not text:
        return None
    match = _AGE.fullmatch(text)
    if match is None:
        raise InputError(f"{text[:20]!r} is no length of time", hint="give hours, days or weeks, as 90d")
    return int(match[1]) * _AGES[match[2]]


def store_url(text: str) -> str:
    """``sqlite``, or a PostgreSQL database's URL."""
    if text == "sqlite":
        return text
    try:
        parts = urlsplit(text)
        known = text.startswith(("postgresql://", "postgres://"))
        whole = known and len(parts.path) > 1 and (parts.port or 1) > 0
        if parts.password or "password=" in parts.query:
            raise InputError("holds a password", hint="put it into private/store-password and leave it out here")
    except ValueError:
        whole = False
    if not whole:  # the URL may hold a password: it is not repeated
        raise InputError("neither sqlite nor a URL such as postgresql://user@host:5432/database")
    return text


def api_url(text: str) -> str:
    """The data API's address as readers see it, or ""."""
    try:
        parts = urlsplit(text)
        whole = not text or (parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query)
    except ValueError:
        whole = False
    if not whole:
        raise InputError(f"expected http://host or https://host, found {text[:80]!r}")
    return text.rstrip("/")


_PORT = whole_number(1, 65535)

TABLE = (
    Variable(
        "BEEHIVE_HOST", "names and addresses of this Beehive, separated by commas; nodes are told the first", hosts
    ),
    Variable("BEEHIVE_PORT", "port where nodes' measurements come in (AMQPS)", _PORT, "5671"),
    Variable("BEEHIVE_REGISTRATION_PORT", "port where nodes register (ssh)", _PORT, "20022"),
    Variable("BEEHIVE_UPLOAD_PORT", "port where nodes' files come in (rsync over ssh)", _PORT, "20023"),
    Variable("BEEHIVE_API_PORT", "port of the data API and the web page (HTTP)", _PORT, "8080"),
    Variable(
        "BEEHIVE_API_URL",
        "address of the data API in links to files, such as https://data.example.org; empty: the one a reader used",
        api_url,
        "",
    ),
    Variable("BEEHIVE_STORE", "where measurements are kept: sqlite, or a PostgreSQL URL", store_url, "sqlite"),
    Variable("BEEHIVE_RETENTION", "how long measurements are kept, such as 90d; empty: for ever", retention, ""),
    Variable(
        "BEEHIVE_ADMIT",
        "who may register: listed (nodes admitted by name) or key (any that has the registration key)",
        one_of("word", tuple(map(str, Admit))),
        "listed",
    ),
    Variable(
        "BEEHIVE_QUEUE_TYPE",
        "kind of the loader's queue: classic, or quorum for a cluster of brokers",
        one_of("kind of queue", ("classic", "quorum")),
        "classic",
    ),
    Variable(
        "BEEHIVE_CLUSTER",
        "the machines of a cluster by the names they have for each other, separated by commas; empty: one machine",
        cluster,
        "",
    ),
    Variable("BEEHIVE_MEMBER", "which of BEEHIVE_CLUSTER this machine is", lambda text: text.strip().lower(), ""),
    Variable("BEEHIVE_UPLOAD_LARGEST", "largest file that a node may upload, such as 2g", size, "2g"),
    Variable("BEEHIVE_UPLOAD_FREE", "uploads are turned away while less than this is free on the disk", size, "1g"),
    Variable(
        "BEEHIVE_UPLOAD_RETENTION",
        "how long uploaded files are kept, such as 30d; empty: as long as measurements (BEEHIVE_RETENTION)",
        retention,
        "",
    ),
)


def of_names(*names: str) -> tuple[Variable, ...]:
    """Those of TABLE that a service is told as they are."""
    return tuple(variable for variable in TABLE if variable.name in names)


# What of the services may differ from machine to machine; the environment of the command counts too.
LOCAL = (
    Variable("BEEHIVE_MANAGEMENT_PORT", "port of the broker's management API, on loopback", _PORT, "15673"),
    Variable(
        "BEEHIVE_PROMETHEUS_PORT", "port of the broker's metrics, on loopback, without containers", _PORT, "15693"
    ),
    Variable("BEEHIVE_LOADER_PORT", "port of the loader's metrics likewise", _PORT, "8082"),
    Variable("BEEHIVE_EPMD_PORT", "port of Erlang's names likewise", _PORT, "14370"),
    Variable("BEEHIVE_DISTRIBUTION_PORT", "port of Erlang's nodes likewise", _PORT, "25683"),
    Variable("BEEHIVE_ADDRESS", "address at which services without containers listen", str, "0.0.0.0"),  # noqa: S104
    env_file.health_interval("BEEHIVE_HEALTH_INTERVAL"),
)


def read(path: Path) -> Settings:
    """The settings of a ``beehive.env``.  Raises InputError with file, line and name for what is wrong in it."""
    values = env_file.read(path, (*TABLE, *LOCAL))
    try:
        settings = of({variable.name: values[variable.name] for variable in TABLE})
    except InputError as error:
        raise InputError(f"{path}: {error}", hint=error.hint) from None
    ports = {
        "BEEHIVE_PORT": settings.port,
        "BEEHIVE_REGISTRATION_PORT": settings.registration_port,
        "BEEHIVE_UPLOAD_PORT": settings.upload_port,
        "BEEHIVE_API_PORT": settings.api_port,
    }
    seen: dict[int, str] = {}
    for name, port in ports.items():
        if port in seen:
            raise InputError(f"{path}: {name} and {seen[port]} are both {port}")
        seen[port] = name
    return settings


def of(values: dict[str, Any]) -> Settings:
    """Settings of a table's values.  Raises InputError for a cluster's that don't go together."""
    given = {name.removeprefix("BEEHIVE_").lower(): value for name, value in values.items()}
    given["hosts"] = given.pop("host")
    given["admit"] = Admit(given["admit"])
    given["api_url"] = given["api_url"] or f"http://{_in_url(given['hosts'][0])}:{given['api_port']}"
    settings = Settings(**given)
    if settings.cluster:
        if settings.member not in settings.cluster:
            raise InputError(f"BEEHIVE_MEMBER is {settings.member!r}, which is none of BEEHIVE_CLUSTER")
        if settings.queue_type != "quorum":
            raise InputError("BEEHIVE_QUEUE_TYPE is classic: such a queue is lost with one machine of the cluster")
        if settings.store == "sqlite":
            raise InputError("BEEHIVE_STORE is sqlite, which the machines of a cluster can't share")
    return settings


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if len(text) > 253 or not all(map(_LABEL.fullmatch, text.split("."))):
            raise InputError(f"{text[:80]!r} is neither a host's name nor an address") from None
        return text


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host

# SPDX-License-Identifier: Apache-2.0
"""The services of a Compose file and what they use, as values: what all three forms of a stack are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from groundwork.compat import StrEnum


class Condition(StrEnum):
    """What a service waits for in another."""

    STARTED = "service_started"
    HEALTHY = "service_healthy"
    COMPLETED = "service_completed_successfully"


class MountKind(StrEnum):
    """Where the contents of a mount lie."""

    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


@dataclass(frozen=True)
class Place:
    """A line of a file, for people: prints as ``file:line``."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Unread:
    """A key that Compose knows and this reader does not, with its place; ``name`` is its dotted path."""

    place: Place
    name: str


@dataclass(frozen=True)
class Port:
    """A port of a container.  ``published`` is the host's, None: any free one; ``host`` "" is every address."""

    place: Place
    target: int
    published: int | None
    protocol: str = "tcp"
    host: str = ""


@dataclass(frozen=True)
class Mount:
    """Something mounted in a container.

    ``source`` is a volume's key ("" for one without name), or the host's absolute path; ``size`` in bytes of a tmpfs.
    """

    place: Place
    kind: MountKind
    source: str
    target: str
    read_only: bool = False
    size: int | None = None
    subpath: str = ""


@dataclass(frozen=True)
class Healthcheck:
    """How to see that a service is well; times in seconds.  ``test`` is a command and its words."""

    place: Place
    test: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    retries: int = 3


@dataclass(frozen=True)
class Dependency:
    """Another service, and what of it is waited for."""

    place: Place
    service: str
    condition: Condition = Condition.STARTED
    required: bool = True


@dataclass(frozen=True)
class Attachment:
    """A network that a service is on, and the names it has there beside its own."""

    place: Place
    network: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grant:
    """A secret or config that a service sees as a file, at the absolute path ``target``."""

    place: Place
    source: str
    target: str
    mode: int | None = None


@dataclass(frozen=True)
class Resources:
    """Processors and bytes that a service may take at most (``limit``) and is sure to have (``reserved``)."""

    cpus_limit: float | None = None
    memory_limit: int | None = None
    cpus_reserved: float | None = None
    memory_reserved: int | None = None
    pids_limit: int | None = None
    gpus: int = 0


@dataclass(frozen=True)
class EnvFile:
    """The variables of one file of ``env_file``, in its order."""

    place: Place
    path: Path
    values: Mapping[str, str]


@dataclass(frozen=True)
class Service:
    """One service.  ``places`` has the place of each of its keys.

    ``environment`` is what stands in the file itself; :func:`environment` adds that of ``env_files``.  ``restart`` is
    "no", "always", "unless-stopped" or "on-failure", and "" where nothing is said; ``restart_attempts`` None is no
    limit.  ``command``, ``entrypoint`` or ``healthcheck`` None is the image's own; ``healthcheck_off``: there is none.
    """

    name: str
    place: Place
    places: Mapping[str, Place]
    image: str = ""
    build: bool = False
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[EnvFile, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    healthcheck: Healthcheck | None = None
    healthcheck_off: bool = False
    ports: tuple[Port, ...] = ()
    expose: tuple[Port, ...] = ()
    mounts: tuple[Mount, ...] = ()
    networks: tuple[Attachment, ...] = ()
    network_mode: str = ""
    secrets: tuple[Grant, ...] = ()
    configs: tuple[Grant, ...] = ()
    restart: str = ""
    restart_attempts: int | None = None
    mode: str = "replicated"
    replicas: int = 1
    constraints: tuple[str, ...] = ()
    resources: Resources = Resources()
    profiles: tuple[str, ...] = ()
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    container_name: str = ""
    working_dir: str = ""
    init: bool = False
    privileged: bool = False
    read_only: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_size: int | None = None
    tty: bool = False
    stdin_open: bool = False
    stop_signal: str = ""
    stop_grace_period: float = 10.0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    pull_policy: str = ""
    extra_hosts: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    """A named volume.  ``external``: it is there already, under the name ``name``."""

    key: str
    place: Place
    name: str
    external: bool = False
    driver: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A network; from an ``internal`` one nothing outside is reached."""

    key: str
    place: Place
    name: str
    external: bool = False
    internal: bool = False
    driver: str = ""


@dataclass(frozen=True)
class Material:
    """A secret or a config: a file, a variable's value, or (a config) text in the Compose file.

    ``content`` is None for an external one, and for a file that is not there (``missing``).
    """

    key: str
    place: Place
    name: str
    external: bool = False
    file: Path | None = None
    content: bytes | None = field(default=None, repr=False)  # may be secret

    @property
    def missing(self) -> bool:
        """Whether its file could not be read."""
        return self.content is None and not self.external


@dataclass(frozen=True)
class Stack:
    """All of one Compose file.  ``unset`` are variables that it names, that are not set and have no default."""

    path: Path
    name: str
    services: Mapping[str, Service]
    volumes: Mapping[str, Volume]
    networks: Mapping[str, Network]
    secrets: Mapping[str, Material]
    configs: Mapping[str, Material]
    unread: tuple[Unread, ...]
    unset: tuple[str, ...]

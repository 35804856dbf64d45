# SPDX-License-Identifier: Apache-2.0
"""What one conversion to Kubernetes has made so far, and what it lost; what its parts (kubernetes_*) share."""

import base64
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Condition, Material, Place, Service, Stack, Volume

_INSIDE_ONLY = "inside-only"
INSIDE_ONLY = f"compose.network/{_INSIDE_ONLY}"  # label of pods of which all networks are internal
_LARGEST_ID = (1 << 31) - 1  # of a user or group


@dataclass(frozen=True)
class Loss:
    """Something of a Compose file that is not carried over, or not as it was.  ``name`` is its dotted path."""

    place: Place
    name: str
    why: str


@dataclass(frozen=True)
class Pod:
    """Parts of a pod that containers add to; ``owner`` is the service that the pod is for."""

    owner: str
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    inits: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: text.Names = field(default_factory=text.Names)  # of its volumes


@dataclass(frozen=True)
class Claim:
    """A claim on storage; ``users`` are the services whose pods mount it, and where the file says so."""

    annotations: Mapping[str, str]
    users: dict[str, Place] = field(default_factory=dict)


class Conversion:
    """One conversion: objects and losses are gathered on the way."""

    def __init__(
        self,
        stack: Stack,
        services: Sequence[Service],
        namespace: str,
        storage: str,
        wait_image: str,
        beside: Sequence[Path],
        one_machine: bool,
    ) -> None:
        self.beside = beside
        self.one_machine = one_machine
        self.stack = stack
        self.services = {service.name: service for service in services}
        self.namespace = namespace
        self.storage = storage
        self.wait_image = wait_image
        self.part_of = text.legal(stack.name)
        self.losses: list[Loss] = []
        self.made: dict[str, dict[str, dict[str, Any]]] = {}  # kind -> name -> document
        self.service_names = text.Names()  # of workloads and Services
        self.config_names = text.Names(_external(stack.configs))
        self.secret_names = text.Names(_external(stack.secrets))
        self.claim_names = text.Names(_external(stack.volumes))
        self.network_names = text.Names([_INSIDE_ONLY])
        self.policy_names = text.Names()
        self.claims: dict[str, Claim] = {}
        self.awaited = self._waited_for(Condition.COMPLETED)  # run to their end before others begin
        self.watched = self._waited_for(Condition.HEALTHY) - self.awaited
        self._before: dict[str, list[Service]] = {}
        for service in services:
            self.service_names(service.name)
        self.alias_of: dict[str, str] = {}  # a name that leads to this service too
        for service in services:
            for alias, _ in () if service.name in self.awaited else aliases(service):
                if text.legal(alias) == alias and self.service_names.take(alias):
                    self.alias_of[alias] = service.name

    def lose(self, place: Place, name: str, why: str) -> None:
        """Note something that is not carried over."""
        self.losses.append(Loss(place, name, why))

    def lose_key(self, service: Service, key: str, why: str) -> None:
        """The same of a service's key."""
        self.lose(service.places.get(key, service.place), f"services.{service.name}.{key}", why)

    def make(self, kind: str, api: str, name: str, body: Mapping[str, Any], **metadata: Any) -> None:
        """Add an object, perhaps one that is there already.  Two that differ can't have one name."""
        place = {"namespace": self.namespace} if self.namespace and kind != "Namespace" else {}
        document = {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name, **place, "labels": self.labels(), **metadata},
            **body,
        }
        if self.made.setdefault(kind, {}).setdefault(name, document) != document:
            raise RuntimeError(f"two different {kind}s are called {name}")

    def labels(self, service: str = "") -> dict[str, str]:
        own = {"app.kubernetes.io/name": self.service_names(service)} if service else {}
        return {**own, "app.kubernetes.io/part-of": self.part_of}

    def network_label(self, network: str) -> str:
        """The label of the pods on a network: by its real name, as other stacks have networks of the same key."""
        return f"compose.network/{self.network_names(self.stack.networks[network].name)}"

    def network_labels(self, service: Service) -> dict[str, str]:
        """Those of the service's pod."""
        networks = self.networks_of(service)
        found = {self.network_label(network): "yes" for network in networks}
        if networks and all(self.stack.networks[network].internal for network in networks):
            found[INSIDE_ONLY] = "yes"
        return found

    def networks_of(self, service: Service) -> list[str]:
        """The keys of the networks that its pod is on: the service's own, and those of what runs in the pod before."""
        found = [network for one in (service, *self.before(service)) for network in self.own_networks(one)]
        return list(dict.fromkeys(found))

    def own_networks(self, service: Service) -> list[str]:
        """Its own; ``network_mode: service:other`` has the other's, and the host reaches all but internal ones."""
        if service.network_mode == "host":
            used = [one.network for other in self.services.values() for one in other.networks]
            return [key for key in dict.fromkeys(used) if not self.stack.networks[key].internal]
        mode, _, other = service.network_mode.partition(":")
        if mode == "service" and other in self.services:
            service = self.services[other]
        return [one.network for one in service.networks]

    def is_cut_off(self, service: Service) -> bool:
        """Whether its pod reaches nothing and is reached by nothing."""
        return service.network_mode == "none" and not self.networks_of(service)

    def before(self, service: Service) -> list[Service]:
        """The services that run to their end in its pod before it, in their order."""
        if service.name not in self._before:
            found: dict[str, Service] = {}
            for dependency in service.depends_on:
                if dependency.condition is Condition.COMPLETED and dependency.service in self.services:
                    other = self.services[dependency.service]
                    found.update((one.name, one) for one in (*self.before(other), other))
            self._before[service.name] = list(found.values())
        return self._before[service.name]

    def ready_name(self, service: str) -> str:
        """A name that is known while a pod of the service is ready."""
        return self.service_names(f"{self.service_names(service)}-ready", "ready", service)

    def _waited_for(self, condition: Condition) -> set[str]:
        return {
            dependency.service
            for service in self.services.values()
            for dependency in service.depends_on
            if dependency.condition is condition and dependency.service in self.services
        }


def is_job(service: Service) -> bool:
    """Whether it is not started again when it has ended."""
    return "job" in service.mode or (service.restart == "no" and service.mode == "replicated")


def aliases(service: Service) -> list[tuple[str, Place]]:
    """Other names that others may know it by."""
    found = {alias: one.place for one in service.networks for alias in one.aliases}
    if service.container_name and service.network_mode in ("", "bridge", "default"):
        found.setdefault(service.container_name, service.places["container_name"])
    return list(found.items())


def _external(parts: Mapping[str, Material] | Mapping[str, Volume]) -> list[str]:
    """The names of those that are there already."""
    return [text.legal(one.name) for one in parts.values() if one.external]


def user_numbers(user: str) -> tuple[int | None, int | None]:
    """The numbers of ``user[:group]``, each None where it is none; root is 0."""
    name, _, group = user.partition(":")
    return _number(name), _number(group)


def _number(name: str) -> int | None:
    if name == "root":
        return 0
    return int(name) if re.fullmatch(r"\d{1,10}", name) and int(name) <= _LARGEST_ID else None


def encoded(content: bytes) -> str:
    """Contents as manifests have them: base64."""
    return base64.b64encode(content).decode()


def is_address(address: str) -> bool:
    """Whether this is an IP address."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def container_ports(service: Service) -> list[dict[str, Any]]:
    """All ports that a service says it has, as a container's."""
    seen = dict.fromkeys((port.target, port.protocol) for port in (*service.ports, *service.expose))
    return [
        {"name": f"{protocol}-{number}", "containerPort": number, "protocol": protocol.upper()}
        for number, protocol in seen
    ]


def tcp_ports(service: Service) -> list[int]:
    """Those of TCP."""
    return [port["containerPort"] for port in container_ports(service) if port["protocol"] == "TCP"]

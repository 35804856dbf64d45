# SPDX-License-Identifier: Apache-2.0
"""What one conversion to Kubernetes has made so far, and what it lost; what its parts (kubernetes_*) share."""

import base64
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Condition, Place, Service, Stack


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
    volumes: dict[str, dict[str, Any]]
    inits: dict[str, dict[str, Any]]


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
    ) -> None:
        self.beside = beside
        self.stack = stack
        self.services = {service.name: service for service in services}
        self.namespace = namespace
        self.storage = storage
        self.wait_image = wait_image
        self.part_of = text.legal(stack.name)
        self.losses: list[Loss] = []
        self.made: dict[str, dict[str, dict[str, Any]]] = {}  # kind -> name -> document
        self.service_names = text.Names()
        self.claimed: dict[str, str] = {}  # claim -> what it is for
        self.config_names = text.Names()
        self.secret_names = text.Names()
        self.network_names = text.Names()
        for service in services:
            self.service_names(service.name)
        self.awaited = {  # run to their end before others begin
            dependency.service
            for service in services
            for dependency in service.depends_on
            if dependency.condition is Condition.COMPLETED and dependency.service in self.services
        }
        self.users_of: dict[str, set[str]] = {}  # claim -> services
        self.shared: dict[str, Place] = {}

    def lose(self, place: Place, name: str, why: str) -> None:
        """Note something that is not carried over."""
        self.losses.append(Loss(place, name, why))

    def lose_key(self, service: Service, key: str, why: str) -> None:
        """The same of a service's key."""
        self.lose(service.places.get(key, service.place), f"services.{service.name}.{key}", why)

    def make(self, kind: str, api: str, name: str, body: Mapping[str, Any], **metadata: Any) -> None:
        """Add an object; one of that kind and name that is there already stays."""
        place = {"namespace": self.namespace} if self.namespace and kind != "Namespace" else {}
        document = {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name, **place, "labels": self.labels(), **metadata},
            **body,
        }
        self.made.setdefault(kind, {}).setdefault(name, document)

    def labels(self, service: str = "") -> dict[str, str]:
        own = {"app.kubernetes.io/name": self.service_names(service)} if service else {}
        return {**own, "app.kubernetes.io/part-of": self.part_of}

    def network_label(self, network: str) -> str:
        return f"compose.network/{self.network_names(network)}"

    def network_labels(self, service: Service) -> dict[str, str]:
        found = {self.network_label(one.network): "yes" for one in service.networks}
        if service.networks and all(self.stack.networks[one.network].internal for one in service.networks):
            found["compose.network/inside-only"] = "yes"
        return found


def user_numbers(user: str) -> tuple[int | None, int | None]:
    """The numbers of ``user[:group]``, each None where it is none; root is 0."""
    name, _, group = user.partition(":")
    found = [0 if one == "root" else int(one) if re.fullmatch(r"\d{1,10}", one) else None for one in (name, group)]
    return found[0], found[1]


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

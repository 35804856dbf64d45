# SPDX-License-Identifier: Apache-2.0
"""How pods find each other and who may reach whom: Services by names and aliases, NetworkPolicies by networks."""

import ipaddress
import re
from typing import Any

from groundwork import files
from virtual_waggle import compose
from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Place, Port, Service
from virtual_waggle.kubernetes_objects import Conversion, container_ports, is_address

_ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104


def services_of(made: Conversion, service: Service, *, headless: bool) -> None:
    """How others find it: by its name, its aliases, and from outside by what it publishes."""
    name = made.service_names(service.name)
    if name != service.name:
        why = f"is called {name}: names of services have a-z, 0-9 and - alone"
        speakers = [
            other.name
            for other in made.services.values()
            if any(_mentions(value, service.name) for value in _texts_of(other))
        ]
        if speakers:
            why += f"; {files.join_names(speakers)} must be told"
        made.lose(service.place, f"services.{service.name}", why)
    kubernetes_service(made, service, name, headless=headless)
    for alias, place in _aliases(service):
        if alias == name or alias in made.made.get("Service", {}):
            continue
        if text.legal(alias) == alias and alias not in {made.service_names(other) for other in made.services}:
            kubernetes_service(made, service, alias, headless=headless)
        else:
            made.lose(place, f"services.{service.name}", f"the name {alias} can't be a service's")
    published: dict[tuple[int, str], Port] = {}
    for port in service.ports:
        where = f"services.{service.name}.ports"
        if _is_loopback(port.host):
            why = f"{port.target} is open inside the cluster alone: kubectl port-forward service/{name}"
            made.lose(port.place, where, why)
            continue
        if port.host not in _ANY_ADDRESS:
            made.lose(port.place, where, f"the address {port.host} is the host's: the port is open at all of them")
        published.setdefault((port.published or port.target, port.protocol), port)
    if not published:
        return
    ports = [
        {
            "name": f"{protocol}-{number}",
            "port": number,
            "targetPort": port.target,
            "protocol": protocol.upper(),
        }
        for (number, protocol), port in published.items()
    ]
    outer = outer_names(made, service.name)
    selector = made.labels(service.name)
    made.make("Service", "v1", outer, {"spec": {"type": "LoadBalancer", "selector": selector, "ports": ports}})
    targets = dict.fromkeys((port.target, port.protocol.upper()) for port in published.values())
    rules = [{"port": target, "protocol": protocol} for target, protocol in targets]
    spec = {
        "podSelector": {"matchLabels": selector},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": rules}],
    }
    made.make("NetworkPolicy", "networking.k8s.io/v1", outer, {"spec": spec})


def outer_names(made: Conversion, service: str) -> str:
    """The name of the Service and the NetworkPolicy for what a service publishes."""
    return made.service_names(f"{made.service_names(service)}-published")


def kubernetes_service(made: Conversion, service: Service, name: str, *, headless: bool) -> None:
    """A Service of this name for all ports that the service says it has."""
    spec: dict[str, Any] = {"clusterIP": "None"} if headless else {}
    spec["selector"] = made.labels(service.name)
    if ports := container_ports(service):
        spec["ports"] = [
            {
                "name": port["name"],
                "port": port["containerPort"],
                "targetPort": port["containerPort"],
                "protocol": port["protocol"],
            }
            for port in ports
        ]
    made.make("Service", "v1", name, {"spec": spec})


def network_policies(made: Conversion) -> None:
    """A policy for each network that a service is on, and for those that are on none."""
    on_it: dict[str, list[Service]] = {}
    for service in made.services.values():
        for attachment in service.networks:
            on_it.setdefault(attachment.network, []).append(service)
        if service.network_mode == "none" and service.name not in made.awaited:
            spec: dict[str, Any] = {
                "podSelector": {"matchLabels": made.labels(service.name)},
                "policyTypes": ["Ingress", "Egress"],
            }
            made.make("NetworkPolicy", "networking.k8s.io/v1", made.service_names(service.name), {"spec": spec})
    for key in on_it:
        network = made.stack.networks[key]
        if network.external:
            why = f"who else is on it must have the label {made.network_label(key)}: yes"
            made.lose(network.place, f"networks.{key}", why)
        if network.driver not in ("", "bridge", "overlay"):
            made.lose(network.place, f"networks.{key}", f"the driver {network.driver} is not carried over")
        members = {"podSelector": {"matchLabels": {made.network_label(key): "yes"}}}
        spec = {**members, "policyTypes": ["Ingress"], "ingress": [{"from": [members]}]}
        name = f"network-{made.network_names(key)}"
        made.make("NetworkPolicy", "networking.k8s.io/v1", name, {"spec": spec})
        if network.internal:
            inside = {**members["podSelector"]["matchLabels"], "compose.network/inside-only": "yes"}
            names = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
            spec = {
                "podSelector": {"matchLabels": inside},
                "policyTypes": ["Egress"],
                "egress": [{"to": [members]}, {"ports": names}],
            }
            made.make("NetworkPolicy", "networking.k8s.io/v1", f"{name}-inside", {"spec": spec})


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _aliases(service: Service) -> list[tuple[str, Place]]:
    """Other names that others may know it by."""
    found = {alias: one.place for one in service.networks for alias in one.aliases}
    if service.container_name and service.network_mode in ("", "bridge", "default"):
        found.setdefault(service.container_name, service.places["container_name"])
    return list(found.items())


def _texts_of(service: Service) -> list[str]:
    return [*compose.environment(service).values(), *(service.command or ()), *(service.entrypoint or ())]


def _mentions(value: str, name: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", value) is not None

# SPDX-License-Identifier: Apache-2.0
"""How pods find each other and who may reach whom: Services by names and aliases, NetworkPolicies by networks."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

from groundwork import files
from virtual_waggle import compose
from virtual_waggle.compose_model import Port, Service
from virtual_waggle.kubernetes_objects import INSIDE_ONLY, Conversion, aliases, container_ports, is_address

_ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104


# Whom a pod asks for names: the cluster's own service, or a cache of it on the node.
_NAME_SERVERS = [
    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
    {"ipBlock": {"cidr": "169.254.0.0/16"}},
]


def services_of(made: Conversion, service: Service) -> None:
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
    named_service(made, service, name)
    if service.name in made.watched:
        named_service(made, service, made.ready_name(service.name), ready=True)
    for alias, place in aliases(service):
        if made.alias_of.get(alias) == service.name:
            named_service(made, service, alias)
        elif alias != name:
            why = f"the name {alias} can't be a service's"
            if other := made.alias_of.get(alias):
                why = f"the name {alias} leads to {other} alone"
            elif alias in made.services:
                why = f"the name {alias} leads to the service that is called so alone"
            made.lose(place, f"services.{service.name}", why)
    published: dict[tuple[int, str], Port] = {}
    for port in service.ports:
        where = f"services.{service.name}.ports"
        if _is_loopback(port.host):
            why = f"{port.target} is open inside the cluster alone: kubectl port-forward service/{name}"
            made.lose(port.place, where, why)
            continue
        if port.host not in _ANY_ADDRESS:
            made.lose(port.place, where, f"the address {port.host} is the host's: the port is open at all of them")
        first = published.setdefault((port.published or port.target, port.protocol), port)
        if first.target != port.target:
            why = f"{port.published or port.target} leads to {first.target} already: {port.target} is not published"
            made.lose(port.place, where, why)
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
    outer = made.service_names(f"{name}-published", "published", service.name)
    selector = made.labels(service.name)
    made.make("Service", "v1", outer, {"spec": {"type": "LoadBalancer", "selector": selector, "ports": ports}})
    targets = dict.fromkeys((port.target, port.protocol.upper()) for port in published.values())
    rules = [{"port": target, "protocol": protocol} for target, protocol in targets]
    spec = {
        "podSelector": {"matchLabels": selector},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": rules}],
    }
    policy(made, f"{name}-published", ("published", service.name), spec)


def named_service(made: Conversion, service: Service, name: str, *, ready: bool = False) -> None:
    """A Service that makes a name known: the addresses of the service's pods, with all their ports, as in Compose.

    With ``ready`` those of ready pods alone; else a pod finds its own name, and others of its kind, from the start.
    """
    spec: dict[str, Any] = {"clusterIP": "None"}
    if not ready:
        spec["publishNotReadyAddresses"] = True
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
    for service in made.services.values():
        if made.is_cut_off(service) and service.name not in made.awaited:
            spec: dict[str, Any] = {
                "podSelector": {"matchLabels": made.labels(service.name)},
                "policyTypes": ["Ingress", "Egress"],
            }
            policy(made, service.name, ("none", service.name), spec)
    used = dict.fromkeys(one.network for service in made.services.values() for one in service.networks)
    for key in used:
        network = made.stack.networks[key]
        label = made.network_label(key)
        if network.external:
            why = f"who else is on it must have the label {label}: yes"
            made.lose(network.place, f"networks.{key}", why)
        if network.driver not in ("", "bridge", "overlay"):
            made.lose(network.place, f"networks.{key}", f"the driver {network.driver} is not carried over")
        members = {"podSelector": {"matchLabels": {label: "yes"}}}
        spec = {**members, "policyTypes": ["Ingress"], "ingress": [{"from": [members]}]}
        policy(made, f"network-{network.name}", ("network", network.name), spec)
        if network.internal:
            names = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
            spec = {
                "podSelector": {"matchLabels": {label: "yes", INSIDE_ONLY: "yes"}},
                "policyTypes": ["Egress"],
                "egress": [{"to": [members]}, {"to": _NAME_SERVERS, "ports": names}],
            }
            policy(made, f"network-{network.name}-inside", ("inside", network.name), spec)


def policy(made: Conversion, name: str, of: Sequence[str], spec: Mapping[str, Any]) -> None:
    """A NetworkPolicy; ``of`` tells what it is for."""
    made.make("NetworkPolicy", "networking.k8s.io/v1", made.policy_names(name, *of), {"spec": spec})


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _texts_of(service: Service) -> list[str]:
    return [*compose.environment(service).values(), *(service.command or ()), *(service.entrypoint or ())]


def _mentions(value: str, name: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", value) is not None

# SPDX-License-Identifier: Apache-2.0
"""A pod around a service's container: where it runs, what it knows of names, its groups, its annotations."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Service
from virtual_waggle.kubernetes_objects import Conversion, Pod, is_address, user_numbers

_MOST_NAME_SERVERS = 3
_MOST_SEARCHED = 32
# Docker takes names of machines, Kubernetes those of Go.
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
_KNOWN_ARCHITECTURES = {*_ARCHITECTURES, "amd64", "arm64", "arm", "386", "ppc64le", "riscv64", "s390x"}
# Those that any cluster takes (1.29); a kubelet refuses a pod with others, unless it was told of them.
_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
}  # fmt: skip


def pod_spec(made: Conversion, service: Service, pod: Pod, container: dict[str, Any]) -> dict[str, Any]:
    """A pod's specification, around its container."""
    spec: dict[str, Any] = {
        # Variables as DB_PORT=tcp://..., which Kubernetes would add for each Service, upset programs.
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
    }
    if service.hostname:
        if text.is_hostname(service.hostname):
            spec["hostname"] = service.hostname
        else:
            made.lose_key(service, "hostname", f"{service.hostname!r} is no name of a pod's host")
    if service.init:
        spec["shareProcessNamespace"] = True  # then the pod's own first process takes care of orphans
    if "stop_grace_period" in service.places:
        spec["terminationGracePeriodSeconds"] = math.ceil(service.stop_grace_period)
    if service.stop_signal and service.stop_signal.removeprefix("SIG") != "TERM":
        made.lose_key(service, "stop_signal", "Kubernetes sends what the image says, or SIGTERM")
    selector = node_selector(made, service)
    if selector:
        spec["nodeSelector"] = selector
    if made.one_machine and service.mode != "global":
        with_others = {"labelSelector": {"matchLabels": made.labels()}, "topologyKey": "kubernetes.io/hostname"}
        spec["affinity"] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [with_others]}}
    spec.update(name_service(made, service))
    security = pod_security(made, service)
    if security:
        spec["securityContext"] = security
    if pod.inits:
        spec["initContainers"] = list(pod.inits.values())
    spec["containers"] = [container]
    if pod.volumes:
        spec["volumes"] = [{"name": name, **volume} for name, volume in pod.volumes.items()]
    return spec


def node_selector(made: Conversion, service: Service) -> dict[str, str]:
    """On which nodes it may run."""
    found: dict[str, str] = {}
    if service.platform:
        system, _, arch = service.platform.lower().partition("/")
        if system in _KNOWN_ARCHITECTURES:
            system, arch = "linux", system
        arch = arch.partition("/")[0]
        for key, value in (("kubernetes.io/os", system), ("kubernetes.io/arch", _ARCHITECTURES.get(arch, arch))):
            if value and text.is_label_value(value):
                found[key] = value
            elif value:
                made.lose_key(service, "platform", f"{value!r} is nothing that nodes could be chosen by")
    for constraint in service.constraints:
        match = re.fullmatch(r"\s*([\w./-]+)\s*(==|!=)\s*(\S+)\s*", constraint)
        key = match[1] if match else ""
        if match and match[2] == "==" and text.is_label_value(match[3]):
            if key == "node.hostname":
                found["kubernetes.io/hostname"] = match[3]
                continue
            if key.startswith("node.labels.") and text.is_annotation(key[12:]):
                found[key[12:]] = match[3]
                continue
        made.lose_key(service, "deploy", f"the constraint {constraint!r} is not carried over")
    return found


def name_service(made: Conversion, service: Service) -> dict[str, Any]:
    """Names that the pod knows, and whom it asks for others."""
    found: dict[str, Any] = {}
    by_address: dict[str, list[str]] = {}
    for name, address in service.extra_hosts:
        if not is_address(address):
            made.lose_key(service, "extra_hosts", f"{address!r} is no address that a pod could know")
        elif not text.is_subdomain(name.lower()):
            made.lose_key(service, "extra_hosts", f"{name!r} can't be a name in Kubernetes")
        else:
            by_address.setdefault(address, []).append(name.lower())
    if by_address:
        found["hostAliases"] = [{"ip": address, "hostnames": names} for address, names in by_address.items()]
    servers = [one for one in service.dns if is_address(one)][:_MOST_NAME_SERVERS]
    searched = [one for one in service.dns_search if text.is_subdomain(one.rstrip("."))][:_MOST_SEARCHED]
    for key, given, kept in (("dns", service.dns, servers), ("dns_search", service.dns_search, searched)):
        for one in dict.fromkeys(given):
            if one not in kept:
                made.lose_key(service, key, f"{one!r} is not carried over: no address or name, or one too many")
    config = {key: rows for key, rows in (("nameservers", servers), ("searches", searched)) if rows}
    if config:
        found["dnsConfig"] = config
    return found


def pod_security(made: Conversion, service: Service) -> dict[str, Any]:
    """Groups and kernel settings of the whole pod."""
    found: dict[str, Any] = {}
    uid, gid = user_numbers(service.user)
    group = gid if gid is not None else uid
    if group is not None and (uid or group):
        found["fsGroup"] = group  # so that it may read its secrets and write its volumes
    more = []
    for named in service.groups:
        number, _ = user_numbers(named)
        if number is not None:
            more.append(number)
        else:
            made.lose_key(service, "group_add", f"Kubernetes takes a group's number, not the name {named!r}")
    if more:
        found["supplementalGroups"] = more
    safe = []
    for name, value in service.sysctls.items():
        if name in _SAFE_SYSCTLS:
            safe.append({"name": name, "value": value})
        else:
            made.lose_key(service, "sysctls", f"{name} is not carried over: nodes refuse it unless set up for it")
    if safe:
        found["sysctls"] = safe
    return found


def annotations(made: Conversion, service: Service) -> dict[str, str]:
    """Labels and annotations of Compose as annotations: those may hold any text."""
    found = {}
    for of, rows in (("labels", service.labels), ("annotations", service.annotations)):
        for key, value in rows.items():
            if text.is_annotation(key):
                found[key] = value
            else:
                made.lose_key(service, of, f"{key!r} can't be the key of an annotation")
            if text.holds_password(value):
                made.lose_key(service, of, f"{key} holds what looks like a password, in plain")
    if any(key.startswith("traefik.") for key in found):
        made.lose_key(service, "labels", "become annotations, of which Traefik reads none: write an Ingress")
    return found


def digest(made: Conversion, spec: dict[str, Any]) -> dict[str, str]:
    """An annotation of what the pod reads of ConfigMaps and Secrets: new contents give new pods."""
    read = [made.made[kind][name] for kind, name in sorted(set(_read(spec))) if name in made.made.get(kind, {})]
    if not read:
        return {}
    return {"compose.content/sha256": hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()}


def _read(part: Any) -> Iterator[tuple[str, str]]:
    """Kind and name of each ConfigMap and Secret in a pod's specification."""
    if isinstance(part, list):
        for row in part:
            yield from _read(row)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("configMap", "configMapRef"):
                yield "ConfigMap", value["name"]
            elif key in ("secret", "secretKeyRef"):
                yield "Secret", value.get("secretName") or value["name"]
            else:
                yield from _read(value)

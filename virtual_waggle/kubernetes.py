# SPDX-License-Identifier: Apache-2.0
"""The services of a Compose file as Kubernetes manifests, and what of the file Kubernetes can't carry.

A service becomes a Deployment; with a volume of its own a StatefulSet, with ``deploy.mode: global`` a DaemonSet, with
``restart: "no"`` or as a job a Job.  One that others wait for until it has ended becomes an init container of theirs.
Networks become NetworkPolicies, of which the pods know by labels.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtual_waggle import compose
from virtual_waggle import kubernetes_containers as containers
from virtual_waggle import kubernetes_networks as networks
from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Condition, Dependency, Service, Stack
from virtual_waggle.kubernetes_objects import Conversion, Loss, Pod, is_address, tcp_ports, user_numbers

STORAGE = "1Gi"  # of a claim: Compose files say no size
WAIT_IMAGE = "busybox:1.36"  # waits for other services: needs a shell, and nc and nslookup or else python3

_WAIT = 900  # seconds for another service; then the pod begins anew

_WHY_UNREAD = {
    "devices": "a device of the host takes a device plugin of the cluster",
    "device_cgroup_rules": "a device of the host takes a device plugin of the cluster",
    "gpus": "name them under deploy.resources.reservations.devices",
    "logging": "logs are the cluster's concern",
    "ulimits": "limits of processes are set in the nodes' container runtime",
    "pid": "no pod shares the processes of its host here",
    "ipc": "no pod shares the memory of its host here",
    "links": "services find each other by their names; other names are aliases under networks",
    "external_links": "services of other stacks are found by <service>.<namespace>",
    "volumes_from": "name the volumes in both services",
    "ipv4_address": "pods have no fixed addresses; others find this one by its name",
    "ipv6_address": "pods have no fixed addresses; others find this one by its name",
    "ipam": "addresses are the cluster's concern",
    "oom_score_adj": "Kubernetes sets it by the resources asked for",
    "memswap_limit": "swap is set on the nodes",
    "mem_swappiness": "swap is set on the nodes",
    "start_interval": "probes have one interval",
    "delay": "Kubernetes waits longer before each restart, 5 minutes at most",
    "window": "Kubernetes waits longer before each restart, 5 minutes at most",
    "uid": "Kubernetes gives files to root and the pod's group",
    "gid": "Kubernetes gives files to root and the pod's group",
}


@dataclass(frozen=True)
class Manifests:
    """Kubernetes objects, in an order in which they can be made, and what is missing in them."""

    documents: tuple[dict[str, Any], ...]
    losses: tuple[Loss, ...]


def convert(
    stack: Stack,
    *,
    namespace: str = "",
    profiles: Iterable[str] = (),
    storage: str = STORAGE,
    wait_image: str = WAIT_IMAGE,
    carried: Sequence[Path] = (),
) -> Manifests:
    """The stack's services of these profiles as manifests.

    Files and folders that it mounts are read and carried along where they lie beside the Compose file, or in one of the
    folders ``carried``.  ``storage`` is what each claim asks for, ``wait_image`` the image of the containers that wait
    for other services.
    """
    beside = (stack.path.absolute().parent, *carried)
    services = compose.selected(stack, profiles)
    return _manifests(Conversion(stack, services, namespace, storage, wait_image, beside))


def _manifests(made: Conversion) -> Manifests:
    of_the_whole(made)
    for service in made.services.values():
        of_unread(made, service)
        if service.name in made.awaited:
            carried_by_others(made, service)
        else:
            workload(made, service)
    networks.network_policies(made)
    for claim, place in made.shared.items():
        made.lose(place, f"volumes.{claim}", "several pods write it: the cluster needs storage for many writers")
    order = ("Namespace", "ConfigMap", "Secret", "PersistentVolumeClaim", "Service", "NetworkPolicy")
    kinds = [*order, *(kind for kind in made.made if kind not in order)]
    documents = tuple(document for kind in kinds for document in made.made.get(kind, {}).values())
    losses = sorted(set(made.losses), key=lambda loss: (str(loss.place.path), loss.place.line, loss.name))
    return Manifests(documents, tuple(losses))


def of_the_whole(made: Conversion) -> None:
    """The namespace, and what is lost beside the services."""
    if made.namespace:
        made.make("Namespace", "v1", made.namespace, {})
    for unread in made.stack.unread:
        if not unread.name.startswith("services."):
            key = unread.name.rpartition(".")[2]
            made.lose(unread.place, unread.name, _WHY_UNREAD.get(key, "Kubernetes knows no such thing"))


def of_unread(made: Conversion, service: Service) -> None:
    """What is lost of a service because Kubernetes has no such thing."""
    for unread in made.stack.unread:
        if unread.name.startswith(f"services.{service.name}."):
            key = re.sub(r"\[\d+\]$", "", unread.name.rpartition(".")[2])
            made.lose(unread.place, unread.name, _WHY_UNREAD.get(key, "Kubernetes knows no such thing"))


def carried_by_others(made: Conversion, service: Service) -> None:
    """One that runs to its end before others begin: part of their pods."""
    count = sum(any(one.service == service.name for one in other.depends_on) for other in made.services.values())
    if count > 1:
        why = f"runs as an init container of each of the {count} services that wait for it"
        made.lose(service.place, f"services.{service.name}", why)


def workload(made: Conversion, service: Service) -> None:
    """The service's Deployment, StatefulSet, DaemonSet or Job, and the Services that lead to it."""
    name = made.service_names(service.name)
    pod = Pod(service.name, {}, {})
    add_inits(made, service, pod)
    container = containers.container(made, service, pod)
    claims = any("persistentVolumeClaim" in volume for volume in pod.volumes.values())
    is_job = "job" in service.mode or (service.restart == "no" and service.mode == "replicated")
    spec = pod_spec(made, service, pod, container)
    labels = {**made.labels(service.name), **made.network_labels(service)}
    template = {"metadata": {"labels": labels, **annotations(made, service)}, "spec": spec}
    selector = {"selector": {"matchLabels": made.labels(service.name)}}
    replicas = {"replicas": service.replicas}
    of_restarts(made, service, is_job=is_job)
    if is_job:
        spec["restartPolicy"] = "OnFailure" if service.restart == "on-failure" else "Never"
        retries = service.restart_attempts if service.restart_attempts is not None else 6
        backoff = {"backoffLimit": retries if service.restart == "on-failure" else 0}
        count = {"completions": service.replicas, "parallelism": service.replicas} if service.replicas > 1 else {}
        made.make("Job", "batch/v1", name, {"spec": {**backoff, **count, "template": template}})
        return
    if service.mode == "global":
        made.make("DaemonSet", "apps/v1", name, {"spec": {**selector, "template": template}})
    elif claims:
        body = {**replicas, "serviceName": name, **selector, "template": template}
        made.make("StatefulSet", "apps/v1", name, {"spec": body})
        if service.hostname and service.hostname != f"{name}-0":
            made.lose_key(service, "hostname", f"a StatefulSet's pods have names of their own: {name}-0")
    else:
        made.make("Deployment", "apps/v1", name, {"spec": {**replicas, **selector, "template": template}})
    if service.network_mode == "none":
        return
    networks.services_of(made, service, headless=claims or not tcp_ports(service))


def of_restarts(made: Conversion, service: Service, *, is_job: bool) -> None:
    """What is lost of when it is started again."""
    key = "restart" if "restart" in service.places else "deploy"
    if service.mode == "global-job":
        made.lose_key(service, "deploy", "runs once in all, not once on each node")
    if is_job:
        return
    if service.restart == "on-failure":
        made.lose_key(service, key, "Kubernetes starts it again also when it ended well")
    if service.restart_attempts is not None:
        made.lose_key(service, key, "Kubernetes does not give up")


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
        system, _, arch = service.platform.partition("/")
        found["kubernetes.io/os"] = system
        if arch:
            found["kubernetes.io/arch"] = arch.partition("/")[0]
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
        if is_address(address):
            by_address.setdefault(address, []).append(name)
        else:
            made.lose_key(service, "extra_hosts", f"{address!r} is no address that a pod could know")
    if by_address:
        found["hostAliases"] = [{"ip": address, "hostnames": names} for address, names in by_address.items()]
    config: dict[str, Any] = {}
    if service.dns:
        config["nameservers"] = list(service.dns)
    if service.dns_search:
        config["searches"] = list(service.dns_search)
    if config:
        found["dnsConfig"] = config
    return found


def pod_security(made: Conversion, service: Service) -> dict[str, Any]:
    """Groups and kernel settings of the whole pod."""
    found: dict[str, Any] = {}
    uid, gid = user_numbers(service.user)
    group = gid if gid is not None else uid
    if group:
        found["fsGroup"] = group  # so that it may read its secrets and write its volumes
    more = [int(group) for group in service.groups if group.isdigit()]
    for named in service.groups:
        if not named.isdigit():
            made.lose_key(service, "group_add", f"Kubernetes takes a group's number, not the name {named!r}")
    if more:
        found["supplementalGroups"] = more
    if service.sysctls:
        found["sysctls"] = [{"name": name, "value": value} for name, value in service.sysctls.items()]
    return found


def annotations(made: Conversion, service: Service) -> dict[str, Any]:
    """Labels of Compose as annotations: those may hold any text."""
    found = {}
    for key, value in service.labels.items():
        if text.is_annotation(key):
            found[key] = value
        else:
            made.lose_key(service, "labels", f"{key!r} can't be the key of an annotation")
    if any(key.startswith("traefik.") for key in found):
        made.lose_key(service, "labels", "become annotations, of which Traefik reads none: write an Ingress")
    return {"annotations": found} if found else {}


def add_inits(made: Conversion, service: Service, pod: Pod) -> None:
    """What has to have happened before the service begins, as init containers in their order."""
    for dependency in service.depends_on:
        if dependency.service not in made.services:
            continue
        other = made.services[dependency.service]
        where = f"services.{service.name}.depends_on.{other.name}"
        if dependency.condition is Condition.COMPLETED:
            add_inits(made, other, pod)
            name = made.service_names(other.name)
            if name not in pod.inits:
                pod.inits[name] = containers.container(made, other, pod, runs_once=True)
        elif other.name in made.awaited:
            made.lose(dependency.place, where, "has ended before this begins")
        elif dependency.condition is Condition.HEALTHY:
            add_wait(made, service, dependency, other, pod)
        else:
            made.lose(dependency.place, where, "Kubernetes starts both at once; this one must bear to wait")


def add_wait(made: Conversion, service: Service, dependency: Dependency, other: Service, pod: Pod) -> None:
    """An init container that waits until the other service is ready."""
    where = f"services.{service.name}.depends_on.{other.name}"
    if other.healthcheck is None:
        why = "its image's own health check is not known here: only its port is waited for"
        made.lose(dependency.place, where, why)
    if other.network_mode == "none":
        made.lose(dependency.place, where, "is on no network, so nothing can be seen of it")
        return
    name = f"wait-for-{made.service_names(other.name)}"
    host = made.service_names(other.name)
    ports = tcp_ports(other)
    probe = (
        'if command -v nc > /dev/null; then nc -z -w 3 "$0" "$1"; else python3 -c '
        '"import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)" "$0" "$1"; fi'
        if ports
        else 'if command -v getent > /dev/null; then getent hosts "$0"; else nslookup "$0"; fi'
    )
    script = (
        f"end=$(($(date +%s) + {_WAIT})); until ({probe}) > /dev/null 2>&1; do "
        'if [ "$(date +%s)" -ge "$end" ]; then echo "$0 did not get ready" >&2; exit 1; fi; sleep 1; done'
    )
    words = ["sh", "-c", script, host, *([str(ports[0])] if ports else [])]
    pod.inits[name] = {
        "name": name,
        "image": made.wait_image,
        "imagePullPolicy": "IfNotPresent",
        "command": [text.literal(word) for word in words],
        "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
        "securityContext": {
            "runAsUser": 65534,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }

# SPDX-License-Identifier: Apache-2.0
"""The services of a Compose file as Kubernetes manifests, and what of the file Kubernetes can't carry.

A service becomes a Deployment; with a volume of its own a StatefulSet, with ``deploy.mode: global`` a DaemonSet, with
``restart: "no"`` or as a job a Job.  One that others wait for until it has ended becomes an init container of theirs.
Networks become NetworkPolicies, of which the pods know by labels.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtual_waggle import compose
from virtual_waggle import kubernetes_containers as containers
from virtual_waggle import kubernetes_inits as inits
from virtual_waggle import kubernetes_networks as networks
from virtual_waggle import kubernetes_pods as pods
from virtual_waggle import kubernetes_storage as storage_of
from virtual_waggle.compose_model import Service, Stack
from virtual_waggle.kubernetes_objects import Conversion, Loss, Pod, is_job

STORAGE = "1Gi"  # of a claim: Compose files say no size
WAIT_IMAGE = "busybox:1.36"  # waits for other services: needs a shell, and getent or nslookup

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
    "healthcheck": "the image's own test is not known here",
    "count": "a pod has a number of devices: one",
    "rshared": "what the host mounts later is not seen",
    "shared": "what the host mounts later is not seen",
    "rslave": "what the host mounts later is not seen",
    "slave": "what the host mounts later is not seen",
    "propagation": "what the host mounts later is not seen",
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
    one_machine: bool = False,
) -> Manifests:
    """The stack's services of these profiles as manifests.

    Files and folders that it mounts are read and carried along where they lie beside the Compose file, or in one of the
    folders ``carried``.  ``storage`` is what each claim asks for, ``wait_image`` the image of the containers that wait
    for other services.  With ``one_machine`` all pods go to one machine of the cluster, wherever the first one went:
    what several of them write can lie on that machine's storage.
    """
    beside = (stack.path.absolute().parent, *carried)
    services = compose.selected(stack, profiles)
    return _manifests(Conversion(stack, services, namespace, storage, wait_image, beside, one_machine))


def _manifests(made: Conversion) -> Manifests:
    of_the_whole(made)
    for service in made.services.values():
        of_unread(made, service)
        if service.name in made.awaited:
            inits.of_what_runs_before(made, service)
        else:
            workload(made, service)
    networks.network_policies(made)
    storage_of.claims(made)
    order = ("Namespace", "ConfigMap", "Secret", "PersistentVolumeClaim", "Service", "NetworkPolicy")
    kinds = [*order, *(kind for kind in made.made if kind not in order)]
    documents = tuple(document for kind in kinds for document in made.made.get(kind, {}).values())
    losses = sorted(set(made.losses), key=lambda loss: (str(loss.place.path), loss.place.line, loss.name, loss.why))
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


def workload(made: Conversion, service: Service) -> None:
    """The service's Deployment, StatefulSet, DaemonSet or Job, and the Services that lead to it."""
    name = made.service_names(service.name)
    pod = Pod(service.name)
    inits.add_inits(made, service, pod)
    container = containers.container(made, service, pod)
    claims = any("persistentVolumeClaim" in volume for volume in pod.volumes.values())
    spec = pods.pod_spec(made, service, pod, container)
    notes = pods.annotations(made, service)
    if not is_job(service):  # a Job's pods can't be changed
        notes.update(pods.digest(made, spec))
    labels = {**made.labels(service.name), **made.network_labels(service)}
    template = {"metadata": {"labels": labels, **({"annotations": notes} if notes else {})}, "spec": spec}
    selector = {"selector": {"matchLabels": made.labels(service.name)}}
    replicas = {"replicas": service.replicas}
    of_restarts(made, service)
    if is_job(service):
        spec["restartPolicy"] = "OnFailure" if service.restart == "on-failure" else "Never"
        retries = service.restart_attempts if service.restart_attempts is not None else 6
        backoff = {"backoffLimit": retries if service.restart == "on-failure" else 0}
        count = {"completions": service.replicas, "parallelism": service.replicas} if service.replicas > 1 else {}
        made.make("Job", "batch/v1", name, {"spec": {**backoff, **count, "template": template}})
    elif service.mode == "global":
        made.make("DaemonSet", "apps/v1", name, {"spec": {**selector, "template": template}})
    elif claims:
        body = {**replicas, "serviceName": name, **selector, "template": template}
        made.make("StatefulSet", "apps/v1", name, {"spec": body})
        if service.hostname and service.hostname != f"{name}-0":
            made.lose_key(service, "hostname", f"a StatefulSet's pods have names of their own: {name}-0")
    else:
        made.make("Deployment", "apps/v1", name, {"spec": {**replicas, **selector, "template": template}})
    if not made.is_cut_off(service):
        networks.services_of(made, service)


def of_restarts(made: Conversion, service: Service) -> None:
    """What is lost of when it is started again."""
    key = "restart" if "restart" in service.places else "deploy"
    if service.mode == "global-job":
        made.lose_key(service, "deploy", "runs once in all, not once on each node")
    if is_job(service):
        return
    if service.restart == "no":
        made.lose_key(service, key, "Kubernetes starts it again when it ends, as it runs on each node")
    elif not service.restart and not service.ports and not service.expose:
        why = 'Kubernetes starts it again when it ends; restart: "no" makes it a Job'
        made.lose(service.place, f"services.{service.name}", why)
    if service.restart == "on-failure":
        made.lose_key(service, key, "Kubernetes starts it again also when it ended well")
    if service.restart_attempts is not None:
        made.lose_key(service, key, "Kubernetes does not give up")

# SPDX-License-Identifier: Apache-2.0
"""The services of a Compose file as Kubernetes manifests, and what of the file Kubernetes can't carry.

A service becomes a Deployment; with a volume of its own a StatefulSet, with ``deploy.mode: global`` a DaemonSet, with
``restart: "no"`` or as a job a Job.  One that others wait for until it has ended becomes an init container of theirs.
Networks become NetworkPolicies, of which the pods know by labels.
"""

import base64
import ipaddress
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundwork import files
from virtual_waggle import compose
from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import (
    Condition,
    Dependency,
    Healthcheck,
    Material,
    Mount,
    MountKind,
    Place,
    Port,
    Service,
    Stack,
)

STORAGE = "1Gi"  # of a claim: Compose files say no size
WAIT_IMAGE = "busybox:1.36"  # waits for other services: needs a shell, and nc and nslookup or else python3

_WAIT = 900  # seconds for another service; then the pod begins anew
_LARGEST_CONFIGMAP = 900 << 10  # bytes; Kubernetes' limit of 1 MiB counts more than the contents
_MOST_FILES = 100  # of a folder that becomes a ConfigMap

_SECRET_NAME = re.compile(
    r"PASS(WORD|WD|PHRASE)?$|PASSWORD|SECRET|TOKEN|CREDENTIAL|(API|ACCESS|PRIVATE|AUTH)_?KEY", re.I
)
_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^@/\s]+@")
_SECRET_FILE = re.compile(r"passw|secret|token|credential|\.key$|\.p12$|key\.pem$|^id_[a-z0-9]+$", re.I)
_ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104
_HOSTS_OWN = ("/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/lib/modules", "/boot", "/var/lib/docker")

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
class Loss:
    """Something of a Compose file that is not carried over, or not as it was.  ``name`` is its dotted path."""

    place: Place
    name: str
    why: str


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
    return _Conversion(stack, services, namespace, storage, wait_image, beside).manifests()


@dataclass(frozen=True)
class _Pod:
    """Parts of a pod that containers add to; ``owner`` is the service that the pod is for."""

    owner: str
    volumes: dict[str, dict[str, Any]]
    inits: dict[str, dict[str, Any]]


class _Conversion:
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

    # ------------------------------------------------------------------------------------------------------- results

    def manifests(self) -> Manifests:
        self.of_the_whole()
        for service in self.services.values():
            self.of_unread(service)
            if service.name in self.awaited:
                self.carried_by_others(service)
            else:
                self.workload(service)
        self.network_policies()
        for claim, place in self.shared.items():
            self.lose(place, f"volumes.{claim}", "several pods write it: the cluster needs storage for many writers")
        order = ("Namespace", "ConfigMap", "Secret", "PersistentVolumeClaim", "Service", "NetworkPolicy")
        kinds = [*order, *(kind for kind in self.made if kind not in order)]
        documents = tuple(document for kind in kinds for document in self.made.get(kind, {}).values())
        losses = sorted(set(self.losses), key=lambda loss: (str(loss.place.path), loss.place.line, loss.name))
        return Manifests(documents, tuple(losses))

    def lose(self, place: Place, name: str, why: str) -> None:
        self.losses.append(Loss(place, name, why))

    def lose_key(self, service: Service, key: str, why: str) -> None:
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

    def of_the_whole(self) -> None:
        if self.namespace:
            self.make("Namespace", "v1", self.namespace, {})
        for unread in self.stack.unread:
            if not unread.name.startswith("services."):
                key = unread.name.rpartition(".")[2]
                self.lose(unread.place, unread.name, _WHY_UNREAD.get(key, "Kubernetes knows no such thing"))

    def of_unread(self, service: Service) -> None:
        for unread in self.stack.unread:
            if unread.name.startswith(f"services.{service.name}."):
                key = re.sub(r"\[\d+\]$", "", unread.name.rpartition(".")[2])
                self.lose(unread.place, unread.name, _WHY_UNREAD.get(key, "Kubernetes knows no such thing"))

    # ----------------------------------------------------------------------------------------------------- workloads

    def carried_by_others(self, service: Service) -> None:
        count = sum(any(one.service == service.name for one in other.depends_on) for other in self.services.values())
        if count > 1:
            why = f"runs as an init container of each of the {count} services that wait for it"
            self.lose(service.place, f"services.{service.name}", why)

    def workload(self, service: Service) -> None:
        name = self.service_names(service.name)
        pod = _Pod(service.name, {}, {})
        self.add_inits(service, pod)
        container = self.container(service, pod)
        claims = any("persistentVolumeClaim" in volume for volume in pod.volumes.values())
        is_job = "job" in service.mode or (service.restart == "no" and service.mode == "replicated")
        spec = self.pod_spec(service, pod, container)
        labels = {**self.labels(service.name), **self.network_labels(service)}
        template = {"metadata": {"labels": labels, **self.annotations(service)}, "spec": spec}
        selector = {"selector": {"matchLabels": self.labels(service.name)}}
        replicas = {"replicas": service.replicas}
        self.of_restarts(service, is_job=is_job)
        if is_job:
            spec["restartPolicy"] = "OnFailure" if service.restart == "on-failure" else "Never"
            retries = service.restart_attempts if service.restart_attempts is not None else 6
            backoff = {"backoffLimit": retries if service.restart == "on-failure" else 0}
            count = {"completions": service.replicas, "parallelism": service.replicas} if service.replicas > 1 else {}
            self.make("Job", "batch/v1", name, {"spec": {**backoff, **count, "template": template}})
            return
        if service.mode == "global":
            self.make("DaemonSet", "apps/v1", name, {"spec": {**selector, "template": template}})
        elif claims:
            body = {**replicas, "serviceName": name, **selector, "template": template}
            self.make("StatefulSet", "apps/v1", name, {"spec": body})
            if service.hostname and service.hostname != f"{name}-0":
                self.lose_key(service, "hostname", f"a StatefulSet's pods have names of their own: {name}-0")
        else:
            self.make("Deployment", "apps/v1", name, {"spec": {**replicas, **selector, "template": template}})
        if service.network_mode == "none":
            return
        self.services_of(service, headless=claims or not _tcp_ports(service))

    def of_restarts(self, service: Service, *, is_job: bool) -> None:
        key = "restart" if "restart" in service.places else "deploy"
        if service.mode == "global-job":
            self.lose_key(service, "deploy", "runs once in all, not once on each node")
        if is_job:
            return
        if service.restart == "on-failure":
            self.lose_key(service, key, "Kubernetes starts it again also when it ended well")
        if service.restart_attempts is not None:
            self.lose_key(service, key, "Kubernetes does not give up")

    def pod_spec(self, service: Service, pod: _Pod, container: dict[str, Any]) -> dict[str, Any]:
        spec: dict[str, Any] = {
            # Variables as DB_PORT=tcp://..., which Kubernetes would add for each Service, upset programs.
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
        }
        if service.hostname:
            if text.is_hostname(service.hostname):
                spec["hostname"] = service.hostname
            else:
                self.lose_key(service, "hostname", f"{service.hostname!r} is no name of a pod's host")
        if service.init:
            spec["shareProcessNamespace"] = True  # then the pod's own first process takes care of orphans
        if "stop_grace_period" in service.places:
            spec["terminationGracePeriodSeconds"] = math.ceil(service.stop_grace_period)
        if service.stop_signal and service.stop_signal.removeprefix("SIG") != "TERM":
            self.lose_key(service, "stop_signal", "Kubernetes sends what the image says, or SIGTERM")
        selector = self.node_selector(service)
        if selector:
            spec["nodeSelector"] = selector
        spec.update(self.name_service(service))
        security = self.pod_security(service)
        if security:
            spec["securityContext"] = security
        if pod.inits:
            spec["initContainers"] = list(pod.inits.values())
        spec["containers"] = [container]
        if pod.volumes:
            spec["volumes"] = [{"name": name, **volume} for name, volume in pod.volumes.items()]
        return spec

    def node_selector(self, service: Service) -> dict[str, str]:
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
            self.lose_key(service, "deploy", f"the constraint {constraint!r} is not carried over")
        return found

    def name_service(self, service: Service) -> dict[str, Any]:
        found: dict[str, Any] = {}
        by_address: dict[str, list[str]] = {}
        for name, address in service.extra_hosts:
            if _is_address(address):
                by_address.setdefault(address, []).append(name)
            else:
                self.lose_key(service, "extra_hosts", f"{address!r} is no address that a pod could know")
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

    def pod_security(self, service: Service) -> dict[str, Any]:
        found: dict[str, Any] = {}
        uid, gid = _numbers(service.user)
        group = gid if gid is not None else uid
        if group:
            found["fsGroup"] = group  # so that it may read its secrets and write its volumes
        more = [int(group) for group in service.groups if group.isdigit()]
        for named in service.groups:
            if not named.isdigit():
                self.lose_key(service, "group_add", f"Kubernetes takes a group's number, not the name {named!r}")
        if more:
            found["supplementalGroups"] = more
        if service.sysctls:
            found["sysctls"] = [{"name": name, "value": value} for name, value in service.sysctls.items()]
        return found

    def annotations(self, service: Service) -> dict[str, Any]:
        found = {}
        for key, value in service.labels.items():
            if text.is_annotation(key):
                found[key] = value
            else:
                self.lose_key(service, "labels", f"{key!r} can't be the key of an annotation")
        if any(key.startswith("traefik.") for key in found):
            self.lose_key(service, "labels", "become annotations, of which Traefik reads none: write an Ingress")
        return {"annotations": found} if found else {}

    # ---------------------------------------------------------------------------------------------------- containers

    def container(self, service: Service, pod: _Pod, *, runs_once: bool = False) -> dict[str, Any]:
        """The service's container; its volumes are added to the pod.  ``runs_once``: as an init container."""
        found: dict[str, Any] = {"name": self.service_names(service.name), "image": self.image(service)}
        found["imagePullPolicy"] = self.pull_policy(service)
        if service.entrypoint:
            found["command"] = [text.literal(word) for word in service.entrypoint]
        elif service.entrypoint == ():
            self.lose_key(service, "entrypoint", "Kubernetes has no way to leave out the image's own")
        if service.command:
            found["args"] = [text.literal(word) for word in service.command]
        if service.working_dir:
            found["workingDir"] = service.working_dir
        found.update(self.variables(service))
        if not runs_once and (ports := _container_ports(service)):
            found["ports"] = ports
        if resources := self.resources(service):
            found["resources"] = resources
        if mounts := self.mounts(service, pod):
            found["volumeMounts"] = mounts
        if service.healthcheck and not runs_once and "job" not in service.mode:
            found.update(_probes(service.healthcheck, restarts=service.restart != "no"))
        if security := self.security(service):
            found["securityContext"] = security
        if service.stdin_open:
            found["stdin"] = True
        if service.tty:
            found["tty"] = True
        if service.privileged:
            self.lose_key(service, "privileged", "is carried over; the cluster may refuse it")
        if service.network_mode and service.network_mode not in ("none", "bridge", "default"):
            self.lose_key(service, "network_mode", f"{service.network_mode}: a pod has its own network here")
        return found

    def image(self, service: Service) -> str:
        if service.build:
            why = f"nodes can't build: push the image as {service.image or self.built(service)}"
            self.lose_key(service, "build", why)
        return service.image or self.built(service)

    def built(self, service: Service) -> str:
        return f"{self.stack.name}-{service.name}".lower()

    def pull_policy(self, service: Service) -> str:
        if service.pull_policy in ("", "missing", "if_not_present"):
            return "IfNotPresent"
        known = {"always": "Always", "never": "Never", "build": "IfNotPresent"}
        if service.pull_policy not in known:
            self.lose_key(service, "pull_policy", f"{service.pull_policy}: Kubernetes pulls as each pod starts")
        return known.get(service.pull_policy, "Always")

    def variables(self, service: Service) -> dict[str, Any]:
        """What looks like a secret goes into a Secret, an ``env_file``'s rest into a ConfigMap, the rest stays."""
        in_files: dict[str, str] = {}
        for file in service.env_files:
            in_files.update(file.values)
        plain: dict[str, str] = {}
        hidden: dict[str, str] = {}
        env: list[dict[str, Any]] = []
        source = self.secret_names(f"{service.name}-env")
        for name, value in {**in_files, **service.environment}.items():
            if not text.is_variable(name):
                key = "environment" if name in service.environment else "env_file"
                self.lose_key(service, key, f"{name!r} can't be a variable's name in Kubernetes")
            elif _is_secret(name, value):
                hidden[name] = value
                reference = {"name": source, "key": name}
                env.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
            elif name in service.environment:
                env.append({"name": name, "value": text.literal(value)})
            else:
                plain[name] = value
        found: dict[str, Any] = {}
        if plain:
            name = self.config_names(f"{service.name}-env")
            self.make("ConfigMap", "v1", name, {"data": plain})
            found["envFrom"] = [{"configMapRef": {"name": name}}]
        if hidden:
            data = {key: _base64(value.encode()) for key, value in hidden.items()}
            self.make("Secret", "v1", source, {"type": "Opaque", "data": data})
        if env:
            found["env"] = env
        return found

    def resources(self, service: Service) -> dict[str, Any]:
        wanted = service.resources
        limits: dict[str, str] = {}
        requests: dict[str, str] = {}
        if wanted.cpus_limit:
            limits["cpu"] = text.cpus(wanted.cpus_limit)
        if wanted.memory_limit:
            limits["memory"] = text.size(wanted.memory_limit)
        if wanted.gpus:
            limits["nvidia.com/gpu"] = str(wanted.gpus)
        if wanted.cpus_reserved:
            requests["cpu"] = text.cpus(min(wanted.cpus_reserved, wanted.cpus_limit or math.inf))
        if wanted.memory_reserved:
            requests["memory"] = text.size(min(wanted.memory_reserved, wanted.memory_limit or wanted.memory_reserved))
        if wanted.pids_limit and wanted.pids_limit > 0:
            key = "pids_limit" if "pids_limit" in service.places else "deploy"
            self.lose_key(service, key, "a pod's count of processes is limited by the nodes' settings")
        return {name: amounts for name, amounts in (("limits", limits), ("requests", requests)) if amounts}

    def security(self, service: Service) -> dict[str, Any]:
        found: dict[str, Any] = {}
        uid, gid = _numbers(service.user)
        if service.user and uid is None:
            self.lose_key(service, "user", f"Kubernetes takes a user's number, not the name {service.user!r}")
        if uid is not None:
            found["runAsUser"] = uid
            if uid:
                found["runAsNonRoot"] = True
        if gid is not None:
            found["runAsGroup"] = gid
        if service.privileged:
            found["privileged"] = True
        if service.read_only:
            found["readOnlyRootFilesystem"] = True
        capabilities = {
            key: [name.removeprefix("CAP_") for name in names]
            for key, names in (("add", service.cap_add), ("drop", service.cap_drop))
            if names
        }
        if capabilities:
            found["capabilities"] = capabilities
        for option in service.security_opt:
            if option.replace("=", ":") in ("no-new-privileges", "no-new-privileges:true"):
                if service.privileged:
                    self.lose_key(service, "security_opt", "no-new-privileges can't stand beside privileged")
                else:
                    found["allowPrivilegeEscalation"] = False
            elif option.replace("=", ":") == "seccomp:unconfined":
                found["seccompProfile"] = {"type": "Unconfined"}
            else:
                self.lose_key(service, "security_opt", f"{option!r} is not carried over")
        return found

    # -------------------------------------------------------------------------------------------------------- mounts

    def mounts(self, service: Service, pod: _Pod) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}  # by path: one place has one mount
        for number, mount in enumerate(service.mounts):
            name = f"{self.service_names(service.name)}-{number}"
            if row := self.mount(service, mount, name, pod):
                found[mount.target] = {**row, "mountPath": mount.target.rstrip("/") or "/"}
        if service.shm_size:
            name = f"{self.service_names(service.name)}-shm"
            pod.volumes[name] = _memory(service.shm_size)
            found["/dev/shm"] = {"name": name, "mountPath": "/dev/shm"}  # noqa: S108
        found.update(self.granted(service, pod))
        return list(found.values())

    def mount(self, service: Service, mount: Mount, name: str, pod: _Pod) -> dict[str, Any] | None:
        read_only = {"readOnly": True} if mount.read_only else {}
        if mount.kind is MountKind.TMPFS:
            pod.volumes[name] = _memory(mount.size)
            return {"name": name}
        if mount.kind is MountKind.VOLUME and not mount.source:
            why = "a volume without a name is empty again in each new pod"
            self.lose(mount.place, f"services.{service.name}.volumes", why)
            pod.volumes[name] = {"emptyDir": {}}
            return {"name": name}
        if mount.kind is MountKind.VOLUME:
            claim = self.volume_claim(service, mount, pod)
        elif row := self.carried_files(service, mount, name, pod):
            return row
        elif _is_hosts_own(mount.source):
            why = f"{mount.source} is the host's own; no pod sees it here"
            if mount.source in ("/etc/localtime", "/etc/timezone"):
                why = "a pod's time zone is set by the variable TZ"
            self.lose(mount.place, f"services.{service.name}.volumes", why)
            return None
        else:
            claim = self.claim(mount, pod, Path(mount.source).name or "root", mount.source)
            why = f"{mount.source} of this machine is not carried over; the claim {claim} begins empty"
            self.lose(mount.place, f"services.{service.name}.volumes", why)
        volume = f"claim-{claim}"
        pod.volumes[volume] = {"persistentVolumeClaim": {"claimName": claim}}
        return {"name": volume, **read_only, **({"subPath": mount.subpath} if mount.subpath else {})}

    def volume_claim(self, service: Service, mount: Mount, pod: _Pod) -> str:
        volume = self.stack.volumes[mount.source]
        where = f"volumes.{volume.key}"
        if volume.external:
            claim = text.legal(volume.name)
            self.lose(volume.place, where, f"is external: the claim {claim} must be there already")
            return claim
        claim = self.claim(mount, pod, volume.key, f"volumes {volume.key}", volume.labels)
        if volume.driver not in ("", "local") or volume.options:
            self.lose(volume.place, where, "its driver is not carried over: the claim takes the cluster's storage")
        why = f"the claim {claim} asks for {self.storage} and begins empty; Docker copies in what the image has there"
        self.lose(volume.place, where, why)
        return claim

    def claim(self, mount: Mount, pod: _Pod, name: str, key: str, labels: Mapping[str, str] | None = None) -> str:
        """A claim; the same ``key`` has the same one."""
        claim = next((known for known, one in self.claimed.items() if one == key), None)
        if claim is None:
            claim = text.legal(name)
            while claim in self.claimed:
                claim += "-2"
            self.claimed[claim] = key
        users = self.users_of.setdefault(claim, set())
        users.add(pod.owner)
        owner = self.services[pod.owner]
        several = len(users) > 1 or owner.replicas > 1 or owner.mode == "global"
        if several:
            self.shared.setdefault(claim, mount.place)
        annotations = {key: value for key, value in (labels or {}).items() if text.is_annotation(key)}
        spec = {
            "accessModes": ["ReadWriteMany" if claim in self.shared else "ReadWriteOnce"],
            "resources": {"requests": {"storage": self.storage}},
        }
        self.made.get("PersistentVolumeClaim", {}).pop(claim, None)
        more = {"annotations": annotations} if annotations else {}
        self.make("PersistentVolumeClaim", "v1", claim, {"spec": spec}, **more)
        return claim

    def carried_files(self, service: Service, mount: Mount, name: str, pod: _Pod) -> dict[str, Any] | None:
        """A file, or a folder that is only read, that lies beside the Compose file, as ConfigMap or Secret."""
        source = Path(mount.source)
        if not any(source.is_relative_to(folder) for folder in self.beside):
            return None
        if source.is_file():
            contents = _contents([source], source.parent)
        elif source.is_dir() and mount.read_only:
            contents = _contents(sorted(path for path in source.rglob("*") if path.is_file()), source)
        else:
            return None
        if not contents:
            return None
        where = f"services.{service.name}.volumes"
        if not mount.read_only:
            self.lose(mount.place, where, f"{source.name} is carried along, and can't be written in the pod")
        is_secret = any(_SECRET_FILE.search(Path(path).name) for path in contents)
        reference = self.keep(f"{service.name}-{source.name}", contents, is_secret=is_secret)
        if source.is_file():
            pod.volumes[name] = reference
            return {"name": name, "subPath": text.data_key(source.name), "readOnly": True}
        items = [{"key": text.data_key(path), "path": path} for path in contents]
        kind = next(iter(reference))
        pod.volumes[name] = {kind: {**reference[kind], "items": items}}
        return {"name": name, "readOnly": True}

    def keep(self, name: str, contents: Mapping[str, bytes], *, is_secret: bool) -> dict[str, dict[str, Any]]:
        """Make a ConfigMap or Secret of these; the volume that shows it."""
        if is_secret:
            made = self.secret_names(name)
            data = {text.data_key(path): _base64(content) for path, content in contents.items()}
            self.make("Secret", "v1", made, {"type": "Opaque", "data": data})
            return {"secret": {"secretName": made}}
        made = self.config_names(name)
        self.make("ConfigMap", "v1", made, _config_data(contents))
        return {"configMap": {"name": made}}

    def granted(self, service: Service, pod: _Pod) -> dict[str, dict[str, Any]]:
        """Secrets and configs: those of one folder that has nothing else in it as a whole, others each for itself."""
        found: dict[str, dict[str, Any]] = {}
        base = self.service_names(service.name)
        in_folder: list[dict[str, Any]] = []
        for kind, grants, known in (
            ("secret", service.secrets, self.stack.secrets),
            ("configMap", service.configs, self.stack.configs),
        ):
            for grant in grants:
                name, key = self.material(service, kind, known[grant.source])
                mode = {"mode": grant.mode} if grant.mode is not None else {}
                folder, _, file = grant.target.rpartition("/")
                if folder == "/run/secrets" and kind == "secret":
                    source = {"name": name, "items": [{"key": key, "path": file, **mode}]}
                    in_folder.append({kind: source})
                    continue
                volume = f"{base}-{kind.lower()}-{text.legal(grant.source)}"[:63].rstrip("-")
                reference: dict[str, Any] = {"secretName": name} if kind == "secret" else {"name": name}
                pod.volumes[volume] = {kind: {**reference, "items": [{"key": key, "path": key, **mode}]}}
                found[grant.target] = {"name": volume, "mountPath": grant.target, "subPath": key, "readOnly": True}
        if in_folder:
            shown = 0o440 if _numbers(service.user)[0] else 0o444  # another user's pod has its group
            volume = f"{base}-secrets"
            pod.volumes[volume] = {"projected": {"defaultMode": shown, "sources": in_folder}}
            found["/run/secrets"] = {"name": volume, "mountPath": "/run/secrets", "readOnly": True}
        return found

    def material(self, service: Service, kind: str, given: Material) -> tuple[str, str]:
        """The name of the object for a secret or config, and the key in it."""
        where = f"{'secrets' if kind == 'secret' else 'configs'}.{given.key}"
        names = self.secret_names if kind == "secret" else self.config_names
        key = text.data_key(given.key)
        if given.external:
            name = text.legal(given.name)
            self.lose(given.place, where, f"is external: {name} with the key {key} must be there already")
            return name, key
        name = names(given.key)
        if given.missing:
            self.lose(given.place, where, f"can't read {given.file}: make {name} with the key {key} by hand")
        elif kind == "secret":
            data = {key: _base64(given.content or b"")}
            self.make("Secret", "v1", name, {"type": "Opaque", "data": data})
        else:
            self.make("ConfigMap", "v1", name, _config_data({key: given.content or b""}))
        return name, key

    # ----------------------------------------------------------------------------------------------- what comes first

    def add_inits(self, service: Service, pod: _Pod) -> None:
        """What has to have happened before the service begins, as init containers in their order."""
        for dependency in service.depends_on:
            if dependency.service not in self.services:
                continue
            other = self.services[dependency.service]
            where = f"services.{service.name}.depends_on.{other.name}"
            if dependency.condition is Condition.COMPLETED:
                self.add_inits(other, pod)
                name = self.service_names(other.name)
                if name not in pod.inits:
                    pod.inits[name] = self.container(other, pod, runs_once=True)
            elif other.name in self.awaited:
                self.lose(dependency.place, where, "has ended before this begins")
            elif dependency.condition is Condition.HEALTHY:
                self.add_wait(service, dependency, other, pod)
            else:
                self.lose(dependency.place, where, "Kubernetes starts both at once; this one must bear to wait")

    def add_wait(self, service: Service, dependency: Dependency, other: Service, pod: _Pod) -> None:
        where = f"services.{service.name}.depends_on.{other.name}"
        if other.healthcheck is None:
            why = "its image's own health check is not known here: only its port is waited for"
            self.lose(dependency.place, where, why)
        if other.network_mode == "none":
            self.lose(dependency.place, where, "is on no network, so nothing can be seen of it")
            return
        name = f"wait-for-{self.service_names(other.name)}"
        host = self.service_names(other.name)
        ports = _tcp_ports(other)
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
            "image": self.wait_image,
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

    # ----------------------------------------------------------------------------------------------------- networking

    def services_of(self, service: Service, *, headless: bool) -> None:
        """How others find it: by its name, its aliases, and from outside by what it publishes."""
        name = self.service_names(service.name)
        if name != service.name:
            why = f"is called {name}: names of services have a-z, 0-9 and - alone"
            speakers = [
                other.name
                for other in self.services.values()
                if any(_mentions(value, service.name) for value in _texts_of(other))
            ]
            if speakers:
                why += f"; {files.join_names(speakers)} must be told"
            self.lose(service.place, f"services.{service.name}", why)
        self.kubernetes_service(service, name, headless=headless)
        for alias, place in _aliases(service):
            if alias == name or alias in self.made.get("Service", {}):
                continue
            if text.legal(alias) == alias and alias not in {self.service_names(other) for other in self.services}:
                self.kubernetes_service(service, alias, headless=headless)
            else:
                self.lose(place, f"services.{service.name}", f"the name {alias} can't be a service's")
        published: dict[tuple[int, str], Port] = {}
        for port in service.ports:
            where = f"services.{service.name}.ports"
            if _is_loopback(port.host):
                why = f"{port.target} is open inside the cluster alone: kubectl port-forward service/{name}"
                self.lose(port.place, where, why)
                continue
            if port.host not in _ANY_ADDRESS:
                self.lose(port.place, where, f"the address {port.host} is the host's: the port is open at all of them")
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
        outer = self.outer_names(service.name)
        selector = self.labels(service.name)
        self.make("Service", "v1", outer, {"spec": {"type": "LoadBalancer", "selector": selector, "ports": ports}})
        targets = dict.fromkeys((port.target, port.protocol.upper()) for port in published.values())
        rules = [{"port": target, "protocol": protocol} for target, protocol in targets]
        spec = {
            "podSelector": {"matchLabels": selector},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": rules}],
        }
        self.make("NetworkPolicy", "networking.k8s.io/v1", outer, {"spec": spec})

    def outer_names(self, service: str) -> str:
        return self.service_names(f"{self.service_names(service)}-published")

    def kubernetes_service(self, service: Service, name: str, *, headless: bool) -> None:
        spec: dict[str, Any] = {"clusterIP": "None"} if headless else {}
        spec["selector"] = self.labels(service.name)
        if ports := _container_ports(service):
            spec["ports"] = [
                {
                    "name": port["name"],
                    "port": port["containerPort"],
                    "targetPort": port["containerPort"],
                    "protocol": port["protocol"],
                }
                for port in ports
            ]
        self.make("Service", "v1", name, {"spec": spec})

    def network_label(self, network: str) -> str:
        return f"compose.network/{self.network_names(network)}"

    def network_labels(self, service: Service) -> dict[str, str]:
        found = {self.network_label(one.network): "yes" for one in service.networks}
        if service.networks and all(self.stack.networks[one.network].internal for one in service.networks):
            found["compose.network/inside-only"] = "yes"
        return found

    def network_policies(self) -> None:
        on_it: dict[str, list[Service]] = {}
        for service in self.services.values():
            for attachment in service.networks:
                on_it.setdefault(attachment.network, []).append(service)
            if service.network_mode == "none" and service.name not in self.awaited:
                spec: dict[str, Any] = {
                    "podSelector": {"matchLabels": self.labels(service.name)},
                    "policyTypes": ["Ingress", "Egress"],
                }
                self.make("NetworkPolicy", "networking.k8s.io/v1", self.service_names(service.name), {"spec": spec})
        for key in on_it:
            network = self.stack.networks[key]
            if network.external:
                why = f"who else is on it must have the label {self.network_label(key)}: yes"
                self.lose(network.place, f"networks.{key}", why)
            if network.driver not in ("", "bridge", "overlay"):
                self.lose(network.place, f"networks.{key}", f"the driver {network.driver} is not carried over")
            members = {"podSelector": {"matchLabels": {self.network_label(key): "yes"}}}
            spec = {**members, "policyTypes": ["Ingress"], "ingress": [{"from": [members]}]}
            name = f"network-{self.network_names(key)}"
            self.make("NetworkPolicy", "networking.k8s.io/v1", name, {"spec": spec})
            if network.internal:
                inside = {**members["podSelector"]["matchLabels"], "compose.network/inside-only": "yes"}
                names = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
                spec = {
                    "podSelector": {"matchLabels": inside},
                    "policyTypes": ["Egress"],
                    "egress": [{"to": [members]}, {"ports": names}],
                }
                self.make("NetworkPolicy", "networking.k8s.io/v1", f"{name}-inside", {"spec": spec})


def _numbers(user: str) -> tuple[int | None, int | None]:
    """The numbers of ``user[:group]``, each None where it is none; root is 0."""
    name, _, group = user.partition(":")
    found = [0 if one == "root" else int(one) if re.fullmatch(r"\d{1,10}", one) else None for one in (name, group)]
    return found[0], found[1]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _config_data(contents: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Texts as ``data``, all else as ``binaryData``."""
    plain: dict[str, str] = {}
    binary: dict[str, str] = {}
    for path, content in contents.items():
        key = text.data_key(path)
        try:
            plain[key] = content.decode()
        except UnicodeDecodeError:
            binary[key] = _base64(content)
    return {name: data for name, data in (("data", plain), ("binaryData", binary)) if data}


def _contents(paths: Sequence[Path], top: Path) -> dict[str, bytes]:
    """Path below ``top`` -> contents; nothing where that is too much for a ConfigMap or can't be read."""
    if len(paths) > _MOST_FILES:
        return {}
    found: dict[str, bytes] = {}
    left = _LARGEST_CONFIGMAP
    for path in paths:
        try:
            with path.open("rb") as stream:
                content = stream.read(left + 1)
        except OSError:
            return {}
        left -= len(content)
        if left < 0:
            return {}
        found[str(path.relative_to(top))] = content
    return found


def _memory(size: int | None) -> dict[str, Any]:
    return {"emptyDir": {"medium": "Memory", **({"sizeLimit": text.size(size)} if size else {})}}


def _is_secret(name: str, value: str) -> bool:
    if _SECRET_VALUE.search(value):
        return True
    is_path = name.upper().endswith(("_FILE", "_PATH")) or value.startswith("/")
    return bool(value and _SECRET_NAME.search(name)) and not is_path


def _is_hosts_own(path: str) -> bool:
    return path == "/" or any(path == one or path.startswith(f"{one}/") for one in _HOSTS_OWN)


def _is_address(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _container_ports(service: Service) -> list[dict[str, Any]]:
    seen = dict.fromkeys((port.target, port.protocol) for port in (*service.ports, *service.expose))
    return [
        {"name": f"{protocol}-{number}", "containerPort": number, "protocol": protocol.upper()}
        for number, protocol in seen
    ]


def _tcp_ports(service: Service) -> list[int]:
    return [port["containerPort"] for port in _container_ports(service) if port["protocol"] == "TCP"]


def _probes(check: Healthcheck, *, restarts: bool) -> dict[str, Any]:
    """Readiness as Compose's health; and what stays unhealthy is started again, where it is started again at all."""
    period = max(1, math.ceil(check.interval))
    probe = {
        "exec": {"command": [text.literal(word) for word in check.test]},
        "periodSeconds": period,
        "timeoutSeconds": max(1, math.ceil(check.timeout)),
        "failureThreshold": check.retries,
    }
    found: dict[str, Any] = {}
    if check.start_period:
        # Until it has passed once, the others do not begin.
        found["startupProbe"] = {**probe, "failureThreshold": check.retries + math.ceil(check.start_period / period)}
    found["readinessProbe"] = probe
    if restarts:
        found["livenessProbe"] = probe
    return found


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

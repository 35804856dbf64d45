# SPDX-License-Identifier: Apache-2.0
"""A service's container in a pod: its image, command, variables, resources, probes and rights."""

import math
import re
from typing import Any

from virtual_waggle import kubernetes_storage as storage
from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Healthcheck, Service
from virtual_waggle.kubernetes_objects import Conversion, Pod, container_ports, encoded, user_numbers

_SECRET_NAME = re.compile(
    r"PASS(WORD|WD|PHRASE)?$|PASSWORD|SECRET|TOKEN|CREDENTIAL|(API|ACCESS|PRIVATE|AUTH)_?KEY", re.I
)
_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^@/\s]+@")


def container(made: Conversion, service: Service, pod: Pod, *, runs_once: bool = False) -> dict[str, Any]:
    """The service's container; its volumes are added to the pod.  ``runs_once``: as an init container."""
    found: dict[str, Any] = {"name": made.service_names(service.name), "image": image(made, service)}
    found["imagePullPolicy"] = pull_policy(made, service)
    if service.entrypoint:
        found["command"] = [text.literal(word) for word in service.entrypoint]
    elif service.entrypoint == ():
        made.lose_key(service, "entrypoint", "Kubernetes has no way to leave out the image's own")
    if service.command:
        found["args"] = [text.literal(word) for word in service.command]
    if service.working_dir:
        found["workingDir"] = service.working_dir
    found.update(variables(made, service))
    if not runs_once and (ports := container_ports(service)):
        found["ports"] = ports
    if resources := resources_of(made, service):
        found["resources"] = resources
    if mounts := storage.mounts(made, service, pod):
        found["volumeMounts"] = mounts
    if service.healthcheck and not runs_once and "job" not in service.mode:
        found.update(_probes(service.healthcheck, restarts=service.restart != "no"))
    if security := security_of(made, service):
        found["securityContext"] = security
    if service.stdin_open:
        found["stdin"] = True
    if service.tty:
        found["tty"] = True
    if service.privileged:
        made.lose_key(service, "privileged", "is carried over; the cluster may refuse it")
    if service.network_mode and service.network_mode not in ("none", "bridge", "default"):
        made.lose_key(service, "network_mode", f"{service.network_mode}: a pod has its own network here")
    return found


def image(made: Conversion, service: Service) -> str:
    """The image; one that Compose would build has to be pushed."""
    if service.build:
        why = f"nodes can't build: push the image as {service.image or built(made, service)}"
        made.lose_key(service, "build", why)
    return service.image or built(made, service)


def built(made: Conversion, service: Service) -> str:
    """The name that Compose gives to an image that it builds."""
    return f"{made.stack.name}-{service.name}".lower()


def pull_policy(made: Conversion, service: Service) -> str:
    """When a node asks the registry."""
    if service.pull_policy in ("", "missing", "if_not_present"):
        return "IfNotPresent"
    known = {"always": "Always", "never": "Never", "build": "IfNotPresent"}
    if service.pull_policy not in known:
        made.lose_key(service, "pull_policy", f"{service.pull_policy}: Kubernetes pulls as each pod starts")
    return known.get(service.pull_policy, "Always")


def variables(made: Conversion, service: Service) -> dict[str, Any]:
    """What looks like a secret goes into a Secret, an ``env_file``'s rest into a ConfigMap, the rest stays."""
    in_files: dict[str, str] = {}
    for file in service.env_files:
        in_files.update(file.values)
    plain: dict[str, str] = {}
    hidden: dict[str, str] = {}
    env: list[dict[str, Any]] = []
    source = made.secret_names(f"{service.name}-env")
    for name, value in {**in_files, **service.environment}.items():
        if not text.is_variable(name):
            key = "environment" if name in service.environment else "env_file"
            made.lose_key(service, key, f"{name!r} can't be a variable's name in Kubernetes")
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
        name = made.config_names(f"{service.name}-env")
        made.make("ConfigMap", "v1", name, {"data": plain})
        found["envFrom"] = [{"configMapRef": {"name": name}}]
    if hidden:
        data = {key: encoded(value.encode()) for key, value in hidden.items()}
        made.make("Secret", "v1", source, {"type": "Opaque", "data": data})
    if env:
        found["env"] = env
    return found


def resources_of(made: Conversion, service: Service) -> dict[str, Any]:
    """What it may take at most and is sure to have."""
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
        made.lose_key(service, key, "a pod's count of processes is limited by the nodes' settings")
    return {name: amounts for name, amounts in (("limits", limits), ("requests", requests)) if amounts}


def security_of(made: Conversion, service: Service) -> dict[str, Any]:
    """Its user and rights."""
    found: dict[str, Any] = {}
    uid, gid = user_numbers(service.user)
    if service.user and uid is None:
        made.lose_key(service, "user", f"Kubernetes takes a user's number, not the name {service.user!r}")
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
                made.lose_key(service, "security_opt", "no-new-privileges can't stand beside privileged")
            else:
                found["allowPrivilegeEscalation"] = False
        elif option.replace("=", ":") == "seccomp:unconfined":
            found["seccompProfile"] = {"type": "Unconfined"}
        else:
            made.lose_key(service, "security_opt", f"{option!r} is not carried over")
    return found


def _is_secret(name: str, value: str) -> bool:
    if _SECRET_VALUE.search(value):
        return True
    is_path = name.upper().endswith(("_FILE", "_PATH")) or value.startswith("/")
    return bool(value and _SECRET_NAME.search(name)) and not is_path


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

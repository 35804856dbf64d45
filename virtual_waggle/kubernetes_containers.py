# SPDX-License-Identifier: Apache-2.0
"""A service's container in a pod: its image, command, variables, resources, probes and rights."""

import math
import re
from typing import Any

from virtual_waggle import kubernetes_storage as storage
from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Service
from virtual_waggle.kubernetes_objects import (
    Conversion,
    Pod,
    container_ports,
    encoded,
    is_job,
    tcp_ports,
    user_numbers,
)

_SECRET_NAME = re.compile(
    r"PASS(WD|PHRASE)?$|PASSWORD|PWD|SECRET|TOKEN|CREDENTIAL|COOKIE|(API|ACCESS|PRIVATE|AUTH)_?KEY|_KEY$|_AUTH$", re.I
)
_PATH_NAME = re.compile(r"_(FILE|PATH|DIR)$", re.I)
_STARTS_IN = 300  # seconds that each may take to start; Compose calls it unhealthy sooner, but kills nobody for that


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
    elif service.command == () and not service.entrypoint:
        made.lose_key(service, "command", "Kubernetes has no way to leave out the image's own")
    for key, words in (("entrypoint", service.entrypoint), ("command", service.command)):
        if text.command_holds_password(words or ()):
            made.lose_key(service, key, "holds what looks like a password, in plain")
    if service.working_dir:
        found["workingDir"] = service.working_dir
    found.update(variables(made, service))
    if not runs_once and (ports := container_ports(service)):
        found["ports"] = ports
    if resources := resources_of(made, service):
        found["resources"] = resources
    if mounts := storage.mounts(made, service, pod):
        found["volumeMounts"] = mounts
    if not runs_once:
        found.update(probes(made, service))
    if security := security_of(made, service):
        found["securityContext"] = security
    if service.stdin_open:
        found["stdin"] = True
    if service.tty:
        found["tty"] = True
    if service.privileged:
        made.lose_key(service, "privileged", "is carried over; the cluster may refuse it")
    if service.network_mode and service.network_mode not in ("none", "bridge", "default"):
        why = f"{service.network_mode}: a pod has its own network; what was at localhost is found by its name"
        made.lose_key(service, "network_mode", why)
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
    source = made.secret_names(f"{service.name}-env", "environment", service.name)
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
        name = made.config_names(f"{service.name}-env", "environment", service.name)
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
        key: [name.upper().removeprefix("CAP_") for name in names]
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


def probes(made: Conversion, service: Service) -> dict[str, Any]:
    """Readiness as Compose's health; and what stays unhealthy is started again, where it is started again at all."""
    check = service.healthcheck
    if check is None:
        ports = tcp_ports(service)
        if service.name not in made.watched or not ports:
            return {}
        return {"readinessProbe": {"tcpSocket": {"port": ports[0]}, "periodSeconds": 5, "timeoutSeconds": 3}}
    if text.command_holds_password(check.test):
        made.lose_key(service, "healthcheck", "holds what looks like a password, in plain")
    period = max(1, math.ceil(check.interval))
    probe = {
        "exec": {"command": [text.literal(word) for word in check.test]},
        "periodSeconds": period,
        "timeoutSeconds": max(1, math.ceil(check.timeout)),
        "failureThreshold": check.retries,
    }
    if is_job(service):
        return {"readinessProbe": probe}
    # Until it has passed once, the others do not begin.
    tries = max(check.retries + math.ceil(check.start_period / period), math.ceil(_STARTS_IN / period))
    return {
        "startupProbe": {**probe, "failureThreshold": tries},
        "readinessProbe": probe,
        "livenessProbe": probe,
    }


def _is_secret(name: str, value: str) -> bool:
    if text.holds_password(value):
        return True
    is_path = _PATH_NAME.search(name) or re.match(r"/run/secrets(/|$)", value)
    return bool(value and _SECRET_NAME.search(name)) and not is_path

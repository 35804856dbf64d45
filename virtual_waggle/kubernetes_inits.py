# SPDX-License-Identifier: Apache-2.0
"""What has to have happened before a service begins: init containers that wait, and services that run to their end."""

from groundwork import files
from virtual_waggle import kubernetes_containers as containers
from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Condition, Dependency, Service
from virtual_waggle.kubernetes_objects import Conversion, Pod, is_job, tcp_ports, user_numbers

_WAIT = 900  # seconds for another service; then the pod begins anew

# The name in full, by the namespace's domain: no other domain that is searched may answer.  What nslookup's exit code
# tells depends on whose it is.
_FULL_NAME = 'name="$0$(sed -n "s/^search \\([^ ]*\\).*/.\\1./p" /etc/resolv.conf)"'
_IS_KNOWN = (
    'if command -v getent > /dev/null; then getent hosts "$name"; '
    'else nslookup "$name" 2> /dev/null | grep -q "^Name:"; fi'
)
_SCRIPT = (
    f"{_FULL_NAME}; end=$(($(date +%s) + {_WAIT})); until ({_IS_KNOWN}) > /dev/null 2>&1; do "
    'if [ "$(date +%s)" -ge "$end" ]; then echo "$name: nothing got ready" >&2; exit 1; fi; sleep 1; done'
)

# Keys of a service that are its pod's, and the model's names for them.
_OF_THE_POD = {
    "annotations": "annotations", "deploy": "constraints", "dns": "dns", "dns_search": "dns_search",
    "extra_hosts": "extra_hosts", "group_add": "groups", "hostname": "hostname", "labels": "labels",
    "network_mode": "network_mode", "platform": "platform", "stop_grace_period": "stop_grace_period",
    "sysctls": "sysctls",
}  # fmt: skip


def add_inits(made: Conversion, service: Service, pod: Pod) -> None:
    """What has to have happened before the service begins, in its order."""
    for dependency in service.depends_on:
        if dependency.service not in made.services:
            continue
        other = made.services[dependency.service]
        where = f"services.{service.name}.depends_on.{other.name}"
        if dependency.condition is Condition.COMPLETED:
            name = made.service_names(other.name)
            if name not in pod.inits:
                add_inits(made, other, pod)
                pod.inits[name] = containers.container(made, other, pod, runs_once=True)
        elif other.name in made.awaited:
            made.lose(dependency.place, where, "has ended before this begins")
        elif dependency.condition is Condition.HEALTHY:
            add_wait(made, service, dependency, other, pod)
        else:
            made.lose(dependency.place, where, "Kubernetes starts both at once; this one must bear to wait")


def add_wait(made: Conversion, service: Service, dependency: Dependency, other: Service, pod: Pod) -> None:
    """An init container that waits until the other service is ready: until a name is known that only then is.

    So it needs no port of the other's, and no network that both are on.
    """
    where = f"services.{service.name}.depends_on.{other.name}"
    if other.healthcheck is None:
        ports = tcp_ports(other)
        counts = f"its port {ports[0]} is open" if ports else "it has started"
        why = f"its image's own health check is not known here: it counts as healthy when {counts}"
        made.lose(dependency.place, where, why)
    if is_job(other):
        made.lose(dependency.place, where, "counts as healthy while it runs, as a Job, and not when it has ended")
    for one in (other, made.services[pod.owner]):
        if made.is_cut_off(one):
            made.lose(dependency.place, where, f"{one.name} is on no network, so nothing is waited for")
            return
    name = f"wait-for-{made.service_names(other.name)}"
    pod.inits[name] = {
        "name": name,
        "image": made.wait_image,
        "imagePullPolicy": "IfNotPresent",
        "command": [text.literal(word) for word in ("sh", "-c", _SCRIPT, made.ready_name(other.name))],
        "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
        "securityContext": {
            "runAsUser": 65534,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def of_what_runs_before(made: Conversion, service: Service) -> None:
    """What is lost of a service that runs to its end in others' pods."""
    owners = [
        one
        for one in made.services.values()
        if one.name not in made.awaited and any(other.name == service.name for other in made.before(one))
    ]
    pods = files.join_names([one.name for one in owners])
    why = f"runs as an init container: again in every new pod of {pods}"
    made.lose(service.place, f"services.{service.name}", why)
    for key, attribute in _OF_THE_POD.items():
        if any(getattr(one, attribute) != getattr(service, attribute) for one in owners) and key in service.places:
            made.lose_key(service, key, f"is that of the pods of {pods}, in which it runs")
    for key in ("ports", "expose"):
        if key in service.places:
            made.lose_key(service, key, "runs as an init container, which others can't reach")
    if any(user_numbers(one.user) != user_numbers(service.user) for one in owners) and service.mounts:
        made.lose_key(service, "user", f"its volumes belong to the group of {pods}, in whose pods it runs")
    for owner in owners:
        more = [key for key in made.own_networks(service) if key not in made.own_networks(owner)]
        if more:
            why = f"its pod is on {files.join_names(more)} too, for {service.name}, which runs in it"
            made.lose_key(owner, "networks", why)

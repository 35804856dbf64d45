# SPDX-License-Identifier: Apache-2.0
"""What a pod mounts: claims for volumes and folders of the host, ConfigMaps and Secrets for files, memory for tmpfs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Material, Mount, MountKind, Service
from virtual_waggle.kubernetes_objects import Conversion, Pod, encoded, user_numbers

_LARGEST_CONFIGMAP = 900 << 10  # bytes; Kubernetes' limit of 1 MiB counts more than the contents
_MOST_FILES = 100  # of a folder that becomes a ConfigMap
_SECRET_FILE = re.compile(r"passw|secret|token|credential|\.key$|\.p12$|key\.pem$|^id_[a-z0-9]+$", re.I)
_HOSTS_OWN = ("/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/lib/modules", "/boot", "/var/lib/docker")


def mounts(made: Conversion, service: Service, pod: Pod) -> list[dict[str, Any]]:
    """The container's ``volumeMounts``; the pod gets the volumes."""
    found: dict[str, dict[str, Any]] = {}  # by path: one place has one mount
    for number, mount in enumerate(service.mounts):
        name = f"{made.service_names(service.name)}-{number}"
        if row := mounted(made, service, mount, name, pod):
            found[mount.target] = {**row, "mountPath": mount.target.rstrip("/") or "/"}
    if service.shm_size:
        name = f"{made.service_names(service.name)}-shm"
        pod.volumes[name] = _memory(service.shm_size)
        found["/dev/shm"] = {"name": name, "mountPath": "/dev/shm"}  # noqa: S108
    found.update(granted(made, service, pod))
    return list(found.values())


def mounted(made: Conversion, service: Service, mount: Mount, name: str, pod: Pod) -> dict[str, Any] | None:
    """One mount, but for its path; None where it can't be carried over.  A volume only of it is called ``name``."""
    read_only = {"readOnly": True} if mount.read_only else {}
    if mount.kind is MountKind.TMPFS:
        pod.volumes[name] = _memory(mount.size)
        return {"name": name}
    if mount.kind is MountKind.VOLUME and not mount.source:
        why = "a volume without a name is empty again in each new pod"
        made.lose(mount.place, f"services.{service.name}.volumes", why)
        pod.volumes[name] = {"emptyDir": {}}
        return {"name": name}
    if mount.kind is MountKind.VOLUME:
        claim = volume_claim(made, service, mount, pod)
    elif row := carried_files(made, service, mount, name, pod):
        return row
    elif _is_hosts_own(mount.source):
        why = f"{mount.source} is the host's own; no pod sees it here"
        if mount.source in ("/etc/localtime", "/etc/timezone"):
            why = "a pod's time zone is set by the variable TZ"
        made.lose(mount.place, f"services.{service.name}.volumes", why)
        return None
    else:
        claim = make_claim(made, mount, pod, Path(mount.source).name or "root", mount.source)
        why = f"{mount.source} of this machine is not carried over; the claim {claim} begins empty"
        made.lose(mount.place, f"services.{service.name}.volumes", why)
    volume = f"claim-{claim}"
    pod.volumes[volume] = {"persistentVolumeClaim": {"claimName": claim}}
    return {"name": volume, **read_only, **({"subPath": mount.subpath} if mount.subpath else {})}


def volume_claim(made: Conversion, service: Service, mount: Mount, pod: Pod) -> str:
    """The name of the claim for a named volume."""
    volume = made.stack.volumes[mount.source]
    where = f"volumes.{volume.key}"
    if volume.external:
        claim = text.legal(volume.name)
        made.lose(volume.place, where, f"is external: the claim {claim} must be there already")
        return claim
    claim = make_claim(made, mount, pod, volume.key, f"volumes {volume.key}", volume.labels)
    if volume.driver not in ("", "local") or volume.options:
        made.lose(volume.place, where, "its driver is not carried over: the claim takes the cluster's storage")
    why = f"the claim {claim} asks for {made.storage} and begins empty; Docker copies in what the image has there"
    made.lose(volume.place, where, why)
    return claim


def make_claim(
    made: Conversion, mount: Mount, pod: Pod, name: str, key: str, labels: Mapping[str, str] | None = None
) -> str:
    """A claim; the same ``key`` has the same one."""
    claim = next((known for known, one in made.claimed.items() if one == key), None)
    if claim is None:
        claim = text.legal(name)
        while claim in made.claimed:
            claim += "-2"
        made.claimed[claim] = key
    users = made.users_of.setdefault(claim, set())
    users.add(pod.owner)
    owner = made.services[pod.owner]
    several = len(users) > 1 or owner.replicas > 1 or owner.mode == "global"
    if several:
        made.shared.setdefault(claim, mount.place)
    annotations = {key: value for key, value in (labels or {}).items() if text.is_annotation(key)}
    spec = {
        "accessModes": ["ReadWriteMany" if claim in made.shared else "ReadWriteOnce"],
        "resources": {"requests": {"storage": made.storage}},
    }
    made.made.get("PersistentVolumeClaim", {}).pop(claim, None)
    more = {"annotations": annotations} if annotations else {}
    made.make("PersistentVolumeClaim", "v1", claim, {"spec": spec}, **more)
    return claim


def carried_files(made: Conversion, service: Service, mount: Mount, name: str, pod: Pod) -> dict[str, Any] | None:
    """A file, or a folder that is only read, that lies beside the Compose file, as ConfigMap or Secret."""
    source = Path(mount.source)
    if not any(source.is_relative_to(folder) for folder in made.beside):
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
        made.lose(mount.place, where, f"{source.name} is carried along, and can't be written in the pod")
    is_secret = any(_SECRET_FILE.search(Path(path).name) for path in contents)
    reference = keep(made, f"{service.name}-{source.name}", contents, is_secret=is_secret)
    if source.is_file():
        pod.volumes[name] = reference
        return {"name": name, "subPath": text.data_key(source.name), "readOnly": True}
    items = [{"key": text.data_key(path), "path": path} for path in contents]
    kind = next(iter(reference))
    pod.volumes[name] = {kind: {**reference[kind], "items": items}}
    return {"name": name, "readOnly": True}


def keep(made: Conversion, name: str, contents: Mapping[str, bytes], *, is_secret: bool) -> dict[str, dict[str, Any]]:
    """Make a ConfigMap or Secret of these; the volume that shows it."""
    if is_secret:
        kept = made.secret_names(name)
        data = {text.data_key(path): encoded(content) for path, content in contents.items()}
        made.make("Secret", "v1", kept, {"type": "Opaque", "data": data})
        return {"secret": {"secretName": kept}}
    kept = made.config_names(name)
    made.make("ConfigMap", "v1", kept, _config_data(contents))
    return {"configMap": {"name": kept}}


def granted(made: Conversion, service: Service, pod: Pod) -> dict[str, dict[str, Any]]:
    """Secrets and configs: those of one folder that has nothing else in it as a whole, others each for itself."""
    found: dict[str, dict[str, Any]] = {}
    base = made.service_names(service.name)
    in_folder: list[dict[str, Any]] = []
    for kind, grants, known in (
        ("secret", service.secrets, made.stack.secrets),
        ("configMap", service.configs, made.stack.configs),
    ):
        for grant in grants:
            name, key = material(made, service, kind, known[grant.source])
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
        shown = 0o440 if user_numbers(service.user)[0] else 0o444  # another user's pod has its group
        volume = f"{base}-secrets"
        pod.volumes[volume] = {"projected": {"defaultMode": shown, "sources": in_folder}}
        found["/run/secrets"] = {"name": volume, "mountPath": "/run/secrets", "readOnly": True}
    return found


def material(made: Conversion, service: Service, kind: str, given: Material) -> tuple[str, str]:
    """The name of the object for a secret or config, and the key in it."""
    where = f"{'secrets' if kind == 'secret' else 'configs'}.{given.key}"
    names = made.secret_names if kind == "secret" else made.config_names
    key = text.data_key(given.key)
    if given.external:
        name = text.legal(given.name)
        made.lose(given.place, where, f"is external: {name} with the key {key} must be there already")
        return name, key
    name = names(given.key)
    if given.missing:
        made.lose(given.place, where, f"can't read {given.file}: make {name} with the key {key} by hand")
    elif kind == "secret":
        data = {key: encoded(given.content or b"")}
        made.make("Secret", "v1", name, {"type": "Opaque", "data": data})
    else:
        made.make("ConfigMap", "v1", name, _config_data({key: given.content or b""}))
    return name, key


def _config_data(contents: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Texts as ``data``, all else as ``binaryData``."""
    plain: dict[str, str] = {}
    binary: dict[str, str] = {}
    for path, content in contents.items():
        key = text.data_key(path)
        try:
            plain[key] = content.decode()
        except UnicodeDecodeError:
            binary[key] = encoded(content)
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


def _is_hosts_own(path: str) -> bool:
    return path == "/" or any(path == one or path.startswith(f"{one}/") for one in _HOSTS_OWN)

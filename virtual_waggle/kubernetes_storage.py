# SPDX-License-Identifier: Apache-2.0
"""What a pod mounts: claims for volumes and folders of the host, ConfigMaps and Secrets for files, memory for tmpfs."""

import re
import stat
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from virtual_waggle import kubernetes_text as text
from virtual_waggle.compose_model import Material, Mount, MountKind, Service, Volume
from virtual_waggle.kubernetes_objects import Claim, Conversion, Pod, encoded, user_numbers

_LARGEST_CONFIGMAP = 900 << 10  # bytes; Kubernetes' limit of 1 MiB counts more than the contents
_MOST_FILES = 100  # of a folder that becomes a ConfigMap
_SECRET_FILE = re.compile(
    r"passw|secret|token|credential|\.key$|\.p12$|key\.pem$|^id_[a-z0-9]+$|^\.env|^\.pgpass$|^\.netrc$", re.I
)
_HOSTS_OWN = ("/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/lib/modules", "/boot", "/var/lib/docker")
# Where programs look for their configuration, scripts or pages, and write nothing.
_ONLY_READ = re.compile(r"/(usr/local/)?etc/.+|/docker-entrypoint.*|/.+\.d|/usr/.+/(html|htdocs)")
_FILE_NAME = re.compile(r"[^/]\.(?!d$)[A-Za-z]\w*$")
_EXECUTABLE = 0o555


def mounts(made: Conversion, service: Service, pod: Pod) -> list[dict[str, Any]]:
    """The container's ``volumeMounts``; the pod gets the volumes."""
    found: dict[str, dict[str, Any]] = {}  # by path: one place has one mount
    base = made.service_names(service.name)
    for number, mount in enumerate(service.mounts):
        path = mount.target.rstrip("/") or "/"
        if row := mounted(made, service, mount, pod.names(f"{base}-{number}", service.name), pod):
            if path in found:
                made.lose(mount.place, f"services.{service.name}.volumes", f"{path} is mounted twice: the last counts")
            found[path] = {**row, "mountPath": path}
    if service.shm_size:
        name = pod.names(f"{base}-shm", service.name)
        pod.volumes[name] = _memory(service.shm_size)
        found["/dev/shm"] = {"name": name, "mountPath": "/dev/shm"}  # noqa: S108
    found.update(granted(made, service, pod))
    return list(found.values())


def mounted(made: Conversion, service: Service, mount: Mount, name: str, pod: Pod) -> dict[str, Any] | None:
    """One mount, but for its path; None where it can't be carried over.  A volume only of it is called ``name``."""
    where = f"services.{service.name}.volumes"
    if mount.kind is MountKind.TMPFS:
        pod.volumes[name] = _memory(mount.size)
        return {"name": name}
    if mount.kind is MountKind.VOLUME and not mount.source:
        made.lose(mount.place, where, "a volume without a name is empty again in each new pod")
        pod.volumes[name] = {"emptyDir": {}}
        return {"name": name}
    if mount.kind is MountKind.VOLUME:
        volume = made.stack.volumes[mount.source]
        claim = volume_claim(made, volume, mount, pod)
        top = "" if volume.external else text.legal(volume.key)
    elif row := carried_files(made, service, mount, name, pod):
        return row
    elif why := no_claim(mount):
        made.lose(mount.place, where, why)
        return None
    else:
        top = text.legal(Path(mount.source).name or "root")
        claim = claim_for(made, mount, pod, made.claim_names(top, "folder", mount.source), {})
        why = f"{mount.source} of this machine is not carried over; the claim {claim} begins empty"
        made.lose(mount.place, where, why)
    shown = pod.names(f"claim-{claim}", "claim")
    pod.volumes[shown] = {"persistentVolumeClaim": {"claimName": claim}}
    # Not the top of a new file system: that is not empty, and databases want an empty folder.
    inside = "/".join(part for part in (top, mount.subpath.strip("/")) if part)
    read_only = {"readOnly": True} if mount.read_only else {}
    return {"name": shown, **read_only, **({"subPath": inside} if inside else {})}


def no_claim(mount: Mount) -> str:
    """Why something of this machine gets no claim: a claim is a folder, and the host's own is not ours to replace."""
    if mount.source in ("/etc/localtime", "/etc/timezone"):
        return "a pod's time zone is set by the variable TZ"
    if _is_hosts_own(mount.source):
        return f"{mount.source} is the host's own; no pod sees it here"
    mode = _mode(Path(mount.source))
    if mode is None and _FILE_NAME.search(mount.target):
        return f"{mount.source} is not there, and looks like a file: nothing is mounted"
    if mode is not None and not stat.S_ISDIR(mode):
        return f"{mount.source} is no folder, and none of the files that are carried along: nothing is mounted"
    return ""


def volume_claim(made: Conversion, volume: Volume, mount: Mount, pod: Pod) -> str:
    """The name of the claim for a named volume."""
    where = f"volumes.{volume.key}"
    if volume.external:
        claim = text.legal(volume.name)
        made.lose(volume.place, where, f"is external: the claim {claim} must be there already")
        return claim
    notes = {key: value for key, value in volume.labels.items() if text.is_annotation(key)}
    claim = claim_for(made, mount, pod, made.claim_names(volume.key, "volume"), notes)
    if volume.driver not in ("", "local") or volume.options:
        made.lose(volume.place, where, "its driver is not carried over: the claim takes the cluster's storage")
    why = f"the claim {claim} asks for {made.storage} and begins empty, root's where no user is named"
    why += "; Docker copies in what the image has there"
    made.lose(volume.place, where, why)
    return claim


def claim_for(made: Conversion, mount: Mount, pod: Pod, claim: str, notes: Mapping[str, str]) -> str:
    """Note that the pod uses this claim."""
    made.claims.setdefault(claim, Claim(notes)).users.setdefault(pod.owner, mount.place)
    return claim


def claims(made: Conversion) -> None:
    """The claims that pods use."""
    for name, claim in made.claims.items():
        owners = [made.services[owner] for owner in claim.users]
        many = [one for at, one in enumerate(owners) if at or one.replicas > 1 or one.mode == "global"]
        shared = [owner for owner in many if owner.mode == "global" or not made.one_machine]
        if shared:
            why = "several pods write it: the cluster needs storage for many writers"
            made.lose(claim.users[shared[0].name], f"volumes.{name}", why)
        spec = {
            "accessModes": ["ReadWriteMany" if shared else "ReadWriteOnce"],
            "resources": {"requests": {"storage": made.storage}},
        }
        more = {"annotations": dict(claim.annotations)} if claim.annotations else {}
        made.make("PersistentVolumeClaim", "v1", name, {"spec": spec}, **more)


def carried_files(made: Conversion, service: Service, mount: Mount, name: str, pod: Pod) -> dict[str, Any] | None:
    """A file, or a folder that is only read, that lies beside the Compose file, as ConfigMap or Secret."""
    source = Path(mount.source)
    mode = _mode(source)
    if mode is None or not any(source.is_relative_to(folder) for folder in made.beside):
        return None
    is_folder = stat.S_ISDIR(mode)
    if stat.S_ISREG(mode):
        contents = _contents([source], source.parent)
    elif is_folder and (mount.read_only or _ONLY_READ.fullmatch(mount.target.rstrip("/"))):
        contents = _contents(_files_in(source), source)
    else:
        return None
    if not contents:
        return None
    if not mount.read_only:
        where = f"services.{service.name}.volumes"
        made.lose(mount.place, where, f"{source.name} is carried along, and can't be written in the pod")
    is_secret = any(
        _SECRET_FILE.search(Path(path).name) or text.file_holds_password(content) for path, content in contents.items()
    )
    kept = f"{service.name}-{source.name}"
    kind, reference = keep(made, kept, contents, (service.name, str(source)), is_secret=is_secret)
    items = []
    for path in contents:
        file = source / path if is_folder else source
        items.append({"key": text.data_key(path), "path": path, **_executable(file)})
    if is_folder:
        pod.volumes[name] = {kind: {**reference, "items": items}}
        return {"name": name, "readOnly": True}
    shown = {"defaultMode": _EXECUTABLE} if "mode" in items[0] else {}
    pod.volumes[name] = {kind: {**reference, **shown}}
    return {"name": name, "subPath": text.data_key(source.name), "readOnly": True}


def keep(
    made: Conversion, name: str, contents: Mapping[str, bytes], of: Sequence[str], *, is_secret: bool
) -> tuple[str, dict[str, Any]]:
    """Make a ConfigMap or Secret of these; the kind of volume that shows it, and how that names it."""
    if is_secret:
        kept = made.secret_names(name, *of)
        data = {text.data_key(path): encoded(content) for path, content in contents.items()}
        made.make("Secret", "v1", kept, {"type": "Opaque", "data": data})
        return "secret", {"secretName": kept}
    kept = made.config_names(name, *of)
    made.make("ConfigMap", "v1", kept, _config_data(contents))
    return "configMap", {"name": kept}


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
            file = known[grant.source].file
            mode = {"mode": grant.mode} if grant.mode is not None else _executable(file) if file else {}
            if grant.target.startswith("/run/secrets/") and kind == "secret":
                path = grant.target.removeprefix("/run/secrets/")
                source = {"name": name, "items": [{"key": key, "path": path, **mode}]}
                in_folder.append({kind: source})
                continue
            volume = pod.names(f"{base}-{kind.lower()}-{grant.source}", service.name, grant.target)
            reference: dict[str, Any] = {"secretName": name} if kind == "secret" else {"name": name}
            pod.volumes[volume] = {kind: {**reference, "items": [{"key": key, "path": key, **mode}]}}
            found[grant.target] = {"name": volume, "mountPath": grant.target, "subPath": key, "readOnly": True}
    if in_folder:
        shown = 0o440 if user_numbers(service.user)[0] else 0o444  # another user's pod has its group
        volume = pod.names(f"{base}-secrets", service.name)
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
    name = names(given.key, "of the file")
    if given.missing:
        made.lose(given.place, where, f"can't read {given.file}: make {name} with the key {key} by hand")
    elif kind == "secret":
        data = {key: encoded(given.content or b"")}
        made.make("Secret", "v1", name, {"type": "Opaque", "data": data})
    else:
        made.make("ConfigMap", "v1", name, _config_data({key: given.content or b""}))
        if text.file_holds_password(given.content or b""):
            made.lose(
                given.place, where, "holds what looks like a password, in plain: under secrets it would be hidden"
            )
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


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder and those below it; some of them where there are too many."""
    found = (path for path in folder.rglob("*") if stat.S_ISREG(_mode(path) or 0))
    return sorted(islice(found, _MOST_FILES + 1))


def _mode(path: Path) -> int | None:
    """What kind of thing this is and who may do what with it; None where nothing is seen."""
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _executable(path: Path) -> dict[str, int]:
    """The mode of a file that is a program; others have the default."""
    mode = _mode(path)
    return {"mode": _EXECUTABLE} if mode is not None and mode & 0o111 else {}


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

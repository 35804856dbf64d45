# SPDX-License-Identifier: Apache-2.0
"""A Compose file, ours or anyone's, as values: variables filled in, short forms written out, references checked.

It follows the Compose specification.  What of it is known and not read is told (``Stack.unread``), what is unknown
or wrong is an error with file, line and key.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from groundwork.errors import InputError, nearest, unknown
from virtual_waggle import compose_tree as tree
from virtual_waggle.compose_model import (
    Attachment,
    Condition,
    Dependency,
    EnvFile,
    Grant,
    Healthcheck,
    Material,
    Mount,
    MountKind,
    Network,
    Place,
    Port,
    Resources,
    Service,
    Stack,
    Unread,
    Volume,
)
from virtual_waggle.compose_tree import Node
from virtual_waggle.variables import Variables, read_env_file

_MOST_SERVICES = 500
_MOST_PORTS = 1000  # a range of ports is written out
_LARGEST_CONTENT = 1 << 20  # bytes of a secret or config, as Kubernetes takes at most


def load(path: Path, variables: Mapping[str, str], *, name: str | None = None) -> Stack:
    """Read a Compose file and all the files that it names; ``variables`` fill in its ``$VARIABLE``s.

    Services of all profiles are in it; :func:`selected` chooses.  ``name`` is the project's, before the file's own.
    """
    noting = Variables(variables)
    root = tree.parse(path, noting)
    return _Reading(root, path, noting).stack(name)


def with_dotenv(path: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, and below them those of the file ``.env`` beside the Compose file, as Compose takes it."""
    dotenv = path.parent / ".env"
    return {**(read_env_file(dotenv, variables) if dotenv.is_file() else {}), **variables}


def environment(service: Service) -> dict[str, str]:
    """All variables of a service; what the file itself says counts before its ``env_file``s."""
    merged: dict[str, str] = {}
    for file in service.env_files:
        merged.update(file.values)
    merged.update(service.environment)
    return merged


def selected(stack: Stack, profiles: Iterable[str] = ()) -> list[Service]:
    """The services of these profiles and those of none, each after all that it depends on.

    Raises InputError where one needs a service that is not among them.
    """
    wanted = set(profiles)
    chosen = {
        name: service
        for name, service in stack.services.items()
        if not service.profiles or "*" in wanted or wanted & set(service.profiles)
    }
    ordered: dict[str, Service] = {}

    def add(service: Service) -> None:
        for dependency in service.depends_on:
            if dependency.service in chosen:
                if dependency.service not in ordered:
                    add(chosen[dependency.service])
            elif dependency.required:
                needs = " or ".join(stack.services[dependency.service].profiles)
                raise InputError(
                    f"{dependency.place}: services.{service.name}.depends_on: {dependency.service} is off",
                    hint=f"it belongs to the profile {needs}",
                )
        ordered[service.name] = service

    for service in chosen.values():
        if service.name not in ordered:
            add(service)
    return list(ordered.values())


_NAME = re.compile(r"[a-zA-Z0-9._-]{1,200}")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]*")
_PORT = re.compile(
    r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+|):)?(?:(?P<published>\d+(?:-\d+)?|):)?"
    r"(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>(?i:tcp|udp|sctp)))?"
)

# Keys of a service that are known and have no meaning for what reads this model.
_UNREAD = (
    "attach", "blkio_config", "cgroup", "cgroup_parent", "cpu_count", "cpu_percent", "cpu_period",
    "cpu_quota", "cpu_rt_period", "cpu_rt_runtime", "cpu_shares", "cpuset", "credential_spec", "develop",
    "device_cgroup_rules", "devices", "dns_opt", "domainname", "external_links", "gpus", "ipc", "isolation",
    "label_file", "links", "logging", "mac_address", "memswap_limit", "mem_swappiness", "oom_kill_disable",
    "oom_score_adj", "pid", "post_start", "pre_stop", "provider", "pull_refresh_after", "runtime", "storage_opt",
    "ulimits", "use_api_socket", "userns_mode", "uts", "volumes_from", "models",
)  # fmt: skip
_READ = (
    "annotations", "build", "cap_add", "cap_drop", "command", "configs", "container_name", "cpus", "depends_on",
    "deploy", "dns", "dns_search", "entrypoint", "env_file", "environment", "expose", "extends", "extra_hosts",
    "group_add", "healthcheck", "hostname", "image", "init", "labels", "mem_limit", "mem_reservation", "network_mode",
    "networks", "pids_limit", "platform", "ports", "privileged", "profiles", "pull_policy", "read_only", "restart",
    "scale", "secrets", "security_opt", "shm_size", "stdin_open", "stop_grace_period", "stop_signal", "sysctls",
    "tmpfs", "tty", "user", "volumes", "working_dir",
)  # fmt: skip
_UNREAD_OF_ATTACHMENT = (
    "ipv4_address", "ipv6_address", "link_local_ips", "mac_address", "driver_opts", "gw_priority", "interface_name",
)  # fmt: skip
_PROPAGATION = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_TOP = ("version", "name", "services", "volumes", "networks", "secrets", "configs", "include", "models")


# --------------------------------------------------------------------------------------------------- the file's parts


class _Reading:
    """One reading of a file; what is known and not read is gathered on the way."""

    def __init__(self, root: Node, path: Path, variables: Variables) -> None:
        self.root = root
        self.path = path
        self.folder = path.absolute().parent
        self.variables = variables
        self.unread: list[Unread] = []

    def stack(self, name: str | None) -> Stack:
        top = self.known(self.root, _TOP, unread=("include", "models"))
        if "include" in top:
            raise top["include"].error("include is not taken here", hint=_RESOLVE)
        if "services" not in top or not tree.mapping(top["services"]):
            raise self.root.error("the key 'services' is missing: expected a Compose file with at least one service")
        if len(tree.mapping(top["services"])) > _MOST_SERVICES:
            raise top["services"].error(f"more than {_MOST_SERVICES} services")
        project = name or (tree.text(top["name"]) if "name" in top else "") or _project_name(self.folder.name)
        if not _PROJECT.fullmatch(project):
            raise (top.get("name") or self.root).error(f"{project!r} is no name of a project", hint="a-z, 0-9, - and _")

        def part(key: str, read: Callable[[str, Node], Any]) -> dict[str, Any]:
            found = tree.mapping(top[key]) if key in top else {}
            for name, node in found.items():
                if not _NAME.fullmatch(name):
                    raise node.error(f"{name!r} is no name", hint="letters, digits, ., - and _")
            return {name: read(name, node) for name, node in found.items()}

        services = part("services", self.service)
        for key, service in services.items():
            known = tuple(one for one in service.depends_on if one.required or one.service in services)
            services[key] = replace(service, depends_on=known)
        stack = Stack(
            path=self.path,
            name=project,
            services=services,
            volumes=part("volumes", lambda key, node: self.volume(key, node, project)),
            networks=part("networks", lambda key, node: self.network(key, node, project)),
            secrets=part("secrets", self.material),
            configs=part("configs", self.material),
            unread=tuple(self.unread),
            unset=tuple(self.variables.unset),
        )
        networks = dict(stack.networks)
        if any(one.network == "default" for service in stack.services.values() for one in service.networks):
            networks.setdefault("default", Network("default", self.root.place, f"{project}_default"))
        stack = replace(stack, networks=networks)
        _check_references(stack)
        return stack

    def known(
        self, node: Node, known: Iterable[str], *, unread: Iterable[str] = (), what: str = "key"
    ) -> dict[str, Node]:
        """The mapping's keys.  Raises InputError for an unknown one; those ``unread`` are noted."""
        found = tree.mapping(node)
        all_known = {*known, *unread}
        for key, value in found.items():
            if key not in all_known:
                raise value.error(f"unknown {what}", hint=nearest(key, all_known))
            if key in unread and value.value not in (None, False):
                self.unread.append(Unread(value.place, value.name))
        return found

    def service(self, name: str, node: Node) -> Service:
        keys = self.known(node, _READ, unread=_UNREAD)
        if not isinstance(node.value, dict):
            raise node.wrong("a mapping of keys to values")
        if "extends" in keys:
            raise keys["extends"].error("extends is not taken here", hint=_RESOLVE)
        if "image" not in keys and "build" not in keys:
            raise node.error("has neither image nor build")
        values: dict[str, Any] = {}

        def take(key: str, read: Callable[[Node], Any], to: str | None = None) -> None:
            if key in keys and (keys[key].value is not None or key in ("command", "entrypoint")):
                values[to or key] = read(keys[key])

        for key in ("image", "user", "hostname", "container_name", "working_dir", "stop_signal", "platform"):
            take(key, tree.text)
        take("network_mode", tree.text)
        take("pull_policy", tree.text)
        for key in ("init", "privileged", "read_only", "tty", "stdin_open"):
            take(key, tree.boolean)
        for key in ("profiles", "cap_add", "cap_drop", "security_opt", "dns", "dns_search"):
            take(key, tree.texts)
        take("group_add", tree.texts, "groups")
        for key in ("command", "entrypoint"):
            take(key, tree.words)
        for key in ("labels", "sysctls"):
            take(key, tree.plain)
        take("shm_size", tree.bytes_of)
        take("stop_grace_period", tree.seconds)
        take("environment", self.environment)
        take("env_file", self.env_files, "env_files")
        take("depends_on", self.depends_on)
        if "healthcheck" in keys:
            values["healthcheck"], values["healthcheck_off"] = self.healthcheck(keys["healthcheck"])
        take("ports", self.ports)
        take("expose", lambda at: tuple(port for item in tree.items(at) for port in _short_port(item, exposed=True)))
        take("secrets", lambda at: self.grants(at, "/run/secrets/"))
        take("configs", lambda at: self.grants(at, "/"))
        take("networks", self.attachments)
        take("extra_hosts", _extra_hosts)
        take("scale", tree.whole, "replicas")
        values["mounts"] = self.mounts(keys)
        values["build"] = "build" in keys
        values.update(self.deployment(keys))
        if "networks" in keys and values.get("network_mode"):
            raise keys["network_mode"].error("stands beside networks; only one of them can count")
        if not values.get("networks") and not values.get("network_mode"):
            values["networks"] = (Attachment(node.place, "default"),)
        places = {key: value.place for key, value in keys.items()}
        return Service(name=name, place=node.place, places=places, **values)

    def environment(self, node: Node) -> dict[str, str]:
        """A variable that stands alone has the value that it has here; where it has none, it is left out."""
        found = {}
        for key, (value, item) in tree.by_text(node).items():
            if "=" in key or "\0" in key + (value or ""):
                raise item.error("is no name of a variable and its value")
            value = self.variables.get(key) if value is None else value
            if value is not None:
                found[key] = value
        return found

    def env_files(self, node: Node) -> tuple[EnvFile, ...]:
        read = []
        for item in tree.items(node) if isinstance(node.value, list) else [node]:
            required = True
            raw = False
            if isinstance(item.value, dict):
                keys = self.known(item, ("path", "required", "format"))
                if "path" not in keys:
                    raise item.error("the key 'path' is missing")
                required = tree.boolean(keys["required"]) if "required" in keys else True
                raw = "format" in keys and tree.one_of(["raw"])(keys["format"]) == "raw"
                item = keys["path"]
            path = self.resolve(tree.text(item))
            if not path.is_file():
                if required:
                    raise item.error(f"can't read {path}: no such file")
                continue
            read.append(EnvFile(item.place, path, read_env_file(path, self.variables, raw=raw)))
        return tuple(read)

    def depends_on(self, node: Node) -> tuple[Dependency, ...]:
        if isinstance(node.value, list):
            return tuple(Dependency(item.place, tree.text(item)) for item in node.value)
        found = []
        for name, item in tree.mapping(node).items():
            keys = self.known(item, ("condition", "required"), unread=("restart",))
            condition = tree.one_of([*Condition])(keys["condition"]) if "condition" in keys else Condition.STARTED
            required = tree.boolean(keys["required"]) if "required" in keys else True
            found.append(Dependency(item.place, name, Condition(condition), required))
        return tuple(found)

    def healthcheck(self, node: Node) -> tuple[Healthcheck | None, bool]:
        """The check, or None where it is the image's own; and whether it is off."""
        keys = self.known(
            node, ("test", "interval", "timeout", "start_period", "retries", "disable"), unread=("start_interval",)
        )
        if "disable" in keys and tree.boolean(keys["disable"]):
            return None, True
        test: tuple[str, ...]
        if "test" not in keys or keys["test"].value in (None, []):
            if set(keys) - {"test", "disable"}:
                self.unread.append(Unread(node.place, node.name))
            return None, False
        if isinstance(keys["test"].value, list):
            kind, *words = tree.texts(keys["test"])
            if kind == "NONE":
                return None, True
            if kind == "CMD-SHELL" and words:
                test = ("/bin/sh", "-c", " ".join(words))  # Docker runs the first word alone; this is what was meant
            elif kind == "CMD" and words:
                test = tuple(words)
            else:
                raise keys["test"].error("expected [CMD, word, ...], [CMD-SHELL, text] or [NONE]")
        else:
            test = ("/bin/sh", "-c", tree.text(keys["test"]))
        times = {key: tree.seconds(keys[key]) for key in ("interval", "timeout", "start_period") if key in keys}
        for key in ("interval", "timeout"):
            if times.get(key) == 0:  # Docker: then the default
                del times[key]
        retries = {"retries": tree.whole(keys["retries"]) or 3} if "retries" in keys else {}
        return Healthcheck(node.place, test, **times, **retries), False  # type: ignore[arg-type]

    def ports(self, node: Node) -> tuple[Port, ...]:
        found: list[Port] = []
        for item in tree.items(node):
            if isinstance(item.value, dict):
                found += self.long_port(item)
            else:
                found += _short_port(item)
            if len(found) > _MOST_PORTS:
                raise item.error(f"more than {_MOST_PORTS} ports")
        return tuple(found)

    def long_port(self, node: Node) -> list[Port]:
        keys = self.known(node, ("target", "published", "protocol", "host_ip", "name"), unread=("mode", "app_protocol"))
        if "target" not in keys:
            raise node.error("the key 'target' is missing")
        protocol = "tcp"
        if "protocol" in keys:
            word = replace(keys["protocol"], value=tree.text(keys["protocol"]).lower())
            protocol = tree.one_of(["tcp", "udp", "sctp"])(word)
        host = tree.text(keys["host_ip"]) if "host_ip" in keys else ""
        target = tree.whole(keys["target"], 1, 65535)
        published = tree.text(keys["published"]) if "published" in keys else ""
        if not re.fullmatch(r"(\d{1,5})?(-\d{1,5})?", published):
            raise keys["published"].wrong("a port")
        first = published.partition("-")[0]  # of a range Docker takes a free one
        if first and not 0 <= int(first) <= 65535:
            raise keys["published"].wrong("a port")
        return [Port(node.place, target, int(first) if first not in ("", "0") else None, protocol, host)]

    def mounts(self, keys: Mapping[str, Node]) -> tuple[Mount, ...]:
        found = []
        for item in tree.items(keys["volumes"]) if "volumes" in keys else []:
            mount = self.long_mount(item) if isinstance(item.value, dict) else self.short_mount(item)
            found.append((item, mount))
        if "tmpfs" in keys:
            items = tree.items(keys["tmpfs"]) if isinstance(keys["tmpfs"].value, list) else [keys["tmpfs"]]
            found += [(item, self.tmpfs(item)) for item in items]
        for item, mount in found:
            if not mount.target.startswith("/"):
                raise item.error(f"{mount.target!r} is no absolute path inside a container")
        return tuple(mount for _, mount in found)

    def tmpfs(self, node: Node) -> Mount:
        target, _, options = tree.text(node).partition(":")
        size = None
        for option in options.split(",") if options else []:
            key, _, value = option.partition("=")
            if key == "size" and not value.endswith("%"):
                try:
                    size = tree.byte_count(value)
                except ValueError:
                    raise node.wrong("a size as 64m") from None
            elif option != "rw":
                self.unread.append(Unread(node.place, f"{node.name}.{key}"))
        return Mount(node.place, MountKind.TMPFS, "", target, size=size)

    def short_mount(self, node: Node) -> Mount:
        parts = tree.text(node).split(":")
        if len(parts) > 3 or not all(parts):
            raise node.wrong("source:/target[:ro], :/target or name:/target")
        if len(parts) == 1:
            return Mount(node.place, MountKind.VOLUME, "", parts[0])
        options = set(parts[2].split(",")) if len(parts) == 3 else set()
        if rest := options - {"ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy", *_PROPAGATION}:
            raise node.error(f"unknown option {sorted(rest)[0]!r}", hint="known: ro, rw")
        for option in sorted(options & _PROPAGATION - {"private", "rprivate"}):
            self.unread.append(Unread(node.place, f"{node.name}.{option}"))
        source = parts[0]
        if source[0] in "./~":
            return Mount(node.place, MountKind.BIND, str(self.resolve(source)), parts[1], "ro" in options)
        return Mount(node.place, MountKind.VOLUME, source, parts[1], "ro" in options)

    def long_mount(self, node: Node) -> Mount:
        keys = self.known(
            node, ("type", "source", "target", "read_only", "tmpfs", "volume", "bind"), unread=("consistency", "image")
        )
        for key in ("type", "target"):
            if key not in keys:
                raise node.error(f"the key {key!r} is missing")
        kind = MountKind(tree.one_of([*MountKind])(keys["type"]))
        source = tree.text(keys["source"]) if "source" in keys else ""
        if kind is MountKind.BIND:
            if not source:
                raise node.error("the key 'source' is missing")
            source = str(self.resolve(source))
        size = None
        if "tmpfs" in keys:
            options = self.known(keys["tmpfs"], ("size",), unread=("mode",))
            size = tree.bytes_of(options["size"]) if "size" in options else None
        subpath = ""
        if "volume" in keys:
            options = self.known(keys["volume"], ("nocopy", "subpath"), unread=("labels",))
            subpath = tree.text(options["subpath"]) if "subpath" in options else ""
        if "bind" in keys:
            self.known(keys["bind"], ("create_host_path", "selinux"), unread=("propagation", "recursive"))
        read_only = "read_only" in keys and tree.boolean(keys["read_only"])
        return Mount(node.place, kind, source, tree.text(keys["target"]), read_only, size, subpath)

    def grants(self, node: Node, folder: str) -> tuple[Grant, ...]:
        found = []
        for item in tree.items(node):
            if not isinstance(item.value, dict):
                found.append(Grant(item.place, tree.text(item), folder + tree.text(item)))
                continue
            keys = self.known(item, ("source", "target", "mode"), unread=("uid", "gid"))
            if "source" not in keys:
                raise item.error("the key 'source' is missing")
            source = tree.text(keys["source"])
            target = tree.text(keys["target"]) if "target" in keys else source
            mode = tree.mode(keys["mode"]) if "mode" in keys else None
            found.append(Grant(item.place, source, target if target.startswith("/") else folder + target, mode))
        return tuple(found)

    def attachments(self, node: Node) -> tuple[Attachment, ...]:
        if isinstance(node.value, list):
            return tuple(Attachment(item.place, tree.text(item)) for item in node.value)
        found = []
        for name, item in tree.mapping(node).items():
            keys = self.known(
                item,
                ("aliases", "priority"),
                unread=_UNREAD_OF_ATTACHMENT,
            )
            found.append(Attachment(item.place, name, tree.texts(keys["aliases"]) if "aliases" in keys else ()))
        return tuple(found)

    def deployment(self, keys: Mapping[str, Node]) -> dict[str, Any]:
        """Replicas, resources and restarts, out of ``deploy`` and of the keys that stand for it."""
        values: dict[str, Any] = {}
        if "restart" in keys:
            values.update(_restart(keys["restart"]))
        deploy = (
            self.known(
                keys["deploy"],
                ("mode", "replicas", "resources", "restart_policy", "placement", "labels"),
                unread=("endpoint_mode", "update_config", "rollback_config"),
            )
            if "deploy" in keys
            else {}
        )
        values["annotations"] = {  # deploy's are a service's, where there are services of a swarm
            **(tree.plain(deploy["labels"]) if "labels" in deploy else {}),
            **(tree.plain(keys["annotations"]) if "annotations" in keys else {}),
        }
        if "mode" in deploy:
            values["mode"] = tree.one_of(["replicated", "global", "replicated-job", "global-job"])(deploy["mode"])
        if "replicas" in deploy:
            values["replicas"] = tree.whole(deploy["replicas"], 0, 10_000)
        if "placement" in deploy:
            placement = self.known(
                deploy["placement"], ("constraints",), unread=("preferences", "max_replicas_per_node")
            )
            if "constraints" in placement:
                values["constraints"] = tree.texts(placement["constraints"])
        if "restart_policy" in deploy:  # counts before restart
            policy = self.known(deploy["restart_policy"], ("condition", "max_attempts"), unread=("delay", "window"))
            condition = (
                tree.one_of(["any", "none", "on-failure"])(policy["condition"]) if "condition" in policy else "any"
            )
            values["restart"] = {"any": "always", "none": "no"}.get(condition, condition)
            values.pop("restart_attempts", None)
            if "max_attempts" in policy:
                values["restart_attempts"] = tree.whole(policy["max_attempts"])
        amounts: dict[str, Any] = {}

        def amount(found: Mapping[str, Node], key: str, to: str, read: Callable[[Node], Any]) -> None:
            if key in found and found[key].value is not None:
                amounts[to] = read(found[key])

        amount(keys, "cpus", "cpus_limit", tree.decimal)
        amount(keys, "mem_limit", "memory_limit", tree.bytes_of)
        amount(keys, "mem_reservation", "memory_reserved", tree.bytes_of)
        amount(keys, "pids_limit", "pids_limit", lambda node: tree.whole(node, -1))
        if "resources" in deploy:
            halves = self.known(deploy["resources"], ("limits", "reservations"))
            if "limits" in halves:
                limits = self.known(halves["limits"], ("cpus", "memory", "pids"))
                amount(limits, "cpus", "cpus_limit", tree.decimal)
                amount(limits, "memory", "memory_limit", tree.bytes_of)
                amount(limits, "pids", "pids_limit", lambda node: tree.whole(node, -1))
            if "reservations" in halves:
                reserved = self.known(
                    halves["reservations"], ("cpus", "memory", "devices"), unread=("generic_resources",)
                )
                amount(reserved, "cpus", "cpus_reserved", tree.decimal)
                amount(reserved, "memory", "memory_reserved", tree.bytes_of)
                if "devices" in reserved:
                    amounts["gpus"] = sum(self.gpus(item) for item in tree.items(reserved["devices"]))
        values["resources"] = Resources(**amounts)
        return values

    def gpus(self, node: Node) -> int:
        keys = self.known(node, ("capabilities", "driver", "count"), unread=("device_ids", "options"))
        if "capabilities" not in keys or "gpu" not in tree.texts(keys["capabilities"]):
            self.unread.append(Unread(node.place, node.name))
            return 0
        if "device_ids" in keys:
            return len(tree.texts(keys["device_ids"]))
        if "count" not in keys or keys["count"].value == "all":
            self.unread.append(Unread(keys.get("count", node).place, f"{node.name}.count"))
            return 1
        return tree.whole(keys["count"], 0, 64)

    def volume(self, key: str, node: Node, project: str) -> Volume:
        keys = self.known(node, ("name", "external", "driver", "driver_opts", "labels"))
        external, name = _external(keys, key, f"{project}_{key}")
        return Volume(
            key,
            node.place,
            name,
            external,
            driver=tree.text(keys["driver"]) if "driver" in keys else "",
            options=tree.plain(keys["driver_opts"]) if "driver_opts" in keys else {},
            labels=tree.plain(keys["labels"]) if "labels" in keys else {},
        )

    def network(self, key: str, node: Node, project: str) -> Network:
        keys = self.known(
            node,
            ("name", "external", "driver", "internal", "attachable"),
            unread=("labels", "driver_opts", "ipam", "enable_ipv4", "enable_ipv6"),
        )
        external, name = _external(keys, key, f"{project}_{key}")
        internal = "internal" in keys and tree.boolean(keys["internal"])
        driver = tree.text(keys["driver"]) if "driver" in keys and keys["driver"].value is not None else ""
        return Network(key, node.place, name, external, internal, driver)

    def material(self, key: str, node: Node) -> Material:
        keys = self.known(
            node,
            ("name", "external", "file", "environment", "content"),
            unread=("labels", "driver", "driver_opts", "template_driver"),
        )
        external, name = _external(keys, key, key)
        if external:
            return Material(key, node.place, name, True)
        sources = [one for one in ("file", "environment", "content") if one in keys]
        if len(sources) != 1:
            raise node.error("expected one of file, environment, content and external")
        source = keys[sources[0]]
        if sources[0] == "content":
            return Material(key, node.place, name, content=tree.text(source).encode())
        if sources[0] == "environment":
            variable = tree.text(source)
            if variable not in self.variables:
                raise source.error(f"the variable {variable} is not set")
            return Material(key, node.place, name, content=self.variables[variable].encode())
        path = self.resolve(tree.text(source))
        try:
            with path.open("rb") as stream:
                content = stream.read(_LARGEST_CONTENT + 1)
        except OSError:
            return Material(key, node.place, name, file=path)
        if len(content) > _LARGEST_CONTENT:
            raise source.error(f"{path} is larger than {_LARGEST_CONTENT >> 20} MiB")
        return Material(key, node.place, name, file=path, content=content)

    def resolve(self, text: str) -> Path:
        """A path of the file; it counts from the file's folder."""
        path = Path(text)
        if text.startswith("~"):
            path = Path(self.variables.get("HOME", "~")) / text[1:].lstrip("/")
        return Path(_normal(str(self.folder / path)))


_RESOLVE = "docker compose config > resolved.yaml writes it out; give that file"


def _normal(path: str) -> str:
    """The path without ``.`` and ``..``, as Compose has it: by its words alone."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _project_name(folder: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "", folder.lower()).lstrip("_-") or "stack"


def _external(keys: Mapping[str, Node], key: str, default: str) -> tuple[bool, str]:
    """Whether a part is external, and the name it really has."""
    name = tree.text(keys["name"]) if "name" in keys else ""
    if "external" not in keys:
        return False, name or default
    node = keys["external"]
    if isinstance(node.value, dict):  # as files of version 3.3 and before have it
        inner = tree.mapping(node)
        return True, tree.text(inner["name"]) if "name" in inner else name or key
    return (True, name or key) if tree.boolean(node) else (False, name or default)


def _restart(node: Node) -> dict[str, Any]:
    if node.value is False:  # an unquoted no of YAML 1.1, kept so by older writers
        return {"restart": "no"}
    word, colon, most = tree.text(node).partition(":")
    word = tree.one_of(["no", "always", "unless-stopped", "on-failure"])(Node(word, node.place, node.name))
    if not colon:
        return {"restart": word}
    if word != "on-failure" or not re.fullmatch(r"\d{1,6}", most):
        raise node.wrong("on-failure:<times>")
    return {"restart": word, "restart_attempts": int(most)}


def _short_port(node: Node, *, exposed: bool = False) -> list[Port]:
    """``[[address:]host port:]port[/protocol]``, each port perhaps a range ``from-to``."""
    text = tree.text(node)
    match = _PORT.fullmatch(text)
    # The pattern's first part also takes a lone host port.
    if match and match["host"] and match["published"] is None and match["host"].isdigit():
        match = _PORT.fullmatch(f":{text}")
    if not match or (exposed and ":" in text):
        raise node.wrong("port, host port:port or address:host port:port, each perhaps with /udp")
    targets = _port_range(node, match["target"])
    published: Sequence[int | None] = [None] * len(targets)
    if match["published"]:
        published = _port_range(node, match["published"])
        if len(published) != len(targets):
            if len(targets) != 1:
                raise node.error("the two ranges of ports differ in length")
            published = published[:1]  # Docker takes a free one of these
    host = (match["host"] or "").strip("[]")
    protocol = (match["protocol"] or "tcp").lower()
    return [Port(node.place, one, other or None, protocol, host) for one, other in zip(targets, published, strict=True)]


def _port_range(node: Node, text: str) -> list[int]:
    first, _, last = text.partition("-")
    if len(first) > 5 or len(last) > 5 or not 0 <= int(first) <= int(last or first) <= 65535:
        raise node.wrong("ports from 1 to 65535")
    if int(last or first) - int(first) >= _MOST_PORTS:
        raise node.error(f"more than {_MOST_PORTS} ports")
    return list(range(int(first), int(last or first) + 1))


def _extra_hosts(node: Node) -> tuple[tuple[str, str], ...]:
    """``name:address`` or ``name=address`` each, or a mapping."""
    if isinstance(node.value, dict):
        return tuple((name, address) for name, item in node.value.items() for address in tree.texts(item))
    found = []
    for item in tree.items(node):
        text = tree.text(item)
        name, separator, address = text.partition("=") if "=" in text else text.partition(":")
        if not separator or not name or not address:
            raise item.wrong("name:address")
        found.append((name, address.strip("[]")))
    return tuple(found)


def _check_references(stack: Stack) -> None:
    for service in stack.services.values():
        where = f"services.{service.name}"
        for dependency in service.depends_on:
            if dependency.service not in stack.services:
                raise _no_such("service", dependency.service, stack.services, dependency.place, f"{where}.depends_on")
            waits = dependency.condition is Condition.HEALTHY
            other = stack.services[dependency.service]
            if waits and other.healthcheck_off:
                raise InputError(
                    f"{dependency.place}: {where}.depends_on.{other.name}: its healthcheck is off, it never is healthy"
                )
        for mount in service.mounts:
            if mount.kind is MountKind.VOLUME and mount.source and mount.source not in stack.volumes:
                raise _no_such("volume", mount.source, stack.volumes, mount.place, f"{where}.volumes")
        for attachment in service.networks:
            if attachment.network not in stack.networks:
                raise _no_such("network", attachment.network, stack.networks, attachment.place, f"{where}.networks")
        for key, grants, known in (
            ("secrets", service.secrets, stack.secrets),
            ("configs", service.configs, stack.configs),
        ):
            for grant in grants:
                if grant.source not in known:
                    raise _no_such(key[:-1], grant.source, known, grant.place, f"{where}.{key}")
    _check_cycles(stack)


def _no_such(what: str, name: str, known: Iterable[str], place: Place, where: str) -> InputError:
    error = unknown(what, name, known)
    return InputError(f"{place}: {where}: {error}", hint=error.hint or f"add it under {what}s:")


def _check_cycles(stack: Stack) -> None:
    """Raise InputError where services wait for each other."""
    done: set[str] = set()
    for name in stack.services:
        trail: list[str] = []
        todo: list[tuple[str, bool]] = [(name, False)]
        while todo:
            current, leave = todo.pop()
            if leave:
                trail.pop()
                done.add(current)
            elif current not in done:
                trail.append(current)
                todo.append((current, True))
                for dependency in stack.services[current].depends_on:
                    if dependency.service in trail:
                        circle = " -> ".join([*trail[trail.index(dependency.service) :], dependency.service])
                        raise InputError(
                            f"{dependency.place}: services.{current}.depends_on: they wait for each other: {circle}"
                        )
                    todo.append((dependency.service, False))

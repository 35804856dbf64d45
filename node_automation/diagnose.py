# SPDX-License-Identifier: Apache-2.0
"""Why a node does not answer: examined in stages, each of which needs the one before; the first that fails is named.

A probe says what it saw, or raises Fault with what is wrong and the next thing to do.  :func:`examine` only puts them
in order, so any set of probes can be examined.
"""

import contextlib
import errno
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from groundwork.compat import StrEnum
from groundwork.errors import SageError
from node_automation import address, api, host_keys, server, ssh
from node_automation.api import Gone
from node_automation.server import Server
from node_automation.ssh import Target

if TYPE_CHECKING:
    from openstack.connection import Connection

_TCP = 5.0  # seconds for a connection
_BANNER = 10.0
_COMMAND = 30.0
_OTHER_USERS = ("ubuntu", "debian", "ccadmin", "root")  # whom other images log in
_CONSOLE_LINES = 30


class Stage(StrEnum):
    """The stages, in their order."""

    SERVER = "server state"
    PORT = "port"
    FLOATING_IP = "floating IP"
    ROUTE = "route"
    PORT_22 = "port 22"
    BANNER = "banner"
    HOST_KEY = "host key"
    KEY = "key"
    USER = "user"
    CLOUD_INIT = "cloud-init"
    UNITS = "units"


class Fault(SageError):
    """What a stage found wrong; the hint is the next thing to do."""


@dataclass(frozen=True)
class Finding:
    """One stage: whether it passed, what was seen, and what to do where it did not."""

    stage: Stage
    passed: bool
    said: str
    next: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All stages up to the first that failed.  ``console``: the tail of the node's console where one failed."""

    node: str
    findings: tuple[Finding, ...]
    console: str = ""

    @property
    def failed(self) -> Finding | None:
        """The stage that failed; None where the node answers."""
        return next((finding for finding in self.findings if not finding.passed), None)

    def __str__(self) -> str:
        failed = self.failed
        return f"{self.node}: {failed.stage}: {failed.said}" if failed else f"{self.node} answers, and is ready"


class NotReady(SageError):
    """A node that does not answer, or not as it should, with its diagnosis."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        failed = diagnosis.failed
        super().__init__(str(diagnosis), hint=failed.next or None if failed else None)
        self.diagnosis = diagnosis


def examine(node: str, probes: Mapping[Stage, Callable[[], str]], console: Callable[[], str]) -> Diagnosis:
    """Go through the stages in their order, those that ``probes`` has, up to the first that fails.

    ``console`` gives the console's tail; it is asked only then.
    """
    findings = []
    for stage in Stage:
        if stage not in probes:
            continue
        try:
            findings.append(Finding(stage, True, probes[stage]()))
        except SageError as fault:
            findings.append(Finding(stage, False, str(fault), fault.hint or ""))
            try:
                tail = console()
            except SageError as problem:
                tail = f"(no console: {problem})"
            return Diagnosis(node, tuple(findings), tail)
    return Diagnosis(node, tuple(findings))


def node_probes(connection: "Connection", server_id: str, target: Target | None) -> dict[Stage, Callable[[], str]]:
    """The probes of a node at a site: what the site says of it, then what it answers.

    ``target`` None: it has no address yet, or no host key that is known; then the stages end where that shows.
    """
    found: dict[Stage, Callable[[], str]] = {
        Stage.SERVER: lambda: _server_state(connection, server_id),
        Stage.PORT: lambda: _port(connection, server_id),
        Stage.FLOATING_IP: lambda: _floating_ip(connection, server_id),
    }
    if target is not None:
        found.update(ssh_probes(target))
    return found


def ssh_probes(target: Target) -> dict[Stage, Callable[[], str]]:
    """The probes of a node from outside and from within, without a site's services."""
    return {
        Stage.ROUTE: lambda: _route(target),
        Stage.PORT_22: lambda: _port_22(target),
        Stage.BANNER: lambda: _banner(target),
        Stage.HOST_KEY: lambda: _host_key(target),
        Stage.KEY: lambda: _key(target),
        Stage.USER: lambda: _user(target),
        Stage.CLOUD_INIT: lambda: _cloud_init(target),
        Stage.UNITS: lambda: _units(target),
    }


def diagnose(connection: "Connection", one: Server, target: Target | None) -> Diagnosis:
    """Examine a node, with the tail of its console where a stage fails."""
    return examine(
        one.name,
        node_probes(connection, one.id, target),
        lambda: server.console(connection, one, lines=_CONSOLE_LINES),
    )


def _server_state(connection: "Connection", server_id: str) -> str:
    try:
        one = server.get(connection, server_id)
    except Gone:
        raise Fault("there is no such server any more", hint="its lease may be over: `fab lease.list`") from None
    if one.status == "ERROR":
        problem = server.not_built(api.site_of(connection), one)
        raise Fault(str(problem), hint=problem.hint)
    if one.status != "ACTIVE":
        doing = f" ({one.task})" if one.task else ""
        raise Fault(
            f"it is {one.status}{doing}, not ACTIVE",
            hint="wait: bare metal takes 10 to 20 minutes"
            if one.status in ("BUILD", "REBOOT", "HARD_REBOOT")
            else f"start it: `fab node.reboot {one.name} --hard`",
        )
    return f"ACTIVE since it was made at {one.created_at}"


def _port(connection: "Connection", server_id: str) -> str:
    ports = address.ports_of(connection, server_id)
    fixed = [str(ip.get("ip_address")) for port in ports for ip in port.get("fixed_ips") or ()]
    if not fixed:
        raise Fault("it has no port with an address", hint="delete the node and launch it again")
    failed = [port for port in ports if port.get("binding:vif_type") == "binding_failed"]
    if failed:
        raise Fault("its port could not be bound to its host", hint="delete the node and launch it again")
    return f"{', '.join(fixed)} ({', '.join(str(port.get('status')) for port in ports)})"


def _floating_ip(connection: "Connection", server_id: str) -> str:
    ports = {str(port.get("id")) for port in address.ports_of(connection, server_id)}
    bound = [ip for ip in address.list_all(connection) if ip.port_id in ports]
    if not bound:
        raise Fault("no floating IP is bound to it", hint="`fab node.launch` again gives it one")
    if bound[0].status == "ERROR":
        raise Fault(f"its floating IP {bound[0].address} is in ERROR", hint="release it and take another")
    return bound[0].address


def _route(target: Target) -> str:
    error = _tcp(target)
    if error is not None and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        raise Fault(
            f"no way leads to {target.address}: {error.strerror}",
            hint="is this machine on the network, and does the node's network have a router to the public one?",
        )
    if isinstance(error, socket.gaierror):
        raise Fault(f"{target.address} is no address: {error.strerror}", hint="name another with --address")
    return f"a way leads to {target.address}"


def _port_22(target: Target) -> str:
    error = _tcp(target)
    if error is None:
        return f"port {target.port} is open"
    if error.errno == errno.ECONNREFUSED:
        raise Fault(
            f"port {target.port} is closed: the machine answers, and no ssh server listens",
            hint="it may still boot: wait a minute; else the console tells why ssh.service does not start",
        )
    raise Fault(
        f"port {target.port} does not answer: {error.strerror or 'no answer in time'}",
        hint="at a KVM site the security group must let ssh in; on bare metal the node may still boot (look at the "
        "console), or its firewall keeps ssh out",
    )


def _tcp(target: Target) -> OSError | None:
    try:
        socket.create_connection((target.address, target.port), timeout=_TCP).close()
    except OSError as error:
        return error
    return None


def _banner(target: Target) -> str:
    try:
        with socket.create_connection((target.address, target.port), timeout=_BANNER) as stream:
            text = stream.recv(255).decode(errors="replace").splitlines()
    except OSError as error:
        raise Fault(
            f"nothing says what it is: {error.strerror or 'no answer in time'}",
            hint="sshd is overloaded, or still starting: wait a minute",
        ) from None
    if not text or not text[0].startswith("SSH-2.0-"):
        raise Fault(
            f"what answers is no ssh server: {text[0][:60] if text else 'it says nothing'}",
            hint="another program listens there, or sshd lets no more connections in",
        )
    return text[0].strip()


def _host_key(target: Target) -> str:
    from paramiko import SSHException, Transport

    try:
        with socket.create_connection((target.address, target.port), timeout=_BANNER) as stream:
            transport = Transport(stream)
            try:
                # The type that is known is asked for, as a client that knows the key does.
                transport.get_security_options().key_types = [host_keys.TYPE]
                transport.start_client(timeout=_BANNER)
                key = transport.get_remote_server_key()
            finally:
                transport.close()
    except (OSError, SSHException, EOFError) as error:
        raise Fault(f"no host key could be had: {error}", hint="look at the console for errors of sshd") from None
    seen = f"{key.get_name()} {key.get_base64()}"
    if seen not in target.keys:
        raise Fault(
            f"what answers has another host key than the node ({key.fingerprint})",
            hint="the address may lead to another machine, or the node was made anew: do not log in; "
            "the console shows the node's keys where cloud-init printed them",
        )
    return f"{host_keys.TYPE} {key.fingerprint}"


def _key(target: Target) -> str:
    try:
        return _logged_in(target)
    except ssh.NotLetIn:
        pass
    for user in _OTHER_USERS:
        with contextlib.suppress(SageError):
            _logged_in(_as(target, user))
            return f"the key is right, and {user} is let in, not {target.user}"  # the next stage tells of it
    raise Fault(
        f"the node takes the key {target.identity or 'of your agent'} for nobody",
        hint="is it the key that the node was launched with (SAGE_SSH_KEY, or the state folder's own)? "
        "`cloud-init` sets it at the first boot: the console shows its lines 'ci-info'",
    )


def _user(target: Target) -> str:
    try:
        connection, _ = ssh.connect(target)
    except ssh.NotLetIn:
        raise Fault(
            f"the key is taken, but not for the user {target.user}",
            hint="the image's default user is another: name it with --user, or boot a Sage image",
        ) from None
    with connection:
        result = ssh.run(connection, "id -un; sudo -n id -un", timeout=_COMMAND, check=False)
    words = str(result.stdout).split()
    if words[:1] != [target.user]:
        raise Fault(f"who logs in is {' '.join(words[:1]) or 'nobody'}, not {target.user}", hint="look at the image")
    if words[1:2] != ["root"]:
        raise Fault(
            f"{target.user} may not use sudo without a password",
            hint="the image's sudoers must allow it, as Chameleon's and Sage's images do",
        )
    return f"{target.user}, with sudo"


def _cloud_init(target: Target) -> str:
    connection, _ = ssh.connect(target)
    with connection:
        result = ssh.run(connection, "cloud-init status --format json", timeout=_COMMAND, check=False)
    try:
        told = json.loads(result.stdout)
    except ValueError:
        told = {}
    return judge_cloud_init(told, str(result.stderr or result.stdout).strip())


def judge_cloud_init(told: Any, said: str) -> str:
    """What ``cloud-init status --format json`` says; raises Fault unless it is done.  ``said``: what else it printed.

    cloud-init before 22.4 knows no JSON and prints ``status: done``.
    """
    status = told.get("status") if isinstance(told, dict) and told else said.removeprefix("status: ").split("\n")[0]
    if status in ("done", "disabled"):
        return f"cloud-init is {status}"
    if status in ("running", "not started", "not run"):
        raise Fault(f"cloud-init is {status}", hint="wait: it does its work at the first boot")
    errors = told.get("errors") if isinstance(told, dict) else None
    why = "; ".join(map(str, errors)) if errors else said[:200]
    raise Fault(
        f"cloud-init failed: {why or status}",
        hint="look at /var/log/cloud-init-output.log at the node; what was given as user data may be wrong",
    )


def _units(target: Target) -> str:
    connection, _ = ssh.connect(target)
    with connection:
        listed = ssh.run(connection, "systemctl list-units --failed --no-legend --plain", timeout=_COMMAND, check=False)
    failed = [line.split()[0] for line in str(listed.stdout).splitlines() if line.strip()]
    if failed:
        raise Fault(
            f"{len(failed)} of systemd's units failed: {', '.join(failed)}",
            hint=f"at the node: journalctl -u {failed[0]} -b",
        )
    return "no unit failed"


def _logged_in(target: Target) -> str:
    connection, _ = ssh.connect(target)
    connection.close()
    return f"{target.user} is let in"


def _as(target: Target, user: str) -> Target:
    import dataclasses

    return dataclasses.replace(target, user=user)

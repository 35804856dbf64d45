# SPDX-License-Identifier: Apache-2.0
"""Ssh to nodes: connections by Fabric whose host keys are known beforehand, and the files that people use with ssh.

No key is taken unseen.  Fabric's own connections would (``AutoAddPolicy``), so theirs is replaced by RejectPolicy and
the keys that the server may have are set, as the site's metadata tell them.
"""

import contextlib
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundwork import files
from groundwork.errors import InputError, SageError
from node_automation import host_keys, server
from node_automation.server import Server

if TYPE_CHECKING:
    from fabric import Connection
    from paramiko import PKey

USER = "cc"
PORT = 22
_CONNECT = 10.0  # seconds for the TCP connection
_ANSWER = 30.0  # seconds for the banner and for the login


class Unreachable(SageError):
    """The node does not answer by ssh, or not yet."""


class HostKeyChanged(SageError):
    """What answers has another host key than the node's: it is not the node, or somebody is in between."""


class NotLetIn(SageError):
    """The node does not let this user in with this key."""


class CommandFailed(SageError):
    """A command at a node ended with an error; ``output`` is what it printed."""

    def __init__(self, message: str, *, output: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.output = output


@dataclass(frozen=True)
class Target:
    """A node as ssh sees it.  ``keys``: the host keys that it may have, ``ssh-ed25519 AAAA...``, the likeliest first.

    ``identity``: the private key to log in with; None for those of the user's agent and home folder.
    """

    node: str
    server_id: str
    address: str
    keys: tuple[str, ...]
    user: str = USER
    port: int = PORT
    identity: Path | None = None

    @property
    def alias(self) -> str:
        """The name that its host key is kept under: addresses are used again by other servers, ids are not."""
        return f"sage-{self.server_id}"


def target_of(one: Server, identity: Path | None, *, address: str | None = None, user: str | None = None) -> Target:
    """How to reach a server; ``user``: None for the one that it was launched for.

    Raises InputError where it has no address, or no host key that is known."""
    where = address or one.floating_ip
    if where is None:
        raise InputError(
            f"{one.name} has no floating IP", hint="`fab node.launch` again gives it one, or --address names another"
        )
    keys = host_keys.accepted(one.metadata)
    if not keys:
        raise InputError(
            f"the host key of {one.name} is not known: it was not launched by this program",
            hint="log in by hand once you know its key: `fab node.console` may show it",
        )
    user = user or one.metadata.get(server.USER) or USER
    return Target(one.name, one.id, where, keys, user=user, identity=identity)


def connect(target: Target, *, timeout: float = _CONNECT) -> "tuple[Connection, str]":
    """A connection that is open, and the host key that the node answered with.

    Raises Unreachable, HostKeyChanged, NotLetIn.
    """
    from paramiko import BadHostKeyException

    for key in target.keys:
        connection = _connection(target, key, timeout)
        try:
            connection.open()
        except BadHostKeyException:
            connection.close()
        except Exception as error:
            connection.close()
            raise explain(target, error) from error
        else:
            return connection, key
    raise HostKeyChanged(
        f"{target.node} ({target.address}) answers with another host key than its own",
        hint="the address may lead to another machine: `fab node.list` shows it; do not log in",
    )


def explain(target: Target, error: Exception) -> SageError:
    """Our error for one of paramiko's or of the network's."""
    from paramiko import AuthenticationException, SSHException
    from paramiko.ssh_exception import NoValidConnectionsError

    where = f"{target.node} ({target.address})"
    if isinstance(error, AuthenticationException):
        return NotLetIn(
            f"{where} does not let {target.user} in with this key",
            hint=f"`fab node.diagnose {target.node}` tells whether key or user is wrong",
        )
    if isinstance(error, SSHException) and "not found in known_hosts" in str(error):
        return HostKeyChanged(f"{where} has no host key of the type that is known", hint="do not log in")
    if isinstance(error, NoValidConnectionsError):
        causes = [str(cause.strerror or cause) for cause in error.errors.values()]
        return Unreachable(f"{where} does not answer: {', '.join(dict.fromkeys(causes))}")
    if isinstance(error, SSHException | OSError | EOFError):
        why = "no answer in time" if isinstance(error, socket.timeout) else str(error) or type(error).__name__
        return Unreachable(f"{where} does not answer: {why}")
    return SageError(f"{where}: {type(error).__name__}: {error}")


def run(
    connection: "Connection", command: str, *, sudo: bool = False, timeout: float = 120.0, check: bool = True
) -> Any:
    """Run a command at a node (with ``sudo``: as root) and give Fabric's result; nothing is shown.

    Raises CommandFailed for an exit status other than 0 (unless ``check`` is false) or after ``timeout`` seconds.
    """
    import shlex

    from invoke.exceptions import CommandTimedOut

    words = f"sudo -n sh -c {shlex.quote(command)}" if sudo else command
    try:
        result = connection.run(words, hide=True, warn=True, in_stream=False, timeout=timeout)
    except CommandTimedOut as error:
        raise CommandFailed(
            f"{connection.original_host}: not done within {timeout:g} s: {_brief(command)}",
            output=str(error.result.stdout),
        ) from None
    except (OSError, EOFError) as error:
        raise Unreachable(f"{connection.original_host}: the connection broke: {error}") from error
    if check and not result.ok:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        raise CommandFailed(
            f"{connection.original_host}: exit status {result.return_code} of {_brief(command)}: {last[0]}",
            output=f"{result.stdout}{result.stderr}",
        )
    return result


def put(connection: "Connection", local: str, remote: str = "") -> None:
    """Copy a file to a node.  Raises InputError where there is none here, CommandFailed where it can't go there."""
    if not Path(local).expanduser().is_file():
        raise InputError(f"{local} is no file here")
    try:
        connection.put(str(Path(local).expanduser()), remote=remote or None)
    except OSError as error:
        raise CommandFailed(
            f"{connection.original_host}: {remote or local} can't be written there: {error}", output=""
        ) from error


def get(connection: "Connection", remote: str, local: str = "") -> str:
    """Copy a file from a node; its path here.  Raises CommandFailed where it can't be read there or written here."""
    try:
        return str(connection.get(remote, local=local or None).local)
    except OSError as error:
        raise CommandFailed(f"{connection.original_host}: {remote} can't be had: {error}", output="") from error


def identity(state: Path, named: Path | None) -> tuple[Path, str]:
    """The private key to log in with, and its public part: the one that was named, or this program's own.

    Its own is made once, in the state folder, readable by its owner alone.  Raises InputError where the named one
    has no public part beside it.
    """
    if named is not None:
        public = named.with_name(named.name + ".pub")
        try:
            return named, public.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f"the ssh key {named} has no public part {public.name} beside it",
                hint=f"make it with: ssh-keygen -y -f {named} > {public}",
            ) from None
    path = state / "nodes/id_ed25519"
    with files.lock(state / "nodes/id_ed25519.lock", wait=30.0):
        if not path.exists():
            key = host_keys.make()
            files.write_text(path.with_name("id_ed25519.pub"), f"{key.public} sage-chameleon\n")
            files.write_text(path, key.private, mode=0o600)
    return path, path.with_name("id_ed25519.pub").read_text().strip()


def write_site(
    state: Path, site_slug: str, nodes: Iterable[Server], identity: Path, *, known: Target | None = None
) -> Path:
    """The same for a site's servers, as it lists them; ``known``: one that is reached otherwise than the site tells."""
    targets = [known] if known is not None else []
    for one in nodes:
        if one.floating_ip is not None and one.status != "ERROR" and (known is None or one.id != known.server_id):
            with contextlib.suppress(InputError):  # not launched by this program
                targets.append(target_of(one, identity))
    return write_files(state, site_slug, targets)


def write_files(state: Path, site_slug: str, targets: Iterable[Target]) -> Path:
    """Write ``ssh_config`` and ``known_hosts`` anew for the nodes of one site; the path of the first.

    Those of other sites stay.  ``ssh -F`` takes the file, and so does a line ``Include`` in ~/.ssh/config.
    """
    folder = state / "nodes"
    parts = folder / "ssh"
    known, config = folder / "known_hosts", folder / "ssh_config"
    ordered = sorted(targets, key=lambda target: target.node)
    with files.lock(folder / "ssh.lock", wait=30.0):
        files.write_text(parts / f"{site_slug}.known_hosts", known_hosts(ordered), mode=0o600)
        files.write_text(parts / f"{site_slug}.config", ssh_config(ordered, known), mode=0o600)
        for path, ending in ((known, "known_hosts"), (config, "config")):
            texts = [part.read_text() for part in sorted(parts.glob(f"*.{ending}"))]
            files.write_text(path, "".join(texts), mode=0o600)
    return config


def known_hosts(targets: Sequence[Target]) -> str:
    """The text of ``known_hosts``; pure."""
    return "".join(f"{target.alias} {key}\n" for target in targets for key in target.keys)


def ssh_config(targets: Sequence[Target], known: Path) -> str:
    """The text of ``ssh_config``; pure."""
    lines = []
    for target in targets:
        lines += [
            f"Host {target.node}",
            f"    HostName {target.address}",
            f"    Port {target.port}",
            f"    User {target.user}",
            f"    HostKeyAlias {target.alias}",
            f'    UserKnownHostsFile "{known}"',
            "    StrictHostKeyChecking yes",
            "    HostKeyAlgorithms ssh-ed25519",
        ]
        if target.identity is not None:
            lines += [f'    IdentityFile "{target.identity}"', "    IdentitiesOnly yes"]
    return "".join(f"{line}\n" for line in lines)


def interactive(target: Target, config: Path, command: Sequence[str] = ()) -> int:
    """Give the terminal to OpenSSH's client; its exit code.  This process is replaced by it, so it returns only where
    ssh is missing."""
    from groundwork import process

    process.require("ssh")
    program = process.find("ssh") or "ssh"
    os.execv(program, ["ssh", "-F", str(config), target.node, *command])  # noqa: S606 - no shell, and no child


def _connection(target: Target, key: str, timeout: float) -> "Connection":
    from fabric import Config, Connection
    from paramiko import RejectPolicy

    config = Config(overrides={"load_ssh_configs": False, "run": {"in_stream": False}})
    connect_kwargs: dict[str, Any] = {
        "banner_timeout": _ANSWER,
        "auth_timeout": _ANSWER,
        "allow_agent": target.identity is None,
        "look_for_keys": target.identity is None,
    }
    if target.identity is not None:
        connect_kwargs["key_filename"] = [str(target.identity)]
    connection = Connection(
        host=target.address,
        user=target.user,
        port=target.port,
        connect_timeout=int(timeout),
        connect_kwargs=connect_kwargs,
        config=config,
    )
    connection.original_host = target.node
    connection.client.set_missing_host_key_policy(RejectPolicy())
    name = target.address if target.port == PORT else f"[{target.address}]:{target.port}"
    connection.client.get_host_keys().add(name, host_keys.TYPE, _paramiko_key(key))
    return connection


def _paramiko_key(text: str) -> "PKey":
    import base64

    from paramiko import Ed25519Key, SSHException

    try:
        return Ed25519Key(data=base64.b64decode(text.split()[1]))
    except (IndexError, ValueError, SSHException):
        raise InputError(f"{text[:40]!r} is no ed25519 host key", hint="the server's metadata were changed") from None


def _brief(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= 60 else line[:57] + "..."

# SPDX-License-Identifier: Apache-2.0
"""The registration service: gives a node its keys and certificates, and keeps the broker's users in step.

A node comes by ssh with the registration key and the command ``register <node id>``.  The answer is one JSON object on
standard output::

    {"node": "<node id>",
     "host": "<Beehive>", "port": 5671, "upload_port": 20023, "until": "<RFC 3339>",
     "files": {"beehive-ca.pem": "...", "node-key.pem": "...", "node-cert.pem": "...",
               "upload-key": "...", "upload-key-cert.pub": "..."}}

The same node gets the same keys again, and certificates with new ends when their last third has begun.  Exit status: 0
done, 2 wrong command, 75 try later, 77 not admitted or removed.
"""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from groundwork import files
from groundwork.errors import InputError, SageError
from groundwork.program import run_program
from virtual_waggle import broker_client, certificates, env_file, message, state_folder
from virtual_waggle.beehive import authority, nodes, settings, ssh_service
from virtual_waggle.beehive.nodes import Node, Status
from virtual_waggle.beehive.settings import Admit
from virtual_waggle.beehive.ssh_service import NOT_PERMITTED, TRY_LATER, WRONG_INPUT, Process, Refusal, Service
from virtual_waggle.broker_client import BrokerError, Management
from virtual_waggle.env_file import Variable

logger = logging.getLogger("registration")

USER = "sage_registration"  # as at Sage's own Beekeeper
PATIENCE = 60.0  # seconds for one command
_LOOK = 2.0  # seconds between looks at what the operator changed
_LOOK_WHOLE = 60.0  # seconds between looks at all users of the broker
_AT_ONCE = 4  # registrations

FILES = ("beehive-ca.pem", "node-key.pem", "node-cert.pem", "upload-key", "upload-key-cert.pub")

TABLE = (
    Variable("BEEHIVE_LISTEN", "where to listen, as 0.0.0.0:20022", ssh_service.address, "0.0.0.0:20022"),
    *settings.of_names("BEEHIVE_HOST", "BEEHIVE_PORT", "BEEHIVE_UPLOAD_PORT", "BEEHIVE_ADMIT"),
    Variable("BEEHIVE_NODES", "folder of the nodes", Path),
    Variable("BEEHIVE_MANAGEMENT", "the broker's management API, as http://rabbitmq:15672"),
    Variable("WAGGLE_SECRETS", "folder of the keys and passwords", Path),
)


@dataclass(frozen=True)
class Registry:
    """What registering takes.  ``secrets`` holds the authority's keys, ``nodes`` who may come."""

    secrets: Path
    nodes: Path
    admit: Admit
    host: str
    port: int
    upload_port: int
    management: Management
    # the broker's users are changed by registrations and by the look at all of them
    at_broker: Any = field(default_factory=threading.Lock, repr=False)


def register(registry: Registry, node_id: str, now: datetime) -> dict[str, Any]:
    """The answer for a node that registers.  Raises Refusal."""
    if not message.is_node_id(node_id):
        raise Refusal(WRONG_INPUT, "expected register and a node id of 16 hexadecimal digits")
    with nodes.changing(registry.nodes, node_id):
        node = nodes.read(registry.nodes, node_id)
        if node is None and registry.admit == Admit.LISTED:
            raise Refusal(NOT_PERMITTED, f"node {node_id} is not admitted; ask the operator of this Beehive")
        if node is not None and node.status == Status.REMOVED:
            raise Refusal(NOT_PERMITTED, f"node {node_id} was removed; ask the operator of this Beehive")
        if node is None or node.status == Status.ADMITTED:
            node = Node(node_id, Status.ADMITTED, nodes.time_text(now), generation=nodes.new_generation())
        end = _certify(registry, node, now)
        node = replace(node, until=nodes.time_text(end))
        with registry.at_broker:
            broker_client.put_node(registry.management, node_id)
            if node.status != Status.REGISTERED:
                moment = nodes.time_text(now)
                node = replace(node, status=Status.REGISTERED, registered=moment, changed=moment)
            nodes.write(registry.nodes, replace(node, at_broker=True))
        given = nodes.given_to(registry.nodes, node_id)
        return {
            "node": node_id,
            "host": registry.host,
            "port": registry.port,
            "upload_port": registry.upload_port,
            "until": node.until,
            "files": {name: (given / name).read_text() for name in FILES},
        }


def _certify(registry: Registry, node: Node, now: datetime) -> datetime:
    """Have a node's keys and certificates, in a folder that appears as a whole; when they end."""
    folder = nodes.given_to(registry.nodes, node.id)
    state_folder.private_folder(folder)
    ours = authority.open_authority(registry.secrets / "ca-key.pem", registry.secrets / "ca-cert.pem")
    ssh_certificate = folder / "upload-key-cert.pub"
    generation = folder / "generation"
    if not generation.exists() or generation.read_text() != node.generation:
        # keys of another generation, or of a registration that was broken off before the node was told
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        files.write_text(generation, node.generation)
    state_folder.keep_secret(folder / "beehive-ca.pem", ours.pem)
    new = authority.make_ssh_key(folder / "upload-key", nodes.user(node.id))
    new |= not ssh_certificate.exists()
    if new:
        (folder / "node-cert.pem").unlink(missing_ok=True)  # both end at the same moment
    standing = folder / "node-cert.pem"
    if not standing.exists() or certificates.is_near_end(certificates.read_certificate(standing), now):
        end = now + authority.NODE_TIME
        principals = [nodes.user(node.id), nodes.principal(node)]
        authority.certify_ssh_user(
            registry.secrets / "ssh-ca-key", folder / "upload-key", ssh_certificate, principals, end=end, now=now
        )
    authority.certify(
        ours, folder / "node-key.pem", standing, nodes.user(node.id), days=authority.NODE_TIME.days, now=now
    )
    return certificates.end_of(certificates.read_certificate(standing))


def settle(registry: Registry) -> None:
    """Make the broker's users those that are registered: after a removal, a restore, a new broker.

    Raises BrokerError.
    """
    with registry.at_broker:
        present = {name for name in broker_client.users(registry.management) if name.startswith("node-")}
        known = {node.id: node for node in nodes.every(registry.nodes)}
        wanted = {nodes.user(node.id): node for node in known.values() if node.status == Status.REGISTERED}
        for name in sorted(present - set(wanted)):
            broker_client.delete_user(registry.management, name)
            logger.info("%s: deleted at the broker", name)
        for name in sorted(set(wanted) - present):
            broker_client.put_node(registry.management, wanted[name].id)
            logger.info("%s: made at the broker", name)
    for node in known.values():
        if not node.at_broker and node.status != Status.ADMITTED:
            with nodes.changing(registry.nodes, node.id):
                current = nodes.read(registry.nodes, node.id)
                if current == node:
                    nodes.write(registry.nodes, replace(node, at_broker=True))


def _key_line(registry: Registry, user: str) -> str | None:
    """The registration key lets in; as which user does not matter to ssh, but it must be the known one."""
    return (registry.secrets / "register.pub").read_text() if user == USER else None


async def _serve(registry: Registry, turns: asyncio.Semaphore, user: str, command: str, process: Process) -> int:
    words = command.split()
    if len(words) != 2 or words[0] != "register":
        raise Refusal(WRONG_INPUT, "expected the command: register <node id>")
    try:
        async with turns:
            answer = await asyncio.to_thread(register, registry, words[1].lower(), datetime.now(timezone.utc))
    except (files.Locked, BrokerError) as error:
        logger.warning("register %s: %s", words[1][:16], error)
        raise Refusal(TRY_LATER, "the Beehive is busy or its broker does not answer; try again later") from None
    except SageError as error:
        logger.error("register %s: %s", words[1][:16], error)
        raise Refusal(
            TRY_LATER, "the Beehive can't register nodes now; its operator finds the cause in its log"
        ) from None
    process.stdout.write(json.dumps(answer).encode() + b"\n")
    await process.stdout.drain()
    logger.info("registered node %s until %s", answer["node"], answer["until"])
    return 0


def service(registry: Registry) -> Service:
    """The ssh server of a registry."""
    turns = asyncio.Semaphore(_AT_ONCE)
    return Service(
        "Beehive-registration",
        registry.secrets / "ssh-host-key",
        lambda user: _key_line(registry, user),
        lambda user, command, process: _serve(registry, turns, user, command, process),
        PATIENCE,
    )


async def keep_settled(registry: Registry) -> None:
    """Follow what the operator changes, as long as this task lives."""
    clock = asyncio.get_running_loop().time
    seen: object = None
    whole = -_LOOK_WHOLE
    while True:
        try:
            current = await asyncio.to_thread(_stamp, registry.nodes)
            if current != seen or clock() - whole > _LOOK_WHOLE:
                await asyncio.to_thread(settle, registry)
                seen, whole = current, clock()
        except (SageError, OSError) as error:
            logger.warning("the broker's users are not settled yet: %s", error)
        await asyncio.sleep(_LOOK)


def _stamp(folder: Path) -> object:
    """Something that changes when a node's file does."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.endswith(".json") and not entry.name.startswith("."):
            status = entry.stat()
            found.append((entry.name, status.st_mtime_ns, status.st_ino))
    return sorted(found)


def registry_of(environment: Mapping[str, str]) -> tuple[Registry, tuple[str, int]]:
    """The registry that the variables tell of, and where to listen.  Raises InputError."""
    given = env_file.from_environment(environment, TABLE)
    secrets = given["WAGGLE_SECRETS"]
    for name in ("ca-key.pem", "ca-cert.pem", "ssh-ca-key", "ssh-host-key", "register.pub"):
        if not os.access(secrets / name, os.R_OK):
            raise InputError(f"WAGGLE_SECRETS: can't read {secrets / name}")
    if not given["BEEHIVE_NODES"].is_dir():
        raise InputError(f"BEEHIVE_NODES: {given['BEEHIVE_NODES']} is no folder")
    management = Management(
        given["BEEHIVE_MANAGEMENT"].rstrip("/"), broker_client.read_secret(secrets / "admin-password")
    )
    registry = Registry(
        secrets,
        given["BEEHIVE_NODES"],
        Admit(given["BEEHIVE_ADMIT"]),
        given["BEEHIVE_HOST"][0],
        given["BEEHIVE_PORT"],
        given["BEEHIVE_UPLOAD_PORT"],
        management,
    )
    return registry, given["BEEHIVE_LISTEN"]


async def _run(registry: Registry, address: tuple[str, int]) -> int:
    listening = await ssh_service.listen(service(registry), *address)
    state_folder.become_owner(registry.nodes)
    logger.info("registration listens at port %d, admits: %s", listening.port, registry.admit)
    settling = asyncio.create_task(keep_settled(registry))
    await ssh_service.until_told_to_end()
    settling.cancel()
    await listening.close()
    return 0


def main() -> int:
    """The service, until SIGTERM."""
    ssh_service.log_events()
    registry, address = registry_of(os.environ)
    return asyncio.run(_run(registry, address))


if __name__ == "__main__":
    run_program(main)

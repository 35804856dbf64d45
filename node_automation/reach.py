# SPDX-License-Identifier: Apache-2.0
"""From a server that is ACTIVE to a node that lets us in, with a host key that is its own."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site, SiteKind
from groundwork.errors import SageError
from node_automation import diagnose, host_keys, server, ssh
from node_automation.diagnose import NotReady
from node_automation.host_keys import Place
from node_automation.server import Server
from node_automation.ssh import HostKeyChanged, NotLetIn, Target, Unreachable
from node_automation.waiting import Seen, TimedOut, wait_for

if TYPE_CHECKING:
    from fabric import Connection as Shell
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

WITHIN = {SiteKind.BAREMETAL: 1200.0, SiteKind.KVM: 300.0}  # seconds from ACTIVE to the first login
EXPECTED = {SiteKind.BAREMETAL: 300.0, SiteKind.KVM: 60.0}
_GRACE = 90.0  # seconds in which a booting machine may answer with another key, or not let us in
_SWAPPED_WITHIN = 60.0
_REBOOTED_WITHIN = 300.0


def reach(
    connection: "Connection",
    server_id: str,
    identity: Path,
    *,
    deadline: float,
    address: str | None = None,
    user: str | None = None,
    port: int = ssh.PORT,
    place: Place | None = None,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> Target:
    """Wait until the node lets us in, and give it a host key of its own at the first login.

    ``deadline`` in seconds; ``address``: where it is reached, if not at its floating IP.  Raises NotReady, with a
    diagnosis, where it does not let us in; HostKeyChanged where another machine answers.
    """
    one = server.get(connection, server_id)
    target = dataclasses.replace(ssh.target_of(one, identity, address=address, user=user), port=port)
    try:
        shell, key = wait_to_log_in(target, deadline=deadline, tell=tell, stop=stop)
    except (TimedOut, Unreachable, NotLetIn) as problem:
        found = diagnose.diagnose(connection, one, target)
        if found.failed is None:
            raise
        raise NotReady(found) from problem
    with shell:
        return own_key(connection, one, target, shell, key, place=place or Place())


def wait_to_log_in(
    target: Target,
    *,
    deadline: float,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> "tuple[Shell, str]":
    """An open connection, and the host key that the node answered with, once it lets us in."""
    strange_since: list[float] = []

    def look() -> "Seen[tuple[Shell, str] | None]":
        try:
            return Seen(ssh.connect(target), "it lets us in", True)
        except Unreachable as problem:
            strange_since.clear()
            return Seen(None, str(problem), False)
        except (HostKeyChanged, NotLetIn) as problem:
            strange_since.append(time.monotonic())
            if time.monotonic() - strange_since[0] > min(_GRACE, deadline / 2):
                raise
            return Seen(None, str(problem), False)

    found = wait_for(f"{target.node} letting us in", look, deadline=deadline, tell=tell, stop=stop)
    assert found is not None, "it is done with a connection"
    return found


def reboot(
    connection: "Connection",
    site: Site,
    one: Server,
    identity: Path | None,
    *,
    hard: bool = False,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> None:
    """Reboot a node and wait until Nova has done it; with an ``identity``, until the node has booted and lets us in.

    Nova says ACTIVE as soon as it has asked the machine, so the machine is asked for the id of its boot.
    """
    before = None
    target = None
    if identity is not None:
        target = ssh.target_of(one, identity)
        with contextlib.suppress(SageError):  # a machine that hangs is what reboots are for
            before = boot_id(target)
    server.reboot(connection, one, hard=hard)
    server.wait_active(connection, one.id, deadline=_REBOOTED_WITHIN, tell=tell, stop=stop)
    if target is None:
        return

    def look() -> Seen[None]:
        try:
            now = boot_id(target)
        except (Unreachable, ssh.CommandFailed, NotLetIn) as problem:
            return Seen(None, str(problem), False)
        return Seen(None, "booted anew" if now != before else "not yet rebooted", now != before)

    wait_for(f"{one.name} booted anew", look, deadline=WITHIN.get(site.kind, 600.0), tell=tell, stop=stop)


def boot_id(target: Target) -> str:
    """What tells this boot of the machine from the next."""
    shell, _ = ssh.connect(target)
    with shell:
        return str(ssh.run(shell, "cat /proc/sys/kernel/random/boot_id").stdout).strip()


def own_key(connection: "Connection", one: Server, target: Target, shell: "Shell", key: str, *, place: Place) -> Target:
    """Have the server make a host key of its own where it still has the one that was given to it; how it is reached.

    Can be broken off anywhere and done again: until the new key is in place both are known.
    """
    own = one.metadata.get(host_keys.OWN)
    if key != own:
        own = host_keys.read_public(ssh.run(shell, host_keys.make_script(place), sudo=True).stdout)
        server.set_metadata(connection, one.id, {host_keys.OWN: own})
        ssh.run(shell, host_keys.swap_script(place), sudo=True)
    after = dataclasses.replace(target, keys=(own,))
    if key != own or host_keys.GIVEN in one.metadata:
        again, _ = wait_to_log_in(after, deadline=_SWAPPED_WITHIN)
        again.close()
        server.drop_metadata(connection, one.id, host_keys.GIVEN)
    return after

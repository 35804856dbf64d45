# SPDX-License-Identifier: Apache-2.0
"""The brokers of a Beehive on several machines: one RabbitMQ cluster, with a copy of the loaders' queue on each.

A broker joins the others by itself at its first start (rabbitmq.conf).  The queue has no copy there then: RabbitMQ 3.10
lays copies on those brokers that run when a queue is made, and that is the first one alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from groundwork import process
from groundwork.errors import SageError
from virtual_waggle import broker, broker_client
from virtual_waggle.broker_client import BrokerError, Management

_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
_GROWN = 180.0  # seconds
_COMMAND = 60.0  # seconds


@dataclass(frozen=True)
class Cluster:
    """What a broker knows of its cluster: Erlang names.

    ``copies`` are the brokers with a copy of the loaders' queue, ``online`` those of them that take part now; the
    queue works while these are more than half of the copies.
    """

    known: tuple[str, ...]
    running: tuple[str, ...]
    copies: tuple[str, ...]
    online: tuple[str, ...]
    leader: str


def look(management: Management) -> Cluster:
    """The cluster, as the broker of this management API sees it.  Raises BrokerError."""
    brokers = broker_client.brokers(management)
    queue = broker_client.queue(management, broker.TO_LOADER)
    return Cluster(
        known=tuple(sorted(brokers)),
        running=tuple(sorted(name for name, runs in brokers.items() if runs)),
        copies=tuple(sorted(queue.get("members") or ())),
        online=tuple(sorted(queue.get("online") or ())),
        leader=str(queue.get("leader") or ""),
    )


def join(management: Management, own: str, environment: Mapping[str, str], *, first: bool) -> Cluster:
    """Have a copy of the loaders' queue at this machine's broker, which runs; the cluster after that.

    ``environment`` is what RabbitMQ's commands need to reach it.  Raises SageError where it joined no other broker,
    though it is not the first, and BrokerError after 3 min.
    """
    for left in broker_client.attempts(f"a copy of {broker.TO_LOADER} at {own}", _GROWN):
        try:
            found = look(management)
        except BrokerError:
            if left <= 0:
                raise
            continue
        if found.known == (own,) and not first:
            raise SageError(
                f"the broker {own} stands alone: it reached no other one when it first started",
                hint="start the first machine; here: beehive-server down, remove rabbitmq/, beehive-server up",
            )
        if own in found.online:
            return found
        if own not in found.copies:
            # Two that join at the same moment are refused one after the other: it is tried again.
            words = ("-n", own, "grow", own, "all", "--queue-pattern", f"^{broker.TO_LOADER}$")
            process.run([_PROGRAMS / "rabbitmq-queues", *words], env=environment, timeout=_COMMAND, check=False)
    raise AssertionError("attempts ends by an error")


def forget(own: str, lost: str, environment: Mapping[str, str]) -> None:
    """Take a broker that is down for good out of the cluster, and its copies of queues, by this machine's broker.

    Raises process.ProcessError where that runs or is none of the cluster.
    """
    words = ("-n", own, "forget_cluster_node", lost)
    process.run([_PROGRAMS / "rabbitmqctl", *words], env=environment, timeout=_COMMAND)

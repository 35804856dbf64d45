# SPDX-License-Identifier: Apache-2.0
"""Blazar's API as values: leases, hosts, what is allocated when; and its errors as ours.

https://docs.openstack.org/api-ref/reservation/v1/.  Blazar answers 500 for much that is the user's to mend, and says
what it is in ``error_message``, or says nothing ("Internal Server Error"); the words are those of its sources
(``blazar/manager/exceptions.py``, ``blazar/enforcement/exceptions.py``).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.compat import StrEnum
from groundwork.errors import InputError, SageError
from node_automation import api
from node_automation.api import Gone, Refused, Service
from node_automation.ledger import written

if TYPE_CHECKING:
    from openstack.connection import Connection

HOST = "physical:host"
FLAVOR = "flavor:instance"
FLOATING_IP = "virtual:floatingip"


class LeaseStatus(StrEnum):
    """Blazar's own states of a lease."""

    PENDING = "PENDING"  # it is to begin later
    ACTIVE = "ACTIVE"
    TERMINATED = "TERMINATED"  # it is over
    ERROR = "ERROR"
    CREATING = "CREATING"
    STARTING = "STARTING"
    UPDATING = "UPDATING"
    TERMINATING = "TERMINATING"
    DELETING = "DELETING"


class Full(SiteError):
    """The site has not what was asked for at that time: another site, type or time may."""


class NoFloatingIP(Full):
    """There are not as many floating IPs as were asked for."""


class NameTaken(SiteError):
    """This project has a lease of that name."""


class Expired(SiteError):
    """The lease is over, and nothing can be changed of it."""


class Busy(SiteError):
    """The lease is on its way from one state to the next, and takes no change meanwhile."""


class Restricted(InputError):
    """The application credential may not make trusts, which Blazar needs for a lease."""


class Overspent(SiteError):
    """The project's allocation does not allow it."""


@dataclass(frozen=True)
class Reservation:
    """One part of a lease.  ``resource_type`` is HOST, FLAVOR, FLOATING_IP or one that we don't ask for.

    ``node_type``: the node type of hosts, the flavor's id of instances, "" where none is told.
    """

    id: str
    resource_type: str
    status: str
    amount: int
    node_type: str = ""


@dataclass(frozen=True)
class Lease:
    """A lease as it stands.  ``status`` is one of LeaseStatus; times are UTC, RFC 3339.

    ``failed`` names the parts and events that are in error.
    """

    id: str
    name: str
    status: str
    project_id: str
    starts_at: str
    ends_at: str
    reservations: tuple[Reservation, ...] = ()
    degraded: bool = False
    failed: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[Reservation, ...]:
        """Its parts that servers can be made on."""
        return tuple(part for part in self.reservations if part.resource_type in (HOST, FLAVOR))

    @property
    def floating_ips(self) -> tuple[Reservation, ...]:
        return tuple(part for part in self.reservations if part.resource_type == FLOATING_IP)

    @property
    def hosts(self) -> int:
        """How many nodes it holds."""
        return sum(part.amount for part in self.nodes)


@dataclass(frozen=True)
class Host:
    """A bare-metal node that can be leased."""

    id: str
    name: str
    node_type: str
    arch: str
    reservable: bool


@dataclass(frozen=True)
class Allocation:
    """A time for which a host is leased by somebody; UTC, RFC 3339."""

    host_id: str
    starts_at: str
    ends_at: str


def list_leases(connection: "Connection") -> tuple[Lease, ...]:
    """All leases of the project, those that are over among them."""
    return tuple(read_lease(row) for row in api.rows(connection, Service.RESERVATION, "/leases", "leases"))


def get_lease(connection: "Connection", lease_id: str) -> Lease:
    """Raises Gone where there is none of this id (any more)."""
    return _lease(connection, "GET", f"/leases/{lease_id}")


def create_lease(connection: "Connection", body: Mapping[str, Any]) -> Lease:
    """Ask for a lease.  Raises Full, NoFloatingIP, NameTaken, Restricted, Overspent, or another SiteError.

    After a SiteUnreachable nobody knows whether there is one; its name tells.
    """
    try:
        return _lease(connection, "POST", "/leases", body)
    except Refused as refused:
        restricted = refused.code in (403, 500) and is_restricted(connection)
        raise explain(api.site_of(connection), refused, restricted=restricted) from refused


def update_lease(connection: "Connection", lease_id: str, changes: Mapping[str, Any]) -> Lease:
    """Change a lease.  Raises Full, NoFloatingIP, Expired, or another SiteError."""
    try:
        return _lease(connection, "PUT", f"/leases/{lease_id}", changes)
    except Gone:
        raise
    except Refused as refused:
        raise explain(api.site_of(connection), refused) from refused


def delete_lease(connection: "Connection", lease_id: str) -> None:
    """Ask for its end; servers and floating IPs that use it go with it.  Raises Gone where there is none, and Busy."""
    try:
        api.ask(connection, Service.RESERVATION, "DELETE", f"/leases/{lease_id}")
    except Gone:
        raise
    except Refused as refused:
        raise explain(api.site_of(connection), refused) from refused


def list_hosts(connection: "Connection") -> tuple[Host, ...]:
    """The site's bare-metal nodes."""
    return tuple(read_host(row) for row in api.rows(connection, Service.RESERVATION, "/os-hosts", "hosts"))


def list_allocations(connection: "Connection") -> tuple[Allocation, ...]:
    """When the site's bare-metal nodes are leased, by whomever."""
    found = api.rows(connection, Service.RESERVATION, "/os-hosts/allocations", "allocations")
    return tuple(
        Allocation(str(row.get("resource_id", "")), _time(part.get("start_date")), _time(part.get("end_date")))
        for row in found
        for part in row.get("reservations") or ()
    )


def is_restricted(connection: "Connection") -> bool:
    """Whether the connection's credential is an application credential that may not make trusts."""
    auth = connection.config.get_auth_args()
    known_id = auth.get("application_credential_id") if isinstance(auth, Mapping) else None
    if not known_id:
        return False
    user = connection.session.get_user_id()
    try:
        found = api.ask(connection, Service.IDENTITY, "GET", f"/users/{user}/application_credentials/{known_id}")
    except SageError:
        return False
    credential = found.get("application_credential") if isinstance(found, dict) else None
    return isinstance(credential, dict) and credential.get("unrestricted") is False


def explain(site: str, refused: Refused, *, restricted: bool = False) -> SageError:
    """Our error for one of Blazar's.  ``restricted``: the credential is one that may not make trusts."""
    said = refused.said
    words = said.lower()
    if "not enough floating ip" in words:
        return NoFloatingIP(
            f"{site} has not as many floating IPs free at that time",
            hint="ask for fewer in the lease (--floating-ips): a node without one gets one of the common pool, "
            "where that has any",
        )
    if "floating ip reservation" in words or "active reservation" in words:
        return NoFloatingIP(
            f"{site} does not change the lease's floating IPs: {said}",
            hint="somebody else has reserved them for the time after; nodes can get one of the common pool "
            "(`fab node.launch --floating-ip=ad-hoc`)",
        )
    if "not enough" in words or "less capacity" in words or "no available host" in words:
        return Full(f"{site}: {said or 'not enough hosts'}", hint="`fab nodes.free` shows what is free where")
    if "already exists" in words:
        return NameTaken(
            f"{site} has a lease of that name: {said}", hint="`fab lease.list` shows it; leases need unlike names"
        )
    if "terminated leases" in words or "end date must be later than current" in words:
        return Expired(f"{site}: the lease is over", hint="ask for a new one: `fab lease.create`")
    if "maximum lease duration" in words or "can only be extended within" in words:
        return Overspent(
            f"{site}: {said}", hint="a lease of bare metal lasts 7 days at most; extend it in its last two days"
        )
    if "allocation" in words or re.search(r"\bsus?\b", words):  # service units, in which Chameleon counts
        return Overspent(f"{site}: {said}", hint="the project's allocation on chameleoncloud.org is spent or over")
    if "invalid lease status" in words or "while it is being started" in words:
        return Busy(f"{site}: the lease is just being changed: {said}", hint="try again in a moment")
    if restricted:
        return Restricted(
            f"{site}: the application credential is restricted, and Blazar can't make a lease with it",
            hint="make one with 'Unrestricted (dangerous)' ticked (openstack application credential create "
            "--unrestricted NAME) and write it into clouds.yaml",
        )
    if refused.code >= 500:
        return SiteUnreachable(
            f"{site}: Blazar failed (HTTP {refused.code}): {said}",
            hint="where this is told for each new lease, the application credential may be a restricted one; "
            "else try again later",
        )
    return refused


def is_about_operator(problem: Exception) -> bool:
    """Whether Blazar may have stumbled over the sign of equality in ``resource_properties``.

    Its sources know ``=`` and ``==``; servers that take only one of them answer the other by 400 or by 500 without a
    word of their own.
    """
    refused = problem if isinstance(problem, Refused) else problem.__cause__
    if isinstance(problem, Restricted) or not isinstance(refused, Refused):
        return False
    words = refused.said.lower()
    return "requirements" in words or (refused.code == 500 and "internal server error" in words)


def read_lease(row: Mapping[str, Any]) -> Lease:
    """A lease out of Blazar's document.  Raises SiteError where it is none."""
    try:
        parts = tuple(_reservation(part) for part in row.get("reservations") or ())
        failed = [f"reservation of {part.resource_type}" for part in parts if part.status.lower() == "error"]
        failed += [
            f"event {event.get('event_type')}"
            for event in row.get("events") or ()
            if str(event.get("status", "")).upper() == "ERROR"
        ]
        return Lease(
            id=str(row["id"]),
            name=str(row["name"]),
            status=str(row.get("status") or "").upper(),
            project_id=str(row.get("project_id") or ""),
            starts_at=_time(row["start_date"]),
            ends_at=_time(row["end_date"]),
            reservations=parts,
            degraded=bool(row.get("degraded")),
            failed=tuple(failed),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SiteError(f"what answers for Blazar gives no lease ({type(error).__name__}: {error})") from None


def read_host(row: Mapping[str, Any]) -> Host:
    """A host out of Blazar's document, in which its extra capabilities are keys of their own."""
    return Host(
        id=str(row.get("id", "")),
        name=str(row.get("node_name") or row.get("hypervisor_hostname") or ""),
        node_type=str(row.get("node_type") or ""),
        arch=str(row.get("architecture.platform_type") or row.get("cpu_arch") or ""),
        reservable=str(row.get("reservable", True)).lower() in ("true", "1")
        and str(row.get("disabled", False)).lower() not in ("true", "1"),
    )


def _lease(connection: "Connection", method: str, path: str, body: Mapping[str, Any] | None = None) -> Lease:
    found = api.ask(connection, Service.RESERVATION, method, path, body)
    row = found.get("lease") if isinstance(found, dict) else None
    if not isinstance(row, dict):
        raise SiteError(f"{api.site_of(connection)}: what answers for Blazar gives no lease")
    return read_lease(row)


def _reservation(row: Mapping[str, Any]) -> Reservation:
    kind = str(row.get("resource_type", ""))
    amount = row.get("max") if kind == HOST else row.get("amount")
    return Reservation(
        id=str(row["id"]),
        resource_type=kind,
        status=str(row.get("status") or ""),
        amount=int(amount or 0),
        node_type=str(row.get("flavor_id") or "") if kind == FLAVOR else _node_type(row.get("resource_properties")),
    )


def _node_type(properties: Any) -> str:
    """The node type that a part asks for: the third text of the term that begins with ``=`` and ``$node_type``."""
    try:
        terms = json.loads(properties) if isinstance(properties, str) and properties else properties
    except ValueError:
        return ""
    if not isinstance(terms, list):
        return ""
    for term in [terms, *terms]:
        if isinstance(term, list) and len(term) == 3 and term[0] in ("=", "==") and term[1] == "$node_type":
            return str(term[2])
    return ""


def _time(text: Any) -> str:
    """RFC 3339 of Blazar's times, which are UTC without saying so."""
    return written(datetime.fromisoformat(str(text).rstrip("Z").replace(" ", "T")).replace(tzinfo=timezone.utc))

# SPDX-License-Identifier: Apache-2.0
"""Servers: launched, waited for, listed, rebooted, looked at by their console, kept as a snapshot, deleted.

A server is ours by its metadata ``sage_run=<experiment>/<run id>``, and is in the ledger before it is asked for.
Bare metal boots with the flavor ``baremetal`` and the scheduler hint ``reservation``, KVM with the reservation's own
flavor.
"""

import base64
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site, SiteKind
from groundwork.errors import InputError, SageError
from image_builder import catalog
from node_automation import api, host_keys, ledger, names
from node_automation.api import Gone, Refused, Service
from node_automation.ledger import Kind, Run
from node_automation.waiting import Seen, wait_for

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

NODE = "sage_node"  # metadata: the node's name
NODE_TYPE = "sage_node_type"
RESERVATION = "sage_reservation"
USER = "sage_user"  # whom it lets in, where that is not the image's usual one
ACTIVE_WITHIN = {SiteKind.BAREMETAL: 2400.0, SiteKind.KVM: 600.0}  # seconds; bare metal deploys for 10 to 20 minutes
EXPECTED = {SiteKind.BAREMETAL: 600.0, SiteKind.KVM: 60.0}  # seconds that it takes as a rule
_GONE_WITHIN = 600.0
_SNAPSHOT_WITHIN = 1800.0
_PAGE = 500  # servers a page
_MOST_PAGES = 100
_CONSOLE_LINES = 40
_IMAGE_ID_TOLD = "2.45"  # from here on createImage answers with the image's id


class NotBuilt(SiteError):
    """A server in ERROR."""


class NoValidHost(NotBuilt):
    """Nova found no place for it."""


class QuotaExceeded(SiteError):
    """The project may have no more."""


class Unsupported(SiteError):
    """The site's kind of servers can't do this."""


@dataclass(frozen=True)
class ServerRequest:
    """What is asked for.  ``image``, ``network`` and ``flavor`` are names or ids; ``reservation`` is an id.

    ``flavor`` None: that of the site's kind.  ``authorized``: public keys of those who may log in.  ``key_name``: a
    key pair at the site, beside those.  ``user_data``: further keys of a cloud-config.
    """

    run: Run
    node: str
    image: str
    node_type: str = ""
    reservation: str | None = None
    flavor: str | None = None
    network: str = names.SHARED_NETWORK
    authorized: tuple[str, ...] = ()
    key_name: str | None = None
    security_group: str | None = None
    user_data: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A server as it stands.  ``status`` is Nova's word; ``created_at`` UTC, RFC 3339; ``fault`` why it is in ERROR."""

    id: str
    name: str
    status: str
    task: str
    fault: str
    created_at: str
    image_id: str
    fixed_ip: str | None
    floating_ip: str | None
    metadata: dict[str, str]

    @property
    def run(self) -> Run | None:
        return ledger.run_of_tag(self.metadata.get(ledger.TAG, ""))

    @property
    def node_type(self) -> str:
        return self.metadata.get(NODE_TYPE, "")

    @property
    def reservation(self) -> str | None:
        return self.metadata.get(RESERVATION) or None


@dataclass(frozen=True)
class Resolved:
    """The ids that a request's names stand for at one site."""

    image_id: str
    flavor_id: str
    network_id: str


def resolve(connection: "Connection", site: Site, request: ServerRequest) -> Resolved:
    """Ask the site for the ids.  Raises InputError for a name that it does not know."""
    return Resolved(
        image_id=names.image_id(connection, request.image),
        flavor_id=names.flavor_for(connection, site.kind, request.reservation, request.flavor),
        network_id=names.network_id(connection, request.network),
    )


def resolver(connection: "Connection", site: Site) -> Callable[[ServerRequest], Resolved]:
    """:func:`resolve`, asked once for all requests that want the same."""
    known: dict[tuple[str, str | None, str | None, str], Resolved] = {}
    turn = threading.Lock()

    def ask(request: ServerRequest) -> Resolved:
        wanted = (request.image, request.flavor, request.reservation, request.network)
        with turn:
            if wanted not in known:
                known[wanted] = resolve(connection, site, request)
            return known[wanted]

    return ask


def body(request: ServerRequest, site: Site, resolved: Resolved, key: host_keys.HostKey) -> dict[str, Any]:
    """The document that Nova takes; pure."""
    text = host_keys.user_data(key, request.authorized, request.user_data)
    server: dict[str, Any] = {
        "name": request.node,
        "imageRef": resolved.image_id,
        "flavorRef": resolved.flavor_id,
        "networks": [{"uuid": resolved.network_id}],
        "user_data": base64.b64encode(text.encode()).decode(),
        "metadata": {
            **request.metadata,
            ledger.TAG: str(request.run),
            NODE: request.node,
            **({NODE_TYPE: request.node_type} if request.node_type else {}),
            **({RESERVATION: request.reservation} if request.reservation else {}),
            host_keys.GIVEN: key.public,
        },
    }
    if request.key_name:
        server["key_name"] = request.key_name
    if request.security_group:
        server["security_groups"] = [{"name": request.security_group}]
    document: dict[str, Any] = {"server": server}
    if request.reservation and site.kind is SiteKind.BAREMETAL:
        document["os:scheduler_hints"] = {"reservation": request.reservation}
    return document


def launch(
    connection: "Connection",
    site: Site,
    request: ServerRequest,
    *,
    state: Path,
    ids: Callable[[ServerRequest], Resolved] | None = None,
    deadline: float | None = None,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> Server:
    """The server of this name and run, ACTIVE: the one that stands, or a new one; ``deadline`` in seconds.

    ``ids``: a :func:`resolver` that several launches share.

    Raises NotBuilt where it comes to ERROR (it stays, for the console to be read), QuotaExceeded, InputError for a
    name that the site does not know, and TimedOut.  Callers see to it that at most
    :data:`node_automation.parallel.LAUNCHES` of a site are at work.
    """
    standing = find(connection, request.run, request.node)
    if standing is not None:
        note_standing(state, site.name, standing)
        server_id = standing.id
    else:
        server_id = create(connection, site, request, state=state, resolved=ids(request) if ids else None)
    return wait_active(
        connection,
        server_id,
        deadline=deadline if deadline is not None else ACTIVE_WITHIN.get(site.kind, 600.0),
        tell=tell,
        stop=stop,
    )


def create(
    connection: "Connection", site: Site, request: ServerRequest, *, state: Path, resolved: Resolved | None = None
) -> str:
    """Ask for a server; its id, it is not waited for.  ``resolved``: what :func:`resolve` gave."""
    document = body(request, site, resolved or resolve(connection, site, request), host_keys.make())
    entry = ledger.begin(
        state,
        ledger.new_entry(
            request.run,
            site.name,
            str(connection.current_project_id or ""),
            Kind.SERVER,
            request.node,
            node=request.node,
            node_type=request.node_type,
            reservation=request.reservation,
        ),
    )
    try:
        found = api.ask(connection, Service.COMPUTE, "POST", "/servers", document)
    except SiteUnreachable:
        raise  # nobody knows whether there is one; the entry stays, and its name and metadata tell
    except Refused as refused:
        ledger.release(state, [entry.key])
        raise explain(site.name, refused, request) from refused
    except SageError:
        ledger.release(state, [entry.key])
        raise
    server_id = str(found["server"]["id"])
    ledger.change(state, entry.key, id=server_id)
    return server_id


def note_standing(state: Path, site: str, server: Server) -> None:
    """Give the ledger the id of a server that a run asked for and was killed before it knew it."""
    for entry in ledger.open_entries(ledger.read(state), site=site, kind=Kind.SERVER):
        if entry.id is None and (entry.run, entry.name) == (server.run, server.name):
            ledger.change(state, entry.key, id=server.id)


def wait_active(
    connection: "Connection",
    server_id: str,
    *,
    deadline: float,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> Server:
    """The server once it is ACTIVE.  Raises NotBuilt at once where it is in ERROR or gone, and TimedOut."""
    site = api.site_of(connection)

    def look() -> Seen[Server]:
        try:
            server = get(connection, server_id)
        except Gone:
            raise NotBuilt(
                f"{site}: the server {server_id} is no more", hint="its lease may be over: `fab lease.list`"
            ) from None
        if server.status == "ERROR":
            raise not_built(site, server)
        shown = f"{server.status} ({server.task})" if server.task else server.status
        return Seen(server, shown, server.status == "ACTIVE" and not server.task)

    return wait_for(
        f"{site}: the server becoming ACTIVE",
        look,
        deadline=deadline,
        interval=0.5,
        tell=tell,
        stop=stop,
        hint="`fab node.console` shows how far it has come; `fab node.delete` gives it up",
    )


def not_built(site: str, server: Server) -> NotBuilt:
    """The error for a server in ERROR."""
    words = server.fault.lower()
    if "no valid host" in words or "not enough hosts" in words:
        return NoValidHost(
            f"{site}: no node of the lease takes {server.name}: {server.fault}",
            hint="is each node of the lease in use (`fab node.list`), does the lease run (`fab lease.show`), and is "
            "the image made for its architecture?",
        )
    return NotBuilt(
        f"{site}: the server {server.name} is in ERROR: {server.fault or 'the site does not say why'}",
        hint=f"`fab node.console {server.name}` shows its console; `fab node.delete {server.name}`, then launch again",
    )


def list_all(connection: "Connection") -> tuple[Server, ...]:
    """All servers of this project, page by page."""
    found: list[Server] = []
    query = f"/servers/detail?limit={_PAGE}"
    for _ in range(_MOST_PAGES):
        rows = api.rows(connection, Service.COMPUTE, query, "servers")
        found += (read(row) for row in rows)
        if len(rows) < _PAGE:
            return tuple(found)
        query = f"/servers/detail?limit={_PAGE}&marker={rows[-1]['id']}"
    raise SiteError(f"{api.site_of(connection)}: the list of servers does not end")


def list_ours(connection: "Connection", experiment: str | None = None) -> tuple[Server, ...]:
    """This project's servers that were made here, by this machine or another; of one experiment, or all."""
    return tuple(
        server
        for server in list_all(connection)
        if server.run is not None and experiment in (None, server.run.experiment)
    )


def get(connection: "Connection", server_id: str) -> Server:
    """Raises Gone where there is none of this id (any more)."""
    return read(api.ask(connection, Service.COMPUTE, "GET", f"/servers/{server_id}")["server"])


def find(connection: "Connection", run: Run, node: str) -> Server | None:
    """The server of this name that the run made; one in ERROR, or on its way out, is none."""
    for server in list_ours(connection, run.experiment):
        if server.run == run and server.name == node and server.status not in ("ERROR", "DELETED", "SOFT_DELETED"):
            return server if server.task != "deleting" else None
    return None


def pick(servers: Iterable[Server], word: str) -> Server:
    """The one server with this id or name.  Raises InputError where it is none, or not one."""
    found = [server for server in servers if word in (server.id, server.name)]
    if not found:
        raise InputError(f"there is no node {word!r}", hint="`fab node.list` shows those that there are")
    if len(found) > 1:
        ids = ", ".join(server.id for server in found)
        raise InputError(f"there are several nodes {word!r}", hint=f"name one by its id: {ids}")
    return found[0]


def read(row: Mapping[str, Any]) -> Server:
    """A server out of Nova's document."""
    image = row.get("image") or {}  # "" where it boots from a volume
    addresses = [entry for entries in (row.get("addresses") or {}).values() for entry in entries]

    def address(kind: str) -> str | None:
        ours = [
            str(entry.get("addr"))
            for entry in addresses
            if entry.get("OS-EXT-IPS:type", "fixed") == kind and entry.get("version") == 4
        ]
        return ours[0] if ours else None

    return Server(
        id=str(row["id"]),
        name=str(row.get("name") or ""),
        status=str(row.get("status") or ""),
        task=str(row.get("OS-EXT-STS:task_state") or ""),
        fault=str((row.get("fault") or {}).get("message") or ""),
        created_at=str(row.get("created") or ""),
        image_id=str(image.get("id", "")) if isinstance(image, Mapping) else "",
        fixed_ip=address("fixed"),
        floating_ip=address("floating"),
        metadata={str(key): str(value) for key, value in (row.get("metadata") or {}).items()},
    )


def set_metadata(connection: "Connection", server_id: str, values: Mapping[str, str]) -> None:
    """Set keys of a server's metadata; others stay."""
    api.ask(connection, Service.COMPUTE, "POST", f"/servers/{server_id}/metadata", {"metadata": dict(values)})


def drop_metadata(connection: "Connection", server_id: str, key: str) -> None:
    """Remove a key of a server's metadata; no error where it is gone already."""
    try:
        api.ask(connection, Service.COMPUTE, "DELETE", f"/servers/{server_id}/metadata/{key}")
    except Gone:
        logger.debug("the server %s has no %s", server_id, key)


def reboot(connection: "Connection", server: Server, *, hard: bool = False) -> None:
    """Reboot it: by asking its system, or hard, as by its power button.  ACTIVE says nothing of how far it is."""
    _act(connection, server, "rebooted", {"reboot": {"type": "HARD" if hard else "SOFT"}})


def console(connection: "Connection", server: Server, *, lines: int = _CONSOLE_LINES) -> str:
    """The last lines of its console.  Raises Unsupported where the site keeps none."""
    try:
        found = api.ask(
            connection,
            Service.COMPUTE,
            "POST",
            f"/servers/{server.id}/action",
            {"os-getConsoleOutput": {"length": lines}},
        )
    except Gone:
        raise
    except Refused as refused:
        raise Unsupported(
            f"{api.site_of(connection)} gives no console of {server.name}: {refused.said}",
            hint="the site's web page may show it (Instances, Console)",
        ) from refused
    text = str(found.get("output") or "")
    return "\n".join(text.splitlines()[-lines:])


def snapshot(
    connection: "Connection",
    server: Server,
    name: str,
    *,
    state: Path,
    deadline: float = _SNAPSHOT_WITHIN,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> str:
    """Keep its disk as an image of this name; the image's id, once the image is active.

    A snapshot is the user's: it is in the ledger, and neither ``down`` nor ``gc`` deletes it.
    """
    site = api.site_of(connection)
    run = server.run or Run("none", "00000000")
    entry = ledger.begin(
        state,
        ledger.new_entry(run, site, str(connection.current_project_id or ""), Kind.IMAGE, name, node=server.name),
    )
    wanted = {"createImage": {"name": name, "metadata": {ledger.TAG: str(run), NODE: server.name}}}
    try:
        found = api.ask(
            connection,
            Service.COMPUTE,
            "POST",
            f"/servers/{server.id}/action",
            wanted,
            microversion=_IMAGE_ID_TOLD,
        )
    except Refused as refused:
        ledger.release(state, [entry.key])
        raise Unsupported(
            f"{site} makes no snapshot of {server.name}: {refused.said}",
            hint="on bare metal `sudo cc-snapshot NAME` makes one from within, where the image has it",
        ) from refused
    image_id = str(found.get("image_id") or "")
    ledger.change(state, entry.key, id=image_id)

    def look() -> Seen[str]:
        try:
            image = catalog.get(connection, image_id)
        except catalog.Gone:
            raise SiteError(f"{site}: the snapshot {name} is gone: the site could not make it") from None
        if image.status in ("killed", "deleted", "deactivated"):
            raise SiteError(f"{site}: the snapshot {name} is {image.status}: the site could not make it")
        return Seen(image_id, image.status, image.status == "active")

    return wait_for(f"{site}: the snapshot {name}", look, deadline=deadline, tell=tell, stop=stop)


def delete(
    connection: "Connection",
    server_id: str,
    *,
    state: Path,
    deadline: float = _GONE_WITHIN,
    tell: Callable[[str], None] = lambda state: None,
    stop: threading.Event | None = None,
) -> None:
    """Delete a server, wait until it is gone, and note it; one that is gone already is no error."""
    site = api.site_of(connection)

    def ask() -> None:
        try:
            api.ask(connection, Service.COMPUTE, "DELETE", f"/servers/{server_id}")
        except Refused as refused:
            if not isinstance(refused, Gone) and refused.code != 409:  # 409: it is being deleted, or in a passing state
                raise

    def look() -> Seen[None]:
        try:
            server = get(connection, server_id)
        except Gone:
            return Seen(None, "gone", True)
        if server.status == "DELETED":
            return Seen(None, "gone", True)
        if server.task != "deleting":
            ask()
        return Seen(None, f"{server.status} ({server.task or 'no task'})", False)

    ask()
    wait_for(
        f"{site}: the server {server_id} being deleted",
        look,
        deadline=deadline,
        interval=0.5,
        tell=tell,
        stop=stop,
        hint="where it stays, giving back its lease takes it along; else ask the site's operators",
    )
    ledger.release(state, [entry.key for entry in ledger.read(state) if entry.id == server_id])


def explain(site: str, refused: Refused, request: ServerRequest) -> SageError:
    """Our error for one of Nova's about a new server."""
    words = refused.said.lower()
    if "quota" in words:
        return QuotaExceeded(
            f"{site}: the project may have no more servers: {refused.said}",
            hint="delete some (`fab node.list`, `fab gc`), or ask the site's operators for more quota",
        )
    if "key_name" in words:
        return InputError(
            f"{site} has no key pair {request.key_name!r}", hint="`openstack keypair list` shows yours there"
        )
    if "flavor's disk is too small" in words or "flavor's memory is too small" in words:
        return InputError(f"{site}: {refused.said}", hint="take a larger flavor, or another image")
    if "security group" in words and "not found" in words:
        return InputError(f"{site} has no security group {request.security_group!r}")
    return refused


def open_security_group(connection: "Connection", run: Run, ports: Iterable[int], *, state: Path) -> str:
    """The name of the run's security group at a KVM site, which lets ssh and these TCP ports in; made where missing."""
    site = api.site_of(connection)
    name = f"{ledger.PREFIX}{run.experiment}-{run.id}"
    rows = api.rows(connection, Service.NETWORK, f"/security-groups?name={name}", "security_groups")
    ours = [row for row in rows if row.get("project_id") in (None, connection.current_project_id)]
    if ours:
        group = ours[0]
    else:
        project = str(connection.current_project_id or "")
        entry = ledger.begin(state, ledger.new_entry(run, site, project, Kind.SECURITY_GROUP, name))
        wanted = {"security_group": {"name": name, "description": ledger.tag(run)}}
        try:
            group = api.ask(connection, Service.NETWORK, "POST", "/security-groups", wanted)["security_group"]
        except Refused:
            ledger.release(state, [entry.key])
            raise
        ledger.change(state, entry.key, id=str(group["id"]))
    open_now = {
        rule.get("port_range_min")
        for rule in group.get("security_group_rules") or ()
        if rule.get("direction") == "ingress" and rule.get("protocol") == "tcp"
    }
    for port in sorted({22, *ports} - open_now):
        _let_in(connection, str(group["id"]), port)
    return name


def _let_in(connection: "Connection", group_id: str, port: int) -> None:
    rule = {
        "security_group_id": group_id,
        "direction": "ingress",
        "ethertype": "IPv4",
        "protocol": "tcp",
        "port_range_min": port,
        "port_range_max": port,
    }
    try:
        api.ask(connection, Service.NETWORK, "POST", "/security-group-rules", {"security_group_rule": rule})
    except Refused as refused:
        if refused.code != 409:  # another run of this experiment has made it
            raise


def delete_security_group(connection: "Connection", group_id: str, *, state: Path) -> None:
    """Delete a security group of ours; one that is gone already is no error."""
    try:
        api.ask(connection, Service.NETWORK, "DELETE", f"/security-groups/{group_id}")
    except Gone:
        logger.debug("the security group %s is gone already", group_id)
    ledger.release(state, [entry.key for entry in ledger.read(state) if entry.id == group_id])


def _act(connection: "Connection", server: Server, what: str, action: Mapping[str, Any]) -> None:
    try:
        api.ask(connection, Service.COMPUTE, "POST", f"/servers/{server.id}/action", dict(action))
    except Gone:
        raise
    except Refused as refused:
        if refused.code == 409:
            raise SiteError(
                f"{api.site_of(connection)}: {server.name} can't be {what} now: {refused.said}",
                hint="it is busy with something else; try again in a moment",
            ) from refused
        raise

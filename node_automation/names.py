# SPDX-License-Identifier: Apache-2.0
"""From the names that people give to the ids that services take: flavors, networks, images."""

from typing import TYPE_CHECKING, Any

from chameleon_sites.sites import SiteKind
from groundwork.errors import InputError, nearest
from image_builder import catalog
from node_automation import api
from node_automation.api import Service

if TYPE_CHECKING:
    from openstack.connection import Connection

BAREMETAL_FLAVOR = "baremetal"
SHARED_NETWORK = "sharednet1"
_MOST = 1000  # flavors a page, which is Nova's own limit


def flavor_id(connection: "Connection", word: str) -> str:
    """The id of the flavor of this name or id.  Raises InputError with the nearest name where there is none."""
    found = api.rows(connection, Service.COMPUTE, f"/flavors?limit={_MOST}", "flavors")
    return _pick(found, word, "flavor", api.site_of(connection))


def reserved_flavor_id(connection: "Connection", reservation: str) -> str:
    """The id of the flavor that Blazar made for a reservation of instances: ``reservation:<id>`` is its name."""
    found = api.rows(connection, Service.COMPUTE, f"/flavors?is_public=None&limit={_MOST}", "flavors")
    for row in found:
        if row.get("name") == f"reservation:{reservation}" or row.get("id") == reservation:
            return str(row["id"])
    raise InputError(
        f"{api.site_of(connection)} has no flavor reservation:{reservation}",
        hint="the lease is not active yet, or over: `fab lease.show` tells",
    )


def network_id(connection: "Connection", word: str) -> str:
    """The id of the network of this name or id that servers are attached to."""
    found = api.rows(connection, Service.NETWORK, "/networks", "networks")
    return _pick(found, word, "network", api.site_of(connection))


def public_network_id(connection: "Connection", word: str | None = None) -> str:
    """The id of the network that floating IPs come from; without a name, the site's only one, or its ``public``."""
    found = [
        row for row in api.rows(connection, Service.NETWORK, "/networks", "networks") if row.get("router:external")
    ]
    if word is None and len(found) == 1:
        return str(found[0]["id"])
    return _pick(found, word or "public", "public network", api.site_of(connection))


def image_id(connection: "Connection", word: str) -> str:
    """The id of the image of this name or id; of all images that this project sees."""
    found = {image.id: image for image in (*catalog.find(connection, word), *catalog.name_holders(connection, word))}
    site = api.site_of(connection)
    if not found:
        raise InputError(
            f"{site} has no image {word!r}",
            hint="`sage-image list` shows this project's; `openstack image list` shows all",
        )
    usable = [image.id for image in found.values() if image.status == "active"]
    if not usable:
        raise InputError(f"the image {word!r} at {site} is {next(iter(found.values())).status}, not active")
    if len(usable) > 1:
        raise InputError(f"{site} has several images {word!r}", hint=f"name one by its id: {', '.join(usable)}")
    return usable[0]


def flavor_for(connection: "Connection", kind: SiteKind, reservation: str | None, flavor: str | None) -> str:
    """The id of the flavor that a server at such a site gets: its own, the reservation's, or ``baremetal``."""
    if flavor is not None:
        return flavor_id(connection, flavor)
    if kind is SiteKind.KVM:
        if reservation is None:
            raise InputError(
                f"a server at {api.site_of(connection)} needs a lease or a flavor",
                hint="name one with --lease, or a flavor with --flavor",
            )
        return reserved_flavor_id(connection, reservation)
    return flavor_id(connection, BAREMETAL_FLAVOR)


def _pick(rows: list[dict[str, Any]], word: str, what: str, site: str) -> str:
    matching = [row for row in rows if row.get("id") == word] or [row for row in rows if row.get("name") == word]
    if not matching:
        raise InputError(f"{site} has no {what} {word!r}", hint=nearest(word, {str(row.get("name")) for row in rows}))
    if len(matching) > 1:
        ids = ", ".join(str(row["id"]) for row in matching)
        raise InputError(f"{site} has several {what}s {word!r}", hint=f"name one by its id: {ids}")
    return str(matching[0]["id"])

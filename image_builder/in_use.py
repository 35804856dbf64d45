# SPDX-License-Identifier: Apache-2.0
"""Which images this project's servers and leases need, as far as a site tells: by Nova, and by Blazar.

A site whose catalog has neither tells nothing, and nothing is asked.  Servers of other projects can't be seen.
"""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError
from image_builder.catalog import SiteImage

if TYPE_CHECKING:
    from openstack.connection import Connection

_PAGE = 500  # servers a page
_MOST_PAGES = 100
# Blazar's states of a lease that has not come to its end, and passing ones on the way there.
_PENDING = {"PENDING", "ACTIVE", "CREATING", "STARTING", "UPDATING"}


def needed(connection: "Connection", images: Iterable[SiteImage]) -> dict[str, str]:
    """Those of ``images`` that a server was made of, or that a pending or active lease names: id -> why it stays.

    A lease names an image where the image's id or its name stands anywhere in it.  Raises SiteError where what is in
    use can't be told; then nothing may be deleted.
    """
    found: dict[str, str] = {}
    asked = tuple(images)
    for server in _servers(connection):
        image = server.get("image") or {}  # "" where it boots from a volume
        found[str(image.get("id", ""))] = f"the server {server.get('name')} was made of it"
    for lease in _leases(connection):
        text = json.dumps(lease)
        for image in asked:
            if str(lease.get("status", "")).upper() in _PENDING and (image.id in text or f'"{image.name}"' in text):
                found[image.id] = f"the lease {lease.get('name')} names it"
    return {image.id: found[image.id] for image in asked if image.id in found}


def _servers(connection: "Connection") -> Iterator[dict[str, Any]]:
    if not _has(connection, "compute"):
        return
    query = f"/servers/detail?limit={_PAGE}"
    for _ in range(_MOST_PAGES):
        rows, more = _rows(connection, "compute", query, "servers")
        yield from rows
        if not rows or (not more and len(rows) < _PAGE):  # a site may have pages that are smaller than asked for
            return
        query = f"/servers/detail?limit={_PAGE}&marker={rows[-1].get('id')}"
    raise SiteError(f"{connection.config.region_name}: the list of servers does not end")


def _leases(connection: "Connection") -> list[dict[str, Any]]:
    return _rows(connection, "reservation", "/leases", "leases")[0] if _has(connection, "reservation") else []


def _has(connection: "Connection", service: str) -> bool:
    return connection.config.get_endpoint_from_catalog(service) is not None


def _rows(connection: "Connection", service: str, path: str, key: str) -> tuple[list[dict[str, Any]], bool]:
    """What a service lists, and whether it says (by links, as Nova does) that there is more."""
    site = str(connection.config.region_name)
    try:
        response = connection.session.get(
            path,
            endpoint_filter={"service_type": service, "region_name": site, "interface": "public"},
            raise_exc=False,
        )
    except Exception as error:
        raise cloud.explain(site, error) from error
    if not response.ok:
        raise SiteError(f"{site} does not tell its {key} (HTTP {response.status_code})")
    try:
        document = response.json()
        rows, more = document[key], bool(document.get(f"{key}_links"))
    except (ValueError, KeyError, TypeError, AttributeError):
        rows, more = None, False
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SiteError(f"{site}: what answers for its {key} gives no list of them")
    return rows, more

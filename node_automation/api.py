# SPDX-License-Identifier: Apache-2.0
"""Requests to a site's Nova, Neutron, Blazar and Keystone, and what is wrong with their answers.

The way there (catalog, version, token) is openstacksdk's; the bodies are those of the services' API references.
What an error means is known where the request is made: :class:`Refused` carries the code and the service's words.
"""

import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.compat import StrEnum
from groundwork.errors import InputError, SageError

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_TRIES = 3  # requests for one answer where asking again changes nothing
_FIRST_WAIT = 0.5  # seconds until the second, doubled for the third
_LONGEST_WAIT = 10.0
_LONGEST_WORDS = 400  # characters of a service's own that are told
_AGAIN = {"GET", "DELETE", "PUT"}  # what may be asked twice
_PASSING = {408, 425, 429, 502, 503, 504}  # codes of a proxy, or of a service that is busy


class Service(StrEnum):
    """The services that are asked, by their types in the catalog."""

    COMPUTE = "compute"
    NETWORK = "network"
    RESERVATION = "reservation"
    IDENTITY = "identity"


_NAMES = {
    Service.COMPUTE: "Nova",
    Service.NETWORK: "Neutron",
    Service.RESERVATION: "Blazar",
    Service.IDENTITY: "Keystone",
}


class Refused(SiteError):
    """A service said no.  ``code`` is HTTP's, ``said`` what the service said, in one line, or ""."""

    def __init__(self, message: str, *, code: int, said: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.said = said


class Gone(Refused):
    """There is no such thing (any more)."""


def site_of(connection: "Connection") -> str:
    """The site's name, which is its region's."""
    return str(connection.config.region_name)


def ask(
    connection: "Connection",
    service: Service,
    method: str,
    path: str,
    body: Any = None,
    *,
    microversion: str | None = None,
) -> Any:
    """The JSON document that the service answers with; {} where it answers with nothing.

    Raises Refused, SiteUnreachable, or InputError where the credentials are the reason.  What changes nothing when
    it is asked twice is asked again where the site does not answer.
    """
    site = site_of(connection)
    arguments = {"json": body} if body is not None else {}
    if microversion is not None:
        arguments["microversion"] = microversion
    tries = _TRIES if method in _AGAIN else 1
    for left, wait in zip(range(tries - 1, -1, -1), cloud.waits(_FIRST_WAIT, _LONGEST_WAIT), strict=False):
        try:
            try:
                response = _send(connection, service, method, path, arguments)
            except Exception as error:
                raise _unanswered(site, service, error) from error
            if response.ok:
                return _document(site, service, response)
            raise _error(site, service, method, response)
        except SiteUnreachable as problem:
            if not left or problem.retry_after > _LONGEST_WAIT:
                raise
            logger.debug("%s; asking again", problem)
            time.sleep(max(problem.retry_after, wait))
    raise AssertionError("unreachable")


def _send(connection: "Connection", service: Service, method: str, path: str, arguments: dict[str, Any]) -> Any:
    if service is Service.RESERVATION:  # openstacksdk knows no Blazar: it would look for its versions, and leave v1 out
        where = {"service_type": service.value, "region_name": site_of(connection), "interface": "public"}
        return connection.session.request(path, method, endpoint_filter=where, raise_exc=False, **arguments)
    return getattr(connection, service.value).request(path, method, raise_exc=False, **arguments)


def rows(connection: "Connection", service: Service, path: str, key: str) -> list[dict[str, Any]]:
    """What a service lists under ``key``.  Raises SiteError where the answer is no list."""
    found = ask(connection, service, "GET", path)
    listed = found.get(key) if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise SiteError(f"{site_of(connection)}: what answers for {_NAMES[service]} gives no list of {key}")
    return listed


def wording(service: Service) -> str:
    """The service's usual name, for people."""
    return _NAMES[service]


def _unanswered(site: str, service: Service, error: Exception) -> SageError:
    from keystoneauth1 import exceptions as auth_errors
    from openstack import exceptions as sdk_errors

    missing = isinstance(error, auth_errors.EndpointNotFound | sdk_errors.EndpointNotFound)
    if missing or isinstance(error, sdk_errors.ServiceDisabledException):
        return InputError(
            f"the catalog behind the entry for {site} has no {service.value} service ({_NAMES[service]})",
            hint="name a site that has one: leases and servers need Blazar, Nova and Neutron",
        )
    return cloud.explain(site, error)


def _document(site: str, service: Service, response: Any) -> Any:
    if not response.content:
        return {}
    try:
        return response.json()
    except ValueError:
        raise SiteUnreachable(
            f"{site}: what answers for {_NAMES[service]} gives no JSON (HTTP {response.status_code})",
            hint="the site may be under repair: try again later",
        ) from None


def _error(site: str, service: Service, method: str, response: Any) -> SageError:
    code = response.status_code
    said = _said(response)
    name = _NAMES[service]
    logger.debug("%s: %s %s: HTTP %s: %s", site, name, method, code, said)
    if code == 401:
        from keystoneauth1 import exceptions as auth_errors

        return cloud.explain(site, auth_errors.Unauthorized())
    if code in _PASSING:
        return SiteUnreachable(
            f"{site}: {name} {'is asked too often' if code == 429 else 'does not answer'} (HTTP {code})",
            hint="try again later; https://status.chameleoncloud.org tells of outages",
            retry_after=_retry_after(response),
        )
    if code == 404:
        return Gone(f"{site}: {name} knows of no such thing: {said}", code=code, said=said)
    hint = "ask for the role in your project that allows it" if code == 403 else None
    return Refused(f"{site}: {name} refuses it (HTTP {code}): {said}", code=code, said=said, hint=hint)


def _said(response: Any) -> str:
    """What an error's document says: Nova's, Neutron's, Keystone's and Blazar's have different forms."""
    text = response.text or ""
    with contextlib.suppress(ValueError):
        document = json.loads(text)
        if isinstance(document, dict):
            inner = next((value for value in document.values() if isinstance(value, dict)), document)
            for key in ("message", "error_message", "title", "faultstring"):
                if isinstance(inner.get(key), str):
                    text = inner[key]
                    break
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _LONGEST_WORDS else line[: _LONGEST_WORDS - 3] + "..."


def _retry_after(response: Any) -> float:
    value = str(response.headers.get("Retry-After") or "0")
    return float(value) if value.isdigit() else 0.0

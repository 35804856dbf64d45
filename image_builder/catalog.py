# SPDX-License-Identifier: Apache-2.0
"""One site's images of ours: list, create, upload, change, delete.  The only module that calls Glance.

An image is ours when this project owns it, it has the tag ``sage-image`` and the property ``sage_state``; no
other is ever changed.  A change is one request, so that name, visibility in lists and state change at once.
All functions raise SiteError and its kin (see :mod:`chameleon_sites.cloud`).
"""

import contextlib
import email.utils
import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.compat import StrEnum
from groundwork.errors import SageError

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

TAG = "sage-image"
_PREFIXES = ("sage_", "build-", "chameleon-supported")  # of the properties that are read
_PAGE = 100  # images a listing's page
_MOST_PAGES = 1000
_TRIES = 3  # requests for one answer, where the site is busy or fails
_FIRST_WAIT = 0.5  # seconds until the second, doubled for the third
_LONGEST_WAIT = 20.0  # a site that asks for more patience has failed
BLOCK = 1 << 20  # bytes of a download at a time
_STALL = 300.0  # seconds that a site may take for one block, or to answer after the last
_PATCH = {"Content-Type": "application/openstack-images-v2.1-json-patch"}


class Visibility(StrEnum):
    """Who sees an image, as Glance has it."""

    PUBLIC = "public"
    COMMUNITY = "community"
    SHARED = "shared"
    PRIVATE = "private"


class ImageState(StrEnum):
    """How far one of our images has come (property ``sage_state``)."""

    STAGING = "staging"  # created, perhaps uploaded, not checked
    CANDIDATE = "candidate"  # its digest is ours
    CURRENT = "current"  # has the public name
    PREVIOUS = "previous"  # has a back-dated name
    RETIRED = "retired"  # hidden, about to be deleted
    FAILED = "failed"  # its canary said so; hidden, never promoted


class BadListing(SiteError):
    """A list of images that can't be believed; nothing is done by it."""


class Refused(SiteError):
    """The site does not allow it to this project."""


class Gone(SiteError):
    """There is no such image (any more)."""


class Taken(SiteError):
    """The id is another image's (``holder``), or was one's that is deleted or another project's (None)."""

    def __init__(self, site: str, holder: "SiteImage | None") -> None:
        super().__init__(f"{site}: the image id is taken")
        self.holder = holder


class Body(Protocol):
    """What is sent as an image's data: its length is known, and it can be read again from its beginning.

    It must not have ``read``, or it would be read in blocks of 16 KiB.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class Stopped(SageError):
    """An upload that was told to end."""

    def __init__(self) -> None:
        super().__init__("interrupted")


@dataclass(frozen=True)
class SiteImage:
    """An image as it stands at a site.  ``size`` in bytes; ``created_at`` and ``updated_at`` UTC, RFC 3339.

    ``properties`` holds those named ``sage_...`` and those by which Chameleon marks images (``build-...``,
    ``chameleon-supported``).
    """

    id: str
    name: str
    status: str
    hidden: bool
    protected: bool
    visibility: str
    owner: str
    size: int | None
    created_at: str
    updated_at: str
    disk_format: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    tags: tuple[str, ...]
    properties: dict[str, str]

    @property
    def state(self) -> str:
        """One of :class:`ImageState`, or what a later version of this program wrote, or ""."""
        return self.properties.get("sage_state", "")

    @property
    def image_name(self) -> str:
        """The public name that it has, had or is to have."""
        return self.properties.get("sage_image_name", "")

    @property
    def built_at(self) -> str:
        """UTC, RFC 3339."""
        return self.properties.get("sage_built_at", "")

    @property
    def promoted_at(self) -> str:
        """When it last got the public name; UTC, RFC 3339, or "" when never."""
        return self.properties.get("sage_promoted_at", "")

    @property
    def failed_at(self) -> str:
        """When its canary failed; UTC, RFC 3339, or ""."""
        return self.properties.get("sage_failed_at", "")

    @property
    def recipe_digest(self) -> str:
        return self.properties.get("sage_recipe_digest", "")

    @property
    def paused(self) -> bool:
        """Whether it is to stay as it is, or its site is: it is not renamed, hidden or deleted."""
        return bool(self.properties.get("sage_paused") or self.properties.get("sage_site_paused"))

    @property
    def withdrawn(self) -> bool:
        """Whether a rollback took the public name from it, and nobody gave it back."""
        withdrawn_at = self.properties.get("sage_withdrawn_at", "")
        return self.state == ImageState.PREVIOUS and withdrawn_at > self.promoted_at

    @property
    def publisher(self) -> str:
        """The process that uploads or uploaded it."""
        return self.properties.get("sage_publisher", "")

    @property
    def until(self) -> str:
        """When its publisher will surely have given up the upload; UTC, RFC 3339."""
        return self.properties.get("sage_until", "")


@dataclass(frozen=True)
class Change:
    """What to change of an image, in one request; None leaves as it is."""

    name: str | None = None
    hidden: bool | None = None
    visibility: str | None = None
    tags: tuple[str, ...] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


def list_ours(connection: "Connection", image_name: str | None = None) -> tuple[SiteImage, ...]:
    """This project's images that this program made (of one public name, or all), listed and hidden ones.

    Raises BadListing when the answer is not what a list of images should be.
    """
    owner = connection.current_project_id
    query = {"owner": str(owner), "tag": TAG, "limit": str(_PAGE)}
    if image_name is not None:
        query["sage_image_name"] = image_name

    def read(hidden: str) -> dict[str, SiteImage]:
        return {
            image.id: image
            for image in _pages(connection, {**query, "os_hidden": hidden})
            if image.owner == owner and TAG in image.tags and "sage_state" in image.properties
            if image_name is None or image.image_name == image_name
        }

    # Glance lists either kind alone.  An image that another run hides or shows meanwhile must not slip through
    # between the two, so the listed ones are read again at the end.
    before, hidden, listed = read("false"), read("true"), read("false")
    for image_id in before.keys() - hidden.keys() - listed.keys():  # hidden or deleted just now; or a bad listing
        with contextlib.suppress(Gone):
            hidden[image_id] = get(connection, image_id)
    return (*listed.values(), *(image for image in hidden.values() if image.id not in listed))


def name_holders(connection: "Connection", name: str) -> tuple[SiteImage, ...]:
    """All images of exactly this name that a plain listing shows to this project, whoever made them."""
    return tuple(image for image in _pages(connection, {"name": name, "limit": str(_PAGE)}) if image.name == name)


def site_time(connection: "Connection") -> datetime | None:
    """The site's clock, to the second, as its answers tell it; None where they don't."""
    told = _answer(connection, "GET", "/images?limit=1").headers.get("Date", "")
    with contextlib.suppress(TypeError, ValueError):
        return email.utils.parsedate_to_datetime(told).astimezone(timezone.utc)
    return None


def find(connection: "Connection", word: str) -> tuple[SiteImage, ...]:
    """All images of this project with this id or name, listed and hidden ones, whoever made them; and, by its id, one
    of another project's."""
    try:
        return (get(connection, str(uuid.UUID(word))),)
    except (ValueError, Gone):
        pass
    query = {"owner": str(connection.current_project_id), "name": word, "limit": str(_PAGE)}
    found = {
        image.id: image for hidden in ("false", "true") for image in _pages(connection, {**query, "os_hidden": hidden})
    }
    return tuple(image for image in found.values() if image.name == word)


def with_digest(connection: "Connection", sha512: str) -> tuple[SiteImage, ...]:
    """All images with data of this digest that this project sees, listed and hidden ones, whoever made them."""
    query = {"os_hash_value": sha512, "limit": str(_PAGE)}
    found = {
        image.id: image for hidden in ("false", "true") for image in _pages(connection, {**query, "os_hidden": hidden})
    }
    return tuple(image for image in found.values() if (image.os_hash_algo, image.os_hash_value) == ("sha512", sha512))


def is_paused(connection: "Connection") -> bool:
    """Whether this project paused the whole site: one of its images of ours tells so."""
    owner = str(connection.current_project_id)
    query = {"owner": owner, "tag": TAG, "sage_site_paused": "yes", "limit": "1"}
    return any(image.owner == owner and image.paused for image in _pages(connection, query))


@dataclass(frozen=True)
class Member:
    """A project with which an image is shared.  ``status``: ``pending``, ``accepted`` or ``rejected``."""

    project: str
    status: str


def members(connection: "Connection", image_id: str) -> tuple[Member, ...]:
    """The projects with which an image is shared."""
    rows = _call(connection, "GET", f"/images/{image_id}/members").get("members")
    try:
        return tuple(Member(_text(row["member_id"]), _text(row["status"])) for row in rows)  # type: ignore[union-attr]
    except (KeyError, TypeError, ValueError):
        raise BadListing(f"{_site(connection)}: the answer is no list of an image's members") from None


def add_member(connection: "Connection", image_id: str, project: str) -> None:
    """Share an image, whose visibility is ``shared``, with a project; no error where it is shared already."""
    try:
        _call(connection, "POST", f"/images/{image_id}/members", json={"member": project})
    except _Conflict:
        logger.debug("%s is a member of %s already", project, image_id)


def remove_member(connection: "Connection", image_id: str, project: str) -> None:
    """Share an image with a project no more; no error where it was not shared."""
    try:
        _call(connection, "DELETE", f"/images/{image_id}/members/{project}")
    except Gone:
        logger.debug("%s is no member of %s", project, image_id)


def get(connection: "Connection", image_id: str) -> SiteImage:
    """One image; raises Gone."""
    return _image(connection, _call(connection, "GET", f"/images/{image_id}"))


def create(
    connection: "Connection",
    image_id: str,
    *,
    name: str,
    disk_format: str,
    min_disk: int,
    properties: Mapping[str, str],
) -> SiteImage:
    """A private, hidden record without data.  ``min_disk`` in GiB.

    The caller chooses the id, so that it can delete the record whatever becomes of the answer, and a name that no
    other has.  A site takes an id once, for ever; raises Taken where another was before.
    """
    document = {
        **properties,
        "id": image_id,
        "name": name,
        "visibility": str(Visibility.PRIVATE),
        "os_hidden": True,
        "tags": [TAG],
        "container_format": "bare",
        "disk_format": disk_format,
        "min_disk": min_disk,
    }
    try:
        return _image(connection, _call(connection, "POST", "/images", json=document))
    except _Conflict:
        try:
            holder = get(connection, image_id)
        except Gone:
            raise Taken(_site(connection), None) from None
        if holder.name == name and holder.owner == connection.current_project_id:
            return holder  # a retry of ours, after an answer that was lost
        raise Taken(_site(connection), holder) from None


def upload(
    connection: "Connection", image_id: str, body: Body, *, stage: bool = False, timeout: float = _STALL
) -> None:
    """Send the image's data, or with ``stage`` lay them down for :func:`start_import`; none of it is hashed here.

    ``timeout``: seconds that the site may take for one block, or to answer after the last (300 at most).  One try
    alone, but for a token that has expired: the SDK gets a new one and sends the body from its beginning.
    """
    _call(
        connection,
        "PUT",
        f"/images/{image_id}/{'stage' if stage else 'file'}",
        tries=1,
        data=body,
        headers={"Content-Type": "application/octet-stream"},
        timeout=min(timeout, _STALL),
        log=False,  # keystoneauth would log the body
        connect_retries=0,
    )


def import_methods(connection: "Connection") -> tuple[str, ...]:
    """How the site imports images: ``glance-direct``, ``web-download``, ...; none where it does not say."""
    try:
        answer = _call(connection, "GET", "/info/import")
    except Gone:
        return ()
    methods = answer.get("import-methods")
    found = methods.get("value") if isinstance(methods, dict) else None
    return tuple(str(method) for method in found) if isinstance(found, list) else ()


def start_import(connection: "Connection", image_id: str, method: str, *, url: str | None = None) -> None:
    """Let the site make the image's data of what was staged (``glance-direct``) or of ``url`` (``web-download``)."""
    document = {"method": {"name": method, **({"uri": url} if url else {})}}
    _call(connection, "POST", f"/images/{image_id}/import", tries=1, json=document, connect_retries=0)


def import_failure(connection: "Connection", image_id: str) -> str | None:
    """Why the site could not import an image, or None while it is at it, or done."""
    if not _call(connection, "GET", f"/images/{image_id}").get("os_glance_failed_import"):
        return None
    try:
        return str(_call(connection, "GET", f"/images/{image_id}/tasks")["tasks"][-1]["message"])
    except (SiteError, IndexError, KeyError, TypeError):
        return "it does not say why"


def download(connection: "Connection", image_id: str) -> Iterator[bytes]:
    """The image's data, block after block.  Raises Gone, and SiteError where they break off."""
    try:
        response = connection.image.request(
            f"/images/{image_id}/file", "GET", raise_exc=False, stream=True, timeout=_STALL, log=False
        )
        if not response.ok:
            raise _error(_site(connection), "GET", response)
        with response:
            yield from response.iter_content(BLOCK)
    except Exception as error:
        raise cloud.explain(_site(connection), error) from error


def change(connection: "Connection", image_id: str, wanted: Change) -> SiteImage:
    """Change an image in one request, all or nothing; returns it as it then is.  Raises Refused and Gone."""
    values: dict[str, Any] = {f"/{key}": value for key, value in wanted.properties.items()}
    for path, value in (("/name", wanted.name), ("/os_hidden", wanted.hidden), ("/visibility", wanted.visibility)):
        if value is not None:
            values[path] = value
    operations = [{"op": "add", "path": path, "value": value} for path, value in values.items()]
    if wanted.tags is not None:
        operations.append({"op": "replace", "path": "/tags", "value": list(wanted.tags)})
    return _image(connection, _call(connection, "PATCH", f"/images/{image_id}", json=operations, headers=_PATCH))


def delete(connection: "Connection", image_id: str) -> None:
    """Delete an image; no error where it is gone already."""
    try:
        _call(connection, "DELETE", f"/images/{image_id}")
    except Gone:
        logger.debug("%s was gone already", image_id)


class _Conflict(SiteError):
    """409: it exists already, is in use or is protected."""


def _pages(connection: "Connection", query: Mapping[str, str]) -> Iterator[SiteImage]:
    path = "/images?" + urlencode(query)
    for _ in range(_MOST_PAGES):
        page = _call(connection, "GET", path)
        rows = page.get("images")
        if not isinstance(rows, list):
            raise BadListing(f"{_site(connection)}: the answer is no list of images")
        for row in rows:
            yield _image(connection, row)
        following = page.get("next")
        if not following:
            return
        # "/v2/images?marker=..."; our base is the versioned endpoint.
        path = "/images?" + str(following).partition("?")[2]
    raise BadListing(f"{_site(connection)}: the list of images does not end")


def _image(connection: "Connection", row: Any) -> SiteImage:
    try:
        size = row.get("size")
        return SiteImage(
            id=_text(row["id"]),
            name=str(row.get("name") or ""),
            status=_text(row["status"]),
            hidden=bool(row.get("os_hidden", False)),
            protected=bool(row.get("protected", False)),
            visibility=_text(row["visibility"]),
            owner=str(row.get("owner") or ""),
            size=None if size is None else int(size),
            created_at=_text(row["created_at"]),
            updated_at=_text(row["updated_at"]),
            disk_format=row.get("disk_format"),
            os_hash_algo=row.get("os_hash_algo"),
            os_hash_value=row.get("os_hash_value"),
            tags=tuple(row.get("tags") or ()),
            properties={key: str(value) for key, value in row.items() if key.startswith(_PREFIXES)},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadListing(f"{_site(connection)}: an image lacks {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _call(connection: "Connection", method: str, path: str, *, tries: int = _TRIES, **arguments: Any) -> dict[str, Any]:
    """One request to the site's Glance; the answer's JSON object, or {} where it has none."""
    response = _answer(connection, method, path, tries=tries, **arguments)
    try:
        document = response.json() if response.content else {}
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise BadListing(f"{_site(connection)}: the answer to {method} {path.partition('?')[0]} is not JSON")
    return document


def _answer(connection: "Connection", method: str, path: str, *, tries: int = _TRIES, **arguments: Any) -> Any:
    """One request to the site's Glance, and its answer (a ``requests.Response``), which is no error.

    All that is asked here may be asked twice.  A site that is busy, or whose servers fail, is asked again after a
    moment, or after the one that it names itself.
    """
    for left, wait in zip(range(tries - 1, -1, -1), cloud.waits(_FIRST_WAIT, _LONGEST_WAIT), strict=False):
        try:
            response = connection.image.request(path, method, raise_exc=False, **arguments)
        except Exception as error:
            raise cloud.explain(_site(connection), error) from error
        if response.ok:
            return response
        problem = _error(_site(connection), method, response)
        if not left or not isinstance(problem, SiteUnreachable) or problem.retry_after > _LONGEST_WAIT:
            raise problem
        logger.debug("%s; asking again", problem)
        time.sleep(max(problem.retry_after, wait))
    raise AssertionError("unreachable")


def _error(site: str, method: str, response: Any) -> SageError:
    code = response.status_code
    said = _said(response)
    if code == 404:
        return Gone(f"{site}: there is no such image")
    if code == 403:
        return Refused(f"{site}: {said}", hint="ask the site's operators for the right, or set another visibility")
    if code == 409:
        return _Conflict(f"{site}: {said}")
    if code == 413:
        return SiteError(
            f"{site} takes no more: {said}",
            hint="delete old images or snapshots of your project, or ask for more quota",
        )
    if code == 415:
        return SiteError(
            f"{site} says that the data are not of the format they are declared as: {said}",
            hint="the file may have changed since it was built; build it again",
        )
    if code == 401:
        return cloud.explain(site, response_error(response))
    if code >= 500 or code in (408, 429):
        what = "is asked too often" if code == 429 else "failed"
        return SiteUnreachable(
            f"{site} {what} (HTTP {code}): {said}", hint="try again later", retry_after=_retry_after(response)
        )
    return SiteError(f"{site} refused {method} (HTTP {code}): {said}")


def _retry_after(response: Any) -> float:
    """Seconds that the answer asks to wait: a number, or the time until a date by the site's own clock."""
    value = str(response.headers.get("Retry-After") or "0")
    try:
        if value.isdigit():
            return float(value)
        here = response.headers.get("Date") or email.utils.formatdate()
        until = email.utils.parsedate_to_datetime(value) - email.utils.parsedate_to_datetime(here)
        return max(until.total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def response_error(response: Any) -> Exception:
    """What keystoneauth would have raised for a response."""
    from keystoneauth1 import exceptions

    error: Exception = exceptions.http.from_response(response, "", "")
    return error


def _said(response: Any) -> str:
    """What an error's page says, in one line: Glance's are JSON or small HTML pages."""
    text = response.text or ""
    try:
        document = json.loads(text)
        text = str(document.get("message") or document)
    except (ValueError, AttributeError):
        body = text.partition("</h1>")[2] or text
        text = body.replace("<br />", " ").partition("</body>")[0]
    words = " ".join(text.split())
    return words[:200] or str(response.reason)


def _site(connection: "Connection") -> str:
    return str(connection.config.region_name)

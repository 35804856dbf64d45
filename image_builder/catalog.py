# SPDX-License-Identifier: Apache-2.0
"""One site's images of ours: list, create, upload, change, delete.  The only module that calls Glance.

An image is ours when this project owns it, it has the tag ``sage-image`` and the property ``sage_state``; no
other is ever changed.  A change is one request, so that name, visibility in lists and state change at once.
All functions raise SiteError and its kin (see :mod:`chameleon_sites.cloud`).
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from groundwork.compat import StrEnum
from groundwork.errors import SageError

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

TAG = "sage-image"
PREFIX = "sage_"
_PAGE = 100  # images a listing's page
_MOST_PAGES = 1000
_BLOCK = 1 << 20  # bytes a write of an upload
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


class BadListing(SiteError):
    """A list of images that can't be believed; nothing is done by it."""


class Refused(SiteError):
    """The site does not allow it to this project."""


class Gone(SiteError):
    """There is no such image (any more)."""


class Stopped(SageError):
    """An upload that was told to end."""

    def __init__(self) -> None:
        super().__init__("interrupted")


@dataclass(frozen=True)
class SiteImage:
    """An image as it stands at a site.  ``size`` in bytes; ``created_at`` and ``updated_at`` UTC, RFC 3339.

    ``properties`` holds those named ``sage_...``.
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


@dataclass(frozen=True)
class Change:
    """What to change of an image, in one request; None leaves as it is."""

    name: str | None = None
    hidden: bool | None = None
    visibility: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


def list_ours(connection: "Connection", image_name: str | None = None) -> tuple[SiteImage, ...]:
    """This project's images that this program made (of one public name, or all), listed and hidden ones.

    Raises BadListing when the answer is not what a list of images should be.
    """
    owner = connection.current_project_id
    query = {"owner": str(owner), "tag": TAG, "limit": str(_PAGE)}
    if image_name is not None:
        query["sage_image_name"] = image_name
    found: dict[str, SiteImage] = {}
    # Glance lists either kind alone.  An image that another run hides or shows meanwhile must not slip through
    # between the two, so the listed ones are read again at the end.
    for hidden in ("false", "true", "false"):
        for image in _pages(connection, {**query, "os_hidden": hidden}):
            if image.owner == owner and TAG in image.tags and "sage_state" in image.properties:
                found[image.id] = image
    return tuple(image for image in found.values() if image_name is None or image.image_name == image_name)


def name_holders(connection: "Connection", name: str) -> tuple[SiteImage, ...]:
    """All images of exactly this name that a plain listing shows to this project, whoever made them."""
    return tuple(image for image in _pages(connection, {"name": name, "limit": str(_PAGE)}) if image.name == name)


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

    The caller chooses the id (a new UUID), so that it can delete the record whatever becomes of the answer.
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
    except _Conflict:  # a retry of ours, after an answer that was lost
        return get(connection, image_id)


def upload(
    connection: "Connection",
    image_id: str,
    path: Path,
    *,
    size: int,
    on_progress: Callable[[int], None] = lambda sent: None,
    stop: threading.Event | None = None,
) -> None:
    """Send the file's first ``size`` bytes as the image's data; one block in memory, none of it hashed here.

    ``on_progress`` is told the bytes sent so far, after each block.  Raises Stopped soon after ``stop`` is set,
    and SiteError where the file is shorter.
    """
    _call(
        connection,
        "PUT",
        f"/images/{image_id}/file",
        data=_Blocks(path, size, on_progress, stop or threading.Event()),
        headers={"Content-Type": "application/octet-stream"},
        timeout=_STALL,
        log=False,  # keystoneauth would log the body
        connect_retries=0,
        status_code_retries=0,
    )


def change(connection: "Connection", image_id: str, wanted: Change) -> SiteImage:
    """Change an image in one request, all or nothing; returns it as it then is.  Raises Refused and Gone."""
    values: dict[str, Any] = {f"/{key}": value for key, value in wanted.properties.items()}
    for path, value in (("/name", wanted.name), ("/os_hidden", wanted.hidden), ("/visibility", wanted.visibility)):
        if value is not None:
            values[path] = value
    operations = [{"op": "add", "path": path, "value": value} for path, value in values.items()]
    return _image(connection, _call(connection, "PATCH", f"/images/{image_id}", json=operations, headers=_PATCH))


def delete(connection: "Connection", image_id: str) -> None:
    """Delete an image; no error where it is gone already."""
    try:
        _call(connection, "DELETE", f"/images/{image_id}")
    except Gone:
        logger.debug("%s was gone already", image_id)


class _Conflict(SiteError):
    """409: it exists already, is in use or is protected."""


class _Blocks:
    """A file as the body of a request: its length is known, and each ``sendall`` gets a whole block.

    One that had ``read`` would be read in blocks of 16 KiB; a mapped one would kill us if the file shrank.
    """

    def __init__(self, path: Path, size: int, on_progress: Callable[[int], None], stop: threading.Event) -> None:
        self._path, self._size, self._on_progress, self._stop = path, size, on_progress, stop

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[memoryview]:
        block = memoryview(bytearray(_BLOCK))
        sent = 0
        with self._path.open("rb", buffering=0) as stream:
            while sent < self._size:
                if self._stop.is_set():
                    raise Stopped
                count = stream.readinto(block[: min(_BLOCK, self._size - sent)])
                if not count:
                    raise SiteError(f"{self._path} has become shorter than the manifest says")
                yield block[:count]
                sent += count
                self._on_progress(sent)


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
            properties={key: str(value) for key, value in row.items() if key.startswith(PREFIX)},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadListing(f"{_site(connection)}: an image lacks {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _call(connection: "Connection", method: str, path: str, **arguments: Any) -> dict[str, Any]:
    """One request to the site's Glance; the answer's JSON object, or {} where it has none."""
    try:
        response = connection.image.request(path, method, raise_exc=False, **arguments)
    except Exception as error:
        raise cloud.explain(_site(connection), error) from error
    if response.ok:
        try:
            answer = response.json() if response.content else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise BadListing(f"{_site(connection)}: the answer to {method} {path.partition('?')[0]} is not JSON")
        return answer
    raise _error(_site(connection), method, response)


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
    if code >= 500:
        return SiteUnreachable(f"{site} failed (HTTP {code}): {said}", hint="try again later")
    return SiteError(f"{site} refused {method} (HTTP {code}): {said}")


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

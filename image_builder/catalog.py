# SPDX-License-Identifier: Apache-2.0
"""One site's images of ours: list, upload, change, delete.  The only module that calls Glance."""

from dataclasses import dataclass

from groundwork.compat import StrEnum


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
        return self.properties.get("sage_built_at", "")

    @property
    def recipe_digest(self) -> str:
        return self.properties.get("sage_recipe_digest", "")

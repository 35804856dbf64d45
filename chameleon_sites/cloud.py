# SPDX-License-Identifier: Apache-2.0
"""From a site to a connection: the entry of clouds.yaml, deadlines, retries, and errors that tell what to do."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chameleon_sites.sites import Site
from groundwork.errors import SageError

if TYPE_CHECKING:
    from openstack.connection import Connection


class SiteError(SageError):
    """Something failed at a site."""


class SiteUnreachable(SiteError):
    """A site does not answer, or not as it should."""


def connect(site: Site, *, deadline: float = 20.0) -> "Connection":
    """A connection to the site, with a token.  ``deadline``: seconds for each answer.

    Raises InputError for what the user must mend (no clouds.yaml, no entry, wrong credentials) and
    SiteUnreachable where the site does not answer.
    """
    raise NotImplementedError


def connect_all(sites: Sequence[Site], *, deadline: float = 20.0) -> "dict[str, Connection | SageError]":
    """Connections to all ``sites``, made at once, by site name; the error in its place where one failed."""
    raise NotImplementedError

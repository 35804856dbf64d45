# SPDX-License-Identifier: Apache-2.0
"""What each task begins with: the settings, the sites that are meant, and connections to them, made at once."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chameleon_sites import cloud
from chameleon_sites.sites import Site, SiteKind, load_sites, pick_sites
from groundwork import settings
from groundwork.errors import InputError, SageError, unknown
from groundwork.settings import Setting, folder
from image_builder import settings as table
from node_automation import parallel, ssh

if TYPE_CHECKING:
    from openstack.connection import Connection

Found = TypeVar("Found")

SSH_KEY = Setting("ssh-key", "the private ssh key to log in with", folder, metavar="FILE", shown="one made for you")
_ANSWER = 120.0  # seconds for one answer: Blazar and Neutron do much before they answer


@dataclass(frozen=True)
class Session:
    """``state``: the state folder; ``ssh_key``: the key that was named, or None for this program's own."""

    state: Path
    sites: tuple[Site, ...]
    connections: "Mapping[str, Connection | SageError]"
    ssh_key: Path | None

    def identity(self) -> tuple[Path, str]:
        """The private key's path, and its public part."""
        return ssh.identity(self.state, self.ssh_key)

    def site(self, name: str) -> Site:
        """Raises InputError for one that is not meant here."""
        for site in self.sites:
            if site.name == name:
                return site
        raise unknown("site", name, [site.name for site in self.sites])

    def connection(self, name: str) -> "Connection":
        """Raises what went wrong where there is none."""
        found = self.connections[name]
        if isinstance(found, SageError):
            raise found
        return found

    def each(self, ask: "Callable[[Connection, Site], Found]") -> "dict[str, Found | SageError]":
        """Ask all sites at once; by the site's name, what it gave, or the error."""

        def one(site: Site) -> Found:
            return ask(self.connection(site.name), site)

        answers = parallel.at_most(max(1, len(self.sites)), [partial(one, site) for site in self.sites])
        return {site.name: answer for site, answer in zip(self.sites, answers, strict=True)}


def values() -> dict[str, Any]:
    """The settings of this machine: by environment (``SAGE_STATE_DIR``) and configuration file."""
    rows = (table.STATE_DIR, table.SITES_FILE, SSH_KEY)
    configuration = settings.read_configuration(settings.configuration_files(None), table.ALL)
    return settings.resolve(rows, Namespace(), configuration=configuration)


def open_session(words: Sequence[str] = ()) -> Session:
    """Connect to the sites of these names, or to all that clouds.yaml has entries for and that have nodes."""
    found = values()
    sites_file = found["sites_file"]
    if words:
        sites = pick_sites(words, sites_file)
    else:
        known = [site for site in load_sites(sites_file).values() if site.kind is not SiteKind.EDGE]
        sites = cloud.with_entry(known)
        if not sites:
            raise InputError("clouds.yaml has no entry for a site", hint="`fab sites` shows those that are known")
    connections = cloud.connect_all(sites, deadline=_ANSWER)
    return Session(found["state_dir"], tuple(sites), connections, found["ssh_key"])


def state_folder() -> Path:
    """The state folder, for what needs no site."""
    found: Path = values()["state_dir"]
    return found


def all_sites() -> tuple[Site, ...]:
    """All sites that are known."""
    return tuple(load_sites(values()["sites_file"]).values())


def words(text: str) -> tuple[str, ...]:
    """The words of a list as it is given to a task: ``CHI@UC,CHI@TACC``."""
    return tuple(word.strip() for word in text.split(",") if word.strip())

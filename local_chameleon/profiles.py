# SPDX-License-Identifier: Apache-2.0
"""What a Chameleon of one's own is made of: regions, ports, services, projects.  A profile is data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chameleon_sites.sites import load_sites
from local_chameleon.regions import BOOT_REGIONS, REGIONS, Region

DEFAULT_PORT = 15000
PORTS = 40  # how many ports, from the first on, a Chameleon may take

PROJECTS = ("CH-822154", "CH-000002")  # the first is the one that the entries without a number belong to

# Service type -> its place among a region's ports.  The places are kept for services of later profiles.
_OFFSETS = {"image": 1, "placement": 2, "compute": 3, "network": 4, "reservation": 5, "baremetal": 6}
_ON_HOST = ("qemu", "network")
# Service type -> what its endpoint in the catalog has behind the port.
_PATHS = {"compute": "/v2.1", "reservation": "/v1"}


@dataclass(frozen=True)
class Profile:
    """A set of services.

    ``services`` are the catalog's types that each region has, beside the one Keystone; ``requirements`` names the
    file of this package that says what is installed for them; ``lends`` is what each region has to lend, where they
    have Nova, Neutron and Blazar; with ``boots`` servers run, else they are records.
    """

    name: str
    regions: tuple[str, ...]
    services: tuple[str, ...]
    requirements: str
    lends: Mapping[str, Region] = field(default_factory=dict)
    boots: bool = False

    @property
    def requirements_file(self) -> Path:
        """The pinned requirements of its services."""
        return Path(__file__).with_name(self.requirements)


_LENDING = ("image", "placement", "network", "compute", "reservation")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("images", regions=tuple(REGIONS), services=("image",), requirements="requirements.txt"),
        Profile(
            "lease", regions=tuple(REGIONS), services=_LENDING, requirements="requirements-lease.txt", lends=REGIONS
        ),
        Profile(
            "boot",
            regions=tuple(BOOT_REGIONS),
            services=_LENDING,
            requirements="requirements-boot.txt",
            lends=BOOT_REGIONS,
            boots=True,
        ),
    )
}


def slug(region: str) -> str:
    """The region's name as it stands in names of files and clouds: ``chi_uc``."""
    return load_sites()[region].slug


def keystone_url(port: int) -> str:
    """The identity endpoint, the same in all regions."""
    return f"http://127.0.0.1:{port}/v3"


def service_port(port: int, profile: Profile, region: str, service: str) -> int:
    """The port of a region's service; ``port`` is the first of them all, and Keystone's."""
    return port + 10 * (profile.regions.index(region) + 1) + _OFFSETS[service]


def host_port(port: int, name: str) -> int:
    """The port of what is there once for all regions, beside Keystone, and works on the host itself."""
    return port + 1 + _ON_HOST.index(name)


def endpoint(port: int, profile: Profile, region: str, service: str) -> str:
    """The URL of a region's service, as the catalog has it."""
    return f"http://127.0.0.1:{service_port(port, profile, region, service)}{_PATHS.get(service, '')}"

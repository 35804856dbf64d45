# SPDX-License-Identifier: Apache-2.0
"""What the regions of the profiles that lend nodes have: hosts by node type, flavors, networks.  All of it is data.

Names are Chameleon's; the numbers of hosts are small, and the addresses are those set apart for documentation.
"""

from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from chameleon_sites.sites import SiteKind, load_sites

FREEPOOL = "freepool"  # the aggregate of the hosts that Blazar may lend
SHARED_NETWORK = "sharednet1"
PUBLIC_NETWORK = "public"
BAREMETAL_FLAVOR = "baremetal"
BAREMETAL_CLASS = "CUSTOM_BAREMETAL"  # Placement's resource class of which each bare-metal host has one
LONGEST_LEASE = 7 * 24 * 3600  # seconds, on bare metal

# Places among a public network's addresses.
_LEASED = range(10, 22)  # floating IPs that Blazar lends
_AD_HOC = range(200, 205)  # those that Neutron gives out by itself; the router has the first


@dataclass(frozen=True)
class NodeType:
    """Hosts of one kind.  ``lent``: whether Blazar lends them; servers without a lease run on the others alone."""

    name: str
    number: int
    architecture: str = "x86_64"
    lent: bool = True


@dataclass(frozen=True)
class Host:
    """One host, as Nova and Blazar know it."""

    name: str
    node_type: str
    architecture: str
    lent: bool


@dataclass(frozen=True)
class Flavor:
    """A flavor.  ``ram`` is in MiB, ``disk`` in GiB."""

    name: str
    vcpus: int
    ram: int
    disk: int


@dataclass(frozen=True)
class Region:
    """A region.  ``shared`` and ``public`` are its two networks' addresses; the first address is the gateway's."""

    name: str
    node_types: tuple[NodeType, ...]
    flavors: tuple[Flavor, ...]
    shared: IPv4Network
    public: IPv4Network

    @property
    def baremetal(self) -> bool:
        """Whether a host takes one server, and is that server."""
        return load_sites()[self.name].kind is SiteKind.BAREMETAL

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All hosts.  Names hold no underscore, which Neutron does not bear."""
        return tuple(
            Host(f"{kind.name.replace('_', '-')}-{number:02}", kind.name, kind.architecture, kind.lent)
            for kind in self.node_types
            for number in range(1, kind.number + 1)
        )

    @property
    def leased_addresses(self) -> tuple[str, ...]:
        """The floating IPs that Blazar lends; they lie outside of the public subnet's allocation pool."""
        return tuple(str(self.public[place]) for place in _LEASED)

    @property
    def pool(self) -> tuple[str, str]:
        """The first and the last address of the public subnet's allocation pool."""
        return str(self.public[_AD_HOC[0]]), str(self.public[_AD_HOC[-1]])


_BAREMETAL = (Flavor(BAREMETAL_FLAVOR, vcpus=1, ram=1024, disk=20),)

REGIONS = {
    region.name: region
    for region in (
        Region(
            "CHI@UC",
            node_types=(
                NodeType("compute_skylake", 10),
                NodeType("compute_cascadelake_r", 3),
                NodeType("gpu_rtx_6000", 2),
            ),
            flavors=_BAREMETAL,
            shared=IPv4Network("10.140.80.0/22"),
            public=IPv4Network("192.0.2.0/24"),
        ),
        Region(
            "CHI@TACC",
            node_types=(
                NodeType("compute_skylake", 3),
                NodeType("compute_arm64", 2, "aarch64"),
                NodeType("gpu_p100", 2),
            ),
            flavors=_BAREMETAL,
            shared=IPv4Network("10.52.0.0/22"),
            public=IPv4Network("198.51.100.0/24"),
        ),
        Region(
            "KVM@TACC",
            node_types=(NodeType("kvm", 2), NodeType("kvm_open", 1, lent=False)),
            flavors=(
                Flavor("m1.tiny", vcpus=1, ram=512, disk=1),
                Flavor("m1.small", vcpus=1, ram=2048, disk=20),
                Flavor("m1.medium", vcpus=2, ram=4096, disk=40),
                Flavor("m1.large", vcpus=4, ram=8192, disk=40),
            ),
            shared=IPv4Network("10.56.0.0/22"),
            public=IPv4Network("203.0.113.0/24"),
        ),
    )
}

# Profile `boot`: servers are machines under QEMU, so hosts are few, and the flavor is what such a machine is to have.
_SMALL = (Flavor(BAREMETAL_FLAVOR, vcpus=2, ram=2048, disk=12),)
BOOT_REGIONS = {
    name: replace(REGIONS[name], node_types=(NodeType("compute_skylake", 3),), flavors=_SMALL)
    for name in ("CHI@UC", "CHI@TACC")
}

# SPDX-License-Identifier: Apache-2.0
"""What an administrator makes in a new region that lends nodes: networks, flavors, hosts, floating IPs."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from groundwork.errors import SageError
from local_chameleon import profiles, seed
from local_chameleon.profiles import Profile
from local_chameleon.regions import (
    BAREMETAL_CLASS,
    BAREMETAL_FLAVOR,
    FREEPOOL,
    PUBLIC_NETWORK,
    SHARED_NETWORK,
    Region,
)

# Servers that the second project may have in each region, so that a quota can be met with.
SMALL_QUOTA = 2


def furnish(port: int, profile: Profile, *, admin_password: str) -> None:
    """Fill the new regions of a cloud whose services all answer.  Raises SageError."""
    from keystoneauth1.exceptions import ClientException
    from openstack.exceptions import SDKException

    def one(name: str) -> None:
        try:
            _furnish(seed.connect(port, name, "admin", admin_password, "admin"), profile.lends[name])
        except (SDKException, ClientException) as error:
            raise SageError(
                f"{name} could not be filled: {error}", hint=f"see the logs in */service.log of {profiles.slug(name)}"
            ) from None

    with ThreadPoolExecutor(len(profile.regions)) as pool:
        list(pool.map(one, profile.regions))


def _furnish(admin: Any, region: Region) -> None:
    from keystoneauth1.adapter import Adapter

    _make_flavors(admin.compute, region)
    # Before the first host: Blazar puts it there.
    admin.compute.create_aggregate(name=FREEPOOL)
    # openstacksdk has nothing for Blazar but its session
    blazar = Adapter(admin.session, service_type="reservation", interface="public", region_name=region.name)
    for host in region.hosts:
        if host.lent:
            body = {"name": host.name, "node_type": host.node_type, "architecture.platform_type": host.architecture}
            blazar.post("/os-hosts", json=body)
    public = _make_networks(admin.network, region)
    for address in region.leased_addresses:
        blazar.post("/floatingips", json={"floating_network_id": public, "floating_ip_address": address})
    second = admin.identity.find_project(profiles.PROJECTS[1], ignore_missing=False)
    admin.compute.update_quota_set(second.id, instances=SMALL_QUOTA)


def _make_flavors(compute: Any, region: Region) -> None:
    for flavor in region.flavors:
        made = compute.create_flavor(name=flavor.name, vcpus=flavor.vcpus, ram=flavor.ram, disk=flavor.disk)
        if flavor.name == BAREMETAL_FLAVOR:
            # a whole host, whatever it has
            whole = {"resources:VCPU": "0", "resources:MEMORY_MB": "0", "resources:DISK_GB": "0"}
            compute.create_flavor_extra_specs(made, {f"resources:{BAREMETAL_CLASS}": "1", **whole})


def _make_networks(network: Any, region: Region) -> str:
    """Both networks and the router between them; gives the public one's id."""
    shared = network.create_network(
        name=SHARED_NETWORK,
        is_shared=True,
        provider_network_type="flat",
        provider_physical_network="physnet1",
    )
    inner = network.create_subnet(
        name=f"{SHARED_NETWORK}-subnet",
        network_id=shared.id,
        ip_version=4,
        cidr=str(region.shared),
        is_dhcp_enabled=False,  # no agent would serve it
        dns_nameservers=[str(region.shared[1])],  # the gateway; profile boot sends what comes there on
    )
    public = network.create_network(
        name=PUBLIC_NETWORK,
        is_router_external=True,
        provider_network_type="flat",
        provider_physical_network="public",
    )
    first, last = region.pool
    network.create_subnet(
        name=f"{PUBLIC_NETWORK}-subnet",
        network_id=public.id,
        ip_version=4,
        cidr=str(region.public),
        is_dhcp_enabled=False,
        allocation_pools=[{"start": first, "end": last}],
    )
    router = network.create_router(
        name=f"{SHARED_NETWORK}-router",
        external_gateway_info={
            "network_id": public.id,
            "external_fixed_ips": [{"ip_address": first}],
        },
    )
    network.add_interface_to_router(router, subnet_id=inner.id)
    return str(public.id)

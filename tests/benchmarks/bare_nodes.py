# SPDX-License-Identifier: Apache-2.0
"""What `fab up` and `fab down` are measured against: the same calls, and nothing kept, checked or told.

``bare_nodes.py up NUMBER NODE_TYPE IMAGE`` and ``bare_nodes.py down``, at the entry ``chi_uc`` of clouds.yaml.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import openstack
from keystoneauth1.adapter import Adapter
from keystoneauth1.exceptions import NotFound

_NAME = "bare"
_LOOK = 0.5  # seconds
_AT_ONCE = 3


def main() -> None:
    connection = openstack.connect(cloud="chi_uc")
    where = {"service_type": "reservation", "interface": "public", "region_name": connection.config.region_name}
    blazar = Adapter(connection.session, **where)
    if sys.argv[1] == "up":
        up(connection, blazar, int(sys.argv[2]), *sys.argv[3:5])
    else:
        down(connection, blazar)


def up(connection: Any, blazar: Any, number: int, node_type: str, image_name: str) -> None:
    """Lease, servers, floating IPs."""
    image = connection.image.find_image(image_name)
    flavor = connection.compute.find_flavor("baremetal")
    network = connection.network.find_network("sharednet1")
    public = connection.network.find_network("public")
    end = datetime.now(timezone.utc) + timedelta(hours=1)
    hosts = {
        "resource_type": "physical:host",
        "min": number,
        "max": number,
        "hypervisor_properties": "",
        "resource_properties": json.dumps(["==", "$node_type", node_type]),
    }
    addresses = {"resource_type": "virtual:floatingip", "network_id": public.id, "amount": number}
    body = {
        "name": _NAME,
        "start_date": "now",
        "end_date": end.strftime("%Y-%m-%d %H:%M"),
        "reservations": [hosts, addresses],
        "events": [],
    }
    lease = blazar.post("/leases", json=body).json()["lease"]
    while lease["status"] != "ACTIVE":
        time.sleep(_LOOK)
        lease = blazar.get(f"/leases/{lease['id']}").json()["lease"]
    reservation = next(one["id"] for one in lease["reservations"] if one["resource_type"] == "physical:host")
    free = [ip for ip in connection.network.ips() if ip.port_id is None]

    def launch(row: int) -> None:
        server = connection.compute.create_server(
            name=f"{_NAME}-{row}",
            image_id=image.id,
            flavor_id=flavor.id,
            networks=[{"uuid": network.id}],
            scheduler_hints={"reservation": reservation},
        )
        connection.compute.wait_for_server(server, interval=_LOOK, wait=300)
        port = next(connection.network.ports(device_id=server.id))
        connection.network.update_ip(free[row], port_id=port.id)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(launch, range(number)))


def down(connection: Any, blazar: Any) -> None:
    """All servers, then the lease."""
    servers = [one for one in connection.compute.servers() if one.name.startswith(f"{_NAME}-")]
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(lambda one: connection.compute.delete_server(one.id), servers))
    while any(one.name.startswith(f"{_NAME}-") for one in connection.compute.servers()):
        time.sleep(_LOOK)
    for lease in blazar.get("/leases").json()["leases"]:
        if lease["name"] == _NAME:
            blazar.delete(f"/leases/{lease['id']}")
            try:
                while True:
                    blazar.get(f"/leases/{lease['id']}")
                    time.sleep(_LOOK)
            except NotFound:
                pass


if __name__ == "__main__":
    main()

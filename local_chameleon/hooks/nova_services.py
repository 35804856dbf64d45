# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found,misc"
"""All of a region's Nova in one process: conductor, scheduler, a compute for each host, the API.

In one process messages need no bus (``transport_url = fake://``).  LOCAL_CHAMELEON_CONFIG names the configuration,
LOCAL_CHAMELEON_HOSTS a file with the hosts and their architectures.  The API is started last, so that it answers once
every host is known to the scheduler.

The hosts are those of Nova's own fake driver, with three changes: a host keeps its identity over a restart; it has the
architecture that it is to have; and a bare-metal host offers one CUSTOM_BAREMETAL, as Ironic's do, so that it takes
one server.

Where servers boot, the hosts are those of Nova's libvirt driver, all on one libvirt: each has the name and the identity
that it is to have, and offers one CUSTOM_BAREMETAL; one thread runs libvirt's loop of events for all of them, for it
bears no second one.  Bridges are there already, and nothing is done about them.  What takes root is done in this
process, which has it, where stock Nova starts others by sudo.

This module runs in the services' environment, never in this program's own.
"""

import nova.monkey_patch  # isort: skip  (before all else: it makes threads green)

import contextlib
import json
import os
import signal
import uuid
from pathlib import Path
from typing import Any, NoReturn

import eventlet
import nova.conf
import nova.servicegroup.api
import nova.virt.fake
import os_vif
import yaml
from nova import config, context, objects, service
from nova.compute import rpcapi as compute_rpcapi
from nova.conductor import rpcapi as conductor_rpcapi
from nova.objects import host_mapping
from nova.scheduler import rpcapi as scheduler_rpcapi
from oslo_log import log

_ARCHITECTURES: dict[str, str] = yaml.safe_load(Path(os.environ["LOCAL_CHAMELEON_HOSTS"]).read_text())


class VirtualMachines(nova.virt.fake.FakeDriver):
    """A host for virtual machines.  Memory is in MiB, disk in GiB."""

    vcpus = 64
    memory_mb = 262_144
    local_gb = 4_096

    def get_nodenames_by_uuid(self, refresh: bool = False) -> dict[str, str]:
        return {_identity(name): name for name in self.get_available_nodes()}

    def get_available_resource(self, nodename: str) -> dict[str, Any]:
        found: dict[str, Any] = super().get_available_resource(nodename)
        if found:
            architecture = _ARCHITECTURES[nodename]
            found["uuid"] = _identity(nodename)
            found["cpu_info"] = json.dumps({**json.loads(found["cpu_info"]), "arch": architecture})
            found["supported_instances"] = [(architecture, *rest) for _, *rest in found["supported_instances"]]
        return found


class BareMetal(VirtualMachines):
    """A host that is given whole."""

    vcpus = 48
    memory_mb = 196_608
    local_gb = 480

    def update_provider_tree(self, provider_tree: Any, nodename: str, allocations: Any = None) -> None:
        super().update_provider_tree(provider_tree, nodename, allocations)
        _offer_whole(provider_tree, nodename)


def _offer_whole(provider_tree: Any, nodename: str) -> None:
    one = {"total": 1, "reserved": 0, "min_unit": 1, "max_unit": 1, "step_size": 1, "allocation_ratio": 1.0}
    inventory = provider_tree.data(nodename).inventory
    provider_tree.update_inventory(nodename, {**inventory, "CUSTOM_BAREMETAL": one})


def _make_machines_driver() -> None:
    """Nova's libvirt driver as ``libvirt.Machines``: several hosts on one libvirt."""
    import nova.compute.manager
    import nova.privsep
    import nova.virt.libvirt
    import os_brick
    from nova.virt.libvirt.driver import LibvirtDriver
    from nova.virt.libvirt.host import Host
    from vif_plug_linux_bridge.linux_bridge import LinuxBridgePlugin

    class Machines(LibvirtDriver):
        def init_host(self, host: str) -> None:
            self._host.get_hostname = lambda: host
            self._host.get_node_uuid = lambda: _identity(host)
            super().init_host(host)

        def update_provider_tree(self, provider_tree: Any, nodename: str, allocations: Any = None) -> None:
            super().update_provider_tree(provider_tree, nodename, allocations)
            _offer_whole(provider_tree, nodename)

    nova.virt.libvirt.Machines = Machines
    nova.compute.manager.ComputeManager._ensure_existing_node_identity = lambda self, service_ref: None
    loops = [Host._native_thread]

    def run_events(host: Any) -> None:
        with contextlib.suppress(IndexError):  # another host's thread has taken it
            loops.pop()(host)

    Host._native_thread = run_events
    # It would make the bridge where that is missing, and rules of iptables that outlive it.
    LinuxBridgePlugin.plug = lambda self, vif, instance_info: None
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    os_brick.setup(nova.conf.CONF)


def _identity(host: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, host))


def main() -> NoReturn:
    """Start all services; the process goes on until it is killed."""
    # What a server was waiting for is lost in any case; ending all services in good order takes seconds.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    # A machine's console that Nova has read becomes the terminal of this session, and hangs up with the machine.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config.parse_args(["nova", "--config-file", os.environ["LOCAL_CHAMELEON_CONFIG"]])
    conf = nova.conf.CONF
    log.setup(conf, "nova")
    objects.register_all()
    os_vif.initialize()
    objects.Service.enable_min_version_cache()
    # Nova takes drivers of its own package alone, and its hosts report themselves 5 s after their start.
    nova.virt.fake.VirtualMachines = VirtualMachines
    nova.virt.fake.BareMetal = BareMetal
    nova.servicegroup.api.INITIAL_REPORTING_DELAY = 0
    if conf.compute_driver.startswith("libvirt."):
        _make_machines_driver()

    started = []
    for host, binary, topic in (
        (conf.host, "nova-conductor", conductor_rpcapi.RPC_TOPIC),
        (conf.host, "nova-scheduler", scheduler_rpcapi.RPC_TOPIC),
        *((host, "nova-compute", compute_rpcapi.RPC_TOPIC) for host in _ARCHITECTURES),
    ):
        one = service.Service.create(host=host, binary=binary, topic=topic)
        one.start()
        started.append(one)
        eventlet.sleep(0)
    host_mapping.discover_hosts(context.get_admin_context())
    api = service.WSGIService("osapi_compute")
    api.start()
    while True:
        eventlet.sleep(3600)


if __name__ == "__main__":
    main()

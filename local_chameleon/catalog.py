# SPDX-License-Identifier: Apache-2.0
"""The services that a region may have.  Each is a module with the same names in it.

``USER``: its user in Keystone, and its name in the catalog; ``DATABASES``: the names of its databases' files;
``configure``: writes its configuration; ``service``: what is to run; ``sync_databases``: makes its databases, or brings
them to the installed version.
"""

from types import ModuleType

from local_chameleon import blazar, glance, neutron, nova, placement

SERVICES: dict[str, ModuleType] = {
    "image": glance,
    "placement": placement,
    "network": neutron,
    "compute": nova,
    "reservation": blazar,
}

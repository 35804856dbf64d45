# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found,misc"
"""Neutron's own router plugin, which also does what its agents would tell: a bound floating IP is ACTIVE.

It runs in the services' environment, never in this program's own.
"""

from typing import Any

from neutron.services.l3_router.l3_router_plugin import L3RouterPlugin
from neutron_lib import constants


class Routers(L3RouterPlugin):
    """Routers and floating IPs."""

    def create_floatingip(self, context: Any, floatingip: Any) -> Any:
        return self._told(context, super().create_floatingip(context, floatingip))

    def update_floatingip(self, context: Any, id: str, floatingip: Any) -> Any:
        return self._told(context, super().update_floatingip(context, id, floatingip))

    def _told(self, context: Any, floatingip: Any) -> Any:
        bound = floatingip["port_id"] is not None
        status = constants.FLOATINGIP_STATUS_ACTIVE if bound else constants.FLOATINGIP_STATUS_DOWN
        self.update_floatingip_status(context, floatingip["id"], status)
        return {**floatingip, "status": status}

# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found,misc"
"""A mechanism driver of Neutron's that binds every port on every host, as an agent that never fails would.

Neutron finds it by the entry point beside it.  It runs in the services' environment, never in this program's own.
"""

from typing import Any

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api


class Everywhere(api.MechanismDriver):
    """Binds ports to the bridge of their network."""

    def initialize(self) -> None:
        """Nothing is to be made ready."""

    def bind_port(self, context: Any) -> None:
        """Take the first segment that is offered; the port is ACTIVE at once."""
        for segment in context.segments_to_bind[:1]:
            bridge = "brq" + context.current["network_id"][:11]
            details = {portbindings.CAP_PORT_FILTER: False, "connectivity": "l2", "bridge_name": bridge}
            context.set_binding(
                segment[api.ID], portbindings.VIF_TYPE_BRIDGE, details, status=constants.PORT_STATUS_ACTIVE
            )

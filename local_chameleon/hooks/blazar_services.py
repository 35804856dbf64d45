# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found"
"""A region's Blazar in one process: its manager and its API.

In one process messages need no bus (``transport_url = fake://``).  LOCAL_CHAMELEON_CONFIG names the configuration.

Three changes to Blazar: it looks each second for leases that are to begin or to end, stock each 10 s; leases are made
and changed one after the other, for two that are made within milliseconds get the same host; and a login at Keystone is
used again for some minutes, where stock Blazar logs in anew for nearly each of its calls, some 20 times a lease.

This module runs in the services' environment, never in this program's own.
"""

import blazar.cmd.api  # isort: skip  (before all else: it makes threads green, and installs `_`)

import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import eventlet
from blazar.api import app
from blazar.db import api as database
from blazar.manager import service as manager
from blazar.notification import notifier
from blazar.utils import service as utilities
from eventlet import semaphore, wsgi
from keystoneauth1.identity import generic, v3
from oslo_service import service

_LOGIN_KEPT = 300.0  # seconds; a token lasts an hour
_one_by_one = semaphore.Semaphore(1)


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _one_by_one:
            return method(*args, **kwargs)

    return wrapped


def _remember_logins(plugin: Any) -> None:
    """Let all instances of this class of Keystone logins share what they got by the same words."""
    log_in, forget = plugin.get_auth_ref, plugin.invalidate
    known: dict[str, tuple[float, Any]] = {}

    def get_auth_ref(self: Any, session: Any) -> Any:
        key = self.get_cache_id()
        if key not in known or time.monotonic() - known[key][0] > _LOGIN_KEPT:
            known[key] = (time.monotonic(), log_in(self, session))
        return known[key][1]

    def invalidate(self: Any) -> Any:
        known.pop(self.get_cache_id(), None)
        return forget(self)

    plugin.get_auth_ref, plugin.invalidate = get_auth_ref, invalidate


def main() -> None:
    """Start both services; the process goes on until it is killed."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    conf = blazar.cmd.api.CONF
    conf(["--config-file", os.environ["LOCAL_CHAMELEON_CONFIG"]], project="blazar", prog="blazar")
    utilities.prepare_service([])
    manager.EVENT_INTERVAL = 1
    for name in ("create_lease", "update_lease"):
        setattr(manager.ManagerService, name, _alone(getattr(manager.ManagerService, name)))
    for plugin in (generic.Password, v3.Password):
        _remember_logins(plugin)
    database.setup_db()
    notifier.init()
    launcher = service.launch(conf, manager.ManagerService(), restart_method="mutate")
    listening = eventlet.listen(("127.0.0.1", conf.port), backlog=500)
    wsgi.server(listening, app.VersionSelectorApplication(), log_output=False)
    launcher.stop()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found"
"""A region's Blazar in one process: its manager and its API.

In one process messages need no bus (``transport_url = fake://``).  LOCAL_CHAMELEON_CONFIG names the configuration.

Two changes to Blazar: it looks each second for leases that are to begin or to end, stock each 10 s; and leases are
made and changed one after the other, for two that are made within milliseconds get the same host.

This module runs in the services' environment, never in this program's own.
"""

import blazar.cmd.api  # isort: skip  (before all else: it makes threads green, and installs `_`)

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

import eventlet
from blazar.api import app
from blazar.db import api as database
from blazar.manager import service as manager
from blazar.notification import notifier
from blazar.utils import service as utilities
from eventlet import semaphore, wsgi
from oslo_service import service

_one_by_one = semaphore.Semaphore(1)


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _one_by_one:
            return method(*args, **kwargs)

    return wrapped


def main() -> None:
    """Start both services; the process goes on until it is killed."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    conf = blazar.cmd.api.CONF
    conf(["--config-file", os.environ["LOCAL_CHAMELEON_CONFIG"]], project="blazar", prog="blazar")
    utilities.prepare_service([])
    manager.EVENT_INTERVAL = 1
    for name in ("create_lease", "update_lease"):
        setattr(manager.ManagerService, name, _alone(getattr(manager.ManagerService, name)))
    database.setup_db()
    notifier.init()
    launcher = service.launch(conf, manager.ManagerService(), restart_method="mutate")
    listening = eventlet.listen(("127.0.0.1", conf.port), backlog=500)
    wsgi.server(listening, app.VersionSelectorApplication(), log_output=False)
    launcher.stop()


if __name__ == "__main__":
    main()

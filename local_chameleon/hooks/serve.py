# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found"
"""What uwsgi loads: the WSGI application named by LOCAL_CHAMELEON_APPLICATION, on a SQLite made fit for threads.

OpenStack is run on MySQL and uses SQLite only in its own tests.  With its stock settings 56 of 60 images created
by ten threads at once failed with "database is locked", for two reasons:

* The rollback journal lets a writer wait for all readers.  So every connection uses write-ahead logging, in which
  readers never block and are never blocked, and waits 30 s for another writer.
* A transaction that begins as a reader and then writes is refused *at once*, without any waiting, when another one
  has written meanwhile (SQLITE_BUSY_SNAPSHOT).  So a transaction begins as a writer (BEGIN IMMEDIATE), which waits
  its turn.  But a thread that is in a transaction already may open a second connection for a nested one, which would
  wait for its own thread for ever: nested ones begin as readers.

Keystone reads in many long transactions, which must not queue up behind each other, and says of each whether it will
write: with LOCAL_CHAMELEON_BEGIN=told only those that will begin as writers.

Also, only one thread at a time loads the policies: while one does, others would find no rule and refuse what they may
allow, which happens to requests at a service's start.

This module runs in the services' environment, never in this program's own.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from oslo_db.sqlalchemy import enginefacade
from oslo_policy import policy
from sqlalchemy import event, orm
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

_TOLD = os.environ.get("LOCAL_CHAMELEON_BEGIN") == "told"
_OWNER = "local_chameleon_writer"  # in a connection's info: the thread whose outermost transaction it carries
_thread = threading.local()


def _connect(connection: Any, record: Any) -> None:
    if "sqlite" in type(connection).__module__:
        # The order matters: switching to WAL needs the lock that the timeout waits for.  In WAL mode NORMAL is
        # safe against a crash of the process and syncs only at checkpoints.
        for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = NORMAL"):
            connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Any) -> None:
    # Listeners of the class run before those of the instance, where oslo.db has its own: it sends BEGIN unless
    # `in_transaction` is set, and takes that mark away at commit and rollback.
    if connection.dialect.name != "sqlite" or "in_transaction" in connection.info:
        return
    begun = _thread.__dict__.setdefault("begun", {})  # database -> info of the connection with the outermost one
    database = str(connection.engine.url)
    outermost = begun.get(database, {}).get(_OWNER) != threading.get_ident()
    writes = _thread.__dict__.get("writers", 0) > 0 if _TOLD else True
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes and outermost else "BEGIN")
    connection.info["in_transaction"] = True
    if outermost:
        connection.info[_OWNER] = threading.get_ident()
        begun[database] = connection.info


def _end(connection: Any) -> None:
    connection.info.pop(_OWNER, None)


def _checkin(connection: Any, record: Any) -> None:
    # A connection that is dropped without commit or rollback is rolled back by the pool, which tells no engine.
    record.info.pop(_OWNER, None)
    record.info.pop("in_transaction", None)


_produce_block = enginefacade._TransactionContext._produce_block


@contextlib.contextmanager
def _block(self: Any, mode: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    writes = mode is enginefacade._WRITER
    _thread.writers = _thread.__dict__.get("writers", 0) + writes
    try:
        with _produce_block(self, mode, *args, **kwargs) as resource:
            yield resource
    finally:
        _thread.writers -= writes


enginefacade._TransactionContext._produce_block = _block

_load_rules = policy.Enforcer.load_rules
_loads_rules = threading.RLock()


def _load_alone(self: Any, *args: Any, **kwargs: Any) -> None:
    with _loads_rules:
        _load_rules(self, *args, **kwargs)


policy.Enforcer.load_rules = _load_alone

event.listen(Engine, "connect", _connect)
event.listen(Engine, "begin", _begin)
event.listen(Engine, "commit", _end)
event.listen(Engine, "rollback", _end)
event.listen(Pool, "checkin", _checkin)

application = importlib.import_module(os.environ["LOCAL_CHAMELEON_APPLICATION"]).application
# Neutron uses attributes of its models that SQLAlchemy makes no sooner than for the first query; a request that comes
# before it would fail.
orm.configure_mappers()

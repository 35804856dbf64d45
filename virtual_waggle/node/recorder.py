# SPDX-License-Identifier: Apache-2.0
"""A node without a Beehive keeps its measurements itself: ``python3 -m virtual_waggle.node.recorder``.

It is the Beehive's loader, at the node's queue to-beehive, with an SQLite store.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from groundwork.program import run_program
from virtual_waggle import broker, broker_client
from virtual_waggle.beehive import loader
from virtual_waggle.beehive.settings import retention
from virtual_waggle.beehive.store_sqlite import SQLiteStore
from virtual_waggle.env_file import Variable, from_environment
from virtual_waggle.message import Measurement

USER = "recorder"
FILE = "measurements.db"

TABLE = (
    Variable(
        "WAGGLE_BROKER",
        "host:port of the node's broker",
        lambda text: broker_client.parse_address(text, "broker"),
        "rabbitmq:5672",
    ),
    Variable("WAGGLE_SECRETS", "folder of recorder-password", Path, "/run/secrets"),
    Variable("WAGGLE_DATA", "folder of the measurements", Path, "/var/lib/virtual-waggle/data"),
    Variable("WAGGLE_RETENTION", "how long measurements are kept, as 90d; empty: for ever", retention, ""),
    Variable(
        "WAGGLE_RECORDER_LISTEN",
        "address and port of /metrics and /healthz",
        lambda text: broker_client.parse_address(text, "address"),
        "0.0.0.0:8081",
    ),
)


def check(measurement: Measurement, user: str | None) -> None:
    """All is fit: the node's broker lets the sharing service alone write to this queue."""


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The service."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    given = from_environment(environment, TABLE)
    password = broker_client.read_secret(given["WAGGLE_SECRETS"] / "recorder-password")
    loader.run(
        broker.TO_BEEHIVE,
        check,
        [broker_client.by_password(given["WAGGLE_BROKER"], USER, password)],
        lambda: SQLiteStore(given["WAGGLE_DATA"] / FILE),
        given["WAGGLE_RETENTION"],
        given["WAGGLE_RECORDER_LISTEN"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

# SPDX-License-Identifier: Apache-2.0
"""What integration tests share: a Chameleon of their own, on ports of its own, for one session."""

import random
import signal
import socket
from argparse import Namespace
from collections.abc import Iterator

import pytest

from groundwork.settings import resolve
from local_chameleon import cloud, profiles, settings
from local_chameleon.cloud import Config, State

# A shell's background jobs ignore it, and so would all programs that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def free_ports() -> int:
    """The first of as many ports in a row as a Chameleon may take, all free now."""
    # Below those that the kernel gives to clients, which come and go.
    for first in random.sample(range(16000, 32000, profiles.PORTS), 100):
        try:
            for port in range(first, first + profiles.PORTS):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def new_config(folder: pytest.TempPathFactory) -> Config:
    """A Chameleon in a temporary folder.  OpenStack is installed where the user's own is: once, not each session."""
    env_dir = resolve([settings.ENV_DIR], Namespace(), configuration={})["env_dir"]
    return Config(state_dir=folder.mktemp("chameleon") / "state", env_dir=env_dir, port=free_ports())


@pytest.fixture(scope="session")
def local_chameleon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A Chameleon with the stock policies; ``.clouds_yaml`` has the entries chi_uc, chi_uc_2, admin_chi_uc, ..."""
    config = new_config(tmp_path_factory)
    try:
        yield cloud.up(config)
    finally:
        cloud.down(config, purge=True)

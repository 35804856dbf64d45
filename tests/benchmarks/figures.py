# SPDX-License-Identifier: Apache-2.0
"""What benchmarks have in common: a figure and what it may be, time, and a Chameleon to measure at."""

import contextlib
import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from groundwork.settings import resolve
from local_chameleon import cloud, settings
from local_chameleon.cloud import Config, State
from tests.integration.conftest import free_ports

SITES = ("CHI@UC", "CHI@TACC", "KVM@TACC")


@dataclass(frozen=True)
class Figure:
    """``value`` is in ``unit``; ``limit`` is what the project promises; ``how`` says what was measured.

    The limit is what it is at most, or with ``at_least`` what it reaches.
    """

    name: str
    value: float
    unit: str
    limit: float
    how: str
    at_least: bool = False

    @property
    def kept(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@contextlib.contextmanager
def local_sites(top: Path, profile: str = "images") -> Iterator[State]:
    """Three sites on loopback, which OS_CLIENT_CONFIG_FILE then leads to."""
    env_dir = resolve([settings.ENV_DIR], Namespace(), configuration={})["env_dir"]
    config = Config(state_dir=top / "chameleon", env_dir=env_dir, port=free_ports(), profile=profile)
    try:
        state = cloud.up(config)
        os.environ["OS_CLIENT_CONFIG_FILE"] = str(state.clouds_yaml)
        yield state
    finally:
        cloud.down(config, purge=True)

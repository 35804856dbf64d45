# SPDX-License-Identifier: Apache-2.0
"""A Chameleon that lends nodes, one for all tests in this folder, and a user's way to its sites."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites import cloud as clouds
from chameleon_sites.sites import Site, load_sites
from local_chameleon import cloud
from local_chameleon.cloud import Config, State
from node_automation import gc, ledger, tagged
from node_automation import lease as leases
from node_automation.lease import Held, LeaseRequest
from node_automation.ledger import Run
from tests.integration.conftest import new_config


@dataclass(frozen=True)
class User:
    """A user of one project at one site.  ``state``: the state folder of the machine that he is at."""

    site: Site
    connection: Any
    state: Path

    def lease(self, node_type: str, run: Run | None = None, **more: Any) -> Held:
        """A lease of ours, active."""
        request = LeaseRequest(run or ledger.new_run("bees"), **{"length": timedelta(hours=2), **more})
        places = leases.tries([self.site], [node_type])
        held = leases.obtain(request, places, {self.site.name: self.connection}, state=self.state, reuse=False)
        for lease in (held.lease, held.addresses):
            if lease is not None:
                leases.wait_active(self.connection, lease.id)
        return held

    def lease_later(self, node_type: str, starts_at: datetime, **more: Any) -> Held:
        """A lease that is to begin later; not waited for."""
        request = LeaseRequest(ledger.new_run("others"), starts_at=starts_at, **{"length": timedelta(hours=2), **more})
        places = leases.tries([self.site], [node_type])
        return leases.obtain(request, places, {self.site.name: self.connection}, state=self.state, reuse=False)

    def left(self) -> list[str]:
        """The names of all that is ours at the site, by its own word."""
        return [entry.name for entry in tagged.find_tagged(self.connection, self.site)]

    def clean(self) -> None:
        """Give back all that is ours."""
        sweep = gc.plan(self.site, tagged.look(self.connection, self.site), ledger.read(self.state), everything=True)
        assert [swept.problem for swept in gc.carry_out(self.connection, sweep, self.state) if swept.problem] == []


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return dataclasses.replace(new_config(tmp_path_factory), profile="lease")


@pytest.fixture(scope="package")
def chameleon(config: Config) -> Iterator[State]:
    try:
        yield cloud.up(config)
    finally:
        cloud.down(config, purge=True)


@pytest.fixture
def user(chameleon: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., User]]:
    """Makes users: of a site, and of another entry of clouds.yaml than the site's own."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(chameleon.clouds_yaml))
    made: list[User] = []

    def make(name: str, entry: str | None = None) -> User:
        site = dataclasses.replace(load_sites()[name], cloud=entry)
        found = User(site, clouds.connect(site, deadline=60.0), tmp_path / "state")
        made.append(found)
        return found

    yield make
    for one in made:
        one.clean()
        assert one.left() == []


@pytest.fixture
def uc(user: Callable[..., User]) -> User:
    return user("CHI@UC")


@pytest.fixture
def tacc(user: Callable[..., User]) -> User:
    return user("CHI@TACC")


@pytest.fixture
def kvm(user: Callable[..., User]) -> User:
    return user("KVM@TACC")

# SPDX-License-Identifier: Apache-2.0
"""Rotation survives anything: publishers killed at every call, on this machine and others, two at once, a full disk."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from image_builder import catalog
from image_builder.publication import Outcome
from tests.integration import glance_proxy, publishing
from tests.integration.glance_proxy import Call, DropCall, Moment, Proxy
from tests.integration.publishing import Machine, Publisher
from tests.integration.test_publish import NAMES, Bench, new_bench


@dataclass
class Rotating:
    """One site behind a proxy, at which build after build is published under one name; two are kept."""

    bench: Bench
    site: str
    proxy: Proxy
    here: Machine
    number: int = 0
    folders: dict[int, Path] = field(default_factory=dict)

    def build(self) -> int:
        """The number of a new build."""
        self.number += 1
        at = f"2024-11-20T{self.number // 60:02}:{self.number % 60:02}:00Z"
        self.folders[self.number] = self.bench.build(f"{self.site}-{self.number}", size=1 << 12, built_at=at)
        return self.number

    def start(self, number: int, machine: Machine | None = None) -> Publisher:
        return publishing.start(machine or self.here, self.folders[number], [self.site], keep=2)

    def publish(self, number: int, machine: Machine | None = None) -> None:
        """Publish, and assert that all is well."""
        rows = self.start(number, machine).wait()
        assert rows is not None
        assert rows[0].outcome in (Outcome.PUBLISHED, Outcome.UNCHANGED), rows[0]
        self.stands(number)

    def publish_killed(self, number: int, at: int, moment: Moment, machine: Machine | None = None) -> None:
        """Publish, and kill the publisher at its call ``at``."""
        self.proxy.reset()
        started: list[Publisher] = []
        ready = threading.Event()

        def kill(call: Call, now: Moment) -> None:
            if call.number == at and now == moment:
                ready.wait()
                started[0].kill()
                raise DropCall

        self.proxy.hook = kill
        started.append(self.start(number, machine))
        ready.set()
        rows = started[0].wait()
        assert rows is None, f"it came to its end before call {at}"
        assert started[0].process.exitcode == -signal.SIGKILL
        self.proxy.reset()
        holders = [image for image in self.bench.ours(self.site) if image.name == self.bench.name]
        assert holders, "the SDK finds it, if only hidden"
        assert sum(not image.hidden for image in holders) <= 1

    def stands(self, number: int) -> None:
        """Assert that one listed image has the name, of this build, beside one before it, and nothing else is left."""
        connection = self.bench.connections[self.site]
        (current,) = (
            image
            for image in catalog.name_holders(connection, self.bench.name)
            if image.owner == connection.current_project_id
        )
        assert current.recipe_digest == f"recipe-{self.site}-{number}"
        ours = self.bench.ours(self.site)
        assert [image.state for image in ours] == ["current", "previous"][: max(min(number, 2), 1)]
        assert {image.status for image in ours} == {"active"}
        assert not any(image.hidden for image in ours)
        assert list((self.here.state / "journal").glob("*.json")) == []

    def calls(self) -> list[Call]:
        """The calls of a rotation that nothing disturbs."""
        self.proxy.reset()
        self.publish(self.build())
        return list(self.proxy.calls)


@pytest.fixture
def rotating(local_chameleon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Rotating]]:
    """Three sites, each with a current and a previous image."""
    for variable in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(local_chameleon.clouds_yaml))
    endpoints = {site: local_chameleon.endpoints[site]["image"] for site in NAMES}
    with new_bench(local_chameleon.clouds_yaml, tmp_path) as bench, glance_proxy.proxies(endpoints) as made:
        clouds_yaml = glance_proxy.lead_through(local_chameleon.clouds_yaml, made, tmp_path / "clouds.yaml")
        found = {
            site: Rotating(bench, site, made[site], Machine(clouds_yaml, tmp_path / f"state-{site}")) for site in NAMES
        }
        with ThreadPoolExecutor() as pool:
            for rotation in found.values():
                for _ in range(2):
                    rotation.build()
            list(pool.map(lambda rotation: [rotation.publish(number) for number in (1, 2)], found.values()))
        yield found


@pytest.fixture
def bystanders(rotating: dict[str, Rotating]) -> Iterator[None]:
    """Images that look like ours and are not, at each site; they are untouched at the end."""
    made: list[tuple[Any, str, dict[str, Any]]] = []
    try:
        for site, rotation in rotating.items():
            name = rotation.bench.name
            theirs = cloud.connect(replace(load_sites()[site], cloud=f"{load_sites()[site].slug}_2"))
            ours = rotation.bench.connections[site]
            marks = {"sage_state": "previous", "sage_image_name": name, "sage_built_at": "2020-01-01T00:00:00Z"}
            for connection, document in (
                (ours, {"name": f"{name}-20200101T000000Z", "tags": ["sage-image"], "sage_image_name": name}),
                (ours, {"name": f"{name}-20200101T000000Z", **marks}),
                (theirs, {"name": name, "tags": ["sage-image"], "visibility": "community", **marks}),
            ):
                body = {"disk_format": "raw", "container_format": "bare", **document}
                image_id = connection.image.post("/images", json=body).json()["id"]
                made.append((connection, image_id, connection.image.get(f"/images/{image_id}").json()))
        yield
        for connection, image_id, before in made:
            assert connection.image.get(f"/images/{image_id}").json() == before
    finally:
        for connection, image_id, _ in made:
            connection.image.delete(f"/images/{image_id}")


def _kill_at_every_call(rotation: Rotating, moment: Moment) -> None:
    """The next run is of the same build or of the next one, in turn."""
    for call in rotation.calls():
        number = rotation.build()
        rotation.publish_killed(number, call.number, moment)
        rotation.publish(rotation.build() if call.number % 2 else number)


def _kill_and_lose_the_journal(rotation: Rotating) -> None:
    for call in rotation.calls():
        number = rotation.build()
        rotation.publish_killed(number, call.number, "after")
        for path in (rotation.here.state / "journal").glob("*.json"):
            path.unlink()
        rotation.publish(number if call.number % 2 else rotation.build())


def _kill_and_go_on_elsewhere(rotation: Rotating) -> None:
    """The next run is on another machine, when the killed upload is over its time."""
    for call in rotation.calls():
        number = rotation.build()
        state = rotation.here.state.with_name(f"{rotation.here.state.name}-{call.number}")
        rotation.publish_killed(number, call.number, "after", replace(rotation.here, expired=True, state=state))
        rotation.publish(rotation.build() if call.number % 2 else number, replace(rotation.here, name="elsewhere"))


def test_a_publisher_killed_before_or_after_any_call_leaves_what_the_next_run_brings_to_its_end(
    rotating: dict[str, Rotating], bystanders: None
) -> None:
    uc, tacc, kvm = (rotating[site] for site in NAMES)
    with ThreadPoolExecutor() as pool:
        works = [
            pool.submit(_kill_at_every_call, uc, "before"),
            pool.submit(_kill_at_every_call, tacc, "after"),
            pool.submit(_kill_and_lose_the_journal, kvm),
        ]
    for work in works:
        work.result()


def test_what_a_publisher_killed_at_any_call_left_is_brought_to_its_end_by_another_machine(
    rotating: dict[str, Rotating], bystanders: None
) -> None:
    _kill_and_go_on_elsewhere(rotating["CHI@UC"])


def test_a_publisher_killed_in_mid_upload_leaves_nothing_behind_the_next_run(rotating: dict[str, Rotating]) -> None:
    rotation = rotating["CHI@UC"]
    (upload,) = (call for call in rotation.calls() if call.method == "PUT")
    number = rotation.build()
    rotation.publish_killed(number, upload.number, "half")
    assert any(image.state == "staging" for image in rotation.bench.ours("CHI@UC"))
    rotation.publish(number)


def test_of_two_machines_that_publish_at_once_the_second_is_told_who_the_first_is(
    rotating: dict[str, Rotating],
) -> None:
    rotation = rotating["CHI@UC"]
    first, second = rotation.build(), rotation.build()
    uploading, go_on = threading.Event(), threading.Event()

    def hold(call: Call, now: Moment) -> None:
        if call.method == "PUT" and now == "before":
            uploading.set()
            assert go_on.wait(60)

    rotation.proxy.hook = hold
    ours = rotation.start(first)
    assert uploading.wait(60)
    rows = rotation.start(second, replace(rotation.here, name="elsewhere", state=rotation.here.state / "other")).wait()
    go_on.set()
    assert rows is not None
    assert rows[0].outcome is Outcome.FAILED
    assert rows[0].problem is not None
    assert f":{ours.process.pid}:" in rows[0].problem.message
    assert "has been publishing" in rows[0].problem.message
    assert rows[0].uploaded == 0
    won = ours.wait()
    assert won is not None
    assert won[0].outcome is Outcome.PUBLISHED
    rotation.stands(first)


def test_of_two_machines_that_begin_at_the_same_moment_one_publishes(rotating: dict[str, Rotating]) -> None:
    """No reader ever sees two images of the name meanwhile."""
    rotation = rotating["CHI@UC"]
    connection = rotation.bench.connections["CHI@UC"]
    for _ in range(4):
        both = [rotation.build(), rotation.build()]
        elsewhere = replace(rotation.here, name="elsewhere", state=rotation.here.state / "other")
        running = [rotation.start(both[0]), rotation.start(both[1], elsewhere)]
        most = 0
        while any(publisher.process.is_alive() for publisher in running):
            most = max(most, len(catalog.name_holders(connection, rotation.bench.name)))
        rows = [publisher.wait() for publisher in running]
        outcomes = [row[0].outcome for row in rows if row is not None]
        assert most == 1
        assert Outcome.PUBLISHED in outcomes
        assert set(outcomes) <= {Outcome.PUBLISHED, Outcome.FAILED}
        # If both did, one came after the other had ended.
        published = [number for number, outcome in zip(both, outcomes, strict=True) if outcome is Outcome.PUBLISHED]
        if len(published) == 1:
            rotation.stands(published[0])


def test_where_the_journal_can_not_be_written_nothing_is_done_at_the_site(rotating: dict[str, Rotating]) -> None:
    rotation = rotating["CHI@UC"]
    before = rotation.bench.ours("CHI@UC")
    number = rotation.build()
    rotation.proxy.reset()
    rows = rotation.start(number, replace(rotation.here, full=True)).wait()
    assert rows is not None
    assert rows[0].outcome is Outcome.FAILED
    assert rows[0].problem is not None
    assert "can't be written" in rows[0].problem.message
    assert "--state-dir" in str(rows[0].problem.hint)
    assert not any(call.changes for call in rotation.proxy.calls)
    assert rotation.bench.ours("CHI@UC") == before

# SPDX-License-Identifier: Apache-2.0
"""A day in one minute: nights at three sites, with faults at random; what must hold holds after each and at every call.

300 nights at sites in memory (:mod:`tests.integration.glance_model`).  The faults follow from a number alone, so that a
night that went wrong goes wrong again.
"""

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites.sites import load_sites
from groundwork import console
from image_builder import catalog, manifest, publish, publisher, rotation, site_rotation, site_work
from image_builder.publication import Outcome, PublishOptions, PublishReport
from tests.integration import glance_proxy
from tests.integration.glance_model import GlanceModel
from tests.integration.glance_proxy import Answer, Call, Cut, DropCall, Fault, Flip, Lost, Moment, Script
from tests.integration.test_publish import NAMES, Bench

KEEP = 3
LISTING = r"/images\?"


@dataclass(frozen=True)
class Trouble:
    """One thing that goes wrong at a site in a night."""

    fault: Fault
    method: str = ""
    path: str = ""
    most: int = 3  # times


TROUBLES = (
    Trouble(Answer(500), "PATCH"),
    Trouble(Answer(503)),
    Trouble(Answer(503), most=99),
    Trouble(Answer(429, headers={"Retry-After": "0"})),
    Trouble(Answer(409), "DELETE"),
    Trouble(Answer(413), "PUT"),
    Trouble(Answer(403), "PATCH"),
    Trouble(Lost(), "PATCH"),
    Trouble(Lost(), "POST"),
    Trouble(Lost(), "DELETE"),
    Trouble(Lost(), most=99),
    Trouble(Cut(), "PUT"),
    Trouble(Flip(), "PUT"),
    Trouble(glance_proxy.EMPTY_LISTING, "GET", LISTING),
    Trouble(glance_proxy.EMPTY_LISTING, "GET", LISTING, most=99),
    Trouble(glance_proxy.HALF_A_LISTING, "GET", LISTING),
    Trouble(glance_proxy.HTML, "GET", LISTING),
    Trouble(glance_proxy.TRUNCATED, "GET", LISTING),
)


def disturb(site: Script, chance: random.Random) -> Trouble | str | None:
    """Inject what goes wrong at a site this night: nothing, a trouble, or the publisher dies for this site."""
    site.reset()
    kind = chance.choice(["nothing", "trouble", "trouble", "death"])
    if kind == "nothing":
        return None
    if kind == "trouble":
        trouble = chance.choice(TROUBLES)
        skip, times = chance.randrange(12), chance.randint(1, trouble.most)
        site.inject(trouble.fault, trouble.method, trouble.path, skip=skip, times=times)
        return trouble
    at, moment = chance.randint(1, 35), chance.choice(["before", "half", "after"])
    dead = threading.Event()

    def die(call: Call, now: Moment) -> None:
        if call.number == at and now == moment:
            dead.set()
        if dead.is_set():  # nothing that the publisher does from now on gets through, as if it were no more
            raise DropCall

    site.hook = die
    return f"death at call {at}, {moment}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits, for the sites don't get better by it."""
    monkeypatch.setattr(catalog, "_FIRST_WAIT", 0.0)
    monkeypatch.setattr(site_work, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(site_work, "_LONGEST_WAIT", 0.002)
    monkeypatch.setattr(site_rotation, "FIRST_REPAIR", 0.0)
    monkeypatch.setattr(site_rotation, "SETTLING", 0.0)
    console.configure(json_output=False, quiet=True)


class Nights:
    """Night after night a build is published at three sites, on this machine or on one that is new every night."""

    def __init__(self, bench: Bench, sites: Mapping[str, Script], connections: Mapping[str, Any], seed: int) -> None:
        self.bench, self.sites, self.connections = bench, sites, connections
        self.chance = random.Random(seed)  # noqa: S311
        self.builds = 0
        self.came: dict[Outcome, int] = {}
        self.most: dict[str, int] = {}  # finished images that ever stood at a site

    def night(self, number: int, monkeypatch: pytest.MonkeyPatch, *, calm: bool = False) -> PublishReport:
        chance = self.chance
        if self.builds == 0 or calm or chance.random() < 0.8:
            self.builds += 1
            at = f"2024-11-{1 + self.builds // 1440:02}T{self.builds // 60 % 24:02}:{self.builds % 60:02}:00Z"
            self.bench.build(self.builds, size=1 << 12, built_at=at)
        what = {name: None if calm else disturb(site, chance) for name, site in self.sites.items()}
        if calm:
            for site in self.sites.values():
                site.reset()
        # Each night is another process; on a new machine it is without a journal.
        machine = "here" if chance.random() < 0.5 else f"machine-{number}"
        monkeypatch.setattr(publisher, "identity", lambda: f"{machine}:{number}:1")
        monkeypatch.setattr(publisher, "lives", lambda name: name.endswith(f":{number}:1"))
        made, where = manifest.read(self.bench.folder / f"build-{self.builds}")
        state = self.bench.folder / ("state" if machine == "here" else f"state-{number}")
        options = PublishOptions(state=state, keep=KEEP, upload_deadline=0.5)
        sites = [load_sites()[name] for name in self.sites]
        report = publish.publish(made, where, sites, options, connections=self.connections)
        for row in report.sites:
            self.came[row.outcome] = self.came.get(row.outcome, 0) + 1
            self.check(row.site, row.outcome, f"night {number}, {row.site}: {what[row.site]}, {row}")
        return report

    def check(self, site: str, outcome: Outcome, told: str) -> None:
        """What must hold after each night."""
        images = self.bench.connections[site]
        self.sites[site].reset()
        ours = catalog.list_ours(images, self.bench.name)
        holders = [image for image in ours if image.name == self.bench.name]
        assert sum(not image.hidden for image in holders) <= 1, told
        assert all(image.state != "staging" and image.status == "active" for image in holders), told
        if outcome in (Outcome.PUBLISHED, Outcome.UNCHANGED):
            (current,) = (image for image in holders if not image.hidden)
            assert current.recipe_digest == f"recipe-{self.builds}", told
            assert current.os_hash_value == current.properties["sage_sha512"], told
        finished = [image for image in ours if image.state in ("current", "previous")]
        assert len(finished) >= min(KEEP, self.most.get(site, 0)), told
        self.most[site] = max(self.most.get(site, 0), len(finished))


def test_three_hundred_nights_with_faults_leave_every_site_as_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    models = {name: GlanceModel(name) for name in NAMES}
    theirs = {
        "id": "theirs",
        "name": "Sage-Nights",
        "status": "active",
        "owner": "them",
        "visibility": "community",
        "os_hidden": False,
        "protected": False,
        "created_at": "2024-01-01T00:00:00Z",
        "updated_at": "2024-01-01T00:00:00Z",
        "tags": ["sage-image"],
        "sage_state": "previous",
        "sage_image_name": "Sage-Nights",
    }
    for model in models.values():
        model.images["theirs"] = dict(theirs)
    monkeypatch.setattr(rotation, "UPLOAD_MARGIN", timedelta(seconds=-2))  # by the next night it is over
    bench = Bench("Sage-Nights", tmp_path, tmp_path, dict(models))
    nights = Nights(bench, models, models, seed=4)
    for number in range(300):
        nights.night(number, monkeypatch)
        assert [model.broken for model in models.values()] == [[], [], []], f"night {number}"
    report = nights.night(300, monkeypatch, calm=True)
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED] * 3
    for name, model in models.items():
        states = sorted(image.state for image in bench.ours(name))
        assert states == ["current", "previous", "previous"]
        assert not any(image.hidden for image in bench.ours(name))
        assert model.images["theirs"] == theirs
    assert nights.came[Outcome.PUBLISHED] > 200, "faults are survived, not only told"
    assert nights.came[Outcome.FAILED] > 100, "and there were some"

# SPDX-License-Identifier: Apache-2.0
"""What publishing promises when sites fail: each fault put between a publisher and a real Glance.

Whatever happens, a site has one listed image of the public name, that image was checked, what stood there still
stands, nothing half-done is left that the next run does not take away, and the other sites never notice.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from image_builder import catalog, manifest, publish, publisher
from image_builder.catalog import Change
from image_builder.publication import Outcome, PublishOptions, PublishReport, SitePublication, exit_code
from tests.integration import glance_proxy
from tests.integration.glance_proxy import (
    EMPTY_LISTING,
    HALF_A_LISTING,
    HTML,
    TRUNCATED,
    Answer,
    Call,
    Cut,
    DropCall,
    Fault,
    Flip,
    Lost,
    Moment,
    Proxy,
    Rewrite,
    Slow,
)
from tests.integration.test_publish import Bench, new_bench

FAULTY, OTHER = "CHI@UC", "KVM@TACC"
SITES = (FAULTY, OTHER)
LISTING = r"/images\?"
TIME = "%Y-%m-%dT%H:%M:%SZ"
MIB = 1 << 20


def without_current(listing: Any) -> Any:
    """The list without the image that was promoted last."""
    current = [image for image in listing["images"] if image["sage_state"] != "current" or image["os_hidden"]]
    return {**listing, "images": current}


WITHOUT_CURRENT = Rewrite(without_current)


@dataclass(frozen=True)
class Faulty:
    """Two sites behind proxies, each with the first build; CHI@UC is about to fail."""

    bench: Bench
    proxies: Mapping[str, Proxy]

    @property
    def proxy(self) -> Proxy:
        return self.proxies[FAULTY]

    def publish(self, folder: Path, *names: str, patience: float = 20.0, **options: Any) -> PublishReport:
        """Publish at both sites, or those named; ``patience``: seconds that a site may take for an answer."""
        made, where = manifest.read(folder)
        sites = [load_sites()[name] for name in names or SITES]
        chosen = PublishOptions(**{"keep": 2, "state": self.bench.folder / "state", **options})
        connections = cloud.connect_all(sites, deadline=patience)
        return publish.publish(made, where, sites, chosen, connections=connections)

    def count(self, method: str) -> int:
        return sum(call.method == method for call in self.proxy.calls)

    def stands(self, *recipes: int, site: str = FAULTY) -> None:
        """Assert that just these builds stand at a site: the first one under the public name, the others back-dated."""
        images = self.bench.ours(site)
        assert [image.recipe_digest for image in images] == [f"recipe-{number}" for number in recipes]
        assert images[0].name == self.bench.name
        assert all(image.name.startswith(f"{self.bench.name}-2") for image in images[1:])
        assert not any(image.hidden for image in images)
        assert {image.status for image in images} == {"active"}

    def failed_alone(self, report: PublishReport) -> SitePublication:
        """Assert that CHI@UC failed and kept its image, and the other site has the new one; returns its row."""
        assert [row.outcome for row in report.sites] == [Outcome.FAILED, Outcome.PUBLISHED]
        assert exit_code(report) == 3
        self.stands(1)
        self.stands(2, 1, site=OTHER)
        return report.sites[0]

    def came_through(self, report: PublishReport) -> SitePublication:
        """Assert that both sites have the new image; returns the row of CHI@UC."""
        assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED] * 2, report.sites[0].problem
        for site in SITES:
            self.stands(2, 1, site=site)
        return report.sites[0]


@pytest.fixture
def faulty(local_chameleon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    for variable in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(local_chameleon.clouds_yaml))
    endpoints = {site: local_chameleon.endpoints[site]["image"] for site in SITES}
    with new_bench(local_chameleon.clouds_yaml, tmp_path) as bench, glance_proxy.proxies(endpoints) as made:
        clouds_yaml = glance_proxy.lead_through(local_chameleon.clouds_yaml, made, tmp_path / "clouds.yaml")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds_yaml))
        found = Faulty(bench, made)
        assert exit_code(found.publish(bench.build(1))) == 0
        for proxy in made.values():
            proxy.reset()
        yield found


@pytest.fixture
def dead_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process publishes looks as if another one, which has ended, had done it."""
    machine = publisher.identity().rsplit(":", 2)[0]
    monkeypatch.setattr(publisher, "identity", lambda: f"{machine}:4194304:1")


def problem(row: SitePublication) -> str:
    assert row.problem is not None
    return row.problem.message


def drop_from(method: str, moment: Moment) -> Callable[[Call, Moment], None]:
    """A site that goes down at a call and does not come back."""
    down = threading.Event()

    def hook(call: Call, now: Moment) -> None:
        if call.method == method and now == moment:
            down.set()
        if down.is_set():
            raise DropCall

    return hook


# A site that is down


def test_a_site_that_is_down_from_the_start_gets_the_image_when_it_is_back(faulty: Faulty) -> None:
    def down(call: Call, now: Moment) -> None:
        raise DropCall

    faulty.proxy.hook = down
    second = faulty.bench.build(2)
    row = faulty.failed_alone(faulty.publish(second))
    assert "the connection broke" in problem(row)
    faulty.proxy.reset()
    report = faulty.publish(second)
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED, Outcome.UNCHANGED]
    faulty.stands(2, 1)


@pytest.mark.usefixtures("dead_publisher")
def test_what_a_site_that_went_down_in_mid_upload_still_has_goes_with_the_next_run(faulty: Faulty) -> None:
    faulty.proxy.hook = drop_from("PUT", "half")
    second = faulty.bench.build(2, size=4 * MIB)
    report = faulty.publish(second, upload_deadline=3.0)
    assert [row.outcome for row in report.sites] == [Outcome.FAILED, Outcome.PUBLISHED]
    assert "could not be deleted" in " ".join(report.sites[0].warnings)
    assert [image.state for image in faulty.bench.ours() if image.name == faulty.bench.name] == ["current"]
    faulty.proxy.reset()
    assert exit_code(faulty.publish(second)) == 0
    faulty.stands(2, 1)


def test_a_site_that_is_back_within_the_deadline_gets_the_image(faulty: Faulty) -> None:
    back = time.monotonic() + 60.0

    def hook(call: Call, now: Moment) -> None:
        nonlocal back
        if call.method == "PUT" and now == "half":
            back = min(back, time.monotonic() + 2.0)
        if back - 2.0 <= time.monotonic() < back:
            raise DropCall

    faulty.proxy.hook = hook
    row = faulty.came_through(faulty.publish(faulty.bench.build(2, size=4 * MIB)))
    assert any("begun again" in text for text in row.warnings)


# What a site answers


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH"])
def test_a_token_that_expires_in_mid_run_is_renewed_once(faulty: Faulty, method: str) -> None:
    faulty.proxy.inject(Answer(401, b"expired"), method)
    row = faulty.came_through(faulty.publish(faulty.bench.build(2)))
    assert row.warnings == ("refused to make the image public; it is community",)
    assert faulty.count("PUT") == (2 if method == "PUT" else 1), "no upload was begun again but the refused one"


def test_credentials_that_are_revoked_in_mid_run_are_wrong_input(faulty: Faulty) -> None:
    faulty.proxy.inject(Answer(401, b"no"), "PUT", times=99)
    row = faulty.failed_alone(faulty.publish(faulty.bench.build(2)))
    assert row.problem is not None
    assert row.problem.bad_input
    assert "credentials" in row.problem.message
    assert faulty.count("PUT") == 2


def test_where_publicizing_is_forbidden_the_image_gets_the_next_visibility(faulty: Faulty) -> None:
    # Glance itself answers 403: only an administrator may.
    row = faulty.came_through(faulty.publish(faulty.bench.build(2)))
    assert row.visibility == "community"
    assert "refused to make the image public" in row.warnings[0]


@pytest.mark.parametrize(
    ("status", "told"), [(403, "no room"), (409, "no room"), (413, "takes no more"), (415, "declared as")]
)
def test_what_a_site_does_not_take_is_not_sent_again(faulty: Faulty, status: int, told: str) -> None:
    faulty.proxy.inject(Answer(status, b'{"message": "no room"}'), "PUT", times=99)
    row = faulty.failed_alone(faulty.publish(faulty.bench.build(2)))
    assert told in problem(row)
    assert faulty.count("PUT") == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_site_that_is_busy_for_a_moment_is_asked_again(faulty: Faulty, status: int, method: str) -> None:
    headers = {"Retry-After": "2"} if status != 500 else {}
    faulty.proxy.inject(Answer(status, b"a moment", headers), method)
    row = faulty.came_through(faulty.publish(faulty.bench.build(2)))
    assert row.seconds > 2.0 or not headers, "the site said when to come back"
    assert faulty.count("PUT") == (2 if method == "PUT" else 1)


def test_a_site_that_asks_for_more_patience_than_there_is_has_failed(faulty: Faulty) -> None:
    faulty.proxy.inject(Answer(503, b"in an hour", {"Retry-After": "3600"}), "PUT", times=99)
    begin = time.monotonic()
    row = faulty.failed_alone(faulty.publish(faulty.bench.build(2), upload_deadline=600.0))
    assert "in an hour" in problem(row)
    assert time.monotonic() - begin < 60.0


def test_a_site_that_goes_on_failing_has_failed_when_the_deadline_is_over(faulty: Faulty) -> None:
    faulty.proxy.inject(Answer(500, b"broken"), "PUT", times=99)
    row = faulty.failed_alone(faulty.publish(faulty.bench.build(2), upload_deadline=4.0))
    assert "HTTP 500" in problem(row)
    assert 2 <= faulty.count("PUT") <= 4, "with longer waits each time"


# The data on their way


@pytest.mark.parametrize("fault", [Cut(), Lost()])
def test_an_upload_that_breaks_off_is_begun_again_and_leaves_nothing(faulty: Faulty, fault: Fault) -> None:
    faulty.proxy.inject(fault, "PUT", times=2)
    row = faulty.came_through(faulty.publish(faulty.bench.build(2, size=40 * MIB)))
    assert faulty.count("PUT") == 3
    assert any("begun again" in text for text in row.warnings)


def test_bytes_that_change_on_the_way_are_never_promoted(faulty: Faulty) -> None:
    faulty.proxy.inject(Flip(2 * MIB), "PUT", times=99)
    row = faulty.failed_alone(faulty.publish(faulty.bench.build(2, size=4 * MIB)))
    assert "received other data than were built and sent" in problem(row)
    assert faulty.count("PATCH") == 0, "not even a candidate"


def test_a_file_that_was_changed_is_told_apart_from_bytes_that_change_on_the_way(faulty: Faulty) -> None:
    second = faulty.bench.build(2, size=4 * MIB)
    with (second / "image.raw").open("r+b") as stream:
        stream.seek(MIB)
        stream.write(b"not what was built")
    report = faulty.publish(second)
    assert exit_code(report) == 1
    for site, row in zip(SITES, report.sites, strict=True):
        assert "image.raw was changed after it was built" in problem(row)
        faulty.stands(1, site=site)


# Listings that can't be believed


@pytest.mark.parametrize("fault", [HTML, TRUNCATED, Rewrite(lambda listing: [])])
@pytest.mark.parametrize("skip", [0, 4])
def test_a_listing_that_is_none_changes_nothing(faulty: Faulty, fault: Fault, skip: int) -> None:
    faulty.proxy.inject(fault, "GET", LISTING, skip=skip, times=99)
    row = faulty.failed_alone(faulty.publish(faulty.bench.build(2)))
    assert "the answer" in problem(row)


@pytest.mark.parametrize(
    ("fault", "skip", "times"),
    [
        (EMPTY_LISTING, 0, 3),
        (EMPTY_LISTING, 0, 4),
        (EMPTY_LISTING, 4, 3),
        (EMPTY_LISTING, 0, 99),
        (HALF_A_LISTING, 0, 1),
        (HALF_A_LISTING, 4, 3),
        (HALF_A_LISTING, 0, 99),
        (WITHOUT_CURRENT, 0, 3),
        (WITHOUT_CURRENT, 4, 3),
        (WITHOUT_CURRENT, 8, 3),
    ],
)
def test_a_listing_that_lacks_images_never_makes_two_or_deletes_one(
    faulty: Faulty, fault: Fault, skip: int, times: int
) -> None:
    bench = faulty.bench
    for number in (2, 3):
        assert exit_code(faulty.publish(bench.build(number), FAULTY, keep=9)) == 0
    faulty.proxy.reset()
    faulty.proxy.inject(fault, "GET", LISTING, skip=skip, times=times)
    listed: set[int] = set()

    def watch(call: Call, moment: Moment) -> None:
        if call.changes and moment == "after":
            listed.add(len(catalog.name_holders(bench.connections[FAULTY], bench.name)))

    faulty.proxy.hook = watch
    report = faulty.publish(bench.build(4), FAULTY, keep=2)
    faulty.proxy.reset()
    assert max(listed, default=1) <= 1
    images = bench.ours()
    names = [image.name for image in images]
    recipes = [image.recipe_digest for image in images]
    assert names.count(bench.name) == 1
    if report.sites[0].outcome is Outcome.FAILED:
        assert recipes[0] == "recipe-3"
        assert "recipe-2" in recipes
    else:
        assert recipes[0] == "recipe-4"
        assert "recipe-3" in recipes
    assert exit_code(faulty.publish(bench.build(5), FAULTY, keep=2)) == 0
    faulty.stands(5, int(recipes[0][-1]))


def test_a_listing_that_takes_too_long_holds_up_no_other_site(faulty: Faulty) -> None:
    faulty.proxy.inject(Slow(4.0), "GET", LISTING, times=99)
    report = faulty.publish(faulty.bench.build(2), patience=1.0)
    row = faulty.failed_alone(report)
    assert "no answer in time" in problem(row)
    assert report.sites[1].seconds < row.seconds


def test_a_slow_listing_is_waited_for(faulty: Faulty) -> None:
    faulty.proxy.inject(Slow(1.0), "GET", LISTING, times=3)
    faulty.came_through(faulty.publish(faulty.bench.build(2)))


# Clocks


@pytest.mark.parametrize("when", ["2099-01-01T00:00:00.000000Z", "1999-01-01T00:00:00.000000Z"])
def test_what_a_machine_with_a_wrong_clock_promoted_is_replaced_like_any_other(faulty: Faulty, when: str) -> None:
    (old,) = faulty.bench.ours()
    catalog.change(faulty.bench.connections[FAULTY], old.id, Change(properties={"sage_promoted_at": when}))
    faulty.came_through(faulty.publish(faulty.bench.build(2)))


@pytest.mark.parametrize("off", [timedelta(hours=-5), timedelta(days=9999)])
def test_an_upload_of_another_machine_is_left_alone_where_the_clock_of_the_site_is_wrong(
    faulty: Faulty, off: timedelta
) -> None:
    def skewed(answer: Any) -> Any:
        for image in answer.get("images", [answer]):
            for key in ("created_at", "updated_at"):
                image[key] = f"{datetime.strptime(image[key], TIME) + off:{TIME}}"
        return answer

    connection = faulty.bench.connections[FAULTY]
    properties = {
        "sage_state": "staging",
        "sage_image_name": faulty.bench.name,
        "sage_publisher": "elsewhere/0/0:1:1",
    }
    image_id = "00000000-0000-4000-8000-" + f"{time.time_ns() % 10**12:012}"
    catalog.create(connection, image_id, name="sage-staging-x", disk_format="raw", min_disk=1, properties=properties)
    faulty.proxy.inject(Rewrite(skewed), "GET", times=99)
    report = faulty.publish(faulty.bench.build(2))
    assert [row.outcome for row in report.sites] == [Outcome.PUBLISHED] * 2
    assert image_id in {image.id for image in faulty.bench.ours()}
    catalog.delete(connection, image_id)
    faulty.stands(2, 1)

# SPDX-License-Identifier: Apache-2.0
"""Where a site is not as it should be, or not as the others, it is marked; elsewhere nothing is."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from image_builder import drift, rotation
from image_builder.catalog import ImageState, SiteImage
from image_builder.drift import Drift
from tests.unit.image_builder.test_rotation import NAME, NOW, image

planner = partial(rotation.plan, now=NOW, publishers={"host:1:2": False})


def marks(**sites: Sequence[SiteImage]) -> dict[str, list[tuple[Drift, str | None]]]:
    found = drift.marks(sites, planner)
    return {site: [(mark.drift, mark.image_id) for mark in rows] for site, rows in found.items()}


def built(day: int, digest: str, state: str = ImageState.CURRENT) -> SiteImage:
    also = {"sage_build_id": f"build-{day}", "sage_sha512": digest}
    return replace(image(day, state, also=also), os_hash_value=digest)


def test_sites_that_agree_are_not_marked() -> None:
    same = [built(3, "aa"), built(2, "bb", ImageState.PREVIOUS)]
    assert marks(a=same, b=same, c=same) == {"a": [], "b": [], "c": []}


def test_a_site_that_is_behind_or_has_no_image_is_marked() -> None:
    found = marks(a=[built(3, "aa")], b=[built(2, "bb")], c=[], d=[image(1)])
    assert found == {
        "a": [],
        "b": [(Drift.BEHIND, image(2).id)],
        "c": [(Drift.MISSING, None)],
        "d": [(Drift.MISSING, None)],
    }


def test_a_digest_unlike_the_others_is_marked_and_where_two_differ_both() -> None:
    assert marks(a=[built(3, "aa")], b=[built(3, "ff")], c=[built(3, "aa")]) == {
        "a": [],
        "b": [(Drift.DIFFERS, image(3).id)],
        "c": [],
    }
    both = marks(a=[built(3, "aa")], b=[built(3, "ff")])
    assert both == {"a": [(Drift.DIFFERS, image(3).id)], "b": [(Drift.DIFFERS, image(3).id)]}


def test_other_formats_of_a_build_have_other_digests() -> None:
    raw = replace(built(3, "ff"), disk_format="raw")
    assert marks(a=[built(3, "aa")], b=[raw]) == {"a": [], "b": []}


def test_data_that_are_not_those_that_were_checked_are_marked() -> None:
    assert marks(a=[replace(built(3, "aa"), os_hash_value="bb")]) == {"a": [(Drift.DIFFERS, image(3).id)]}


NEWEST = image(4, ImageState.CURRENT)
RETIRED = image(1, ImageState.RETIRED, name=f"{NAME}-20261101T031500Z", hidden=True)
WITHDRAWN = image(3, also={"sage_withdrawn_at": "2026-11-20T11:00:00Z"})


@pytest.mark.parametrize(
    ("standing", "kind", "number"),
    [
        ([image(1, ImageState.CURRENT, hidden=True)], Drift.HIDDEN_HOLDER, 1),
        ([image(2, ImageState.CURRENT), image(1, ImageState.CURRENT, hidden=True)], Drift.HALF_SWAPPED, 1),
        ([image(2, ImageState.CURRENT), image(1, ImageState.STAGING)], Drift.LEFT_OVER, 1),
        ([NEWEST, RETIRED], Drift.LEFT_OVER, 1),
        ([NEWEST, image(1, ImageState.FAILED)], Drift.FAILED, 1),
        ([image(2, ImageState.CURRENT), image(1, name="mine")], Drift.RENAMED, 1),
        ([image(2, ImageState.CURRENT, also={"sage_paused": "yes"})], Drift.PAUSED, 2),
        ([NEWEST, WITHDRAWN], Drift.WITHDRAWN, 3),
        ([image(2, "later", name=NAME)], Drift.CONFLICT, None),
    ],
)
def test_what_one_site_tells_is_marked(standing: list[SiteImage], kind: Drift, number: int | None) -> None:
    assert marks(a=standing) == {"a": [(kind, image(number).id if number else None)]}


def test_an_upload_that_goes_on_is_no_drift() -> None:
    alive = image(3, ImageState.STAGING, publisher="host:9:9")
    assert marks(a=[image(2, ImageState.CURRENT), alive]) == {"a": []}

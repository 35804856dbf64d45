# SPDX-License-Identifier: Apache-2.0
"""What is asked of a site becomes a plan: the right image, nothing of others, and a diff that tells it."""

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundwork.errors import InputError
from image_builder import rotation, upkeep
from image_builder.catalog import ImageState, SiteImage
from image_builder.rotation import Adopt, BackDate, Hide, Mark, Promote
from image_builder.upkeep import PAUSED, SITE_PAUSED, Absent
from tests.unit.image_builder.test_rotation import NAME, NOW, apply, image, listed

planner = partial(rotation.plan, now=NOW)
promotion = partial(upkeep.promotion, planner=planner, now=NOW)
rollback = partial(upkeep.rollback, NAME, planner=planner, now=NOW)
WITHDRAWN = {"sage_withdrawn_at": "2026-11-20T11:00:00Z"}


def stand(current: int, *previous: int, withdrawn: Sequence[int] = ()) -> list[SiteImage]:
    """Builds of these days of November 2026."""
    return [
        image(current, ImageState.CURRENT, also={"sage_sha512": "00"}),
        *(image(day, also={"sage_sha512": "00", **(WITHDRAWN if day in withdrawn else {})}) for day in previous),
    ]


def after(standing: Sequence[SiteImage], planned: upkeep.NamePlan) -> list[SiteImage]:
    result = list(standing)
    for step in planned.plan.steps:
        result = apply(result, step)
    return result


def test_a_rollback_withdraws_the_current_and_promotes_the_build_before() -> None:
    standing = stand(4, 3, 2)
    made = rollback(standing)
    assert [type(step) for step in made.plan.steps] == [Mark, Hide, Promote, BackDate]
    result = {each.id: each for each in after(standing, made)}
    assert result[image(3).id].state == "current"
    assert result[image(4).id].withdrawn
    # The same again goes one further: what was withdrawn is older news.
    assert rollback(list(result.values())).new == result[image(2).id]


def test_the_diff_of_a_rollback_tells_both_images_as_they_are_and_will_be() -> None:
    standing = stand(4, 3)
    assert upkeep.difference(standing, rollback(standing).plan.steps) == (
        f"- {NAME}  {image(4).id}  current",
        f"+ {NAME}-20261104T031500Z  {image(4).id}  previous, withdrawn",
        f"- {NAME}-20261103T031500Z  {image(3).id}  previous",
        f"+ {NAME}  {image(3).id}  current",
    )


@pytest.mark.parametrize(
    ("to", "day"),
    [("2026-11-03", 3), ("20261103T031500Z", 3), ("20261103T031459Z", 2), ("2026-11-03T04:15:00+01:00", 3)],
)
def test_to_a_date_is_the_newest_build_by_then(to: str, day: int) -> None:
    made = rollback(stand(5, 4, 3, 2), to=upkeep.parse_date(to))
    assert made.new is not None
    assert made.new.id == image(day).id


def test_to_a_date_the_current_build_may_be_the_answer() -> None:
    assert rollback(stand(3, 2), to=upkeep.parse_date("2026-11-30")).plan.steps == ()


def test_a_withdrawn_build_is_passed_over_and_told() -> None:
    made = rollback(stand(5, 4, 3, withdrawn=[4]), to=upkeep.parse_date("2026-11-04"))
    assert made.new is not None
    assert made.new.id == image(3).id
    assert "withdrawn; it is passed over" in made.plan.notes[0]


@pytest.mark.parametrize(
    ("standing", "to"),
    [
        (stand(1), None),
        (stand(1, 2), None),
        (stand(3, 2, withdrawn=[2]), None),
        (stand(3, 2), "2026-10-01"),
    ],
)
def test_where_nothing_is_left_to_roll_back_to_all_that_stands_is_told(
    standing: list[SiteImage], to: str | None
) -> None:
    with pytest.raises(InputError) as told:
        rollback(standing, to=upkeep.parse_date(to) if to else None)
    assert all(each.name in str(told.value.hint) for each in standing)


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "20261120T03", ""])
def test_what_is_no_date_is_answered(text: str) -> None:
    with pytest.raises(InputError, match="expected a date"):
        upkeep.parse_date(text)


def test_a_newer_image_is_promoted_without_withdrawing_the_older() -> None:
    standing = stand(2, 3)
    assert not any(isinstance(step, Mark) for step in promotion(standing[1], standing).plan.steps)


def test_the_current_image_needs_no_promotion() -> None:
    standing = stand(2, 1)
    assert promotion(standing[0], standing).plan.steps == ()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (image(1, status="deactivated", also={"sage_sha512": "00"}), "deactivated"),
        (image(1, also={"sage_sha512": "ff"}), "not the one that was checked"),
        (image(1), "not the one that was checked"),
        (image(1, ImageState.STAGING, also={"sage_sha512": "00"}), "only an image that was checked"),
    ],
)
def test_what_was_not_checked_is_not_promoted(bad: SiteImage, why: str) -> None:
    with pytest.raises(InputError, match=why):
        promotion(bad, [*stand(2), bad])


def test_a_paused_image_is_not_rolled_back() -> None:
    standing = stand(2, 1)
    paused = [image(2, ImageState.CURRENT, also={PAUSED: "yes"}), standing[1]]
    with pytest.raises(rotation.Paused):
        rollback(paused)


def test_an_image_is_found_by_id_and_by_each_of_its_names() -> None:
    standing = stand(2, 1)
    assert upkeep.find(image(1).id, standing).id == image(1).id
    assert upkeep.find(NAME, standing).id == image(2).id
    assert upkeep.find(f"{NAME}-20261101T031500Z", standing).id == image(1).id


def test_a_word_near_to_a_name_is_told_the_name() -> None:
    with pytest.raises(InputError, match="no image") as told:
        upkeep.find(f"{NAME}-20261101T031508Z", stand(2, 1))
    assert not isinstance(told.value, Absent), "its public name stands here"
    assert told.value.hint == f"did you mean '{NAME}-20261101T031500Z'?"
    with pytest.raises(Absent):
        upkeep.find("Sage-Debian12-20261101T031500Z", stand(2, 1))


def test_of_two_in_a_swap_the_listed_one_is_meant_and_of_two_alike_none() -> None:
    pair = [image(1, ImageState.CURRENT, hidden=True), image(2, ImageState.CURRENT)]
    assert upkeep.find(NAME, pair).id == image(2).id
    alike = [image(1, name="x"), image(2, name="x")]
    with pytest.raises(InputError, match="2 images") as told:
        upkeep.find("x", alike)
    assert all(each.id in str(told.value.hint) for each in alike)


def test_pruning_deletes_beyond_the_newest_and_what_is_old_enough() -> None:
    standing = stand(5, 4, 3, 2)
    assert doomed(standing, keep=2) == [2, 3]
    assert doomed(standing, keep=2, older_than=timedelta(days=17, hours=12)) == [2]
    assert doomed(standing, keep=9) == []
    assert doomed(standing, keep=1, older_than=timedelta(days=400)) == []


def doomed(standing: Sequence[SiteImage], **how: Any) -> list[int]:
    steps = upkeep.pruning(NAME, standing, planner=planner, now=NOW, **how).plan.steps
    return [int(step.id[:8]) for step in steps if isinstance(step, rotation.Delete)]


def test_what_stays_though_it_is_old_is_told() -> None:
    standing = [*stand(5, 4), image(1, protected=True), image(2, also={PAUSED: "yes"})]
    made = upkeep.pruning(NAME, standing, keep=1, planner=planner, now=NOW)
    assert [step.id for step in made.plan.deletions if isinstance(step, rotation.Delete)] == [image(4).id]
    assert ["protected" in note or "paused" in note for note in made.plan.notes] == [True, True]


def test_pausing_marks_what_is_not_yet_and_unpausing_frees_it() -> None:
    (made,) = upkeep.pausing([image(1)], key=PAUSED, paused=True)
    (paused,) = after([image(1)], made)
    assert paused.paused
    assert upkeep.pausing([paused], key=PAUSED, paused=True) == []
    (made,) = upkeep.pausing([paused], key=PAUSED, paused=False)
    assert not after([paused], made)[0].paused


def test_a_paused_site_is_told_by_its_current_images_wherever_they_end() -> None:
    standing = stand(2, 1)
    assert upkeep.marked(standing, paused=True) == [standing[0]]
    marked = image(1, also={SITE_PAUSED: "yes"})
    assert upkeep.marked([standing[0], marked], paused=False) == [marked]
    with pytest.raises(InputError):
        upkeep.marked(standing[1:], paused=True)


def foreign(name: str, **values: Any) -> SiteImage:
    from dataclasses import replace

    properties = {"build-timestamp": "2026-01-02T03:04:05Z", **values.pop("properties", {})}
    return replace(image(9, name=name, tags=("theirs",)), properties=properties, **values)


adoption = partial(upkeep.adoption, owner="us", now=NOW)


def test_an_adopted_image_gets_a_back_dated_name_or_keeps_the_public_one() -> None:
    (step,) = adoption(foreign("my-image"), stand(2), image_name=NAME).plan.steps
    assert isinstance(step, Adopt)
    assert (step.name, step.tags) == (f"{NAME}-20260102T030405Z", ("theirs", "sage-image"))
    (step,) = adoption(foreign(f"{NAME}-20260102T030405Z"), stand(2)).plan.steps
    assert isinstance(step, Adopt)
    assert step.properties["sage_state"] == "previous"
    (step,) = adoption(foreign("Old"), stand(2)).plan.steps
    assert isinstance(step, Adopt)
    assert (step.name, step.properties["sage_state"]) == ("Old", "current")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (foreign("x", owner="them"), "another project's"),
        (foreign("x", properties={"chameleon-supported": "true"}), "supported by Chameleon"),
        (foreign("x", properties={"build-repo": "https://x"}), "supported by Chameleon"),
        (foreign("x", status="queued"), "queued"),
        (foreign("x", os_hash_value=None), "no digest"),
        (foreign(NAME), "there would be two"),
    ],
)
def test_what_may_not_be_ours_is_not_adopted(bad: SiteImage, why: str) -> None:
    with pytest.raises(InputError, match=why):
        adoption(bad, stand(2))


@settings(max_examples=200, deadline=None)
@given(
    days=st.lists(st.integers(1, 19), min_size=1, max_size=6, unique=True),
    withdrawn=st.sets(st.integers(1, 19)),
    to=st.none() | st.integers(1, 19),
)
def test_after_any_rollback_one_image_has_the_name_and_none_is_gone(
    days: list[int], withdrawn: set[int], to: int | None
) -> None:
    standing = stand(days[0], *days[1:], withdrawn=sorted(withdrawn))
    limit = datetime(2026, 11, to, 23, tzinfo=timezone.utc) if to else None
    try:
        made = rollback(standing, to=limit)
    except InputError:
        return
    result = after(standing, made)
    assert made.new is not None
    assert listed(result) == [made.new.id]
    assert len(result) == len(standing)
    assert not next(each for each in result if each.id == made.new.id).withdrawn

# SPDX-License-Identifier: Apache-2.0
"""The planner of the rotation: whatever stands, and wherever a run is killed, one image has the public name."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.catalog import Change, ImageState, SiteImage
from image_builder.rotation import (
    BackDate,
    Delete,
    Hide,
    NameConflict,
    Paused,
    Plan,
    Promote,
    Retire,
    Settle,
    Show,
    Step,
    change_of,
    execute,
    plan,
)

NAME = "Sage-Ubuntu24.04"
NOW = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
BUILT = {f"2026-11-0{day}T03:15:00Z": datetime(2026, 11, day, 3, 15, tzinfo=timezone.utc) for day in (1, 2, 3)}


def image(
    number: int,
    state: str = ImageState.PREVIOUS,
    *,
    name: str | None = None,
    hidden: bool = False,
    protected: bool = False,
    status: str = "active",
    built_at: str | None = None,
    promoted_at: str = "",
    publisher: str = "host:1:2",
    age: timedelta = timedelta(minutes=1),
    image_name: str = NAME,
    tags: tuple[str, ...] = ("sage-image",),
    also: Mapping[str, str] | None = None,
) -> SiteImage:
    built = f"2026-11-{number:02}T03:15:00Z" if built_at is None else built_at
    names = {
        ImageState.CURRENT: NAME,
        ImageState.PREVIOUS: f"{NAME}-202611{number:02}T031500Z",
        ImageState.RETIRED: f"{NAME}-202611{number:02}T031500Z",
    }
    moment = (NOW - age).strftime("%Y-%m-%dT%H:%M:%SZ")
    return SiteImage(
        id=f"{number:08d}-0000",
        name=name
        if name is not None
        else names.get(ImageState(state), f"sage-staging-{number}")
        if state in list(ImageState)
        else str(name),
        status=status,
        hidden=hidden or state in (ImageState.STAGING, ImageState.CANDIDATE),
        protected=protected,
        visibility="public",
        owner="us",
        size=1,
        created_at=moment,
        updated_at=moment,
        disk_format="qcow2",
        os_hash_algo="sha512",
        os_hash_value="00",
        tags=tags,
        properties={
            "sage_state": str(state),
            "sage_image_name": image_name,
            "sage_built_at": built,
            "sage_publisher": publisher,
            **({"sage_promoted_at": promoted_at} if promoted_at else {}),
            **(also or {}),
        },
    )


def apply(standing: Sequence[SiteImage], step: Step) -> list[SiteImage]:
    """A site after one step: what Glance does with a PATCH or a DELETE."""
    wanted = change_of(step)
    if wanted is None:
        return [each for each in standing if each.id != step.id]
    return [changed(each, wanted) if each.id == step.id else each for each in standing]


def changed(before: SiteImage, wanted: Change) -> SiteImage:
    return replace(
        before,
        name=before.name if wanted.name is None else wanted.name,
        hidden=before.hidden if wanted.hidden is None else wanted.hidden,
        properties={**before.properties, **wanted.properties},
    )


def listed(standing: Sequence[SiteImage]) -> list[str]:
    return [each.id for each in standing if each.name == NAME and not each.hidden]


def held(standing: Sequence[SiteImage]) -> list[str]:
    return [each.id for each in standing if each.name == NAME]


def kinds(made: Plan) -> list[type]:
    return [type(step) for step in made.steps]


def deleted(made: Plan) -> list[str]:
    return [step.id for step in made.steps if isinstance(step, Delete)]


def test_a_site_as_it_should_be_needs_nothing() -> None:
    standing = [image(3, ImageState.CURRENT), image(2), image(1)]
    assert plan(NAME, standing, keep=3, now=NOW) == Plan(())


def test_the_first_image_gets_the_name() -> None:
    new = image(1, ImageState.CANDIDATE)
    assert kinds(plan(NAME, [new], new=new.id, keep=3, now=NOW)) == [Promote]


def test_a_swap_hides_promotes_and_back_dates() -> None:
    old, new = image(1, ImageState.CURRENT), image(2, ImageState.CANDIDATE)
    made = plan(NAME, [old, new], new=new.id, keep=3, now=NOW)
    assert kinds(made) == [Hide, Promote, BackDate]
    assert made.steps[2] == BackDate(old.id, f"{NAME}-20261101T031500Z", NAME)


def test_the_newest_stay_and_the_oldest_goes_first() -> None:
    standing = [image(5, ImageState.CURRENT), *(image(number) for number in (1, 2, 3, 4))]
    made = plan(NAME, standing, keep=3, now=NOW)
    assert [step.id for step in made.deletions] == [image(1).id, image(1).id, image(2).id, image(2).id]
    assert kinds(made) == [Retire, Delete, Retire, Delete]


def test_keep_one_keeps_the_current_alone_and_never_less() -> None:
    standing = [image(2, ImageState.CURRENT), image(1)]
    for keep in (1, 0, -1):
        assert deleted(plan(NAME, standing, keep=keep, now=NOW)) == [image(1).id]


def test_the_current_stays_even_when_it_is_the_oldest() -> None:
    standing = [image(1, ImageState.CURRENT), image(2), image(3), image(4)]
    assert deleted(plan(NAME, standing, keep=2, now=NOW)) == [image(2).id, image(3).id]


@pytest.mark.parametrize("key", ["sage_paused", "sage_site_paused"])
def test_a_paused_image_is_neither_replaced_nor_promoted_nor_deleted(key: str) -> None:
    paused = {key: "yes"}
    old, new = image(2, ImageState.CURRENT), image(3, ImageState.CANDIDATE)
    for standing in (
        [image(2, ImageState.CURRENT, also=paused), new],
        [old, image(3, ImageState.CANDIDATE, also=paused)],
    ):
        with pytest.raises(Paused, match="keeps its name"):
            plan(NAME, standing, new=new.id, now=NOW)
    left = image(4, ImageState.STAGING, also=paused, age=timedelta(days=3))
    made = plan(NAME, [old, image(1, also=paused), left], keep=1, now=NOW)
    assert made.steps == ()
    assert "paused" in made.notes[0]


def test_a_swap_that_was_begun_is_ended_also_where_an_image_was_paused_meanwhile() -> None:
    standing = [image(1, ImageState.CURRENT, hidden=True, also={"sage_paused": "yes"}), image(2, ImageState.CURRENT)]
    assert kinds(plan(NAME, standing, now=NOW)) == [BackDate]


def test_what_a_rollback_withdrew_stays_while_it_is_newer_than_the_current() -> None:
    withdrawn = {"sage_withdrawn_at": "2026-11-20T11:00:00Z", "sage_promoted_at": "2026-11-20T10:00:00Z"}
    assert plan(NAME, [image(2, ImageState.CURRENT), image(3, also=withdrawn)], keep=1, now=NOW).steps == ()
    made = plan(NAME, [image(4, ImageState.CURRENT), image(3, also=withdrawn)], keep=1, now=NOW)
    assert kinds(made) == [Retire, Delete]


def test_an_image_that_was_promoted_after_it_was_withdrawn_is_withdrawn_no_more() -> None:
    marks = {"sage_withdrawn_at": "2026-11-20T11:00:00Z", "sage_promoted_at": "2026-11-20T12:00:00Z"}
    assert not image(3, also=marks).withdrawn
    assert image(3, also={**marks, "sage_promoted_at": ""}).withdrawn
    assert not image(3, ImageState.CURRENT, also={**marks, "sage_promoted_at": ""}).withdrawn


def test_what_is_in_use_stays_and_is_told() -> None:
    standing = [image(3, ImageState.CURRENT), image(2), image(1)]
    made = plan(NAME, standing, keep=1, in_use={image(1).id: "the server node-1 was made of it"}, now=NOW)
    assert deleted(made) == [image(2).id]
    assert "the server node-1" in made.notes[0]


def test_what_is_younger_than_asked_stays() -> None:
    standing = [image(19, ImageState.CURRENT), image(18), image(10), image(9)]
    assert deleted(plan(NAME, standing, keep=1, keep_younger=timedelta(days=10), now=NOW)) == [
        image(9).id,
        image(10).id,
    ]
    assert deleted(plan(NAME, standing, keep=1, keep_younger=timedelta(days=11), now=NOW)) == [image(9).id]
    assert deleted(plan(NAME, standing, keep=1, keep_younger=timedelta(days=12), now=NOW)) == []


def test_what_is_retired_is_hidden_and_marked_before_it_is_deleted() -> None:
    wanted = change_of(Retire("id", "name", "old"))
    assert wanted == Change(hidden=True, properties={"sage_state": "retired"})
    assert change_of(Delete("id", "name", "old")) is None


def test_a_deletion_killed_after_retiring_is_finished() -> None:
    standing = [image(3, ImageState.CURRENT), image(2, ImageState.RETIRED, hidden=True)]
    assert deleted(plan(NAME, standing, keep=9, now=NOW)) == [image(2).id], "however many may stay"
    assert plan(NAME, standing, now=NOW).steps == ()
    assert plan(NAME, standing[1:], keep=1, now=NOW).steps == (), "not without a current image"


def test_a_retired_image_that_is_used_or_protected_by_now_is_shown_again() -> None:
    current = image(3, ImageState.CURRENT)
    for left, in_use in (
        (image(2, ImageState.RETIRED, hidden=True, protected=True), {}),
        (image(2, ImageState.RETIRED, hidden=True), {image(2).id: "a server was made of it"}),
    ):
        made = plan(NAME, [current, left], keep=1, in_use=in_use, now=NOW)
        assert made.steps == (BackDate(left.id, image(2).name, image(2).name),)
        assert "shown again" in made.notes[0]


def test_a_retired_image_can_get_the_name_again() -> None:
    current, left = image(3, ImageState.CURRENT), image(2, ImageState.RETIRED, hidden=True)
    made = plan(NAME, [current, left], new=left.id, keep=3, now=NOW)
    assert kinds(made) == [Hide, Promote, BackDate]


def test_nothing_is_deleted_where_the_clock_ran_backwards() -> None:
    """Something at the site is of the future, or the site's clock says otherwise."""
    left = image(2, ImageState.STAGING, age=timedelta(hours=9))
    retired = image(4, ImageState.RETIRED, hidden=True)
    standing = [image(9, ImageState.CURRENT), image(1), left, retired]
    assert set(deleted(plan(NAME, standing, keep=1, now=NOW))) == {image(1).id, left.id, retired.id}
    future = [
        replace(standing[0], created_at="2026-11-20T12:30:00Z"),
        image(9, ImageState.CURRENT, promoted_at="2026-11-20T12:30:00.000000Z"),
        image(9, ImageState.CURRENT, built_at="2026-11-20T12:30:00Z"),
    ]
    for current in future:
        made = plan(NAME, [current, *standing[1:]], keep=1, now=NOW, publishers={left.publisher: False})
        assert made.steps == ()
        assert "of the future" in made.notes[-1]
    for seconds in (-301, 301):
        made = plan(NAME, standing, keep=1, now=NOW, site_time=NOW + timedelta(seconds=seconds))
        assert made.steps == ()
        assert "differs from the site's by 301 s" in made.notes[-1]
    made = plan(NAME, standing, keep=1, now=NOW, site_time=NOW + timedelta(seconds=299))
    assert len(deleted(made)) == 3


def test_a_promotion_is_later_than_any_before_whatever_the_clock_says() -> None:
    old, new = image(1, ImageState.CURRENT, promoted_at="2026-11-20T13:00:00.000000Z"), image(2, ImageState.CANDIDATE)
    step = plan(NAME, [old, new], new=new.id, now=NOW).steps[1]
    assert isinstance(step, Promote)
    assert step.at == "2026-11-20T13:00:00.000001Z"


def test_what_can_not_be_booted_or_has_an_unknown_state_never_gets_the_name() -> None:
    for new in (image(1, status="deactivated"), image(1, "rejected", name="sage-rejected-1")):
        with pytest.raises(NameConflict):
            plan(NAME, [image(2, ImageState.CURRENT), new], new=new.id, now=NOW)


def test_of_images_whose_canary_failed_the_newest_two_are_kept_and_none_is_promoted() -> None:
    failed = [image(number, ImageState.FAILED, hidden=True, age=timedelta(days=10 - number)) for number in (4, 2, 1, 3)]
    standing = [image(9, ImageState.CURRENT), *failed]
    assert [step.id for step in plan(NAME, standing, keep=3, now=NOW).steps] == [image(1).id, image(2).id]
    assert plan(NAME, standing, now=NOW) == Plan(())
    with pytest.raises(NameConflict):
        plan(NAME, standing, new=image(4).id, now=NOW)


def test_protected_images_stay() -> None:
    standing = [image(3, ImageState.CURRENT), image(2), image(1, protected=True)]
    assert plan(NAME, standing, keep=1, now=NOW).steps == plan(NAME, standing[:2], keep=1, now=NOW).steps


def test_nothing_finished_is_deleted_without_a_current_image() -> None:
    made = plan(NAME, [image(number) for number in (1, 2, 3, 4)], keep=1, now=NOW)
    assert made.steps == ()
    assert "only back-dated" in made.notes[0]


def test_nothing_finished_is_deleted_when_an_age_is_unknown() -> None:
    standing = [image(9, ImageState.CURRENT), image(1), image(2), image(3, built_at="yesterday")]
    made = plan(NAME, standing, keep=1, now=NOW)
    assert made.steps == ()
    assert "does not tell when" in made.notes[0]


def test_images_that_are_not_ours_do_not_count() -> None:
    others = [
        image(1, tags=()),
        image(2, image_name="Sage-Debian12"),
        replace(image(3), properties={}),
    ]
    assert plan(NAME, [image(9, ImageState.CURRENT), *others], keep=1, now=NOW) == Plan(())


def test_images_renamed_by_hand_are_left_alone() -> None:
    standing = [image(9, ImageState.CURRENT), image(1, name="for my paper"), image(2, ImageState.CURRENT, name="mine")]
    made = plan(NAME, standing, keep=1, now=NOW)
    assert made.steps == ()
    assert len(made.notes) == 2


def test_unknown_states_are_left_alone_and_may_not_hold_the_name() -> None:
    later = image(2, "quarantined", name="something")
    made = plan(NAME, [image(9, ImageState.CURRENT), later], keep=1, now=NOW)
    assert made.steps == ()
    assert "unknown state" in made.notes[0]
    with pytest.raises(NameConflict):
        plan(NAME, [replace(later, name=NAME)], keep=1, now=NOW)


def test_an_unchecked_image_is_never_promoted() -> None:
    for new in (image(1, ImageState.STAGING), image(1, ImageState.CANDIDATE, status="saving")):
        with pytest.raises(NameConflict):
            plan(NAME, [new], new=new.id, now=NOW)
    with pytest.raises(NameConflict):
        plan(NAME, [], new="absent", now=NOW)


def test_a_swap_killed_after_hiding_is_undone() -> None:
    old = image(1, ImageState.CURRENT, hidden=True)
    assert plan(NAME, [old], now=NOW).steps == (Show(old.id, NAME),)


def test_a_swap_killed_after_hiding_goes_on_when_the_new_one_is_still_wanted() -> None:
    old, new = image(1, ImageState.CURRENT, hidden=True), image(2, ImageState.CANDIDATE)
    assert kinds(plan(NAME, [old, new], new=new.id, now=NOW)) == [Promote, BackDate]


def test_a_swap_killed_after_promoting_is_finished() -> None:
    old, new = image(1, ImageState.CURRENT, hidden=True), image(2, ImageState.CURRENT)
    assert kinds(plan(NAME, [old, new], now=NOW)) == [BackDate]


def test_of_two_listed_holders_the_one_promoted_last_stays() -> None:
    first = image(2, ImageState.CURRENT, promoted_at="2026-11-20T10:00:00Z")
    last = image(1, ImageState.CURRENT, promoted_at="2026-11-20T11:00:00Z")  # an older build, promoted again
    made = plan(NAME, [first, last], now=NOW)
    assert [(type(step), step.id) for step in made.steps] == [(BackDate, first.id)]


def test_a_back_dated_image_can_be_promoted_again() -> None:
    old, new = image(1), image(2, ImageState.CURRENT)
    made = plan(NAME, [old, new], new=old.id, keep=3, now=NOW)
    assert kinds(made) == [Hide, Promote, BackDate]


def test_an_old_image_that_still_has_the_name_hidden_is_not_in_the_way_of_its_own_promotion() -> None:
    old, new = image(1, ImageState.CURRENT, hidden=True), image(2, ImageState.CURRENT)
    made = plan(NAME, [old, new], new=old.id, keep=3, now=NOW)
    assert kinds(made) == [BackDate, Hide, Promote, BackDate]


def test_an_image_named_by_hand_becomes_the_current_one() -> None:
    assert kinds(plan(NAME, [image(1, name=NAME)], now=NOW)) == [Settle]


def test_two_builds_of_one_second_get_two_names() -> None:
    same = "2026-11-01T03:15:00Z"
    old, older = image(2, ImageState.CURRENT, built_at=same), image(1)
    new = image(3, ImageState.CANDIDATE)
    made = plan(NAME, [old, older, new], new=new.id, keep=3, now=NOW)
    assert made.steps[2] == BackDate(old.id, f"{NAME}-20261101T031500Z-00000002", NAME)


@pytest.mark.parametrize(
    ("publishers", "age", "left_over"),
    [
        ({"host:1:2": False}, timedelta(minutes=1), True),
        ({"host:1:2": True}, timedelta(days=9), False),
        ({}, timedelta(hours=5), False),
        ({}, timedelta(hours=7), True),
    ],
)
@pytest.mark.parametrize("state", [ImageState.STAGING, ImageState.CANDIDATE])
def test_leftovers_go_when_nobody_can_finish_them(
    publishers: dict[str, bool], age: timedelta, left_over: bool, state: ImageState
) -> None:
    made = plan(NAME, [image(1, state, age=age, status="queued")], now=NOW, publishers=publishers)
    assert kinds(made) == ([Delete] if left_over else [])
    assert bool(made.notes) is not left_over


@pytest.mark.parametrize("state", [ImageState.STAGING, ImageState.CANDIDATE])
def test_leftovers_of_unknown_publishers_go_when_they_were_to_have_ended(state: ImageState) -> None:
    for until, age, left_over in (
        ("2026-11-20T11:59:00Z", timedelta(minutes=1), True),
        ("2026-11-20T12:01:00Z", timedelta(hours=9), False),
        ("whenever", timedelta(hours=9), False),
    ):
        made = plan(NAME, [image(1, state, age=age, also={"sage_until": until})], now=NOW)
        assert kinds(made) == ([Delete] if left_over else [])


def test_steps_read_like_sentences() -> None:
    old, new = image(1, ImageState.CURRENT), image(2, ImageState.CANDIDATE)
    made = plan(NAME, [old, new, image(3)], new=new.id, keep=1, now=NOW)
    words = [str(step).split()[0] for step in made.steps]
    assert words == ["hide", "give", "back-date", "retire", "delete", "retire", "delete"]


def test_execution_ends_at_the_first_failure() -> None:
    old, new = image(1, ImageState.CURRENT), image(2, ImageState.CANDIDATE)
    made = plan(NAME, [old, new], new=new.id, now=NOW)
    seen: list[str] = []

    def change(image_id: str, wanted: Change) -> None:
        if wanted.name == NAME:
            raise OSError
        seen.append(image_id)

    with pytest.raises(OSError):  # noqa: PT011
        execute(made.steps, change=change, delete=seen.append)
    assert seen == [old.id]


# Properties


MARKS: tuple[Mapping[str, str], ...] = (
    {},
    {},
    {},
    {"sage_paused": "yes"},
    {"sage_withdrawn_at": "2026-11-20T11:00:00Z"},
)


@st.composite
def sites(draw: st.DrawFn) -> list[SiteImage]:
    """Sites as runs of ours, killed anywhere, and hands may leave them; at least one holds the name."""
    count = draw(st.integers(1, 7))
    made = []
    for number in range(1, count + 1):
        state = draw(st.sampled_from(list(ImageState)))
        holds = number == 1 or (state in (ImageState.CURRENT, ImageState.PREVIOUS) and draw(st.booleans()))
        made.append(
            image(
                number,
                ImageState.CURRENT if number == 1 else state,
                name=NAME if holds else None if state != ImageState.CURRENT else "renamed by hand",
                hidden=draw(st.booleans()),
                protected=draw(st.booleans()),
                built_at=f"2026-11-0{draw(st.integers(1, 3))}T03:15:00Z",
                promoted_at=draw(st.sampled_from(["", "2026-11-20T01:00:00Z", "2026-11-20T02:00:00Z"])),
                age=timedelta(hours=draw(st.sampled_from([0, 9]))),
                also=draw(st.sampled_from(MARKS)),
            )
        )
    return draw(st.permutations(made))


@st.composite
def others(draw: st.DrawFn) -> list[SiteImage]:
    """Images that are not ours, or of another name: not one is to be touched, whatever it looks like."""
    made = []
    for number in range(11, 11 + draw(st.integers(0, 3))):
        other = image(
            number, draw(st.sampled_from(list(ImageState))), name=draw(st.sampled_from([NAME, "theirs", None]))
        )
        disguise = draw(st.sampled_from(["no tag", "no properties", "of another name"]))
        if disguise == "no tag":
            other = replace(other, tags=("chameleon-supported",))
        elif disguise == "no properties":
            other = replace(other, properties={"sage_image_name": NAME})
        else:
            other = replace(other, properties={**other.properties, "sage_image_name": "Sage-Debian12"})
        made.append(other)
    return made


@st.composite
def tidy_sites(draw: st.DrawFn) -> list[SiteImage]:
    """Sites at which every run came to its end."""
    old = [image(number, protected=draw(st.booleans())) for number in range(1, draw(st.integers(1, 5)))]
    return [image(8, ImageState.CURRENT), *old, image(9, ImageState.CANDIDATE)]


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """What a run may ask and know: sane, or with a clock that is wrong."""
    ids = [image(number).id for number in range(1, 15)]
    return {
        "keep": draw(st.one_of(st.none(), st.integers(1, 4))),
        "keep_younger": timedelta(days=draw(st.sampled_from([0, 0, 18, 19, 400]))),
        "in_use": dict.fromkeys(draw(st.sets(st.sampled_from(ids), max_size=4)), "a server was made of it"),
        "now": NOW + timedelta(hours=draw(st.sampled_from([0, 0, 0, 100, -100, -10_000]))),
        "site_time": draw(st.sampled_from([None, NOW])),
        "publishers": draw(st.sampled_from([{}, {"host:1:2": True}, {"host:1:2": False}])),
    }


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(sites(), others(), requests(), st.one_of(st.none(), st.integers(1, 14)))
def test_no_plan_harms_a_site(
    standing: list[SiteImage], foreign: list[SiteImage], asked: dict[str, Any], number: int | None
) -> None:
    """At no step is the name absent or doubled; what is in use, protected, paused or another's is not deleted."""
    new = None if number is None else image(number).id
    before = {each.id: each for each in standing}
    try:
        made = plan(NAME, [*foreign, *standing], new=new, **asked)
    except (NameConflict, Paused):
        return  # refused, with nothing done
    listed_now = listed(standing)
    for step in made.steps:
        assert step.id in before, "another's image is not touched"
        touched = next(each for each in standing if each.id == step.id)
        if isinstance(step, Delete):
            assert touched.hidden, "no reader sees it any more"
            assert not touched.protected
            assert not touched.paused
            assert touched.id not in asked["in_use"]
            assert touched.name != NAME
        if touched.paused:
            assert len(held(list(before.values()))) > 1 or not isinstance(step, Retire | Delete | BackDate | Promote)
        standing = apply(standing, step)
        assert held(standing), "the name is there at every step"
        assert len(listed(standing)) <= max(1, len(listed_now)), "and never is one more listed"
        listed_now = listed(standing)
    assert len(listed(standing)) == 1
    assert held(standing) == listed(standing), "one alone has the name"
    (current,) = (each for each in standing if each.name == NAME)
    assert current.state == ImageState.CURRENT
    if new is not None:
        assert current.id == new
        assert before[new].state != ImageState.STAGING, "an unchecked image never gets the name"
    gone = [before[image_id] for image_id in before.keys() - {each.id for each in standing}]
    wrong_clock = asked["now"] != NOW and (asked["site_time"] or asked["now"] < NOW)
    assert not (gone and wrong_clock), "and with a clock that is wrong nothing is deleted"
    finished = [each for each in gone if each.state in (ImageState.CURRENT, ImageState.PREVIOUS)]
    assert not (finished and asked["keep"] is None)
    assert all(asked["now"] - BUILT[each.built_at] >= asked["keep_younger"] for each in finished)


@settings(max_examples=150, deadline=None)
@given(sites(), st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 8), st.booleans())
def test_wherever_runs_are_killed_the_next_one_ends_with_one_listed_image(
    standing: list[SiteImage], keep: int | None, kill_at: int, wants_new: bool
) -> None:
    candidates = [each.id for each in standing if each.state in (ImageState.CANDIDATE, ImageState.PREVIOUS)]
    new = candidates[0] if wants_new and candidates else None
    with contextlib.suppress(Paused):
        for step in plan(NAME, standing, new=new, keep=keep, now=NOW).steps[:kill_at]:
            standing = apply(standing, step)
    after = plan(NAME, standing, keep=keep, now=NOW)
    for step in after.steps:
        standing = apply(standing, step)
    assert len(listed(standing)) == 1
    assert held(standing) == listed(standing)
    assert plan(NAME, standing, keep=keep, now=NOW).steps == (), "and then nothing is left to do"


@settings(max_examples=100, deadline=None)
@given(tidy_sites(), st.integers(1, 4), st.lists(st.integers(0, 7), max_size=4))
def test_a_swap_killed_again_and_again_still_ends_with_the_new_image(
    standing: list[SiteImage], keep: int, kills: list[int]
) -> None:
    new = image(9).id
    for kill_at in [*kills, 99]:
        for step in plan(NAME, standing, new=new, keep=keep, now=NOW).steps[:kill_at]:
            standing = apply(standing, step)
            assert len(listed(standing)) <= 1
            assert len(held(standing)) in (1, 2)
            assert listed(standing) or len(held(standing)) == 1, "the SDK finds the one that is hidden"
    assert listed(standing) == [new]
    assert len([each for each in standing if not each.protected]) <= keep
    assert {each.name for each in standing if each.id != new and each.hidden} == set()


@settings(max_examples=100, deadline=None)
@given(sites(), st.integers(1, 4))
def test_deletions_spare_the_newest(standing: list[SiteImage], keep: int) -> None:
    made = plan(NAME, standing, keep=keep, now=NOW)
    doomed = {step.id for step in made.deletions}
    for step in made.swap:
        standing = apply(standing, step)
    finished = [each for each in standing if each.state in (ImageState.CURRENT, ImageState.PREVIOUS)]
    assert len(finished) - len(doomed & {each.id for each in finished}) >= min(keep, len(finished))
    kept = [each.built_at for each in finished if each.id not in doomed and each.name.startswith(f"{NAME}-")]
    gone = [each.built_at for each in finished if each.id in doomed]
    if gone and keep > 1:
        assert max(gone) <= max(kept)

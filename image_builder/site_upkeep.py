# SPDX-License-Identifier: Apache-2.0
"""One site's part of upkeep, in a thread of its own: mend what is half done, plan, do (or, on a dry run, only tell)."""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from chameleon_sites.cloud import SiteError
from groundwork.errors import InputError, nearest
from image_builder import catalog, publisher, rotation, site_rotation, upkeep
from image_builder.catalog import Change, ImageState, Member, SiteImage, Visibility
from image_builder.publication import Problem, SiteUpkeep, UpkeepOutcome
from image_builder.rotation import Plan, Step
from image_builder.site_rotation import SiteRun
from image_builder.upkeep import Absent, Command, NamePlan, Request

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_MOVES_NAMES = (Command.PROMOTE, Command.ROLLBACK, Command.PRUNE)  # what is half done is mended before them


@dataclass(kw_only=True)
class Care(SiteRun):
    """What is asked of one site.  ``ours``: all its images of ours.  ``absent``: the image is not at this site."""

    request: Request
    ours: tuple[SiteImage, ...]
    difference: tuple[str, ...] = ()
    members: tuple[Member, ...] = ()
    absent: bool = False
    result: SiteUpkeep | None = None


def run(care: Care) -> None:
    """A site's thread: whatever happens becomes the site's result."""
    try:
        changed = _care_at(care, site_rotation.connected(care.connection))
        did = UpkeepOutcome.WOULD_CHANGE if care.options.dry_run else UpkeepOutcome.CHANGED
        care.result = _result(care, did if changed else UpkeepOutcome.UNCHANGED)
    except Exception as error:
        logger.debug("%s failed", care.site.name, exc_info=True)
        care.absent = isinstance(error, Absent)
        problem = site_rotation.problem_of(care.site, error)
        care.result = _result(care, UpkeepOutcome.FAILED, problem)
    care.word = str(care.result.outcome)


def _care_at(care: Care, connection: "Connection") -> bool:
    """Returns whether anything changed, or would."""
    care.word = "planning"
    if care.request.command is Command.SHARE:
        return _share(care, connection, _find(care, connection, care.ours))
    before = list(care.ours)
    repair = _mend(care, connection)
    if care.request.command is Command.ADOPT:
        foreign = _find_foreign(care, connection)
        before += [foreign] if foreign.id not in {image.id for image in before} else []
        plans = [_adoption(care, connection, foreign)]
    else:
        plans = _plans(care, connection)
    steps = [*repair, *(step for planned in plans for step in planned.plan.steps)]
    for planned in plans:
        for note in planned.plan.notes:
            care.warn(note)
    care.difference = upkeep.difference(before, steps)
    if care.options.dry_run:
        care.done += [text for planned in plans for text in _told(care, planned)]
    else:
        for planned in plans:
            care.go_on()
            care.image_name = planned.image_name
            with site_rotation.exclusive(care):
                _carry_out(care, connection, _as_it_stands(care, connection, planned))
    return bool(steps)


def _as_it_stands(care: Care, connection: "Connection", planned: NamePlan) -> NamePlan:
    """The plan, made anew where another run of this machine changed what stands while this one waited for it."""
    if care.request.command not in _MOVES_NAMES:
        return planned
    standing = site_rotation.look(care, connection)
    others = tuple(image for image in care.ours if image.image_name != planned.image_name)
    if {image.id: image for image in standing} == {image.id: image for image in care.ours if image not in others}:
        return planned
    care.ours = (*others, *standing)
    if planned.new is not None and any(image.id == planned.new.id for image in standing if rotation.is_current(image)):
        return NamePlan(planned.image_name, Plan(()), planned.new)  # the other run was asked for the same
    return next(again for again in _plans(care, connection) if again.image_name == planned.image_name)


def _mend(care: Care, connection: "Connection") -> list[Step]:
    """End what an interrupted run left of the names that are to move; ``care.ours`` is then what stands."""
    if care.request.command not in _MOVES_NAMES:
        return []
    moved = care.request.command is Command.PROMOTE
    names = [_find(care, connection, care.ours).image_name] if moved else _names(care)
    steps: list[Step] = []
    for name in names:
        care.image_name = name
        standing = tuple(image for image in care.ours if image.image_name == name)
        plan = site_rotation.plan_for(care, standing)
        # A temporary image is deleted only where its upload is surely dead; one to be promoted is not left over.
        wanted = {image.id for image in standing if care.request.word in (image.id, image.name)}
        planned = [step for step in plan.steps if step.id not in wanted]
        steps += planned
        if care.options.dry_run:
            care.done += [str(step) for step in planned]
            mended: Sequence[SiteImage] = upkeep.applied(standing, planned)
        elif planned:
            mended = site_rotation.tidy(care, connection, standing, spared=partial(_is_one_of, wanted))
        else:
            mended = standing
        care.ours = (*(image for image in care.ours if image.image_name != name), *mended)
    return steps


def _is_one_of(ids: Collection[str], image: SiteImage) -> bool:
    return image.id in ids


def _names(care: Care) -> list[str]:
    """The public names that a rollback or a pruning is about."""
    known = upkeep.image_names(care.ours)
    word = care.request.word
    if word is None:
        return known
    if word not in known:
        raise Absent(f"no image of ours has the public name {word!r}", hint=nearest(word, known))
    return [word]


def _plans(care: Care, connection: "Connection") -> list[NamePlan]:
    request, ours, now = care.request, care.ours, datetime.now(timezone.utc)

    def planner(name: str, standing: Sequence[SiteImage], *, new: str | None = None, keep: int | None = None) -> Plan:
        care.image_name = name
        return site_rotation.plan_for(care, standing, new=new, keep=keep)

    def standing(name: str) -> list[SiteImage]:
        return [image for image in ours if image.image_name == name]

    match request.command:
        case Command.PROMOTE:
            image = _find(care, connection, ours)
            if image.state == ImageState.CANDIDATE and publisher.lives(image.publisher):
                raise InputError(f"{image.name} ({image.id}) is just being published, by {image.publisher}")
            return [upkeep.promotion(image, standing(image.image_name), planner=planner, now=now)]
        case Command.ROLLBACK:
            roll = partial(upkeep.rollback, to=request.to, planner=planner, now=now)
            return [roll(name, standing(name)) for name in _names(care)]
        case Command.PRUNE:
            prune = partial(upkeep.pruning, keep=request.keep, older_than=request.older_than, planner=planner, now=now)
            return [prune(name, standing(name)) for name in _names(care)]
        case _:
            paused = request.command is Command.PAUSE
            if request.word is None:
                return upkeep.pausing(upkeep.marked(ours, paused=paused), key=upkeep.SITE_PAUSED, paused=paused)
            return upkeep.pausing([_find(care, connection, ours)], key=upkeep.PAUSED, paused=paused)


def _adoption(care: Care, connection: "Connection", image: SiteImage) -> NamePlan:
    return upkeep.adoption(
        image,
        care.ours,
        owner=str(connection.current_project_id),
        image_name=care.request.image_name,
        now=datetime.now(timezone.utc),
    )


def _find(care: Care, connection: "Connection", ours: Sequence[SiteImage]) -> SiteImage:
    """The image that is meant; raises InputError, with another hint where it stands but is not ours."""
    word = str(care.request.word)
    try:
        return upkeep.find(word, ours)
    except InputError:
        foreign = catalog.find(connection, word)
        if foreign and not any(image.id in {mine.id for mine in ours} for image in foreign):
            raise _not_ours(foreign[0], str(connection.current_project_id)) from None
        raise


def _not_ours(image: SiteImage, project: str) -> InputError:
    name = f"{image.name} ({image.id})"
    if image.owner != project:
        return InputError(f"{name} is another project's; nothing is done to it")
    return InputError(
        f"{name} was not made by this program; nothing is done to it",
        hint=f"sage-image adopt {image.id} takes it under care",
    )


def _find_foreign(care: Care, connection: "Connection") -> SiteImage:
    """The image that is to be adopted, whoever made it."""
    word = str(care.request.word)
    found = catalog.find(connection, word)
    if not found:
        raise Absent(f"there is no image {word!r} of this project")
    if len(found) > 1:
        ids = ", ".join(sorted(image.id for image in found))
        raise InputError(f"{len(found)} images have the name {word}", hint=f"name one by its id: {ids}")
    return found[0]


def _told(care: Care, planned: NamePlan) -> list[str]:
    """A plan's steps for people."""
    lines = [str(step) for step in planned.plan.steps]
    if planned.new is not None and planned.new.state == ImageState.CANDIDATE:
        lines.insert(0, f"set the visibility of {planned.new.id} to {' or else '.join(care.options.visibility)}")
    return lines


def _carry_out(care: Care, connection: "Connection", planned: NamePlan) -> None:
    plan = planned.plan
    marks = [step for step in plan.swap if planned.new is None or isinstance(step, rotation.Mark)]
    if planned.new is not None and planned.new.state == ImageState.CANDIDATE:
        site_rotation.set_visibility(care, connection, planned.new)
    # A rollback marks the image that it withdraws first: should it be killed, no run brings that one back.
    site_rotation.do_steps(care, connection, marks)
    if planned.new is not None and len(plan.swap) > len(marks):
        site_rotation.swap(care, connection, planned.new.id)
    _delete(care, connection, plan)


def _delete(care: Care, connection: "Connection", plan: Plan) -> None:
    if not plan.deletions:
        return
    care.word = "deleting"
    site_rotation.delete_steps(care, connection, plan.deletions)
    left = [step for step in plan.deletions if str(step) not in care.done]
    if left:
        raise SiteError(
            f"{len(left)} of {len(plan.deletions)} images could not be deleted",
            hint="the warnings say why; a server may be using them",
        )


def _share(care: Care, connection: "Connection", image: SiteImage) -> bool:
    """Add and remove projects that see an image; all that do are told in any case."""
    request = care.request
    name = f"{image.name} ({image.id})"
    if image.visibility in (Visibility.PUBLIC, Visibility.COMMUNITY):
        raise InputError(
            f"{name} is {image.visibility}: every project may use it already",
            hint="publish with --visibility shared to choose who may",
        )
    have = catalog.members(connection, image.id) if image.visibility == Visibility.SHARED else ()
    known = {member.project for member in have}
    to_add = [project for project in dict.fromkeys(request.projects) if project not in known]
    to_remove = [project for project in dict.fromkeys(request.removed) if project in known]
    for project in request.removed:
        if project not in known:
            care.warn(f"{name} is not shared with {project}")
    lines: list[str] = []
    publicly = bool(to_add) and image.visibility != Visibility.SHARED
    if publicly:
        lines += [f"- {image.name}  {image.id}  {image.visibility}", f"+ {image.name}  {image.id}  shared"]
        care.done.append(f"make {name} shared, which was {image.visibility}")
    lines += [f"- {image.name}  {image.id}  member {project}" for project in to_remove]
    lines += [f"+ {image.name}  {image.id}  member {project}" for project in to_add]
    care.done += [f"share {name} with {project} no more" for project in to_remove]
    care.done += [f"share {name} with {project}" for project in to_add]
    care.difference = tuple(lines)
    if not care.options.dry_run:
        if publicly:
            catalog.change(connection, image.id, Change(visibility=str(Visibility.SHARED)))
        for project in to_remove:
            catalog.remove_member(connection, image.id, project)
        for project in to_add:
            catalog.add_member(connection, image.id, project)
        if lines:
            have = catalog.members(connection, image.id)
    care.members = have
    return bool(lines)


def _result(care: Care, outcome: UpkeepOutcome, problem: Problem | None = None) -> SiteUpkeep:
    return SiteUpkeep(
        site=care.site.name,
        outcome=outcome,
        steps=tuple(care.done),
        difference=care.difference,
        members=care.members,
        warnings=tuple(care.warnings),
        seconds=round(time.monotonic() - care.begin, 3),
        problem=problem,
    )

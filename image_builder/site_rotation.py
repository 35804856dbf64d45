# SPDX-License-Identifier: Apache-2.0
"""What is done to the images of one public name at one site, whoever asks for it: repair, swap, deletion.

Publishing (:mod:`image_builder.site_work`) and the care of what stands there share it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site
from groundwork.errors import InputError, SageError
from image_builder import catalog, in_use, journal, publisher, rotation
from image_builder.canary import CanaryInconclusive
from image_builder.catalog import BadListing, Change, ImageState, SiteImage, Stopped, Visibility
from image_builder.journal import Journal
from image_builder.publication import Problem, PublishOptions

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_REPAIRS = 3  # attempts to finish or undo a swap in which a call failed
FIRST_REPAIR = 0.2  # seconds until the first of them, doubled each time
_OLD = (ImageState.PREVIOUS, ImageState.RETIRED)
SETTLING = 1.0  # seconds that a swap of another machine may still take, before it is taken for abandoned


class Overtaken(SiteError):
    """Another run, on another machine, was at the same name at the same time, and has it now."""


@dataclass(kw_only=True)
class SiteRun:
    """A run's work on one public name at one site; what its thread and the main thread both look at.

    ``done`` and ``warnings`` are lines for people.
    """

    site: Site
    image_name: str
    options: PublishOptions
    connection: "Connection | SageError"
    stop: threading.Event
    lock: threading.Lock = field(default_factory=threading.Lock)
    staging: str | None = None  # the id of an image that must not stay if the program ends now
    swapping: bool = False
    trying: bool = False  # a canary runs, which must end before the program does
    done: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    word: str = "connecting"
    begin: float = field(default_factory=time.monotonic)
    journal: Journal | None = None  # while this machine's lock on the name at the site is held
    seen: dict[str, SiteImage] = field(default_factory=dict)  # finished images that stood here, and were not deleted

    def progress(self) -> str:
        """For people: ``CHI@UC swapping``."""
        return f"{self.site.name} {self.word}"

    def go_on(self) -> None:
        """Raise Stopped when the program was told to end."""
        if self.stop.is_set():
            raise Stopped

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def connected(connection: "Connection | SageError") -> "Connection":
    if isinstance(connection, SageError):
        raise connection
    return connection


def look(run: SiteRun, connection: "Connection") -> tuple[SiteImage, ...]:
    """What stands, all images of ours of this name.  Raises BadListing where one is left out that still stands."""
    standing = catalog.list_ours(connection, run.image_name)
    seen = {image.id for image in run.seen.values() if image.image_name == run.image_name}
    for image_id in seen - {image.id for image in standing}:
        with contextlib.suppress(catalog.Gone):
            still = catalog.get(connection, image_id)
            raise BadListing(f"{run.site.name}: its list of images lacks {still.name} ({still.id}), which stands there")
    run.seen = {image.id: image for image in standing if image.state in (ImageState.CURRENT, ImageState.PREVIOUS)}
    return standing


def tidy(
    run: SiteRun,
    connection: "Connection",
    standing: tuple[SiteImage, ...],
    *,
    keep: int | None = None,
    spared: Callable[[SiteImage], bool] = lambda image: False,
) -> tuple[SiteImage, ...]:
    """Bring a site into a state in which nothing is half-done; returns what then stands there.

    ``keep`` as for :func:`image_builder.rotation.plan`; an image that is ``spared`` is not deleted.
    """
    plan = plan_for(run, standing, keep=keep)
    if not plan.steps:
        return standing
    if plan.swap:
        with exclusive(run):
            # Another run of this machine may have done it while this one waited; and one of another machine
            # may be in the middle of a swap, which does not take a second.
            if any(isinstance(step, rotation.Show) for step in plan.steps) and run.stop.wait(SETTLING):
                raise Stopped
            plan = plan_for(run, look(run, connection))
            do_steps(run, connection, plan.swap)
        standing = look(run, connection)
        plan = plan_for(run, standing, keep=keep)
    kept = {image.id for image in standing if spared(image)}
    doomed = [step for step in plan.deletions if step.id not in kept]
    delete_steps(run, connection, doomed)
    gone = {step.id for step in doomed}
    return tuple(image for image in standing if image.id not in gone)


def is_seen_as(image: SiteImage, visibility: str) -> bool:
    """Whether an image has that visibility.  A private one may be shared with some projects, and stays so."""
    return image.visibility == visibility or (
        image.visibility == Visibility.SHARED and visibility == Visibility.PRIVATE
    )


def set_visibility(run: SiteRun, connection: "Connection", image: SiteImage) -> SiteImage:
    """Give an image the first of the visibilities asked for that the site allows."""
    refusals = []
    for visibility in run.options.visibility:
        run.go_on()
        if is_seen_as(image, visibility):
            return image
        try:
            image = catalog.change(connection, image.id, Change(visibility=str(visibility)))
        except catalog.Refused as error:
            refusals.append(str(visibility))
            logger.debug("%s", error)
            continue
        if refusals:
            run.warn(f"refused to make the image {' or '.join(refusals)}; it is {visibility}")
        return image
    raise SiteError(
        f"{run.site.name} refuses to make the image {' or '.join(refusals)}",
        hint="allow another visibility (--visibility), for example community",
    )


def swap(run: SiteRun, connection: "Connection", image_id: str, *, over: str | None = None) -> None:
    """Give the public name to a checked image.  Once begun it is brought to an end, whatever is asked meanwhile.

    ``over``: the id of the image that had the name when the run began, "" for none; where it is another's by now
    Overtaken is raised, and nothing is done.
    """
    with exclusive(run):
        # Read again under the lock: what stands may have changed during the upload; it also warms the connection.
        standing = look(run, connection)
        _check_whole(run, connection, standing)
        holders = {image.id for image in standing if image.name == run.image_name}
        if over is not None and holders - {over, image_id}:
            raise _overtaken(run, standing)
        plan = plan_for(run, standing, new=image_id)
        with run.lock:
            run.go_on()
            run.swapping, run.word = True, "swapping"
        try:
            do_steps(run, connection, plan.swap)
        except SageError as error:
            _finish_swap(run, connection, image_id, error)
        with run.lock:
            run.staging, run.swapping = None, False


def _check_whole(run: SiteRun, connection: "Connection", standing: Sequence[SiteImage]) -> None:
    """Raise where the list of our images lacks one of the public name that the site lists by its name.

    A swap that did not know of it would make two.
    """
    known = {image.id for image in standing}
    for image in catalog.name_holders(connection, run.image_name):
        if image.owner == connection.current_project_id and catalog.TAG in image.tags and image.id not in known:
            raise catalog.BadListing(
                f"{run.site.name} lists {image.id} by the name {run.image_name}, and not among our images",
                hint="run this again; if it says the same, the site's list of images is broken",
            )


def _finish_swap(run: SiteRun, connection: "Connection", image_id: str, error: SageError) -> None:
    """A call failed in the middle: go on from what stands, or undo; raises where neither can be done."""
    name = run.image_name
    for attempt in range(_REPAIRS):
        time.sleep(FIRST_REPAIR * 2**attempt)
        try:
            standing = look(run, connection)
            # Should the site refuse to go on, the last attempt undoes instead.
            new = image_id if attempt < _REPAIRS - 1 else None
            do_steps(run, connection, plan_for(run, standing, new=new).swap)
            if new is not None:
                run.warn(f"the swap needed a second attempt ({error})")
                return
        except SageError as again:
            error = again
    current = None
    with contextlib.suppress(SageError):
        current = rotation.current_of(look(run, connection), name)
    if current is not None and current.id == image_id:
        return
    hint = "run this again: it repairs what stands there" if current is None else "the image before still stands"
    raise SiteError(f"{run.site.name}: the swap failed: {error}", hint=hint) from error


def retain(run: SiteRun, connection: "Connection", image_id: str) -> None:
    """Delete what is too old, by a new listing, and only when that shows the site as it should be.

    Raises Overtaken where the name is another's by now.
    """
    standing = look(run, connection)
    plan = plan_for(run, standing, keep=run.options.keep)
    if plan.swap:  # another publisher was at work at the same time
        do_steps(run, connection, plan.swap)
        standing = look(run, connection)
    current = rotation.current_of(standing, run.image_name)
    if current is None or current.id != image_id:
        raise _overtaken(run, standing)
    if not plan.swap:
        delete_steps(run, connection, plan.deletions)


def _taken(run: SiteRun, image: SiteImage) -> Overtaken:
    return Overtaken(f"{run.site.name}: another run has changed {image.name} ({image.id}) meanwhile; it stays")


def _overtaken(run: SiteRun, standing: Sequence[SiteImage]) -> Overtaken:
    current = rotation.current_of(standing, run.image_name)
    who = f"; {current.id} of {current.publisher or 'an unknown run'} has it" if current else ""
    return Overtaken(
        f"{run.site.name}: another run gave the name {run.image_name} away at the same time{who}",
        hint="look whether that is as it should be, then run this again",
    )


def delete_steps(run: SiteRun, connection: "Connection", steps: Sequence[rotation.Retire | rotation.Delete]) -> None:
    """Delete; what can't be (in use, or protected meanwhile) is told and left to a later run."""
    failed = set()
    for step in steps:
        if step.id in failed:
            continue
        try:
            do_steps(run, connection, [step])
        except SiteUnreachable:
            raise
        except SiteError as error:
            failed.add(step.id)
            run.done.pop()
            run.warn(f"{step.name} ({step.id}) can't be deleted now: {error}")


def do_steps(run: SiteRun, connection: "Connection", steps: Sequence[rotation.Step]) -> None:
    """Do the steps in order, after they were written into the journal.

    What is to be retired or deleted is looked at once more just before: raises Overtaken where it is no longer what
    the plan was made for.
    """

    def begin(step: rotation.Step) -> None:
        logger.info("%s: %s", run.site.name, step)
        run.done.append(str(step))
        if isinstance(step, rotation.Retire | rotation.Delete):
            with contextlib.suppress(catalog.Gone):
                image = catalog.get(connection, step.id)
                if not rotation.may_go(step, image):
                    raise _taken(run, image)

    def change(image_id: str, wanted: Change) -> None:
        image = catalog.change(connection, image_id, wanted)
        if image.state == ImageState.RETIRED and image.name == run.image_name:
            # Promoted between the look and the request, which has hidden it: Glance knows no condition for a change.
            catalog.change(
                connection, image_id, Change(hidden=False, properties={"sage_state": str(ImageState.CURRENT)})
            )
            raise _taken(run, image)

    def delete(image_id: str) -> None:
        catalog.delete(connection, image_id)
        run.seen.pop(image_id, None)

    with exclusive(run) as journal:
        if steps:
            promoted = [step.id for step in steps if isinstance(step, rotation.Promote)]
            journal.write([str(step) for step in steps], promoted[0] if promoted else run.staging)
        rotation.execute(steps, change=change, delete=delete, on_step=begin)


def note(run: SiteRun, step: str, image_id: str) -> None:
    """Write into the journal what is about to be done, which is no step of a plan."""
    with exclusive(run) as journal:
        journal.write([step], image_id)


def plan_for(
    run: SiteRun, standing: Sequence[SiteImage], *, new: str | None = None, keep: int | None = None
) -> rotation.Plan:
    """The planner's answer.  Where something is to be deleted, the site is asked what is in use and what time it is."""
    dead = run.journal.dead if run.journal is not None else frozenset()
    facts: dict[str, Any] = {"new": new, "dead": dead, "keep_younger": run.options.keep_younger}
    plan = plan_of(run.image_name, standing, keep=keep, **facts)
    if plan.deletions:
        connection = connected(run.connection)
        doomed = {step.id for step in plan.deletions}
        # All that may be deleted are asked about: one that is in use takes the place of another among those kept.
        old = [image for image in standing if image.id in doomed or image.state in _OLD]
        try:
            used = in_use.needed(connection, old)
        except SageError as error:
            run.warn(f"no old image is deleted, for what is in use can't be told: {error}")
            used, keep = {}, None
        plan = plan_of(
            run.image_name, standing, keep=keep, in_use=used, site_time=catalog.site_time(connection), **facts
        )
    for note in plan.notes:
        if run.staging is None or run.staging not in note:
            run.warn(note)
    return plan


def plan_of(
    image_name: str,
    standing: Sequence[SiteImage],
    *,
    new: str | None = None,
    keep: int | None = None,
    keep_younger: timedelta = timedelta(0),
    in_use: Mapping[str, str] | None = None,
    site_time: datetime | None = None,
    dead: Collection[str] = (),
) -> rotation.Plan:
    """The planner's answer, with what is known here of the publishers of what stands; those in ``dead`` are dead."""
    named = {image.publisher for image in standing if image.publisher}
    publishers = {name: False if name in dead else publisher.lives(name) for name in named}
    return rotation.plan(
        image_name,
        standing,
        new=new,
        keep=keep,
        keep_younger=keep_younger,
        in_use=in_use,
        now=datetime.now(timezone.utc),
        site_time=site_time,
        publishers={name: lives for name, lives in publishers.items() if lives is not None},
    )


def may_be_promoted(image: SiteImage, dead: Collection[str] = ()) -> bool:
    """Whether an image that stands can be used as it is: it was checked, and no other run is about to use it."""
    if image.state in (ImageState.PREVIOUS, ImageState.RETIRED):
        return True
    if image.state != ImageState.CANDIDATE:
        return False
    # No publisher: given up, for whoever comes next.
    return not image.publisher or image.publisher in dead or publisher.lives(image.publisher) is False


def drop_staging(run: SiteRun, connection: "Connection") -> None:
    """Delete the temporary image, if there is one that has not got the name; where that fails, it is told."""
    try:
        delete_staging(run, connection)
    except SageError as error:
        run.warn(f"the temporary image {run.staging} could not be deleted ({error}); the next run does it")


def delete_staging(run: SiteRun, connection: "Connection") -> None:
    """Delete the temporary image, if there is one that has not got the name."""
    with run.lock:
        image_id = run.staging
    if image_id is None:
        return
    with contextlib.suppress(catalog.Gone):
        image = catalog.get(connection, image_id)
        if image.state == ImageState.CURRENT or image.publisher != publisher.identity():
            logger.debug("%s has the name, or is another run's; it stays", image_id)
        else:
            catalog.delete(connection, image_id)
    with run.lock:
        run.staging = None


def problem_of(site: Site, error: Exception) -> Problem:
    ours = error if isinstance(error, SageError) else cloud.explain(site.name, error)
    return Problem(str(ours), ours.hint, isinstance(ours, InputError), isinstance(ours, CanaryInconclusive))


@contextlib.contextmanager
def exclusive(run: SiteRun) -> Iterator[Journal]:
    """Hold this machine's lock on the name at the site, so that its runs take turns; gives the journal.

    Within such a block it is the same one.  The journal's entry goes when all that it tells of is done or undone.
    """
    if run.journal is not None:
        yield run.journal
        return
    with journal.opened(run.options.state or journal.default_folder(), run.site, run.image_name) as opened:
        run.journal = opened
        if opened.left is not None:
            run.warn(f"an earlier run was cut off: {opened.left}")
        repaired = False
        try:
            yield opened
            repaired = True
        finally:
            run.journal = None
            # What an earlier run left is known to be repaired only when this one came to its end.
            if run.staging is None and not run.swapping and (repaired or opened.left is None):
                opened.clear()

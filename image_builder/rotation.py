# SPDX-License-Identifier: Apache-2.0
"""From what stands at a site to what is to be done there: the swap of the public name, its repair, retention.

The planner is pure: images in, steps out.  Glance can't change two images in one call, so a swap has three:
hide the old image with its name kept, give the new one the name, then show the old one under its back-dated
name.  At every moment one image has the public name, listed or hidden, and never two are listed; the OpenStack
SDK and the ``openstack`` command also find a hidden one by its name.  No record is needed to go on after a kill:
what stands at the site tells how far the swap had come, on whatever machine the next run is.

===================================  ==================================================================
what stands                          what it means and what is planned
===================================  ==================================================================
one listed holder of the name        all is well
listed holder, hidden holder         died after the new image was shown: back-date the hidden one
no listed holder, a hidden one       died before: show it again (or, when it is to be replaced, go on)
two listed holders                   two publishers at once, or a hand: back-date the one promoted before
staging or candidate, none holds it  died during the upload: delete, once its publisher is surely dead
retired                              died before the deletion: delete, or show again what is in use by now
failed                               its canary said so: the newest two are kept
===================================  ==================================================================
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from groundwork.errors import SageError
from image_builder.catalog import TAG, Change, ImageState, SiteImage

KEEP_FAILED = 2  # images whose canary failed, kept for a look at them
LEFTOVER_AGE = timedelta(hours=6)  # a staging image older than this is left over, where its publisher is unknown
UPLOAD_MARGIN = timedelta(hours=1)  # from the end of an upload's deadline on nobody works on its image any more
CLOCK_TOLERANCE = timedelta(minutes=5)  # how far clocks may differ before ages are not believed

_SETTLED = ("active", "deactivated")  # Glance's statuses of an image that has its data
CHECKED = (ImageState.CANDIDATE, ImageState.CURRENT, ImageState.PREVIOUS, ImageState.RETIRED)  # their data, that is


class NameConflict(SageError):
    """An image that is not ours to move has the public name."""


class Paused(SageError):
    """An image that would have to be changed is paused."""


@dataclass(frozen=True)
class Hide:
    """First call of a swap: the old image is no longer listed; it keeps its name."""

    id: str
    name: str

    def __str__(self) -> str:
        return f"hide {self.name} ({self.id}), its name kept"


@dataclass(frozen=True)
class Show:
    """Undo of :class:`Hide`."""

    id: str
    name: str

    def __str__(self) -> str:
        return f"show {self.name} ({self.id}) again: an earlier run ended in the middle of a swap"


@dataclass(frozen=True)
class Promote:
    """Second call of a swap: the image gets the public name, is listed and is the current one, all at once."""

    id: str
    name: str
    old_name: str
    at: str

    def __str__(self) -> str:
        return f"give the name {self.name} to {self.id} (was {self.old_name})"


@dataclass(frozen=True)
class BackDate:
    """Third call of a swap: the old image gets its back-dated name and is listed again."""

    id: str
    name: str
    old_name: str

    def __str__(self) -> str:
        return f"back-date {self.old_name} ({self.id}) to {self.name}"


@dataclass(frozen=True)
class Settle:
    """The property ``sage_state`` gets the value that the image's name tells."""

    id: str
    name: str
    state: ImageState

    def __str__(self) -> str:
        return f"mark {self.name} ({self.id}) as {self.state}"


@dataclass(frozen=True)
class Retire:
    """First call of a deletion: the image is no longer listed, and marked, so that any run can finish."""

    id: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"retire {self.name} ({self.id}): {self.reason}"


@dataclass(frozen=True)
class Delete:
    """Delete an image of ours that no reader sees (any more).  ``publisher``: whose it was when that was planned."""

    id: str
    name: str
    reason: str
    publisher: str = ""

    def __str__(self) -> str:
        return f"delete {self.name} ({self.id}): {self.reason}"


@dataclass(frozen=True)
class Mark:
    """Properties of ours get other values; its name and its place in lists stay.  ``why`` begins with a verb."""

    id: str
    name: str
    properties: Mapping[str, str]
    why: str

    def __str__(self) -> str:
        return f"{self.why} {self.name} ({self.id})"


@dataclass(frozen=True)
class Adopt:
    """An image that another program made becomes one of ours: tags, properties and, where it is another, its name."""

    id: str
    name: str
    old_name: str
    tags: tuple[str, ...]
    properties: Mapping[str, str]

    def __str__(self) -> str:
        renamed = f" as {self.name}" if self.name != self.old_name else ""
        return f"adopt {self.old_name} ({self.id}){renamed}"


Step = Hide | Show | Promote | BackDate | Settle | Mark | Adopt | Retire | Delete


@dataclass(frozen=True)
class Plan:
    """What to do, in this order; ``notes``: what a person should know of."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    @property
    def swap(self) -> tuple[Step, ...]:
        """The steps that move names."""
        return tuple(step for step in self.steps if not isinstance(step, Retire | Delete))

    @property
    def deletions(self) -> tuple[Retire | Delete, ...]:
        """The steps that delete."""
        return tuple(step for step in self.steps if isinstance(step, Retire | Delete))


def plan(
    image_name: str,
    standing: Sequence[SiteImage],
    *,
    new: str | None = None,
    keep: int | None = None,
    keep_younger: timedelta = timedelta(0),
    in_use: Mapping[str, str] | None = None,
    now: datetime,
    site_time: datetime | None = None,
    publishers: Mapping[str, bool] | None = None,
) -> Plan:
    """What leads from ``standing`` to one listed image of the public name and nothing left over.

    ``standing``: all images of ours at one site, as :func:`image_builder.catalog.list_ours` gives them.
    ``new``: the id of the one among them (checked, and with its visibility set) that shall have the name; None
    repairs and tidies only.  ``keep``: how many images stay, the current one included; None deletes no finished
    image.  ``keep_younger``: those built within this time stay too.  ``in_use``: ids of images that stay -> why.
    ``now``, ``site_time``: this machine's clock and the site's, where that is known.  ``publishers``: publishers whose
    life can be judged -> whether they live.

    A paused image is not renamed, hidden or deleted, except to end a swap that was begun.  Raises NameConflict where
    an image has the name that this version does not know how to move, and Paused where ``new`` or the image that has
    the name is paused.
    """
    ours = [image for image in standing if _is_ours(image) and image.image_name == image_name]
    holders = [image for image in ours if image.name == image_name]
    _check_holders(image_name, holders)
    chosen = next((image for image in ours if image.id == new), None)
    if new is not None and (chosen is None or chosen.status != "active" or chosen.state not in CHECKED):
        raise NameConflict(f"{new} can't get the name {image_name}: it does not stand there whole and checked")

    namer = _Namer(image_name, ours)
    listed = [image for image in holders if not image.hidden]
    best = max(listed or holders, key=_rank, default=None)
    steps: list[Step] = []
    notes: list[str] = []
    if chosen is not None and chosen in listed:
        best = chosen
    if chosen is not None and chosen != best:
        for moved in (chosen, best):
            if moved is not None and moved.paused:
                raise Paused(
                    f"{moved.name} ({moved.id}) is paused: it keeps its name",
                    hint="sage-image unpause IMAGE, or SITE where the whole site is paused, lets it go",
                )
    # Whatever holds the name beside the best is moved first, so that names are unique when the swap begins.
    extras = [image for image in holders if image not in (best, chosen)]
    if chosen is not None and chosen in holders and chosen != best:
        extras.append(chosen)  # hidden: else two hidden ones would have the name in the middle of the swap
    steps += [BackDate(image.id, namer.dated(image), image.name) for image in extras]
    current = best
    if chosen is not None and chosen != best:
        if best is not None and not best.hidden:
            steps.append(Hide(best.id, best.name))
        steps.append(Promote(chosen.id, image_name, chosen.name, after(ours, now)))
        if best is not None:
            steps.append(BackDate(best.id, namer.dated(best), best.name))
        current = chosen
    elif best is not None:
        if best.hidden:
            steps.append(Show(best.id, best.name))
        if best.state != ImageState.CURRENT:
            steps.append(Settle(best.id, best.name, ImageState.CURRENT))

    doubt = _doubt_of_clock(ours, now, site_time)
    spared = {image.id: why for image in ours if (why := _why_spared(image, current, in_use or {}))}
    previous = [image for image in holders if image != current]
    failed: list[SiteImage] = []
    for image in ours:
        if image in holders or image == current:
            continue
        if image.state in (ImageState.PREVIOUS, ImageState.RETIRED) and not has_dated_name(image):
            notes.append(f"{image.name} ({image.id}) has been renamed by hand; left alone")
        elif image.state == ImageState.PREVIOUS:
            previous.append(image)
        elif image.state == ImageState.RETIRED:
            if image.id in spared and not image.paused:
                steps.append(BackDate(image.id, image.name, image.name))
                notes.append(f"{image.name} ({image.id}) was about to be deleted; shown again: {spared[image.id]}")
                previous.append(image)
            elif image.id not in spared and keep is not None and current is not None and doubt is None:
                steps += _away(image, "an earlier run had retired it")
        elif image.state == ImageState.CURRENT:
            notes.append(f"{image.name} ({image.id}) was the current one and has been renamed by hand; left alone")
        elif image.state in (ImageState.STAGING, ImageState.CANDIDATE):
            reason = left_over(image, now, publishers or {})
            if reason and doubt is None and image.id not in spared:
                steps.append(Delete(image.id, image.name, reason, image.publisher))
            elif image.paused:
                notes.append(f"{image.name} ({image.id}) is paused; left alone")
            else:
                notes.append(f"{image.name} ({image.id}) is being uploaded by {image.publisher or 'another run'}")
        elif image.state == ImageState.FAILED:
            failed.append(image)
        else:
            notes.append(f"{image.name} ({image.id}) has the unknown state {image.state!r}; left alone")
    if current is None and previous:
        notes.append(f"no image has the name {image_name}; only back-dated ones stand here")
    if doubt is not None:
        notes.append(f"{doubt}; nothing is deleted")
    elif keep is not None and current is not None and current.status in _SETTLED:
        steps += _retention(previous, keep, now - keep_younger, spared, notes)
        steps += _old_failures(failed, spared)
    return Plan(tuple(steps), tuple(notes))


def current_of(standing: Sequence[SiteImage], image_name: str) -> SiteImage | None:
    """The image that has the public name and is listed, or None where there is none, or more than one."""
    listed = [image for image in standing if image.name == image_name and not image.hidden]
    return listed[0] if len(listed) == 1 else None


def is_current(image: SiteImage) -> bool:
    """Whether it has its public name and is listed."""
    return image.name == image.image_name and not image.hidden


def may_go(step: Retire | Delete, image: SiteImage) -> bool:
    """Whether an image, as it stands now, is still what was to be retired or deleted when that was planned.

    Another run may have promoted it since, or have taken it over for itself.
    """
    if image.name == image.image_name or image.state == ImageState.CURRENT or image.protected or image.paused:
        return False
    if isinstance(step, Retire):
        return image.state in (ImageState.PREVIOUS, ImageState.RETIRED, ImageState.FAILED)
    return image.state != ImageState.PREVIOUS and image.publisher == step.publisher


def change_of(step: Step) -> Change | None:
    """The one request that makes a step, or None where it is a deletion."""
    if isinstance(step, Hide):
        return Change(hidden=True)
    if isinstance(step, Show):
        return Change(hidden=False)
    if isinstance(step, Promote):
        properties = {"sage_state": str(ImageState.CURRENT), "sage_promoted_at": step.at}
        return Change(name=step.name, hidden=False, properties=properties)
    if isinstance(step, BackDate):
        return Change(name=step.name, hidden=False, properties={"sage_state": str(ImageState.PREVIOUS)})
    if isinstance(step, Settle):
        return Change(properties={"sage_state": str(step.state)})
    if isinstance(step, Retire):
        return Change(hidden=True, properties={"sage_state": str(ImageState.RETIRED)})
    if isinstance(step, Mark):
        return Change(properties=step.properties)
    if isinstance(step, Adopt):
        return Change(name=step.name, hidden=False, tags=step.tags, properties=step.properties)
    return None


def execute(
    steps: Sequence[Step],
    *,
    change: Callable[[str, Change], object],
    delete: Callable[[str], object],
    on_step: Callable[[Step], None] = lambda step: None,
) -> None:
    """Do the steps in order; ``on_step`` is told of each before it is done.  The first that fails ends it."""
    for step in steps:
        on_step(step)
        wanted = change_of(step)
        if wanted is None:
            delete(step.id)
        else:
            change(step.id, wanted)


def dated_name(image_name: str, built_at: str) -> str:
    """``Sage-Ubuntu24.04-20261120T031500Z``.  Raises ValueError where ``built_at`` is no time."""
    return f"{image_name}-{parse_time(built_at):%Y%m%dT%H%M%SZ}"


def failed_name(image_name: str, at: datetime) -> str:
    """``Sage-Ubuntu24.04-failed-20261120T041500Z``: the name of a candidate whose canary failed, and when."""
    return f"{image_name}-failed-{at.astimezone(timezone.utc):%Y%m%dT%H%M%SZ}"


def timestamp(moment: datetime) -> str:
    """UTC, RFC 3339; to the microsecond, for two swaps may follow within a second."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _Namer:
    """Back-dated names, each given once."""

    def __init__(self, image_name: str, ours: Sequence[SiteImage]) -> None:
        self._image_name = image_name
        self._taken = {image.name: image.id for image in ours}

    def dated(self, image: SiteImage) -> str:
        """The name for an image; of two built in one second the later to come gets its id's beginning as well."""
        try:
            name = dated_name(self._image_name, image.built_at)
        except ValueError:  # a hand spoilt the property; Glance's own time is near enough
            name = dated_name(self._image_name, image.created_at)
        if self._taken.setdefault(name, image.id) != image.id:
            name = f"{name}-{image.id[:8]}"
            self._taken[name] = image.id
        return name


def _is_ours(image: SiteImage) -> bool:
    return TAG in image.tags and bool(image.state)


def has_dated_name(image: SiteImage) -> bool:
    """Whether its name is its public name with a time behind it, as this program gives it."""
    return re.fullmatch(re.escape(image.image_name) + r"-\d{8}T\d{6}Z(-[0-9a-f]{8})?", image.name) is not None


def _check_holders(image_name: str, holders: Sequence[SiteImage]) -> None:
    for image in holders:
        if image.state not in CHECKED:
            raise NameConflict(
                f"{image.id} has the name {image_name} and the state {image.state!r}, which should not be",
                hint="a later version of this program, or a hand, made it so: rename the image or use that version",
            )


def _rank(image: SiteImage) -> tuple[bool, str, str, str, str]:
    """Of two that hold the name, the one promoted last counts; one without data never before one with."""
    return (image.status in _SETTLED, image.promoted_at, image.built_at, image.created_at, image.id)


def after(ours: Sequence[SiteImage], now: datetime) -> str:
    """The time of a promotion or withdrawal: later than any before at this site, whatever this machine's clock says."""
    for image in ours:
        for text in (image.promoted_at, image.properties.get("sage_withdrawn_at", "")):
            with contextlib.suppress(ValueError):
                now = max(now, parse_time(text) + timedelta(microseconds=1))
    return timestamp(now)


def _doubt_of_clock(ours: Sequence[SiteImage], now: datetime, site_time: datetime | None) -> str | None:
    """Why ages can't be told, or None."""
    if site_time is not None and abs(now - site_time) > CLOCK_TOLERANCE:
        return f"this machine's clock differs from the site's by {abs(now - site_time).total_seconds():.0f} s"
    for image in ours:
        for text in (image.promoted_at, image.built_at, image.created_at, image.updated_at):
            with contextlib.suppress(ValueError):
                if parse_time(text) > now + CLOCK_TOLERANCE:
                    return f"by this machine's clock {image.name} ({image.id}) is of the future, of {text}"
    return None


def _why_spared(image: SiteImage, current: SiteImage | None, in_use: Mapping[str, str]) -> str | None:
    """Why an image must not be deleted, whatever its age, or None."""
    if image.protected:
        return "it is protected"
    if image.paused:
        return "it is paused"
    if image.withdrawn and current is not None and image.built_at > current.built_at:
        return "it was withdrawn, which tells the next run not to publish that recipe again"
    return in_use.get(image.id)


def left_over(image: SiteImage, now: datetime, publishers: Mapping[str, bool]) -> str | None:
    """Why nobody will finish an upload, or None where somebody may."""
    alive = publishers.get(image.publisher)
    if alive is not None:
        return None if alive else "its upload was killed"
    try:
        if image.until:
            return f"its upload was to end by {image.until}" if now > parse_time(image.until) else None
        age = now - parse_time(image.updated_at)
    except ValueError:
        return None
    return f"its upload ended {age.total_seconds() / 3600:.0f} h ago" if age > LEFTOVER_AGE else None


def _retention(
    previous: Sequence[SiteImage], keep: int, youngest: datetime, spared: Mapping[str, str], notes: list[str]
) -> list[Step]:
    """Away with the previous images beyond the newest ``keep - 1``, the oldest first; none where an age is unknown."""
    ages: dict[str, datetime] = {}
    for image in previous:
        try:
            ages[image.id] = parse_time(image.built_at)
        except ValueError:
            notes.append(f"{image.name} ({image.id}) does not tell when it was built; no old image is deleted")
            return []
    oldest_last = sorted(previous, key=lambda image: (ages[image.id], image.created_at, image.id), reverse=True)
    steps: list[Step] = []
    for image in reversed(oldest_last[max(keep, 1) - 1 :]):
        if image.id not in spared and ages[image.id] <= youngest:
            steps += _away(image, f"older than the newest {keep}")
        elif image.id in spared and not image.protected and not image.paused and not image.withdrawn:
            notes.append(f"{image.name} ({image.id}) stays: {spared[image.id]}")
    return steps


def _away(image: SiteImage, reason: str) -> list[Step]:
    retired = image.hidden and image.state == ImageState.RETIRED
    delete = Delete(image.id, image.name, reason, image.publisher)
    return [delete] if retired else [Retire(image.id, image.name, reason), delete]


def _old_failures(failed: Sequence[SiteImage], spared: Mapping[str, str]) -> list[Step]:
    """Away with those whose canary failed, beyond the newest; what a hand has shown is hidden first."""
    newest_first = sorted(failed, key=lambda image: (image.failed_at, image.created_at), reverse=True)
    doomed = [image for image in newest_first[KEEP_FAILED:] if image.id not in spared]
    reason = f"its canary failed, and so did those of the newest {KEEP_FAILED}"
    steps: list[Step] = []
    for image in reversed(doomed):
        delete = Delete(image.id, image.name, reason, image.publisher)
        steps += [delete] if image.hidden else _away(image, reason)
    return steps


def parse_time(text: str) -> datetime:
    """A time as images' properties have it; UTC where it does not say.  Raises ValueError."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)

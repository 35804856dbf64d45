# SPDX-License-Identifier: Apache-2.0
"""Pure: what stands at one site + what is asked of it -> what is to be done to each public name there.

A rollback and a promotion are swaps, planned by :mod:`image_builder.rotation`; the rest are properties and deletions.
``ours`` is all of one site's images of ours, ``standing`` those of one public name, as
:func:`image_builder.catalog.list_ours` gives them; ``now`` is UTC.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from groundwork.compat import StrEnum
from groundwork.errors import InputError, nearest
from image_builder import rotation
from image_builder.catalog import TAG, ImageState, SiteImage
from image_builder.rotation import Adopt, BackDate, Mark, Plan, Step

PAUSED, SITE_PAUSED = "sage_paused", "sage_site_paused"  # "yes" or ""
WITHDRAWN = "sage_withdrawn_at"

Planner = Callable[..., Plan]  # rotation.plan with what the caller knows: (image_name, standing, new=, keep=)


_DATED = re.compile(r"(.+)-\d{8}T\d{6}Z(-[0-9a-f]{8})?")


class Command(StrEnum):
    """What can be asked of what stands at sites."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    PRUNE = "prune"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    ADOPT = "adopt"
    SHARE = "share"


@dataclass(frozen=True)
class Request:
    """What is asked of each site.

    ``word``: an image, by id or name; for ``rollback`` and ``prune`` a public name (None: all of them); None for a
    pause of the whole site.  ``image_name``: the public name that an adopted image gets.  ``projects`` are added,
    ``removed`` taken away by ``share``.
    """

    command: Command
    word: str | None = None
    to: datetime | None = None
    keep: int = 3
    older_than: timedelta | None = None
    image_name: str | None = None
    projects: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class Absent(InputError):
    """The image does not stand at this site, nor any of its public name: other sites may be meant."""


@dataclass(frozen=True)
class NamePlan:
    """What is to be done to the images of one public name at one site, in this order.

    ``new``: the image that the plan gives the public name, or None.
    """

    image_name: str
    plan: Plan
    new: SiteImage | None = None


def find(word: str, ours: Sequence[SiteImage]) -> SiteImage:
    """The image that a person means: by id, by its name as it stands (back-dated, temporary) or by the public name.

    Raises InputError for none, with the nearest, and for several, with their ids.
    """
    by_id = [image for image in ours if image.id == word.lower()]
    named = by_id or [image for image in ours if image.name == word]
    if len(named) > 1:  # in the middle of a swap, or two that a hand named alike
        named = [image for image in named if image.name == image.image_name and not image.hidden] or named
    if len(named) == 1:
        return named[0]
    if named:
        raise InputError(f"{len(named)} images have the name {word}", hint=f"name one by its id: {_ids(named)}")
    if any(image.image_name == word for image in ours):
        raise InputError(f"no image has the name {word}", hint=f"there stand: {_names(ours, word)}")
    known = {name for image in ours for name in (image.name, image.image_name)}
    kind = InputError if public_name(word) in image_names(ours) else Absent
    raise kind(f"there is no image {word!r} of ours", hint=nearest(word, known) or "no image of ours stands")


def image_names(ours: Iterable[SiteImage]) -> list[str]:
    """The public names of what stands, in order."""
    return sorted({image.image_name for image in ours})


def public_name(name: str) -> str:
    """A back-dated name without its time; any other as it is."""
    dated = _DATED.fullmatch(name)
    return dated.group(1) if dated else name


def promotion(image: SiteImage, standing: Sequence[SiteImage], *, planner: Planner, now: datetime) -> NamePlan:
    """``image``, a candidate or a previous one, becomes the current one.

    Where it is older than the one that it replaces, that one is withdrawn: publishing does not bring it back.  Raises
    InputError where the image may not have the name.
    """
    _check_promotable(image)
    name = image.image_name
    steps = planner(name, standing, new=image.id).swap
    current = rotation.current_of(standing, name)
    if current is None or current.id == image.id or not _is_older(image, current):
        return NamePlan(name, Plan(steps), image)
    mark = Mark(current.id, current.name, {WITHDRAWN: rotation.after(standing, now)}, "withdraw")
    return NamePlan(name, Plan((mark, *steps)), image)


def rollback(
    image_name: str, standing: Sequence[SiteImage], *, to: datetime | None = None, planner: Planner, now: datetime
) -> NamePlan:
    """The build before the current one becomes the current one; with ``to`` the newest built by then.

    What an earlier rollback withdrew is passed over.  Raises InputError where nothing is left, and tells what stands.
    """
    current = rotation.current_of(standing, image_name)
    able = [image for image in standing if image.state == ImageState.PREVIOUS and rotation.has_dated_name(image)]
    able = [image for image in able if image.status == "active" and not image.withdrawn]
    if to is not None:
        able = [image for image in ([current] if current else []) + able if _built(image) <= to]
    elif current is not None:
        able = [image for image in able if _is_older(image, current)]
    target = max(able, key=lambda image: (_built(image), image.created_at, image.id), default=None)
    if target is None:
        limit = f"built by {to:%Y-%m-%dT%H:%M:%SZ}" if to else "older than the current one"
        stand = _names(standing, image_name)
        raise InputError(
            f"no build of {image_name} {limit} stands to roll back to",
            hint=f"there stand: {stand}" if stand else "no image of this name stands",
        )
    if current is not None and target.id == current.id:
        return NamePlan(image_name, Plan(()), target)
    made = promotion(target, standing, planner=planner, now=now)
    between = [
        image for image in standing if image.withdrawn and to is not None and _built(target) < _built(image) <= to
    ]
    notes = tuple(f"{image.name} ({image.id}) was withdrawn; it is passed over" for image in between)
    return replace(made, plan=replace(made.plan, notes=notes))


def pruning(
    image_name: str,
    standing: Sequence[SiteImage],
    *,
    keep: int,
    older_than: timedelta | None = None,
    planner: Planner,
    now: datetime,
) -> NamePlan:
    """Delete what is beyond the newest ``keep``, the current one included, and older than ``older_than``."""
    made = planner(image_name, standing, keep=keep)
    by_id = {image.id: image for image in standing}
    # What was about to be deleted and is in use by now is shown again.
    steps: list[Step] = [step for step in made.swap if isinstance(step, BackDate)]
    notes = list(made.notes)
    for step in made.deletions:
        image = by_id[step.id]
        if image.state != ImageState.PREVIOUS or older_than is None or now - _built(image) > older_than:
            steps.append(step)
    doomed = {step.id for step in steps}
    for image in sorted(standing, key=lambda image: image.name):
        if image.state == ImageState.PREVIOUS and image.id not in doomed:
            why = "protected" if image.protected else "paused" if image.paused else None
            notes += [f"{image.name} ({image.id}) is {why}; it stays"] if why else []
    return NamePlan(image_name, Plan(tuple(steps), tuple(notes)))


def pausing(images: Sequence[SiteImage], *, key: str, paused: bool) -> list[NamePlan]:
    """Images, or with ``key`` SITE_PAUSED the whole site by them, are paused or go on; those that are so already
    need nothing."""
    word, value = ("pause", "yes") if paused else ("unpause", "")
    changed = [image for image in images if bool(image.properties.get(key)) != paused]
    return [
        NamePlan(image.image_name, Plan((Mark(image.id, image.name, {key: value}, word),)))
        for image in sorted(changed, key=lambda image: image.name)
    ]


def marked(ours: Sequence[SiteImage], *, paused: bool) -> list[SiteImage]:
    """The images that carry, or are to carry, the mark of a paused site.  Raises InputError where none can."""
    if not paused:
        return [image for image in ours if image.properties.get(SITE_PAUSED)]
    current = [image for image in ours if image.state == ImageState.CURRENT]
    if not current:
        raise InputError(
            "no current image of ours stands, which would carry the mark",
            hint="a site is paused by a property of its current images; publish one first",
        )
    return current


def adoption(
    image: SiteImage, ours: Sequence[SiteImage], *, owner: str, image_name: str | None = None, now: datetime
) -> NamePlan:
    """An image of this project (``owner``) that another program made comes under our care.

    It becomes the current one of ``image_name`` where it has just that name, else a previous one with a back-dated
    name.  ``image_name`` is, where None, its own name, without the time if it has one.  Raises InputError where it may
    not be ours.
    """
    _check_adoptable(image, owner)
    name = image_name or public_name(image.name)
    if TAG in image.tags and image.state:
        if image_name is not None and image.image_name != name:
            raise InputError(f"{image.name} ({image.id}) is ours already, with the public name {image.image_name}")
        return NamePlan(image.image_name, Plan(()))
    current = next((other for other in ours if other.name == name and other.id != image.id), None)
    if image.name == name and current is not None:
        raise InputError(
            f"{current.id} has the name {name} already; with {image.id} there would be two",
            hint=f"rename {image.id} first: openstack image set --name {name}-old {image.id}",
        )
    built = _time_or_none(image.properties.get("build-timestamp", "")) or rotation.parse_time(image.created_at)
    properties = {
        "sage_state": str(ImageState.CURRENT if image.name == name else ImageState.PREVIOUS),
        "sage_image_name": name,
        "sage_build_id": image.properties.get("build-tag", ""),
        "sage_recipe_digest": "",
        "sage_built_at": built.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "sage_variant": image.properties.get("build-variant", ""),
        "sage_release": image.properties.get("build-release", ""),
        "sage_sha512": image.os_hash_value or "",
        "sage_adopted_at": rotation.timestamp(now),
    }
    if image.name == name:
        properties["sage_promoted_at"] = properties["sage_adopted_at"]
    new_name = image.name
    if image.name != name:
        new_name = rotation.dated_name(name, properties["sage_built_at"])
        if any(other.name == new_name and other.id != image.id for other in ours):
            new_name = f"{new_name}-{image.id[:8]}"
    step = Adopt(image.id, new_name, image.name, (*image.tags, TAG), properties)
    return NamePlan(name, Plan((step,)))


def applied(standing: Sequence[SiteImage], steps: Iterable[Step]) -> list[SiteImage]:
    """What stands after the steps."""
    after = {image.id: image for image in standing}
    for step in steps:
        wanted = rotation.change_of(step)
        if wanted is None:
            after.pop(step.id, None)
        elif step.id in after:
            image = after[step.id]
            after[step.id] = replace(
                image,
                name=image.name if wanted.name is None else wanted.name,
                hidden=image.hidden if wanted.hidden is None else wanted.hidden,
                tags=image.tags if wanted.tags is None else wanted.tags,
                properties={**image.properties, **wanted.properties},
            )
    return list(after.values())


def difference(before: Sequence[SiteImage], steps: Sequence[Step]) -> tuple[str, ...]:
    """What the steps change, as the lines of a diff: each image as it stands (``-``) and as it will (``+``)."""
    after = {image.id: image for image in applied(before, steps)}
    lines = []
    order = {step.id: number for number, step in reversed(list(enumerate(steps)))}
    for image in sorted((image for image in before if image.id in order), key=lambda image: order[image.id]):
        old, new = _line(image), _line(after[image.id]) if image.id in after else None
        if old != new:
            lines += [f"- {old}"] + ([f"+ {new}"] if new else [])
    return tuple(lines)


def parse_date(text: str) -> datetime:
    """``2026-11-20`` (its end), ``2026-11-20T03:15:00Z`` or ``20261120T031500Z``, UTC.  Raises InputError."""
    try:
        if re.fullmatch(r"\d{8}T\d{6}Z", text):
            return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return rotation.parse_time(text) + timedelta(days=1, microseconds=-1)
        if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?", text):
            return rotation.parse_time(text)
    except ValueError:  # the 31st of November
        pass
    raise InputError(
        f"expected a date or a time, found {text!r}", hint="as 2026-11-20, 2026-11-20T03:15:00Z or 20261120T031500Z"
    )


def _check_promotable(image: SiteImage) -> None:
    name = f"{image.name} ({image.id})"
    if image.state == ImageState.FAILED:
        raise InputError(
            f"the canary of {name} failed: {image.properties.get('sage_canary_reason', '')}",
            hint="sage-image publish --force tries the build again",
        )
    if image.state not in rotation.CHECKED:
        raise InputError(f"{name} is {image.state or 'of no state'}: only an image that was checked can be promoted")
    if image.status != "active":
        raise InputError(
            f"{name} is {image.status}, so no machine could boot it", hint="openstack image set --activate"
        )
    checked = image.properties.get("sage_sha512") if image.os_hash_algo == "sha512" else image.os_hash_value
    if not image.os_hash_value or image.os_hash_value != checked:
        raise InputError(f"the digest of {name} is not the one that was checked; it is not promoted")


def _check_adoptable(image: SiteImage, owner: str) -> None:
    name = f"{image.name} ({image.id})"
    if image.owner != owner:
        raise InputError(f"{name} is another project's ({image.owner or 'unknown'})")
    if image.properties.get("chameleon-supported") or image.properties.get("build-repo"):
        raise InputError(f"{name} is marked as supported by Chameleon; it is not ours to care for")
    if image.status != "active":
        raise InputError(f"{name} is {image.status}, not active")
    if not image.os_hash_value:
        raise InputError(f"the site gives no digest of {name}", hint="upload it again: then the site makes one")


def _line(image: SiteImage) -> str:
    marks = [str(image.state) or "not ours"]
    marks += ["hidden"] if image.hidden else []
    marks += ["protected"] if image.protected else []
    marks += ["paused"] if image.properties.get(PAUSED) else []
    marks += ["site paused"] if image.properties.get(SITE_PAUSED) else []
    marks += ["withdrawn"] if image.withdrawn else []
    return f"{image.name}  {image.id}  {', '.join(marks)}"


def _is_older(image: SiteImage, other: SiteImage) -> bool:
    return _built(image) < _built(other)


def _built(image: SiteImage) -> datetime:
    return _time_or_none(image.built_at) or rotation.parse_time(image.created_at)


def _time_or_none(text: str) -> datetime | None:
    try:
        return rotation.parse_time(text)
    except ValueError:
        return None


def _names(standing: Sequence[SiteImage], image_name: str) -> str:
    ours = [image for image in standing if image.image_name == image_name]
    newest_first = sorted(ours, key=lambda image: image.built_at, reverse=True)
    return ", ".join(
        f"{image.name} (built {image.built_at}, {'withdrawn' if image.withdrawn else image.state})"
        for image in newest_first
    )


def _ids(images: Iterable[SiteImage]) -> str:
    return ", ".join(sorted(image.id for image in images))

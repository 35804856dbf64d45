# SPDX-License-Identifier: Apache-2.0
"""Pure: what stands at several sites -> where it is not as it should be, or not as at the others.

What one site alone tells (a swap that is half done, an upload left over) is what the planner of the rotation would
mend there; it is asked, so that this list and the next run are of one mind.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from groundwork.compat import StrEnum
from groundwork.errors import SageError
from image_builder import rotation
from image_builder.catalog import ImageState, SiteImage


class Drift(StrEnum):
    """What is not as it should be."""

    BEHIND = "behind"  # another site's current image is of a newer build
    MISSING = "missing"  # no image has the public name, which one has at another site
    DIFFERS = "differs"  # its bytes are not those that were checked, or not those of the same build elsewhere
    LEFT_OVER = "left-over"  # an upload that nobody will finish, or a deletion that was not brought to its end
    HALF_SWAPPED = "half-swapped"  # a swap ended in its middle; the next run ends it
    HIDDEN_HOLDER = "hidden-holder"  # the public name's only image is hidden
    CONFLICT = "conflict"  # in a state that this version does not know how to mend
    FAILED = "failed"  # its canary did; it is kept for a look at it
    RENAMED = "renamed"  # by hand, so that nothing touches it
    PAUSED = "paused"
    WITHDRAWN = "withdrawn"  # by a rollback; it is not published again


@dataclass(frozen=True)
class Mark:
    """One finding.  ``image_id`` is None where no one image is meant; ``text`` is for people."""

    drift: Drift
    image_name: str
    image_id: str | None
    text: str


Planner = Callable[[str, Sequence[SiteImage]], rotation.Plan]


def marks(standing: Mapping[str, Sequence[SiteImage]], planner: Planner) -> dict[str, tuple[Mark, ...]]:
    """Site -> its findings.

    ``standing``: site -> all its images of ours; sites that could not be asked are left out.  ``planner``: what the
    rotation would do to a public name, without a new image and without deleting finished ones.
    """
    found: dict[str, list[Mark]] = {site: [] for site in standing}
    names = sorted({image.image_name for images in standing.values() for image in images})
    for name in names:
        by_site = {site: [image for image in images if image.image_name == name] for site, images in standing.items()}
        for site, images in by_site.items():
            found[site] += _at_one_site(name, images, planner)
        for site, mark in (*_behind(name, by_site), *_different(name, by_site)):
            found[site].append(mark)
    return {site: tuple(dict.fromkeys(rows)) for site, rows in found.items()}


def _at_one_site(name: str, images: Sequence[SiteImage], planner: Planner) -> list[Mark]:
    found = []
    try:
        steps = planner(name, images).steps if images else ()
    except SageError as error:
        return [Mark(Drift.CONFLICT, name, None, str(error))]
    for step in steps:
        if isinstance(step, rotation.Delete):
            found.append(Mark(Drift.LEFT_OVER, name, step.id, f"{step.name} is left over: {step.reason}"))
        elif isinstance(step, rotation.Show):
            found.append(Mark(Drift.HIDDEN_HOLDER, name, step.id, f"{name} is hidden; the next run shows it"))
        else:
            found.append(Mark(Drift.HALF_SWAPPED, name, step.id, f"a swap is half done; the next run: {step}"))
    for image in images:
        if image.paused:
            whole = " with its site" if image.properties.get("sage_site_paused") else ""
            found.append(Mark(Drift.PAUSED, name, image.id, f"{image.name} is paused{whole}"))
        if image.state == ImageState.FAILED:
            why = image.properties.get("sage_canary_reason", "")
            found.append(Mark(Drift.FAILED, name, image.id, f"the canary of {image.name} failed: {why}"))
        if image.state == ImageState.RETIRED:
            found.append(Mark(Drift.LEFT_OVER, name, image.id, f"{image.name} was retired and is not deleted yet"))
        if image.withdrawn:
            found.append(Mark(Drift.WITHDRAWN, name, image.id, f"{image.name} was withdrawn by a rollback"))
        hand_made = image.state == ImageState.PREVIOUS and image.name != name and not rotation.has_dated_name(image)
        if hand_made or (image.state == ImageState.CURRENT and image.name != name):
            found.append(Mark(Drift.RENAMED, name, image.id, f"{image.name} was renamed by hand; it is left alone"))
    return found


def _behind(name: str, by_site: Mapping[str, Sequence[SiteImage]]) -> list[tuple[str, Mark]]:
    """Sites whose current image is older than the newest current one anywhere, or that have none."""
    current = {
        site: max(holders, key=lambda image: (not image.hidden, image.built_at))
        for site, images in by_site.items()
        if (holders := [image for image in images if image.name == name])
    }
    if not current:
        return []
    newest = max(image.built_at for image in current.values())
    where = ", ".join(site for site, image in current.items() if image.built_at == newest)
    found = []
    for site in by_site:
        held = current.get(site)
        if held is None:
            found.append((site, Mark(Drift.MISSING, name, None, f"no image has the name {name}; one has at {where}")))
        elif held.built_at < newest:
            text = f"{name} is behind: built {held.built_at}, at {where} {newest}"
            found.append((site, Mark(Drift.BEHIND, name, held.id, text)))
    return found


def _different(name: str, by_site: Mapping[str, Sequence[SiteImage]]) -> list[tuple[str, Mark]]:
    """Images whose digest is not the one that was checked, or not that of most sites for the same build and format."""
    found = []
    builds: dict[tuple[str, ...], list[tuple[str, SiteImage]]] = {}
    for site, images in by_site.items():
        for image in images:
            checked = image.properties.get("sage_sha512", "")
            finished = image.state in (ImageState.CURRENT, ImageState.PREVIOUS)
            if not finished or not image.os_hash_value:
                continue
            if image.os_hash_algo == "sha512" and checked and image.os_hash_value != checked:
                text = f"{image.name} has the digest {image.os_hash_value[:16]}..., {checked[:16]}... was checked"
                found.append((site, Mark(Drift.DIFFERS, name, image.id, text)))
            build = image.properties.get("sage_build_id", "")
            if build:
                form = image.properties.get("sage_format") or image.disk_format or ""
                builds.setdefault((build, form, image.os_hash_algo or ""), []).append((site, image))
    for (build, *_), rows in builds.items():
        digests = Counter(str(image.os_hash_value) for _, image in rows)
        (usual, most), *others = digests.most_common()
        tie = bool(others) and others[0][1] == most
        for site, image in rows if tie else [row for row in rows if row[1].os_hash_value != usual]:
            text = f"{image.name}, build {build}, has not the digest that it has at other sites"
            found.append((site, Mark(Drift.DIFFERS, name, image.id, text)))
    return found

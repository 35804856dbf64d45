# SPDX-License-Identifier: Apache-2.0
"""One site's canary: between the upload and the swap, and what becomes of a candidate that does not pass."""

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from groundwork.errors import InputError
from image_builder import canary, catalog, rotation
from image_builder.canary import CanaryInconclusive, CanaryOptions, CanaryResult, Candidate, Verdict
from image_builder.catalog import Change, ImageState, SiteImage, Visibility
from image_builder.manifest import MANIFEST

if TYPE_CHECKING:
    from openstack.connection import Connection

    from image_builder.site_work import Work


def try_image(work: "Work", connection: "Connection", image: SiteImage) -> None:
    """Let the canary try an image that is about to become the current one; returns where it passed.

    While it is tried, and where that comes to no end, a candidate stays for the next run.  One that failed gets a name
    and a state that say so.  Raises CanaryFailed and CanaryInconclusive.
    """
    options = work.options.canary
    if options is None or has_passed(image):
        return
    with work.lock:
        work.go_on()
        staging, work.staging, work.trying, work.word = work.staging, None, True, "canary"
    try:
        work.done.append(f"try {image.id} by the canary")
        if image.until:  # another machine must not take it for abandoned in the meantime
            until = datetime.now(timezone.utc) + timedelta(seconds=options.deadline) + rotation.CLOCK_TOLERANCE
            catalog.change(connection, image.id, Change(properties={"sage_until": rotation.timestamp(until)}))
        work.canary = canary.run(_candidate(work, connection, image, options), options, work.stop)
        work.done[-1] += f": {work.canary.verdict}"
        if work.canary.verdict is Verdict.PASS:
            catalog.change(connection, image.id, Change(properties={"sage_canary": str(Verdict.PASS)}))
        elif image.state == ImageState.CANDIDATE:
            catalog.change(connection, image.id, _after_canary(image, work.canary))
    except (InputError, OSError) as error:  # this machine's disk
        raise CanaryInconclusive(f"{work.site.name}: {image.id} could not be tried: {error}") from error
    finally:
        with work.lock:
            work.trying = False
    work.go_on()
    if work.canary.verdict is not Verdict.PASS:
        raise canary.error_of(work.canary, work.site.name)
    with work.lock:
        work.staging = staging


def _candidate(work: "Work", connection: "Connection", image: SiteImage, options: CanaryOptions) -> Candidate:
    manifest = work.manifest
    assert work.shared is not None
    return Candidate(
        site=work.site.name,
        kind=str(work.site.kind),
        cloud=str(connection.config.name),
        image_id=image.id,
        name=image.name,
        image_name=manifest.image_name,
        variant=manifest.variant,
        release=manifest.release,
        arch=manifest.arch,
        build_id=manifest.build_id,
        format=image.properties.get("sage_format", ""),
        size=image.size or 0,
        sha512=image.properties.get("sage_sha512", ""),
        manifest=work.folder / MANIFEST,
        folder=canary.folder_for(options, work.site.slug, image.id),
        shared=work.shared,
    )


def _after_canary(image: SiteImage, result: CanaryResult) -> Change:
    """What a candidate becomes that did not pass."""
    if result.verdict is Verdict.INCONCLUSIVE:
        return Change(properties={"sage_canary": str(result.verdict), "sage_publisher": ""})
    at = datetime.now(timezone.utc)
    return Change(
        name=rotation.failed_name(image.image_name, at),
        visibility=None if image.visibility == Visibility.PRIVATE else str(Visibility.PRIVATE),
        properties={
            "sage_state": str(ImageState.FAILED),
            "sage_failed_at": rotation.timestamp(at),
            "sage_canary": str(result.verdict),
            "sage_canary_reason": result.reason,
        },
    )


def has_passed(image: SiteImage) -> bool:
    return image.properties.get("sage_canary") == Verdict.PASS

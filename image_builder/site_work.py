# SPDX-License-Identifier: Apache-2.0
"""One site's part of publishing, in a thread of its own.

Repair what an interrupted run left, pass over what is unchanged, upload under a private temporary name, compare
Glance's digest with ours, let the canary try it, set the visibility, swap, delete what is too old.
"""

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site, Upload
from groundwork import files
from groundwork.errors import InputError, SageError
from image_builder import catalog, publisher, rotation, site_canary, site_rotation, upload
from image_builder.canary import CanaryFailed, CanaryResult
from image_builder.catalog import BadListing, Change, ImageState, SiteImage, Stopped, Visibility
from image_builder.manifest import Manifest
from image_builder.publication import Outcome, Problem, SitePublication
from image_builder.site_rotation import Overtaken, SiteRun
from image_builder.upload import Body, Feed, Pace, Payload

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_GIBIBYTE = 1 << 30
_FIRST_WAIT = 1.0  # seconds before an upload is begun again, doubled each time
_LONGEST_WAIT = 60.0
_CLAIMS = uuid.UUID("6c3c7c0e-3f0e-4b57-9a55-2b8a3f6f5c11")  # the name space of our images' ids
_MOST_CLAIMS = 1000
_POLL = 1.0  # seconds between questions how far an import has come


@dataclass(kw_only=True)
class Work(SiteRun):
    """The publication of a build (``manifest``, whose files lie in ``folder``) at one site."""

    manifest: Manifest
    folder: Path
    payload: Payload | None = None  # what the site is to get, and None where the build has nothing for it
    feed: Feed | None = None
    pace: Pace | None = None  # while it is uploaded
    uploaded: int = 0
    over: str = ""  # the id of the image that is to be replaced
    deadline: float = 0.0  # of all attempts to upload
    shared: Path | None = None  # a folder of the canaries of all sites
    canary: CanaryResult | None = None
    result: SitePublication | None = None

    def progress(self) -> str:
        """For people: ``CHI@UC 42 % 61.0 MiB/s 12 s left``."""
        if self.result is not None:
            return f"{self.site.name} {self.result.outcome}"
        pace = self.pace
        return f"{self.site.name} {pace.told(time.monotonic()) if pace else self.word}"


def run(work: Work) -> None:
    """A site's thread: whatever happens becomes the site's result."""
    try:
        connection = site_rotation.connected(work.connection)
        if work.payload is None:
            raise InputError(
                f"{work.site.name} boots {' or '.join(work.site.formats)}, and this build has none of them",
                hint=f"add that format: create-image --site {work.site.name} ..., with the variant and release of this "
                "build",
            )
        if work.options.dry_run:
            work.result = _rehearse(work, connection, work.payload)
        else:
            work.word = "waiting for another run"
            with site_rotation.exclusive(work):
                work.result = _publish_at(work, connection, work.payload)
    except Exception as error:
        logger.debug("%s failed", work.site.name, exc_info=True)
        problem = site_rotation.problem_of(work.site, error)
        work.result = _result(work, Outcome.INCONCLUSIVE if problem.inconclusive else Outcome.FAILED, None, problem)


def _publish_at(work: Work, connection: "Connection", payload: Payload) -> SitePublication:
    manifest = work.manifest
    work.word = "looking"
    # Repair first: an earlier run's swap is finished or undone, and what its upload left is deleted.
    standing = site_rotation.look(work, connection)
    standing = site_rotation.tidy(
        work,
        connection,
        standing,
        keep=work.options.keep,
        # A build that still stands here under its back-dated name is given the name again, not deleted and uploaded.
        spared=lambda image: _is_at_hand(image, work),
    )
    current = rotation.current_of(standing, manifest.image_name)
    _check_foreign(work, connection, standing, current)
    if current is not None and _is_unchanged(current, work):
        current = _follow_visibility(work, connection, current)
        return _result(work, Outcome.UNCHANGED, current)
    held = _why_held(work, connection, standing)
    if held:
        work.warn(held)
        return _result(work, Outcome.HELD, current)
    work.over = current.id if current is not None else ""
    _check_not_failed(work, standing)
    image = next((image for image in standing if _is_at_hand(image, work)), None)
    if image is None:
        image = _stage(work, connection, payload)
    elif image.state == ImageState.CANDIDATE:
        image = _adopt(work, connection, image)
    try:
        site_canary.try_image(work, connection, image)
        image = site_rotation.set_visibility(work, connection, image)
        work.go_on()
        site_rotation.swap(work, connection, image.id, over=work.over)
    except BaseException:
        site_rotation.drop_staging(work, connection)
        raise
    if not work.stop.is_set():
        try:
            site_rotation.retain(work, connection, image.id)
        except Overtaken:
            raise
        except SageError as error:  # the new image is public; what is too old goes with the next run
            work.warn(f"old images were not deleted: {error}")
    return _result(work, Outcome.PUBLISHED, image)


def _rehearse(work: Work, connection: "Connection", payload: Payload) -> SitePublication:
    """What would be done, with nothing changed."""
    manifest = work.manifest
    standing = list(site_rotation.look(work, connection))
    repair = site_rotation.plan_for(work, standing, keep=work.options.keep)
    current = rotation.current_of(standing, manifest.image_name)
    _check_foreign(work, connection, standing, current)
    if current is not None and _is_unchanged(current, work):
        work.done += [str(step) for step in repair.steps]
        return _result(work, Outcome.UNCHANGED, current)
    held = _why_held(work, connection, standing)
    if held:
        work.warn(held)
        return _result(work, Outcome.HELD, current)
    _check_not_failed(work, standing)
    image = next((image for image in standing if _is_at_hand(image, work)), None)
    if image is None:
        image = _imagined(work, payload)
        standing.append(image)
        work.done.append(f"upload {payload} as {image.name}")
    if work.options.canary is not None and not site_canary.has_passed(image):
        work.done.append(f"try it by the canary: {work.options.canary}")
    work.done.append(f"set its visibility to {' or else '.join(work.options.visibility)}")
    plan = site_rotation.plan_for(work, standing, new=image.id, keep=work.options.keep)
    work.done += [str(step) for step in plan.steps]
    return _result(work, Outcome.WOULD_PUBLISH, None)


def _check_not_failed(work: Work, standing: Sequence[SiteImage]) -> None:
    """Raise where this very build has failed its canary here before; with ``force`` it is tried again."""
    for image in standing:
        if image.state == ImageState.FAILED and _is_this_build(image, work) and not work.options.force:
            why = image.properties.get("sage_canary_reason", "")
            raise CanaryFailed(
                f"{work.site.name}: the canary of this build failed before ({image.name}, {image.id}): {why}",
                hint="build it anew, or try this one again: --force",
            )


def _stage(work: Work, connection: "Connection", payload: Payload) -> SiteImage:
    """Upload under a temporary name and check; returns the candidate.  Whatever fails, nothing of it stays.

    What may pass (the connection broke, the site fails or is asked too often) is tried again until the deadline.
    """
    work.deadline = time.monotonic() + work.options.upload_deadline
    try:
        for wait in cloud.waits(_FIRST_WAIT, _LONGEST_WAIT):
            try:
                return _stage_once(work, connection, payload)
            except SiteUnreachable as error:
                wait = max(wait, error.retry_after)
                if time.monotonic() + wait > work.deadline:
                    raise
                work.warn(f"the upload broke off ({error}) and was begun again")
                work.word = f"waits {wait:.0f} s, for {error}"
                if work.stop.wait(wait):
                    raise Stopped from None
    except BaseException:
        work.word = "cleaning up"
        site_rotation.drop_staging(work, connection)
        raise
    raise AssertionError("unreachable")


def _adopt(work: Work, connection: "Connection", image: SiteImage) -> SiteImage:
    """Take over the checked image of a publisher that was killed."""
    with work.lock:
        work.go_on()
        work.staging = image.id
    site_rotation.note(work, f"take over {image.name} ({image.id})", image.id)
    properties = {"sage_publisher": publisher.identity(), "sage_until": _until(work)}
    return catalog.change(connection, image.id, Change(properties=properties))


def _stage_once(work: Work, connection: "Connection", payload: Payload) -> SiteImage:
    site_rotation.delete_staging(work, connection)  # of the attempt before
    image_id = _claim(work, connection, payload)
    if work.site.upload is Upload.WEB_DOWNLOAD:
        url = f"{work.site.download_from}/{quote(f'{work.manifest.image_name}/{work.folder.name}/{payload.file.name}')}"
        _import(work, connection, image_id, url=url)
    else:
        _send(work, connection, image_id, payload)
        if work.site.upload is Upload.IMPORT:
            _import(work, connection, image_id)
    work.go_on()
    work.word = "checking"
    image = catalog.get(connection, image_id)
    sha512 = _check_data(work, image, payload)
    work.done.append(f"upload {payload} as {image_id}")
    properties = {"sage_state": str(ImageState.CANDIDATE), "sage_sha512": sha512}
    return catalog.change(connection, image_id, Change(properties=properties))


def _claim(work: Work, connection: "Connection", payload: Payload) -> str:
    """Make the record that the upload goes to; returns its id.

    A site takes an id once, for ever, and this one is computed from the image that is to be replaced: of all machines
    that want to replace it, one gets it, and the others are told.  An id is passed over whose image is deleted, for its
    upload failed, or has been given up, or had the name and lost it again.
    """
    owner, name = str(connection.current_project_id), work.manifest.image_name
    for number in range(_MOST_CLAIMS):
        image_id = str(uuid.uuid5(_CLAIMS, "\0".join((owner, work.site.name, name, work.over, str(number)))))
        imagined = _imagined(work, payload)
        site_rotation.note(work, f"upload {payload} as {image_id}", image_id)
        with work.lock:  # the main thread must see either that nothing was begun, or its id
            work.go_on()
            work.staging = image_id
        try:
            catalog.create(
                connection,
                image_id,
                name=imagined.name,
                disk_format=payload.form.glance,
                min_disk=-(-work.manifest.disk_size // _GIBIBYTE),
                properties={
                    **_properties(work.manifest),
                    **imagined.properties,
                    "sage_state": str(ImageState.STAGING),
                    "sage_until": _until(work),
                },
            )
        except catalog.Taken as taken:
            with work.lock:
                work.staging = None
            if taken.holder is not None and _is_at_work(work, taken.holder):
                raise _refused(work, taken.holder) from None
            continue
        return image_id
    raise SiteError(
        f"{work.site.name}: {_MOST_CLAIMS} uploads of {name} failed since {work.over or 'the first'} was published",
        hint="give an older image the name again (sage-image rollback), then publish",
    )


def _is_at_work(work: Work, holder: SiteImage) -> bool:
    """Whether another run may be about to give the name to the image that has the id, or just did."""
    if holder.state == ImageState.CURRENT:
        return True
    if holder.state not in (ImageState.STAGING, ImageState.CANDIDATE) or not holder.publisher:
        return False
    dead = work.journal is not None and holder.publisher in work.journal.dead
    lives = False if dead else publisher.lives(holder.publisher)
    ours = holder.publisher == publisher.identity()  # of an attempt before, which could not be deleted
    judged = {} if lives is None else {holder.publisher: lives}
    return not ours and rotation.left_over(holder, datetime.now(timezone.utc), judged) is None


def _refused(work: Work, holder: SiteImage) -> Overtaken:
    return Overtaken(
        f"{work.site.name}: {holder.publisher or 'another run'} has been publishing {holder.image_name} since "
        f"{holder.created_at}",
        hint=f"wait for it; should it be dead, its upload {holder.id} goes with the next run after "
        f"{holder.until or 'some hours'}, or delete it by hand",
    )


def _until(work: Work) -> str:
    """When this run will surely have ended; UTC, RFC 3339."""
    end = datetime.now(timezone.utc) + timedelta(seconds=work.options.upload_deadline) + rotation.UPLOAD_MARGIN
    return end.strftime("%Y-%m-%dT%H:%M:%SZ")


def _send(work: Work, connection: "Connection", image_id: str, payload: Payload) -> None:
    """Send the data, to where the site wants them."""
    assert work.feed is not None
    pace = work.pace = Pace(payload.size, time.monotonic())

    def advance(sent: int) -> None:
        now = time.monotonic()
        pace.advance(sent, now)
        if now > work.deadline:
            raise _too_late(work)

    try:
        catalog.upload(
            connection,
            image_id,
            Body(work.feed, advance, work.stop),
            stage=work.site.upload is Upload.IMPORT,
            timeout=max(work.deadline - time.monotonic(), 1.0),
        )
    finally:
        work.pace = None
        work.uploaded += pace.sent


def _import(work: Work, connection: "Connection", image_id: str, *, url: str | None = None) -> None:
    """Let the site import what was staged, or what lies at ``url``, and wait until it has."""
    work.word = "importing"
    method = "web-download" if url else "glance-direct"
    methods = catalog.import_methods(connection)
    if method not in methods:
        raise InputError(
            f"{work.site.name} does not import images by {method}, but by {files.join_names(methods) or 'nothing'}",
            hint=f"set another 'upload' for {work.site.name} in the sites file",
        )
    catalog.start_import(connection, image_id, method, url=url)
    while catalog.get(connection, image_id).status != "active":
        reason = catalog.import_failure(connection, image_id)
        if reason is not None:
            raise SiteError(f"{work.site.name} could not import the image by {method}: {reason}")
        if time.monotonic() > work.deadline:
            raise _too_late(work)
        if work.stop.wait(_POLL):
            raise Stopped


def _too_late(work: Work) -> SiteError:
    limit = f"within {work.options.upload_deadline:g} s"
    return SiteError(f"{work.site.name} did not take {work.payload} {limit}", hint="--upload-timeout")


def _check_data(work: Work, image: SiteImage, payload: Payload) -> str:
    """Raise SiteError unless the site has, by its own digest, just what was built; returns its SHA-512."""
    site, file = work.site.name, payload.file
    read = work.feed.digest if work.feed is not None else None
    if read is not None and not payload.converted and read != file.sha256:
        raise upload.changed(file, read)
    sha512 = file.sha512 if not payload.converted else read or ""
    sha256 = file.sha256 if not payload.converted else ""
    ours = {"sha512": sha512, "sha256": sha256}.get(image.os_hash_algo or "")
    if image.status != "active":
        raise SiteError(f"{site}: after the upload the image is {image.status!r}, not active")
    if not ours or image.os_hash_value is None:
        raise SiteError(
            f"{site} gives no digest that can be compared ({image.os_hash_algo or 'none'}); nothing is published",
            hint="ask the site's operators to set Glance's hashing_algorithm to sha512",
        )
    if image.os_hash_value.lower() != ours.lower() or image.size != payload.size:
        # What this site read for itself, behind the others, nobody has hashed.
        stands = files.sha256_file(work.folder / file.name)
        if stands != file.sha256:
            raise upload.changed(file, stands)
        raise SiteError(
            f"{site} received other data than were built and sent: {image.os_hash_algo} "
            f"{image.os_hash_value[:16]}..., {image.size} bytes, and not {ours[:16]}..., {payload.size} bytes",
            hint="try again; if it happens again, something on the way, or the site itself, changes the data",
        )
    return sha512


def _follow_visibility(work: Work, connection: "Connection", image: SiteImage) -> SiteImage:
    """Change the visibility of what stands where the settings now prefer another."""
    if is_visible_as_asked(image, work.options.visibility[:1]):
        return image
    before = image.visibility
    image = site_rotation.set_visibility(work, connection, image)
    if image.visibility != before:
        work.done.append(f"change the visibility of {image.name} ({image.id}) from {before} to {image.visibility}")
    return image


def is_visible_as_asked(image: SiteImage, wanted: Sequence[str]) -> bool:
    """Whether an image has one of the visibilities."""
    return any(site_rotation.is_seen_as(image, visibility) for visibility in wanted)


def _is_this_build(image: SiteImage, work: Work) -> bool:
    """Whether an image at the site has this build's recipe, and data of this build that the site boots."""
    manifest = work.manifest
    digests = {
        digest for file in manifest.files if file.format in work.site.formats for digest in (file.sha512, file.sha256)
    }
    if image.properties.get("sage_build_id") == manifest.build_id and work.payload and work.payload.converted:
        digests.add(image.properties.get("sage_sha512", ""))  # made of this build on the way to the site
    return (
        image.status == "active"
        and image.recipe_digest == manifest.recipe_digest
        and image.os_hash_value is not None
        and image.os_hash_value in digests
    )


def _is_at_hand(image: SiteImage, work: Work) -> bool:
    """Whether an image at the site can be promoted in place of an upload."""
    dead = work.journal.dead if work.journal is not None else ()
    return site_rotation.may_be_promoted(image, dead) and _is_this_build(image, work)


def is_of_recipe(image: SiteImage, site: Site, recipe_digest: str) -> bool:
    """Whether an image at the site is a build of this recipe, made by whomever, whose data were checked."""
    return (
        image.status == "active"
        and image.state == ImageState.CURRENT
        and image.recipe_digest == recipe_digest
        and image.properties.get("sage_format") in site.formats
        and image.os_hash_value == image.properties.get("sage_sha512")
    )


def _is_unchanged(image: SiteImage, work: Work) -> bool:
    """Whether the site has what it is to have: this build, or, unless forced, another of its recipe."""
    return _is_this_build(image, work) or (
        not work.options.force and is_of_recipe(image, work.site, work.manifest.recipe_digest)
    )


def _why_held(work: Work, connection: "Connection", standing: Sequence[SiteImage]) -> str | None:
    """Why nothing is to be published here, as somebody asked; None where it may be."""
    site = work.site.name
    if catalog.is_paused(connection):
        return f"{site} is paused: it takes no new image until sage-image unpause {site}"
    return hold_of(standing, work.manifest.image_name, "" if work.options.force else work.manifest.recipe_digest)


def hold_of(standing: Sequence[SiteImage], image_name: str, recipe_digest: str) -> str | None:
    """Why, by what stands at a site, this recipe is not to get the public name there; None where it may."""
    for image in standing:
        if image.paused and image.name == image_name:
            return f"{image.name} ({image.id}) is paused: it keeps its name until sage-image unpause"
    for image in standing:
        if image.withdrawn and image.recipe_digest == recipe_digest:
            return (
                f"a rollback withdrew {image.name} ({image.id}), which is of this recipe; --force publishes it "
                "again, sage-image promote gives it the name"
            )
    return None


def _check_foreign(
    work: Work, connection: "Connection", standing: Sequence[SiteImage], current: SiteImage | None
) -> None:
    """Raise where publishing would make a second image of the name, beside one that is not in ``standing``."""
    name = work.manifest.image_name
    owner = connection.current_project_id
    for image in catalog.name_holders(connection, name):
        if image.owner == owner and image.image_name == name and catalog.TAG in image.tags:
            if image.id not in {each.id for each in standing}:
                raise BadListing(f"{work.site.name}: its list of images lacks {image.id}, which has the name {name}")
            continue
        if image.owner != owner and image.visibility == Visibility.PRIVATE:
            continue  # an administrator sees it, readers do not
        whose = "in this project" if image.owner == owner else f"of the project {image.owner}"
        text = f"{image.id}, {whose} and not made by this program, has the name {name}"
        if current is None and (image.owner == owner or image.visibility == Visibility.PUBLIC):
            raise SiteError(f"{work.site.name}: {text}", hint="rename that image, or give yours another name")
        work.warn(f"{text}; whoever asks for the name finds two")


def _imagined(work: Work, payload: Payload) -> SiteImage:
    """The image that an upload would make, as a candidate."""
    manifest = work.manifest
    sha512 = "" if payload.converted else payload.file.sha512
    properties = {
        "sage_state": str(ImageState.CANDIDATE),
        "sage_image_name": manifest.image_name,
        "sage_build_id": manifest.build_id,
        "sage_recipe_digest": manifest.recipe_digest,
        "sage_built_at": manifest.built_at,
        "sage_variant": manifest.variant,
        "sage_release": manifest.release,
        "sage_arch": manifest.arch,
        "sage_format": str(payload.form),
        "sage_sha512": sha512,
        "sage_publisher": publisher.identity(),
    }
    return SiteImage(
        id="(new)",
        name=f"sage-staging-{manifest.image_name}-{uuid.uuid4().hex[:8]}",
        status="active",
        hidden=True,
        protected=False,
        visibility=str(Visibility.PRIVATE),
        owner="",
        size=payload.size,
        created_at=manifest.built_at,
        updated_at=manifest.built_at,
        disk_format=payload.form.glance,
        os_hash_algo="sha512",
        os_hash_value=sha512,
        tags=(catalog.TAG,),
        properties=properties,
    )


def _properties(manifest: Manifest) -> dict[str, str]:
    """Properties that others read: Chameleon's names where they can't be taken for "supported by Chameleon".

    Firmware and disk bus are left to the site, for one image boots on BIOS and on UEFI; arm64 knows only UEFI.
    """
    properties = {
        "build-distro": manifest.os_name,
        "build-release": manifest.release,
        "build-variant": manifest.variant,
        "build-timestamp": manifest.built_at,
        "build-tag": manifest.build_id,
        "os_distro": manifest.os_name.lower(),
        "os_version": manifest.os_version,
        "architecture": {"amd64": "x86_64", "arm64": "aarch64"}.get(manifest.arch, manifest.arch),
    }
    if manifest.arch in ("arm64", "aarch64"):
        properties["hw_firmware_type"] = "uefi"
    return {key: value for key, value in properties.items() if value}


def _result(work: Work, outcome: Outcome, image: SiteImage | None, problem: Problem | None = None) -> SitePublication:
    return SitePublication(
        site=work.site.name,
        outcome=outcome,
        image_id=image.id if image else None,
        image_name=work.manifest.image_name,
        visibility=Visibility(image.visibility) if image else None,
        uploaded=work.uploaded,
        seconds=round(time.monotonic() - work.begin, 3),
        plan=tuple(work.done),
        warnings=tuple(work.warnings),
        problem=problem,
        canary=work.canary,
    )

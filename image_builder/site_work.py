# SPDX-License-Identifier: Apache-2.0
"""One site's part of publishing, in a thread of its own.

Repair what an interrupted run left, pass over what is unchanged, upload under a private temporary name, compare
Glance's digest with ours, set the visibility, swap, delete what is too old.
"""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site
from groundwork import console, files
from groundwork.errors import InputError, SageError
from image_builder import catalog, publisher, rotation
from image_builder.catalog import Change, ImageState, SiteImage, Stopped, Visibility
from image_builder.manifest import ImageFile, Manifest
from image_builder.publication import Outcome, Problem, PublishOptions, SitePublication

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_GIBIBYTE = 1 << 30
_UPLOAD_ATTEMPTS = 2
_REPAIRS = 3  # attempts to finish or undo a swap in which a call failed
_LOCK_WAIT = 120.0  # seconds; another run of this machine holds the lock for a swap, less than one


@dataclass
class Work:
    """The work at one site; what its thread and the main thread both look at."""

    manifest: Manifest
    folder: Path
    site: Site
    options: PublishOptions
    connection: "Connection | SageError"
    stop: threading.Event
    lock: threading.Lock = field(default_factory=threading.Lock)
    staging: str | None = None  # the id of an image that must not stay if the program ends now
    swapping: bool = False
    done: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    word: str = "connecting"
    sent: int = 0
    uploaded: int = 0
    size: int = 0
    begin: float = field(default_factory=time.monotonic)
    upload_begin: float = 0.0
    result: SitePublication | None = None

    def progress(self) -> str:
        """For people: ``CHI@UC 42 % 61.0 MiB/s``."""
        if self.result is not None:
            return f"{self.site.name} {self.result.outcome}"
        if self.word != "uploading" or not self.size:
            return f"{self.site.name} {self.word}"
        rate = self.sent / max(time.monotonic() - self.upload_begin, 0.001)
        return f"{self.site.name} {100 * self.sent // self.size} % {console.mebibytes(int(rate))}/s"

    def go_on(self) -> None:
        """Raise Stopped when the program was told to end."""
        if self.stop.is_set():
            raise Stopped

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def run(work: Work) -> None:
    """A site's thread: whatever happens becomes the site's result."""
    try:
        work.result = _publish_at(work, connected(work.connection))
    except Exception as error:
        logger.debug("%s failed", work.site.name, exc_info=True)
        work.result = _result(work, Outcome.FAILED, None, problem_of(work.site, error))


def connected(connection: "Connection | SageError") -> "Connection":
    if isinstance(connection, SageError):
        raise connection
    return connection


def _publish_at(work: Work, connection: "Connection") -> SitePublication:
    manifest, site = work.manifest, work.site
    file = manifest.file_for(site.formats)
    if file is None:
        raise InputError(
            f"{site.name} boots {' or '.join(site.formats)}, and this build has none of them",
            hint=f"add that format: create-image --site {site.name} ..., with the variant and release of this build",
        )
    if work.options.dry_run:
        return _rehearse(work, connection, file)
    work.word = "looking"
    # Repair first: an earlier run's swap is finished or undone, and what its upload left is deleted.
    standing = catalog.list_ours(connection, manifest.image_name)
    standing = _tidy(work, connection, standing)
    current = current_of(standing, manifest.image_name)
    _check_foreign(work, connection, current)
    if current is not None and _is_unchanged(current, work):
        current = _follow_visibility(work, connection, current)
        return _result(work, Outcome.UNCHANGED, current)
    image = next((image for image in standing if _may_be_promoted(image) and _is_this_build(image, work)), None)
    if image is None:
        image = _stage(work, connection, file)
    elif image.state == ImageState.CANDIDATE:
        image = _adopt(work, connection, image)
    try:
        image = _set_visibility(work, connection, image)
        work.go_on()
        _swap(work, connection, image.id)
    except BaseException:
        drop_staging(work, connection)
        raise
    if not work.stop.is_set():
        try:
            _retain(work, connection, image.id)
        except SageError as error:  # the new image is public; what is too old goes with the next run
            work.warn(f"old images were not deleted: {error}")
    return _result(work, Outcome.PUBLISHED, image)


def _rehearse(work: Work, connection: "Connection", file: ImageFile) -> SitePublication:
    """What would be done, with nothing changed."""
    manifest = work.manifest
    standing = list(catalog.list_ours(connection, manifest.image_name))
    repair = _plan(work, standing, keep=work.options.keep)
    current = current_of(standing, manifest.image_name)
    _check_foreign(work, connection, current)
    if current is not None and _is_unchanged(current, work):
        work.done += [str(step) for step in repair.steps]
        return _result(work, Outcome.UNCHANGED, current)
    image = next((image for image in standing if _may_be_promoted(image) and _is_this_build(image, work)), None)
    if image is None:
        image = _imagined(work, file)
        standing.append(image)
        size = console.mebibytes(file.size) if file.size else "to be made"
        work.done.append(f"upload {file.name} ({size}) as {image.name}")
    work.done.append(f"set its visibility to {' or else '.join(work.options.visibility)}")
    plan = _plan(work, standing, new=image.id, keep=work.options.keep)
    work.done += [str(step) for step in plan.steps]
    return _result(work, Outcome.WOULD_PUBLISH, None)


def _tidy(work: Work, connection: "Connection", standing: tuple[SiteImage, ...]) -> tuple[SiteImage, ...]:
    """Bring a site into a state in which nothing is half-done; returns what then stands there."""
    plan = _plan(work, standing, keep=work.options.keep)
    if not plan.steps:
        return standing
    if plan.swap:
        with _exclusive(work):
            # Another run of this machine may have done it while this one waited; and one of another machine
            # may be in the middle of a swap, which does not take a second.
            if any(isinstance(step, rotation.Show) for step in plan.steps) and work.stop.wait(1.0):
                raise Stopped
            plan = _plan(work, catalog.list_ours(connection, work.manifest.image_name))
            _do(work, connection, plan.swap)
        standing = catalog.list_ours(connection, work.manifest.image_name)
        plan = _plan(work, standing, keep=work.options.keep)
    # A build that still stands here under its back-dated name is given the name again, not deleted and uploaded.
    doomed = [
        step
        for step in plan.deletions
        if not any(
            image.id == step.id and _may_be_promoted(image) and _is_this_build(image, work) for image in standing
        )
    ]
    _delete(work, connection, doomed)
    gone = {step.id for step in doomed}
    return tuple(image for image in standing if image.id not in gone)


def _stage(work: Work, connection: "Connection", file: ImageFile) -> SiteImage:
    """Upload under a temporary name and check; returns the candidate.  Whatever fails, nothing of it stays."""
    for attempt in range(1, _UPLOAD_ATTEMPTS + 1):
        image_id = str(uuid.uuid4())
        with work.lock:  # the main thread must see either that nothing was begun, or its id
            work.go_on()
            work.staging = image_id
        try:
            return _stage_once(work, connection, file, image_id)
        except BaseException as error:
            work.word = "cleaning up"
            drop_staging(work, connection)
            if not isinstance(error, SiteUnreachable) or attempt == _UPLOAD_ATTEMPTS or work.stop.wait(2.0):
                raise
            work.warn(f"the upload broke off ({error}) and was begun again")
    raise AssertionError("unreachable")


def _adopt(work: Work, connection: "Connection", image: SiteImage) -> SiteImage:
    """Take over the checked image of a publisher that was killed."""
    with work.lock:
        work.go_on()
        work.staging = image.id
    return catalog.change(connection, image.id, Change(properties={"sage_publisher": publisher.identity()}))


def _stage_once(work: Work, connection: "Connection", file: ImageFile, image_id: str) -> SiteImage:
    manifest, site = work.manifest, work.site
    imagined = _imagined(work, file)
    catalog.create(
        connection,
        image_id,
        name=imagined.name,
        disk_format=file.format.glance,
        min_disk=-(-manifest.disk_size // _GIBIBYTE),
        properties={**_properties(manifest), **imagined.properties, "sage_state": str(ImageState.STAGING)},
    )
    work.sent, work.size, work.upload_begin, work.word = 0, file.size, time.monotonic(), "uploading"
    work.done.append(f"upload {file.name} ({console.mebibytes(file.size)}) as {image_id}")

    def advance(sent: int) -> None:
        work.sent = sent
        if time.monotonic() - work.upload_begin > work.options.upload_deadline:
            limit = f"within {work.options.upload_deadline:g} s"
            raise SiteError(f"{site.name} did not take {console.mebibytes(file.size)} {limit}", hint="--upload-timeout")

    try:
        path = work.folder / file.name
        catalog.upload(connection, image_id, path, size=file.size, on_progress=advance, stop=work.stop)
    except OSError as error:
        raise InputError(f"can't read {error.filename or path}: {error.strerror or error}") from None
    finally:
        work.uploaded += work.sent
    work.go_on()
    work.word = "checking"
    image = catalog.get(connection, image_id)
    _check_data(site, image, file)
    return catalog.change(connection, image_id, Change(properties={"sage_state": str(ImageState.CANDIDATE)}))


def _check_data(site: Site, image: SiteImage, file: ImageFile) -> None:
    """Raise SiteError unless the site has, by its own digest, just the file that was built."""
    ours = {"sha512": file.sha512, "sha256": file.sha256}.get(image.os_hash_algo or "")
    if image.status != "active":
        raise SiteError(f"{site.name}: after the upload the image is {image.status!r}, not active")
    if ours is None or image.os_hash_value is None:
        raise SiteError(
            f"{site.name} gives no digest that can be compared ({image.os_hash_algo or 'none'}); nothing is published",
            hint="ask the site's operators to set Glance's hashing_algorithm to sha512",
        )
    if image.os_hash_value.lower() != ours.lower() or image.size != file.size:
        raise SiteError(
            f"{site.name} received other data than were built: {image.os_hash_algo} {image.os_hash_value[:16]}..., "
            f"{image.size} bytes; the manifest says {ours[:16]}..., {file.size} bytes",
            hint=f"if every site says so, {file.name} was changed after the build: build it again; else try again",
        )


def _set_visibility(work: Work, connection: "Connection", image: SiteImage) -> SiteImage:
    """Give an image the first of the visibilities asked for that the site allows."""
    refusals = []
    for visibility in work.options.visibility:
        work.go_on()
        if image.visibility == visibility:
            return image
        try:
            image = catalog.change(connection, image.id, Change(visibility=str(visibility)))
        except catalog.Refused as error:
            refusals.append(str(visibility))
            logger.debug("%s", error)
            continue
        if refusals:
            work.warn(f"refused to make the image {' or '.join(refusals)}; it is {visibility}")
        return image
    raise SiteError(
        f"{work.site.name} refuses to make the image {' or '.join(refusals)}",
        hint="allow another visibility (--visibility), for example community",
    )


def _follow_visibility(work: Work, connection: "Connection", image: SiteImage) -> SiteImage:
    """Change the visibility of what stands where the settings now prefer another."""
    if image.visibility == work.options.visibility[0]:
        return image
    before = image.visibility
    image = _set_visibility(work, connection, image)
    if image.visibility != before:
        work.done.append(f"change the visibility of {image.name} ({image.id}) from {before} to {image.visibility}")
    return image


def _swap(work: Work, connection: "Connection", image_id: str) -> None:
    """Give the public name to a checked image.  Once begun it is brought to an end, whatever is asked meanwhile."""
    name = work.manifest.image_name
    with _exclusive(work):
        # Read again under the lock: what stands may have changed during the upload; it also warms the connection.
        plan = _plan(work, catalog.list_ours(connection, name), new=image_id)
        with work.lock:
            work.go_on()
            work.swapping, work.word = True, "swapping"
        try:
            _do(work, connection, plan.swap)
        except SageError as error:
            _finish_swap(work, connection, image_id, error)
        with work.lock:
            work.staging, work.swapping = None, False


def _finish_swap(work: Work, connection: "Connection", image_id: str, error: SageError) -> None:
    """A call failed in the middle: go on from what stands, or undo; raises where neither can be done."""
    name = work.manifest.image_name
    for attempt in range(_REPAIRS):
        time.sleep(0.2 * 2**attempt)
        try:
            standing = catalog.list_ours(connection, name)
            # Should the site refuse to go on, the last attempt undoes instead.
            new = image_id if attempt < _REPAIRS - 1 else None
            _do(work, connection, _plan(work, standing, new=new).swap)
            if new is not None:
                work.warn(f"the swap needed a second attempt ({error})")
                return
        except SageError as again:
            error = again
    current = None
    with contextlib.suppress(SageError):
        current = current_of(catalog.list_ours(connection, name), name)
    if current is not None and current.id == image_id:
        return
    hint = "run this again: it repairs what stands there" if current is None else "the image before still stands"
    raise SiteError(f"{work.site.name}: the swap failed: {error}", hint=hint) from error


def _retain(work: Work, connection: "Connection", image_id: str) -> None:
    """Delete what is too old, by a new listing, and only when that shows the site as it should be."""
    name = work.manifest.image_name
    standing = catalog.list_ours(connection, name)
    current = current_of(standing, name)
    if current is None or current.id != image_id:
        work.warn("another publisher was at work at the same time; no old image is deleted")
        plan = _plan(work, standing)
        with _exclusive(work):
            _do(work, connection, plan.swap)
        return
    plan = _plan(work, standing, keep=work.options.keep)
    if plan.swap:
        with _exclusive(work):
            _do(work, connection, plan.swap)
        return
    _delete(work, connection, plan.deletions)


def _delete(work: Work, connection: "Connection", steps: Sequence[rotation.Delete]) -> None:
    """Delete; what can't be (in use, or protected meanwhile) is told and left to a later run."""
    for step in steps:
        try:
            _do(work, connection, [step])
        except SiteUnreachable:
            raise
        except SiteError as error:
            work.done.pop()
            work.warn(f"{step.name} ({step.id}) can't be deleted now: {error}")


def _do(work: Work, connection: "Connection", steps: Sequence[rotation.Step]) -> None:
    def tell(step: rotation.Step) -> None:
        logger.info("%s: %s", work.site.name, step)
        work.done.append(str(step))

    rotation.execute(
        steps,
        change=lambda image_id, wanted: catalog.change(connection, image_id, wanted),
        delete=lambda image_id: catalog.delete(connection, image_id),
        on_step=tell,
    )


def _plan(
    work: Work, standing: Sequence[SiteImage], *, new: str | None = None, keep: int | None = None
) -> rotation.Plan:
    plan = plan_of(work.manifest.image_name, standing, new=new, keep=keep)
    for note in plan.notes:
        if work.staging is None or work.staging not in note:
            work.warn(note)
    return plan


def plan_of(
    image_name: str, standing: Sequence[SiteImage], *, new: str | None = None, keep: int | None = None
) -> rotation.Plan:
    """The planner's answer, with what is known here of the publishers of what stands."""
    publishers = {image.publisher: publisher.lives(image.publisher) for image in standing if image.publisher}
    return rotation.plan(
        image_name,
        standing,
        new=new,
        keep=keep,
        now=datetime.now(timezone.utc),
        publishers={name: lives for name, lives in publishers.items() if lives is not None},
    )


def current_of(standing: Sequence[SiteImage], name: str) -> SiteImage | None:
    listed = [image for image in standing if image.name == name and not image.hidden]
    return listed[0] if len(listed) == 1 else None


def _is_this_build(image: SiteImage, work: Work) -> bool:
    """Whether an image at the site has this build's recipe, and data of this build that the site boots."""
    manifest = work.manifest
    digests = {
        digest for file in manifest.files if file.format in work.site.formats for digest in (file.sha512, file.sha256)
    }
    return (
        image.status == "active"
        and image.recipe_digest == manifest.recipe_digest
        and image.os_hash_value is not None
        and image.os_hash_value in digests
    )


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


def _may_be_promoted(image: SiteImage) -> bool:
    """Whether an image that stands can be used as it is: it was checked, and no other run is about to use it."""
    if image.state == ImageState.PREVIOUS:
        return True
    return image.state == ImageState.CANDIDATE and publisher.lives(image.publisher) is False


def _check_foreign(work: Work, connection: "Connection", current: SiteImage | None) -> None:
    """Raise where publishing would make a second image of the name, beside one that this program did not make."""
    name = work.manifest.image_name
    owner = connection.current_project_id
    for image in catalog.name_holders(connection, name):
        if image.owner == owner and image.image_name == name and catalog.TAG in image.tags:
            continue
        if image.owner != owner and image.visibility == Visibility.PRIVATE:
            continue  # an administrator sees it, readers do not
        whose = "in this project" if image.owner == owner else f"of the project {image.owner}"
        text = f"{image.id}, {whose} and not made by this program, has the name {name}"
        if current is None and (image.owner == owner or image.visibility == Visibility.PUBLIC):
            raise SiteError(f"{work.site.name}: {text}", hint="rename that image, or give yours another name")
        work.warn(f"{text}; whoever asks for the name finds two")


def drop_staging(work: Work, connection: "Connection") -> None:
    """Delete the temporary image, if there is one that has not got the name."""
    with work.lock:
        image_id = work.staging
    if image_id is None:
        return
    try:
        if work.swapping and catalog.get(connection, image_id).state == ImageState.CURRENT:
            logger.debug("%s has the name; it stays", image_id)
        else:
            catalog.delete(connection, image_id)
    except catalog.Gone:
        pass
    except SageError as error:
        work.warn(f"the temporary image {image_id} could not be deleted ({error}); the next run does it")
        return
    with work.lock:
        work.staging = None


def _imagined(work: Work, file: ImageFile) -> SiteImage:
    """The image that an upload would make, as a candidate."""
    manifest = work.manifest
    properties = {
        "sage_state": str(ImageState.CANDIDATE),
        "sage_image_name": manifest.image_name,
        "sage_build_id": manifest.build_id,
        "sage_recipe_digest": manifest.recipe_digest,
        "sage_built_at": manifest.built_at,
        "sage_variant": manifest.variant,
        "sage_release": manifest.release,
        "sage_arch": manifest.arch,
        "sage_format": str(file.format),
        "sage_sha512": file.sha512,
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
        size=file.size,
        created_at=manifest.built_at,
        updated_at=manifest.built_at,
        disk_format=file.format.glance,
        os_hash_algo="sha512",
        os_hash_value=file.sha512,
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
    )


def problem_of(site: Site, error: Exception) -> Problem:
    ours = error if isinstance(error, SageError) else cloud.explain(site.name, error)
    return Problem(str(ours), ours.hint, isinstance(ours, InputError))


@contextlib.contextmanager
def _exclusive(work: Work) -> Iterator[None]:
    """Hold this machine's lock on the name at the site, so that two runs never swap at once."""
    folder = work.options.locks
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(cache) / "sage-chameleon/locks"
    with files.lock(folder / f"{work.site.slug}-{work.manifest.image_name}.lock", wait=_LOCK_WAIT):
        yield

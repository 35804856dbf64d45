# SPDX-License-Identifier: Apache-2.0
"""One site's part of publishing, in a thread of its own.

Repair what an interrupted run left, pass over what is unchanged, upload under a private temporary name, compare
Glance's digest with ours, set the visibility, swap, delete what is too old.
"""

import logging
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chameleon_sites.cloud import SiteError, SiteUnreachable
from chameleon_sites.sites import Site
from groundwork import console
from groundwork.errors import InputError, SageError
from image_builder import catalog, publisher, site_rotation
from image_builder.catalog import Change, ImageState, SiteImage, Visibility
from image_builder.manifest import ImageFile, Manifest
from image_builder.publication import Outcome, Problem, SitePublication
from image_builder.site_rotation import SiteRun

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

_GIBIBYTE = 1 << 30
_UPLOAD_ATTEMPTS = 2


@dataclass(kw_only=True)
class Work(SiteRun):
    """The publication of a build (``manifest``, whose files lie in ``folder``) at one site."""

    manifest: Manifest
    folder: Path
    sent: int = 0
    uploaded: int = 0
    size: int = 0
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


def run(work: Work) -> None:
    """A site's thread: whatever happens becomes the site's result."""
    try:
        work.result = _publish_at(work, site_rotation.connected(work.connection))
    except Exception as error:
        logger.debug("%s failed", work.site.name, exc_info=True)
        work.result = _result(work, Outcome.FAILED, None, site_rotation.problem_of(work.site, error))


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
    standing = site_rotation.tidy(
        work,
        connection,
        standing,
        keep=work.options.keep,
        # A build that still stands here under its back-dated name is given the name again, not deleted and uploaded.
        spared=lambda image: _is_at_hand(image, work),
    )
    current = site_rotation.current_of(standing, manifest.image_name)
    _check_foreign(work, connection, current)
    if current is not None and _is_unchanged(current, work):
        current = _follow_visibility(work, connection, current)
        return _result(work, Outcome.UNCHANGED, current)
    image = next((image for image in standing if _is_at_hand(image, work)), None)
    if image is None:
        image = _stage(work, connection, file)
    elif image.state == ImageState.CANDIDATE:
        image = _adopt(work, connection, image)
    try:
        image = site_rotation.set_visibility(work, connection, image)
        work.go_on()
        site_rotation.swap(work, connection, image.id)
    except BaseException:
        site_rotation.drop_staging(work, connection)
        raise
    if not work.stop.is_set():
        try:
            site_rotation.retain(work, connection, image.id)
        except SageError as error:  # the new image is public; what is too old goes with the next run
            work.warn(f"old images were not deleted: {error}")
    return _result(work, Outcome.PUBLISHED, image)


def _rehearse(work: Work, connection: "Connection", file: ImageFile) -> SitePublication:
    """What would be done, with nothing changed."""
    manifest = work.manifest
    standing = list(catalog.list_ours(connection, manifest.image_name))
    repair = site_rotation.plan_for(work, standing, keep=work.options.keep)
    current = site_rotation.current_of(standing, manifest.image_name)
    _check_foreign(work, connection, current)
    if current is not None and _is_unchanged(current, work):
        work.done += [str(step) for step in repair.steps]
        return _result(work, Outcome.UNCHANGED, current)
    image = next((image for image in standing if _is_at_hand(image, work)), None)
    if image is None:
        image = _imagined(work, file)
        standing.append(image)
        size = console.mebibytes(file.size) if file.size else "to be made"
        work.done.append(f"upload {file.name} ({size}) as {image.name}")
    work.done.append(f"set its visibility to {' or else '.join(work.options.visibility)}")
    plan = site_rotation.plan_for(work, standing, new=image.id, keep=work.options.keep)
    work.done += [str(step) for step in plan.steps]
    return _result(work, Outcome.WOULD_PUBLISH, None)


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
            site_rotation.drop_staging(work, connection)
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


def _follow_visibility(work: Work, connection: "Connection", image: SiteImage) -> SiteImage:
    """Change the visibility of what stands where the settings now prefer another."""
    if image.visibility == work.options.visibility[0]:
        return image
    before = image.visibility
    image = site_rotation.set_visibility(work, connection, image)
    if image.visibility != before:
        work.done.append(f"change the visibility of {image.name} ({image.id}) from {before} to {image.visibility}")
    return image


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


def _is_at_hand(image: SiteImage, work: Work) -> bool:
    """Whether an image at the site can be promoted in place of an upload."""
    return site_rotation.may_be_promoted(image) and _is_this_build(image, work)


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

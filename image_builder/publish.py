# SPDX-License-Identifier: Apache-2.0
"""Many sites at once: each has a thread of its own (:mod:`image_builder.site_work`) and never waits for another."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from chameleon_sites import cloud
from chameleon_sites.cloud import SiteUnreachable
from chameleon_sites.sites import Site, Upload
from groundwork import console, files
from groundwork.console import Stage
from groundwork.errors import SageError
from groundwork.worker import Worker
from image_builder import catalog, journal, rootfs, rotation, site_rotation, site_work, upload
from image_builder.catalog import Visibility
from image_builder.manifest import Manifest
from image_builder.publication import Outcome, PublishOptions, PublishReport, SiteInventory, SitePublication
from image_builder.site_rotation import SiteRun
from image_builder.site_work import Work

if TYPE_CHECKING:
    from openstack.connection import Connection

logger = logging.getLogger(__name__)

Run = TypeVar("Run", bound=SiteRun)

_DEFAULTS = PublishOptions()
_PATIENCE = 15.0  # seconds for the sites' threads to clean up after an interruption, before it is done for them


def publish(
    manifest: Manifest,
    folder: Path,
    sites: Sequence[Site],
    options: PublishOptions = _DEFAULTS,
    *,
    connections: "Mapping[str, Connection | SageError] | None" = None,
) -> PublishReport:
    """Publish a build (``manifest``, whose files lie in ``folder``) at all ``sites`` at once.

    ``connections``, by site name, is what :func:`chameleon_sites.cloud.connect_all` gave, where that was asked
    before.  What fails at a site is told in the report and stops no other.  Raises only what interrupts the
    program; by then the temporary images are deleted and a swap that had begun is finished.
    """
    stop = threading.Event()
    if connections is None:
        connections = cloud.connect_all(sites)
    payloads = {site.name: upload.payload_for(manifest, site) for site in sites}
    # One for all sites that get the same.
    feeds = {
        payload: upload.feed_for(payload, folder, options.scratch)
        for payload in payloads.values()
        if payload is not None
    }
    works = [
        Work(
            site=site,
            image_name=manifest.image_name,
            options=options,
            connection=connections.get(site.name, _not_connected(site)),
            stop=stop,
            manifest=manifest,
            folder=folder,
            payload=payload,
            feed=feeds[payload] if payload is not None and site.upload is not Upload.WEB_DOWNLOAD else None,
        )
        for site, payload in ((site, payloads[site.name]) for site in sites)
    ]
    title = "dry run of publishing" if options.dry_run else "publish"
    with ExitStack() as stack:
        if options.canary is not None and not options.dry_run:
            shared = stack.enter_context(rootfs.workspace(options.canary.cache))
            for work in works:
                work.shared = shared
        where = files.join_names([site.name for site in sites])
        stage = stack.enter_context(console.stage(f"{title} {manifest.image_name} at {where}"))
        try:
            at_all_sites(works, site_work.run, stop, stage)
        finally:
            for fed in feeds.values():
                fed.close()
        results = tuple(work.result for work in works if work.result is not None)
        failed = sum(result.problem is not None for result in results)
        stage.note = f"{failed} of {len(results)} sites are not done" if failed else ""
    return PublishReport(manifest.image_name, manifest.build_id, manifest.recipe_digest, results)


def at_all_sites(runs: Sequence[Run], work: Callable[[Run], None], stop: threading.Event, stage: Stage) -> None:
    """Do the work of each site in a thread of its own, and wait for all.

    Raises only what interrupts the program; ``stop`` is set then, and what was begun is cleaned up or finished.
    """
    workers: list[Worker] = []
    try:
        workers += (Worker(partial(work, run), name=f"publish {run.site.name}") for run in runs)
        while any(worker.alive for worker in workers):
            for worker in workers:
                worker.wait(0.05)
            stage.detail(", ".join(run.progress() for run in runs))
    except BaseException:
        stop.set()
        _clean_up(runs, workers)
        raise


def standing_report(
    sites: Sequence[Site],
    image_name: str,
    recipe_digest: str,
    options: PublishOptions,
    standing: Mapping[str, SiteInventory],
    connections: "Mapping[str, Connection | SageError]",
) -> PublishReport | None:
    """A report that nothing was to be done, if each site has an image of this recipe under the public name, or is held.

    ``standing``: our images at all ``sites``, by the site's name, so that a site is asked once for all images of a
    run.  None: there is something to build, to publish, to repair or to delete, or a site could not be asked.
    """
    results = []
    for site in sites:
        if journal.left_at(options.state or journal.default_folder(), site, image_name) is not None:
            return None
        images = [image for image in standing[site.name].images if image.image_name == image_name]
        current = rotation.current_of(images, image_name)
        if current is None:
            return None
        held = None
        if not site_work.is_of_recipe(current, site, recipe_digest):
            held = site_work.hold_of(images, image_name, recipe_digest)
            if held is None:
                return None
        try:
            run = SiteRun(
                site=site,
                image_name=image_name,
                options=options,
                connection=connections.get(site.name, _not_connected(site)),
                stop=threading.Event(),
            )
            plan = site_rotation.plan_for(run, images, keep=options.keep)
        except SageError:
            return None
        if plan.steps or (held is None and not site_work.is_visible_as_asked(current, options.visibility)):
            return None
        what = (Outcome.HELD if held else Outcome.UNCHANGED, current.id, image_name, Visibility(current.visibility))
        results.append(SitePublication(site.name, *what, 0, 0.0, (), (held,) if held else (), None))
    return PublishReport(image_name, "", recipe_digest, tuple(results))


def inventory(
    sites: Sequence[Site],
    image_name: str | None = None,
    *,
    connections: "Mapping[str, Connection | SageError] | None" = None,
) -> tuple[SiteInventory, ...]:
    """Our images at all ``sites``, read at once.  ``connections`` as for :func:`publish`."""
    if connections is None:
        connections = cloud.connect_all(sites)
    found: dict[str, SiteInventory] = {}

    def read(site: Site) -> None:
        try:
            connection = site_rotation.connected(connections.get(site.name, _not_connected(site)))
            images = catalog.list_ours(connection, image_name)
            # Sorts are stable: the last one counts first.
            ordered = sorted(images, key=lambda image: (image.built_at, image.created_at, image.id), reverse=True)
            ordered.sort(key=lambda image: (image.image_name, image.name != image.image_name))
            found[site.name] = SiteInventory(site.name, tuple(ordered), None)
        except Exception as error:
            found[site.name] = SiteInventory(site.name, (), site_rotation.problem_of(site, error))

    for worker in [Worker(partial(read, site)) for site in sites]:
        while not worker.wait(0.2):
            pass
    return tuple(found[site.name] for site in sites)


def _clean_up(runs: Sequence[SiteRun], workers: Sequence[Worker]) -> None:
    """After an interruption: wait for the threads to delete what they began; do it for those that are stuck."""
    deadline = time.monotonic() + _PATIENCE
    for run, worker in zip(runs, workers, strict=False):  # an interruption may come before all are started
        while worker.alive and time.monotonic() < deadline:
            with run.lock:
                idle = run.staging is None and not run.swapping and not run.trying
            if idle:
                break  # stuck in a question that changes nothing; it ends with the program
            worker.wait(0.05)
    for run in runs:
        with run.lock:
            stuck = run.staging is not None and not run.swapping
        if stuck and not isinstance(run.connection, SageError):
            logger.warning("%s does not answer; deleting its temporary image anew", run.site.name)
            site_rotation.drop_staging(run, run.connection)


def _not_connected(site: Site) -> SageError:
    return SiteUnreachable(f"{site.name} was not connected to")

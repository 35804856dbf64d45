# SPDX-License-Identifier: Apache-2.0
"""Several images, from recipes to a report: what ``create-image`` and a night both do.

Plan, build, boot and check, publish; each image for itself: one that fails stops no other.
"""

import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from chameleon_sites.sites import DiskFormat, Site, SiteKind, Upload, load_sites
from groundwork import console, products, settings
from groundwork.errors import InputError, Interrupted, SageError
from groundwork.settings import Setting
from image_builder import (
    archive,
    cli,
    layers,
    machine,
    manifest,
    papers,
    planning,
    privilege,
    recipe,
    signing,
    variant,
    verify,
)
from image_builder import build as builder
from image_builder import publish as publishing
from image_builder import report as reporting
from image_builder.build import Build, Places
from image_builder.inside import ArchiveMovedError
from image_builder.papers import Circumstances
from image_builder.provenance import BUILDER
from image_builder.publication import Problem, PublishReport, exit_code
from image_builder.recipe import Recipe
from image_builder.report import ImageReport, RunReport, SiteStanding
from image_builder.trees import Trees
from image_builder.variant import Arch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """One image that is wanted: its recipe, as declared, and the sites that it is for."""

    recipe: Recipe
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Program:
    """The command that runs: its name, and how sudo starts it again: ``module:function``, settings, further words."""

    name: str
    entry: str
    settings: Sequence[Setting]
    words: Sequence[str] = ()


@dataclass
class _Image:
    """How far one image has come."""

    order: Order
    recipe: Recipe
    build: Build | None = None
    unchanged: PublishReport | None = None  # where every site has the image of a build that stands here too
    publication: PublishReport | None = None
    problem: Problem | None = None
    seconds: float = 0.0

    @contextmanager
    def part(self) -> Iterator[None]:
        """A part of the work at this image: what it raises becomes the image's problem, and is told."""
        begin = time.monotonic()
        try:
            yield
        except Exception as error:
            self.problem = problem_of(error)
            _tell(self.problem)
        finally:
            self.seconds += time.monotonic() - begin

    @property
    def is_open(self) -> bool:
        """Whether there still is something to do for it."""
        return self.problem is None and self.publication is None

    @property
    def changed(self) -> bool:
        fresh = self.build is not None and self.build.fresh
        return fresh or (self.publication is not None and reporting.changed_at_sites(self.publication))


def run(orders: Sequence[Order], values: dict[str, Any], program: Program, *, look: bool = False) -> RunReport:
    """Make the images of ``orders`` and, with the setting ``publish``, publish them.

    ``values`` are the settings of ``create-image`` by their keys.  With ``look`` the report also tells what stands at
    the sites afterwards.  Whatever fails is told at once and stands in the report; after a signal the report is of
    what was done so far.
    """
    begun_at, begin, since = reporting.now(), time.monotonic(), archive.now()
    images = [_Image(order, order.recipe) for order in orders]
    problem: Problem | None = None
    code: int | None = None
    sites: tuple[SiteStanding, ...] = ()
    try:
        connections = _produce(images, values, program, since, look=look)
        if look and connections:
            named = _all_sites(orders)
            with console.stage("look at the sites", brief=True):
                sites = reporting.standing(publishing.inventory(named, connections=connections))
    except Interrupted as interruption:
        code = interruption.exit_code
        problem = Problem(str(interruption), None, False)
        _tell(problem)
    except (SageError, OSError) as error:
        problem = problem_of(error)
        _tell(problem)
    rows = tuple(_row(image) for image in images)
    publications = tuple(image.publication for image in images if image.publication is not None)
    return RunReport(
        format=reporting.FORMAT,
        command=program.name,
        begun_at=begun_at,
        ended_at=reporting.now(),
        seconds=round(time.monotonic() - begin, 3),
        exit_code=reporting.exit_code(rows, publications, problem) if code is None else code,
        images=rows,
        publications=publications,
        sites=sites,
        problem=problem,
    )


def order(name: str, release: str, arch: Arch | None, sites: Sequence[Site], values: dict[str, Any]) -> Order:
    """The order of a variant's image.  Raises InputError where there is no such variant, release or architecture."""
    found = variant.load(name, cli.variant_folders(values))
    overrides = {"SAGE_CUDA_VERSION": ("--cuda-version", values["cuda_version"])} if values["cuda_version"] else {}
    made = recipe.make(
        found,
        release,
        arch or cli.default_arch(found.arches),
        element_folders=[*values["elements_dir"], cli.project_folder("elements")],
        mirror=values["mirror"],
        keyring=values["keyring"],
        revision=values["revision"],
        overrides=overrides,
    )
    return Order(made, tuple(sites))


def rehearse(orders: Sequence[Order], values: dict[str, Any]) -> int:
    """Say what would be built, and, with --publish, what would be done at each site."""
    places = Places(output=values["output_dir"], cache=values["cache_dir"])
    since = archive.now()
    recipes = [planning.settle(order.recipe, places.cache, refresh=values["refresh"], since=since) for order in orders]
    report: dict[str, Any] = {"images": []}
    publications = []
    connections = cli.connect(_all_sites(orders)) if values["publish"] else {}
    for order, made in zip(orders, recipes, strict=True):
        formats = formats_for(order.sites, kvm=values["kvm"])
        found = None if values["force"] else builder.find(made, places.output)
        steps = _steps(made, found, formats, values)
        console.result(f"{made.image_name}: variant {made.variant}, {made.release}, {made.arch}")
        console.result(f"  recipe   {made.digest}")
        console.result(f"  archive  {made.archive.mirror}")
        for layer in made.layers:
            console.result(f"  layer    {layer.digest[:12]} {' '.join(layer.elements)}")
        for step in steps or [f"nothing to build: {found.folder if found else ''} is up to date"]:
            console.result(f"  {step}")
        row: dict[str, Any] = {"recipe": products.to_data(made), "steps": steps, "complete": not steps}
        if values["publish"] and order.sites:
            imagined = builder.imagine(made, found, formats)
            options = replace(cli.publish_options(values), dry_run=True)
            published = publishing.publish(imagined, places.output, order.sites, options, connections=connections)
            cli.tell_publication(published)
            publications.append(published)
            row["publication"] = products.to_data(published)
        report["images"].append(row)
    console.result_json(report)
    return exit_code(*publications)


def formats_for(sites: Sequence[Site], *, kvm: bool) -> list[DiskFormat]:
    """Each format that a site named boots best; without sites, the best that bare metal or KVM sites boot.

    Raw is no file of a build, but made on the way, unless the site downloads it.
    """
    if kvm or not sites:
        kind = SiteKind.KVM if kvm else SiteKind.BAREMETAL
        sites = [*sites, next(site for site in load_sites().values() if site.kind is kind)]
    best = [
        site.formats[0] for site in sites if site.formats[0] is not DiskFormat.RAW or site.upload is Upload.WEB_DOWNLOAD
    ]
    return list(dict.fromkeys(best)) or [DiskFormat.QCOW2_ZSTD]


def checking_of(values: dict[str, Any]) -> verify.Options | None:
    """How images are booted; None where they are not."""
    return None if values["no_verify"] else verify.Options(values["accel"], float(values["boot_timeout"]))


def problem_of(error: Exception) -> Problem:
    """An error as a value.  One that is none of ours is a fault of this program: the log has its traceback."""
    if isinstance(error, SageError):
        logger.debug("raised here", exc_info=True)
        return Problem(str(error), error.hint, isinstance(error, InputError))
    if isinstance(error, OSError):  # a full disk, a folder that can't be written
        logger.debug("raised here", exc_info=True)
        what = f"{error.filename or 'the system'}: {error.strerror or error}"
        return Problem(what, "SAGE_DEBUG=1 shows where", False)
    logger.error("a fault of this program", exc_info=True)
    return Problem(f"{type(error).__name__}: {error}", "a fault of this program: please report it", False)


def _produce(
    images: Sequence[_Image], values: dict[str, Any], program: Program, since: str, *, look: bool
) -> dict[str, Any]:
    """All stages of all images.  Returns the connections to the sites, by name."""
    places = Places(output=values["output_dir"], cache=values["cache_dir"])
    checking = checking_of(values)
    circumstances = Circumstances(values["revision"], values["builder_id"] or BUILDER, values["sign_key"])
    for image in images:
        with image.part():
            declared = image.order.recipe
            image.recipe = planning.settle(declared, places.cache, refresh=values["refresh"], since=since)
    connections: dict[str, Any] = {}
    if values["publish"] and (look or any(image.is_open for image in images)):
        connections = cli.connect(_all_sites([image.order for image in images if look or image.is_open]))
        if not values["force"]:
            _pass_over_standing(images, values, places, connections)
    to_build = [image for image in images if image.is_open]
    for_root = [image for image in to_build if builder.needs_root(image.recipe, places, force=values["force"])]
    for image in for_root:  # before a file is made or a password asked for
        with image.part():
            formats = formats_for(image.order.sites, kvm=values["kvm"])
            builder.check_machine(image.recipe, formats, places, verified=checking is not None, tree=True)
    for_root = [image for image in for_root if image.is_open]
    if for_root and privilege.find_way() is None:
        flags = settings.as_flags(program.settings, {**values, "config": os.devnull})
        try:
            privilege.rerun_as_root(program.entry, [*program.words, *flags])
        except SageError as error:
            problem = problem_of(error)
            _tell(problem)
            for image in for_root:
                image.problem = problem
            for_root = []
    with Trees([image.recipe for image in for_root], places.cache, anew=values["force"]) as trees:
        for image in to_build:
            if not image.is_open:
                continue
            with image.part():
                _build(image, values, places, checking, circumstances, trees)
                if values["publish"] and image.order.sites:
                    _publish(image, values, connections)
            if image.build is not None:
                _tell_build(image, values)
    keep = {layer.digest for image in images for layer in image.recipe.layers}
    layers.prune(places.cache, values["cache_limit"] << 30, keep)
    return connections


def _pass_over_standing(
    images: Sequence[_Image], values: dict[str, Any], places: Places, connections: dict[str, Any]
) -> None:
    """What stands at every site need not be built, also on a machine that never built it, nor published again."""
    options = cli.publish_options(values)
    looked = [image for image in images if image.is_open and image.order.sites]
    named = _all_sites([image.order for image in looked])
    standing = {found.site: found for found in publishing.inventory(named, connections=connections)}
    for image in looked:
        with image.part():
            made, sites = image.recipe, image.order.sites
            here = builder.find(made, places.output)
            formats = formats_for(sites, kvm=values["kvm"])
            found = publishing.standing_report(sites, made.image_name, made.digest, options, standing, connections)
            if found is None:
                continue
            if here is None or not builder.is_complete(here, made, formats, verified=True):
                image.publication = found
                cli.tell_publication(found)
            elif {row.visibility for row in found.sites} == {options.visibility[0]}:
                image.unchanged = found


def _build(
    image: _Image,
    values: dict[str, Any],
    places: Places,
    checking: verify.Options | None,
    circumstances: Circumstances,
    trees: Trees,
) -> None:
    formats = formats_for(image.order.sites, kvm=values["kvm"])

    def build() -> Build:
        return builder.build(
            image.recipe,
            formats,
            places,
            trees,
            checking=checking,
            force=values["force"],
            circumstances=circumstances,
        )

    try:
        image.build = build()
    except ArchiveMovedError as error:
        console.warn(f"{error}; beginning again with what it has now")
        image.recipe = planning.settle(image.order.recipe, places.cache, refresh=True)
        image.build = build()


def _publish(image: _Image, values: dict[str, Any], connections: dict[str, Any]) -> None:
    assert image.build is not None
    made, folder = image.build.manifest, image.build.folder
    if image.unchanged is not None and not image.build.fresh:
        image.publication = replace(image.unchanged, build_id=made.build_id)
    else:
        options = cli.publish_options(values)
        image.publication = publishing.publish(made, folder, image.order.sites, options, connections=connections)
    cli.tell_publication(image.publication)


def _tell_build(image: _Image, values: dict[str, Any]) -> None:
    assert image.build is not None
    for file in image.build.manifest.files:
        console.result(f"Image built in {image.build.folder / file.name}")
    if not values["publish"]:
        for command in upload_commands(image.build, image.order.sites):
            console.result(command)


def upload_commands(build: Build, sites: Sequence[Site]) -> list[str]:
    """The ``openstack image create`` commands that upload the image by hand, one a site (or one a file)."""
    made = build.manifest
    targets: list[tuple[str, manifest.ImageFile]] = []
    for site in sites:
        file = made.file_for(site.formats)
        if file:
            targets.append((f"--os-cloud {site.cloud or site.slug} ", file))
    targets = targets or [("", file) for file in made.files]
    min_disk = -(-made.disk_size // (1 << 30))
    return [
        f"openstack {cloud}image create --disk-format {file.format.glance} --container-format bare "
        f"--min-disk {min_disk} --property build-variant={made.variant} --property build-tag={made.build_id} "
        f"--file {shlex.quote(str(build.folder / file.name))} {made.image_name}"
        for cloud, file in targets
    ]


def _row(image: _Image) -> ImageReport:
    made = image.build
    return ImageReport(
        variant=image.recipe.variant,
        release=image.recipe.release,
        arch=str(image.recipe.arch),
        image_name=image.recipe.image_name,
        recipe_digest=image.recipe.digest,
        build_id=made.manifest.build_id if made else None,
        folder=made.folder if made else None,
        manifest=made.folder / manifest.MANIFEST if made else None,
        files=tuple(made.folder / file.name for file in made.manifest.files) if made else (),
        changed=image.changed,
        verified=made.manifest.checks is not None and made.manifest.checks.passed if made else None,
        seconds=round(image.seconds, 3),
        problem=image.problem,
    )


def _all_sites(orders: Sequence[Order]) -> list[Site]:
    return list({site.name: site for order in orders for site in order.sites}.values())


def _tell(problem: Problem) -> None:
    console.complain(problem.message, hint=problem.hint)


def _steps(made: Recipe, found: Build | None, formats: Sequence[DiskFormat], values: dict[str, Any]) -> list[str]:
    """What a build would do."""
    have = {file.format for file in found.manifest.files} if found else set()
    steps = [] if found else ["build the root tree and the disk"]
    steps += [f"write {form}" for form in formats if form not in have]
    if not values["no_verify"] and not (found and builder.is_complete(found, made, [], verified=True)):
        names = " and ".join(machine.firmwares(made.arch))
        steps.append(f"boot it on {names} and make {len(made.checks)} checks")
    key = values["sign_key"]
    if key and not (found and papers.is_signed_by(found.folder, key)):
        steps.append(f"sign it by {signing.fingerprint(key)}")
    return steps

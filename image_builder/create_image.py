# SPDX-License-Identifier: Apache-2.0
"""The command ``create-image``: settings -> stages -> report."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import groundwork
from chameleon_sites.sites import DiskFormat, Site, SiteKind, load_sites
from groundwork import console, products, settings
from groundwork.errors import InputError
from groundwork.program import run_program
from groundwork.settings import Parser
from image_builder import build as builder
from image_builder import (
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
from image_builder import publish as publishing
from image_builder import settings as table
from image_builder.build import Build, Places
from image_builder.inside import ArchiveMovedError
from image_builder.papers import Circumstances
from image_builder.provenance import BUILDER
from image_builder.publication import Outcome, PublishReport, exit_code
from image_builder.recipe import Recipe
from image_builder.trees import Trees
from image_builder.variant import Arch


def main() -> NoReturn:
    """The console script ``create-image``."""
    run_program(lambda: _create_image(sys.argv[1:]))


def _create_image(words: Sequence[str]) -> int:
    parser = Parser(
        prog="create-image",
        description="Build a Sage image, boot and check it, and publish it to Chameleon's sites.",
        epilog=cli.EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"create-image {groundwork.__version__}")
    settings.add_flags(parser, table.CREATE_IMAGE)
    values = cli.read_values(table.CREATE_IMAGE, parser.parse_args(words))
    begin = time.monotonic()
    sites = cli.named_sites(values)
    if values["publish"] and not sites:
        raise InputError("--publish needs at least one --site", hint="known sites: " + ", ".join(load_sites()))
    if values["publish"] and values["no_verify"]:
        raise InputError("an image that was not booted is not published", hint="leave out --no-verify or --publish")
    if values["sign_key"]:
        signing.check_key(values["sign_key"])
    declared = {made.variant: made for made in _recipes(values)}
    recipes = [planning.settle(made, values["cache_dir"], refresh=values["refresh"]) for made in declared.values()]
    formats = _formats(values, sites)
    places = Places(output=values["output_dir"], cache=values["cache_dir"])
    checking = None if values["no_verify"] else verify.Options(values["accel"], float(values["boot_timeout"]))
    if values["dry_run"]:
        return _dry_run(values, recipes, formats, sites, places)
    circumstances = Circumstances(values["revision"], values["builder_id"] or BUILDER, values["sign_key"])
    options = cli.publish_options(values)
    connections = cli.connect(sites) if values["publish"] else {}
    stands: dict[str, PublishReport] = {}
    if values["publish"] and not values["force"]:
        # What stands at every site need not be built, also on a machine that never built it.
        for made in recipes:
            here = builder.find(made, places.output)
            if here is None or not builder.is_complete(here, made, formats, verified=True):
                found = publishing.standing_report(sites, made.image_name, made.digest, options, connections)
                if found is not None:
                    stands[made.digest] = found
    to_build = [made for made in recipes if made.digest not in stands]
    for_root = [made for made in to_build if builder.needs_root(made, places, force=values["force"])]
    for made in for_root:  # before a file is made or a password asked for
        builder.check_machine(made, formats, places, verified=checking is not None, tree=True)
    if for_root and privilege.find_way() is None:
        flags = settings.as_flags(table.CREATE_IMAGE, {**values, "config": os.devnull})
        privilege.rerun_as_root("image_builder.create_image:main", flags)
    report: dict[str, Any] = {"images": [], "publications": []}
    publications = list(stands.values())
    changed = False
    try:
        for published in publications:
            cli.tell_publication(published)
        made_with: dict[str, Any] = {
            "checking": checking,
            "force": values["force"],
            "circumstances": circumstances,
        }
        with Trees(for_root, places.cache, anew=values["force"]) as trees:
            for planned in to_build:
                try:
                    build = builder.build(planned, formats, places, trees, **made_with)
                except ArchiveMovedError as error:
                    console.warn(f"{error}; beginning again with what it has now")
                    made = planning.settle(declared[planned.variant], places.cache, refresh=True)
                    build = builder.build(made, formats, places, trees, **made_with)
                changed |= build.fresh
                report["images"].append(_build_data(build))
                if values["publish"]:
                    published = publishing.publish(
                        build.manifest, build.folder, sites, options, connections=connections
                    )
                    changed |= any(site.outcome is not Outcome.UNCHANGED for site in published.sites)
                    publications.append(published)
                    cli.tell_publication(published)
                _tell_build(build, values, sites)
        keep = {layer.digest for planned in recipes for layer in planned.layers}
        layers.prune(places.cache, values["cache_limit"] << 30, keep)
    finally:
        report["publications"] = [products.to_data(published) for published in publications]
        console.result_json(report)
    if not changed:
        console.say(f"Nothing has changed: not built, booted or uploaded again ({time.monotonic() - begin:.1f} s)")
    return exit_code(*publications)


def _recipes(values: dict[str, Any]) -> list[Recipe]:
    folders = [*values["variants_dir"], cli.project_folder("variants")]
    if not values["variant"]:
        raise InputError("no variant given", hint=f"--variant {' | '.join(sorted(variant.available(folders)))}")
    overrides = {"SAGE_CUDA_VERSION": ("--cuda-version", values["cuda_version"])} if values["cuda_version"] else {}
    loaded = [variant.load(name, folders) for name in dict.fromkeys(values["variant"])]
    return [
        recipe.make(
            found,
            values["release"],
            Arch(values["arch"]) if values["arch"] else cli.default_arch(found.arches),
            element_folders=[*values["elements_dir"], cli.project_folder("elements")],
            mirror=values["mirror"],
            keyring=values["keyring"],
            revision=values["revision"],
            overrides=overrides,
        )
        for found in loaded
    ]


def _formats(values: dict[str, Any], sites: Sequence[Site]) -> list[DiskFormat]:
    """Each format that a site named boots best; without sites, the best that bare metal or KVM sites boot."""
    if values["kvm"] or not sites:
        kind = SiteKind.KVM if values["kvm"] else SiteKind.BAREMETAL
        sites = [*sites, next(site for site in load_sites().values() if site.kind is kind)]
    return list(dict.fromkeys(site.formats[0] for site in sites))


def _tell_build(build: Build, values: dict[str, Any], sites: Sequence[Site]) -> None:
    made = build.manifest
    for file in made.files:
        console.result(f"Image built in {build.folder / file.name}")
    if not values["publish"]:
        for command in upload_commands(build, sites):
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


def _build_data(build: Build) -> dict[str, Any]:
    made = build.manifest
    return {
        "image_name": made.image_name,
        "build_id": made.build_id,
        "recipe_digest": made.recipe_digest,
        "folder": str(build.folder),
        "manifest": str(build.folder / manifest.MANIFEST),
        "files": [str(build.folder / file.name) for file in made.files],
        "changed": build.fresh,
        "verified": made.checks is not None and made.checks.passed,
    }


def _dry_run(
    values: dict[str, Any],
    recipes: Sequence[Recipe],
    formats: Sequence[DiskFormat],
    sites: Sequence[Site],
    places: Places,
) -> int:
    """Say what would be built, and, with --publish, what would be done at each site."""
    report: dict[str, Any] = {"images": []}
    publications = []
    connections = cli.connect(sites) if values["publish"] else {}
    for made in recipes:
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
        if values["publish"]:
            imagined = builder.imagine(made, found, formats)
            options = replace(cli.publish_options(values), dry_run=True)
            published = publishing.publish(imagined, places.output, sites, options, connections=connections)
            cli.tell_publication(published)
            publications.append(published)
            row["publication"] = products.to_data(published)
        report["images"].append(row)
    console.result_json(report)
    return exit_code(*publications)


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

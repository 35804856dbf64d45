# SPDX-License-Identifier: Apache-2.0
"""The commands ``create-image`` and ``sage-image``: settings -> stages -> report."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import groundwork
from chameleon_sites import cloud
from chameleon_sites.sites import DiskFormat, Site, SiteKind, load_sites, pick_sites
from groundwork import console, files, process, products, settings
from groundwork.errors import InputError, SageError, unknown
from groundwork.program import log_to_stderr, run_program
from groundwork.settings import Parser, Setting
from image_builder import build as builder
from image_builder import (
    disk,
    emulation,
    inspection,
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
from image_builder.catalog import Visibility
from image_builder.hardware import Firmware
from image_builder.inside import ArchiveMovedError
from image_builder.papers import Circumstances
from image_builder.provenance import BUILDER
from image_builder.publication import Outcome, Problem, PublishOptions, PublishReport, exit_code
from image_builder.recipe import Recipe
from image_builder.rootfs import workspace
from image_builder.trees import Trees
from image_builder.variant import Arch

_EPILOG = """\
Every setting can also be given in the environment (SAGE_OUTPUT_DIR for --output-dir) and in a configuration file
(~/.config/sage-chameleon/config.yaml, key output-dir).  Exit codes: 0 done, 1 failed, 2 wrong input or
configuration, 3 some sites failed.
"""


def create_image() -> NoReturn:
    """The console script ``create-image``."""
    run_program(lambda: _create_image(sys.argv[1:]))


def sage_image() -> NoReturn:
    """The console script ``sage-image``."""
    run_program(lambda: _sage_image(sys.argv[1:]))


def project_folder(name: str) -> Path:
    """Our ``elements`` or ``variants``: in the clone, or carried along in the installed package."""
    in_clone = Path(__file__).parents[1] / name
    return in_clone if in_clone.is_dir() else Path(__file__).parent / "data" / name


def _create_image(words: Sequence[str]) -> int:
    parser = Parser(
        prog="create-image",
        description="Build a Sage image, boot and check it, and publish it to Chameleon's sites.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"create-image {groundwork.__version__}")
    settings.add_flags(parser, table.CREATE_IMAGE)
    values = _values(table.CREATE_IMAGE, parser.parse_args(words))
    begin = time.monotonic()
    sites = _sites(values)
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
    options = _publish_options(values)
    connections = _connect(sites) if values["publish"] else {}
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
        privilege.rerun_as_root("image_builder.cli:create_image", flags)
    report: dict[str, Any] = {"images": [], "publications": []}
    publications = list(stands.values())
    changed = False
    try:
        for published in publications:
            _tell_publication(published)
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
                    _tell_publication(published)
                _tell_build(build, values, sites)
        keep = {layer.digest for planned in recipes for layer in planned.layers}
        layers.prune(places.cache, values["cache_limit"] << 30, keep)
    finally:
        report["publications"] = [products.to_data(published) for published in publications]
        console.result_json(report)
    if not changed:
        console.say(f"Nothing has changed: not built, booted or uploaded again ({time.monotonic() - begin:.1f} s)")
    return exit_code(*publications)


def _sites(values: dict[str, Any]) -> list[Site]:
    return pick_sites(values["site"], values["sites_file"])


def _values(rows: Sequence[Setting], given: argparse.Namespace) -> dict[str, Any]:
    """The settings' values, from flags, environment and configuration files."""
    paths = settings.configuration_files(getattr(given, "config", None))
    configuration = settings.read_configuration(paths, table.ALL)
    values = settings.resolve(rows, given, configuration=configuration)
    console.configure(json_output=values["json"], quiet=values["quiet"])
    if values["debug"]:
        log_to_stderr(debug=True)
    if "elements_dir" in values:
        also = [Path(path).absolute() for path in os.environ.get("ELEMENTS_PATH", "").split(":") if path]
        values["elements_dir"] = tuple(dict.fromkeys((*values["elements_dir"], *also)))
    for key in ("variants_dir", "elements_dir"):
        for folder in values.get(key, ()):
            if not folder.is_dir():
                raise InputError(f"--{key.replace('_', '-')}: there is no folder {folder}")
    return values


def _recipes(values: dict[str, Any]) -> list[Recipe]:
    folders = [*values["variants_dir"], project_folder("variants")]
    if not values["variant"]:
        raise InputError("no variant given", hint=f"--variant {' | '.join(sorted(variant.available(folders)))}")
    overrides = {"SAGE_CUDA_VERSION": ("--cuda-version", values["cuda_version"])} if values["cuda_version"] else {}
    loaded = [variant.load(name, folders) for name in dict.fromkeys(values["variant"])]
    return [
        recipe.make(
            found,
            values["release"],
            Arch(values["arch"]) if values["arch"] else default_arch(found.arches),
            element_folders=[*values["elements_dir"], project_folder("elements")],
            mirror=values["mirror"],
            keyring=values["keyring"],
            revision=values["revision"],
            overrides=overrides,
        )
        for found in loaded
    ]


def default_arch(arches: Sequence[Arch]) -> Arch:
    """The architecture where none was named: this machine's if the variant has it, else the variant's only one."""
    native = emulation.machine_arch()
    if native in arches or len(arches) > 1:
        if native not in list(Arch):
            raise unknown("architecture", native, list(Arch))
        return Arch(native)
    return arches[0]


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
    connections = _connect(sites) if values["publish"] else {}
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
            options = replace(_publish_options(values), dry_run=True)
            published = publishing.publish(imagined, places.output, sites, options, connections=connections)
            _tell_publication(published)
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


def _connect(sites: Sequence[Site]) -> dict[str, Any]:
    """Connect to the sites before hours are spent on a build; raises where no site is left to publish to."""
    connections = cloud.connect_all(sites)
    problems = {
        name: Problem(str(found), found.hint, isinstance(found, InputError))
        for name, found in connections.items()
        if isinstance(found, SageError)
    }
    _tell_problems(problems)
    if len(problems) == len(sites):
        kind = InputError if all(problem.bad_input for problem in problems.values()) else SageError
        raise kind("no site is left to publish to")
    return connections


def _publish_options(values: dict[str, Any]) -> PublishOptions:
    return PublishOptions(
        visibility=tuple(Visibility(word) for word in values["visibility"]),
        keep=values["keep"],
        dry_run=values.get("dry_run", False),
        force=values["force"],
        upload_deadline=float(values["upload_timeout"]),
        locks=values["cache_dir"] / "locks",
    )


def _tell_publication(report: PublishReport) -> None:
    """What came of publishing, a row a site, and each site's plan, warnings and error below."""
    rows = [
        [
            site.site,
            str(site.outcome),
            str(site.visibility or "-"),
            site.image_id or "-",
            console.mebibytes(site.uploaded),
            f"{site.seconds:.1f} s",
        ]
        for site in report.sites
    ]
    console.table(["site", "outcome", "visibility", "image", "uploaded", "time"], rows, title=report.image_name)
    for site in report.sites:
        for step in site.plan:
            console.result(f"  {site.site}: {step}")
        for text in site.warnings:
            console.warn(f"{site.site}: {text}")
    _tell_problems({site.site: site.problem for site in report.sites if site.problem})


def _tell_problems(problems: Mapping[str, Problem]) -> None:
    """What went wrong at each site; what went wrong at several in the same words, once."""
    by_text: dict[tuple[str, str | None], list[str]] = {}
    for site, problem in problems.items():
        by_text.setdefault((problem.message, problem.hint), []).append(site)
    for (message, hint), sites in by_text.items():
        names = files.join_names([site for site in sites if site not in message])
        console.complain(f"{names}: {message}" if names else message, hint=hint)


def _sage_image(words: Sequence[str]) -> int:
    parser = Parser(prog="sage-image", description="Look at, check and publish Sage images.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"sage-image {groundwork.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, text, rows, positionals, function in (
        ("list", "what stands at each site, side by side", table.LIST, (), _list),
        (
            "verify",
            "check digests and signatures of an image file or a build, boot it and make its variant's checks",
            table.VERIFY,
            ("IMAGE",),
            _verify,
        ),
        ("publish", "publish a finished build", table.PUBLISH, ("MANIFEST",), _publish),
        ("show", "what is in a finished build", table.SHOW, ("MANIFEST",), _show),
        ("diff", "what changed from one finished build to another", table.DIFF, ("A", "B"), _diff),
        ("sign", "sign a finished build, or sign it anew", table.SIGN, ("MANIFEST",), _sign),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=_EPILOG)
        settings.add_flags(command, rows)
        for position, word in enumerate(positionals):
            command.add_argument(f"path{position}", metavar=word, type=settings.folder)
        command.set_defaults(function=function, rows=rows)
    given = parser.parse_args(words)
    values = _values(given.rows, given)
    run: Callable[..., int] = given.function
    return run(values, *(path for name, path in sorted(vars(given).items()) if name.startswith("path")))


def _list(values: dict[str, Any]) -> int:
    sites = _sites(values) or cloud.with_entry(load_sites(values["sites_file"]).values())
    if not sites:
        raise InputError("clouds.yaml has no entry for any known site", hint="known sites: " + ", ".join(load_sites()))
    inventories = publishing.inventory(sites)
    console.result_json([products.to_data(inventory) for inventory in inventories])
    # One row a build; what differs from site to site stands in the sites' columns.
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for inventory in inventories:
        for image in inventory.images:
            size = console.mebibytes(image.size) if image.size is not None else "-"
            words = [image.state or image.status, image.visibility, size, *(["hidden"] if image.hidden else [])]
            key = (image.image_name, image.built_at, image.recipe_digest[:12])
            cells.setdefault(key, {})[inventory.site] = ", ".join(words)
    rows = [
        [*key, *(by_site.get(inventory.site, "-") for inventory in inventories)]
        for key, by_site in sorted(cells.items(), key=lambda item: (item[0][0], item[0][1]), reverse=True)
    ]
    if rows:
        console.table(["name", "built", "recipe", *(inventory.site for inventory in inventories)], rows)
    elif any(inventory.problem is None for inventory in inventories):
        console.result("no images of ours")
    _tell_problems({inventory.site: inventory.problem for inventory in inventories if inventory.problem})
    return exit_code(*inventories)


def _verify(values: dict[str, Any], path: Path) -> int:
    if not path.exists():
        raise InputError(f"there is no file {path}")
    made: manifest.Manifest | None = None
    beside = path if path.is_dir() or path.name == manifest.MANIFEST else path.parent
    if (beside if beside.is_file() else beside / manifest.MANIFEST).exists():
        try:
            made, folder = manifest.read(beside)
        except InputError:
            if values["variant"] is None or path == beside:
                raise  # else it is another's, that happens to lie there
    whole_build = path.is_dir() or path.name == manifest.MANIFEST
    if made is not None and whole_build:
        path = folder / made.files[0].name
    disk.check_is_image(path)
    known = made is not None and path.name in {file.name for file in made.files}
    if values["signers"]:
        if not known:
            raise InputError(f"{path} has no manifest beside it, so nobody signed what it is")
        console.result(f"signed by {papers.check_signatures(folder, values['signers'])}")
    if made is not None and known:
        if whole_build or values["signers"]:
            papers.check_digests(made, folder, [file.name for file in made.files] if whole_build else [path.name])
        else:  # an image file alone, as it was downloaded
            manifest.check_digest(made, path)
        console.result("digests are as the manifest says")
    if values["no_boot"]:
        if not known:
            raise InputError(f"{path} has no manifest beside it: without booting there is nothing to check")
        console.result_json({"digests": True, "signed": bool(values["signers"])})
        return 0
    name = values["variant"] or (made.variant if made else None)
    if name is None:
        raise InputError(
            f"there is no manifest beside {path}, so it is not known what it promises",
            hint="name the variant whose checks to make: --variant sage",
        )
    chosen = variant.load(name, [*values["variants_dir"], project_folder("variants")])
    named = made.arch if made else values["arch"]
    arch = Arch(named) if named else default_arch(chosen.arches)
    process.require(*machine.programs(arch))
    machine.uefi_files(arch)
    firmwares = tuple(Firmware(name) for name in dict.fromkeys(values["firmware"]))
    options = verify.Options(values["accel"], float(values["boot_timeout"]), firmwares, chosen.settings)
    with workspace(values["cache_dir"]) as scratch, console.stage("verify") as stage:
        logs = files.make_folder(values["cache_dir"] / "logs" / f"verify-{path.name}")
        report = verify.verify(path, arch, chosen.checks, logs, scratch, options, stage)
    console.result_json(products.to_data(report))
    _tell_checks(report)
    if not report.passed:
        raise verify.explain(report, logs)
    return 0


def _tell_checks(report: manifest.CheckReport) -> None:
    rows = [
        ["passed" if result.passed else "FAILED", result.firmware, f"{result.seconds:.1f} s", result.name]
        for result in report.results
    ]
    console.table(["", "firmware", "time", "check"], rows)


def _publish(values: dict[str, Any], path: Path) -> int:
    sites = _sites(values)
    if not sites:
        raise InputError("publish needs at least one --site", hint="known sites: " + ", ".join(load_sites()))
    made, folder = manifest.read(path)
    if made.checks is None or not made.checks.passed:
        raise InputError(
            f"{path}: this build was not booted and checked; it is not published",
            hint=f"build it without --no-verify: create-image --variant {made.variant} --release {made.release}",
        )
    for file in made.files:
        disk.check_is_image(folder / file.name)
    published = publishing.publish(made, folder, sites, _publish_options(values), connections=_connect(sites))
    _tell_publication(published)
    console.result_json(products.to_data(published))
    return exit_code(published)


def _show(values: dict[str, Any], path: Path) -> int:
    made, folder = manifest.read(path)
    if values["size"]:
        report = inspection.sizes(made, folder)
        console.result_json(products.to_data(report))
        inspection.tell_sizes(report)
        return 0
    console.result_json(products.to_data(made))
    commit = f"{made.commit[:12]}{'' if made.clean else ' with changes'}" if made.commit else "unknown"
    checks = "not booted" if made.checks is None else f"{len(made.checks.results)} checks passed"
    for name, value in (
        ("image", made.image_name),
        ("build", made.build_id),
        ("variant", f"{made.variant}, {made.os_name} {made.os_version} ({made.release}), {made.arch}"),
        ("recipe", made.recipe_digest),
        ("project", f"{made.project_version}, commit {commit}"),
        ("disk", console.mebibytes(made.disk_size)),
        ("packages", str(len(made.packages))),
        ("verified", checks),
        ("stages", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in made.stage_seconds.items())),
    ):
        console.result(f"{name:9} {value}")
    for file in made.files:
        console.result(f"{'file':9} {folder / file.name} ({console.mebibytes(file.size)})")
        console.result(f"{'sha256':9} {file.sha256}")
    if made.checks is not None:
        _tell_checks(made.checks)
    return 0


def _diff(values: dict[str, Any], before: Path, after: Path) -> int:
    report = inspection.difference(manifest.read(before), manifest.read(after))
    console.result_json(products.to_data(report))
    inspection.tell_difference(report)
    return 0


def _sign(values: dict[str, Any], path: Path) -> int:
    if not values["sign_key"]:
        raise InputError("sign needs a key", hint="--sign-key FILE, or sign-key in the configuration file")
    made, folder = manifest.read(path)
    signing.check_key(values["sign_key"])
    papers.check_digests(made, folder, [file.name for file in made.files])  # what is signed is what was built
    papers.sign(folder, values["sign_key"])
    console.result(f"signed by {signing.fingerprint(values['sign_key'])}: {folder}")
    console.result_json({"folder": str(folder), "key": signing.fingerprint(values["sign_key"])})
    return 0

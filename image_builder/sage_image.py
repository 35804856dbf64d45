# SPDX-License-Identifier: Apache-2.0
"""The command ``sage-image``: a look at builds and sites, and the care of what stands there."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import groundwork
from chameleon_sites.sites import load_sites, pick_sites
from groundwork import console, files, process, products, settings
from groundwork.errors import InputError
from groundwork.program import run_program
from groundwork.settings import Parser
from image_builder import (
    appliance,
    canary,
    cli,
    disk,
    hooks,
    inspection,
    machine,
    manifest,
    nightly,
    papers,
    pipeline,
    qemu_canary,
    signing,
    upkeep_commands,
    variant,
    verify,
)
from image_builder import publish as publishing
from image_builder import report as reporting
from image_builder import settings as table
from image_builder.canary import Candidate, Verdict
from image_builder.hardware import Firmware
from image_builder.publication import exit_code
from image_builder.rootfs import workspace
from image_builder.variant import Arch


def main() -> NoReturn:
    """The console script ``sage-image``."""
    run_program(lambda: _sage_image(sys.argv[1:]))


def _sage_image(words: Sequence[str]) -> int:
    parser = Parser(prog="sage-image", description="Look at, check and publish Sage images.", epilog=cli.EPILOG)
    parser.add_argument("--version", action="version", version=f"sage-image {groundwork.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, text, rows, positionals, function in (
        (
            "verify",
            "check digests and signatures of an image file or a build, boot it and make its variant's checks",
            table.VERIFY,
            ("IMAGE",),
            _verify,
        ),
        (
            "nightly",
            "refresh, build, check and publish all images of a file, and tell of it",
            table.NIGHTLY,
            (),
            _nightly,
        ),
        ("publish", "publish a finished build", table.PUBLISH, ("MANIFEST",), _publish),
        ("canary", "try a candidate, told as JSON on standard input, by booting it", table.TRY, (), _canary),
        ("show", "what is in a finished build", table.SHOW, ("MANIFEST",), _show),
        ("diff", "what changed from one finished build to another", table.DIFF, ("A", "B"), _diff),
        (
            "describe",
            "the page of a finished build for a catalog: what is in it, how to lease a machine and log in",
            table.DESCRIBE,
            ("MANIFEST",),
            _describe,
        ),
        ("sign", "sign a finished build, or sign it anew", table.SIGN, ("MANIFEST",), _sign),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=cli.EPILOG)
        settings.add_flags(command, rows)
        for position, word in enumerate(positionals):
            command.add_argument(f"path{position}", metavar=word, type=settings.folder)
        command.set_defaults(function=function, rows=rows)
    for upkeep in upkeep_commands.COMMANDS:
        command = commands.add_parser(
            upkeep.name, help=upkeep.help, description=upkeep.help.capitalize() + ".", epilog=cli.EPILOG
        )
        settings.add_flags(command, upkeep.settings)
        for position, word in enumerate(upkeep.words):
            optional = word.startswith("[")
            command.add_argument(
                f"path{position}", metavar=word.strip("[]"), nargs="?" if optional else None, default=""
            )
        command.set_defaults(function=upkeep.function, rows=upkeep.settings)
    given = parser.parse_args(words)
    values = cli.read_values(given.rows, given, nightly.SCHEMA if given.function is _nightly else None)
    run: Callable[..., int] = given.function
    return run(values, *(path for name, path in sorted(vars(given).items()) if name.startswith("path")))


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
    chosen = variant.load(name, cli.variant_folders(values))
    named = made.arch if made else values["arch"]
    arch = Arch(named) if named else cli.default_arch(chosen.arches)
    process.require(*machine.programs(arch))
    machine.uefi_files(arch)
    firmwares = tuple(Firmware(name) for name in dict.fromkeys(values["firmware"]))
    options = verify.Options(values["accel"], float(values["boot_timeout"]), firmwares, chosen.settings)
    with workspace(values["cache_dir"]) as scratch, console.stage("verify") as stage:
        logs = files.make_folder(values["cache_dir"] / "logs" / f"verify-{path.name}")
        report = verify.verify(path, arch, chosen.checks, logs, scratch, options, stage)
    console.result_json(products.to_data(report))
    cli.tell_checks(report)
    if not report.passed:
        raise verify.explain(report, logs)
    return 0


def _nightly(values: dict[str, Any]) -> int:
    return nightly.run(values)


def _publish(values: dict[str, Any], path: Path) -> int:
    sites = cli.named_sites(values)
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
    options = cli.publish_options(values)
    if options.canary is not None and not values["canary_command"]:
        qemu_canary.check_machine(Arch(made.arch))
    told = hooks.load(values["hooks"]) if values["hooks"] else ()
    begun_at, connections = reporting.now(), cli.connect(sites)
    published = publishing.publish(made, folder, sites, options, connections=connections)
    cli.tell_publication(published)
    console.result_json(products.to_data(published))
    if options.dry_run:
        return exit_code(published)
    look = values["metrics"] or values["pushgateway"]
    standing = reporting.standing(publishing.inventory(sites, connections=connections)) if look else ()
    return cli.announce(reporting.of_publication(made, folder, published, standing, begun_at), values, told)


def _canary(values: dict[str, Any]) -> int:
    """What publishing starts for each candidate.  Its exit code is a canary's: what goes wrong here is inconclusive."""
    try:
        candidate = products.parse(Candidate, sys.stdin.buffer.read(), "standard input")
        (site,) = pick_sites([candidate.site], values["sites_file"])
        chosen = variant.load(candidate.variant, cli.variant_folders(values))
        qemu_canary.check_machine(Arch(candidate.arch))
        options = verify.Options(values["accel"], float(values["boot_timeout"]))
        report = qemu_canary.run(candidate, site, chosen, values["cache_dir"], options)
    except Exception as error:
        problem = pipeline.problem_of(error)
        console.complain(problem.message, hint=problem.hint)
        console.result_json({"verdict": str(Verdict.INCONCLUSIVE), "reason": problem.message})
        return canary.INCONCLUSIVE
    console.result_json(products.to_data(report))
    console.result(f"{report.verdict}: {report.reason}")
    if report.checks is not None:
        cli.tell_checks(report.checks)
    return canary.PASS if report.verdict is Verdict.PASS else canary.FAIL


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
        cli.tell_checks(made.checks)
    return 0


def _diff(values: dict[str, Any], before: Path, after: Path) -> int:
    report = inspection.difference(manifest.read(before), manifest.read(after))
    console.result_json(products.to_data(report))
    inspection.tell_difference(report)
    return 0


def _describe(values: dict[str, Any], path: Path) -> int:
    sites = cli.named_sites(values)
    made, folder = manifest.read(path)
    chosen = variant.load(made.variant, cli.variant_folders(values))
    since = manifest.read(values["since"]) if values["since"] else None
    difference = inspection.difference(since, (made, folder)) if since else None
    inventories = publishing.inventory(sites, made.image_name) if sites else ()
    cli.tell_problems({inventory.site: inventory.problem for inventory in inventories if inventory.problem})
    described = appliance.describe(made, chosen, sites, inventories, difference)
    console.result_json(products.to_data(described))
    if values["output"] is None:
        console.result(appliance.to_markdown(described))
    else:
        for ending, text in (("md", appliance.to_markdown(described)), ("html", appliance.to_html(described))):
            target = values["output"] / f"{made.image_name}.{ending}"
            files.write_text(target, text)
            console.result(f"written: {target}")
    return exit_code(*inventories)


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


if __name__ == "__main__":
    main()

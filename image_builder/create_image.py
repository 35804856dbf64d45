# SPDX-License-Identifier: Apache-2.0
"""The command ``create-image``: settings -> orders -> report."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import groundwork
from chameleon_sites.sites import load_sites
from groundwork import console, products, settings
from groundwork.errors import InputError
from groundwork.program import run_program
from groundwork.settings import Parser
from image_builder import cli, hooks, pipeline, signing, variant
from image_builder import settings as table
from image_builder.pipeline import Program
from image_builder.variant import Arch

PROGRAM = Program("create-image", "image_builder.create_image:main", table.CREATE_IMAGE)


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
    sites = cli.named_sites(values)
    if values["publish"] and not sites:
        raise InputError("--publish needs at least one --site", hint="known sites: " + ", ".join(load_sites()))
    if values["publish"] and values["no_verify"]:
        raise InputError("an image that was not booted is not published", hint="leave out --no-verify or --publish")
    if values["sign_key"]:
        signing.check_key(values["sign_key"])
    if not values["variant"]:
        known = variant.available(cli.variant_folders(values))
        raise InputError("no variant given", hint=f"--variant {' | '.join(sorted(known))}")
    arch = Arch(values["arch"]) if values["arch"] else None
    orders = [pipeline.order(name, values["release"], arch, sites, values) for name in dict.fromkeys(values["variant"])]
    if values["dry_run"]:
        return pipeline.rehearse(orders, values)
    told = hooks.load(values["hooks"]) if values["hooks"] else ()
    report = pipeline.run(orders, values, PROGRAM, look=cli.wants_standing(values))
    console.result_json(products.to_data(report))
    if not report.failed and not report.changed:
        console.say(f"Nothing has changed: not built, booted or uploaded again ({report.seconds:.1f} s)")
    return cli.announce(report, values, told)

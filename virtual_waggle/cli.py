# SPDX-License-Identifier: Apache-2.0
"""The commands virtual-waggle and beehive-server.

What a call does not need is not imported: the machines that run it may be slow.
"""

import sys
from argparse import ArgumentParser
from typing import NoReturn

from groundwork import __version__


def virtual_waggle() -> NoReturn:
    """The program virtual-waggle."""
    _run(
        "virtual-waggle",
        "A Waggle node in software, part of every Sage image. This release has the container images of the node and\n"
        "of the Beehive; the services that run in them are not in it yet.",
        images=True,
    )


def beehive_server() -> NoReturn:
    """The program beehive-server."""
    _run(
        "beehive-server",
        "The Beehive, which gathers what Waggle nodes send, part of every Sage image. This release tells its version\n"
        "and nothing more: the Beehive's services are not in it yet.",
        images=False,
    )


def _run(name: str, description: str, *, images: bool) -> NoReturn:
    if sys.argv[1:] == ["--version"]:
        print(f"{name} {__version__}")
        sys.exit(0)

    from groundwork.program import run_program
    from groundwork.settings import Parser

    def main() -> int:
        parser = Parser(prog=name, description=description)
        parser.add_argument("--version", action="version", version=f"{name} {__version__}")
        if images:
            _add_images(parser)
        given = parser.parse_args(sys.argv[1:])
        if getattr(given, "what", None) == "list":
            return _list_images()
        if getattr(given, "what", None) == "load":
            return _load_images(given.image)
        parser.print_help()
        return 0

    run_program(main)


def _add_images(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND")
    images = commands.add_parser("images", help="the container images that this machine brought with it")
    what = images.add_subparsers(dest="what", metavar="list|load", required=True)
    what.add_parser("list", help="show them, and whether Docker has them")
    load = what.add_parser("load", help="give Docker those that it does not have; no registry is asked")
    load.add_argument("image", nargs="*", metavar="IMAGE", help="only this one, as sage/rabbitmq")


def _list_images() -> int:
    from groundwork import console
    from virtual_waggle.containers import load

    images = load.stored()
    lacking = {image.name for image in load.missing(images)}
    rows = [
        [
            image.name,
            console.mebibytes(sum(layer.plain_size for layer in image.layers)),
            "not loaded" if image.name in lacking else "loaded",
        ]
        for image in images
    ]
    console.table(["image", "size", "in Docker"], rows)
    return 0


def _load_images(names: list[str]) -> int:
    from virtual_waggle.containers import load

    lacking = load.missing(load.chosen(names, load.stored()))
    if lacking:
        load.load(lacking)
    for image in lacking:
        print(f"loaded {image.name}")
    return 0

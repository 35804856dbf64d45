# SPDX-License-Identifier: Apache-2.0
"""The commands virtual-waggle and beehive-server.

What a call does not need is not imported: the machines that run it may be slow.
"""

import sys
import warnings
from argparse import Namespace
from typing import Any, NoReturn

from groundwork import __version__
from groundwork.errors import InputError


def virtual_waggle() -> NoReturn:
    """The program virtual-waggle."""
    _run(
        "virtual-waggle",
        "A Waggle node in software: plugins publish to it, and its Beehive, if it has one, gets their data.",
        "virtual_waggle.node_commands",
        images=True,
    )


def beehive_server() -> NoReturn:
    """The program beehive-server."""
    _run(
        "beehive-server",
        "A Beehive, which gathers what Waggle nodes send and answers queries.",
        "virtual_waggle.beehive_commands",
        images=False,
    )


def _run(name: str, description: str, commands: str, *, images: bool) -> NoReturn:
    if sys.argv[1:] == ["--version"]:
        print(f"{name} {__version__}")
        sys.exit(0)

    from importlib import import_module

    from groundwork import console
    from groundwork.program import run_program
    from groundwork.settings import Parser

    # An asyncssh and a cryptography of one distribution: what the one tells the other is not for our users.
    warnings.filterwarnings("ignore", module=r"asyncssh\.")

    def main() -> int:
        parser = Parser(prog=name, description=description)
        parser.add_argument("--version", action="version", version=f"{name} {__version__}")
        added = parser.add_subparsers(metavar="COMMAND")
        import_module(commands).add(added)
        if images:
            _add_images(added)
            import_module("virtual_waggle.manifest_commands").add(added)
        ours, words = _divided(sys.argv[1:])
        given = parser.parse_args(ours)
        if not hasattr(given, "act"):
            parser.print_help()
            return 0
        if words is not None and given.act.__name__ != "run":
            raise InputError("nothing may stand after --", hint=f"see: {name} --help")
        given.words = words or []
        console.configure(json_output=getattr(given, "json", False))
        code: int = given.act(given)
        return code

    run_program(main)


def _divided(words: list[str]) -> tuple[list[str], list[str] | None]:
    """What is ours, and what stands after ``--``."""
    if "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _add_images(commands: Any) -> None:
    images = commands.add_parser("images", help="the container images that this machine brought with it")
    what = images.add_subparsers(dest="what", metavar="list|load", required=True)
    shown = what.add_parser("list", help="show them, and whether Docker has them")
    shown.set_defaults(act=_list_images)
    load = what.add_parser("load", help="give Docker those that it does not have; no registry is asked")
    load.set_defaults(act=_load_images)
    load.add_argument("image", nargs="*", metavar="IMAGE", help="only this one, as sage/rabbitmq")


def _list_images(given: Namespace) -> int:
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


def _load_images(given: Namespace) -> int:
    from virtual_waggle.containers import load

    lacking = load.missing(load.chosen(given.image, load.stored()))
    if lacking:
        load.load(lacking)
    for image in lacking:
        print(f"loaded {image.name}")
    return 0

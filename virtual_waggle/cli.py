# SPDX-License-Identifier: Apache-2.0
"""The commands virtual-waggle and beehive-server.

What a call does not need is not imported: the machines that run it may be slow.
"""

import sys
from typing import NoReturn

from groundwork import __version__


def virtual_waggle() -> NoReturn:
    """The program virtual-waggle."""
    _run(
        "virtual-waggle",
        "A Waggle node in software, part of every Sage image. This release tells its version and nothing more:\n"
        "the node's services are not in it yet.",
    )


def beehive_server() -> NoReturn:
    """The program beehive-server."""
    _run(
        "beehive-server",
        "The Beehive, which gathers what Waggle nodes send, part of every Sage image. This release tells its version\n"
        "and nothing more: the Beehive's services are not in it yet.",
    )


def _run(name: str, description: str) -> NoReturn:
    if sys.argv[1:] == ["--version"]:
        print(f"{name} {__version__}")
        sys.exit(0)

    from groundwork.program import run_program
    from groundwork.settings import Parser

    def main() -> int:
        parser = Parser(prog=name, description=description)
        parser.add_argument("--version", action="version", version=f"{name} {__version__}")
        parser.parse_args(sys.argv[1:])
        parser.print_help()
        return 0

    run_program(main)

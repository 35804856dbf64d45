# SPDX-License-Identifier: Apache-2.0
"""``local-chameleon``: a Chameleon of one's own, on loopback, for demo and tests."""

import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import groundwork
from groundwork import console, products, settings
from groundwork.program import log_to_stderr, run_program
from groundwork.settings import Parser
from local_chameleon import cloud
from local_chameleon import settings as table
from local_chameleon.cloud import Config, State

_EPILOG = """\
`up` prints the line that makes OpenStack's clients use it:  eval "$(local-chameleon up)"
The clouds are then chi_uc, chi_tacc and kvm_tacc (project CH-822154), chi_uc_2 and so on (project CH-000002), and
admin_chi_uc and so on (all rights); with --profile lease also chi_uc_restricted and so on (CH-822154, by a restricted
application credential, which Blazar refuses).
A flag --some-name can be given as the variable SAGE_SOME_NAME as well.
Exit codes: 0 done (status: all is up), 1 failed (status: something is not up), 2 wrong input or a port that is taken.
"""


def main() -> NoReturn:
    """The console script ``local-chameleon``."""
    words = sys.argv[1:]
    run_program(lambda: _main(words))


def _main(words: Sequence[str]) -> int:
    parser = Parser(
        prog="local-chameleon",
        description="A Chameleon of one's own: real OpenStack services for three regions, on this machine only.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"local-chameleon {groundwork.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, text, rows, function in (
        ("up", "start it, after making it the first time", table.UP, _up),
        ("down", "stop it", table.DOWN, _down),
        ("status", "what runs, since when, and where", table.STATUS, _status),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=_EPILOG)
        settings.add_flags(command, rows)
        command.set_defaults(function=function, rows=rows)
    given = parser.parse_args(words)
    values = settings.resolve(given.rows, given, configuration={})
    console.configure(json_output=values["json"], quiet=values["quiet"])
    if values["debug"]:
        log_to_stderr(debug=True)
    config = Config(
        state_dir=values["state_dir"],
        env_dir=values["env_dir"],
        port=values.get("port"),
        profile=values["profile"],
        allow_public=values.get("allow_public", False),
    )
    code: int = given.function(config, values)
    return code


def _up(config: Config, _: dict[str, Any]) -> int:
    begin = time.monotonic()
    state = cloud.up(config)
    console.say(f"the local Chameleon is up, after {time.monotonic() - begin:.1f} s: {', '.join(state.endpoints)}")
    console.result_json(products.to_data(state))
    # The only line on standard output, so that a shell can take it: eval "$(local-chameleon up)"
    console.result(f"export OS_CLIENT_CONFIG_FILE={state.clouds_yaml}")
    return 0


def _down(config: Config, values: dict[str, Any]) -> int:
    stopped = cloud.down(config, purge=values["purge"])
    console.result_json({"stopped": stopped, "purged": bool(values["purge"])})
    console.result(f"stopped: {', '.join(stopped)}" if stopped else "nothing ran")
    return 0


def _status(config: Config, _: dict[str, Any]) -> int:
    state = cloud.status(config)
    console.result_json(products.to_data(state))
    _show(state)
    return 0 if state.up else 1


def _show(state: State) -> None:
    console.table(
        ["service", "state", "since", "pid", "memory", "url"],
        [
            [
                one.name,
                "up" if one.works else "down" if one.pid is None else "does not answer",
                one.since or "-",
                str(one.pid or "-"),
                console.mebibytes(one.memory) if one.memory is not None else "-",
                one.url,
            ]
            for one in state.services
        ],
    )
    console.result(f"clouds.yaml: {state.clouds_yaml if state.clouds_yaml.exists() else 'not made yet'}")


if __name__ == "__main__":
    main()

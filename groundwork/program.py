# SPDX-License-Identifier: Apache-2.0
"""How every program of this project begins and ends: signals, logging, and errors caught once."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from groundwork import console
from groundwork.errors import Interrupted, SageError


def run_program(main: Callable[[], int], *, debug: bool = False) -> NoReturn:
    """Run ``main`` and end the process with its exit code, or with that of the error it raised.

    SIGINT, SIGTERM and SIGHUP become an Interrupted error in the main thread, so that every ``finally`` runs.
    ``debug`` (or SAGE_DEBUG=1) logs what is done and shows tracebacks.
    """
    debug = debug or os.environ.get("SAGE_DEBUG", "") not in ("", "0")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s" if debug else "%(name)s: %(message)s",
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        code = main()
        sys.stdout.flush()
    except SageError as error:
        if debug:
            logging.getLogger(__name__).debug("raised here", exc_info=True)
        console.complain(str(error), hint=error.hint)
        code = error.exit_code
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Only the first one counts: a second Ctrl-C must not break off the cleaning up.
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(number)

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

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and end the process with its exit code, or with that of the error it raised."""
    sys.exit(outcome(main))


def outcome(main: Callable[[], int]) -> int:
    """Run ``main`` and give its exit code, or that of the error it raised, which is told.

    Meanwhile SIGINT, SIGTERM and SIGHUP become an Interrupted error in the main thread, so that every ``finally`` runs;
    one that was ignored already (``nohup``) stays ignored.
    """
    log_to_stderr(debug=os.environ.get("SAGE_DEBUG", "") not in ("", "0"))
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        code = main()
        sys.stdout.flush()
    except SageError as error:
        _show_where()
        console.complain(str(error), hint=error.hint)
        code = error.exit_code
    except Interrupted as interruption:
        console.complain(str(interruption))
        code = interruption.exit_code
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # a full disk, a folder that can't be written
        _show_where()
        console.complain(
            f"{error.filename or 'the system'}: {error.strerror or error}", hint="SAGE_DEBUG=1 shows where"
        )
        code = 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code


def log_to_stderr(*, debug: bool) -> None:
    """Set what is logged: warnings, or with ``debug`` all that is done."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s" if debug else "%(name)s: %(message)s",
        force=True,
    )


def _show_where() -> None:
    logging.getLogger(__name__).debug("raised here", exc_info=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Only the first one counts: a second Ctrl-C must not break off the cleaning up.
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(number)

# SPDX-License-Identifier: Apache-2.0
"""One family of errors: each says what is wrong, what to do about it, and how the program ends.

They are raised anywhere and caught once, by a program's ``main`` (in :func:`groundwork.program.run_program`).
Exit codes: 0 done, 1 failed, 2 wrong input or configuration, 3 some sites failed,
4 done, but a hook or another report of it failed, 75 another run holds the lock (nightly), 128 + n ended by signal n.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SageError(Exception):
    """Something failed.  ``hint`` is one sentence that says what the user can do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InputError(SageError):
    """What the user gave (a flag, a file, a credential, the machine's set-up) can't be worked with."""

    exit_code = 2


class Interrupted(BaseException):
    """A signal (SIGINT, SIGTERM, SIGHUP) asked the program to end.

    Like KeyboardInterrupt it is no Exception, so that no handler of ordinary errors swallows it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted; what was begun has been cleaned up")
        self.exit_code = 128 + signal_number


def nearest(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the known word nearest to ``word``, or all of them where none is near."""
    candidates = sorted(map(str, known))
    by_lower = {name.lower(): name for name in candidates}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_lower[close[0]]!r}?"
    return f"known: {', '.join(candidates)}" if candidates else None


def unknown(what: str, word: str, known: Iterable[str]) -> InputError:
    """The error for a word that is none of ``known``: ``unknown variant 'saeg'``."""
    return InputError(f"unknown {what} {word!r}", hint=nearest(word, known))

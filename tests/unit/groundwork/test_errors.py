# SPDX-License-Identifier: Apache-2.0
"""Errors say what to do, and how the program ends."""

import signal

import pytest

from groundwork import program
from groundwork.errors import InputError, Interrupted, SageError, nearest, unknown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SageError("x"), 1),
        (InputError("x"), 2),
        (OSError(28, "No space left on device", "/x"), 1),
        (Interrupted(signal.SIGINT), 130),
        (Interrupted(signal.SIGTERM), 143),
    ],
)
def test_each_error_has_its_exit_code(
    error: SageError | Interrupted | OSError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as ended:
            program.run_program(main)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == code
    assert "error: " in capsys.readouterr().err


def test_no_handler_of_ordinary_errors_swallows_an_interruption() -> None:
    assert not issubclass(Interrupted, Exception)


def test_the_nearest_word_or_all_of_them() -> None:
    assert nearest("saeg", ["sage", "base"]) == "did you mean 'sage'?"
    assert nearest("chi@uc", ["CHI@UC", "CHI@TACC"]) == "did you mean 'CHI@UC'?"
    assert nearest("qqq", ["sage", "base"]) == "known: base, sage"
    assert nearest("qqq", []) is None
    assert str(unknown("variant", "x", ["sage"])) == "unknown variant 'x'"

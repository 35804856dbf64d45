# SPDX-License-Identifier: Apache-2.0
"""The form that all Fabric tasks have: words in, a table or JSON out, and this project's exit codes.

0 done, 1 failed, 2 wrong input, 3 some sites failed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fabric import task
from invoke.exceptions import Exit

from groundwork import console
from groundwork.errors import InputError, SageError
from groundwork.program import outcome
from image_builder.cli import tell_problems
from image_builder.publication import Problem

SOME_FAILED = 3
Found = TypeVar("Found")

_SITE = "sites by their regions' names, CHI@UC,CHI@TACC; all that clouds.yaml has entries for, if left out"
_JSON = "print the result as JSON"
_DRY_RUN = "print what would be done, and do nothing"
_USER = "whom the image lets in; who the node's role says, if left out"


def command(name: str, /, **explained: str) -> Callable[[Callable[..., int | None]], Any]:
    """A task of this name; ``explained`` has a text for each of its arguments.

    Errors are told once, as by this project's programs, and become exit codes.
    """
    usual = {"site": _SITE, "json": _JSON, "dry_run": _DRY_RUN, "user": _USER}

    def decorate(function: Callable[..., int | None]) -> Any:
        @functools.wraps(function)
        def body(context: Any, *arguments: Any, **named: Any) -> None:
            def main() -> int:
                console.configure(json_output=bool(named.get("json", False)))
                return function(context, *arguments, **named) or 0

            code = outcome(main)
            if code:
                raise Exit(code=code)

        known = function.__code__.co_varnames[1 : function.__code__.co_argcount]
        texts = {**{key: text for key, text in usual.items() if key in known}, **explained}
        return task(body, name=name, help={_dashed(key): text for key, text in texts.items()}, auto_shortflags=False)

    return decorate


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def parted(answers: Mapping[str, Found | SageError]) -> tuple[dict[str, Found], dict[str, Problem]]:
    """What the sites gave, and the problems of the others."""
    found: dict[str, Found] = {}
    problems: dict[str, Problem] = {}
    for place, answer in answers.items():
        if isinstance(answer, SageError):
            problems[place] = Problem(str(answer), answer.hint, isinstance(answer, InputError))
        else:
            found[place] = answer
    return found, problems


def told(problems: Mapping[str, Problem], asked: int) -> int:
    """Tell the problems, and give the exit code."""
    tell_problems(problems)
    if not problems:
        return 0
    if len(problems) < asked:
        return SOME_FAILED
    return 2 if all(problem.bad_input for problem in problems.values()) else 1


def raise_first(problems: Mapping[str, Problem]) -> None:
    """Raise the first site's problem, where there is one."""
    for problem in problems.values():
        raise (InputError if problem.bad_input else SageError)(problem.message, hint=problem.hint)

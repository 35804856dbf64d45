# SPDX-License-Identifier: Apache-2.0
"""A stack on this machine in the form in which it was last started, which its state folder remembers.

The functions take what makes a Deployment for a form, as ``node.deployment`` and ``beehive.deployment`` have it.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from groundwork import console, files, process
from groundwork.compat import StrEnum
from groundwork.errors import SageError
from virtual_waggle.forms import Deployment, Row

_FILE = "form"  # in the state folder


class Form(StrEnum):
    """How the services run."""

    DOCKER = "docker"
    NATIVE = "native"


Make = Callable[[Form], Deployment]


def form_of(folder: Path) -> Form:
    """The form in which the stack of this state folder was last started."""
    try:
        return Form((folder / _FILE).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return Form.DOCKER


def was_started(folder: Path) -> bool:
    """Whether the stack of this state folder ever was."""
    return (folder / _FILE).exists()


def choose(folder: Path, form: Form, make: Make) -> None:
    """Remember the form, before a start.  Raises SageError where the stack runs in the other one."""
    path = folder / _FILE
    last = form_of(folder)
    if path.exists() and last != form and _runs(last, make):
        raise SageError(f"the services run already, by {last}", hint="stop them first: down")
    if not path.exists() or last != form:
        files.write_text(path, f"{form}\n")


def _runs(form: Form, make: Make) -> bool:
    """Whether services run in this form; where nobody can tell, they are taken not to."""
    if form == Form.DOCKER and process.find("docker") is None:
        return False
    try:
        return any(row.state == "running" for row in _module(form).status(make(form)))
    except SageError as error:
        console.warn(
            f"can't tell whether services run by {form}: {error}",
            hint="should some come back later, stop them: two brokers would be at the same data",
        )
        return False


def up(folder: Path, make: Make) -> list[Row]:
    """Start the services, and return when all are ready."""
    form = form_of(folder)
    rows: list[Row] = _module(form).up(make(form))
    return rows


def down(folder: Path, make: Make) -> None:
    """Stop the services."""
    form = form_of(folder)
    _module(form).down(make(form))


def status(folder: Path, make: Make) -> list[Row]:
    """How each service does."""
    form = form_of(folder)
    rows: list[Row] = _module(form).status(make(form))
    return rows


def logs(folder: Path, make: Make, services: Sequence[str], *, follow: bool, lines: int) -> Iterator[str]:
    """What the services said."""
    form = form_of(folder)
    found: Iterator[str] = _module(form).logs(make(form), services, follow=follow, lines=lines)
    return found


def _module(form: Form) -> ModuleType:
    if form == Form.NATIVE:
        return import_module("virtual_waggle.native")
    return import_module("virtual_waggle.docker")

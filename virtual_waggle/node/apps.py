# SPDX-License-Identifier: Apache-2.0
"""The apps that may publish: one file each in the node's folder ``apps``, named by the app's id.

A plugin says who it is by the app id in each of its messages; what it is, and for which job it runs, is told here.
"""

import contextlib
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError
from virtual_waggle import message

_APP_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,126}")
_LARGEST = 16 << 10  # bytes
_SUFFIX = ".json"
_CLOSED = "closed"  # when an app ended, in seconds since 1970
LATE = 3600.0  # seconds after its end that an app's messages are still taken


@dataclass(frozen=True)
class App:
    """What of an app goes into the meta of its measurements.  ``plugin`` is its image, as ``name:tag``."""

    plugin: str
    job: str
    task: str


def is_id(text: str) -> bool:
    """Whether this may be the id of an app."""
    return _APP_ID.fullmatch(text) is not None


def check_id(app_id: str) -> str:
    """The app id, if it is one.  Raises InputError."""
    if not is_id(app_id):
        raise InputError(f"{app_id[:60]!r} is no app id", hint="expected letters, digits, and . _ - after the first")
    return app_id


def path_of(folder: Path, app_id: str) -> Path:
    """The file of an app.  Raises InputError for what is no app id."""
    return folder / f"{check_id(app_id)}{_SUFFIX}"


def add(folder: Path, app_id: str, app: App) -> None:
    """Let an app publish, from the next look of the sharing service (1 s) on."""
    for name, value in asdict(app).items():
        if not value or len(value) > message.META_VALUE:
            raise InputError(f"{name} of app {app_id}: expected 1 to {message.META_VALUE} characters")
    files.write_text(path_of(folder, app_id), json.dumps(asdict(app), indent=2) + "\n")


def remove(folder: Path, app_id: str) -> None:
    """Let an app publish no more."""
    path_of(folder, app_id).unlink(missing_ok=True)


def close(folder: Path, app_id: str, *, now: float | None = None) -> None:
    """Note that an app has ended.  What it sent may still be under way: :func:`sweep` takes it away later."""
    path = folder / f"{check_id(app_id)}{_SUFFIX}"
    data = {**asdict(read(path)), _CLOSED: time.time() if now is None else now}
    files.write_text(path, json.dumps(data, indent=2) + "\n")


def sweep(folder: Path, uploads: Path, *, now: float | None = None) -> None:
    """Let apps that ended an hour ago publish no more; but those that have files to upload are still to be known.

    ``uploads`` holds a folder an app; those of such apps are removed when they are empty.
    """
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            closed = json.loads(path.read_bytes()).get(_CLOSED)
            if isinstance(closed, int | float) and closed < (time.time() if now is None else now) - LATE:
                with contextlib.suppress(FileNotFoundError):
                    (uploads / path.name.removesuffix(_SUFFIX)).rmdir()
                path.unlink()


def read(path: Path) -> App:
    """The app of a file.  Raises InputError, which names it."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST + 1)
        data = json.loads(text) if len(text) <= _LARGEST else None
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object of plugin, job and task")
    for name in ("plugin", "job", "task"):
        value = data.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= message.META_VALUE or not _is_plain(value):
            raise InputError(f"{path}: {name}: expected a text of 1 to {message.META_VALUE} characters")
    return App(data["plugin"], data["job"], data["task"])


def app_id_of(path: Path) -> str | None:
    """The id of the app whose file this is; None for another file."""
    name = path.name.removesuffix(_SUFFIX)
    return name if path.name.endswith(_SUFFIX) and is_id(name) else None


def _is_plain(text: str) -> bool:
    """Whether UTF-8 and the stores can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text

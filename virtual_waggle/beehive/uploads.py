# SPDX-License-Identifier: Apache-2.0
"""Where an uploaded file lies: ``<uploads>/node-<id>/<job>/<task>/<timestamp>-<SHA-1>/`` with ``data`` and ``meta``.

That is what a node's uploader brings, job and task as ``upload.folder_name`` has them; ``meta`` is pywaggle's (its
Uploader), and ``labels.filename`` in it the file's name.  Nodes write there, so nothing of it is taken for granted: no
link is followed, nothing large is read.
"""

import json
import os
import re
import stat
from pathlib import Path

from virtual_waggle.upload import folder_name

_LARGEST_META = 1 << 16  # bytes
_NODE = re.compile(r"[0-9a-f]{16}", re.ASCII)
_TIMED = re.compile(r"(\d{1,19})-(.+)", re.ASCII | re.DOTALL)


def find(top: Path, job: str, task: str, node: str, name: str) -> int | None:
    """A descriptor of the file that a link's last four parts name, open for reading; None where there is none.

    ``name`` is ``<timestamp>-<file name>``.
    """
    match = _TIMED.fullmatch(name)
    if match is None or not _NODE.fullmatch(node):
        return None
    timestamp, filename = match.groups()
    folder = _enter(top, f"node-{node}", folder_name(job), folder_name(task))
    if folder is None:
        return None
    try:
        with os.scandir(folder) as entries:
            candidates = sorted(entry.name for entry in entries if entry.name.startswith(f"{timestamp}-"))
        for candidate in candidates:
            found = _file_of(folder, candidate, filename)
            if found is not None:
                return found
    finally:
        os.close(folder)
    return None


def _file_of(folder: int, name: str, filename: str) -> int | None:
    """The data of one upload, if that is its file's name."""
    upload = _open(name, folder, os.O_DIRECTORY)
    if upload is None:
        return None
    try:
        meta = _open("meta", upload)
        if meta is None:
            return None
        with os.fdopen(meta, "rb") as stream:
            labels = json.loads(stream.read(_LARGEST_META))["labels"]
        return _open("data", upload) if labels["filename"] == filename else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    finally:
        os.close(upload)


def _enter(top: Path, *names: str) -> int | None:
    """A descriptor of a folder below ``top``."""
    try:
        folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    for name in names:
        below = _open(name, folder, os.O_DIRECTORY)
        os.close(folder)
        if below is None:
            return None
        folder = below
    return folder


def _open(name: str, folder: int, flags: int = 0) -> int | None:
    """Open a file or a folder in a folder; no link, no pipe and no device."""
    try:
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags, dir_fd=folder)
    except (OSError, ValueError):
        return None
    mode = os.fstat(found).st_mode
    if not (stat.S_ISDIR(mode) if flags else stat.S_ISREG(mode)):
        os.close(found)
        return None
    return found

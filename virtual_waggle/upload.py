# SPDX-License-Identifier: Apache-2.0
"""A file on its way from a plugin to the Beehive: its names, its meta, and where it lies.

    plugin (pywaggle)   <root>/<timestamp>-<sha1>/{data,meta}            meta is written after data
    node                uploads/<app id>/<timestamp>-<sha1>/{data,meta}  the same, seen from outside the plugin
    Beehive             uploads/node-<node id>/<job>/<task>/<timestamp>-<sha1>/{data,meta}

Timestamps are nanoseconds since 1970.  pywaggle's meta is ``{"timestamp", "shasum", "labels": {..., "filename"}}``;
the node adds ``node``, ``job``, ``task`` and ``plugin``.  A job's or task's name is a folder's as
:func:`folder_name` has it.  All of it may have been written by anyone.
"""

import hashlib
import json
import re
from typing import Any, NamedTuple
from urllib.parse import quote

from virtual_waggle import message

DATA, META = "data", "meta"
LARGEST_META = 1 << 16  # bytes

_NAME = re.compile(r"(0|[1-9][0-9]{0,18})-([0-9a-f]{40})")
_LONGEST_FOLDER = 200  # characters; file systems take 255 bytes
_FOLDER = re.compile(r"[A-Za-z0-9_~%-][A-Za-z0-9_~%.-]{0,199}")
_LONGEST_FILENAME = 255  # bytes

Label = str | int | float | bool


class Unfit(ValueError):
    """Something that is no upload, or one beyond the limits; the text says why."""


class Upload(NamedTuple):
    """What is told of a file.  ``sha1`` is that of its bytes, ``filename`` what the plugin called it."""

    timestamp: int
    sha1: str
    filename: str
    labels: dict[str, Label]
    node: str = ""
    job: str = ""
    task: str = ""
    plugin: str = ""

    @property
    def name(self) -> str:
        """``<timestamp>-<sha1>``."""
        return f"{self.timestamp}-{self.sha1}"

    @property
    def place(self) -> str:
        """Its folder at the Beehive, below its node's."""
        return f"{folder_name(self.job)}/{folder_name(self.task)}/{self.name}"


def parse_name(name: str) -> tuple[int, str]:
    """Timestamp and SHA-1 of a folder's name.  Raises Unfit."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) >= 1 << 63:
        raise Unfit("its name is not <nanoseconds>-<sha1>")
    return int(match[1]), match[2]


def decode(name: str, meta: bytes, *, sent: bool) -> Upload:
    """An upload, of its folder's name and its meta; with ``sent`` also what the node adds.  Raises Unfit."""
    timestamp, sha1 = parse_name(name)
    if len(meta) > LARGEST_META:
        raise Unfit(f"meta: {len(meta)} bytes, at most {LARGEST_META}")
    try:
        data: Any = json.loads(meta)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"meta: no JSON: {str(error)[:80]}") from None
    if type(data) is not dict:
        raise Unfit("meta: no JSON object")
    if type(data.get("timestamp")) is not int or data["timestamp"] != timestamp:
        raise Unfit("meta: timestamp is not that of the folder's name")
    if data.get("shasum") != sha1:
        raise Unfit("meta: shasum is not that of the folder's name")
    labels = _labels(data.get("labels"))
    filename = labels.get("filename")
    if type(filename) is not str or not filename or filename in (".", "..") or "/" in filename:
        raise Unfit("meta: labels.filename is no name of a file")
    if len(filename.encode()) > _LONGEST_FILENAME:
        raise Unfit(f"meta: labels.filename: at most {_LONGEST_FILENAME} bytes")
    upload = Upload(timestamp, sha1, filename, labels)
    if not sent:
        return upload
    node, job, task, plugin = (_added(data, key) for key in ("node", "job", "task", "plugin"))
    if not message.is_node_id(node):
        raise Unfit("meta: node is no node id")
    return upload._replace(node=node, job=job, task=task, plugin=plugin)


def encode(upload: Upload) -> bytes:
    """The meta that goes with an upload to the Beehive."""
    data = {
        "timestamp": upload.timestamp,
        "shasum": upload.sha1,
        "labels": upload.labels,
        "node": upload.node,
        "job": upload.job,
        "task": upload.task,
        "plugin": upload.plugin,
    }
    return json.dumps(data, separators=(",", ":"), sort_keys=True).encode()


def folder_name(text: str) -> str:
    """A job's or task's name as a folder's: percent-encoded, no dot in front, of a very long one a digest."""
    name = quote(text, safe="")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if len(name) > _LONGEST_FOLDER:
        name = f"{name[:150]}~{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return name


def parse_place(place: str) -> tuple[str, str, str]:
    """Folder names of job and task, and ``<timestamp>-<sha1>``, of a place as Upload.place gives it.  Raises Unfit."""
    parts = place.removesuffix("/").split("/")
    if len(parts) != 3 or not all(map(_FOLDER.fullmatch, parts[:2])):
        raise Unfit("expected <job>/<task>/<nanoseconds>-<sha1>")
    parse_name(parts[2])
    return parts[0], parts[1], parts[2]


def _added(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if type(value) is not str or not 0 < len(value) <= message.META_VALUE:
        raise Unfit(f"meta: {key}: expected a text of 1 to {message.META_VALUE} characters")
    _check_text(f"meta: {key}", value)
    return value


def _labels(labels: Any) -> dict[str, Label]:
    if type(labels) is not dict or len(labels) > message.MOST_META:
        raise Unfit(f"meta: labels: expected at most {message.MOST_META} values by name")
    for key, value in labels.items():
        if type(value) not in (str, int, float, bool) or not 0 < len(key) <= message.META_KEY:
            raise Unfit(f"meta: labels: expected texts or numbers by names of 1 to {message.META_KEY} characters")
        if len(str(value)) > message.META_VALUE:
            raise Unfit(f"meta: labels: expected values of at most {message.META_VALUE} characters")
        _check_text("meta: labels", key)
        _check_text("meta: labels", str(value))
    return labels


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unfit(f"{what}: holds half of a surrogate pair") from None
    if "\0" in text:
        raise Unfit(f"{what}: holds a NUL")

# SPDX-License-Identifier: Apache-2.0
"""Plugins' images: found, pulled, loaded from a file, built."""

import json
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundwork import console, process
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError
from virtual_waggle.node import sage_yaml
from virtual_waggle.node.plugins import machine
from virtual_waggle.node.sage_yaml import PluginSource

BASE = "sage/waggle"  # on every Sage image: Python, pika, Pillow, and the stand-in of pywaggle
_REFERENCE = re.compile(
    # a registry has a dot or a port in its name
    r"(([A-Za-z0-9][A-Za-z0-9-]*(\.[A-Za-z0-9-]+)+|[A-Za-z0-9][A-Za-z0-9.-]*(?=:))(:[0-9]{1,5})?/)?"
    r"[a-z0-9][a-z0-9._/-]{0,254}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MOST_MEMBERS = 20_000  # of an image's file
_LARGEST_TEXT = 4 << 20  # bytes of a JSON file in it
_MOST_LAYERS = 512
_QUESTION = 120.0  # seconds
_PULL = 1800.0  # seconds for a pull or a load
_BUILD = 7200.0  # seconds
_FIRST_ARG = re.compile(r"^\s*ARG\s+BASE=(\S+)\s*$", re.IGNORECASE)
_FROM = re.compile(r"^\s*FROM\s", re.IGNORECASE)


def obtain(text: str) -> str:
    """The name by which Docker has an image: one that it has, a registry's, or a file that ``docker save`` wrote.

    Raises InputError for what is neither, SageError for what can't be had.
    """
    if Path(text).is_file():
        return load(Path(text))
    if text.endswith(_SUFFIXES) or not _REFERENCE.fullmatch(text):
        raise InputError(
            f"there is no file {text}, and no image can have that name", hint="as registry/user/name:version"
        )
    if not has(text):
        pull(text)
    _look_at_architecture(text)
    return text


def has(image: str) -> bool:
    """Whether Docker has an image."""
    try:
        process.run(["docker", "image", "inspect", "--format", "{{.Id}}", image], timeout=_QUESTION)
    except ProcessError as error:
        if "no such image" in error.output.lower():
            return False
        raise _no_answer(error) from None
    return True


def pull(image: str) -> None:
    """Have Docker fetch an image from its registry.  Raises SageError with what can be done."""
    with console.stage(f"pulling {image}"):
        try:
            process.run(["docker", "pull", "--quiet", image], timeout=_PULL)
        except ProcessError as error:
            raise SageError(
                f"Docker has no image {image} and can't pull it: {_last(error)}", hint=_why(error)
            ) from None


def _why(error: ProcessError) -> str:
    said = error.output.lower()
    if "no matching manifest" in said:
        return f"its maker did not build it for {machine()}"
    if any(word in said for word in ("not found", "denied", "unauthorized", "manifest unknown", "not exist")):
        return "look at the name and its version; a private registry wants `docker login` first"
    return "no registry can be reached from here: where one can, `docker save IMAGE > image.tar`; then run image.tar"


def _last(error: ProcessError) -> str:
    return (error.output.strip().splitlines() or [str(error)])[-1]


def _no_answer(error: ProcessError) -> InputError:
    hint = "sudo systemctl start docker; or run the plugin without Docker: --native"
    if "permission denied" in error.output.lower():
        hint = "log in as cc, or use sudo"
    return InputError(f"Docker does not answer: {_last(error)}", hint=hint)


def _look_at_architecture(image: str) -> None:
    try:
        words = ["docker", "image", "inspect", "--format", "{{.Architecture}}", image]
        found = process.run(words, timeout=_QUESTION).strip()
    except ProcessError as error:
        raise _no_answer(error) from None
    if found and found != machine():
        console.warn(f"{image} is made for {found}, this machine is {machine()}", hint="it may not start")


# ------------------------------------------------------------------------------------------------------- from a file


def load(path: Path) -> str:
    """Give Docker the image of a file that ``docker save`` wrote, and its name.  Raises InputError for another file."""
    name = saved_name(path)
    with console.stage(f"loading {path.name}"):
        try:
            said = process.run(["docker", "load", "--quiet", "--input", path], timeout=_PULL)
        except ProcessError as error:
            raise SageError(f"Docker does not take {path}: {_last(error)}") from None
    loaded = re.search(r"^Loaded image(?: ID)?: (\S+)$", said, re.MULTILINE)
    image = name or (loaded[1] if loaded else "")
    if not image:
        raise SageError(f"Docker does not say what it loaded of {path}: {said.strip()[:200]}")
    _look_at_architecture(image)
    return image


def saved_name(path: Path) -> str | None:
    """The name of the one image in a file of ``docker save``; None: it has none.

    The file's list of contents is checked before Docker sees it: one image, its layers there, no path that leads
    out, no name of an image of our own.  Raises InputError.
    """
    try:
        with tarfile.open(path, mode="r|*") as archive:
            names, manifest = _contents(path, archive)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is no file of `docker save`: {error}") from None
    entry = manifest[0]
    if len(manifest) != 1:
        raise InputError(f"{path} holds {len(manifest)} images; expected one", hint="docker save IMAGE > image.tar")
    layers, tags = entry.get("Layers"), entry.get("RepoTags") or []
    if not isinstance(layers, list) or len(layers) > _MOST_LAYERS or not isinstance(tags, list):
        raise InputError(f"{path}: manifest.json: Layers: expected a list")
    for part in [entry.get("Config"), *layers]:
        if part not in names:
            raise InputError(f"{path} is cut off or damaged: {str(part)[:100]!r} is not in it")
    for tag in tags:
        if not isinstance(tag, str) or not _REFERENCE.fullmatch(tag):
            raise InputError(f"{path}: manifest.json: RepoTags: {str(tag)[:100]!r} is no image's name")
        if tag.startswith("sage/"):
            raise InputError(f"{path} would take the place of {tag}, an image of the node's own")
    return tags[0] if tags else None


def _contents(path: Path, archive: tarfile.TarFile) -> tuple[set[str], list[dict[str, Any]]]:
    names: set[str] = set()
    manifest: Any = None
    for member in archive:
        if len(names) >= _MOST_MEMBERS:
            raise InputError(f"{path} holds more than {_MOST_MEMBERS} files")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise InputError(f"{path}: {member.name[:100]!r} leads out of it")
        names.add(member.name.removeprefix("./"))
        if member.name == "manifest.json" and member.isreg():
            if member.size > _LARGEST_TEXT:
                raise InputError(f"{path}: manifest.json is larger than {_LARGEST_TEXT >> 20} MiB")
            stream = archive.extractfile(member)
            assert stream is not None
            try:
                manifest = json.loads(stream.read())
            except RecursionError:
                raise ValueError("manifest.json is nested too deep") from None
    if not isinstance(manifest, list) or not manifest or not all(isinstance(entry, dict) for entry in manifest):
        raise ValueError("it has no manifest.json that lists images")
    return names, manifest


# --------------------------------------------------------------------------------------------------------------- build


def build(folder: Path, *, platform: str | None = None, build_args: Sequence[str] = (), tag: str | None = None) -> str:
    """Build a plugin's folder, and give the image's name: ``<name>:<version>`` of its sage.yaml."""
    source = sage_yaml.load(folder)
    if platform is None and f"linux/{machine()}" not in source.architectures:
        console.warn(f"{source.name} says that it is not for {machine()}, but for {', '.join(source.architectures)}")
    arguments = dict(source.build_args)
    for text in build_args:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"--build-arg: expected NAME=value, found {text!r}")
        arguments[key] = value
    base = missing_base(source, arguments)
    if base is not None:
        console.warn(
            f"{base} is not here and can't be pulled: {source.name} is built on {BASE}, without pip",
            hint="with a network it gets pywaggle and what its requirements.txt names",
        )
        arguments["BASE"] = BASE
    image = tag or source.tag
    command: list[str | Path] = ["docker", "build", "--tag", image, "--file", source.dockerfile]
    if platform:
        command += ["--platform", platform]
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"]
    with console.stage(f"building {image}"):
        building = process.start([*command, source.context], stdout=sys.stderr.fileno())
        try:
            code = building.wait(_BUILD)
        finally:
            process.stop(building)
    if code != 0:
        raise SageError(
            f"docker build failed with exit status {code}",
            hint=f"its words stand above; a base image that can't be pulled may be named: --build-arg BASE={BASE}",
        )
    return image


def missing_base(source: PluginSource, arguments: dict[str, str]) -> str | None:
    """The base image that the Dockerfile's ``ARG BASE`` names, if it can't be had while ours is here; else None."""
    if "BASE" in arguments:
        return None
    base = default_base(source.dockerfile.read_text(encoding="utf-8", errors="replace"))
    if base is None or has(base) or not has(BASE):
        return None
    try:
        pull(base)
    except SageError as error:
        console.say(f"{error}")
        return base
    return None


def default_base(dockerfile: str) -> str | None:
    """What a Dockerfile's ``ARG BASE=...`` before the first FROM says; None where there is none."""
    for line in dockerfile.splitlines():
        if _FROM.match(line):
            return None
        match = _FIRST_ARG.match(line)
        if match and _REFERENCE.fullmatch(match[1]):
            return match[1]
    return None

# SPDX-License-Identifier: Apache-2.0
"""Gives Docker the container images that lie on the machine.  No registry is asked.

Docker reads no OCI layout before its release 25, so the images go to ``docker load`` as the archive that
``docker save`` writes, made on the way; Docker compares each layer with its digest.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from groundwork import process
from groundwork.errors import InputError, SageError, unknown
from groundwork.process import ProcessError
from virtual_waggle.containers import layout
from virtual_waggle.containers.layout import StoredImage

FOLDER = Path("/opt/virtual-waggle/images")
_DEADLINE = 1800.0  # seconds for giving Docker one image; emulated machines are slow
_ANSWER = 120.0  # seconds for a question to Docker


def stored(folder: Path = FOLDER) -> list[StoredImage]:
    """The images that lie on this machine."""
    return layout.read(folder)


def chosen(names: Sequence[str], images: Sequence[StoredImage]) -> list[StoredImage]:
    """The images of these names, or all.  Raises InputError for an unknown name."""
    by_name = {image.name: image for image in images}
    for name in names:
        if name not in by_name:
            raise unknown("image", name, by_name)
    return [by_name[name] for name in names] if names else list(images)


def missing(images: Sequence[StoredImage]) -> list[StoredImage]:
    """Those of the images that Docker does not have, or has with other contents."""
    lacking = []
    for image in images:
        form = f'{{{{index .Config.Labels "{layout.LABEL}"}}}}'
        try:
            have = process.run(["docker", "image", "inspect", "--format", form, image.name], timeout=_ANSWER).strip()
        except ProcessError as error:
            if "no such image" not in error.output.lower():
                raise _no_answer(error) from None
            have = ""
        if have != image.content:
            lacking.append(image)
    return lacking


def load(image: StoredImage, folder: Path = FOLDER) -> None:
    """Give Docker one image, under its name."""
    loading = process.start(["docker", "load", "--quiet"], stdin=-1, stdout=-1, stderr=-2)
    try:
        assert loading.stdin is not None
        assert loading.stdout is not None
        try:
            with tarfile.open(fileobj=loading.stdin, mode="w|", bufsize=1 << 18) as archive:
                _write(archive, image, folder)
            loading.stdin.close()
        except BrokenPipeError:
            pass  # Docker says why
        said = loading.stdout.read().decode(errors="replace").strip()
        if loading.wait(_DEADLINE) != 0:
            raise SageError(f"Docker does not take {image.name}: {said}", hint="see: systemctl status docker")
    finally:
        process.stop(loading)


def _write(archive: tarfile.TarFile, image: StoredImage, folder: Path) -> None:
    config = "config.json"
    names = [f"{layer.diff_id.partition(':')[2]}/layer.tar" for layer in image.layers]
    row = {"Config": config, "RepoTags": [f"{image.name}:latest"], "Layers": names}
    for name, data in (("manifest.json", json.dumps([row]).encode()), (config, image.config)):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    for name, layer in zip(names, image.layers, strict=True):
        info = tarfile.TarInfo(name)
        info.size = layer.plain_size
        with layout.plain(folder, layer) as content:
            archive.addfile(info, content)


def _no_answer(error: ProcessError) -> InputError:
    if "permission denied" in error.output.lower():
        return InputError("Docker does not answer to this user", hint="log in as cc, or use sudo")
    return InputError(f"Docker does not answer: {error}", hint="sudo systemctl start docker")

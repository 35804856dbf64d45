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

from groundwork import files, process
from groundwork.errors import InputError, SageError, unknown
from groundwork.process import ProcessError
from virtual_waggle.containers import layout
from virtual_waggle.containers.layout import StoredImage, StoredLayer

FOLDER = Path("/opt/virtual-waggle/images")
_DEADLINE = 1800.0  # seconds for giving Docker the images; emulated machines are slow
_ANSWER = 120.0  # seconds for a question to Docker


def stored(folder: Path | None = None) -> list[StoredImage]:
    """The images that lie on this machine."""
    return layout.read(folder or FOLDER)


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


def load(images: Sequence[StoredImage], folder: Path | None = None) -> None:
    """Give Docker the images, under their names.  A layer that several have is given once."""
    loading = process.start(["docker", "load", "--quiet"], stdin=-1, stdout=-1, stderr=-2)
    try:
        assert loading.stdin is not None
        assert loading.stdout is not None
        try:
            with tarfile.open(fileobj=loading.stdin, mode="w|", bufsize=1 << 18) as archive:
                _write(archive, images, folder or FOLDER)
            loading.stdin.close()
        except BrokenPipeError:
            pass  # Docker says why
        said = loading.stdout.read().decode(errors="replace").strip()
        if loading.wait(_DEADLINE) != 0:
            names = files.join_names([image.name for image in images])
            raise SageError(f"Docker does not take {names}: {said}", hint="see: systemctl status docker")
    finally:
        process.stop(loading)


def _write(archive: tarfile.TarFile, images: Sequence[StoredImage], folder: Path) -> None:
    rows = []
    for position, image in enumerate(images):
        config = f"config-{position}.json"
        _add(archive, config, image.config)
        rows.append({"Config": config, "RepoTags": [f"{image.name}:latest"], "Layers": list(map(_place, image.layers))})
    _add(archive, "manifest.json", json.dumps(rows).encode())
    for layer in {layer.diff_id: layer for image in images for layer in image.layers}.values():
        info = tarfile.TarInfo(_place(layer))
        info.size = layer.plain_size
        with layout.plain(folder, layer) as content:
            try:
                archive.addfile(info, content)
            except BrokenPipeError:
                raise
            except OSError:  # it ended too early
                raise layout.damaged(layer) from None


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _place(layer: StoredLayer) -> str:
    return f"{layer.diff_id.partition(':')[2]}/layer.tar"


def _no_answer(error: ProcessError) -> InputError:
    if "permission denied" in error.output.lower():
        return InputError("Docker does not answer to this user", hint="log in as cc, or use sudo")
    return InputError(f"Docker does not answer: {error}", hint="sudo systemctl start docker")

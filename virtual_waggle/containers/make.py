# SPDX-License-Identifier: Apache-2.0
"""Makes the container images of a root tree, while that is built, out of the packages that apt gave.

Run outside the tree: ``python3 -m virtual_waggle.containers.make TREE RESOLVED``, where RESOLVED is what
``resolve`` wrote.  Needs dpkg-deb and zstd, no network, no container daemon, no privilege but to write.
"""

import json
import os
import sys
import tarfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from groundwork import files
from virtual_waggle.containers import debs, definition, layout
from virtual_waggle.containers.debs import Deb
from virtual_waggle.containers.definition import Definition, Image, Layer
from virtual_waggle.containers.layers import LayerTar

STORE = Path("opt/virtual-waggle/images")
RECORD = "images.json"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(words: Sequence[str]) -> int:
    """Make the images' layout in the tree."""
    tree, resolved = map(Path, words)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    # apt gave paths inside the tree
    found = [debs.read(tree / path.lstrip("/")) for path in json.loads(resolved.read_bytes())]
    store = tree / STORE
    files.remove_tree(store)
    make(definition.load(), found, tree, files.make_folder(store), epoch)
    return 0


def make(wanted: Definition, found: Sequence[Deb], tree: Path, store: Path, epoch: int) -> None:
    """Write the layout and, beside it, the record of what the images hold (``images.json``).

    The record is a list with, for each image, ``name``, ``digest`` (the manifest's), ``size`` (bytes, stored) and
    ``packages``: ``name``, ``version``, ``arch`` and ``source`` of each.
    """
    base_debs = debs.closure(wanted.base.packages, found)
    passwd, group = _distribution_accounts(base_debs)
    base_tar: list[LayerTar] = []

    def fill_base(output: IO[bytes]) -> None:
        layer = LayerTar(output, wanted.base, epoch)
        layer.merged_folders()
        layer.accounts(passwd, group, wanted.base.users)
        layer.additions()
        layer.packages(base_debs, tree)
        layer.close()
        base_tar.append(layer)

    def fill_project(output: IO[bytes]) -> None:
        layer = LayerTar(output, Layer(()), epoch, base_tar[0])
        layer.project(tree)
        layer.close()

    base = layout.write_layer(store, fill_base)
    lists: dict[str, list[Deb]] = {}
    images: dict[str, tuple[list[layout.StoredLayer], dict[str, Any]]] = {}
    arch = next(deb.arch for deb in base_debs if deb.arch != "all")
    for image in wanted.images:
        every = debs.closure((*wanted.base.packages, *image.layer.packages), found)
        own = [deb for deb in every if deb not in base_debs]

        def fill(output: IO[bytes], image: Image = image, own: Sequence[Deb] = own) -> None:
            layer = LayerTar(output, image.layer, epoch, base_tar[0])
            if image.layer.users:
                layer.accounts(passwd, group, (*wanted.base.users, *image.layer.users))
            layer.additions()
            layer.packages(own, tree)
            layer.close()

        lists[image.name] = every
        images[image.name] = ([base, layout.write_layer(store, fill)], _config(image, arch, epoch))
        if image.project:
            images[image.name][0].append(layout.write_layer(store, fill_project))
    layout.write(store, images)
    _record(store, lists)


def _distribution_accounts(base: Sequence[Deb]) -> tuple[str, str]:
    """passwd and group as the package base-passwd has them."""
    texts: dict[str, str] = {}
    for deb in base:
        if deb.name == "base-passwd":
            with debs.contents(deb) as stream:
                for member in stream:
                    name = Path(member.name).name
                    if name in ("passwd.master", "group.master"):
                        texts[name] = _read(stream, member).decode().replace(":*:", ":x:")
    return texts.get("passwd.master", "root:x:0:0:root:/root:/bin/sh\n"), texts.get("group.master", "root:x:0:\n")


def _read(stream: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = stream.extractfile(member)
    return content.read() if content else b""


def _config(image: Image, arch: str, epoch: int) -> dict[str, Any]:
    environment = {"PATH": _PATH, "LANG": "C.UTF-8", **dict(image.environment)}
    home = next((user.home for user in image.layer.users if user.name == image.user), "/")
    return {
        "architecture": arch,  # Debian's names for amd64 and arm64 are also OCI's
        "os": "linux",
        "created": datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config": {
            "Cmd": list(image.command),
            "Env": [f"{key}={value}" for key, value in environment.items()],
            "User": image.user,
            "WorkingDir": home,
        },
    }


def _record(store: Path, lists: dict[str, list[Deb]]) -> None:
    rows = []
    for image in layout.read(store):
        packages = [
            {"name": deb.name, "version": deb.version, "arch": deb.arch, "source": deb.source}
            for deb in lists[image.name]
        ]
        size = sum(layer.size for layer in image.layers)
        rows.append({"name": image.name, "digest": image.digest, "size": size, "packages": packages})
    files.write_text(store / RECORD, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    from groundwork.program import run_program

    run_program(lambda: main(sys.argv[1:]))

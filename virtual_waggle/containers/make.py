# SPDX-License-Identifier: Apache-2.0
"""Makes the container images of a root tree, while that is built, out of the packages that apt gave.

Run outside the tree: ``python3 -m virtual_waggle.containers.make TREE RESOLVED CACHE``, where RESOLVED is what
``resolve`` wrote and CACHE a folder that keeps layers for the next build.  Needs dpkg-deb and zstd; no network, no
container daemon, no privilege but to write.
"""

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from groundwork import files, process
from virtual_waggle.containers import debs, definition, layers, layout
from virtual_waggle.containers.debs import Deb
from virtual_waggle.containers.definition import Definition, Image, Layer
from virtual_waggle.containers.layers import LayerTar
from virtual_waggle.containers.layout import StoredLayer

STORE = Path("opt/virtual-waggle/images")
RECORD = "images.json"
_KEPT = 12  # layers in the cache; a build has three that are kept
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(words: Sequence[str]) -> int:
    """Make the images' layout in the tree."""
    tree, resolved, cache = map(Path, words)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    # apt gave paths inside the tree
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda path: debs.read(tree / path.lstrip("/")), json.loads(resolved.read_bytes())))
    store = tree / STORE
    files.remove_tree(store)
    make(definition.load(), found, tree, files.make_folder(store), cache, epoch)
    return 0


def make(wanted: Definition, found: Sequence[Deb], tree: Path, store: Path, cache: Path, epoch: int) -> None:
    """Write the layout and, beside it, the record of what the images hold (``images.json``).

    The record is a list with, for each image, ``name``, ``digest`` (the manifest's), ``size`` (bytes, stored) and
    ``packages``: ``name``, ``version``, ``arch``, ``source`` and ``source_version`` of each.  A layer
    whose packages, definition and bytecode are those of an earlier build comes from ``cache``.
    """
    common = [str(epoch), layers.bytecode_digest(tree), files.digest_tree(Path(__file__).parent)]
    common.append(process.run(["zstd", "--version"], timeout=30))
    base_debs = debs.closure(wanted.base.packages, found)
    accounts = _distribution_accounts(base_debs)
    arch = next(deb.arch for deb in base_debs if deb.arch != "all")

    def layer(content: Layer, own: Sequence[Deb], *, base: bool) -> StoredLayer:
        def fill(output: IO[bytes]) -> None:
            tar = LayerTar(output, content, epoch)
            if base:
                tar.merged_folders()
            if base or content.users:
                tar.accounts(*accounts, (*wanted.base.users, *(() if base else content.users)))
            tar.additions()
            tar.packages(own, tree)
            tar.close()

        key = files.digest_text(*common, repr(content), repr(base), repr(wanted.base.users), *map(deb_digest, own))
        return _kept(cache, key, store, fill)

    def project(output: IO[bytes]) -> None:
        tar = LayerTar(output, Layer(()), epoch)
        tar.project(tree)
        tar.close()

    lists = {image.name: debs.closure((*wanted.base.packages, *image.layer.packages), found) for image in wanted.images}
    images: dict[str, tuple[list[StoredLayer], dict[str, Any]]] = {}
    with ThreadPoolExecutor() as pool:  # most of the work is dpkg-deb's and zstd's
        base = pool.submit(layer, wanted.base, base_debs, base=True)
        tops = {}
        for image in wanted.images:
            own = [deb for deb in lists[image.name] if deb not in base_debs]
            tops[image.name] = pool.submit(layer, image.layer, own, base=False)
        for image in wanted.images:
            stack = [base.result(), tops[image.name].result()]
            if image.project:
                stack.append(layout.write_layer(store, project))
            images[image.name] = (stack, _config(image, arch, epoch))
    for old in sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        files.remove_tree(old)
    layout.write(store, images)
    _record(store, lists)


def deb_digest(deb: Deb) -> str:
    """SHA-256 of a package's file."""
    return files.digest_file(deb.path).sha256


def _kept(cache: Path, key: str, store: Path, fill: Callable[[IO[bytes]], None]) -> StoredLayer:
    """The layer of that key, from the cache where it was made before."""
    place = cache / key
    try:
        found = StoredLayer(**json.loads((place / "layer.json").read_bytes()))
        kept = place / "blob"
        intact = f"sha256:{files.digest_file(kept).sha256}" == found.digest
    except (OSError, ValueError, TypeError):
        intact = False
    if intact:
        os.utime(place)
        target = layout.blob(store, found.digest)
        files.make_folder(target.parent)
        shutil.copyfile(kept, target)
        return found
    made = layout.write_layer(store, fill)
    partial = place.with_name(f"{key}.{os.getpid()}")
    files.remove_tree(partial)
    files.make_folder(partial)
    shutil.copyfile(layout.blob(store, made.digest), partial / "blob")
    files.write_text(partial / "layer.json", json.dumps(asdict(made)))
    files.remove_tree(place)
    partial.rename(place)
    return made


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
            {key: getattr(deb, key) for key in ("name", "version", "arch", "source", "source_version")}
            for deb in lists[image.name]
        ]
        size = sum(layer.size for layer in image.layers)
        rows.append({"name": image.name, "digest": image.digest, "size": size, "packages": packages})
    files.write_text(store / RECORD, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    from groundwork.program import run_program

    run_program(lambda: main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Container images as an OCI image layout (v1): each layer is stored once, compressed by zstd.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md.  Other tools (skopeo, podman) read it too.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from groundwork import files, process
from groundwork.errors import SageError

LABEL = "org.sagecontinuum.content"  # on an image: the digest of all else that makes it
_SIZE = "org.sagecontinuum.uncompressed-size"
_OCI = "application/vnd.oci.image"
_CONFIG = _OCI + ".config.v1+json"
_MANIFEST = _OCI + ".manifest.v1+json"
_LAYER = _OCI + ".layer.v1.tar+zstd"
_INDEX = _OCI + ".index.v1+json"
_REF_NAME = "org.opencontainers.image" + ".ref.name"
_BLOCK = 1 << 20
_LARGEST = 4 << 20  # bytes of an index, manifest or configuration
_DEADLINE = 600.0


@dataclass(frozen=True)
class StoredLayer:
    """``digest`` and ``size`` (bytes) of the compressed blob; ``diff_id`` and ``plain_size`` of the tar in it."""

    digest: str
    size: int
    diff_id: str
    plain_size: int


@dataclass(frozen=True)
class StoredImage:
    """An image of a layout; ``digest`` is its manifest's, ``content`` what its label says, ``config`` its text."""

    name: str
    digest: str
    content: str
    config: bytes
    layers: tuple[StoredLayer, ...]


def write_layer(folder: Path, fill: Callable[[IO[bytes]], None]) -> StoredLayer:
    """Compress what ``fill`` writes into a blob of the layout.  Several threads may do so at once."""
    blobs = files.make_folder(folder / "blobs/sha256")
    made = blobs / f"layer-{threading.get_ident()}"
    with files.writing(made) as temporary:
        with temporary.open("wb") as output:
            # as many threads as there are cores: their number does not change what comes out
            compressing = process.start(["zstd", "-q", "-T0", "-4", "-c"], stdin=-1, stdout=output)
            try:
                assert compressing.stdin is not None
                counting = _Counting(compressing.stdin)
                fill(counting)  # type: ignore[arg-type]  # as much of a file as tarfile needs
                compressing.stdin.close()
                if compressing.wait(_DEADLINE) != 0:
                    raise SageError("zstd failed", hint="is there room on the disk?")
            finally:
                process.stop(compressing)
        found = files.digest_file(temporary)
    made.rename(blobs / found.sha256)
    return StoredLayer(f"sha256:{found.sha256}", found.size, f"sha256:{counting.hash.hexdigest()}", counting.size)


def write(folder: Path, images: Mapping[str, tuple[Sequence[StoredLayer], Mapping[str, Any]]]) -> None:
    """Finish the layout: ``images`` gives each name its layers, from the lowest, and its configuration.

    The configuration is OCI's, without ``rootfs``.
    """
    manifests = []
    for name, (layers, config) in sorted(images.items()):
        whole = {**config, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}}
        labels = {**whole.get("config", {}).get("Labels", {}), LABEL: hashlib.sha256(_json(whole)).hexdigest()}
        whole["config"] = {**whole.get("config", {}), "Labels": labels}
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _blob(folder, _CONFIG, _json(whole)),
            "layers": [
                {
                    "mediaType": _LAYER,
                    "digest": layer.digest,
                    "size": layer.size,
                    "annotations": {_SIZE: str(layer.plain_size)},
                }
                for layer in layers
            ],
        }
        platform = {"architecture": config["architecture"], "os": config["os"]}
        named = {_REF_NAME: name}
        manifests.append({**_blob(folder, _MANIFEST, _json(manifest)), "platform": platform, "annotations": named})
    files.write_text(folder / "oci-layout", '{"imageLayoutVersion":"1.0.0"}\n')
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests}
    files.write_text(folder / "index.json", json.dumps(index, indent=2) + "\n")


def read(folder: Path) -> list[StoredImage]:
    """The images of a layout.  Raises SageError where it is damaged."""
    try:
        index = json.loads(_text(folder / "index.json"))
        found = []
        for row in index["manifests"]:
            manifest = json.loads(_text(blob(folder, row["digest"])))
            config = _text(blob(folder, manifest["config"]["digest"]))
            fields = json.loads(config)
            layers = tuple(
                StoredLayer(layer["digest"], layer["size"], diff_id, int(layer["annotations"][_SIZE]))
                for layer, diff_id in zip(manifest["layers"], fields["rootfs"]["diff_ids"], strict=True)
            )
            content = fields["config"]["Labels"][LABEL]
            found.append(StoredImage(row["annotations"][_REF_NAME], row["digest"], content, config, layers))
        return found
    except OSError as error:
        raise SageError(f"can't read {error.filename}: {error.strerror}", hint="is this a Sage image?") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SageError(f"{folder} is no layout of container images: {error}") from None


def blob(folder: Path, digest: str) -> Path:
    """Where the blob of that digest lies."""
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{digest!r} is no digest")
    return folder / "blobs/sha256" / value


@contextmanager
def plain(folder: Path, layer: StoredLayer) -> Iterator[IO[bytes]]:
    """The layer's tar, uncompressed, as a stream of ``plain_size`` bytes."""
    unpacking = process.start(["zstd", "-q", "-d", "-c", blob(folder, layer.digest)], stdout=-1)
    try:
        assert unpacking.stdout is not None
        yield unpacking.stdout
        if unpacking.stdout.read(1) or unpacking.wait(_DEADLINE) != 0:
            raise damaged(layer)
    finally:
        process.stop(unpacking)


def damaged(layer: StoredLayer) -> SageError:
    """The error for a blob that holds something else than it should."""
    return SageError(f"the layer {layer.digest} is damaged", hint="build the image anew")


class _Counting:
    """Passes on what is written, counts it and takes its digest."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        self._output.write(data)
        return len(data)


def _blob(folder: Path, kind: str, data: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    files.write_text(blob(folder, digest), data.decode())
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def _text(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_LARGEST)


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()

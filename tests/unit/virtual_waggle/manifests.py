# SPDX-License-Identifier: Apache-2.0
"""Compose files written in a test, as manifests that Kubernetes takes, and looks into these."""

from pathlib import Path
from typing import Any

from virtual_waggle import compose, kubernetes
from virtual_waggle.kubernetes import Manifests


def convert(folder: Path, text: str, **options: Any) -> Manifests:
    (folder / "compose.yaml").write_text(text)
    return kubernetes.convert(compose.load(folder / "compose.yaml", {}, name="demo"), **options)


def one(found: Manifests, kind: str, name: str) -> dict[str, Any]:
    return next(one for one in found.documents if (one["kind"], one["metadata"]["name"]) == (kind, name))


def kinds(found: Manifests) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for document in found.documents:
        result.setdefault(document["kind"], []).append(document["metadata"]["name"])
    return result


def pod(found: Manifests, kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = one(found, kind, name)["spec"]["template"]["spec"]
    return spec


def container(found: Manifests, kind: str, name: str) -> dict[str, Any]:
    first: dict[str, Any] = pod(found, kind, name)["containers"][0]
    return first


def losses(found: Manifests) -> dict[str, str]:
    return {loss.name: loss.why for loss in found.losses}

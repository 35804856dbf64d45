# SPDX-License-Identifier: Apache-2.0
"""How an image was built, as an in-toto Statement v1 with SLSA's build provenance v1 as its predicate.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.1/provenance.
Digests named ``sageTreeSha256`` are those of :func:`groundwork.files.digest_tree`.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from groundwork import files
from groundwork.errors import InputError
from image_builder.manifest import Document, ImageFile, Manifest
from image_builder.recipe import PAYLOAD, Recipe, payload_digest

PROVENANCE = "provenance.intoto.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "tag:sagecontinuum.org,2026:sage-chameleon/create-image/v1"  # docs/images.md says what is in it
BUILDER = "tag:sagecontinuum.org,2026:sage-chameleon/unnamed-builder"  # nobody vouches for it
_TREE = "sageTreeSha256"


def make(
    recipe: Recipe,
    made: Manifest,
    *,
    started_at: str,
    finished_at: str,
    revision: str | None = None,
    byproducts: Sequence[Document] = (),
    builder: str = BUILDER,
) -> dict[str, Any]:
    """The statement about a build.  Times are UTC, RFC 3339; ``builder`` is the URI of who vouches for it."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": _subjects(made.files),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "variant": recipe.variant,
                    "release": recipe.release,
                    "arch": str(recipe.arch),
                    "mirror": recipe.archive.mirror,
                    "securityMirror": recipe.archive.security_mirror,
                    "revision": revision,
                    "settings": dict(sorted(recipe.settings.items())),
                },
                "internalParameters": {
                    "recipeDigest": recipe.digest,
                    "layers": [
                        {
                            "name": layer.name,
                            "digest": layer.digest,
                            "elements": list(layer.elements),
                            "packages": list(layer.packages),
                        }
                        for layer in recipe.layers
                    ],
                    "components": list(recipe.archive.components),
                },
                "resolvedDependencies": _materials(recipe, made),
            },
            "runDetails": {
                "builder": {
                    "id": builder,
                    "version": {
                        "sage-chameleon": made.project_version,
                        "diskimage-builder": package_version("diskimage-builder"),
                    },
                },
                "metadata": {"invocationId": made.build_id, "startedOn": started_at, "finishedOn": finished_at},
                "byproducts": [{"name": item.name, "digest": {"sha256": item.sha256}} for item in byproducts],
            },
        },
    }


def text(statement: dict[str, Any]) -> str:
    """The statement as it is written and signed."""
    return json.dumps(statement, indent=2) + "\n"


def read(path: Path) -> dict[str, Any]:
    """A statement that :func:`make` made; InputError for any other file."""
    try:
        statement = json.loads(path.read_bytes())
        if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError
        return dict(statement)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} is not a provenance statement") from None


def with_files(statement: dict[str, Any], image_files: Iterable[ImageFile]) -> dict[str, Any]:
    """The same statement about other forms of the same image."""
    return {**statement, "subject": _subjects(image_files)}


def subjects(statement: dict[str, Any]) -> dict[str, str]:
    """File's name -> SHA-256 of what the statement is about.  InputError where it is about something else."""
    try:
        return {row["name"]: row["digest"]["sha256"] for row in statement["subject"]}
    except (KeyError, TypeError):
        raise InputError("the provenance statement is not about files") from None


def _subjects(image_files: Iterable[ImageFile]) -> list[dict[str, Any]]:
    return [
        {"name": file.name, "digest": {"sha256": file.sha256, "sha512": file.sha512}}
        for file in sorted(image_files, key=lambda file: file.name)
    ]


def _materials(recipe: Recipe, made: Manifest) -> list[dict[str, Any]]:
    """What the image was made of, each with a digest."""
    found: list[dict[str, Any]] = []
    if made.commit:
        found.append(
            {
                "name": "sage-chameleon",
                "digest": {"gitCommit": made.commit},
                "annotations": {"changedSince": not made.clean},
            }
        )
    found += [
        {"name": f"payload/{package.__name__}", "digest": {_TREE: payload_digest(package)}} for package in PAYLOAD
    ]
    found += [{"name": f"element/{name}", "digest": {_TREE: digest}} for name, digest in recipe.element_digests.items()]
    found.append(
        {
            "name": "diskimage-builder",
            "uri": f"pkg:pypi/diskimage-builder@{package_version('diskimage-builder')}",
            "digest": {_TREE: _builder_digest()},
        }
    )
    for place, digest in (recipe.indexes.releases if recipe.indexes else {}).items():
        mirror, suite = place.split(" ")
        found.append({"uri": f"{mirror}/dists/{suite}/InRelease", "digest": {"sha256": digest}})
    for source in made.sources:
        if source.tree is not None:
            uri = f"git+{source.url}@{source.digest}"
            digests = {"gitCommit": source.digest, "gitTree": source.tree}
        else:
            uri, digests = source.url, {"sha256": source.digest}
        found.append({"name": f"source/{source.name}", "uri": uri, "digest": digests})
    return found


@lru_cache(maxsize=1)
def _builder_digest() -> str:
    """The digest of diskimage-builder as it is installed."""
    import diskimage_builder

    return files.digest_tree(Path(diskimage_builder.__file__).parent)

# SPDX-License-Identifier: Apache-2.0
"""The provenance has the shape of in-toto's Statement v1 and SLSA's build provenance v1, and names all materials."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from chameleon_sites.sites import DiskFormat
from groundwork.errors import InputError
from image_builder import cli, provenance, recipe, variant
from image_builder.manifest import Document, FurtherSource, ImageFile
from image_builder.recipe import Indexes, Recipe
from image_builder.variant import Arch
from tests.unit.image_builder.test_cli import a_manifest

# After the protobuf definitions of in-toto's Statement v1 and ResourceDescriptor v1 and of SLSA's provenance v1;
# required is what their texts require.
URI = {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:"}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
DIGEST = {
    "type": "object",
    "minProperties": 1,
    "properties": {name: {"pattern": f"^[0-9a-f]{{{size}}}$"} for name, size in (("sha256", 64), ("sha512", 128))},
    "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]+$"},
}
RESOURCE = {
    "type": "object",
    "additionalProperties": False,
    "anyOf": [{"required": ["uri"]}, {"required": ["digest"]}],
    "properties": {
        "name": {"type": "string"},
        "uri": URI,
        "digest": DIGEST,
        "annotations": {"type": "object"},
    },
}
RESOURCES = {"type": "array", "items": RESOURCE}
STATEMENT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["_type", "subject", "predicateType", "predicate"],
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {"type": "array", "minItems": 1, "items": {**RESOURCE, "required": ["name", "digest"]}},
        "predicateType": {"const": "https://slsa.dev/provenance/v1"},
        "predicate": {
            "type": "object",
            "additionalProperties": False,
            "required": ["buildDefinition", "runDetails"],
            "properties": {
                "buildDefinition": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["buildType", "externalParameters"],
                    "properties": {
                        "buildType": URI,
                        "externalParameters": {"type": "object", "minProperties": 1},
                        "internalParameters": {"type": "object"},
                        "resolvedDependencies": RESOURCES,
                    },
                },
                "runDetails": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["builder"],
                    "properties": {
                        "builder": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["id"],
                            "properties": {
                                "id": URI,
                                "version": {"type": "object", "additionalProperties": {"type": "string"}},
                                "builderDependencies": RESOURCES,
                            },
                        },
                        "metadata": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"invocationId": {"type": "string"}, "startedOn": TIME, "finishedOn": TIME},
                        },
                        "byproducts": RESOURCES,
                    },
                },
            },
        },
    },
}

SHA256 = "e" * 64
FILE = ImageFile(DiskFormat.QCOW2_ZSTD, "Sage-Debian12.zstd.qcow2", 4, "m", "1" * 64, "2" * 128)
INDEXES = Indexes(Path("lists"), "2026-11-20T03:00:00Z", {"http://deb.debian.org/debian bookworm": SHA256}, {})
SOURCES = (
    FurtherSource("plugin", "https://example.org/plugin.git", "d" * 40, "f" * 40, "/opt/edge-plugins/plugin"),
    FurtherSource("model", "https://example.org/model-2.tar.gz", SHA256, None, "/opt/model"),
)


@pytest.fixture
def sage() -> Recipe:
    found = variant.load("sage", [cli.project_folder("variants")])
    return recipe.make(found, "bookworm", Arch.AMD64, element_folders=[cli.project_folder("elements")])


def made(sage: Recipe, **changes: Any) -> dict[str, Any]:
    manifest = replace(a_manifest(), files=(FILE,), commit="c" * 40, clean=True, sources=SOURCES)
    words: dict[str, Any] = {
        "finished_at": "2026-11-20T03:20:00Z",
        "started_at": "2026-11-20T03:10:00Z",
        "byproducts": (Document("sbom.cdx.json", 5, SHA256),),
        **changes,
    }
    return provenance.make(replace(sage, indexes=INDEXES), manifest, **words)


@pytest.mark.parametrize("changes", [{}, {"byproducts": ()}, {"builder": "https://ci/1"}])
def test_it_has_the_shape_of_the_standards(sage: Recipe, changes: dict[str, Any]) -> None:
    statement = json.loads(provenance.text(made(sage, **changes)))
    Draft202012Validator.check_schema(STATEMENT)
    assert [error.message for error in Draft202012Validator(STATEMENT).iter_errors(statement)] == []


def test_its_subjects_are_the_image_files(sage: Recipe) -> None:
    statement = made(sage)
    assert provenance.subjects(statement) == {FILE.name: FILE.sha256}
    other = replace(FILE, name="A.raw", sha256="3" * 64)
    more = provenance.with_files(statement, (FILE, other))
    assert provenance.subjects(more) == {"A.raw": other.sha256, FILE.name: FILE.sha256}
    assert more["predicate"] == statement["predicate"]


def test_all_that_went_in_is_named_with_a_digest(sage: Recipe) -> None:
    materials = made(sage)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert all(row["digest"] for row in materials)
    named = {row.get("name", row.get("uri")): row for row in materials}
    assert named["sage-chameleon"]["digest"] == {"gitCommit": "c" * 40}
    assert named["element/docker"]["digest"] == {"sageTreeSha256": sage.element_digests["docker"]}
    assert {f"element/{name}" for name in sage.element_digests} <= set(named)
    assert {"payload/groundwork", "payload/virtual_waggle"} <= set(named)
    assert named["diskimage-builder"]["uri"].startswith("pkg:pypi/diskimage-builder@3.")
    assert named["http://deb.debian.org/debian/dists/bookworm/InRelease"]["digest"] == {"sha256": SHA256}
    assert named["source/plugin"]["uri"] == "git+https://example.org/plugin.git@" + "d" * 40
    assert named["source/plugin"]["digest"] == {"gitCommit": "d" * 40, "gitTree": "f" * 40}
    assert named["source/model"]["digest"] == {"sha256": SHA256}


def test_what_the_user_asked_for_is_told_apart_from_what_came_of_it(sage: Recipe) -> None:
    predicate = made(sage, revision="20261101T000000Z")["predicate"]
    asked = predicate["buildDefinition"]["externalParameters"]
    assert (asked["variant"], asked["release"], asked["arch"]) == ("sage", "bookworm", "amd64")
    assert asked["revision"] == "20261101T000000Z"
    assert asked["mirror"] == "http://deb.debian.org/debian"
    assert predicate["buildDefinition"]["internalParameters"]["recipeDigest"] == sage.digest
    layers = predicate["buildDefinition"]["internalParameters"]["layers"]
    assert [row["digest"] for row in layers] == [layer.digest for layer in sage.layers]
    assert "docker" in {name for row in layers for name in row["elements"]}
    assert predicate["runDetails"]["metadata"] == {
        "invocationId": "20261120T031500Z-dddddddd",
        "startedOn": "2026-11-20T03:10:00Z",
        "finishedOn": "2026-11-20T03:20:00Z",
    }


@pytest.mark.parametrize("text", ["hello", "[]", '{"_type": "x"}', '{"_type": "x", "predicateType": "y"}'])
def test_another_document_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "provenance.intoto.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a provenance statement"):
        provenance.read(path)

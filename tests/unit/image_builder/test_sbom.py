# SPDX-License-Identifier: Apache-2.0
"""The SBOM is CycloneDX by its schema, names all software, and is the same each time."""

import json
from dataclasses import replace
from typing import Any

import pytest

from image_builder import sbom
from image_builder.manifest import FurtherSource, Manifest
from image_builder.software import ContainerImage, PythonPackage, Software
from tests.unit.image_builder.test_cli import a_manifest
from tests.unit.image_builder.trees import package

TREE_DIGEST = "a" * 64
SOFTWARE = Software(
    packages=(
        package("libc6", "2.36-9+deb12u9", "glibc", "2.36-9+deb12u9"),
        package("gcc-12-base", "12.2.0-14", "gcc-12", "12.2.0-14"),
        package("docker.io", "20.10.24+dfsg1-1+b3", "docker.io", "20.10.24+dfsg1-1"),
        package("bash", "5.2.15-2", "bash", "5.2.15-2"),
        replace(package("libc6", "2.36-9+deb12u9", "glibc", "2.36-9+deb12u9"), arch="i386"),
    ),
    python=(
        PythonPackage("waggle", "0.5", "usr/local/lib/python3.11/dist-packages/waggle-0.5.dist-info/METADATA"),
        PythonPackage("waggle", "0.5", "opt/x/waggle-0.5.dist-info/METADATA"),
        PythonPackage("groundwork", "0.1.0", "opt/virtual-waggle/groundwork", TREE_DIGEST),
    ),
    containers=(
        ContainerImage("sage/beehive:1", "sha256:" + "b" * 64, (package("bash", "5.2.15-2"),)),
        ContainerImage("sage/node", "sha256:" + "c" * 64, (package("bash", "5.2.15-2"),)),
    ),
)
SOURCES = (
    FurtherSource("plugin", "https://example.org/plugin.git", "d" * 40, "f" * 40, "/opt/edge-plugins/plugin"),
    FurtherSource("model", "https://example.org/model-2.tar.gz", "e" * 64, None, "/opt/model"),
)


def an_image() -> Manifest:
    return replace(a_manifest(), sources=SOURCES)


def made(software: Software = SOFTWARE, manifest: Manifest | None = None) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(sbom.make(manifest or an_image(), software))
    return document


def by_reference(document: dict[str, Any]) -> dict[str, Any]:
    return {row["bom-ref"]: row for row in document["components"]}


@pytest.mark.slow  # the schema is large
@pytest.mark.parametrize("software", [SOFTWARE, Software(())], ids=["all", "none"])
def test_it_is_valid_by_the_standards_schema(software: Software) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = sbom.make(an_image(), software)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    wrong = text.replace('"specVersion": "1.6"', '"specVersion": 1.6')
    assert validator.validate_str(wrong) is not None


def test_it_is_about_the_image_and_its_system() -> None:
    document = made()
    about = document["metadata"]["component"]
    assert (about["type"], about["name"], about["version"]) == (
        "operating-system",
        "Sage-Debian12",
        "20261120T031500Z-dddddddd",
    )
    system = by_reference(document)["os:debian@12"]
    assert (system["type"], system["name"], system["version"]) == ("operating-system", "debian", "12")
    assert document["metadata"]["timestamp"] == "2026-11-20T03:15:00+00:00"


def test_the_distributions_packages_have_urls_that_scanners_know() -> None:
    urls = {row.get("purl") for row in made()["components"]}
    assert {
        "pkg:deb/debian/bash@5.2.15-2?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=i386&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/docker.io@20.10.24%2Bdfsg1-1%2Bb3?arch=amd64&distro=debian-12"
        "&upstream=docker.io%4020.10.24%2Bdfsg1-1",
    } <= urls


def test_an_ubuntu_image_has_ubuntus_urls() -> None:
    noble = replace(a_manifest(), os_name="Ubuntu", os_version="24.04", release="noble")
    document = made(Software((package("bash", "5.2"),)), noble)
    assert "pkg:deb/ubuntu/bash@5.2?arch=amd64&distro=ubuntu-24.04" in by_reference(document)


def test_python_packages_are_of_pypi_and_ours_are_ours() -> None:
    rows = [row for row in made()["components"] if row["name"] in ("waggle", "groundwork")]
    assert [row["purl"] for row in rows] == [
        "pkg:generic/sage-chameleon/groundwork@0.1.0",
        "pkg:pypi/waggle@0.5",
        "pkg:pypi/waggle@0.5",
    ]
    assert {"name": "sage-chameleon:tree-digest", "value": TREE_DIGEST} in rows[0]["properties"]


def test_container_images_hold_packages_of_their_own() -> None:
    found = by_reference(made())
    beehive = found["container:sage/beehive:1@sha256:" + "b" * 64]
    assert beehive["type"] == "container"
    assert beehive["purl"] == "pkg:oci/beehive@sha256:" + "b" * 64 + "?tag=1"
    (inside,) = beehive["components"]
    assert inside["purl"] == "pkg:deb/debian/bash@5.2.15-2?arch=amd64&distro=debian-12"
    assert inside["bom-ref"] != inside["purl"], "references are unique in the whole document"


def test_fetched_sources_are_told_with_their_digests() -> None:
    found = by_reference(made())
    git = found["source:plugin@" + "d" * 40]
    assert git["externalReferences"] == [{"type": "vcs", "url": "https://example.org/plugin.git"}]
    assert git["version"] == "d" * 40
    assert {"name": "sage-chameleon:git-tree", "value": "f" * 40} in git["properties"]
    archive = found["source:model@" + "e" * 64]
    assert archive["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    assert archive["externalReferences"][0]["url"] == "https://example.org/model-2.tar.gz"


def test_the_image_depends_on_all_of_it() -> None:
    document = made()
    (row,) = [row for row in document["dependencies"] if row["ref"].startswith("image:")]
    assert set(row["dependsOn"]) == set(by_reference(document))


def test_it_is_the_same_each_time_whatever_the_order() -> None:
    turned = Software(SOFTWARE.packages[::-1], SOFTWARE.python[::-1], SOFTWARE.containers[::-1])
    assert sbom.make(an_image(), SOFTWARE) == sbom.make(replace(an_image(), sources=SOURCES[::-1]), turned)
    other = replace(a_manifest(), built_at="2026-11-21T03:15:00Z")
    assert made()["serialNumber"] != made(manifest=other)["serialNumber"]

# SPDX-License-Identifier: Apache-2.0
"""The software bill of materials of an image, as CycloneDX 1.6.

CycloneDX and not SPDX for its Python library: that is released monthly, validates against the standard's schemas
which it carries, and brings 4 packages; spdx-tools writes SPDX 2.3 alone and brings 9, an RDF library among them.
"""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import groundwork
from image_builder.manifest import FurtherSource, Manifest, Package
from image_builder.software import ContainerImage, PythonPackage, Software

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

SBOM = "sbom.cdx.json"
_SERIALS = uuid.UUID("0f6ad4a4-7f0c-5d53-9a0c-3f1f0a4b6f1e")  # the name space of our serial numbers
_PROPERTY = "sage-chameleon:"


def make(made: Manifest, software: Software) -> str:
    """The SBOM as JSON text.  The same build has the same text: time and serial number are derived from it."""
    from cyclonedx.model.bom import Bom, BomMetaData  # takes 0.1 s to import
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    system = made.os_name.lower()
    image = Component(
        type=ComponentType.OPERATING_SYSTEM,
        name=made.image_name,
        version=made.build_id,
        bom_ref=f"image:{made.image_name}@{made.build_id}",
        description=f"Chameleon image, variant {made.variant}, {made.arch}",
        properties=_properties({"recipe-digest": made.recipe_digest, "arch": made.arch}),
    )
    tool = Component(type=ComponentType.APPLICATION, name="sage-chameleon", version=groundwork.__version__)
    bom = Bom(
        serial_number=uuid.uuid5(_SERIALS, f"{made.recipe_digest} {made.built_at}"),
        metadata=BomMetaData(
            timestamp=datetime.fromisoformat(made.built_at.replace("Z", "+00:00")),
            component=image,
            tools=ToolRepository(components=[tool]),
        ),
        components=[
            # scanners look here for whose security advisories count
            Component(
                type=ComponentType.OPERATING_SYSTEM,
                name=system,
                version=made.os_version,
                bom_ref=f"os:{system}@{made.os_version}",
                description=f"{made.os_name} {made.os_version} ({made.release})",
            ),
            *_distribution(software.packages, made),
            *(_python(package) for package in software.python),
            *(_container(container, made) for container in software.containers),
            *(_source(source) for source in made.sources),
        ],
    )
    bom.register_dependency(image, bom.components)
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    return text + "\n"


def _distribution(packages: Iterable[Package], made: Manifest, within: str = "") -> "list[Component]":
    """The distribution's packages.  A bom-ref is the package's URL, with its container's before it."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    system = made.os_name.lower()
    found = []
    for package in packages:
        qualifiers = {"arch": package.arch, "distro": f"{system}-{made.os_version}"}
        source, version = package.source or package.name, package.source_version or package.version
        if (source, version) != (package.name, package.version):
            # security advisories are about source packages; scanners take this qualifier
            qualifiers["upstream"] = source if version == package.version else f"{source}@{version}"
        url = PackageURL("deb", system, package.name, package.version, qualifiers)
        found.append(
            Component(
                type=ComponentType.LIBRARY,
                name=package.name,
                version=package.version,
                purl=url,
                bom_ref=f"{within}{url.to_string()}",
                properties=_properties({"source": f"{source} {version}"}),
            )
        )
    return found


def _python(package: PythonPackage) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    ours = bool(package.tree_digest)
    kind, name = ("generic", f"sage-chameleon/{package.name}") if ours else ("pypi", package.name)
    namespace, _, name = name.rpartition("/")
    url = PackageURL(kind, namespace or None, name, package.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=f"{url.to_string()}#{package.path}",  # two of a name may lie in two places
        properties=_properties({"path": package.path, "tree-digest": package.tree_digest}),
    )


def _container(container: ContainerImage, made: Manifest) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    repository, _, tag = container.name.partition(":")
    url = PackageURL("oci", None, repository.rpartition("/")[2], container.digest, {"tag": tag} if tag else None)
    reference = f"container:{container.name}@{container.digest}"
    return Component(
        type=ComponentType.CONTAINER,
        name=container.name,
        version=container.digest,
        purl=url,
        bom_ref=reference,
        components=_distribution(container.packages, made, within=f"{reference}/"),
    )


def _source(source: FurtherSource) -> "Component":
    from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    if source.tree is not None:
        kind, hashes, version = ExternalReferenceType.VCS, [], source.digest
        qualifiers = {"vcs_url": f"git+{source.url}@{source.digest}"}
    else:
        kind, hashes = ExternalReferenceType.DISTRIBUTION, [HashType(alg=HashAlgorithm.SHA_256, content=source.digest)]
        version = None
        qualifiers = {"download_url": source.url, "checksum": f"sha256:{source.digest}"}
    return Component(
        type=ComponentType.APPLICATION,
        name=source.name,
        version=version,
        purl=PackageURL("generic", None, source.name, version, qualifiers),
        bom_ref=f"source:{source.name}@{source.digest}",
        hashes=hashes,
        external_references=[ExternalReference(type=kind, url=XsUri(source.url))],
        properties=_properties({"path": source.to, "git-tree": source.tree or ""}),
    )


def _properties(values: dict[str, str]) -> Any:
    from cyclonedx.model import Property

    return [Property(name=_PROPERTY + name, value=value) for name, value in values.items() if value]

# SPDX-License-Identifier: Apache-2.0
"""The page of an image for Chameleon's catalog of appliances (Trovi): facts -> Markdown -> HTML.  Pure.

All that is told comes from the manifest, the variant, the sites and the build before; of what is shown nothing is
trusted: package names, descriptions and the rest are shown as the texts that they are.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from chameleon_sites.sites import Site, SiteKind
from groundwork.console import mebibytes
from image_builder.catalog import ImageState
from image_builder.comparison import PackageChange, SizeChange
from image_builder.inspection import BuildDifference
from image_builder.manifest import ImageFile, Manifest
from image_builder.publication import SiteInventory
from image_builder.variant import Arch, FirstStep, Variant

MOST_CHANGES = 40  # packages that the page names
_NODE_TYPES = {Arch.AMD64: "compute_skylake", Arch.ARM64: "compute_arm64"}
_TEMPLATES = Path(__file__).parent
_MARKDOWN = re.compile(r"([\\`*_\[\]|~#])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


@dataclass(frozen=True)
class Program:
    """A piece of software that the page names, by the version of its package."""

    name: str
    version: str


@dataclass(frozen=True)
class Standing:
    """The image at a site: what has the public name there.  ``image_id`` and what follows are None where none has it.

    ``this_build``: whether it is the one that the page describes.  ``problem``: why the site can't be told of.
    """

    site: str
    kind: str
    cloud: str
    image_id: str | None
    visibility: str | None
    since: str | None
    this_build: bool
    problem: str | None


@dataclass(frozen=True)
class Changes:
    """What changed since the build ``before``: packages, of which ``more`` are not named; size where it is known."""

    before: str
    packages: tuple[PackageChange, ...]
    more: int
    counts: str
    size: SizeChange | None


@dataclass(frozen=True)
class Appliance:
    """What the page tells.  Sizes in bytes, times UTC; ``boots``: firmware -> seconds from power-on to a login.

    ``bare_metal`` and ``kvm``: name and entry in clouds.yaml of the site of that kind that the commands are told for,
    or None where the page is not about such sites.
    """

    image_name: str
    description: str
    variant: str
    os: str
    release: str
    arch: str
    build_id: str
    built_at: str
    recipe_digest: str
    project_version: str
    commit: str | None
    disk_size: int
    files: tuple[ImageFile, ...]
    packages: int
    programs: tuple[Program, ...]
    checks: tuple[str, ...]
    boots: Mapping[str, float]
    first_steps: tuple[FirstStep, ...]
    limits: tuple[str, ...]
    node_type: str
    bare_metal: tuple[str, str] | None
    kvm: tuple[str, str] | None
    standing: tuple[Standing, ...]
    changes: Changes | None

    @property
    def reservation(self) -> str:
        """What of a site's nodes is reserved, in the words of ``openstack reservation lease create``."""
        properties = json.dumps(["=", "$node_type", self.node_type])
        return f"min=1,max=1,resource_type=physical:host,resource_properties={properties}"


def describe(
    made: Manifest,
    chosen: Variant,
    sites: Sequence[Site] = (),
    inventories: Sequence[SiteInventory] = (),
    difference: BuildDifference | None = None,
) -> Appliance:
    """The facts about a build of the variant ``chosen``.

    ``inventories``: what stands at the ``sites``, in their order.  ``difference``: to the build before.
    """
    standing = tuple(_standing(made, site, found) for site, found in zip(sites, inventories, strict=True))
    checks = made.checks.results if made.checks is not None and made.checks.passed else ()
    return Appliance(
        image_name=made.image_name,
        description=chosen.description,
        variant=made.variant,
        os=f"{made.os_name} {made.os_version}",
        release=made.release,
        arch=made.arch,
        build_id=made.build_id,
        built_at=made.built_at,
        recipe_digest=made.recipe_digest,
        project_version=made.project_version,
        commit=made.commit if made.clean else None,
        disk_size=made.disk_size,
        files=made.files,
        packages=len(made.packages),
        programs=_programs(made, chosen),
        checks=tuple(dict.fromkeys(result.name for result in checks)),
        boots=made.checks.boot_seconds if made.checks is not None else {},
        first_steps=chosen.first_steps,
        limits=chosen.limits,
        node_type=chosen.node_type or _NODE_TYPES[Arch(made.arch)],
        bare_metal=_example(SiteKind.BAREMETAL, sites, ("CHI@UC", "chi_uc")),
        kvm=_example(SiteKind.KVM, sites, ("KVM@TACC", "kvm_tacc")) if made.arch == Arch.AMD64 else None,
        standing=standing,
        changes=_changes(difference) if difference is not None else None,
    )


def to_markdown(appliance: Appliance) -> str:
    """The page in Markdown (CommonMark and tables); it holds no HTML."""
    text: str = _environment().get_template("appliance.md.j2").render(page=appliance)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_html(appliance: Appliance) -> str:
    """The page in HTML: one file that loads nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = Markup(markdown.render(to_markdown(appliance)))  # noqa: S704 - markdown-it escapes what is no Markdown
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    text: str = environment.get_template("appliance.html.j2").render(page=appliance, body=body)
    return text


class Verbatim(str):
    """Text that is Markdown already."""


def plain(value: Any) -> str:
    """A value as Markdown shows it just as it is, in one line; what can't be shown is left out."""
    if isinstance(value, Verbatim):
        return value
    line = " ".join(str(value).split())
    shown = "".join(sign for sign in line if sign.isprintable())
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], _MARKDOWN.sub(r"\\\1", shown))


def code(value: Any) -> Verbatim:
    """A value in fixed-width letters, within a line or a table's cell."""
    line = "".join(sign for sign in " ".join(str(value).split()) if sign.isprintable())
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Verbatim(f"{fence}{pad}{line}{pad}{fence}".replace("|", r"\|"))


def block(text: str, language: str = "") -> Verbatim:
    """Lines to be typed or copied."""
    lines = ["".join(sign for sign in line if sign.isprintable()) for line in text.strip().splitlines()]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return Verbatim("\n".join([fence + language, *lines, fence, ""]))


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - it makes Markdown, and escapes for that
        loader=FileSystemLoader(_TEMPLATES),
        finalize=plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "block": block, "mebibytes": mebibytes, "shell": shell, "python": python}
    return environment


def shell(value: str) -> Verbatim:
    """A word of a command line, in a block."""
    return Verbatim(shlex.quote(value))


def python(value: str) -> Verbatim:
    """A text in a Python program, in a block."""
    return Verbatim(repr(value))


def _programs(made: Manifest, chosen: Variant) -> tuple[Program, ...]:
    found = []
    for name, patterns in chosen.software.items():
        versions = {
            package.name: package.version
            for pattern in patterns
            for package in made.packages
            if fnmatchcase(package.name, pattern)
        }
        if versions:
            found.append(Program(name, next(iter(versions.values()))))
    if "virtual-waggle" in made.elements:
        found.append(Program("virtual-waggle and beehive-server", made.project_version))
    return tuple(found)


def _standing(made: Manifest, site: Site, found: SiteInventory) -> Standing:
    named = [
        image
        for image in found.images
        if image.state == ImageState.CURRENT and image.name == made.image_name and not image.hidden
    ]
    image = named[0] if len(named) == 1 else None
    return Standing(
        site=site.name,
        kind=str(site.kind),
        cloud=site.cloud or site.slug,
        image_id=image.id if image else None,
        visibility=image.visibility if image else None,
        since=image.promoted_at[:10] if image else None,
        this_build=image is not None and image.properties.get("sage_build_id") == made.build_id,
        problem=found.problem.message if found.problem else None,
    )


def _example(kind: SiteKind, sites: Sequence[Site], usual: tuple[str, str]) -> tuple[str, str] | None:
    """The name and the entry in clouds.yaml of the first site of a kind; of sites that are not named, a usual one."""
    if not sites:
        return usual
    return next(((site.name, site.cloud or site.slug) for site in sites if site.kind is kind), None)


def _changes(found: BuildDifference) -> Changes:
    packages = found.difference.packages
    numbers: dict[str, int] = {}
    for row in packages:
        numbers[str(row.change)] = numbers.get(str(row.change), 0) + 1
    counts = ", ".join(f"{number} {change}" for change, number in numbers.items()) or "none"
    total = found.difference.total if found.files_known else None
    shown = packages[:MOST_CHANGES]
    return Changes(found.before.rpartition("/")[2], shown, len(packages) - len(shown), counts, total)

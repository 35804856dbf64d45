# SPDX-License-Identifier: Apache-2.0
"""The commands of ``sage-image`` that look at and care for what stands at sites: settings -> request -> report."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from chameleon_sites import cloud
from chameleon_sites.sites import Site, load_sites
from groundwork import console, files, products
from groundwork.errors import InputError, SageError
from groundwork.settings import Setting
from image_builder import cli, drift, publish, site_rotation, site_upkeep, upkeep
from image_builder import settings as table
from image_builder.catalog import Visibility
from image_builder.publication import Problem, PublishOptions, SiteInventory, UpkeepReport, exit_code
from image_builder.site_upkeep import Care
from image_builder.upkeep import Command, Request


@dataclass(frozen=True)
class UpkeepCommand:
    """A command: its words are given to ``function`` behind the settings' values, "" for an optional one left out."""

    name: str
    help: str
    settings: Sequence[Setting]
    words: Sequence[str]
    function: Callable[..., int]


def care(
    request: Request,
    sites: Sequence[Site],
    options: PublishOptions,
    *,
    named: bool = True,
) -> UpkeepReport:
    """Do what is asked at all ``sites`` at once.  What fails at a site is told in the report and stops no other.

    Sites that were not ``named`` by the user are left out of the report where the image is not theirs.
    """
    stop = threading.Event()
    what = request.word or {Command.ROLLBACK: "", Command.PRUNE: "all images"}.get(request.command, "the site")
    title = " ".join(filter(None, ("dry run of" if options.dry_run else "", request.command, what, "at ")))
    with console.stage(title + files.join_names([site.name for site in sites]), brief=True) as stage:
        stage.detail("connecting")
        connections = cloud.connect_all(sites)
        stage.detail("looking")
        inventories = publish.inventory(sites, connections=connections)
        request = _with_name(request, inventories)
        runs = [
            Care(
                site=site,
                image_name="",
                options=options,
                # A site that could not be listed has failed already, with its own error.
                connection=_failure(found.problem) if found.problem else connections[site.name],
                stop=stop,
                request=request,
                ours=found.images,
            )
            for site, found in zip(sites, inventories, strict=True)
        ]
        publish.at_all_sites(runs, site_upkeep.run, stop, stage)
    if not named and any(not run.absent for run in runs):
        runs = [run for run in runs if not run.absent]
    return UpkeepReport(str(request.command), tuple(run.result for run in runs if run.result is not None))


def _with_name(request: Request, inventories: Sequence[SiteInventory]) -> Request:
    """A rollback without a public name is about the only one that stands.  Raises InputError where there are more."""
    if request.command is not Command.ROLLBACK or request.word is not None:
        return request
    names = upkeep.image_names(image for found in inventories for image in found.images)
    if len(names) > 1:
        raise InputError(
            f"{len(names)} public names stand at these sites; a rollback is about one",
            hint="name it: sage-image rollback " + " | ".join(names),
        )
    if not names and any(found.problem is None for found in inventories):
        raise InputError("no image of ours stands at these sites", hint="sage-image list shows what stands where")
    return replace(request, word=names[0] if names else None)


def _failure(problem: Problem) -> SageError:
    kind = InputError if problem.bad_input else SageError
    return kind(problem.message, hint=problem.hint)


def _sites(values: dict[str, Any]) -> list[Site]:
    """The sites named, or all that clouds.yaml has an entry for."""
    sites = cli.named_sites(values) or cloud.with_entry(load_sites(values["sites_file"]).values())
    if not sites:
        raise InputError("clouds.yaml has no entry for any known site", hint="known sites: " + ", ".join(load_sites()))
    return sites


def _care(values: dict[str, Any], request: Request, sites: Sequence[Site] | None = None) -> int:
    options = PublishOptions(
        visibility=tuple(Visibility(word) for word in values.get("visibility", ("private",))),
        dry_run=values["dry_run"],
        keep_younger=timedelta(days=values.get("keep_younger", 0)),
        state=values["state_dir"],
    )
    report = care(request, sites or _sites(values), options, named=bool(sites or values["site"]))
    _tell(report)
    console.result_json(products.to_data(report))
    return exit_code(report)


def _tell(report: UpkeepReport) -> None:
    """What came of it: each site's outcome, the images that changed as a diff, warnings and errors."""
    for site in report.sites:
        console.result(f"{site.site}: {site.outcome}")
        if site.difference:
            console.difference([f"  {line}" for line in site.difference])
        for member in site.members:
            console.result(f"  shared with {member.project} ({member.status})")
        for text in site.warnings:
            console.warn(f"{site.site}: {text}")
    cli.tell_problems({site.site: site.problem for site in report.sites if site.problem})


def _promote(values: dict[str, Any], image: str) -> int:
    return _care(values, Request(Command.PROMOTE, image))


def _rollback(values: dict[str, Any], name: str) -> int:
    return _care(values, Request(Command.ROLLBACK, name or None, to=values["to"]))


def _prune(values: dict[str, Any], name: str) -> int:
    older_than = None if values["older_than"] is None else timedelta(days=values["older_than"])
    return _care(values, Request(Command.PRUNE, name or None, keep=values["keep"], older_than=older_than))


def _pause(values: dict[str, Any], word: str) -> int:
    return _pause_or_not(values, Command.PAUSE, word)


def _unpause(values: dict[str, Any], word: str) -> int:
    return _pause_or_not(values, Command.UNPAUSE, word)


def _pause_or_not(values: dict[str, Any], command: Command, word: str) -> int:
    site = load_sites(values["sites_file"]).get(word)
    if site is None:
        return _care(values, Request(command, word))
    if values["site"]:
        raise InputError(f"--site and the site {word} at once", hint=f"sage-image {command} {word} is about all of it")
    return _care(values, Request(command), [site])


def _adopt(values: dict[str, Any], image: str) -> int:
    return _care(values, Request(Command.ADOPT, image, image_name=values["as"]))


def _share(values: dict[str, Any], image: str) -> int:
    both = set(values["project"]) & set(values["remove"])
    if both:
        raise InputError(f"--project and --remove of the same project: {', '.join(sorted(both))}")
    return _care(values, Request(Command.SHARE, image, projects=values["project"], removed=values["remove"]))


def _list(values: dict[str, Any]) -> int:
    sites = _sites(values)
    with console.stage(f"look at {files.join_names([site.name for site in sites])}", brief=True):
        inventories = publish.inventory(sites)
    standing = {found.site: found.images for found in inventories if found.problem is None}
    marks = drift.marks(standing, site_rotation.plan_of)
    inventories = tuple(replace(found, drift=marks.get(found.site, ())) for found in inventories)
    console.result_json([products.to_data(inventory) for inventory in inventories])
    # One row a build; what differs from site to site stands in the sites' columns.
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for inventory in inventories:
        for image in inventory.images:
            size = console.mebibytes(image.size) if image.size is not None else "-"
            words = [image.state or image.status, image.visibility, size, *(["hidden"] if image.hidden else [])]
            found = [mark.drift.upper() for mark in inventory.drift if mark.image_id == image.id]
            words += dict.fromkeys(found)
            key = (image.image_name, image.built_at, image.recipe_digest[:12])
            cells.setdefault(key, {})[inventory.site] = ", ".join(words)
    rows = [
        [*key, *(by_site.get(inventory.site, "-") for inventory in inventories)]
        for key, by_site in sorted(cells.items(), key=lambda item: (item[0][0], item[0][1]), reverse=True)
    ]
    if rows:
        console.table(["name", "built", "recipe", *(inventory.site for inventory in inventories)], rows)
    elif any(inventory.problem is None for inventory in inventories):
        console.result("no images of ours")
    # What is told of several sites in the same words, once.
    told: dict[tuple[drift.Drift, str], list[str]] = {}
    for inventory in inventories:
        for mark in inventory.drift:
            told.setdefault((mark.drift, mark.text), []).append(inventory.site)
    for (kind, text), where in told.items():
        console.result(f"{kind.upper()}: {text} ({', '.join(where)})")
    cli.tell_problems({inventory.site: inventory.problem for inventory in inventories if inventory.problem})
    return exit_code(*inventories)


COMMANDS = (
    UpkeepCommand(
        "list", "what stands at each site, side by side, and what is not as it should be", table.LIST, (), _list
    ),
    UpkeepCommand(
        "promote", "a candidate or previous image becomes the current one", table.PROMOTE, ("IMAGE",), _promote
    ),
    UpkeepCommand("rollback", "the build before becomes the current one again", table.ROLLBACK, ("[NAME]",), _rollback),
    UpkeepCommand("prune", "delete old images beyond those to keep", table.PRUNE, ("[NAME]",), _prune),
    UpkeepCommand(
        "pause", "an image stays as it is, or a site takes no new one", table.UPKEEP, ("IMAGE|SITE",), _pause
    ),
    UpkeepCommand("unpause", "undo of pause", table.UPKEEP, ("IMAGE|SITE",), _unpause),
    UpkeepCommand(
        "adopt", "take an image that another program made under this one's care", table.ADOPT, ("IMAGE",), _adopt
    ),
    UpkeepCommand("share", "let other projects see an image; tells which do", table.SHARE, ("IMAGE",), _share),
)

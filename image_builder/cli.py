# SPDX-License-Identifier: Apache-2.0
"""What the commands have in common: settings read, sites connected to, results told."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from chameleon_sites import cloud
from chameleon_sites.sites import Site, pick_sites
from groundwork import console, files, settings
from groundwork.errors import InputError, SageError, unknown
from groundwork.program import log_to_stderr
from groundwork.settings import Setting
from image_builder import canary, emulation, hooks, manifest, metrics, qemu_canary, summary
from image_builder import settings as table
from image_builder.canary import CanaryOptions
from image_builder.catalog import Visibility
from image_builder.hooks import Hook
from image_builder.publication import Problem, PublishOptions, PublishReport
from image_builder.report import UNTOLD, RunReport
from image_builder.variant import Arch

EPILOG = """\
Every setting can also be given in the environment (SAGE_OUTPUT_DIR for --output-dir) and in a configuration file
(~/.config/sage-chameleon/config.yaml, key output-dir).  Exit codes: 0 done, 1 failed, 2 wrong input or
configuration, 3 some sites failed, 4 done, but a hook, the summary or the metrics failed.
"""
_SIGNAL = 128  # exit codes above it are of signals


def project_folder(name: str) -> Path:
    """Our ``elements`` or ``variants``: in the clone, or carried along in the installed package."""
    in_clone = Path(__file__).parents[1] / name
    return in_clone if in_clone.is_dir() else Path(__file__).parent / "data" / name


def variant_folders(values: dict[str, Any]) -> list[Path]:
    """Where variants are looked for: the user's folders, then ours."""
    return [*values["variants_dir"], project_folder("variants")]


def named_sites(values: dict[str, Any]) -> list[Site]:
    return pick_sites(values["site"], values["sites_file"])


def read_values(
    rows: Sequence[Setting], given: argparse.Namespace, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings' values, from flags, environment and configuration files.

    ``more``: what else a configuration file of this command may have, as JSON Schemas by key.
    """
    paths = settings.configuration_files(getattr(given, "config", None))
    configuration = settings.read_configuration(paths, table.ALL, more)
    values = settings.resolve(rows, given, configuration=configuration)
    console.configure(json_output=values["json"], quiet=values["quiet"])
    if values["debug"]:
        log_to_stderr(debug=True)
    if "elements_dir" in values:
        also = [Path(path).absolute() for path in os.environ.get("ELEMENTS_PATH", "").split(":") if path]
        values["elements_dir"] = tuple(dict.fromkeys((*values["elements_dir"], *also)))
    for key in ("variants_dir", "elements_dir"):
        for folder in values.get(key, ()):
            if not folder.is_dir():
                raise InputError(f"--{key.replace('_', '-')}: there is no folder {folder}")
    return values


def default_arch(arches: Sequence[Arch]) -> Arch:
    """The architecture where none was named: this machine's if the variant has it, else the variant's only one."""
    native = emulation.machine_arch()
    if native in arches or len(arches) > 1:
        if native not in list(Arch):
            raise unknown("architecture", native, list(Arch))
        return Arch(native)
    return arches[0]


def connect(sites: Sequence[Site]) -> dict[str, Any]:
    """Connect to the sites before hours are spent on a build; raises where no site is left to publish to."""
    connections = cloud.connect_all(sites)
    problems = {
        name: Problem(str(found), found.hint, isinstance(found, InputError))
        for name, found in connections.items()
        if isinstance(found, SageError)
    }
    tell_problems(problems)
    if len(problems) == len(sites):
        kind = InputError if all(problem.bad_input for problem in problems.values()) else SageError
        raise kind("no site is left to publish to")
    return connections


def publish_options(values: dict[str, Any]) -> PublishOptions:
    return PublishOptions(
        visibility=tuple(Visibility(word) for word in values["visibility"]),
        keep=values["keep"],
        dry_run=values.get("dry_run", False),
        force=values["force"],
        upload_deadline=float(values["upload_timeout"]),
        keep_younger=timedelta(days=values["keep_younger"]),
        state=values["state_dir"],
        scratch=values["cache_dir"] / "work",
        canary=canary_options(values),
    )


def announce(report: RunReport, values: dict[str, Any], told: Sequence[Hook]) -> int:
    """Tell of a run outside of this program: summary, metrics, hooks.  Returns the program's exit code.

    What fails of it is told and fails nothing else; the exit code is then 4, where all else was done.
    """
    if report.exit_code > _SIGNAL:
        return report.exit_code  # interrupted: who did that knows, and waits for the end
    failed = bool(values["summary"]) and not _done("the summary", lambda: _write_summary(report, values["summary"]))
    failed |= bool(values["metrics"]) and not _done("the metrics", lambda: metrics.write(report, values["metrics"]))
    if values["pushgateway"]:
        failed |= not _done("the pushgateway", lambda: metrics.push(report, values["pushgateway"]))
    failed |= bool(hooks.call(told, report))
    return UNTOLD if failed and not report.failed else report.exit_code


def wants_standing(values: dict[str, Any]) -> bool:
    """Whether what stands at the sites after a run is to be asked for: the metrics tell it."""
    return bool(values["publish"] and (values["metrics"] or values["pushgateway"]))


def _done(what: str, work: Callable[[], None]) -> bool:
    try:
        work()
    except (SageError, OSError) as error:
        console.warn(f"{what}: {error}")
        return False
    return True


def _write_summary(report: RunReport, path: Path) -> None:
    text = summary.markdown(report)
    # A workflow's steps add to what stands on their page; another file is this run's.
    if path == table.SUMMARY.default and path.exists():
        text = path.read_text(encoding="utf-8") + text
    files.write_text(path, text)


def canary_options(values: dict[str, Any]) -> CanaryOptions | None:
    """How candidates are tried; None where they are not."""
    if not values["canary"] or values["no_canary"]:
        return None
    given = values["canary_command"]
    command = canary.words_of(given) if given else qemu_canary.command(values)
    return CanaryOptions(command, float(values["canary_timeout"]), values["cache_dir"])


def tell_publication(report: PublishReport) -> None:
    """What came of publishing, a row a site, and each site's plan, warnings and error below."""
    rows = [
        [
            site.site,
            str(site.outcome),
            str(site.visibility or "-"),
            site.image_id or "-",
            console.mebibytes(site.uploaded),
            f"{site.seconds:.1f} s",
        ]
        for site in report.sites
    ]
    console.table(["site", "outcome", "visibility", "image", "uploaded", "time"], rows, title=report.image_name)
    for site in report.sites:
        for step in site.plan:
            console.result(f"  {site.site}: {step}")
        for text in site.warnings:
            console.warn(f"{site.site}: {text}")
    tell_problems({site.site: site.problem for site in report.sites if site.problem})


def tell_problems(problems: Mapping[str, Problem]) -> None:
    """What went wrong at each site; what went wrong at several in the same words, once."""
    by_text: dict[tuple[str, str | None], list[str]] = {}
    for site, problem in problems.items():
        by_text.setdefault((problem.message, problem.hint), []).append(site)
    for (message, hint), sites in by_text.items():
        names = files.join_names([site for site in sites if site not in message])
        console.complain(f"{names}: {message}" if names else message, hint=hint)


def tell_checks(report: manifest.CheckReport) -> None:
    rows = [
        ["passed" if result.passed else "FAILED", result.firmware, f"{result.seconds:.1f} s", result.name]
        for result in report.results
    ]
    console.table(["", "firmware", "time", "check"], rows)

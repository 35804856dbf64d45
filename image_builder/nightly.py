# SPDX-License-Identifier: Apache-2.0
"""A night: all images of a file refreshed, built, booted, published; then told.

What it leaves lies in the folder ``state-dir``: ``runs/`` (a report a night), ``logs/`` (a log a night), the status
page, and the lock that keeps a second night out.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

from chameleon_sites.sites import Site, pick_sites
from groundwork import console, documents, files, products, settings
from groundwork.documents import Document
from groundwork.errors import InputError, SageError
from groundwork.files import Locked
from image_builder import build as builder
from image_builder import cli, history, hooks, page, pipeline, privilege, signing, summary
from image_builder import report as reporting
from image_builder import settings as table
from image_builder.pipeline import Order, Program
from image_builder.report import UNTOLD, RunReport
from image_builder.variant import Arch

logger = logging.getLogger(__name__)

PROGRAM = Program("sage-image nightly", "image_builder.sage_image:main", table.NIGHTLY, ("nightly",))

# The settings of create-image that are no night's.
_EVERY_NIGHT: dict[str, Any] = {
    "refresh": True,
    "no_verify": False,
    "canary": True,
    "kvm": False,
    "cuda_version": None,
    "revision": None,
}
_NAMES = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    "description": "a name or a list of names",
}
# What a night's configuration file has beside settings.
SCHEMA: dict[str, Any] = {
    "images": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["variant"],
            "properties": {"variant": _NAMES, "release": _NAMES, "arch": _NAMES, "site": _NAMES},
        },
    }
}


class UnderWay(SageError):
    """Another night is at work."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


def run(values: dict[str, Any]) -> int:
    """The whole night; ``values`` are the settings of the table NIGHTLY.  Returns the exit code."""
    values = {**values, **_EVERY_NIGHT}
    orders = read_orders(values)
    values["publish"] = any(order.sites for order in orders)
    told = hooks.load(values["hooks"]) if values["hooks"] else ()
    if values["sign_key"]:
        signing.check_key(values["sign_key"])
    if values["dry_run"]:
        return pipeline.rehearse(orders, values)
    if privilege.find_way() is None:
        # At once and not when something is to be built: lock and log are then of one process.
        flags = settings.as_flags(PROGRAM.settings, {**values, "config": _file(values)})
        privilege.rerun_as_root(PROGRAM.entry, [*PROGRAM.words, *flags])
    folder = files.make_folder(values["state_dir"])
    with _alone(folder), _logged(folder / "logs", values["keep_logs"]):
        report = pipeline.run(orders, values, PROGRAM, look=values["publish"])
        kept = _keep(report, values)
        console.result_json(products.to_data(report))
        code = cli.announce(report, values, told)
        console.say(f"{summary.headline(report)} ({report.seconds:.1f} s)")
        return code if kept or code else UNTOLD


def read_orders(values: dict[str, Any]) -> list[Order]:
    """The orders that the configuration file's ``images`` make: each variant for each release and architecture.

    Raises InputError with file, line and key.
    """
    document = documents.load(_file(values), {"type": "object", "properties": SCHEMA, "required": ["images"]})
    orders: dict[str, Order] = {}
    for number, row in enumerate(document.data["images"]):
        sites = _sites(document, ("images", number, "site"), values)
        arches: list[str | None] = [*_names(row.get("arch"))] or [None]
        releases = _names(row.get("release")) or [str(table.RELEASE.default)]
        for name, release, arch in product(_names(row["variant"]), releases, arches):
            try:
                found = pipeline.order(name, release, _arch(arch), sites, values)
            except InputError as error:
                raise document.error(("images", number), str(error), hint=error.hint, of_key=False) from None
            name_of_image = found.recipe.image_name
            if name_of_image in orders:
                raise document.error(("images", number), f"{name_of_image} is made twice", of_key=False)
            orders[name_of_image] = found
    return list(orders.values())


def _file(values: dict[str, Any]) -> Path:
    """The configuration file that says what a night is to make."""
    paths = settings.configuration_files(values["config"])
    if not paths:
        raise InputError("a night needs a file that says what to make", hint="--config nightly.yaml")
    return paths[0].absolute()


def _sites(document: Document, keys: tuple[str | int, ...], values: dict[str, Any]) -> Sequence[Site]:
    """The sites that a row names, or else those of the setting ``site``."""
    named = document.data["images"][keys[1]].get("site")
    if named is None:
        return cli.named_sites(values)
    try:
        return pick_sites(_names(named), values["sites_file"])
    except InputError as error:
        raise document.error(keys, str(error), hint=error.hint) from None


def _names(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(dict.fromkeys(value))


def _arch(name: str | None) -> Arch | None:
    return Arch(table.ARCH.parse(name)) if name else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second night out; raises UnderWay where this is the second."""
    path = folder / "nightly.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(files.lock(path))
        except Locked as error:
            since = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise UnderWay(
                f"another night is under way (pid {error.owner}, since {since})", hint="wait for it to end"
            ) from None
        yield


@contextmanager
def _logged(folder: Path, keep: int) -> Iterator[None]:
    """Keep a log of this night, and those of the last ``keep`` nights."""
    path = files.make_folder(folder) / f"{history.stamp(reporting.now())}.log"
    with console.copied_to(path):
        files.give_to_owner_of(folder, path)
        history.drop(folder, "*.log", keep)
        try:
            yield
        except Exception:
            logger.exception("the night ended in an error")
            raise


def _keep(report: RunReport, values: dict[str, Any]) -> bool:
    """Record the run, write the page, drop old builds.  What fails of it is told, and the result is False."""
    runs = values["state_dir"] / "runs"
    try:
        history.save(report, runs, keep=values["keep_runs"])
        page.write(history.load(runs, values["keep_runs"]), values["page"] or values["state_dir"] / "index.html")
        for image in report.images:
            builder.drop_old(values["output_dir"] / image.image_name, values["keep_builds"])
    except (SageError, OSError) as error:
        console.warn(f"the record of this night: {error}")
        return False
    return True

# SPDX-License-Identifier: Apache-2.0
"""A report as Prometheus metrics: a file for node_exporter's textfile collector, or sent to a pushgateway.

Ages are left to the reader: of an image that was built at a time t, it is ``time() - t`` at any moment, whereas an
age that was written down last night would be a day short.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from groundwork import files
from groundwork.errors import SageError
from image_builder import rotation
from image_builder.hooks import within
from image_builder.publication import Outcome
from image_builder.report import RunReport, failures

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_DEADLINE = 30.0  # seconds that a pushgateway may take


def registry(report: RunReport) -> "CollectorRegistry":
    """The metrics of a report, in base units; times are seconds since 1970."""
    from prometheus_client import CollectorRegistry, Gauge

    found = CollectorRegistry()
    by_site = ("site", "image")

    def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"sage_{name}", text, labelnames=tuple(labels), registry=found)

    run = ("command",)
    exit_code = gauge("run_exit_code", "Exit code of the last run: 0 done, 1 failed, 2 wrong input, 3 some failed", run)
    exit_code.labels(report.command).set(report.exit_code)
    gauge("run_failures", "How many things failed in the last run", run).labels(report.command).set(
        len(failures(report))
    )
    gauge("run_seconds", "How long the last run took", run).labels(report.command).set(report.seconds)
    gauge("run_end_timestamp_seconds", "When the last run ended", run).labels(report.command).set(
        _seconds(report.ended_at)
    )
    gauge("run_uploaded_bytes", "What the last run uploaded, to all sites", run).labels(report.command).set(
        report.uploaded
    )
    build_failed = gauge("build_failed", "Whether the last run failed before an image could be published", ("image",))
    for image in report.images:
        build_failed.labels(image.image_name).set(image.problem is not None)
    publish_failed = gauge("publish_failed", "Whether the last run failed to publish an image at a site", by_site)
    seconds = gauge("publish_seconds", "How long the last run was at a site with an image", by_site)
    uploaded = gauge("publish_uploaded_bytes", "What the last run uploaded of an image to a site", by_site)
    for published in report.publications:
        for row in published.sites:
            publish_failed.labels(row.site, row.image_name).set(row.outcome is Outcome.FAILED)
            seconds.labels(row.site, row.image_name).set(row.seconds)
            uploaded.labels(row.site, row.image_name).set(row.uploaded)
    site_failed = gauge("site_failed", "Whether a site could not be asked what stands there", ("site",))
    built = gauge("image_built_timestamp_seconds", "When the current image of a name was built", by_site)
    promoted = gauge("image_published_timestamp_seconds", "When the current image got its public name", by_site)
    size = gauge("image_size_bytes", "Size of the current image at the site", by_site)
    current = gauge("image_current", "How many images readers find by the public name: 1 is right", by_site)
    wanted = {(row.site, row.image_name) for published in report.publications for row in published.sites}
    for site in report.sites:
        site_failed.labels(site.site).set(site.problem is not None)
        if site.problem is not None:
            continue  # what stands there is not known
        there = [image for image in site.images if image.is_current]
        names = {name for where, name in wanted if where == site.site} | {image.image_name for image in there}
        for name in sorted(names):
            listed = [image for image in there if image.image_name == name]
            current.labels(site.site, name).set(len(listed))
            for one in listed[:1]:
                if one.built_at:
                    built.labels(site.site, name).set(_seconds(one.built_at))
                if one.promoted_at:
                    promoted.labels(site.site, name).set(_seconds(one.promoted_at))
                if one.size is not None:
                    size.labels(site.site, name).set(one.size)
    return found


def write(report: RunReport, path: Path) -> None:
    """Write the file that node_exporter reads (``--collector.textfile.directory``), whole or not at all."""
    from prometheus_client import generate_latest

    if path.suffix != ".prom":
        raise SageError(f"{path}: node_exporter reads files that end in .prom alone")
    files.write_text(path, generate_latest(registry(report)).decode())


def push(report: RunReport, url: str) -> None:
    """Send the metrics to a pushgateway, in place of those that it has of this command."""
    from prometheus_client import push_to_gateway

    host = urlsplit(url).hostname
    job = report.command.replace(" ", "-")

    def send() -> None:
        try:
            push_to_gateway(url, job=job, registry=registry(report), timeout=_DEADLINE)
        except OSError as error:  # urllib's errors are of this kind
            raise SageError(f"{host} did not take the metrics: {getattr(error, 'reason', None) or error}") from None

    within(_DEADLINE, send)


def _seconds(time: str) -> float:
    """RFC 3339 -> seconds since 1970; NaN for what is no time."""
    try:
        return rotation.parse_time(time).timestamp()
    except ValueError:  # a hand spoilt an image's property
        return math.nan

# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run, as Prometheus's own parser reads them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from groundwork.errors import SageError
from image_builder import metrics
from image_builder.report import RunReport
from tests.unit.image_builder import reports

BUILT, PUBLISHED = 1795144500.0, 1795147200.0  # 2026-11-20T03:15:00Z, 2026-11-20T04:00:00Z


def samples(text: str) -> dict[tuple[str, str, str], float]:
    """(name, image, site) -> value."""
    return {
        (sample.name, sample.labels.get("image", ""), sample.labels.get("site", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def written(report: RunReport, folder: Path) -> dict[tuple[str, str, str], float]:
    metrics.write(report, folder / "sage.prom")
    return samples((folder / "sage.prom").read_text())


def test_age_size_and_time_of_the_current_image_at_each_site(tmp_path: Path) -> None:
    found = written(reports.good(), tmp_path)
    for site in ("CHI@UC", "CHI@TACC", "KVM@TACC"):
        here = {name: value for (name, _, where), value in found.items() if where == site}
        assert here["sage_image_built_timestamp_seconds"] == BUILT
        assert here["sage_image_published_timestamp_seconds"] == PUBLISHED
        assert here["sage_image_size_bytes"] == 300 << 20
        assert here["sage_image_current"] == 1
        assert here["sage_publish_seconds"] == 4.25
        assert here["sage_publish_uploaded_bytes"] == 300 << 20
        assert here["sage_publish_failed"] == 0
    assert found["sage_run_exit_code", "", ""] == 0
    assert found["sage_run_failures", "", ""] == 0
    assert found["sage_run_uploaded_bytes", "", ""] == 3 * (300 << 20)


def test_a_time_that_a_hand_has_spoilt_is_not_known(tmp_path: Path) -> None:
    sites = (reports.standing("CHI@UC", "Sage-Ubuntu24.04", built_at="last week"),)
    found = written(replace(reports.good(), sites=sites), tmp_path)
    assert math.isnan(found["sage_image_built_timestamp_seconds", "Sage-Ubuntu24.04", "CHI@UC"])
    assert found["sage_image_published_timestamp_seconds", "Sage-Ubuntu24.04", "CHI@UC"] == PUBLISHED


def test_failures_are_counted_and_named(tmp_path: Path) -> None:
    found = written(reports.mixed(), tmp_path)
    assert found["sage_run_exit_code", "", ""] == 3
    assert found["sage_run_failures", "", ""] == 2
    assert found["sage_build_failed", "Sage-Ubuntu24.04-CUDA", ""] == 1
    assert found["sage_publish_failed", "Sage-Ubuntu24.04", "CHI@TACC"] == 1
    assert found["sage_site_failed", "", "CHI@TACC"] == 1
    # Of a site that did not answer it is not known what stands there: no number rather than a wrong one.
    assert ("sage_image_current", "Sage-Ubuntu24.04", "CHI@TACC") not in found


def test_a_name_that_no_image_has_is_seen(tmp_path: Path) -> None:
    made = reports.run(reports.image(), publications=(reports.publication(),), sites=(reports.standing("CHI@UC"),))
    assert written(made, tmp_path)["sage_image_current", "Sage-Ubuntu24.04", "CHI@UC"] == 0


def test_the_file_is_whole_and_readable_by_node_exporter(tmp_path: Path) -> None:
    metrics.write(reports.good(), tmp_path / "sage.prom")
    assert [path.name for path in tmp_path.iterdir()] == ["sage.prom"]
    assert (tmp_path / "sage.prom").stat().st_mode & 0o777 == 0o644


def test_a_file_that_node_exporter_would_pass_over_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SageError, match=r"end in \.prom"):
        metrics.write(reports.good(), tmp_path / "sage.txt")

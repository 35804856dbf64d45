# SPDX-License-Identifier: Apache-2.0
"""The report of a run has a written shape, and its exit code tells the truth about all that was to be done."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from groundwork import products
from image_builder import report as reporting
from image_builder.publication import Problem
from image_builder.report import RunReport, failures
from tests.unit.image_builder import reports
from tests.unit.image_builder.reports import DOWN, UNDECIDED, WRONG, image, publication, run

SCHEMA = json.loads((Path(reporting.__file__).with_name("report.schema.json")).read_text())


def strict(schema: Any) -> Any:
    """The schema with no key allowed that is not written in it."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {**{key: strict(part) for key, part in schema.items()}, **closed}


@pytest.mark.parametrize(
    "made", [reports.good(), reports.mixed(), reports.unchanged(), reports.tried(), run(problem=DOWN)]
)
def test_reports_have_the_written_shape_and_can_be_read_back(made: RunReport, tmp_path: Path) -> None:
    data = json.loads(products.to_text(made))
    jsonschema.Draft202012Validator(strict(SCHEMA)).validate(data)
    products.save(made, tmp_path / "report.json")
    assert products.load(RunReport, tmp_path / "report.json") == made


def test_the_written_shape_is_of_this_format() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["format"] == {"const": reporting.FORMAT}


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (run(), 0),
        (run(image(), publications=(publication(),)), 0),
        (run(image()), 0),
        (run(image(problem=DOWN)), 1),
        (run(image(problem=WRONG)), 2),
        (run(image(problem=WRONG), image("other", problem=DOWN)), 1),
        (run(image(problem=WRONG), image("other")), 3),
        (run(image(), publications=(publication(DOWN, DOWN),)), 1),
        (run(image(), publications=(publication(WRONG, WRONG),)), 2),
        (run(image(), publications=(publication(None, DOWN),)), 3),
        (run(image(), image("other", problem=DOWN), publications=(publication(),)), 3),
        (run(image(), publications=(publication(UNDECIDED, UNDECIDED),)), 3),
        (run(problem=DOWN), 1),
        (run(problem=WRONG), 2),
        (run(image(), problem=DOWN), 3),
        (run(replace(image(), build_id=None), problem=DOWN), 1),
    ],
)
def test_the_exit_code(made: RunReport, code: int) -> None:
    assert made.exit_code == code


def test_what_failed_is_told_with_image_and_site() -> None:
    assert [str(failure) for failure in failures(reports.mixed())] == [
        f"Sage-Ubuntu24.04: {DOWN.message}",
        f"Sage-Ubuntu24.04-CUDA: {WRONG.message}",
    ]
    assert [str(failure) for failure in failures(run(problem=Problem("no luck", None, False)))] == ["no luck"]
    refused = run(image(), publications=(publication(None, Problem("it is full", None, False)),))
    assert [str(failure) for failure in failures(refused)] == ["Sage-Ubuntu24.04 at CHI@TACC: it is full"]


def test_a_run_that_did_nothing_has_not_changed() -> None:
    assert not reports.unchanged().changed
    assert reports.unchanged().uploaded == 0
    assert reports.good().changed
    assert reports.good().uploaded == 3 * (300 << 20)

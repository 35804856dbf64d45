# SPDX-License-Identifier: Apache-2.0
"""Exit codes, who still lives, and which image is this build; publishing itself is in tests/integration."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_sites.cloud import SiteUnreachable
from chameleon_sites.sites import DiskFormat, Site, SiteKind, Upload
from groundwork import products
from groundwork.errors import InputError, SageError
from image_builder import pipeline, publish, publisher
from image_builder.catalog import ImageState, Visibility
from image_builder.manifest import ImageFile, Manifest
from image_builder.publication import (
    Outcome,
    Problem,
    PublishOptions,
    PublishReport,
    SiteInventory,
    SitePublication,
    exit_code,
)
from tests.unit.image_builder.test_rotation import NAME, image

WRONG = Problem("wrong", "mend it", True)
DOWN = Problem("down", None, False)
OPEN = Problem("inconclusive", None, False, inconclusive=True)


def report(*problems: Problem | None) -> PublishReport:
    rows = tuple(
        SitePublication(
            site=f"site {number}",
            outcome=Outcome.FAILED if problem else Outcome.PUBLISHED,
            image_id=None,
            image_name="Sage-X",
            visibility=None,
            uploaded=0,
            seconds=0.1,
            plan=(),
            warnings=(),
            problem=problem,
        )
        for number, problem in enumerate(problems)
    )
    return PublishReport("Sage-X", "build", "digest", rows)


def manifest(*formats: DiskFormat) -> Manifest:
    return Manifest(
        build_id="build",
        image_name="Sage-X",
        variant="sage",
        release="noble",
        os_name="Ubuntu",
        os_version="24.04",
        arch="amd64",
        recipe_digest="digest",
        checks_digest="digest",
        built_at="2026-11-20T03:15:00Z",
        project_version="0",
        commit=None,
        clean=None,
        elements={},
        packages=(),
        disk_size=5 << 30,
        files=tuple(ImageFile(form, f"{form}.img", 1, "0", "0", "0") for form in formats),
        checks=None,
        stage_seconds={},
    )


def site(name: str) -> Site:
    return Site(name, "https://x/v3", SiteKind.BAREMETAL, (DiskFormat.QCOW2_ZLIB, DiskFormat.RAW))


@pytest.mark.parametrize(
    ("problems", "code"),
    [
        ((None, None), 0),
        ((None, DOWN), 3),
        ((None, WRONG), 3),
        ((DOWN, DOWN), 1),
        ((DOWN, WRONG), 1),
        ((WRONG, WRONG), 2),
        ((WRONG,), 2),
        ((DOWN,), 1),
        ((OPEN,), 3),
        ((OPEN, DOWN), 3),
        ((OPEN, None), 3),
    ],
)
def test_exit_codes(problems: tuple[Problem | None, ...], code: int) -> None:
    assert exit_code(report(*problems)) == code
    assert exit_code(*(SiteInventory("site", (), problem) for problem in problems)) == code


def test_a_report_can_be_saved_and_read(tmp_path: Path) -> None:
    made = report(None, WRONG)
    products.save(made, tmp_path / "report.json")
    assert products.load(PublishReport, tmp_path / "report.json") == made


def test_sites_that_were_not_reached_are_told_each_by_its_own_error(tmp_path: Path) -> None:
    errors: dict[str, SageError] = {"a": SiteUnreachable("a is down"), "b": InputError("no entry", hint="add one")}
    made = publish.publish(manifest(DiskFormat.RAW), tmp_path, [site("a"), site("b")], connections=errors)
    assert [row.problem for row in made.sites] == [
        Problem("a is down", None, False),
        Problem("no entry", "add one", True),
    ]
    assert exit_code(made) == 1


def test_a_format_that_a_site_does_not_boot_is_wrong_input(tmp_path: Path) -> None:
    connections = {"a": object()}
    made = publish.publish(
        manifest(DiskFormat.QCOW2_ZSTD),
        tmp_path,
        [site("a")],
        connections=connections,  # type: ignore[arg-type]
    )
    problem = made.sites[0].problem
    assert problem is not None
    assert problem.bad_input
    assert "qcow2-zlib" in problem.message
    assert "create-image --site a" in str(problem.hint)


def standing(**differs: str) -> SiteInventory:
    """What stands at a site: another image's name, and ours, of the recipe "digest"."""
    also = {"sage_format": "raw", "sage_sha512": "00", "sage_recipe_digest": "digest", **differs}
    ours = replace(image(1, ImageState.CURRENT, also=also), visibility="public", os_hash_value="00")
    return SiteInventory("site", (image(2, ImageState.CURRENT, image_name="Sage-Other", name="Sage-Other"), ours), None)


def test_what_stands_at_all_sites_is_told_from_one_look_at_each() -> None:
    sites = [site("a"), site("b")]
    looked = {"a": standing(), "b": standing()}
    made = publish.standing_report(sites, NAME, "digest", PublishOptions(), looked, {})
    assert made is not None
    assert [(row.site, row.outcome, row.uploaded) for row in made.sites] == [
        ("a", Outcome.UNCHANGED, 0),
        ("b", Outcome.UNCHANGED, 0),
    ]


@pytest.mark.parametrize(
    "other",
    [
        standing(sage_recipe_digest="another"),
        standing(sage_sha512="01"),
        standing(sage_format="qcow2-zstd"),  # which the site does not boot
        SiteInventory("b", (), DOWN),
        SiteInventory("b", (), None),
    ],
)
def test_where_one_site_lacks_it_there_is_something_to_do(other: SiteInventory) -> None:
    looked = {"a": standing(), "b": other}
    assert publish.standing_report([site("a"), site("b")], NAME, "digest", PublishOptions(), looked, {}) is None


def test_where_a_site_is_held_nothing_is_built_for_it() -> None:
    paused = standing(sage_recipe_digest="another", sage_paused="yes")
    withdrawn = image(3, also={"sage_recipe_digest": "digest", "sage_withdrawn_at": "2026-11-20T11:00:00Z"})
    rolled_back = replace(paused, images=(*standing(sage_recipe_digest="another").images, withdrawn))
    looked = {"a": standing(), "b": paused, "c": rolled_back}
    made = publish.standing_report([site(name) for name in looked], NAME, "digest", PublishOptions(), looked, {})
    assert made is not None
    assert [row.outcome for row in made.sites] == [Outcome.UNCHANGED, Outcome.HELD, Outcome.HELD]
    assert "is paused" in made.sites[1].warnings[0]
    assert "a rollback withdrew" in made.sites[2].warnings[0]
    assert exit_code(made) == 0


def test_an_image_that_others_are_not_to_see_any_more_is_something_to_do() -> None:
    options = PublishOptions(visibility=(Visibility.PRIVATE,))
    assert publish.standing_report([site("a")], NAME, "digest", options, {"a": standing()}, {}) is None


def test_raw_is_made_on_the_way_and_not_built() -> None:
    best_raw = Site("a", "https://x/v3", SiteKind.KVM, (DiskFormat.RAW, DiskFormat.QCOW2_ZLIB))
    assert pipeline.formats_for([best_raw], kvm=False) == [DiskFormat.QCOW2_ZSTD]
    assert pipeline.formats_for([best_raw, site("b")], kvm=False) == [DiskFormat.QCOW2_ZLIB]
    downloads = replace(best_raw, upload=Upload.WEB_DOWNLOAD)
    assert pipeline.formats_for([downloads], kvm=False) == [DiskFormat.RAW]


def test_a_publisher_is_known_to_live_only_where_that_can_be_judged() -> None:
    me = publisher.identity()
    assert publisher.lives(me) is True
    machine, process, start = me.rsplit(":", 2)
    assert publisher.lives(f"{machine}:{process}:{int(start) + 1}") is False, "another process had this id"
    assert publisher.lives(f"{machine}:4194305:{start}") is False
    assert publisher.lives(f"elsewhere:{os.getpid()}:{start}") is None
    assert publisher.lives("") is None
    assert publisher.lives("nonsense") is None

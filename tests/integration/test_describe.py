# SPDX-License-Identifier: Apache-2.0
"""The page of an image that stands at real Glances, by the command."""

import json

from tests.integration import commands
from tests.integration.test_publish import Bench, bench

__all__ = ["bench"]  # a fixture


def test_the_page_is_written_with_the_ids_of_the_image_at_its_sites(bench: Bench) -> None:
    first, second = bench.build(1), bench.build(2)
    bench.publish(first)
    (row,) = [row for row in bench.publish(second).sites if row.site == "CHI@UC"]
    sites = ("--site", "CHI@UC", "--site", "KVM@TACC")
    done = commands.run("sage-image", "describe", second, *sites, "--since", first, "--output", bench.folder / "pages")
    assert done.code == 0, done.err
    markdown = (bench.folder / f"pages/{bench.name}.md").read_text()
    assert f"| CHI@UC | baremetal | `{row.image_id}` |" in markdown
    assert "OS_CLOUD=kvm_tacc" in markdown
    assert "What changed since build-1" in markdown
    assert str(row.image_id) in (bench.folder / f"pages/{bench.name}.html").read_text()
    older = commands.run("sage-image", "describe", first, "--site", "CHI@UC")
    assert "(another build)" in older.out


def test_a_site_that_can_not_be_asked_is_told_on_the_page_and_by_the_exit_code(bench: Bench) -> None:
    bench.publish(bench.build(1))
    words = ("describe", bench.folder / "build-1", "--site", "CHI@UC", "--site", "CHI@NCAR", "--json")
    done = commands.run("sage-image", *words)
    assert done.code == 3
    standing = json.loads(done.out)["standing"]
    assert standing[0]["this_build"]
    assert "no entry for CHI@NCAR" in standing[1]["problem"]

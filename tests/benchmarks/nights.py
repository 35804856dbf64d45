# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks night``: a night in which nothing has changed, of six variants and three sites."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from groundwork import console
from image_builder import manifest
from image_builder.manifest import CheckReport, CheckResult
from tests.benchmarks.figures import SITES, Figure, local_sites, seconds
from tests.integration import commands

_VARIANTS = 6
_NIGHTS = 5


def nights() -> list[Figure]:
    """Time and uploads of ``sage-image nightly`` with the archive asked anew, from the program's start to its end."""
    with tempfile.TemporaryDirectory(dir="build", prefix="bench.") as scratch:
        top = Path(scratch).absolute()
        config = house(top)
        with console.stage(f"{_VARIANTS} builds"):
            build(top)
        with local_sites(top):
            with console.stage("the first night, which publishes them"):
                night(config, "--no-canary")
            times = []
            for number in range(_NIGHTS):
                with console.stage(f"night {number + 1} of {_NIGHTS}") as stage:
                    times.append(seconds(lambda: night(config)))
                    stage.note = f"{times[-1]:.2f} s"
        reports = [json.loads(path.read_text()) for path in sorted((top / "state/runs").iterdir())]
    rows = [row for report in reports[1:] for publication in report["publications"] for row in publication["sites"]]
    if len(rows) != _NIGHTS * _VARIANTS * len(SITES):
        raise SystemExit(f"{len(rows)} answers of sites")
    uploaded = sum(row["uploaded"] for row in rows)
    how = (
        f"median of {_NIGHTS} runs of `sage-image nightly`, from {min(times):.2f} to {max(times):.2f} s, with the "
        f"archive's indexes fetched anew; {_VARIANTS} variants of `base` (Debian 12), built and published before, not "
        f"booted for this; {len(SITES)} sites on loopback"
    )
    name = f"a night without a change, {_VARIANTS} variants, {len(SITES)} sites"
    return [
        Figure(name, median(times), "s", 10.0, how),
        Figure(f"{name}: uploaded", uploaded, "bytes", 0, f"in those {_NIGHTS} nights together"),
    ]


def house(top: Path) -> Path:
    """Six variants with one element each, and the file of the night; returns the file."""
    (top / "variants").mkdir()
    for number in range(1, _VARIANTS + 1):
        hook = top / f"elements/tiny-{number}/install.d/50-tiny"
        hook.parent.mkdir(parents=True)
        hook.write_text(f"#!/bin/bash\nset -eu\necho {number} > /opt/tiny\n")
        hook.chmod(0o755)
        text = f"description: tiny\nextends: base\nimage_name: Tiny-{number}\nelements: [tiny-{number}]\n"
        (top / f"variants/tiny-{number}.yaml").write_text(text)
    config = top / "nightly.yaml"
    config.write_text(
        f"images: [{{variant: [{', '.join(names())}], release: bookworm, arch: amd64}}]\nsite: {list(SITES)}\n"
        f"variants-dir: {top}/variants\nelements-dir: {top}/elements\n"
        f"output-dir: {top}/build\ncache-dir: {top}/cache\nstate-dir: {top}/state\n"
    )
    return config


def names() -> list[str]:
    return [f"tiny-{number}" for number in range(1, _VARIANTS + 1)]


def build(top: Path) -> None:
    """Real builds, that are then taken for booted: a night without a change looks no further than at that mark."""
    words = [word for name in names() for word in ("--variant", name)]
    words += [word for site in SITES for word in ("--site", site)]
    folders = [f"--{name}-dir={top / folder}" for name, folder in (("variants", "variants"), ("elements", "elements"))]
    folders += [f"--output-dir={top / 'build'}", f"--cache-dir={top / 'cache'}"]
    done = commands.run("create-image", *words, "--release", "bookworm", "--arch", "amd64", "--no-verify", *folders)
    if done.code != 0:
        raise SystemExit(f"create-image failed:\n{done.err}")
    mark = CheckReport((CheckResult("not booted: a benchmark", "bios", True, 0.0, "true", ""),), {})
    for folder in (top / "build").glob("*/*"):
        made, _ = manifest.read(folder)
        manifest.write(replace(made, checks=mark), folder)


def night(config: Path, *words: str) -> None:
    done = commands.run("sage-image", "nightly", "--config", config, *words)
    if done.code != 0:
        raise SystemExit(f"the night failed:\n{done.err}")

# SPDX-License-Identifier: Apache-2.0
"""``make bench``: measure, print, and write ``docs/performance.md``."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

from groundwork import console, files
from image_builder import manifest
from local_chameleon.cloud import State
from tests.benchmarks import (
    nights,
    nodes,
    papers,
    rotation,
    upkeep,
    uploads,
    waggle_latency,
    waggle_memory,
    waggle_query,
    waggle_sharing,
    waggle_shovel,
)
from tests.benchmarks.figures import SITES, Figure, local_sites, seconds
from tests.integration import commands

IMAGE = ("--variant", "sage", "--release", "bookworm")
PROJECT = Path(__file__).parents[2]
PERFORMANCE = PROJECT / "docs/performance.md"
REPEATS = 5
_WITHOUT_BUILD = {  # what needs no image to begin with
    "uploads": uploads.uploads,
    "rollback": upkeep.rollback,
    "planning": rotation.planning,
    "swap": rotation.swap,
    "night": nights.nights,
    "nodes": nodes.nodes,
    "papers": papers.papers,
    "waggle_latency": waggle_latency.latency,
    "waggle_memory": waggle_memory.memory,
    "waggle_query": waggle_query.query,
    "waggle_sharing": waggle_sharing.sharing,
    "waggle_shovel": waggle_shovel.shovel,
}


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of what ``work`` starts and waits for."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    begin = used()
    work()
    return used() - begin


def ours(*words: str, env: dict[str, str] | None = None) -> commands.Ran:
    done = commands.run("create-image", *words, env=env)
    if done.code != 0:
        raise SystemExit(f"create-image failed:\n{done.err}")
    return done


def cold_build(top: Path) -> tuple[list[Figure], Path]:
    """Our cold build to a zstd qcow2, against diskimage-builder's own way to a qcow2 of the same packages."""
    words = (*IMAGE, "--no-verify", "--output-dir", str(top / "build"), "--cache-dir", str(top / "cache"))
    with console.stage("our cold build") as stage:
        begin = time.perf_counter()
        cpu = cpu_seconds(lambda: ours(*words))
        mine = time.perf_counter() - begin
        stage.note = f"{mine:.1f} s, {cpu:.1f} CPU s"
    (folder,) = (top / "build").glob("Sage-Debian12/*")
    made, _ = manifest.read(folder)
    packages = sorted(package.name for package in made.packages)
    raw = top / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", folder / made.files[0].name, raw], check=True, timeout=600)
    with console.stage("the stock way") as stage:
        tree = seconds(lambda: stock_tree(top / "stock", packages))
        convert: list[str | Path] = ["qemu-img", "convert", "-c", "-O", "qcow2", raw, top / "stock.qcow2"]
        compress = seconds(lambda: subprocess.run(convert, check=True, timeout=600))
        stage.note = f"{tree:.1f} s to a tar, {compress:.1f} s for qemu-img convert -c"
    size = (top / "stock.qcow2").stat().st_size
    raw.unlink()
    with console.stage("the floor: mmdebstrap") as stage:
        floor = cpu_seconds(lambda: plain_mmdebstrap(top / "floor", packages))
        stage.note = f"{floor:.1f} CPU s"
    how = (
        f"{mine:.1f} s for `create-image --no-verify`, caches empty, against {tree + compress:.1f} s: {tree:.1f} s for "
        f"stock `disk-image-create -t tar debian-minimal` with the same {len(packages)} packages and {compress:.1f} s "
        f"for `qemu-img convert -c` of a disk with our tree (the stock way has no boot loader and makes no disk of a "
        f"tar; what that would take is not counted); {made.files[0].size >> 20} MiB against {size >> 20} MiB"
    )
    cpu_how = (
        f"{cpu:.1f} CPU seconds for the same `create-image`, to the finished qcow2 and with the stacks' container "
        f"images, against {floor:.1f} for mmdebstrap with the same packages and one run of update-initramfs"
    )
    size_how = f"{made.files[0].size >> 20} MiB against {size >> 20} MiB, of the same disk"
    return [
        Figure("cold build of sage / stock way", mine / (tree + compress), "ratio", 0.5, how),
        Figure("cold build of sage / mmdebstrap, CPU", cpu / floor, "ratio", 1.15, cpu_how),
        Figure("zstd qcow2 of sage / qemu-img convert -c", made.files[0].size / size, "ratio", 0.95, size_how),
    ], folder


_HOOK = """\
set -eu
program=/usr/sbin/update-initramfs
if [ "$1" = before ]; then
    chroot "$2" dpkg-divert --local --rename --add $program
    printf '#!/bin/sh\\nexit 0\\n' > "$2$program"
    chmod 755 "$2$program"
else
    rm -f "$2$program"
    chroot "$2" dpkg-divert --local --rename --remove $program
    chroot "$2" update-initramfs -c -k all
fi
"""


def plain_mmdebstrap(top: Path, packages: Sequence[str]) -> None:
    """The packages by mmdebstrap alone, with one initramfs."""
    hook = files.make_folder(top) / "hook"
    hook.write_text(_HOOK)
    sources = (
        "deb http://deb.debian.org/debian bookworm main\n"
        "deb http://deb.debian.org/debian bookworm-updates main\n"
        "deb http://deb.debian.org/debian-security bookworm-security main\n"
    )
    command: list[str | Path] = [
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        f"--include={','.join(packages)}",
        f'--essential-hook=sh {hook} before "$1"',
        f'--customize-hook=sh {hook} after "$1"',
        "bookworm",
        top / "root",
        "-",
    ]
    with (top / "log").open("wb") as log:
        subprocess.run(command, input=sources.encode(), stdout=log, stderr=log, check=True, timeout=1800)
    files.remove_tree(top)


def one_line(folder: Path) -> list[Figure]:
    """One line changed in an element of ``sage``: a new qcow2, from the layers that stand."""
    top = folder.parents[2]
    copy = top / "elements"
    subprocess.run(["cp", "-r", PROJECT / "elements", copy], check=True)
    figures = []
    for element in ("edge-plugins", "virtual-waggle"):
        times = []
        path = next((copy / element).glob("post-install.d/*"))
        for number in range(3):
            path.write_text(path.read_text() + f"# line {number}\n")
            words = (*IMAGE, "--no-verify", "--output-dir", str(top / "build"), "--cache-dir", str(top / "cache"))
            with console.stage(f"one line of {element}") as stage:
                times.append(seconds(lambda words=words: ours(*words, "--elements-dir", str(copy))))  # type: ignore[misc]
                stage.note = f"{times[-1]:.1f} s"
        how = f"median of 3 runs of `create-image --no-verify`, from {min(times):.1f} to {max(times):.1f} s"
        figures.append(Figure(f"one line changed in element {element}", median(times), "s", 12.0, how))
    files.remove_tree(copy)
    return figures


def shared_layers(top: Path) -> list[Figure]:
    """``base``, ``sage`` and ``sage-cuda`` in one run, against three runs; all with empty caches."""

    def build(name: str, *variants: str) -> float:
        words = [word for variant in variants for word in ("--variant", variant)]
        places = ("--output-dir", str(top / name / "build"), "--cache-dir", str(top / name / "cache"))
        with console.stage(f"cold build of {' and '.join(variants)}") as stage:
            took = seconds(lambda: ours(*words, "--release", "bookworm", "--no-verify", *places))
            stage.note = f"{took:.1f} s"
        files.remove_tree(top / name)
        return took

    variants = ("base", "sage", "sage-cuda")
    together = build("together", *variants)
    single = {variant: build(variant, variant) for variant in variants}
    alone = ", ".join(f"{variant} {took:.1f} s" for variant, took in single.items())
    how = f"{together:.1f} s for `create-image` of all three, caches empty, against {alone}, each with caches empty"
    name = "base, sage and sage-cuda in one run / in three"
    return [Figure(name, together / sum(single.values()), "ratio", 0.65, how)]


def arm64_cold_build(top: Path) -> list[Figure]:
    """Cold builds of ``sage`` for amd64 and, by emulation, for arm64."""
    took: dict[str, float] = {}
    for arch in ("amd64", "arm64"):
        places = ("--output-dir", str(top / arch / "build"), "--cache-dir", str(top / arch / "cache"))
        with console.stage(f"cold build for {arch}") as stage:
            took[arch] = seconds(lambda places=places, arch=arch: ours(*IMAGE, "--arch", arch, "--no-verify", *places))  # type: ignore[misc]
            stage.note = f"{took[arch]:.1f} s"
        files.remove_tree(top / arch)
    how = (
        f"`create-image --variant sage --no-verify`, caches empty: {took['arm64']:.1f} s for arm64, with the download "
        f"of its native programs, against {took['amd64']:.1f} s for amd64"
    )
    return [Figure("cold build for arm64 on amd64 / for amd64", took["arm64"] / took["amd64"], "ratio", 4.0, how)]


def stock_tree(top: Path, packages: Sequence[str]) -> None:
    """diskimage-builder as it comes, with its own elements."""
    temporary = files.make_folder(top / "tmp")
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(top),
        "USER": "root",
        "LANG": "C.UTF-8",
        "DIB_RELEASE": "bookworm",
        "DIB_DISTRIBUTION_MIRROR": "http://deb.debian.org/debian",
        "DIB_DEBIAN_SECURITY_MIRROR": "http://deb.debian.org/debian-security",
        "DIB_IMAGE_CACHE": str(top / "cache"),
        "DIB_NETWORK_INTERFACE_NAMES": "eth0",
        "TMP_DIR": str(temporary),
        "TMPDIR": str(temporary),
    }
    command: list[str | Path] = [commands.command("disk-image-create"), "-a", "amd64", "-t", "tar", "-o", top / "stock"]
    with (top / "stock.log").open("wb") as log:
        done = subprocess.run(
            [*command, "-p", ",".join(packages), "debian-minimal"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=3600,
        )
    if done.returncode != 0:
        raise SystemExit(f"the stock build failed:\n{files.tail(top / 'stock.log', 20)}")


def nothing_changed(folder: Path, state: State) -> list[Figure]:
    """A run in which nothing has changed: without publishing, and with three sites to ask."""
    top = folder.parents[2]
    words = (*IMAGE, "--output-dir", str(top / "build"), "--cache-dir", str(top / "cache"))
    env = {"OS_CLIENT_CONFIG_FILE": str(state.clouds_yaml)}
    sites = [word for site in SITES for word in ("--site", site)]
    with console.stage("verify, so that it can be published"):
        ours(*words, *sites)
    with console.stage("publish"):
        ours(*words, *sites, "--publish", env=env)
    figures = []
    for name, more in (("nothing changed", []), ("nothing changed, three sites asked", [*sites, "--publish"])):
        with console.stage(name):
            times = [seconds(lambda more=more: ours(*words, *more, env=env)) for _ in range(REPEATS)]  # type: ignore[misc]
        how = f"median of {REPEATS} runs of `create-image`, from {min(times):.2f} to {max(times):.2f} s"
        figures.append(Figure(name, median(times), "s", 2.0, how))
    return figures


def publish(folder: Path, state: State) -> list[Figure]:
    """`sage-image publish` of a new image to three sites, against one `curl` upload of the same file to each."""
    env = {"OS_CLIENT_CONFIG_FILE": str(state.clouds_yaml)}
    sites = [word for site in SITES for word in ("--site", site)]
    made, _ = manifest.read(folder)
    with tempfile.TemporaryDirectory(dir=folder.parents[2]) as scratch:
        ratios, published, curled = [], [], []
        for number in range(REPEATS):
            copy = renamed(folder, Path(scratch) / str(number), number)
            with console.stage(f"round {number + 1} of {REPEATS}") as stage:
                three = seconds(lambda copy=copy: run_or_exit("sage-image", "publish", copy, *sites, env=env))  # type: ignore[misc]
                one = max(curl(copy / made.files[-1].name, site, state) for site in SITES)
                stage.note = f"{three:.2f} s against {one:.2f} s"
            ratios.append(three / one)
            published.append(three)
            curled.append(one)
    how = (
        f"median of {REPEATS} rounds; {median(published):.1f} s for the whole command against {median(curled):.1f} s "
        f"for `curl -T` to the slowest site, {made.files[-1].size >> 20} MiB"
    )
    return [Figure("publish to three sites / one curl upload", median(ratios), "ratio", 2.2, how)]


def renamed(folder: Path, copy: Path, number: int) -> Path:
    """The same build as if it were another one: links to its files, a manifest of another recipe."""
    files.make_folder(copy)
    document = json.loads((folder / manifest.MANIFEST).read_text())
    document["recipe_digest"] = f"{number:064x}"
    document["build_id"] = f"20000101T00000{number}Z-{number:08x}"
    # One file for every site, so that both sides send the same bytes.
    document["files"] = document["files"][-1:]
    name = document["files"][0]["name"]
    (copy / name).hardlink_to(folder / name)
    files.write_text(copy / manifest.MANIFEST, json.dumps(document))
    return copy


def run_or_exit(name: str, *words: str | Path, env: dict[str, str]) -> commands.Ran:
    done = commands.run(name, *words, env=env)
    if done.code != 0:
        raise SystemExit(f"{name} failed:\n{done.err}")
    return done


def curl(path: Path, site: str, state: State) -> float:
    """Seconds of a plain upload; the image is made before and deleted after."""
    import openstack

    connection = openstack.connect(cloud=site.replace("@", "_").lower())
    try:
        image = connection.image.create_image("curl", disk_format="qcow2", container_format="bare")
        endpoint = str(connection.image.get_endpoint()).rstrip("/").removesuffix("/v2")
        url = f"{endpoint}/v2/images/{image.id}/file"
        token = connection.auth_token
        with tempfile.NamedTemporaryFile("w", suffix=".curl") as header:
            header.write(f'header = "X-Auth-Token: {token}"\n')
            header.flush()
            command: list[str | Path] = [
                "curl",
                "--silent",
                "--fail",
                "--config",
                header.name,
                "--upload-file",
                path,
                url,
            ]
            command += ["--header", "Content-Type: application/octet-stream"]
            took = seconds(lambda: subprocess.run(command, check=True, timeout=600))
        connection.image.delete_image(image.id)
    finally:
        connection.close()
    return took


def report(figures: Sequence[Figure]) -> str:
    """``docs/performance.md``."""
    now = datetime.now(timezone.utc)
    lines = [
        "# Performance",
        "",
        f"Written by `make bench` on {now:%Y-%m-%d}: {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, archive near. Both sides of a ratio were measured in one run.",
        "",
        "| figure | measured | at most | how |",
        "|---|---|---|---|",
    ]
    lines += [_row(figure) for figure in figures]
    return "\n".join(lines) + "\n"


def record(figures: Sequence[Figure]) -> str:
    """``docs/performance.md`` with these figures' rows anew, and all else as it is."""
    lines = PERFORMANCE.read_text().splitlines()
    now = datetime.now(timezone.utc)
    for figure in figures:
        row = f"{_row(figure)[:-2]} ({now:%Y-%m-%d}, {os.cpu_count()} cores) |"
        stands = [number for number, line in enumerate(lines) if line.startswith(f"| {figure.name} |")]
        last = max(number for number, line in enumerate(lines) if line.startswith("| "))
        lines[stands[0] if stands else last + 1 : stands[0] + 1 if stands else last + 1] = [row]
    return "\n".join(lines) + "\n"


def _row(figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit != "ratio" else ""
    limit = f"{'at least ' if figure.at_least else ''}{figure.limit:g}{unit}"
    return f"| {figure.name} | {figure.value:.2f}{unit} | {limit} | {figure.how} |"


def at_sites(top: Path, folder: Path) -> list[Figure]:
    """What takes sites: three Glances on loopback."""
    with local_sites(top) as state:
        return nothing_changed(folder, state) + publish(folder, state)


def main() -> int:
    files.make_folder(PROJECT / "build")
    known = {"lines", "arm64", "cuda", "sites", *_WITHOUT_BUILD}
    parser = ArgumentParser(prog="python -m tests.benchmarks", description="Measure, and write docs/performance.md.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to measure (default: all): {', '.join(sorted(known))}"
    )
    # Those named are measured, and the cold build, which most build on.
    chosen = set(parser.parse_args().names) or known
    if chosen - known:
        parser.error(f"unknown: {', '.join(sorted(chosen - known))}; expected some of {', '.join(sorted(known))}")
    if chosen <= set(_WITHOUT_BUILD):
        return tell([figure for name in sorted(chosen) for figure in _WITHOUT_BUILD[name]()], record)
    with tempfile.TemporaryDirectory(dir=PROJECT / "build", prefix="bench.") as scratch:
        top = Path(scratch)
        figures, folder = cold_build(top)
        if "lines" in chosen:
            figures += one_line(folder)
        if "arm64" in chosen:
            figures += arm64_cold_build(top / "arm64")
        if "cuda" in chosen:
            figures += shared_layers(top / "cuda")
        if "sites" in chosen:
            figures += at_sites(top, folder)
    for name in sorted(chosen & set(_WITHOUT_BUILD)):
        figures += _WITHOUT_BUILD[name]()
    return tell(figures, report)


def tell(figures: Sequence[Figure], write: Callable[[Sequence[Figure]], str]) -> int:
    """Write the figures to ``docs/performance.md`` and print it; 1 where one is worse than promised."""
    text = write(figures)
    files.write_text(PERFORMANCE, text)
    console.result(text)
    missed = [figure.name for figure in figures if not figure.kept]
    if missed:
        console.complain(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

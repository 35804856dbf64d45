# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks planning swap``: planning without any site, and what readers see of a swap."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from statistics import median
from typing import Any

from chameleon_sites import cloud
from chameleon_sites.sites import load_sites
from groundwork import console
from image_builder import catalog, rotation
from image_builder.catalog import ImageState, SiteImage
from tests.benchmarks.figures import Figure, local_sites, seconds
from tests.integration.test_publish import Bench

_NAME = "Sage-Swap"
_SITE = "CHI@UC"
_SWAPS = 12
_RUNS = 5
_PLAN_SITES, _PLAN_IMAGES = 10, 1000
_processes = multiprocessing.get_context("spawn")


def planning() -> list[Figure]:
    """One plan a site, of a swap with retention, where all images of the site have one public name."""
    now = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
    standing = [_image(number, now - timedelta(hours=number)) for number in range(_PLAN_IMAGES)]
    new = standing[0].id

    def plan_all() -> None:
        for _ in range(_PLAN_SITES):
            made = rotation.plan(_NAME, standing, new=new, keep=3, now=now)
            assert len(made.steps) == 3 + 2 * (_PLAN_IMAGES - 3)

    times = [seconds(plan_all) for _ in range(_RUNS)]
    how = f"median of {_RUNS}, from {min(times):.3f} to {max(times):.3f} s; a swap, and all but three are deleted"
    return [Figure("planning 10 sites of 1,000 images", median(times), "s", 1.0, how)]


def _image(number: int, built: datetime) -> SiteImage:
    state = {0: ImageState.CANDIDATE, 1: ImageState.CURRENT}.get(number, ImageState.PREVIOUS)
    at = f"{built:%Y-%m-%dT%H:%M:%SZ}"
    names = {ImageState.CANDIDATE: "sage-staging-x", ImageState.CURRENT: _NAME}
    return SiteImage(
        id=f"{number:08d}-0000-0000-0000-000000000000",
        name=names.get(state, rotation.dated_name(_NAME, at)),
        status="active",
        hidden=state == ImageState.CANDIDATE,
        protected=False,
        visibility="public",
        owner="us",
        size=1 << 30,
        created_at=at,
        updated_at=at,
        disk_format="qcow2",
        os_hash_algo="sha512",
        os_hash_value="00",
        tags=(catalog.TAG,),
        properties={"sage_state": str(state), "sage_image_name": _NAME, "sage_built_at": at, "sage_publisher": "a:1:1"},
    )


def swap() -> list[Figure]:
    """What two readers in processes of their own see while build after build gets the name at one site."""
    with tempfile.TemporaryDirectory(prefix="bench.") as scratch:
        top = Path(scratch)
        with local_sites(top) as state:
            bench = Bench(_NAME, top, state.clouds_yaml, {})
            site = load_sites()[_SITE]
            bench.publish(bench.build(0), site, keep=2)
            stop = _processes.Event()
            pipes, readers = [], []
            for look in (_by_sdk, _as_python_chi):
                here, there = _processes.Pipe(duplex=False)
                readers.append(_processes.Process(target=_read, args=(look, stop, there), daemon=True))
                readers[-1].start()
                pipes.append(here)
            for pipe in pipes:
                pipe.recv()  # it has begun
            with console.stage(f"{_SWAPS} swaps"):
                for number in range(1, _SWAPS + 1):
                    bench.publish(bench.build(number), site, keep=2)
            stop.set()
            by_sdk, as_chi = (pipe.recv() for pipe in pipes)
            for reader in readers:
                reader.join(30)
    gaps = [1000 * gap for gap in _gaps(as_chi)] or [0.0]
    failed = sum(count != 1 for _, _, count in by_sdk)
    two = sum(count > 1 for _, _, count in as_chi)
    none = sum(count == 0 for _, _, count in as_chi)
    readers_told = f"{_SWAPS} swaps at a local Glance, a reader of each kind in a process of its own"
    return [
        Figure("look-ups with the SDK's find_image that failed", failed, "", 0, f"of {len(by_sdk)}; {readers_told}"),
        Figure("listings by name that showed two", two, "", 0, f"of {len(as_chi)}; {readers_told}"),
        Figure(
            "gap for those who list by name (python-chi)",
            median(gaps),
            "ms",
            1000,
            f"median of {len(gaps)} gaps, from {min(gaps):.0f} to {max(gaps):.0f} ms, as seen by the reader, one "
            f"listing's time included; {none} of {len(as_chi)} listings showed none",
        ),
    ]


def _gaps(seen: list[tuple[float, float, int]]) -> list[float]:
    """Seconds from the beginning of the first look-up that found none to the end of the next that found one."""
    gaps, begin = [], None
    for began, ended, count in seen:
        if count == 0 and begin is None:
            begin = began
        elif count and begin is not None:
            gaps.append(ended - begin)
            begin = None
    return gaps


def _read(look: Callable[[Any], int], stop: Any, pipe: Any) -> None:
    connection = cloud.connect(load_sites()[_SITE])
    seen = []
    pipe.send("begun")
    while not stop.is_set():
        began = time.monotonic()
        count = look(connection)
        seen.append((began, time.monotonic(), count))
    pipe.send(seen)


def _by_sdk(connection: Any) -> int:
    from openstack.exceptions import DuplicateResource

    try:
        return int(connection.image.find_image(_NAME) is not None)
    except DuplicateResource:
        return 2


def _as_python_chi(connection: Any) -> int:
    """python-chi 1.2 lists images by name, hidden ones left out."""
    return len(list(connection.image.images(name=_NAME)))

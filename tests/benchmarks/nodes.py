# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.benchmarks nodes``: what the tool costs beside the cloud's own times, at the profile ``lease``."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from chameleon_sites import cloud as clouds
from chameleon_sites.sites import load_sites
from groundwork import console, process
from node_automation import lease as leases
from node_automation import ledger, parallel, server
from node_automation.lease import LeaseRequest
from node_automation.server import ServerRequest
from tests.benchmarks.figures import SITES, Figure, local_sites, seconds
from tests.integration import commands

_NODES = 10
_ROUNDS = 5
_MANY = 100
_TYPE = "compute_skylake"
_IMAGE = "node"
_BARE = Path(__file__).with_name("bare_nodes.py")
_EXPERIMENT = f"""
name: ten
duration: 1h
sites: [CHI@UC]
node_types: [{_TYPE}]
image: {_IMAGE}
nodes: {{blank: {_NODES}}}
"""
# How the hundred stand: leased hosts of the bare-metal sites, and virtual machines, which need no lease.
_LEASED = {"CHI@UC": {_TYPE: 10, "compute_cascadelake_r": 3, "gpu_rtx_6000": 2}, "CHI@TACC": {_TYPE: 3, "gpu_p100": 2}}


def nodes() -> list[Figure]:
    """``fab up`` and ``fab down`` of ten nodes against a bare script, and ``fab status`` of a hundred."""
    with tempfile.TemporaryDirectory(prefix="bench.") as scratch:
        top = Path(scratch)
        with local_sites(top, profile="lease"):
            os.environ["SAGE_STATE_DIR"] = str(top / "state")
            for name in SITES:
                images = clouds.connect(load_sites()[name]).image
                images.create_image(_IMAGE, data=b"x", disk_format="raw", container_format="bare")
            (top / "ten.yaml").write_text(_EXPERIMENT)
            with _asked_by_admin() as asked:
                figures = _ten(top / "ten.yaml", asked)
            return [*figures, _status(top / "state")]


@contextlib.contextmanager
def _asked_by_admin() -> Iterator[Any]:
    import openstack

    connection = openstack.connect(cloud="admin_chi_uc")
    try:
        yield connection
    finally:
        connection.close()


def _ten(experiment: Path, admin: Any) -> list[Figure]:
    """Rounds of both ways in turn: seconds to ten ACTIVE servers, and to nothing left."""
    ups: list[tuple[float, float]] = []
    downs: list[tuple[float, float]] = []
    for number in range(_ROUNDS):
        with console.stage(f"round {number + 1} of {_ROUNDS}") as stage:
            running = commands.start("fab", "up", str(experiment))
            ours = _until_active(admin, running)
            os.killpg(running.pid, signal.SIGINT)  # nobody answers at these servers
            running.communicate(timeout=120)
            ours_down = seconds(_give_back)
            script = subprocess.Popen([sys.executable, _BARE, "up", str(_NODES), _TYPE, _IMAGE])
            bare = _until_active(admin, script)
            if script.wait(timeout=300) != 0:
                raise SystemExit("the bare script failed")
            bare_down = seconds(lambda: subprocess.run([sys.executable, _BARE, "down"], check=True, timeout=600))
            stage.note = f"up {ours:.1f} s against {bare:.1f} s, down {ours_down:.1f} s against {bare_down:.1f} s"
        ups.append((ours, bare))
        downs.append((ours_down, bare_down))
    ratios = [ours / bare for ours, bare in ups]
    mine, theirs = (median(side) for side in zip(*ups, strict=True))
    up = (
        f"median of {_ROUNDS} rounds, {min(ratios):.2f} to {max(ratios):.2f}; {mine:.1f} s from the start of `fab up`"
        f" of {_NODES} nodes to all ACTIVE, against {theirs:.1f} s for a script on openstacksdk that finds, leases,"
        f" waits, launches {parallel.LAUNCHES} at a time and binds floating IPs, and keeps and checks nothing"
    )
    mine, theirs = (median(side) for side in zip(*downs, strict=True))
    down = (
        f"median of {_ROUNDS} rounds; {mine:.1f} s for `fab down` of {_NODES} nodes less {theirs:.1f} s for a script"
        " that deletes the servers at once, waits, deletes the lease and waits"
    )
    more = [ours - bare for ours, bare in downs]
    return [
        Figure("fab up of 10 nodes / a bare script", median(ratios), "ratio", 1.2, up),
        Figure("fab down of 10 nodes, beside the cloud's own time", median(more), "s", 15.0, down),
    ]


def _until_active(admin: Any, running: "subprocess.Popen[Any]") -> float:
    """Seconds from now until the ten servers are ACTIVE, as an administrator sees it."""
    begin = time.perf_counter()
    for _ in process.poll_until(600.0, 0.2):
        found = [one for one in admin.compute.servers(all_projects=True) if one.status == "ACTIVE"]
        if len(found) == _NODES:
            return time.perf_counter() - begin
        if running.poll():
            raise SystemExit(f"the launch failed:\n{running.communicate()[1]}")
    raise SystemExit("the servers did not become ACTIVE")


def _give_back() -> None:
    done = commands.run("fab", "down", "ten")
    if done.code != 0:
        raise SystemExit(f"fab down failed:\n{done.err}")


def _status(state: Path) -> Figure:
    """``fab status`` while a hundred nodes of ours stand at three sites."""
    with console.stage(f"{_MANY} nodes"), ThreadPoolExecutor(len(SITES)) as pool:
        list(pool.map(lambda name: _fill(name, state), SITES))
    with console.stage("status"):
        times, found = [], 0
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            done = commands.run("fab", "status", "--json")
            times.append(time.perf_counter() - begin)
            if done.code != 0:
                raise SystemExit(f"fab status failed:\n{done.err}")
            found = len(json.loads(done.out)["nodes"])
    if found != _MANY:
        raise SystemExit(f"fab status tells of {found} nodes")
    how = f"median of {_ROUNDS} runs of `fab status --json`, from {min(times):.2f} to {max(times):.2f} s"
    return Figure(f"fab status of {_MANY} nodes at three sites", median(times), "s", 3.0, how)


def _fill(name: str, state: Path) -> None:
    """This site's part of the hundred: servers of ours, made as `fab node.launch` does, without a login."""
    site = load_sites()[name]
    connection = clouds.connect(site, deadline=120.0)
    run = ledger.new_run("many")
    if name not in _LEASED:
        number = _MANY - sum(count for kinds in _LEASED.values() for count in kinds.values())
        for row in range(number):
            server.create(
                connection, site, ServerRequest(run, f"many-vm-{row + 1}", _IMAGE, flavor="m1.tiny"), state=state
            )
    for kind, count in _LEASED.get(name, {}).items():
        request = LeaseRequest(run, count=count, length=timedelta(hours=1), part=kind.replace("_", "-"))
        held = leases.obtain(request, leases.tries([site], [kind]), {name: connection}, state=state, reuse=False)
        leases.wait_active(connection, held.lease.id)
        for row in range(count):
            wanted = ServerRequest(run, f"many-{kind}-{row + 1}", _IMAGE, node_type=kind, reservation=held.reservation)
            server.create(connection, site, wanted, state=state)
    for one in server.list_ours(connection):
        server.wait_active(connection, one.id, deadline=300.0)

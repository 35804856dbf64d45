# SPDX-License-Identifier: Apache-2.0
"""A publisher in a process of its own, quickly started, that a test may kill; also as one of another machine."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from chameleon_sites.sites import load_sites
from groundwork import console
from image_builder import manifest, publish, publisher, rotation
from image_builder.publication import PublishOptions, SitePublication

_DEADLINE = 120.0  # seconds for a publisher to end

# Each is forked from a process that has imported all this, and has no threads.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__, "openstack.connection", "keystoneauth1.loading"])


@dataclass(frozen=True)
class Machine:
    """Where a publisher runs.

    ``name``: None for this machine; any other can't tell whether the processes of this one live.  ``expired``: what it
    uploads is taken for long over its time, as if hours had gone by.  ``full``: its disk is, no file takes a byte.
    """

    clouds_yaml: Path
    state: Path
    name: str | None = None
    expired: bool = False
    full: bool = False


@dataclass
class Publisher:
    """A publisher that was started; ``wait`` gives what came of it at its sites, or None if it was killed."""

    process: BaseProcess
    answer: Any

    def kill(self) -> None:
        """SIGKILL; ``wait`` alone may wait for the end, for a process tells its exit code to one thread only."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)

    def wait(self) -> tuple[SitePublication, ...] | None:
        made = None
        if self.answer.poll(_DEADLINE):
            try:
                made = self.answer.recv()
            except EOFError:  # killed
                made = None
        self.process.join(_DEADLINE)
        assert not self.process.is_alive(), "it does not end"
        return made


def start(machine: Machine, folder: Path, sites: Sequence[str], **options: Any) -> Publisher:
    """Publish the build in ``folder``; ``options`` are those of PublishOptions."""
    answer, end = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_run, args=(end, machine, folder, tuple(sites), options), daemon=True)
    process.start()
    end.close()
    return Publisher(process, answer)


def _run(end: Any, machine: Machine, folder: Path, names: Sequence[str], options: dict[str, Any]) -> None:
    for variable in [name for name in os.environ if name.startswith("OS_")]:
        del os.environ[variable]
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(machine.clouds_yaml)
    console.configure(json_output=False, quiet=True)
    if machine.name is not None:
        setattr(publisher, "_machine", lambda: machine.name)  # noqa: B010
    chosen = PublishOptions(state=machine.state, **options)
    if machine.expired:
        rotation.UPLOAD_MARGIN = -timedelta(seconds=chosen.upload_deadline)
    if machine.full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    made, where = manifest.read(folder)
    report = publish.publish(made, where, [load_sites()[name] for name in names], chosen)
    end.send(report.sites)

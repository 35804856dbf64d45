# SPDX-License-Identifier: Apache-2.0
"""A Docker engine of the test's own: its data in a folder, its networks in a namespace of their own."""

import contextlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from groundwork import files, process
from groundwork.process import ProcessError

START_UP = 90.0  # seconds, on a busy machine
PROGRAMS = ("docker", "dockerd", "containerd", "runc", "unshare", "busybox")


def why_not() -> str:
    """Why there can be no engine here; "" where nothing speaks against it."""
    missing = [program for program in PROGRAMS if process.find(program) is None]
    if missing:
        return f"missing {', '.join(missing)}"
    if os.geteuid() != 0:
        return "an engine needs root"
    try:
        process.run(["docker", "compose", "version"], timeout=60)
    except ProcessError:
        return "" if process.find("docker-compose") else "missing Docker Compose"
    return ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """The engine's address.  Raises ProcessError where this machine lets none run."""
    files.make_folder(folder)
    address = f"unix://{folder}/socket"
    command: list[str | Path] = [
        *("unshare", "--net", "dockerd", "--host", address, "--data-root", folder / "data"),
        *("--exec-root", folder / "exec", "--pidfile", folder / "pid", "--iptables=false", "--ip6tables=false"),
    ]
    with (folder / "log").open("wb") as log:
        engine = process.start(command, stdout=log, stderr=log)
    try:
        for _ in process.poll_until(START_UP, 0.3):
            if engine.poll() is not None:
                raise ProcessError(f"no engine here: {files.tail(folder / 'log', 3)}", returncode=engine.returncode)
            with contextlib.suppress(ProcessError):
                process.run(["docker", "--host", address, "version"], timeout=10)
                break
        yield address
    finally:
        process.stop(engine, patience=30)
        shutil.rmtree(folder / "data", ignore_errors=True)


def make_image(name: str) -> None:
    """An image of a few commands (busybox), for the engine of DOCKER_HOST."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in ("bin", "tmp"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(info)
        busybox = process.find("busybox")
        assert busybox is not None
        tar.add(busybox, "bin/busybox")
        for command in ("sh", "sleep", "test", "echo", "cat", "false", "id", "touch"):
            info = tarfile.TarInfo(f"bin/{command}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
    process.run(
        ["docker", "import", "--change", "ENV PATH=/bin", "-", name], input=archive.getvalue(), timeout=START_UP
    )

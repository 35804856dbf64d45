# SPDX-License-Identifier: Apache-2.0
"""A Beehive's state folder and its ssh servers, as their own processes on loopback, on ports of their own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from groundwork import files, process
from tests.integration.waggle import brokers
from virtual_waggle.beehive import nodes, state
from virtual_waggle.beehive.state import State
from virtual_waggle.broker import Place

NODE, OTHER = "00000000000000aa", "00000000000000bb"


def now() -> datetime:
    return datetime.now(timezone.utc)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that other users may enter: services of root's state folders are not root."""
    folder = Path(tempfile.mkdtemp(prefix="waggle."))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass
class Beehive:
    """A deployed state folder, with ports of its own."""

    state: State
    registration_port: int
    upload_port: int
    _running: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def start(self, module: str, port: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start a service and return when it listens.  Its log is ``native/<module>.log``."""
        with self.log(module).open("ab") as log:
            service = process.start(
                [sys.executable, "-m", f"virtual_waggle.beehive.{module}"],
                stdout=log,
                stderr=log,
                env={
                    "BEEHIVE_LISTEN": f"127.0.0.1:{port}",
                    "BEEHIVE_NODES": str(self.state.nodes),
                    "WAGGLE_SECRETS": str(self.state.private),
                    **environment,
                },
            )
        self._running[module] = service
        for _ in process.poll_until(30, 0.1):
            if brokers.reachable(port):
                return service
            if service.poll() is not None:
                break
        raise RuntimeError(f"{module} did not start:\n{files.tail(self.log(module), 40)}")

    def start_registration(self, management_url: str, admit: str = "listed") -> "subprocess.Popen[bytes]":
        return self.start(
            "registration",
            self.registration_port,
            {
                "BEEHIVE_HOST": "localhost,127.0.0.1",
                "BEEHIVE_ADMIT": admit,
                "BEEHIVE_UPLOAD_PORT": str(self.upload_port),
                "BEEHIVE_MANAGEMENT": management_url,
            },
        )

    def start_uploads(self, **more: str) -> "subprocess.Popen[bytes]":
        return self.start("upload_server", self.upload_port, {"BEEHIVE_UPLOADS": str(self.state.uploads), **more})

    def stop(self, module: str) -> int:
        """Ask it to end; its exit status.  Longer than 5 s is an error."""
        service = self._running.pop(module)
        os.killpg(service.pid, signal.SIGTERM)
        return service.wait(5)

    def log(self, module: str) -> Path:
        return self.state.folder / f"native/{module}.log"

    def node_folder(self, name: str) -> Path:
        """A node's ``private``, with what the operator hands out."""
        folder = self.state.folder.parent / name / "private"
        for file, text in state.handout(self.state).items():
            files.write_text(folder / file, text, mode=0o600)
        return folder

    def admit(self, *ids: str) -> None:
        for node_id in ids:
            nodes.admit(self.state.nodes, node_id, now=now())


@contextlib.contextmanager
def beehive() -> Iterator[Beehive]:
    """A Beehive of its own; its services are started by the tests, and ended with it."""
    with open_folder() as folder:
        registration, upload = brokers.free_ports(2)
        found = State(folder / "beehive")
        given = {
            "BEEHIVE_HOST": "localhost,127.0.0.1",
            "BEEHIVE_REGISTRATION_PORT": str(registration),
            "BEEHIVE_UPLOAD_PORT": str(upload),
        }
        state.deploy(found, given, Place(str(found.private), "127.0.0.1", management_address="127.0.0.1"), now=now())
        running = Beehive(found, registration, upload)
        try:
            yield running
        finally:
            for service in list(running._running.values()):
                process.stop(service)

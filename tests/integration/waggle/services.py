# SPDX-License-Identifier: Apache-2.0
"""A service of ours as it is started everywhere: ``python3 -m``, with its settings in the environment."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from groundwork import files, process

END = 5.0  # seconds in which a service ends


@dataclass
class Service:
    """A running service, and what it said."""

    child: "subprocess.Popen[bytes]"
    log: Path

    def end(self) -> int:
        """SIGTERM, as an operator's stop is; gives the exit code.  Raises where it takes too long."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(END)

    def said(self) -> str:
        return files.tail(self.log, 200)


@contextlib.contextmanager
def running(module: str, folder: Path, env: Mapping[str, str]) -> Iterator[Service]:
    """The service ``virtual_waggle.<module>``; killed after the block, if it still runs."""
    log = folder / f"{module}.log"
    with log.open("ab") as stream:
        child = process.start([sys.executable, "-m", f"virtual_waggle.{module}"], stdout=stream, stderr=stream, env=env)
    try:
        yield Service(child, log)
    finally:
        process.stop(child, patience=0)

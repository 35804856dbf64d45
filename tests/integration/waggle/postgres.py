# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL: Debian's, a plain process on a socket in a folder of its own; it dies with the test's process."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from groundwork import files, process

START_UP = 60.0  # seconds, on a busy machine


@dataclass
class Postgres:
    """A server in a folder; ``address`` is a database of it, as BEEHIVE_STORE takes it."""

    folder: Path
    server: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words: list[str | Path] = [
            _programs() / "postgres",
            "-D",
            self.folder / "data",
            "-k",
            self.folder,
            "-c",
            "listen_addresses=",
        ]
        with (self.folder / "log").open("ab") as log:
            self.server = process.start([*_as_user(), *words], stdout=log, stderr=log)
        for _ in process.poll_until(START_UP, 0.05):
            with contextlib.suppress(psycopg2.OperationalError):
                psycopg2.connect(self.address).close()
                return
        raise RuntimeError(files.tail(self.folder / "log", 20))

    def kill(self) -> None:
        """End it without a warning, its children too."""
        assert self.server is not None
        process.stop(self.server, patience=0)
        self.server = None

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """What a statement gives; in a session of its own."""
        connection = psycopg2.connect(self.address)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A PostgreSQL of its own for the block."""
    # not below a folder of pytest's, which the server's own user may not enter
    folder = Path(tempfile.mkdtemp(prefix="waggle-postgres."))
    server = Postgres(folder)
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        words: list[str | Path] = [
            "-D",
            folder / "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]
        process.run([*_as_user(), _programs() / "initdb", *words], timeout=120, cwd=folder)
        server.start()
        yield server
    finally:
        if server.server is not None:
            process.stop(server.server)
        shutil.rmtree(folder)


def _as_user() -> Sequence[str]:
    """PostgreSQL refuses to run as root."""
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups") if os.geteuid() == 0 else ()


def _programs() -> Path:
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))

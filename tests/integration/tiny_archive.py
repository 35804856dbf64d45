# SPDX-License-Identifier: Apache-2.0
"""A package archive of a few empty packages, signed with a key of its own and served on loopback."""

import atexit
import gzip
import hashlib
import http.server
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path

from groundwork import files, process

SUITES = ("quiet", "quiet-updates", "quiet-security")


@dataclass(frozen=True)
class Key:
    """An OpenPGP key: GnuPG's folder, and the file with its public half."""

    home: Path
    public: Path

    def sign(self, path: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        self._gpg("--clearsign", "--output", target, path)

    def _gpg(self, *words: str | Path) -> None:
        command: list[str | Path] = ["gpg", "--homedir", self.home, "--batch", "--quiet", "--pinentry-mode", "loopback"]
        process.run([*command, "--passphrase", "", *words], timeout=60)


def new_key(folder: Path, name: str) -> Key:
    """A key that nobody else has."""
    home = Path(tempfile.mkdtemp(prefix="gpg"))  # a short path, for the agent's socket
    atexit.register(_forget, home)
    key = Key(home, folder / f"{name}.gpg")
    key._gpg("--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", "never")
    key._gpg("--output", key.public, "--export")
    return key


def _forget(home: Path) -> None:
    process.run(["gpgconf", "--homedir", home, "--kill", "all"], timeout=30)
    files.remove_tree(home)


@dataclass
class Archive:
    """What is in the archive: suite -> package -> fields of its control file."""

    top: Path
    key: Key
    suites: dict[str, dict[str, dict[str, str]]] = field(default_factory=lambda: {suite: {} for suite in SUITES})
    url: str = ""
    requests: list[str] = field(default_factory=list)
    delay: float = 0.0  # seconds before a list of packages is served
    published: float = field(default_factory=lambda: time.time() - 3600)

    def add(self, name: str, version: str, *, suite: str = SUITES[0], **fields: str) -> None:
        """Make an empty package; ``fields`` such as ``Depends``, with ``_`` for ``-``."""
        control = {
            "Package": name,
            "Version": version,
            "Architecture": "amd64",
            "Maintainer": "nobody <nobody@example.org>",
            "Description": name,
            **{key.replace("_", "-"): value for key, value in fields.items()},
        }
        build = self.top.with_name("build") / f"{name}-{version.replace(':', '-')}"
        (build / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (build / "DEBIAN/control").write_text(stanza(control))
        pool = self.top / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        path = pool / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
        process.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", build, path], timeout=60)
        content = path.read_bytes()
        self.suites[suite][name] = {
            **control,
            "Filename": f"pool/{path.name}",
            "Size": str(len(content)),
            "SHA256": hashlib.sha256(content).hexdigest(),
        }

    def publish(self, *, key: Key | None = None, days: int = 7, arches: str = "amd64") -> None:
        """Write the indexes of all suites, signed."""
        for suite, packages in self.suites.items():
            folder = self.top / "dists" / suite
            index = "".join(stanza(fields) + "\n" for fields in packages.values()).encode()
            place = folder / "main/binary-amd64"
            place.mkdir(parents=True, exist_ok=True)
            (place / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
            sums = ""
            for name, content in (("Packages", index), ("Packages.gz", (place / "Packages.gz").read_bytes())):
                sums += f" {hashlib.sha256(content).hexdigest()} {len(content)} main/binary-amd64/{name}\n"
            now = datetime.now(timezone.utc)
            release = {
                "Origin": "Quiet",
                "Suite": suite,
                "Codename": suite,
                "Date": f"{now - timedelta(seconds=1):%a, %d %b %Y %H:%M:%S} UTC",
                "Valid-Until": f"{now + timedelta(days=days):%a, %d %b %Y %H:%M:%S} UTC",
                "Architectures": arches,
                "Components": "main",
            }
            (folder / "Release").write_text(stanza(release) + "SHA256:\n" + sums)
            (key or self.key).sign(folder / "Release", folder / "InRelease")
            # HTTP knows whole seconds only: two publications in one second would look the same.
            os.utime(folder / "InRelease", (self.published, self.published))
        self.published += 2

    def packages_file(self, suite: str = SUITES[0]) -> Path:
        return self.top / "dists" / suite / "main/binary-amd64/Packages.gz"


def stanza(fields: Mapping[str, str]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files (and answers "not modified"), and writes down what it was asked for, with its answer."""

    def __init__(self, archive: Archive, *words: object) -> None:
        self.archive = archive
        super().__init__(*words, directory=str(archive.top))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if "Packages" in self.path:
            self.archive.requests.append(f"... {self.path}")
            time.sleep(self.archive.delay)
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that was killed
            super().do_GET()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.archive.requests.append(f"{int(str(getattr(code, 'value', code)))} {self.path}")

    def log_message(self, format: str, *words: object) -> None:
        pass


@contextmanager
def serving(archive: Archive, port: int = 0) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve the archive on loopback while the block runs; sets its ``url``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, archive))
    archive.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fill(archive: Archive) -> None:
    """A base system of a few names, and packages that need one another."""
    for name in ("base-files", "dpkg", "libc6"):
        archive.add(name, "1.0", Essential="yes", Priority="required")
    archive.add("tzdata", "2026a", Priority="required")
    archive.add("apt", "2.6.1", Priority="important", Depends="libc6")
    archive.add("engine", "1:20.10-1", Depends="runtime (>= 1.0)", Recommends="extras")
    archive.add("runtime", "1.6", Depends="libc6")
    archive.add("extras", "1.0")
    archive.add("other", "5.0")
    archive.add("mail-one", "1.0", Provides="mail")
    archive.add("mail-two", "1.0", Provides="mail")
    archive.add("editor-one", "1.0", Provides="the-editor")
    archive.add("broken", "1.0", Depends="nowhere")
    archive.add("runtime", "1.6+security1", suite=SUITES[2])


def readable_by_all(path: Path) -> None:
    """Open pytest's private folders on the way to ``path`` to other users."""
    for folder in (path, *path.parents):
        if folder.stat().st_uid != os.geteuid() or folder == Path("/tmp"):  # noqa: S108 - that folder itself
            break
        folder.chmod(0o755)

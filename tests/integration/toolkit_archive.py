# SPDX-License-Identifier: Apache-2.0
"""An archive laid out as NVIDIA's of its container toolkit, signed with a key of its own and served on loopback."""

import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.integration import tiny_archive
from tests.integration.tiny_archive import Key, stanza

PACKAGE = "nvidia-container-toolkit"


@dataclass(frozen=True)
class Foreign:
    """The archive: no suites, one armoured key beside it."""

    top: Path
    key: Key
    url: str

    def setting(self, digest: str = "") -> str:
        """What the element is told."""
        digest = digest or hashlib.sha256((self.top / "gpgkey").read_bytes()).hexdigest()
        return f"{self.url}/deb {self.url}/gpgkey sha256:{digest}"

    def publish(self, key: Key) -> None:
        """Write the one package and the index, signed."""
        folder = self.top / "deb"
        control = {"Package": PACKAGE, "Version": "1.0", "Architecture": "amd64",
                   "Maintainer": "nobody <nobody@example.org>", "Description": "a stand-in"}  # fmt: skip
        tree = self.top / "tree"
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        (tree / "DEBIAN/control").write_text(stanza(control))
        folder.mkdir(exist_ok=True)
        deb = folder / f"{PACKAGE}.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
        content = deb.read_bytes()
        file = {"Filename": f"./{deb.name}", "Size": str(len(content)), "SHA256": hashlib.sha256(content).hexdigest()}
        index = stanza({**control, **file}).encode()
        (folder / "Packages").write_bytes(index)
        sums = f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
        release = {"Origin": "a stand-in", "Date": "Sat, 01 Nov 2025 00:00:00 UTC"}
        (folder / "Release").write_text(stanza(release) + sums)
        key.sign(folder / "Release", folder / "InRelease")


@contextmanager
def serving(folder: Path) -> Iterator[Foreign]:
    """Make the archive below ``folder`` and serve it while the block runs."""
    top = folder / "foreign"
    top.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(top))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        made = Foreign(top, tiny_archive.new_key(folder, "foreign"), f"http://127.0.0.1:{server.server_address[1]}")
        armoured = subprocess.run(
            ["gpg", "--homedir", made.key.home, "--batch", "--armor", "--export"], check=True, capture_output=True
        )
        (top / "gpgkey").write_bytes(armoured.stdout)
        made.publish(made.key)
        yield made
    finally:
        server.shutdown()
        server.server_close()

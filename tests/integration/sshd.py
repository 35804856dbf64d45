# SPDX-License-Identifier: Apache-2.0
"""A real OpenSSH server on loopback, for one test: a node as ssh sees it, with the user ``cc``, who may use sudo.

The program comes out of the archive's package, which is not installed, for installing it would open the machine it is
on.  It runs in namespaces of its own, as a build does, where the user accounts are its own.  ``systemctl`` and
``cloud-init`` are stand-ins that print what a test writes into a file.
"""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from groundwork import process
from image_builder import privilege
from node_automation import host_keys
from node_automation.host_keys import HostKey, Place

_START = """\
set -eu
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
for name in passwd shadow group sudoers; do mount --bind "$1/etc/$name" "/etc/$name"; done
if [ -e /etc/ssh ]; then mount --bind "$1/keys" /etc/ssh; fi
exec "$1/sshd" -D -e -f "$1/sshd_config"
"""
_CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {folder}/keys/ssh_host_ed25519_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/pid
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
Subsystem sftp internal-sftp
SetEnv PATH={folder}/bin:/usr/bin:/bin
"""


@dataclass(frozen=True)
class Node:
    """``key``: the host key that it was given; ``place``: where its keys are, and how sshd reads them again."""

    folder: Path
    port: int
    key: HostKey
    place: Place

    def public_key(self) -> str:
        """The host key that it has now."""
        text = (self.folder / "keys/ssh_host_ed25519_key.pub").read_text()
        return " ".join(text.split()[:2])

    def let_in(self, *public: str) -> None:
        """Let these keys in, and no others."""
        (self.folder / "authorized_keys").write_text("".join(f"{line}\n" for line in public))

    def says(self, program: str, text: str) -> None:
        """What a stand-in prints from now on."""
        (self.folder / "bin" / f"{program}.txt").write_text(text)


def program(folder: Path) -> Path:
    """sshd out of its package, below ``folder``."""
    if not (folder / "x/usr/sbin/sshd").exists():
        process.run(["apt-get", "download", "openssh-server"], cwd=folder, timeout=300)
        (package,) = folder.glob("openssh-server_*.deb")
        process.run(["dpkg-deb", "-x", package, folder / "x"], timeout=60)
    return folder / "x/usr/sbin/sshd"


@contextlib.contextmanager
def running(
    sshd: Path, authorized: str, given: HostKey | None = None, *, address: str = "127.0.0.1", port: int | None = None
) -> Iterator[Node]:
    """Start one with this host key, or with a fresh one, and end it."""
    folder = Path(tempfile.mkdtemp(prefix="sage-sshd-"))
    try:
        folder.chmod(0o755)
        shutil.copy(sshd, folder / "sshd")
        port = port or _free_port()
        key = given or host_keys.make()
        for name in ("etc", "keys", "bin", "home"):
            (folder / name).mkdir()
        (folder / "home").chmod(0o777)
        private = folder / "keys/ssh_host_ed25519_key"
        private.write_text(key.private)
        private.chmod(0o600)
        private.with_suffix(".pub").write_text(f"{key.public}\n")
        (folder / "sshd_config").write_text(_CONFIG.format(port=port, address=address, folder=folder))
        root, nobody = "root:x:0:0::/root:/bin/bash", "sshd:x:33333:33333::/run/sshd:/usr/sbin/nologin"
        (folder / "etc/passwd").write_text(f"{root}\n{nobody}\ncc:x:1000:1000::{folder}/home:/bin/bash\n")
        (folder / "etc/shadow").write_text("root:*:1::::::\nsshd:*:1::::::\ncc:*:1::::::\n")
        (folder / "etc/group").write_text("root:x:0:\nsshd:x:33333:\ncc:x:1000:\n")
        sudoers = folder / "etc/sudoers"
        sudoers.write_text("root ALL=(ALL) NOPASSWD: ALL\ncc ALL=(ALL) NOPASSWD: ALL\n")
        sudoers.chmod(0o440)
        for name in ("cloud-init", "systemctl"):
            stand_in = folder / "bin" / name
            restart = f'if [ "$1" = restart ]; then kill -HUP "$(cat {folder}/pid)"; fi'
            stand_in.write_text(f"#!/bin/sh\n{restart}\ncat {stand_in}.txt\n")
            stand_in.chmod(0o755)
        node = Node(folder, port, key, Place(f"{folder}/keys", f"kill -HUP $(cat {folder}/pid)"))
        node.let_in(authorized)
        node.says("cloud-init", '{"status": "done", "errors": []}\n')
        node.says("systemctl", "")
        with (folder / "log").open("wb") as log:
            way = privilege.find_way()
            assert way is not None, "sshd takes root, or a user namespace"
            command = [*privilege.namespaces(way), "sh", "-c", _START, "sh", folder]
            server = process.start(command, stdout=log, stderr=log)
        try:
            _wait_for(address, port, folder)
            yield node
        finally:
            process.stop(server)
    finally:
        shutil.rmtree(folder)


def _wait_for(address: str, port: int, folder: Path) -> None:
    for _ in process.poll_until(20.0, 0.05):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
    raise RuntimeError(f"sshd does not start: {(folder / 'log').read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

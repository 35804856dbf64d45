# SPDX-License-Identifier: Apache-2.0
"""Ubuntu's images, from an archive of Ubuntu's layout on loopback; and archives that must not be trusted.

What this proves and what not: ``docs/verification.md``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder import manifest
from tests.integration import commands, ubuntu_archive
from tests.integration.commands import Ran
from tests.integration.ubuntu_archive import Flaw, Served, UbuntuArchive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> UbuntuArchive:
    return ubuntu_archive.make(tmp_path_factory.mktemp("ubuntu"))


@pytest.fixture(scope="module")
def server(archive: UbuntuArchive) -> Iterator[Served]:
    with ubuntu_archive.served(archive.folder) as running:
        yield running


def own_variant(folder: Path, text: str) -> tuple[str | Path, ...]:
    """A variant of the test's own, and where the build may write."""
    (folder / "variants").mkdir()
    (folder / "variants/own.yaml").write_text(f"description: a test's own\n{text}")
    return (
        *("--variant", "own", "--variants-dir", folder / "variants", "--elements-dir", folder),
        *("--output-dir", folder / "build", "--cache-dir", folder / "cache"),
    )


def proof(release: str, version: str, build_id: str) -> str:
    """``sage``, asked also for what only this archive could have put into it."""
    return f"""\
extends: sage
image_name: "Sage-{{os}}{{version}}{{arch}}"
elements: []
checks:
  - name: os-release is that of the archive's base-files
    run: |
      . /etc/os-release
      test "$ID $VERSION_ID $VERSION_CODENAME $BUILD_ID" = "ubuntu {version} {release} {build_id}"
      grep -q '^menuentry "Ubuntu {version} LTS, with Linux ' <(sudo cat /boot/grub/grub.cfg)
  - name: what updates and security have is newer and was taken
    run: |
      dpkg-query --show less openssh-server
      dpkg-query --show --showformat='${{Version}}' less | grep -q 'ubuntu0\\.1$'
      dpkg-query --show --showformat='${{Version}}' openssh-server | grep -q 'ubuntu0\\.2$'
  - name: cloud-init wrote the network for netplan
    run: |
      sudo cat /etc/netplan/50-cloud-init.yaml
      networkctl --no-pager --no-legend list | grep -E ' ether +routable +configured'
      (! ls /etc/network/interfaces.d 2> /dev/null | grep .)
  - name: ssh's own service listens, no socket for it, and nothing was left out to break a circle
    run: |
      systemctl is-active --quiet ssh.service
      (! systemctl is-active --quiet ssh.socket)
      (! sudo journalctl --boot --no-pager | grep -i 'ordering cycle')
  - name: docker compose is Ubuntu's plugin
    run: docker compose version && dpkg-query --show docker-compose-v2
    timeout: 120
  - name: users' apt knows Ubuntu's archive and the keys of its keyring package, not the build's
    run: |
      for suite in {release} {release}-updates {release}-security; do
        grep -qx "deb http://archive.ubuntu.com/ubuntu $suite main restricted universe multiverse" /etc/apt/sources.list
      done
      test "$(grep -c . /etc/apt/sources.list)" = 3
      test "$(ls /etc/apt/trusted.gpg.d)" = ubuntu-keyring-2018-archive.gpg
      (! sudo grep -rl 127.0.0.1: /etc/apt)
"""


def test_noble_is_built_and_boots(archive: UbuntuArchive, server: Served, tmp_path: Path) -> None:
    words = own_variant(tmp_path, proof("noble", "24.04", archive.build_id))
    archive_words = ("--release", "noble", "--mirror", server.mirror(), "--keyring", archive.keyring)
    done = commands.run("create-image", *words, *archive_words)
    assert done.code == 0, done.err
    made, _ = manifest.read(next((tmp_path / "build").glob("Sage-Ubuntu24.04/*")))
    assert (made.os_name, made.os_version, made.release) == ("Ubuntu", "24.04", "noble")
    versions = {package.name: package.version for package in made.packages}
    assert {"linux-image-generic", "netplan.io", "docker-compose-v2", "initramfs-tools"} <= versions.keys()
    assert not versions.keys() & {"snapd", "ifupdown", "debian-archive-keyring", "dracut"}
    assert versions["base-files"] == "24.04ubuntu1"
    # Nothing was taken from elsewhere: each package is of this archive, and each suite was read.
    assert set(versions.items()) <= set(archive.packages("noble"))
    for suite in ("noble", "noble-updates", "noble-security"):
        assert f"/ubuntu/dists/{suite}/InRelease" in server.asked
    again = commands.run("create-image", *words, *archive_words, timeout=60)
    assert "Nothing has changed" in again.err


@pytest.mark.long
def test_resolute_boots_with_an_initramfs_of_dracuts(archive: UbuntuArchive, server: Served, tmp_path: Path) -> None:
    text = (
        proof("resolute", "26.04", archive.build_id)
        + """\
  - name: dracut made the initramfs, for any machine, and makes the next one so too
    timeout: 300
    run: |
      initramfs=/boot/initrd.img-$(uname -r)
      sudo lsinitrd "$initramfs" > /tmp/listed
      grep -q '^Version: dracut' /tmp/listed
      grep -q 'usr/lib/modules/.*/mlx5_core' /tmp/listed || grep -q 'usr/lib/modules/.*/nvme\\.ko' /tmp/listed
      (! dpkg-query --show --showformat='${db:Status-Status}\\n' initramfs-tools 2> /dev/null | grep -qx installed)
      grep -qx 'hostonly="no"' /etc/dracut.conf.d/50-sage.conf
"""
    )
    words = own_variant(tmp_path, text)
    archive_words = ("--release", "resolute", "--mirror", server.mirror(), "--keyring", archive.keyring)
    done = commands.run("create-image", *words, *archive_words)
    assert done.code == 0, done.err
    log = next((tmp_path / "build").glob("Sage-Ubuntu26.04/*/build.log")).read_text(errors="replace")
    assert log.count("dracut: *** Creating image file") == 1


# ------------------------------------------------------------------------------- archives that must not be trusted

BARE = 'image_name: "Own"\nelements: [root-tree]\n'


def build_from(server: Served, archive: UbuntuArchive, flaw: Flaw, words: tuple[str | Path, ...], keyring: Path) -> Ran:
    mirror = ("--release", "noble", "--mirror", server.mirror(flaw), "--keyring", keyring)
    return commands.run("create-image", *words, *mirror, "--no-verify", timeout=300)


@pytest.mark.parametrize(
    ("flaw", "complaint", "hint"),
    [
        (Flaw.OTHER_KEY, "the archive at {mirror} noble is not signed with a key of {keyring}: ", "needs --keyring"),
        (Flaw.UNSIGNED, "the archive at {mirror} noble is not signed with a key of {keyring}: ", "needs --keyring"),
        (Flaw.INRELEASE, "following signatures were invalid: BADSIG {key_id}", "needs --keyring"),
        (Flaw.PACKAGES, "an index of the archive at {mirror} noble came damaged", "another --mirror"),
        (Flaw.DEB, "{mirror}/pool/main/b/base-files/base-files_24.04ubuntu1_amd64.deb is not the file", "--mirror"),
    ],
    ids=lambda value: value if isinstance(value, Flaw) else "",
)
def test_an_archive_that_is_not_what_was_signed_ends_the_build(
    flaw: Flaw, complaint: str, hint: str, archive: UbuntuArchive, server: Served, tmp_path: Path
) -> None:
    done = build_from(server, archive, flaw, own_variant(tmp_path, BARE), archive.keyring)
    assert done.code == 1
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert complaint.format(mirror=server.mirror(flaw), keyring=archive.keyring, key_id=archive.key_id) in error
    assert hint in done.err
    assert list((tmp_path / "cache").glob("work/*")) == []
    assert list((tmp_path / "cache").glob("layers/*")) == []
    assert not (tmp_path / "build").exists()


def test_a_key_that_the_keyring_lacks_ends_the_build(archive: UbuntuArchive, server: Served, tmp_path: Path) -> None:
    """Also one that this machine's own apt trusts is no help: Debian's archive is signed by its keys, not by ours."""
    done = build_from(server, archive, Flaw.NONE, own_variant(tmp_path, BARE), archive.other_keyring)
    assert done.code == 1
    assert f"is not signed with a key of {archive.other_keyring}" in done.err
    assert f"NO_PUBKEY {archive.key_id}" in done.err
    debian_words = ("--release", "bookworm", "--keyring", archive.keyring, "--no-verify")
    debian = commands.run("create-image", *own_words(tmp_path), *debian_words, timeout=300)
    assert debian.code == 1
    assert f"is not signed with a key of {archive.keyring}" in debian.err


def own_words(folder: Path) -> tuple[str | Path, ...]:
    """The words of a variant made before."""
    return (
        *("--variant", "own", "--variants-dir", folder / "variants"),
        *("--output-dir", folder / "build", "--cache-dir", folder / "cache"),
    )


def test_a_keyring_that_is_not_there_is_wrong_input(archive: UbuntuArchive, server: Served, tmp_path: Path) -> None:
    done = build_from(server, archive, Flaw.NONE, own_variant(tmp_path, BARE), tmp_path / "none.gpg")
    assert done.code == 2
    assert "none.gpg: No such file" in done.err


def test_an_archive_that_is_changed_in_mid_build_ends_it(tmp_path: Path) -> None:
    """Apt in the tree checks as well as mmdebstrap did: the same keys, and no old index in place of a bad one."""
    archive = ubuntu_archive.make(tmp_path / "ubuntu")
    with ubuntu_archive.served(archive.folder) as server:
        hook = tmp_path / "own/root.d/70-own"  # after mmdebstrap, before ubuntu-minimal's first apt-get update
        hook.parent.mkdir(parents=True)
        good, bad = (archive.folder / flaw / "dists" for flaw in (Flaw.NONE, Flaw.OTHER_KEY))
        hook.write_text(f"#!/bin/bash\nset -eu\nmv {good} {good}.good\nln -s {bad} {good}\n")
        hook.chmod(0o755)
        words = own_variant(tmp_path, BARE.replace("root-tree", "root-tree, own"))
        done = build_from(server, archive, Flaw.NONE, words, archive.keyring)
    assert done.code == 1
    assert f"the archive {server.mirror()} noble is signed by the key " in done.err

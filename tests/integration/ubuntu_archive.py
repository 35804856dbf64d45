# SPDX-License-Identifier: Apache-2.0
"""An archive of Ubuntu's layout, made of Debian 12's packages, with a signing key of its own, served on loopback.

Debian's own tools make it: apt-get fetches the packages, dpkg-deb repacks some, apt-ftparchive describes them, gpg
signs.  Names that only Ubuntu has are stand-ins.  What this proves and what not is said in ``docs/verification.md``.

Beside the good archive lie some that an attacker, or a broken mirror, might serve: see :class:`Flaw`.
"""

import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from groundwork import files
from groundwork.compat import StrEnum
from image_builder.settings import CACHE_DIR
from tests.package_names import ASKED_FOR, IN_CONTAINERS

RELEASES = {"jammy": "22.04", "noble": "24.04", "resolute": "26.04"}
POCKETS = ("", "-updates", "-security")
COMPONENTS = ("main", "restricted", "universe", "multiverse")
# Names that Ubuntu has in universe, as far as they matter here.
_UNIVERSE = {
    *("busybox", "containerd", "docker-compose", "docker-compose-v2", "docker.io", "firewalld", "jq", "python3-pika"),
    "runc",
}
_DEBIAN = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SOURCES = f"""\
deb [signed-by={_DEBIAN}] http://deb.debian.org/debian bookworm main
deb [signed-by={_DEBIAN}] http://deb.debian.org/debian bookworm-updates main
deb [signed-by={_DEBIAN}] http://deb.debian.org/debian-security bookworm-security main
"""
# What only Ubuntu has -> what stands in for it.
_STAND_INS = {"linux-image-generic": "linux-image-amd64", "docker-compose-v2": "docker-compose"}


class Flaw(StrEnum):
    """What is wrong with an archive."""

    NONE = "ubuntu"
    OTHER_KEY = "signed-by-another-key"
    UNSIGNED = "unsigned"
    INRELEASE = "tampered-inrelease"
    PACKAGES = "tampered-packages"
    DEB = "tampered-deb"


@dataclass(frozen=True)
class UbuntuArchive:
    """Archives in ``folder``, one a flaw.

    ``keyring`` has the public key, of id ``key_id``, that signed the good one; ``other_keyring`` one that signed
    nothing but what is flawed so.  ``build_id`` stands in os-release of base-files.
    """

    folder: Path
    keyring: Path
    key_id: str
    other_keyring: Path
    build_id: str

    def packages(self, release: str) -> list[tuple[str, str]]:
        """Name and version of all that the release's suites have."""
        found = []
        for index in (self.folder / Flaw.NONE / "dists").glob(f"{release}*/*/binary-amd64/Packages.gz"):
            text = gzip.decompress(index.read_bytes()).decode()
            found += re.findall(r"^Package: (\S+)$(?:\n.+$)*?\nVersion: (\S+)$", text, re.M)
        return found


def make(folder: Path) -> UbuntuArchive:
    """Make the archives in a folder: some 4 s, once the packages are in the cache."""
    files.make_folder(folder)
    cache = files.make_folder(CACHE_DIR.default / "tests/ubuntu-archive")
    with files.lock(cache / "lock", wait=1800), _signing_keys() as (key, other_key, homes):
        debs = _fetch(cache)
        build_id = hashlib.sha256(key.read_bytes()).hexdigest()[:16]
        archive = folder / Flaw.NONE
        placed = _fill_pool(archive / "pool", debs, other_key, build_id)
        stanzas = _describe(archive)
        for release, version in RELEASES.items():
            for pocket in POCKETS:
                suite = release + pocket
                here = [(place.component, stanzas[name]) for name, place in placed.items() if suite in place.suites]
                _write_suite(archive / "dists", release, pocket, version, here)
        for folder_of_suite in (archive / "dists").iterdir():
            _sign(folder_of_suite, homes[0])
        keyrings = folder / "keyring.gpg", folder / "other-keyring.gpg"
        for source, target in zip((key, other_key), keyrings, strict=True):
            shutil.copyfile(source, target)
        key_id = _key_id(homes[0])
        for flaw in set(Flaw) - {Flaw.NONE}:
            _spoil(folder, flaw, homes[1])
    return UbuntuArchive(folder, keyrings[0], key_id, keyrings[1], build_id)


@dataclass(frozen=True)
class Served:
    """A running server: its address, and the paths it was asked for."""

    url: str
    asked: list[str]

    def mirror(self, flaw: Flaw = Flaw.NONE) -> str:
        return f"{self.url}/{flaw}"


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a folder by HTTP on a free port of loopback."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # apt sends many requests over one connection

        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Served(f"http://127.0.0.1:{server.server_port}", asked)
        finally:
            server.shutdown()


# ------------------------------------------------------------------------------------------------------- packages


def _fetch(cache: Path) -> dict[str, Path]:
    """Package's name -> its file: all that an image of any release needs, without recommended packages."""
    wanted = IN_CONTAINERS | {_STAND_INS.get(name, name) for release in RELEASES for name in ASKED_FOR[release]}
    # dracut and initramfs-tools exclude each other
    rounds = [sorted(wanted - {"dracut"}), sorted(wanted - {"initramfs-tools"})]
    state = files.digest_text(_SOURCES + repr(rounds))
    stamp = cache / "fetched"
    archives = cache / "apt/var/cache/apt/archives"
    if not stamp.exists() or stamp.read_text() != state:
        files.remove_tree(cache / "apt")
        _apt_root(cache / "apt")
        apt = ["apt-get", "--quiet", "--quiet", "--assume-yes", "--no-install-recommends"]
        environment = {**os.environ, "APT_CONFIG": str(cache / "apt/apt.conf")}
        _run([*apt, "--error-on=any", "update"], env=environment)
        for names in rounds:
            _run([*apt, "install", "--download-only", "?essential", "?priority(required)", *names], env=environment)
        files.write_text(stamp, state)
    return {path.name.split("_")[0]: path for path in archives.glob("*.deb")}


def _apt_root(root: Path) -> None:
    """An apt of its own, for a machine on which nothing is installed."""
    for name in ("etc/apt", "var/lib/dpkg", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        files.make_folder(root / name)
    files.write_text(root / "var/lib/dpkg/status", "")
    files.write_text(root / "etc/apt/sources.list", _SOURCES)
    files.write_text(
        root / "apt.conf",
        f'Dir "{root}"; Dir::State::status "{root}/var/lib/dpkg/status"; APT::Sandbox::User "root";\n'
        'APT::Architecture "amd64"; APT::Architectures { "amd64"; }; Acquire::Languages "none";\n',
    )


@dataclass(frozen=True)
class _Place:
    component: str
    suites: frozenset[str]


def _fill_pool(pool: Path, debs: dict[str, Path], keyring: Path, build_id: str) -> dict[str, _Place]:
    """Put packages and stand-ins into the pool; file's path as Packages has it -> where it is listed."""
    everywhere = frozenset(RELEASES)
    placed: dict[str, _Place] = {}

    def put(deb: Path, suites: Iterable[str]) -> None:
        name = deb.name.split("_")[0]
        component = "universe" if name in _UNIVERSE else "main"
        target = files.make_folder(pool / component / name[0] / name) / deb.name.replace("%3a", ":")
        try:
            target.hardlink_to(deb)
        except OSError:  # another file system
            shutil.copyfile(deb, target)
        placed[str(target.relative_to(pool.parent))] = _Place(component, frozenset(suites))

    for name, deb in debs.items():
        if name not in ("base-files", "debian-archive-keyring"):
            put(deb, everywhere)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for release, version in RELEASES.items():
            put(_base_files(debs["base-files"], work, release, version, build_id), [release])
        put(_keyring(keyring, work), everywhere)
        put(_kernel(work), everywhere)
        put(_compose(work), everywhere)
        put(_newer(debs["less"], work), [f"{release}-updates" for release in RELEASES])
        put(_ssh_by_socket(debs["openssh-server"], work), [f"{release}-security" for release in RELEASES])
    return placed


def _unpacked(deb: Path, work: Path) -> Path:
    tree = Path(tempfile.mkdtemp(dir=work))
    _run(["dpkg-deb", "--raw-extract", deb, tree])
    return tree


def _packed(tree: Path, work: Path) -> Path:
    """The tree as a package, named by its control file."""
    (tree / "DEBIAN/md5sums").unlink(missing_ok=True)
    tree.chmod(0o755)
    fields = dict(re.findall(r"^(Package|Version|Architecture): (.*)$", (tree / "DEBIAN/control").read_text(), re.M))
    deb = work / f"{fields['Package']}_{fields['Version'].replace(':', '%3a')}_{fields['Architecture']}.deb"
    _run(["dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "--build", tree, deb])
    return deb


def _change_control(tree: Path, pattern: str, replacement: str) -> None:
    control = tree / "DEBIAN/control"
    text, count = re.subn(pattern, replacement, control.read_text(), flags=re.M)
    assert count == 1, f"{control} has no {pattern}"
    control.write_text(text)


def _stand_in(work: Path, name: str, version: str, fields: str) -> Path:
    tree = Path(tempfile.mkdtemp(dir=work))
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nSection: misc\nPriority: optional\n"
        f"Maintainer: a test <test@example.org>\n{fields}Description: stand-in for Ubuntu's {name}\n"
    )
    return tree


def _base_files(deb: Path, work: Path, release: str, version: str, build_id: str) -> Path:
    """Debian's with Ubuntu's names in it."""
    tree = _unpacked(deb, work)
    _change_control(tree, "^Version: .*", f"Version: {version}ubuntu1")
    codename = {"jammy": "Jammy Jellyfish", "noble": "Noble Numbat", "resolute": "Resolute Raccoon"}[release]
    (tree / "usr/lib/os-release").write_text(
        textwrap.dedent(f"""\
            PRETTY_NAME="Ubuntu {version} LTS"
            NAME="Ubuntu"
            VERSION_ID="{version}"
            VERSION="{version} LTS ({codename})"
            VERSION_CODENAME={release}
            ID=ubuntu
            ID_LIKE=debian
            HOME_URL="https://www.ubuntu.com/"
            UBUNTU_CODENAME={release}
            BUILD_ID={build_id}
            """)
    )
    (tree / "etc/issue").write_text(f"Ubuntu {version} LTS \\n \\l\n\n")
    (tree / "etc/issue.net").write_text(f"Ubuntu {version} LTS\n")
    return _packed(tree, work)


def _keyring(keyring: Path, work: Path) -> Path:
    """Ubuntu's keyring, with a key that signed nothing here: what checks this archive must come from the build."""
    tree = _stand_in(work, "ubuntu-keyring", "2023.11.28.1", "Provides: debian-archive-keyring\n")
    for place in (
        "usr/share/keyrings/ubuntu-archive-keyring.gpg",
        "etc/apt/trusted.gpg.d/ubuntu-keyring-2018-archive.gpg",
    ):
        files.make_folder((tree / place).parent)
        shutil.copyfile(keyring, tree / place)
    return _packed(tree, work)


def _kernel(work: Path) -> Path:
    depends = "Depends: linux-image-amd64\n"
    return _packed(_stand_in(work, "linux-image-generic", "6.8.0-31.31", depends), work)


def _compose(work: Path) -> Path:
    """The plugin, at its place; what answers is Debian's older Compose."""
    tree = _stand_in(work, "docker-compose-v2", "2.24.6+ds1-0ubuntu2", "Depends: docker-compose, docker.io\n")
    plugin = tree / "usr/libexec/docker/cli-plugins/docker-compose"
    files.make_folder(plugin.parent)
    about = '{"SchemaVersion":"0.1.0","Vendor":"a test","Version":"2.24.6"}'
    plugin.write_text(
        f"#!/bin/sh\n[ \"$1\" != docker-cli-plugin-metadata ] || {{ echo '{about}'; exit 0; }}\n"
        '[ "$1" != compose ] || shift\nexec /usr/bin/docker-compose "$@"\n'
    )
    plugin.chmod(0o755)
    return _packed(tree, work)


def _newer(deb: Path, work: Path) -> Path:
    tree = _unpacked(deb, work)
    _change_control(tree, "^Version: (.*)", r"Version: \1ubuntu0.1")
    return _packed(tree, work)


def _ssh_by_socket(deb: Path, work: Path) -> Path:
    """OpenSSH as a security update, whose server is started by its socket, as noble's is."""
    tree = _unpacked(deb, work)
    _change_control(tree, "^Version: (.*)", r"Version: \1ubuntu0.2")
    (tree / "lib/systemd/system/ssh.socket").write_text(
        "[Unit]\nDescription=OpenBSD Secure Shell server socket\nBefore=sockets.target ssh.service\n"
        "ConditionPathExists=!/etc/ssh/sshd_not_to_be_run\n\n[Socket]\nListenStream=22\nAccept=no\nFreeBind=yes\n\n"
        "[Install]\nWantedBy=sockets.target\nRequiredBy=ssh.service\n"
    )
    script = tree / "DEBIAN/postinst"
    with script.open("r+") as stream:
        text = stream.read().rstrip().removesuffix("exit 0")
        stream.seek(0)
        stream.write(f"{text}\nsystemctl --quiet disable ssh.service\nsystemctl --quiet enable ssh.socket\nexit 0\n")
    return _packed(tree, work)


# --------------------------------------------------------------------------------------------------------- indexes


def _describe(archive: Path) -> dict[str, str]:
    """Path of a package's file -> its stanza."""
    text = _run(["apt-ftparchive", *_no("MD5", "SHA1", "SHA512"), "packages", "pool"], cwd=archive)
    stanzas = [stanza for stanza in text.split("\n\n") if stanza.strip()]
    return {re.search(r"^Filename: (.*)$", stanza, re.M)[1]: stanza for stanza in stanzas}  # type: ignore[index]


def _no(*digests: str) -> list[str]:
    return [f"--option=APT::FTPArchive::{name}=false" for name in digests]


def _write_suite(dists: Path, release: str, pocket: str, version: str, stanzas: list[tuple[str, str]]) -> None:
    suite = dists / (release + pocket)
    for component in COMPONENTS:
        folder = files.make_folder(suite / component / "binary-amd64")
        text = "".join(f"{stanza}\n\n" for listed, stanza in stanzas if listed == component).encode()
        (folder / "Packages").write_bytes(text)  # listed in Release, and not kept, as Ubuntu does
        (folder / "Packages.xz").write_bytes(lzma.compress(text, preset=1))
        (folder / "Packages.gz").write_bytes(gzip.compress(text, 6, mtime=0))
        (folder / "Release").write_text(
            f"Archive: {suite.name}\nComponent: {component}\nOrigin: Ubuntu\nLabel: Ubuntu\nArchitecture: amd64\n"
        )
    fields = {
        "Origin": "Ubuntu",
        "Label": "Ubuntu",
        "Suite": suite.name,
        "Codename": release,
        "Version": version,
        "Architectures": "amd64",
        "Components": " ".join(COMPONENTS),
        "Acquire-By-Hash": "yes",
        "Description": f"Ubuntu {release.capitalize()} {version}",
    }
    options = [f"--option=APT::FTPArchive::Release::{key}={value}" for key, value in fields.items()]
    (suite / "Release").write_text(
        _run(["apt-ftparchive", *_no("MD5", "SHA1", "SHA512"), *options, "release", "."], cwd=suite)
    )
    for index in suite.glob("*/binary-amd64/*"):
        if index.name == "Packages":
            index.unlink()
            continue
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        by_hash = files.make_folder(index.parent / "by-hash/SHA256") / digest
        if not by_hash.exists():
            by_hash.hardlink_to(index)


@contextmanager
def _signing_keys() -> Iterator[tuple[Path, Path, tuple[Path, Path]]]:
    """Two fresh keys: their public parts, and the homes that gpg signs from."""
    with tempfile.TemporaryDirectory(prefix="gpg") as scratch:  # a short path, for the agent's socket
        homes = Path(scratch) / "one", Path(scratch) / "two"
        for home in homes:
            home.mkdir(mode=0o700)
            _gpg(
                home,
                "--passphrase",
                "",
                "--quick-generate-key",
                f"Archive {home.name} <test@example.org>",
                "ed25519",
                "sign",
            )
            _gpg(home, "--output", home / "public.gpg", "--export")
        try:
            yield homes[0] / "public.gpg", homes[1] / "public.gpg", homes
        finally:
            for home in homes:
                subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


def _gpg(home: Path, *words: str | Path) -> None:
    _run(["gpg", "--homedir", home, "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", *words])


def _key_id(home: Path) -> str:
    listed = _run(["gpg", "--homedir", home, "--batch", "--with-colons", "--list-keys"])
    return next(line.split(":")[4] for line in listed.splitlines() if line.startswith("pub:"))


def _sign(suite: Path, home: Path) -> None:
    for flag, name in (("--clearsign", "InRelease"), ("--detach-sign", "Release.gpg")):
        _gpg(home, "--armor", flag, "--output", suite / name, suite / "Release")


def _spoil(folder: Path, flaw: Flaw, other_home: Path) -> None:
    """Make an archive that has this flaw in its first suite, and share the rest with the good one."""
    good, bad = folder / Flaw.NONE, folder / flaw
    shutil.copytree(good / "dists", bad / "dists")
    (bad / "pool").symlink_to(good / "pool")
    for release in RELEASES:
        suite = bad / "dists" / release
        if flaw is Flaw.OTHER_KEY:
            _sign(suite, other_home)
        elif flaw is Flaw.UNSIGNED:
            (suite / "InRelease").unlink()
            (suite / "Release.gpg").unlink()
        elif flaw is Flaw.INRELEASE:
            for name in ("InRelease", "Release"):
                text = (suite / name).read_text()
                (suite / name).write_text(text.replace("Label: Ubuntu", "Label: ubuntu"))
        elif flaw is Flaw.PACKAGES:
            for index in (suite / "main").rglob("*"):
                if index.is_file() and index.name != "Release":
                    _flip_last_bit(index)
    if flaw is Flaw.DEB:
        (bad / "pool").unlink()
        shutil.copytree(good / "pool", bad / "pool", copy_function=os.link)
        for deb in (bad / "pool").glob("main/b/base-files/*.deb"):
            _flip_last_bit(deb)


def _flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # it may be a link
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _run(words: list[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


if __name__ == "__main__":  # to look at one: python -m tests.integration.ubuntu_archive FOLDER
    made = make(Path(sys.argv[1]).absolute())
    with served(made.folder) as server:
        print(f"--mirror {server.mirror()} --keyring {made.keyring}", flush=True)
        threading.Event().wait()

# SPDX-License-Identifier: Apache-2.0
"""One layer of a container image: packages unpacked over each other into a tar, the same bits each time.

None of the packages' scripts are run.  All lies below /usr (``/bin`` and its like are links); documentation but
for the copyright files, manuals and translations are left out.  Each package leaves a file in
``/var/lib/dpkg/status.d``, where scanners look for it.
"""

import hashlib
import io
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from groundwork.errors import SageError
from virtual_waggle.containers import debs
from virtual_waggle.containers.debs import Deb
from virtual_waggle.containers.definition import Layer, User

_MERGED = ("bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin")
_LEFT_OUT = re.compile(
    r"usr/share/(man|info|locale|lintian|bug|linda|doc-base|bash-completion|zsh)(/|$)"
    r"|usr/share/doc/(?![^/]+(/copyright)?$)|etc/(cron\.|init\.d|logrotate\.d|default/)|lib/systemd/|usr/lib/systemd/"
)
_PROGRAMS = ("virtual-waggle", "beehive-server")


class LayerTar:
    """Writes a layer: first what its definition says, then its packages.

    ``epoch`` is the time of all that comes from no package.
    """

    def __init__(self, output: IO[bytes], definition: Layer, epoch: int) -> None:
        self._tar = tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20)  # noqa: SIM115 - closed below
        self._definition = definition
        self._claimed: set[str] = set()
        # "*" stands for part of one name
        patterns = [re.escape(_place(path)).replace(r"\*", "[^/]*") + "(/|$)" for path in definition.without]
        self._left_out = re.compile("|".join([_LEFT_OUT.pattern, *patterns]))
        self._epoch = epoch
        self._folders: set[str] = set()
        self._seen: set[str] = set()

    def close(self) -> None:
        self._tar.close()

    def packages(self, found: Sequence[Deb], tree: Path | None) -> None:
        """Unpack packages; what is there already stays.

        Bytecode that fits is taken from ``tree``, where the same packages are installed.
        """
        self._claimed = set(self._seen)
        for deb in found:
            with debs.contents(deb) as stream:
                for member in stream:
                    self._member(deb, stream, member, tree)
        for deb in found:
            self.file(f"/var/lib/dpkg/status.d/{deb.name}", deb.control.rstrip("\n") + "\n")

    def accounts(self, passwd: str, group: str, users: Sequence[User]) -> None:
        """The distribution's own accounts and these, each with its home."""
        lines = [f"{user.name}:x:{user.id}:{user.id}::{user.home}:/usr/sbin/nologin" for user in users]
        self.file("/etc/passwd", passwd + "".join(line + "\n" for line in lines))
        self.file("/etc/group", group + "".join(f"{user.name}:x:{user.id}:\n" for user in users))
        for user in users:
            self.folder(user.home, user.id)

    def additions(self) -> None:
        """What the definition says beside packages and users."""
        layer = self._definition
        owners = {"root": 0, **{user.name: user.id for user in layer.users}}
        for path, owner in layer.folders:
            self.folder(path, owners[owner])
        for path, target in layer.links:
            info = self._info(path, tarfile.SYMTYPE, 0o777)
            info.linkname = target
            self._add(info)
        for path, text in layer.files:
            self.file(path, text)

    def project(self, tree: Path) -> None:
        """This project's packages and commands, as they lie in the image's own tree."""
        for top in (tree / "opt/virtual-waggle/groundwork", tree / "opt/virtual-waggle/virtual_waggle"):
            for path in sorted(top.rglob("*")):
                name = "/" + path.relative_to(tree).as_posix()
                if path.is_dir():
                    self.folder(name, 0)
                else:
                    self.file(name, path.read_bytes())
        for program in _PROGRAMS:
            path = tree / "usr/local/bin" / program
            self.file("/usr/local/bin/" + program, path.read_bytes(), mode=0o755)

    def merged_folders(self) -> None:
        """``/bin``, ``/lib`` and ``/sbin`` as links into /usr.  Comes first, in the base layer."""
        for name in _MERGED:
            if name in ("bin", "lib", "lib64", "sbin"):
                info = self._info("/" + name, tarfile.SYMTYPE, 0o777)
                info.linkname = "usr/" + name
                self._add(info)
        for path in ("/etc", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin", "/var", "/var/lib"):
            self.folder(path, 0)

    def folder(self, path: str, owner: int) -> None:
        info = self._info(path, tarfile.DIRTYPE, 0o755)
        info.uid = info.gid = owner
        self._add(info)

    def file(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        data = content.encode() if isinstance(content, str) else content
        info = self._info(path, tarfile.REGTYPE, mode)
        info.size = len(data)
        self._add(info, io.BytesIO(data))

    def _member(self, deb: Deb, stream: tarfile.TarFile, member: tarfile.TarInfo, tree: Path | None) -> None:
        name = _place(member.name)
        if not name or name in _MERGED or name in self._claimed or self._left_out.match(name):
            return
        if member.ischr() or member.isblk() or member.isfifo():
            raise SageError(f"{deb.path} holds a device, {member.name}, which no container image may have")
        member.name = name
        member.uname = member.gname = ""
        member.mtime = int(member.mtime)
        member.pax_headers = {}
        if member.islnk():
            member.linkname = _place(member.linkname)
        content = stream.extractfile(member).read() if member.isreg() else b""  # type: ignore[union-attr]
        self._add(member, io.BytesIO(content))
        if tree is not None and name.endswith(".py"):
            for path, bytecode in _bytecode(name, content, int(member.mtime), tree):
                info = self._info(path, tarfile.REGTYPE, 0o644)
                info.mtime, info.size = member.mtime, len(bytecode)
                self._add(info, io.BytesIO(bytecode))

    def _info(self, path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(_place(path))
        info.type, info.mode, info.mtime = kind, mode, self._epoch
        return info

    def _add(self, info: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        self._parents(posixpath.dirname(info.name))
        if info.isdir():
            if info.name in self._folders:
                return
            self._folders.add(info.name)
        elif info.name in self._seen:
            # a bug of the distribution's, or one package meant to replace another's file: look at it
            raise SageError(f"two packages of one layer hold {info.name}")
        self._seen.add(info.name)
        self._tar.addfile(info, content if info.isreg() else None)

    def _parents(self, folder: str) -> None:
        if folder and folder not in self._folders:
            self._add(self._info(folder, tarfile.DIRTYPE, 0o755))


def _place(name: str) -> str:
    """A path inside a container, without the leading slash, below /usr where that is its real place."""
    name = posixpath.normpath("/" + name).lstrip("/")
    first, _, rest = name.partition("/")
    return f"usr/{name}" if first in _MERGED and rest else name


def bytecode_digest(tree: Path) -> str:
    """SHA-256 over the bytecode in ``tree`` that layers may take."""
    total = hashlib.sha256()
    for path in sorted((tree / "usr/lib").glob("python3*/**/__pycache__/*.pyc")):
        total.update(path.relative_to(tree).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _bytecode(name: str, source: bytes, mtime: int, tree: Path) -> Iterator[tuple[str, bytes]]:
    """The bytecode that ``tree`` has of a module, where Python would take it for this very source (PEP 552)."""
    path = tree / name
    for found in sorted(path.parent.glob(f"__pycache__/{path.stem}.cpython-3*.pyc")):
        data = found.read_bytes()
        flags, when, size = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12))
        by_time = flags == 0 and (when, size) == (mtime & 0xFFFFFFFF, len(source) & 0xFFFFFFFF)
        unchecked = flags == 1 and path.read_bytes() == source
        if (by_time or unchecked) and re.fullmatch(re.escape(path.stem) + r"\.cpython-3\d+\.pyc", found.name):
            yield f"/{posixpath.dirname(name)}/__pycache__/{found.name}", data

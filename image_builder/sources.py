# SPDX-License-Identifier: Apache-2.0
"""A variant's further sources: fetched before the tree is built, checked against their digests, kept by them.

What comes from the network is believed only where its digest is the one that the variant names: a commit and its
tree for git, the SHA-256 of the file for an archive.
"""

import hashlib
import lzma
import os
import posixpath
import re
import stat
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path

from groundwork import files, process
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError
from image_builder.manifest import FurtherSource
from image_builder.variant import Source, SourceKind

_DEADLINE = 1800.0  # seconds for one source
_SILENCE = 60.0  # seconds that a server may say nothing
_LARGEST = 4 << 30  # bytes of a download, and of what is in it
_MOST = 500_000  # files in an archive
_BLOCK = 1 << 20
_AGENT = "sage-chameleon"
# Neither the user's configuration nor the repository's attributes change what is taken out of a commit.
_ATTRIBUTES = "* -text !eol !filter !ident !working-tree-encoding !export-ignore !export-subst\n"
_GIT = {
    "GIT_ALLOW_PROTOCOL": "git:http:https:ssh",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C.UTF-8",
}
_SETTINGS = [
    *("-c", "core.hooksPath=/dev/null", "-c", "fetch.fsckObjects=true", "-c", "submodule.recurse=false"),
    *("-c", "safe.directory=*"),  # the cache may be another user's
]
_NOT_THERE = re.compile(r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref")


def programs(sources: Sequence[Source]) -> set[str]:
    """The system programs that fetching these takes."""
    return {"git", "prlimit"} if any(source.kind is SourceKind.GIT for source in sources) else set()


def record(sources: Sequence[Source]) -> tuple[FurtherSource, ...]:
    """What the manifest says of them."""
    return tuple(FurtherSource(row.name, row.url, row.digest, row.tree, row.to) for row in sources)


def prepare(
    sources: Sequence[Source], cache: Path, target: Path, tell: Callable[[str], None] = lambda text: None
) -> Path:
    """Lay the sources out for element ``sources``, below ``target``: ``<name>/tree``, and ``<name>/to`` with its place.

    ``cache`` keeps what was fetched; ``tell`` hears what is being done.  Raises InputError, with file, line and
    key, where something has another digest than the variant names, and SageError where it can't be fetched.
    """
    files.make_folder(target)
    for source in sources:
        tell(f"source {source.name}")
        folder = files.make_folder(target / source.name)
        kept = cache / "sources" / source.digest
        with files.lock(cache / "locks" / f"source-{source.digest[:16]}.lock", wait=_DEADLINE):
            if source.kind is SourceKind.GIT:
                _git(source, kept, folder)
            else:
                _archive(source, kept, folder)
            os.utime(kept)  # in use: see layers.prune
        files.write_text(folder / "to", source.to + "\n")
    return target


# ------------------------------------------------------------------------------------------------------------- git


def _git(source: Source, kept: Path, folder: Path) -> None:
    if not kept.is_dir():
        _fetch_commit(source, kept)
    tree = _run_git(kept, "rev-parse", "--verify", f"{source.digest}^{{tree}}").strip()
    if tree != source.tree:
        raise _differs(source, "tree", f"the commit's tree is {tree}, expected {source.tree}", tree)
    packed = folder / "tree.tar"
    # With the commit (not its tree) git sets all times to the commit's.
    _run_git(kept, "-c", "tar.umask=0022", "archive", "--format=tar", f"--output={packed}", source.digest)
    unpack(packed, folder / "tree", source.name, strip=False)
    packed.unlink()


def _fetch_commit(source: Source, kept: Path) -> None:
    """Put a bare repository with the commit in its place, by one rename."""
    partial = kept.with_name(kept.name + ".partial")
    files.remove_tree(partial)
    files.make_folder(partial.parent)
    kind = "sha256" if len(source.digest) == 64 else "sha1"
    process.run(
        ["git", "init", "--quiet", "--bare", "--template=", f"--object-format={kind}", partial],
        env=_GIT,
        timeout=_SILENCE,
    )
    files.write_text(partial / "info/attributes", _ATTRIBUTES)
    try:
        _fetch(partial, source.url, ["--depth=1"], source.digest)
    except ProcessError as error:
        if not _NOT_THERE.search(error.output):
            raise _unreachable(source, error.output or str(error)) from None
        # Older servers give only what a branch or tag names: take those, with their history.
        try:
            _fetch(partial, source.url, [], "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        except ProcessError as again:
            raise _unreachable(source, again.output or str(again)) from None
    try:
        _run_git(partial, "cat-file", "-e", f"{source.digest}^{{commit}}")
    except ProcessError:
        raise InputError(
            f"{source.where['commit']}: there is no commit {source.digest} at {source.url}",
            hint=f"git ls-remote {source.url} shows what is there",
        ) from None
    partial.rename(kept)


def _fetch(repository: Path, url: str, options: Sequence[str], *what: str) -> None:
    limits = ["prlimit", f"--fsize={_LARGEST}", "--"]
    fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", *options]
    process.run([*limits, "git", *_SETTINGS, "-C", repository, *fetch, "--", url, *what], env=_GIT, timeout=_DEADLINE)


def _run_git(repository: Path, *words: str) -> str:
    return process.run(["git", *_SETTINGS, "-C", repository, *words], env=_GIT, timeout=_DEADLINE)


# --------------------------------------------------------------------------------------------------------- archives


def _archive(source: Source, kept: Path, folder: Path) -> None:
    if not kept.is_file() or files.digest_file(kept).sha256 != source.digest:
        found = _download(source, kept)
        if found != source.digest:
            raise _differs(source, "sha256", f"the file's SHA-256 is {found}, expected {source.digest}", found)
    unpack(kept, folder / "tree", source.name, strip=True)


def _download(source: Source, kept: Path) -> str:
    """Download a file; returns its SHA-256 and keeps it where that is the one expected."""
    total = hashlib.sha256()
    size = 0
    try:
        with (
            files.writing(kept) as temporary,
            urllib.request.urlopen(_request(source.url), timeout=_SILENCE) as answer,  # noqa: S310 - http(s) alone
        ):
            announced = answer.headers.get("Content-Length")
            with temporary.open("wb") as output:
                for _ in process.poll_until(_DEADLINE, interval=0):
                    block = answer.read(_BLOCK)
                    if not block:
                        break
                    size += len(block)
                    if size > _LARGEST:
                        raise _unreachable(source, f"it has more than {_LARGEST >> 30} GiB")
                    total.update(block)
                    output.write(block)
                else:
                    raise _unreachable(source, f"not done within {_DEADLINE:g} s")
            if announced is not None and announced.isdigit() and size < int(announced):
                raise _unreachable(source, f"the download ended after {size} of {announced} bytes")
            if total.hexdigest() != source.digest:
                raise _OtherFile(total.hexdigest())
    except _OtherFile as other:
        return str(other)
    except urllib.error.HTTPError as error:
        raise _unreachable(source, f"the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _unreachable(source, str(error.reason)) from None
    except (TimeoutError, HTTPException, ConnectionError) as error:
        raise _unreachable(source, str(error) or type(error).__name__) from None
    return total.hexdigest()


class _OtherFile(Exception):
    """What came has another digest, this one."""


def _request(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"User-Agent": _AGENT})  # noqa: S310 - the schema allows http(s) alone


def unpack(packed: Path, target: Path, name: str, *, strip: bool) -> None:
    """Unpack a tar, compressed or not, into a new folder.

    With ``strip``, the one folder that holds all of an archive is left out.  Nothing in it may be or point outside
    it, nor be a device; owners, set-uid bits and other users' write permission are dropped.  Raises SageError.
    """
    files.make_folder(target)
    try:
        with tarfile.open(packed) as archive:
            archive.extraction_filter = tarfile.data_filter
            members = list(_checked(archive, name))
            archive.extractall(target, members=members)  # noqa: S202 - filtered
            newest = max((int(member.mtime) for member in members), default=0)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # the disk, not the archive
        raise SageError(f"source {name} is no tar archive that can be unpacked: {error}") from None
    inside = list(target.iterdir())
    if strip and len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink():
        outer = target.with_name(target.name + ".outer")
        target.rename(outer)
        (outer / inside[0].name).rename(target)
        outer.rmdir()
    _settle(target, newest)


def _settle(top: Path, newest: int) -> None:
    """The same modes and times whatever this process's umask is and the time of day: none is after ``newest``."""
    for folder, folders, names in os.walk(top):
        for path in [Path(folder), *(Path(folder, name) for name in (*names, *folders))]:
            status = path.lstat()
            if not stat.S_ISLNK(status.st_mode):
                path.chmod(0o755 if status.st_mode & stat.S_IXUSR else 0o644)
            if status.st_mtime > newest:
                os.utime(path, (newest, newest), follow_symlinks=False)


def _checked(archive: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, as long as they are harmless.

    The ``data`` filter looks at the disk for what a path means; these rules hold whatever is there.
    """
    links: set[str] = set()
    total = 0
    for count, member in enumerate(archive, 1):
        path = posixpath.normpath(member.name)
        total += member.size
        parents = path.split("/")
        if path.startswith(("/", "..")) or any("/".join(parents[:end]) in links for end in range(1, len(parents))):
            raise _harmful(name, member.name, "lies outside it")
        if member.issym():
            links.add(path)
            target = re.sub(r"^(\.\.?/+)*(\.\.$)?", "", member.linkname)
            ups = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.linkname))
            # ".." behind a name may lead elsewhere than it says, where that name is a link itself
            if member.linkname.startswith("/") or ups.startswith("..") or ".." in target.split("/"):
                raise _harmful(name, member.name, f"points outside it, to {member.linkname}")
        elif member.islnk():
            if posixpath.normpath(member.linkname).startswith(("/", "..")):
                raise _harmful(name, member.name, f"points outside it, to {member.linkname}")
        elif not (member.isfile() or member.isdir()):
            raise _harmful(name, member.name, "is a device")
        if count > _MOST or total > _LARGEST:
            raise SageError(f"source {name} holds more than {_MOST} files or {_LARGEST >> 30} GiB")
        yield member


def _harmful(name: str, member: str, why: str) -> SageError:
    return SageError(f"source {name}: {member!r} in its archive {why}; nothing of it was taken")


def _differs(source: Source, key: str, what: str, found: str) -> InputError:
    return InputError(
        f"{source.where[key]}: {what} ({source.url})", hint=f"if that is what you want, write {key}: {found}"
    )


def _unreachable(source: Source, why: str) -> SageError:
    lines = [line.strip() for line in why.strip().splitlines() if line.strip()]
    return SageError(
        f"source {source.name} can't be fetched from {source.url}: {' / '.join(lines[-2:])}",
        hint="is the address right, and the network up? what was fetched before is in the cache",
    )

# SPDX-License-Identifier: Apache-2.0
"""The archive's state: its signed indexes, and what apt would install from them, known before any build.

All is asked of apt itself, with folders of its own: this machine's ``/etc/apt`` and dpkg database count for
nothing, and no privilege is needed.  A state is a folder that never changes; a refresh makes another one beside
it and then points to that.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from groundwork import console, files, process, products
from groundwork.errors import InputError, SageError
from groundwork.process import ProcessError
from image_builder.variant import Arch
from image_builder.wanted import Wanted

PROGRAMS = ("apt-cache", "apt-get")

_FETCH_DEADLINE = 900.0  # seconds for all indexes; Ubuntu's four components in three suites have 30 MB
_QUERY_DEADLINE = 120.0
_UNUSED = timedelta(days=1)  # a state that was replaced is kept so long for runs that still read it
_STATE = "state.json"
_CURRENT = "current"
# What mmdebstrap's variant minbase, which diskimage-builder asks for, installs besides the packages named to it.
_BASE = ("?or(?essential,?priority(required))", "apt")


@dataclass(frozen=True)
class Source:
    """One suite of an archive.  ``snapshot``: it is as old as it is, its date of expiry does not count."""

    mirror: str
    suite: str
    components: tuple[str, ...]
    snapshot: bool = False

    def __str__(self) -> str:
        return f"{self.mirror} {self.suite}"


@dataclass(frozen=True)
class Release:
    """A suite's signed index of indexes: SHA-256 of its file and the date (UTC, RFC 3339) that stands in it."""

    mirror: str
    suite: str
    sha256: str
    date: str


@dataclass(frozen=True)
class State:
    """The archive as it was when its indexes were fetched (``fetched_at``: UTC, RFC 3339).

    ``digest`` (SHA-256) covers what the archive has signed: two states with one digest hold the same packages.
    """

    folder: Path
    arch: Arch
    digest: str
    releases: tuple[Release, ...]
    fetched_at: str


@dataclass(frozen=True)
class Planned:
    """A package that apt would install, and the file it comes as: address, bytes, SHA-256."""

    name: str
    version: str
    arch: str
    uri: str
    size: int
    sha256: str


class Versioned(Protocol):
    """A package of a plan or of a manifest."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


@dataclass(frozen=True)
class Change:
    """A package that is another version here than there; None where it is not at all."""

    name: str
    from_version: str | None
    to_version: str | None


@dataclass(frozen=True)
class _Plan:
    packages: tuple[Planned, ...]


def sources(
    mirror: str, security_mirror: str | None, release: str, components: Sequence[str], *, snapshot: bool = False
) -> tuple[Source, ...]:
    """The suites that a build takes packages from: the release, its updates and its security updates.

    The latter are on the mirror itself where ``security_mirror`` is None (Ubuntu).
    """
    places = (
        (mirror, release),
        (mirror, f"{release}-updates"),
        (security_mirror or mirror, f"{release}-security"),
    )
    return tuple(Source(where.rstrip("/"), suite, tuple(components), snapshot) for where, suite in places)


def open_state(
    sources: Sequence[Source],
    keyring: Path,
    arch: Arch,
    cache: Path,
    *,
    refresh: bool = False,
    since: str | None = None,
    stage: console.Stage,
) -> State:
    """The archive's state, from the cache; fetched where there is none yet, and anew with ``refresh``.

    One that was fetched after ``since`` (a time of :func:`now`) is new enough.

    A refresh that fails or is killed leaves the state that was there.  Of two at once the second waits and takes
    the first's result.  Raises InputError where there is no keyring, and SageError, with the mirror's name, for a
    mirror out of reach, a wrong signature and half a download.
    """
    process.require(*PROGRAMS)
    if not keyring.is_file():
        raise InputError(f"the archive's keyring {keyring} is not here")
    lines = [f"{source} {' '.join(source.components)} {source.snapshot}" for source in sources]
    key = files.digest_text(str(arch), files.digest_file(keyring).sha256, *lines)[:32]
    place = cache / "archive" / key
    found = _standing(place)
    if found is not None and (not refresh or (since is not None and found.fetched_at >= since)):
        return found
    begin = now()
    with files.lock(
        cache / f"locks/archive-{key}.lock",
        wait=_FETCH_DEADLINE + 60,
        on_wait=lambda owner: stage.detail(f"waiting for another run (pid {owner}) that fetches the archive's indexes"),
    ):
        found = _standing(place)
        if found is not None and (not refresh or found.fetched_at >= begin):
            return found
        stage.detail("fetching the archive's indexes")
        return _fetch(sources, keyring, arch, place, found)


def plan(
    state: State, names: Iterable[str], *, below: Sequence[Planned] = (), asking: Sequence[Wanted] = ()
) -> tuple[Planned, ...]:
    """What apt would install for those names, without Recommends, in order of name.

    On an empty system, and then with the base system that diskimage-builder begins with; or on one that has the
    packages ``below``, which are none of the result.  The same state, names and packages always give the same
    plan; it is kept, so that asking again takes no time.  Raises SageError, with apt's reasons and those who are
    ``asking`` for the packages, where they can't be installed together or would remove some of those below.
    """
    wanted = sorted({*names, *(() if below else _BASE)})
    kept = state.folder / "plans" / f"{files.digest_text(digest(below), *wanted)[:32]}.json"
    with suppress(InputError):
        return products.load(_Plan, kept).packages
    if not wanted:
        return ()
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        status = Path(folder, "status")
        status.write_text(_status(state, below))

        def install(*names: str) -> str:
            options = ("-o", f"Dir::State::status={status}", "--print-uris", "--yes", "--no-remove")
            return _ask(state, "apt-get", *options, "install", *names)

        try:
            text = install(*wanted)
        except ProcessError as error:
            raise _impossible(error, wanted, asking, install) from None
    packages = tuple(sorted(_planned(text), key=lambda package: (package.name, package.arch)))
    with suppress(OSError):  # a cache that is another user's still answers
        products.save(_Plan(packages), kept)
    return packages


def digest(packages: Iterable[Planned]) -> str:
    """SHA-256 over a plan's packages, with versions and contents; where they are fetched from does not count."""
    return files.digest_text(
        *sorted(f"{package.name} {package.version} {package.arch} {package.sha256}" for package in packages)
    )


def lacking(state: State, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that the archive has no package for.  What another package provides is there."""
    wanted = sorted(set(names))
    there = _candidates(state, wanted)
    return tuple(name for name in wanted if name not in there and not providers(state, name))


def providers(state: State, name: str) -> tuple[str, ...]:
    """The packages that provide a virtual package of that name."""
    text = _ask(state, "apt-cache", "showpkg", name, check=False)
    _, _, lines = text.partition("Reverse Provides: \n")
    return tuple(sorted({line.split()[0] for line in lines.splitlines() if line.strip()}))


def moved(state: State, installed: Iterable[Versioned]) -> tuple[Change, ...]:
    """The installed packages of which the archive now has another version, or none any more."""
    have = {package.name: package.version for package in installed}
    there = _candidates(state, sorted(have))
    return tuple(
        Change(name, version, there.get(name)) for name, version in sorted(have.items()) if there.get(name) != version
    )


def differences(before: Iterable[Versioned], after: Iterable[Versioned]) -> tuple[Change, ...]:
    """What changed from one list of packages to another, in order of name."""
    old = {package.name: package.version for package in before}
    new = {package.name: package.version for package in after}
    return tuple(
        Change(name, old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)
    )


def check(wanted: Sequence[Wanted], state: State) -> None:
    """Raise InputError for packages that can't be had, with who asks for them and where."""
    names = sorted({one.name for one in wanted})
    there = _candidates(state, names)
    complaints: list[str] = []
    hints: list[str] = []
    for name in names:
        if name in there:
            continue
        choice = providers(state, name)
        if len(choice) == 1:
            continue  # apt takes it
        asking = "; ".join(dict.fromkeys(str(one) for one in wanted if one.name == name))
        if choice:
            complaints.append(f"package {name!r} is provided by several packages, so none is taken; {asking}")
            hints.append(f"instead of {name!r} name one of {', '.join(choice)}")
        else:
            complaints.append(f"the archive has no package {name!r}; {asking}")
            hints += _nearest(state, name)
    if complaints:
        suites = files.join_names([f"{release.mirror} {release.suite}" for release in state.releases])
        raise InputError(
            "\n".join(complaints) + f"\n(looked in {suites} for {state.arch}, as of {state.fetched_at})",
            hint="; ".join(hints) or "a package that is new in the archive is seen with --refresh",
        )


def lists_folder(state: State) -> Path:
    """The folder whose files belong into a root tree's ``/var/lib/apt/lists``, with their times (``cp -p``), owned
    by root: there ``apt-get update`` with the same mirrors then fetches nothing that has not changed."""
    return state.folder / "lists"


def now() -> str:
    """The time, UTC, RFC 3339."""
    # With a fraction: two refreshes in one second are two.
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _standing(place: Path) -> State | None:
    """The state that ``place`` points to, if it is whole."""
    folder = (place / _CURRENT).resolve()
    try:
        found = products.load(State, folder / _STATE)
    except InputError:
        return None
    if not (folder / "lists").is_dir():
        return None
    with suppress(OSError):  # perhaps another user's
        os.utime(folder / _STATE)  # in use: see _sweep
    found = replace(found, folder=folder)  # the cache may have been moved
    with suppress(OSError):
        _configure(found.folder, found.arch)
    return found


def _fetch(sources: Sequence[Source], keyring: Path, arch: Arch, place: Path, old: State | None) -> State:
    """Fetch the indexes into a new folder and point to it."""
    _sweep(place)
    folder = files.make_folder(place / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}Z")
    try:
        found = _update(sources, keyring, arch, folder, old)
    except BaseException:
        files.remove_tree(folder)
        raise
    if old is not None and old.digest == found.digest:
        files.remove_tree(folder)
        found = replace(old, fetched_at=found.fetched_at)
        products.save(found, found.folder / _STATE)
        return found
    for path in folder.rglob("*"):
        files.give_to_owner_of(place, path)
    products.save(found, folder / _STATE)
    pointer = place / f".{_CURRENT}.{os.getpid()}"
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(folder.name)
    files.give_to_owner_of(place, pointer)
    pointer.rename(place / _CURRENT)
    return found


def _sweep(place: Path) -> None:
    """Remove what killed runs left and states that nothing uses any more.  The lock is held."""
    if not place.is_dir():
        return
    files.sweep_removals(place)
    current = (place / _CURRENT).resolve()
    oldest = (datetime.now(timezone.utc) - _UNUSED).timestamp()
    for folder in place.iterdir():
        if folder.is_symlink() or not folder.is_dir() or folder == current:
            continue
        with suppress(FileNotFoundError):
            if (folder / _STATE).stat().st_mtime >= oldest:
                continue
        files.remove_tree(folder)


def _update(sources: Sequence[Source], keyring: Path, arch: Arch, folder: Path, old: State | None) -> State:
    """``apt-get update`` in a folder of its own, beginning with the lists of the old state."""
    lists = files.make_folder(folder / "lists")
    for name in ("lists/partial", "cache/archives/partial", "keys", "plans"):
        files.make_folder(folder / name)
    # A copy, in a folder that apt takes all keyrings of: a path in sources.list may hold no blanks.
    content = keyring.read_bytes()
    suffix = ".asc" if content.startswith(b"-----BEGIN") else ".gpg"  # apt goes by it
    with files.writing(folder / "keys" / f"archive{suffix}") as partial:
        partial.write_bytes(content)
    (folder / "status").touch()
    text = ""
    for source in sources:
        options = f"arch={arch}" + (" check-valid-until=no" if source.snapshot else "")
        text += f"deb [{options}] {source} {' '.join(source.components)}\n"
    files.write_text(folder / "sources.list", text)
    _configure(folder, arch)
    if old is not None:
        for path in lists_folder(old).iterdir():
            # apt replaces its lists by renaming others to them, and never writes into one.
            os.link(path, lists / path.name)
    unread = State(folder, arch, "", (), "")
    log = folder / "update.log"
    failed = False
    with log.open("wb") as output:
        try:
            process.run(["apt-get", "update"], env=_environment(unread), timeout=_FETCH_DEADLINE, log=output)
        except ProcessError as error:
            if error.returncode is None:
                raise SageError(
                    f"the archive's indexes did not come within {_FETCH_DEADLINE / 60:g} minutes",
                    hint="try again, or name another --mirror",
                ) from None
            failed = True
    said = log.read_text(errors="replace")
    if failed or re.search(r"^(E:|Err:|W: Failed|W: GPG)", said, re.MULTILINE):
        raise _explain(said, sources, keyring)
    releases = _releases(unread, sources)
    for leftover in ("partial", "auxfiles"):
        shutil.rmtree(lists / leftover, ignore_errors=True)
    (lists / "lock").unlink(missing_ok=True)
    log.unlink()
    return replace(
        unread,
        digest=files.digest_text(*(f"{release.suite} {release.sha256}" for release in releases)),
        releases=releases,
        fetched_at=now(),
    )


def _configure(folder: Path, arch: Arch) -> None:
    """apt's configuration: nothing of this machine's own."""
    nothing = "/dev/null"
    settings = {
        "Dir::Etc::main": nothing,
        "Dir::Etc::parts": nothing,
        "Dir::Etc::netrc": nothing,
        "Dir::Etc::netrcparts": nothing,
        "Dir::Etc::preferences": nothing,
        "Dir::Etc::preferencesparts": nothing,
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": nothing,
        "Dir::Etc::trusted": nothing,
        "Dir::Etc::trustedparts": folder / "keys",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::State::extended_states": folder / "extended_states",
        "Dir::Cache": folder / "cache",
        "Dir::Cache::archives": folder / "cache/archives",
        "Dir::Cache::pkgcache": "",  # the archive's packages are kept, and what is installed is added in memory
        "Dir::Log": folder,
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Get::Always-Include-Phased-Updates": "true",  # as apt does in a chroot; else chance decides
        "APT::Install-Recommends": "false",
        "APT::Install-Suggests": "false",
        "APT::Sandbox::User": "root",  # _apt can't write into the user's cache
        "APT::Solver": "internal",  # one choice among alternatives, whatever apt this machine has
        "APT::Update::Error-Mode": "any",
        "Acquire::ForceHash": "SHA256",
        "Acquire::Languages": "none",
        "Acquire::PDiffs": "false",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
    }
    # The first file that apt reads: those that it names as the next ones are the ones that count.
    text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
    path = folder / "apt.conf"
    if not path.exists() or path.read_text() != text:
        files.write_text(path, text)


def _environment(state: State) -> Mapping[str, str]:
    return {"APT_CONFIG": str(state.folder / "apt.conf"), "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}


def _ask(state: State, *command: str, check: bool = True) -> str:
    return process.run(command, env=_environment(state), timeout=_QUERY_DEADLINE, check=check)


def _status(state: State, packages: Sequence[Planned]) -> str:
    """dpkg's database of a system that has those packages of the state."""
    if not packages:
        return ""
    text = _ask(state, "apt-cache", "show", *(f"{package.name}={package.version}" for package in packages))
    return re.sub(r"^Package: .*$", r"\g<0>\nStatus: install ok installed", text, flags=re.MULTILINE)


def _impossible(
    error: ProcessError, names: Sequence[str], asking: Sequence[Wanted], install: Callable[[str], str]
) -> SageError:
    """The error for what apt can't install, by what it said."""
    said = error.output
    _, _, unmet = said.partition("have unmet dependencies:\n")
    reasons = [line for line in (unmet or said).splitlines() if line.startswith("E: ") or (unmet and line[:1] == " ")]
    words = set(re.findall(r"[a-z0-9][a-z0-9.+-]+", " ".join(reasons)))
    if removed := re.search(r"^The following packages will be REMOVED:\n((?: .*\n)+)", said, re.MULTILINE):
        words = set()
        for name in names:
            try:
                install(name)
            except ProcessError:
                words.add(name)
        reasons = [f" to install {files.join_names(sorted(words) or names)}, apt would remove {removed[1].strip()}"]
    reasons += [f" {one.name}: {one}" for one in asking if one.name in words]
    return SageError(
        "the archive's packages can't be installed together:\n" + "\n".join(reasons or [str(error)]),
        hint="leave out one of them; or, if the archive is in the middle of an update, try again with --refresh",
    )


def _candidates(state: State, names: Sequence[str]) -> dict[str, str]:
    """Name -> the version that apt would install, for those that it can install by this name."""
    # apt-get also takes "name:arch", "name=version" and "name/suite".
    bare = {name: re.split("[=/]", name)[0].removesuffix(f":{state.arch}") for name in names}
    if not bare:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in _ask(state, "apt-cache", "policy", *sorted(set(bare.values()))).splitlines():
        if not line.startswith(" "):
            name = line.removesuffix(":")
        elif line.startswith("  Candidate: ") and not line.endswith("(none)"):
            found[name] = line.removeprefix("  Candidate: ")
    return {name: found[word] for name, word in bare.items() if word in found}


_PLANNED = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+)\.deb (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")


def _planned(text: str) -> Iterable[Planned]:
    """The packages of ``apt-get --print-uris``; the name that apt gives a file holds package, version and arch."""
    for match in _PLANNED.finditer(text):
        name, version, arch = (unquote(part) for part in match["file"].split("_"))
        yield Planned(name, version, arch, match["uri"], int(match["size"]), match["sha256"])


def _releases(state: State, sources: Sequence[Source]) -> tuple[Release, ...]:
    """The Release files that apt has verified.  Raises SageError where one lacks what was asked for.

    (apt says nothing of an architecture that is not there, and warns of a component.)
    """
    # apt names a list after its URL without the scheme: "/" becomes "_", and what is special "%xx".
    lists = {unquote(path.name.replace("_", "/")): path for path in lists_folder(state).iterdir()}
    found = []
    for source in sources:
        place = f"{source.mirror.partition('://')[2]}/dists/{source.suite}"
        path = lists.get(f"{place}/InRelease") or lists.get(f"{place}/Release")
        if path is None:
            raise SageError(f"apt has fetched no Release file of {source}", hint="this is a bug: please report it")
        text = path.read_text(errors="replace")
        fields = dict(re.findall(r"^(Date|Architectures|Components): *(.+)$", text, re.MULTILINE))
        if state.arch not in fields.get("Architectures", state.arch).split():
            raise SageError(
                f"the archive at {source} has no packages for {state.arch}",
                hint=f"it has {fields['Architectures'].strip()}: name another --mirror",
            )
        # Debian's security archive once wrote "updates/main".
        there = {name.rpartition("/")[2] for name in fields.get("Components", " ".join(source.components)).split()}
        if not there & set(source.components):
            raise SageError(
                f"the archive at {source} has none of the components {', '.join(source.components)}",
                hint=f"it has {fields['Components'].strip()}: name another --mirror",
            )
        date = ""
        if "Date" in fields:
            with suppress(ValueError):
                date = parsedate_to_datetime(fields["Date"]).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        found.append(Release(source.mirror, source.suite, files.digest_file(path).sha256, date))
    return tuple(found)


_UNREACHABLE = re.compile(
    r"Could not (connect|resolve|handshake)|Unable to connect|Temporary failure resolving|Connection (refused|failed|"
    r"timed out|reset)|(Network|host) is unreachable|No route to host|Could not wait for server|certificate",
    re.IGNORECASE,
)
_BROKEN = re.compile(
    r"Hash Sum mismatch|unexpected size|Undetermined Error|Connection closed|Error reading from server|Data left in|"
    r"server closed|unexpected end|unable to (decompress|read)|Clearsigned file isn't valid|Splitting up|Bad header|"
    r"Unable to parse|corrupted|Unable to find expected entry",
    re.IGNORECASE,
)
_UNSIGNED = re.compile(r"is not signed|GPG error|NO_PUBKEY|signatures? (were|was) invalid|couldn't be verified|\bsqv\b")
_EXPIRED = re.compile(r"Release file for \S+ is (expired|not valid yet)")


def _explain(said: str, sources: Sequence[Source], keyring: Path) -> SageError:
    """The error that tells what went wrong in ``apt-get update``, by what it said."""
    lines = [line for line in said.splitlines() if re.match(r"(E|W|Err:\d+|  )", line)]
    text = "\n".join(line for line in lines if not line.startswith("E: Some index files failed"))

    def about(pattern: re.Pattern[str] | None) -> str:
        """The archive that the first line (with the one before it) that matches is about."""
        for before, line in zip(["", *lines], lines, strict=False):
            if pattern is None or pattern.search(line):
                for source in sources:
                    if re.search(rf"{re.escape(source.mirror)}[ /](dists/)?{re.escape(source.suite)}[ /]", line) or (
                        f"{source} " in before
                    ):
                        return str(source)
        return files.join_names(sorted({source.mirror for source in sources}))

    reason = next((line for line in lines if line.startswith(("E:", "W:"))), lines[-1] if lines else said.strip())
    reason = re.sub(r"^(E|W): ", "", reason)
    if match := _EXPIRED.search(text):
        what = "past its date of expiry" if match[1] == "expired" else "dated in the future"
        return SageError(
            f"the archive at {about(_EXPIRED)} is {what}",
            hint="is this machine's clock right? Else the mirror is not kept up: name another --mirror",
        )
    if _BROKEN.search(text):
        return SageError(
            f"an index of the archive at {about(_BROKEN)} came damaged or by half, or is not what the archive has "
            f"signed: {_short(_BROKEN, lines)}",
            hint="try again: a mirror in the middle of an update or a proxy can cause this; else name another --mirror",
        )
    if _UNSIGNED.search(text):
        return SageError(
            f"the archive at {about(_UNSIGNED)} is not signed with a key of {keyring}: {_short(_UNSIGNED, lines)}",
            hint="do not build from it unless you know whose archive it is; a mirror of your own needs --keyring",
        )
    if _UNREACHABLE.search(text):
        return SageError(
            f"the archive at {about(_UNREACHABLE)} is out of reach: {_short(_UNREACHABLE, lines)}",
            hint="is this machine on the network? Name another one with --mirror, a proxy with http_proxy",
        )
    if re.search(r"does not have a Release file|\b404\b", text):
        missing = re.compile(r"does not have a Release file|\b404\b")
        return SageError(
            f"there is no archive at {about(missing)}: it has no Release file", hint="check --mirror and --release"
        )
    return SageError(
        f"apt could not fetch the indexes of the archive at {about(None)}: {reason}",
        hint="try again, or name another --mirror",
    )


def _short(pattern: re.Pattern[str], lines: Sequence[str]) -> str:
    """apt's own words on it."""
    line = next(line for line in lines if pattern.search(line))
    return re.sub(r"^(E|W): |^Err:\d+ ", "", line).strip()


def _nearest(state: State, name: str) -> list[str]:
    known = [word for word in _ask(state, "apt-cache", "pkgnames", name[:1]).split() if abs(len(word) - len(name)) <= 3]
    close = get_close_matches(name, known, n=3, cutoff=0.7)
    return [f"did you mean {' or '.join(repr(word) for word in close)}?"] if close else []

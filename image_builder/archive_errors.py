# SPDX-License-Identifier: Apache-2.0
"""What apt says when an archive can't be trusted, and what that means to whoever runs the build.

The words are apt's own, in English (the build runs in the locale C.UTF-8), as apt 2.4 to 3.0 print them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ArchiveError:
    """``message``: which archive, and what is wrong with it; ``hint``: what to do."""

    message: str
    hint: str


_KEYRING = "its keys come with the distribution's keyring package; --keyring names those of a mirror that signs itself"
_TAMPERED = "something between the archive and here changed it: try another --mirror"
_MOVING = "the mirror may be in the middle of an update: try again in some minutes, or another --mirror"


def _signature(found: re.Match[str], keyring: str) -> ArchiveError:
    archive, what = found["archive"], found["what"].strip()
    if key := re.search(r"NO_PUBKEY (\w+)|[Mm]issing key (\w+)", what):
        name = key[1] or key[2]
        return ArchiveError(f"the archive {archive} is signed by the key {name}, which is not in {keyring}", _KEYRING)
    if re.search(r"EXPKEYSIG|KEYEXPIRED|REVKEYSIG", what):
        return ArchiveError(f"the archive {archive} is signed by a key that is no longer valid: {what}", _KEYRING)
    if "EXPSIG" in what:
        return ArchiveError(f"the signature of the archive {archive} has expired: {what}", _MOVING)
    return ArchiveError(f"the archive {archive} was changed after it was signed: {what}", _TAMPERED)


def _unsigned(found: re.Match[str], keyring: str) -> ArchiveError:
    return ArchiveError(f"the archive {found['archive']} is not signed", "take a --mirror that is signed")


def _damaged(found: re.Match[str], keyring: str) -> ArchiveError:
    return ArchiveError(f"the archive {found['archive']}: the signed file is damaged: {found['what']}", _TAMPERED)


def _mismatch(found: re.Match[str], keyring: str) -> ArchiveError:
    what = "is not the file that the archive's signed index tells of"
    hint = _MOVING if "Mirror sync" in found["what"] else _TAMPERED
    return ArchiveError(f"{found['archive']} {what}: {found['what'].strip()}", hint)


def _out_of_date(found: re.Match[str], keyring: str) -> ArchiveError:
    return ArchiveError(
        f"the archive {found['archive']} {found['what'].strip()}",
        "look at this machine's clock, or try another --mirror",
    )


# The first that is found counts: a bad signature is also told as an archive that is not signed.
_KINDS: tuple[tuple[str, Callable[[re.Match[str], str], ArchiveError]], ...] = (
    (r"GPG error: (?P<archive>\S+ \S+) (?:In)?Release: (?P<what>.*)", _signature),
    (r"OpenPGP signature verification failed: (?P<archive>\S+ \S+) (?:In)?Release: (?P<what>.*)", _signature),
    (r"Failed to fetch (?P<archive>\S+)\s+(?P<what>Clearsigned file isn't valid.*|Splitting up .*)", _damaged),
    (r"Failed to fetch (?P<archive>\S+)\s+(?P<what>Hash Sum mismatch|File has unexpected size.*)", _mismatch),
    (r"Release file for (?P<archive>\S+) (?P<what>is (?:expired|not valid yet).*)", _out_of_date),
    (r"The repository '(?P<archive>\S+ \S+) (?:In)?Release' is not signed", _unsigned),
)


def find(log: str, keyring: str) -> ArchiveError | None:
    """What the end of a build's log says of the archive's signature and checksums; None where that was not it.

    ``keyring``: the file that the signature was checked against.
    """
    for pattern, explain in _KINDS:
        if found := re.search(pattern, log):
            return explain(found, keyring)
    return None

# SPDX-License-Identifier: Apache-2.0
"""The canary: a command that tries a candidate at a site before it becomes the current image there.

The command gets the candidate as JSON on standard input and as ``SAGE_CANARY_...`` in its environment, and answers by
its exit code: 0 pass, 1 fail, anything else (75 is meant for it) inconclusive; so is a command that does not end within
its time, can't be started, or is killed.  What it prints to standard output, JSON, is kept with the verdict.
:mod:`image_builder.qemu_canary` is the one that comes along.
"""

import json
import logging
import os
import shlex
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chameleon_sites.cloud import SiteError
from groundwork import files, process, products
from groundwork.compat import StrEnum
from groundwork.errors import InputError

logger = logging.getLogger(__name__)

PASS, FAIL, INCONCLUSIVE = 0, 1, 75  # exit codes; 75 is EX_TEMPFAIL of sysexits.h
VARIABLE = "SAGE_CANARY_"
REPORT = "report.json"
LOG = "stderr.log"
_LARGEST_REPORT = 1 << 20  # bytes of standard output that are kept
_LONGEST_REASON = 300  # characters
_KEPT_FOR = 30 * 86400.0  # seconds that reports stay


class Verdict(StrEnum):
    """What a canary says of a candidate."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Candidate:
    """What a canary is to try.

    ``site`` is its name, ``kind`` what it runs (baremetal, kvm), ``cloud`` the name of its entry in clouds.yaml.
    ``image_id`` and ``name`` are those of the image at the site, ``image_name`` is the public name that it is to get.
    ``format`` is the build's (``qcow2-zstd``), ``size`` in bytes, ``sha512`` of the data that were uploaded.
    ``manifest`` is the path of the build's.  ``folder``: the canary's own, kept for 30 days.  ``shared``: a folder of
    all canaries of this run, removed at its end.
    """

    site: str
    kind: str
    cloud: str
    image_id: str
    name: str
    image_name: str
    variant: str
    release: str
    arch: str
    build_id: str
    format: str
    size: int
    sha512: str
    manifest: Path
    folder: Path
    shared: Path


@dataclass(frozen=True)
class CanaryOptions:
    """How candidates are tried.  ``deadline`` in seconds; ``cache``: this program's folder for what it keeps."""

    command: tuple[str, ...]
    deadline: float
    cache: Path

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True)
class CanaryResult:
    """What came of trying a candidate: the ``verdict``, why, how long it took, and the report that is kept."""

    image_id: str
    verdict: Verdict
    reason: str
    seconds: float
    report: Path


@dataclass(frozen=True)
class Kept:
    """The file ``report.json``: what was tried, what came of it, and what the command printed (JSON, or a text)."""

    candidate: Candidate
    command: tuple[str, ...]
    exit_code: int | None
    verdict: Verdict
    reason: str
    seconds: float
    said: Any


class CanaryFailed(SiteError):
    """The candidate does not keep its promises: it is never promoted."""


class CanaryInconclusive(SiteError):
    """The candidate could not be tried to the end: it is not promoted now."""


def check_command(text: str) -> str:
    """A command line as it was given.  Raises InputError where it names no program that can be run."""
    try:
        words = words_of(text)
    except ValueError as error:
        raise InputError(f"{text!r} is no command line: {error}") from None
    if not words:
        raise InputError("expected a command, found nothing", hint="leave it out: candidates are then booted by QEMU")
    if shutil.which(words[0]) is None:
        raise InputError(
            f"{words[0]!r} is no program that can be run",
            hint="name a program on PATH, or an executable file by its path (chmod +x)",
        )
    return text


def words_of(text: str) -> tuple[str, ...]:
    """The words of a command line, as a shell would part them; ``~`` is the user's home folder in the first."""
    words = shlex.split(text)
    return (os.path.expanduser(words[0]), *words[1:]) if words else ()


def verdict_of(code: int | None) -> Verdict:
    """What an exit code says; None: there is none, for it did not end in time."""
    if code is None:
        return Verdict.INCONCLUSIVE
    return {PASS: Verdict.PASS, FAIL: Verdict.FAIL}.get(code, Verdict.INCONCLUSIVE)


def reason_of(code: int | None, said: Any, log: str, deadline: float) -> str:
    """Why, in one line: what the report gives as ``reason``, else what is known from outside."""
    if code is None:
        return f"not done within {deadline:g} s"
    if isinstance(said, dict) and isinstance(said.get("reason"), str) and said["reason"].strip():
        return _line(said["reason"])
    if code < 0:
        return f"killed by signal {-code}"
    if code == PASS:
        return "passed"
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    return _line(f"exit status {code}" + (f": {last}" if last else ""))


def environment(candidate: Candidate) -> dict[str, str]:
    """The candidate as the command finds it in its environment: ``SAGE_CANARY_IMAGE_ID`` and so on."""
    return {VARIABLE + key.upper(): str(value) for key, value in asdict(candidate).items()}


def folder_for(options: CanaryOptions, site_slug: str, image_id: str) -> Path:
    """Where a canary may leave what is to be kept, and where its report is put; what is too old is removed."""
    top = files.make_folder(options.cache / "logs/canary")
    for old in top.iterdir():
        if time.time() - old.stat().st_mtime > _KEPT_FOR:
            shutil.rmtree(old, ignore_errors=True)  # another run may be at it too
    return files.make_folder(top / f"{site_slug}-{image_id}")


def run(candidate: Candidate, options: CanaryOptions, stop: threading.Event) -> CanaryResult:
    """Try a candidate.  Ends soon after ``stop`` is set, with an inconclusive result."""
    begin = time.monotonic()
    log, answer = candidate.folder / LOG, candidate.folder / "stdout"
    with log.open("wb") as stderr, answer.open("w+b") as stdout:
        answer.unlink()  # what is kept of it stands in the report
        try:
            code = process.run_to_files(
                options.command,
                input=products.to_text(candidate).encode(),
                stdout=stdout,
                stderr=stderr,
                env=environment(candidate),
                timeout=options.deadline,
                stop_when=stop,
            )
        except (InputError, OSError) as error:  # the program has gone since the command was read
            stderr.write(f"{error}\n".encode())
            code = 127
        stdout.seek(0)
        said = _said(stdout.read(_LARGEST_REPORT))
    seconds = round(time.monotonic() - begin, 3)
    verdict = verdict_of(code)
    reason = reason_of(code, said, files.tail(log, 5), options.deadline)
    kept = Kept(candidate, options.command, code, verdict, reason, seconds, said)
    products.save(kept, candidate.folder / REPORT)
    logger.info("%s: canary of %s: %s (%s)", candidate.site, candidate.image_id, verdict, reason)
    return CanaryResult(candidate.image_id, verdict, reason, seconds, candidate.folder / REPORT)


def error_of(result: CanaryResult, site: str) -> SiteError:
    """The error for a verdict that is no pass."""
    hint = f"its report: {result.report}"
    if result.verdict is Verdict.FAIL:
        return CanaryFailed(f"{site}: the canary of {result.image_id} failed: {result.reason}", hint=hint)
    return CanaryInconclusive(
        f"{site}: the canary of {result.image_id} was inconclusive: {result.reason}",
        hint=f"{hint}; the candidate stays, and the next run tries it again",
    )


def _said(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode(errors="replace")[:_LONGEST_REASON] or None


def _line(text: str) -> str:
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return words if len(words) <= _LONGEST_REASON else words[: _LONGEST_REASON - 3] + "..."

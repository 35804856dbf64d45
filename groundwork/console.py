# SPDX-License-Identifier: Apache-2.0
"""What a person reads: stages with their times, progress, tables.  Plain lines where there is no terminal.

Results go to standard output (one JSON document with ``--json``); all that tells how the work goes on goes to
standard error.
"""

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

_HEARTBEAT = 15.0  # seconds between signs of life of a long stage, where there is no terminal
_MEBIBYTE = 1 << 20

# What is told is somebody's text: ":key:" is no picture in it, nor "[/opt]" a colour.
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
_json = False
_quiet = False
_copy: IO[str] | None = None


def configure(*, json_output: bool = False, quiet: bool = False) -> None:
    """Set how this program talks: results as JSON; without progress."""
    global _json, _quiet
    _json, _quiet = json_output, quiet


@contextlib.contextmanager
def copied_to(path: Path) -> Iterator[None]:
    """Write all that is told or logged to the end of a file as well, each line with its time (UTC).

    Also what ``--quiet`` and ``--json`` leave out.
    """
    global _copy
    with path.open("a", encoding="utf-8", buffering=1) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)sZ %(name)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
        handler.formatter.converter = time.gmtime  # type: ignore[union-attr]
        logging.getLogger().addHandler(handler)
        _copy = stream
        try:
            yield
        finally:
            _copy = None
            logging.getLogger().removeHandler(handler)


def _write_copy(text: str) -> None:
    if _copy is not None:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        _copy.write("".join(f"{now} {line}\n" for line in text.splitlines()))


def say(text: str) -> None:
    """A line about how the work goes on."""
    _write_copy(text)
    if not _quiet:
        _err.print(text, markup=False)


def warn(text: str, *, hint: str | None = None) -> None:
    """A line about something that the user should know of, though the work goes on."""
    _write_copy(f"warning: {text}" + (f"\n   hint: {hint}" if hint else ""))
    _err.print(f"warning: {text}", style="yellow", markup=False)
    if hint:
        _err.print(f"   hint: {hint}", markup=False)


def complain(text: str, *, hint: str | None = None) -> None:
    """An error, with what to do about it."""
    _write_copy(f"error: {text}" + (f"\n hint: {hint}" if hint else ""))
    _err.print(f"error: {text}", style="bold red", markup=False)
    if hint:
        _err.print(f" hint: {hint}", markup=False)


def result(text: str) -> None:
    """A line of the result, for standard output; silent when the result is JSON."""
    _write_copy(text)
    if not _json:
        _out.print(text, markup=False)


def result_json(document: Any) -> None:
    """The result as one JSON document, printed only with ``--json``."""
    if _json:
        sys.stdout.write(json.dumps(document, indent=2, sort_keys=False) + "\n")
        sys.stdout.flush()


def difference(lines: Sequence[str]) -> None:
    """Lines of a diff on standard output, coloured on a terminal; silent when the result is JSON."""
    for line in lines:
        if not _json:
            _out.print(line, style={"-": "red", "+": "green"}.get(line[:1]), markup=False)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """A table on standard output; silent when the result is JSON.  Not cut to a width where there is no terminal."""
    if _json and _copy is None:
        return
    grid = Table(*headings, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*row)
    if _copy is not None:
        plain = StringIO()
        _unbounded(plain).print(grid)
        _write_copy(plain.getvalue())
    if _json:
        return
    if _out.is_terminal:
        _out.print(grid)
    else:
        _unbounded(sys.stdout).print(grid)


def _unbounded(stream: IO[str]) -> Console:
    """For a table that is not cut to a width."""
    return Console(file=stream, width=10_000, highlight=False, markup=False, emoji=False)


class Stage:
    """One step of the work, as :func:`stage` gives it.  ``note`` may be set to what came of it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.note = ""
        self.begin = time.monotonic()
        self._detail = ""
        self._status: Status | None = None
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.begin

    def detail(self, text: str) -> None:
        """What the stage is about just now; shown on a terminal at once, elsewhere with the next heartbeat."""
        with self._lock:
            self._detail = text
            self._refresh()

    @property
    def shown(self) -> str:
        """What the stage is about just now."""
        return self._detail

    def _refresh(self) -> None:
        if self._status is not None:
            self._status.update(f"{self.title}  {self.elapsed:.0f} s  [dim]{_escape(self._detail)}[/dim]")

    def _beat(self, ended: threading.Event) -> None:
        interval = 0.5 if self._status is not None else _HEARTBEAT
        while not ended.wait(interval):
            if self._status is not None:
                with self._lock:
                    self._refresh()
            else:
                say(f"  ... {self.title}: {self.elapsed:.0f} s" + (f", {self._detail}" if self._detail else ""))


@contextlib.contextmanager
def stage(title: str, *, brief: bool = False) -> Iterator[Stage]:
    """Tell that a stage begins, that it goes on, and how long it took or that it failed.

    With ``brief`` nothing is told of one that is done within a second.
    """
    current = Stage(title)
    ended = threading.Event()
    if not _quiet:
        if _err.is_terminal:
            current._status = _err.status(title)
            current._status.start()
        elif not brief:
            say(f"> {title}")
    beat = threading.Thread(target=current._beat, args=(ended,), daemon=True)
    beat.start()
    word = "failed after"
    try:
        yield current
        word = "done in"
    finally:
        ended.set()
        beat.join()
        if current._status is not None:
            current._status.stop()
        note = f": {current.note}" if current.note else ""
        if not brief or current.elapsed >= 1:
            say(f"{'+' if word == 'done in' else 'x'} {title} {word} {current.elapsed:.1f} s{note}")


def mebibytes(size: int) -> str:
    """A size in bytes, for people."""
    return f"{size / _MEBIBYTE:,.1f} MiB"


def _escape(text: str) -> str:
    return text.replace("[", "\\[")

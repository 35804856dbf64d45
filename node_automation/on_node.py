# SPDX-License-Identifier: Apache-2.0
"""What a role has done on a node, over a connection that is open: scripts, files, health checks.

Scripts and their variables go over standard input, so that neither stands in the node's list of processes.
"""

import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from groundwork import process
from groundwork.errors import SageError
from node_automation import role
from node_automation.role import Command, File, Health

_KEPT = 16_384  # characters of what a script says
_LARGEST_FILE = 1 << 20  # bytes that one node hands to another
_BLOCK = 1 << 16
_POLL = 0.02  # seconds
_KILL_AFTER = 5.0  # seconds that a script over its time has to end by itself
_GRACE = 30.0  # seconds more until a node is given up that does not end it
_FILES = 60.0  # seconds for a file
_HEALTH_PAUSE = 2.0
_REQUEST = 10.0  # seconds for an answer to a URL
_STOPPED = (124, 137)  # exit status of timeout(1), and of what it killed

# In a function, so that bash has read all of it before the first command runs; and that may not read the rest.
_SCRIPT = """\
set -E
{exports}
__sage() {{
{script}
}}
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
__sage < /dev/null
"""
_PUT = """\
set -eu
(umask 022; mkdir -p -- "$(dirname -- "$1")")
umask 077
cat > "$1.sage-part"
chmod "$2" "$1.sage-part"
if [ -n "$3" ]; then chown "$3" "$1.sage-part"; fi
mv -f -- "$1.sage-part" "$1"
"""
_OPEN_PORTS = """\
if command -v firewall-cmd > /dev/null && systemctl is-active --quiet firewalld.service; then
  for port in $SAGE_PORTS; do
    sudo --non-interactive firewall-cmd --quiet --permanent --add-port="$port/tcp"
    sudo --non-interactive firewall-cmd --quiet --add-port="$port/tcp"
  done
fi
"""


@dataclass(frozen=True)
class Said:
    """What came of a script: its exit status, and the end of what it printed."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last lines, for an error's text."""
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        return " / ".join(lines[-3:])[:600]


class NotDone(SageError):
    """Something on a node did not come to a good end."""


def run(
    connection: Any,
    script: str,
    values: Mapping[str, str],
    deadline: float,
    *,
    to: IO[bytes] | None = None,
    most: int | None = None,
) -> Said:
    """Run a bash script on a node, ``deadline`` seconds at most.

    ``connection`` is a fabric.Connection.  With ``to`` all that it prints to standard output goes there, ``most`` bytes
    of it.  Raises NotDone where it is not done in time, or prints more.
    """
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())
    text = _SCRIPT.format(exports=exports, script=script)
    command = f"exec timeout --kill-after={_KILL_AFTER:g} {deadline:g} bash --norc -euo pipefail -s"
    begin = time.monotonic()
    code, out, err = _exchange(connection, command, text.encode(), deadline + _GRACE, to=to, most=most)
    if code in _STOPPED and time.monotonic() - begin >= deadline:
        raise NotDone(f"not done within {deadline:g} s, and stopped: {Said(code, out, err).last}")
    return Said(code, out, err)


def check_run(connection: Any, command: Command, values: Mapping[str, str]) -> None:
    """Run one of a role's commands.  Raises NotDone where it fails."""
    said = run(connection, command.run, values, command.deadline)
    if said.code != 0:
        raise NotDone(f"{command.name!r} ended with exit status {said.code}: {said.last}")


def put(connection: Any, path: str, content: bytes, *, mode: int, owner: str | None = None) -> None:
    """Write a file on a node, whole or not at all, and the folders above it.  An ``owner`` takes sudo."""
    words = ["sh", "-c", _PUT, "sh", path, f"{mode:o}", owner or ""]
    command = shlex.join(["sudo", "--non-interactive", *words] if owner else words)
    code, out, err = _exchange(connection, command, content, _FILES)
    if code != 0:
        raise NotDone(f"{path} could not be written: {Said(code, out, err).last}")


def read(connection: Any, path: str) -> bytes:
    """What a file of a node holds, 1 MiB at most."""
    from io import BytesIO

    found = BytesIO()
    words = shlex.join(["head", f"--bytes={_LARGEST_FILE + 1}", "--", path])
    code, _, err = _exchange(connection, words, b"", _FILES, to=found)
    if code != 0:
        raise NotDone(f"{path} can't be read: {Said(code, '', err).last}")
    if found.tell() > _LARGEST_FILE:
        raise NotDone(f"{path} is larger than {_LARGEST_FILE >> 20} MiB")
    return found.getvalue()


def put_files(connection: Any, files: Sequence[File], user: str, values: Mapping[str, str]) -> None:
    """Put a role's files on a node."""
    for file in files:
        if file.content is not None:
            content = file.content.encode()
        else:
            assert file.source is not None
            content = role.read_source(file.source)
            if role.digest_of_source(content) != file.sha256:
                raise NotDone(f"{file.source} has changed since this experiment was read", hint="run it again")
        path = role.fill_in(file.to, values)
        put(connection, path, content, mode=file.mode, owner=None if file.owner == user else file.owner)


def open_ports(connection: Any, ports: Sequence[int]) -> None:
    """Let TCP connections to these ports through the node's own firewall, where it has one."""
    if ports:
        said = run(connection, _OPEN_PORTS, {"SAGE_PORTS": " ".join(map(str, ports))}, _FILES)
        if said.code != 0:
            raise NotDone(f"the node's firewall could not be opened: {said.last}")


def check_health(
    connection: Any,
    checks: Sequence[Health],
    values: Mapping[str, str],
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Wait until all that must hold holds, each within its time.  Raises NotDone, which names what does not."""
    for check in checks:
        tell(check.name)
        reason = "it was not tried"
        for elapsed in process.poll_until(check.deadline, _HEALTH_PAUSE):
            left = max(1.0, check.deadline - elapsed)
            try:
                reason = _unwell(connection, check, values, left)
            except NotDone as error:
                reason = str(error)
            if not reason:
                break
        else:
            raise NotDone(f"{check.name!r} did not hold within {check.deadline:g} s: {reason}")


def is_healthy(connection: Any, checks: Sequence[Health], values: Mapping[str, str]) -> bool:
    """Whether all of it holds just now."""
    try:
        return not any(_unwell(connection, check, values, check.deadline) for check in checks)
    except NotDone:
        return False


def _unwell(connection: Any, check: Health, values: Mapping[str, str], seconds: float) -> str:
    """Why a check does not hold; "" where it does."""
    if check.run is not None:
        said = run(connection, check.run, values, seconds)
        return "" if said.code == 0 else f"exit status {said.code}: {said.last}"
    assert check.url is not None
    url = role.fill_in(check.url, values)
    # The node itself is asked, as by ssh: no proxy in between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=min(seconds, _REQUEST)) as answer:
            return "" if answer.status < 400 else f"{url} answers {answer.status}"
    except urllib.error.HTTPError as error:
        error.close()
        return f"{url} answers {error.code}"
    except (OSError, ValueError) as error:
        return f"{url} does not answer: {getattr(error, 'reason', error)}"


def _exchange(
    connection: Any,
    command: str,
    sent: bytes,
    patience: float,
    *,
    to: IO[bytes] | None = None,
    most: int | None = None,
) -> tuple[int, str, str]:
    """Run a command line of the login shell's with ``sent`` as its input: exit status, output, errors."""
    import paramiko

    end = time.monotonic() + patience
    out, err = bytearray(), bytearray()
    left, open_input, written = memoryview(sent), True, 0
    try:
        with connection.client.get_transport().open_session(timeout=patience) as channel:
            channel.settimeout(patience)
            channel.exec_command(command)
            while True:
                busy = False
                if open_input and left and channel.send_ready():
                    left, busy = left[_send(channel, left) :], True
                if open_input and not left:
                    channel.shutdown_write()
                    open_input = False
                if channel.recv_ready():
                    block, busy = channel.recv(_BLOCK), True
                    written += len(block)
                    if most is not None and written > most:
                        raise NotDone(f"it printed more than {most >> 20} MiB")
                    if to is not None:
                        to.write(block)
                    else:
                        out = (out + block)[-_KEPT:]
                if channel.recv_stderr_ready():
                    err, busy = (err + channel.recv_stderr(_BLOCK))[-_KEPT:], True
                if busy:
                    continue
                if channel.exit_status_ready() and not channel.recv_ready() and not channel.recv_stderr_ready():
                    break
                if time.monotonic() > end:
                    raise NotDone(f"the node did not answer within {patience:g} s")
                time.sleep(_POLL)
            code = channel.recv_exit_status()
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise NotDone(f"the connection to the node broke: {type(error).__name__}: {error}") from error
    if code < 0:
        raise NotDone("the connection to the node broke before the command ended")
    return code, out.decode(errors="replace"), err.decode(errors="replace")


def _send(channel: Any, left: memoryview) -> int:
    """How much of ``left`` was taken; all of it where the command ended without reading it."""
    try:
        return int(channel.send(left[:_BLOCK].tobytes()))
    except OSError:
        if channel.exit_status_ready():
            return len(left)
        raise

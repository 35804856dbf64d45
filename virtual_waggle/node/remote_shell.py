# SPDX-License-Identifier: Apache-2.0
"""What rsync starts as its remote shell: ``python3 -I -S remote_shell.py SOCKET [-l USER] HOST COMMAND...``.

It hands its standard streams and the command to the uploader, which has a connection to the Beehive (beehive_ssh.py),
and waits for the exit status.  The standard library alone: so it starts in 20 ms, where asyncssh takes half a second.
"""

import socket
import sys

UNREACHABLE = 255  # exit status, as ssh's


def main(words: list[str]) -> int:
    """Ask for the command to be run; its exit status."""
    place, rest = words[0], words[1:]
    if rest[:1] == ["-l"]:
        rest = rest[2:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            line.connect(place)
            socket.send_fds(line, [" ".join(rest[1:]).encode()], [0, 1, 2])
            answer = line.recv(1)
    except OSError:
        return UNREACHABLE
    return answer[0] if answer else UNREACHABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

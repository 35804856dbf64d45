# SPDX-License-Identifier: Apache-2.0
"""Checks that are made from outside the machine: what its ssh server, its firewall and its login message do."""

import time
from collections.abc import Callable
from typing import Any

from image_builder.hardware import Guise
from image_builder.machine import CLOSED_PORT, Machine
from image_builder.variant import Probe

_SHELL_PROMPT = ("$ ", "# ")
# Says who comes in.  The script that looks from outside looks from inside too, so that silence means something.
_LISTENER = f"""
import socket
listener = socket.create_server(("", {CLOSED_PORT}))
print("listening", flush=True)
while True:
    stream, peer = listener.accept()
    print("came in:", peer[0], flush=True)
    stream.sendall(b"hello")
    stream.close()
"""


def make(probe: Probe, guest: Machine, connection: Any, timeout: float) -> tuple[bool, str]:
    """Make one such check within ``timeout`` seconds: whether the promise is kept, and what was seen.

    ``connection`` is a fabric.Connection of ``cc``'s.
    """
    try:
        return _PROBES[probe](guest, connection, timeout)
    except Exception as error:  # paramiko and sockets have dozens; another check may still succeed
        return False, f"{type(error).__name__}: {error}"


def _password_refused(guest: Machine, _: Any, timeout: float) -> tuple[bool, str]:
    offered = guest.offered_logins("cc", timeout)
    return offered == ["publickey"], f"the ssh server offers: {', '.join(offered)}"


def _root_refused(guest: Machine, _: Any, timeout: float) -> tuple[bool, str]:
    taken = guest.takes_key_of("root", timeout)
    return not taken, "root logged in by key" if taken else "root was refused"


def _firewall(guest: Machine, connection: Any, timeout: float) -> tuple[bool, str]:
    """Whether a service that listens on all addresses is reached from outside."""
    channel = connection.client.get_transport().open_session(timeout=timeout)
    channel.settimeout(timeout)
    channel.exec_command(f"exec timeout {timeout:g} python3 -c '{_LISTENER}'")
    with channel, channel.makefile("r") as output:
        said = [output.readline().strip()]
        outside = guest.hears(CLOSED_PORT, 3.0)
        inside = connection.run(
            f"timeout {timeout:g} bash -c 'head --bytes=5 < /dev/tcp/127.0.0.1/{CLOSED_PORT}'",
            hide=True,
            warn=True,
            in_stream=False,
            timeout=timeout,
        ).stdout
        while said[-1] and not said[-1].endswith("127.0.0.1"):
            said.append(output.readline().strip())
    seen = f"from outside: {outside!r}; from inside: {inside!r}; the service: {said}"
    came_in = outside == b"hello" or len(said) > 2
    return inside == "hello" and came_in == (guest.site.guise is Guise.VIRTUAL), seen


def _login_message(guest: Machine, _: Any, timeout: float) -> tuple[bool, str]:
    """What a person sees who logs in: node, region and lease, where the site told them."""
    end = time.monotonic() + timeout
    seen = ""
    # A connection of its own: sshd tells the message once a connection.
    with guest.connect("cc", timeout) as person, person.client.invoke_shell(term="vt220", width=200) as channel:
        while not seen.endswith(_SHELL_PROMPT) and (left := end - time.monotonic()) > 0:
            channel.settimeout(left)
            more = channel.recv(4096)
            if not more:
                break
            seen += more.decode(errors="replace")
    prompted = seen.endswith(_SHELL_PROMPT)
    told = (guest.site.instance.vendor_data2 or {}).get("chameleon") if guest.site.instance else None
    if told is None:
        kept = "Chameleon:" not in seen and "error" not in seen.lower() and "null" not in seen
    else:
        kept = all(told[key] in seen for key in ("node", "region", "lease_id", "lease_end"))
    return prompted and kept, seen


_PROBES: dict[Probe, Callable[[Machine, Any, float], tuple[bool, str]]] = {
    Probe.SSH_PASSWORD_REFUSED: _password_refused,
    Probe.SSH_ROOT_REFUSED: _root_refused,
    Probe.FIREWALL: _firewall,
    Probe.LOGIN_MESSAGE: _login_message,
}

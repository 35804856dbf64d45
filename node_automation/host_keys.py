# SPDX-License-Identifier: Apache-2.0
"""A server's ssh host key: made for it, given by cloud-init, checked at the first login, then replaced by its own.

What stands in user data can be read by whoever is on the server, so the key that is made here is good for one login.
After it the server makes a key that never leaves it; its public part is read over the verified connection and kept
with the server, as metadata, so that another machine with the credentials knows it too.  At no moment is there only
a key that nobody knows: the new one is noted before it is put in place, and the old one is forgotten after.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from groundwork.errors import InputError, SageError

GIVEN = "sage_host_key"  # metadata: the public key that was given by user data
OWN = "sage_host_key_own"  # metadata: the public key that the server made itself
TYPE = "ssh-ed25519"
_LARGEST = 65535  # bytes of user data, in base64, which is Nova's limit
_RESERVED = ("ssh_keys", "ssh_deletekeys")


class HostKeyError(SageError):
    """A host key that is none."""


@dataclass(frozen=True)
class HostKey:
    """An ed25519 key pair.  ``private`` in OpenSSH's form, ``public`` as ``ssh-ed25519 AAAA...``."""

    public: str
    private: str = field(repr=False)


@dataclass(frozen=True)
class Place:
    """Where a server's sshd has its keys, and how it is told to read them again; as root."""

    folder: str = "/etc/ssh"
    reload: str = "systemctl restart ssh.service 2>/dev/null || systemctl restart sshd.service"


def make() -> HostKey:
    """A new key pair, in memory alone."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return HostKey(public.decode(), private.decode())


def user_data(key: HostKey, authorized: Sequence[str], more: Mapping[str, Any] | None = None) -> str:
    """The cloud-config that gives a server its host key, and lets those in who have the ``authorized`` keys.

    ``more``: further keys of a cloud-config.  Raises InputError where they are ours to set, or too long for Nova.
    """
    extra = dict(more or {})
    for name in _RESERVED:
        if name in extra:
            raise InputError(f"user data: {name} is set by this program", hint="leave it out")
    keys = [*authorized, *(str(line) for line in extra.pop("ssh_authorized_keys", None) or ())]
    document: dict[str, Any] = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": key.private, "ed25519_public": key.public},
        **({"ssh_authorized_keys": list(dict.fromkeys(keys))} if keys else {}),
        **extra,
    }
    text = "#cloud-config\n" + yaml.safe_dump(document, sort_keys=False, width=1000)
    if len(base64.b64encode(text.encode())) > _LARGEST:
        raise InputError("user data: more than the 48 KiB that a site takes", hint="put files at the node by ssh")
    return text


def accepted(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The public keys by which the server may answer, out of its metadata: its own first, then the given one."""
    return tuple(metadata[name] for name in (OWN, GIVEN) if metadata.get(name))


def make_script(place: Place) -> str:
    """Run on the server as root: makes its key beside the present one, once, and prints the public part."""
    return (
        f"set -eu; umask 077; cd {place.folder}; "
        f"test -s .sage_host_key || ssh-keygen -q -t ed25519 -N '' -C '' -f .sage_host_key; "
        f"ssh-keygen -y -f .sage_host_key"
    )


def swap_script(place: Place) -> str:
    """Run on the server as root: puts the new key in place of all others, and has sshd read it."""
    return (
        f"set -eu; umask 077; cd {place.folder}; "
        f"rm -f ssh_host_ed25519_key.pub; "  # sshd takes no private key beside a public one of another
        f"if test -s .sage_host_key; then mv -f .sage_host_key ssh_host_ed25519_key; fi; "
        f"ssh-keygen -y -f ssh_host_ed25519_key > ssh_host_ed25519_key.pub; chmod 644 ssh_host_ed25519_key.pub; "
        f"rm -f .sage_host_key.pub ssh_host_rsa_key* ssh_host_ecdsa_key* ssh_host_dsa_key*; "
        f"{place.reload}"
    )


def read_public(text: str) -> str:
    """A public key out of what ``make_script`` printed: type and key, without a comment.  Raises HostKeyError."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == TYPE and _is_key(words[1]):
            return f"{TYPE} {words[1]}"
    raise HostKeyError("the server told no ed25519 host key", hint="is ssh-keygen there, and may the user use sudo?")


def _is_key(text: str) -> bool:
    """Whether this is the base64 of an ed25519 key: its type and 32 bytes, each with its length before."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return len(raw) == 51 and raw[:15] == b"\0\0\0\x0b" + TYPE.encode() and raw[15:19] == b"\0\0\0\x20"

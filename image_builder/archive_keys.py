# SPDX-License-Identifier: Apache-2.0
"""The keys that a package archive's signature is checked against: a file of OpenPGP public keys.

Apt takes binary keyrings (RFC 9580, section 10.1: public-key packets one after another) in files named ``*.gpg``;
what people have is often the armored form (section 6), or GnuPG's own keybox, which apt can't read.
"""

import base64
import binascii
import re
from pathlib import Path

from groundwork import files
from groundwork.errors import InputError

_LARGEST = 1 << 20  # bytes; Debian's keyring, one of the largest, has 60 KiB
_ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[A-Za-z]+: [^\n]*\n)*\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL,
)
_KEYBOX = b"KBXf"  # at byte 8
_PUBLIC_KEY = 6  # the packet's type


def read(path: Path) -> bytes:
    """The keys in a file, binary or armored, as one binary keyring.  InputError where there are none."""
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST >> 20} MiB; expected a file of OpenPGP public keys")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read the keyring {path}: {error.strerror}") from None
    if content[8:12] == _KEYBOX:
        raise InputError(
            f"{path} is a keybox of GnuPG's, which apt can't read",
            hint=f"gpg --no-default-keyring --keyring {path} --export > keyring.gpg",
        )
    if blocks := _ARMOR.findall(content):
        try:
            content = b"".join(_binary(block) for block in blocks)
        except binascii.Error as error:
            raise InputError(f"{path} is damaged: {error}") from None
    if _first_packet(content) != _PUBLIC_KEY:
        raise InputError(
            f"{path} has no OpenPGP public key in it", hint="gpg --export KEY > keyring.gpg writes such a file"
        )
    return content


def put(path: Path, folder: Path) -> Path:
    """Make ``folder`` one that apt can be given as its only trusted keyrings; returns it."""
    target = files.make_folder(folder) / "archive.gpg"
    with files.writing(target) as partial:
        partial.write_bytes(read(path))
    return folder


def check(keyring: str, os_name: str, package: str | None) -> None:
    """Raise InputError where there are no keys; ``package`` has the distribution's."""
    if package is not None and not Path(keyring).exists():
        raise InputError(
            f"the keyring of {os_name}'s archive, {keyring}, is not here",
            hint=f"apt-get install {package}, or copy it from a machine that has it, or name another with --keyring",
        )
    read(Path(keyring))


def _binary(block: bytes) -> bytes:
    lines = [line.strip() for line in block.splitlines()]
    return base64.b64decode(b"".join(line for line in lines if not line.startswith(b"=")), validate=True)


def _first_packet(content: bytes) -> int | None:
    """The type of the first packet (RFC 9580, section 4.2); None where it is no OpenPGP at all."""
    if not content or not content[0] & 0x80:
        return None
    return content[0] & 0x3F if content[0] & 0x40 else (content[0] & 0x3C) >> 2

# SPDX-License-Identifier: Apache-2.0
"""A keyring is read whatever its form; what is none is told before anything is downloaded."""

import base64
from pathlib import Path

import pytest

from groundwork.errors import InputError
from image_builder import archive_keys

# The first packet of an Ed25519 key (old format, type 6), and a user id behind it.
KEY = bytes([0x98, 3, 4, 5, 6]) + bytes([0xB4, 1, 65])
ARMORED = (
    "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: of a test\n\n"
    + base64.b64encode(KEY).decode()
    + "\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"
)


def test_a_binary_keyring_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(KEY)
    assert archive_keys.read(tmp_path / "keys") == KEY


def test_armored_keys_become_binary(tmp_path: Path) -> None:
    (tmp_path / "keys.asc").write_text(ARMORED + "\n" + ARMORED.replace("\n", "\r\n"))
    assert archive_keys.read(tmp_path / "keys.asc") == KEY + KEY


def test_apt_gets_a_folder_with_these_keys_alone(tmp_path: Path) -> None:
    (tmp_path / "keys.asc").write_text(ARMORED)
    folder = archive_keys.put(tmp_path / "keys.asc", tmp_path / "trusted")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"archive.gpg": KEY}
    assert (folder / "archive.gpg").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no OpenPGP public key"),
        (b"<html>not found</html>", "no OpenPGP public key"),
        (bytes([0x95, 3, 4, 5, 6]), "no OpenPGP public key"),  # a secret key
        (b"\0\0\0\x20\1\1\0\2KBXf\0\0", "a keybox of GnuPG's"),
        (ARMORED.replace("=abcd", "&&&").encode(), "damaged"),
        (b"x" * (2 << 20), "larger than 1 MiB"),
    ],
)
def test_what_is_no_keyring_is_told(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        archive_keys.read(tmp_path / "keys")


def test_a_keyring_that_is_not_there_is_told_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't read the keyring .*: No such file"):
        archive_keys.check(str(tmp_path / "none"), "Ubuntu", None)
    with pytest.raises(InputError, match="is not here") as raised:
        archive_keys.check(str(tmp_path / "none"), "Ubuntu", "ubuntu-keyring")
    assert "apt-get install ubuntu-keyring" in str(raised.value.hint)

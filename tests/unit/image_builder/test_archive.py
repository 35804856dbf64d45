# SPDX-License-Identifier: Apache-2.0
"""What is asked of the archive, what changed in it, and what apt's own words mean."""

from dataclasses import replace
from pathlib import Path

import pytest

from groundwork.errors import SageError
from image_builder import archive
from image_builder.archive import Change, Planned

KEYRING = Path("/usr/share/keyrings/some.gpg")
DEBIAN = archive.sources(
    "http://deb.example.org/debian/", "http://deb.example.org/debian-security", "bookworm", ["main"]
)
ONE = Planned("one", "1.0", "amd64", "http://a/one.deb", 10, "a" * 64)
TWO = Planned("two", "1:2.0-1", "all", "http://a/two.deb", 20, "b" * 64)


def test_debian_keeps_security_apart_and_ubuntu_does_not() -> None:
    assert [str(source) for source in DEBIAN] == [
        "http://deb.example.org/debian bookworm",
        "http://deb.example.org/debian bookworm-updates",
        "http://deb.example.org/debian-security bookworm-security",
    ]
    ubuntu = archive.sources("http://u.example.org/ubuntu", None, "noble", ["main", "universe"])
    assert str(ubuntu[2]) == "http://u.example.org/ubuntu noble-security"


def test_digest_is_of_packages_and_not_of_mirror_and_order() -> None:
    digest = archive.digest([ONE, TWO])
    assert archive.digest([TWO, ONE]) == digest
    assert archive.digest([replace(ONE, uri="http://another/one.deb"), TWO]) == digest
    assert archive.digest([replace(ONE, version="1.1"), TWO]) != digest
    assert archive.digest([replace(ONE, sha256="c" * 64), TWO]) != digest
    assert archive.digest([ONE]) != digest


def test_differences_name_what_came_went_and_changed() -> None:
    three = replace(ONE, name="three")
    assert archive.differences([ONE, TWO], [replace(TWO, version="2.1"), three]) == (
        Change("one", "1.0", None),
        Change("three", None, "1.0"),
        Change("two", "1:2.0-1", "2.1"),
    )
    assert archive.differences([ONE], [ONE]) == ()


def test_apts_list_of_addresses_is_read() -> None:
    text = (
        "Reading package lists...\n"
        "'http://a/pool/l/libstdc%2b%2b6_12_amd64.deb' libstdc++6_1%3a12.2.0-14+deb12u1_amd64.deb 613 "
        f"SHA256:{'d' * 64}\n"
    )
    assert list(archive._planned(text)) == [
        Planned(
            "libstdc++6", "1:12.2.0-14+deb12u1", "amd64", "http://a/pool/l/libstdc%2b%2b6_12_amd64.deb", 613, "d" * 64
        )
    ]


SECURITY = "http://deb.example.org/debian-security bookworm-security"


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            f"Err:3 {SECURITY} InRelease\n  Temporary failure resolving 'deb.example.org'\n"
            "E: Failed to fetch http://deb.example.org/debian-security/dists/bookworm-security/InRelease  Temporary "
            "failure resolving 'deb.example.org'\n",
            f"the archive at {SECURITY} is out of reach: Temporary failure resolving 'deb.example.org'",
            "--mirror",
        ),
        (
            f"W: GPG error: {SECURITY} InRelease: The following signatures couldn't be verified because the public key "
            f"is not available: NO_PUBKEY 0E98404D386FA1D9\nE: The repository '{SECURITY} InRelease' is not signed.\n",
            f"the archive at {SECURITY} is not signed with a key of {KEYRING}: .*NO_PUBKEY 0E98404D386FA1D9",
            "whose archive",
        ),
        (
            f"Err:1 {SECURITY} InRelease\n  Sub-process /usr/bin/sqv returned an error code (1), error message is: "
            f"Missing key F8D2585B8783D481, which is needed to verify signature.\n"
            f"E: The repository '{SECURITY} InRelease' is not signed.\n",
            f"the archive at {SECURITY} is not signed with a key of {KEYRING}: .*Missing key F8D2585B8783D481",
            "whose archive",
        ),
        (
            f"Err:4 {SECURITY}/main amd64 Packages\n  File has unexpected size (12 != 40). Mirror sync in progress?\n"
            "E: Failed to fetch http://deb.example.org/debian-security/dists/bookworm-security/main/binary-amd64/"
            "Packages.xz  File has unexpected size (12 != 40). Mirror sync in progress?\n",
            f"an index of the archive at {SECURITY} came damaged or by half.*unexpected size",
            "try again",
        ),
        (
            "E: Release file for http://deb.example.org/debian-security/dists/bookworm-security/InRelease is expired "
            "(invalid since 3d 2h). Updates for this repository will not be applied.\n",
            f"the archive at {SECURITY} is past its date of expiry",
            "clock",
        ),
        (
            f"Err:3 {SECURITY} Release\n  404  Not Found [IP: 1.2.3.4 80]\n"
            f"E: The repository '{SECURITY} Release' does not have a Release file.\n",
            f"there is no archive at {SECURITY}",
            "--release",
        ),
        ("E: Something else\n", r"could not fetch .*Something else", "try again"),
    ],
)
def test_what_apt_says_is_told_with_the_archive_and_what_to_do(said: str, message: str, hint: str) -> None:
    error = archive._explain(said, DEBIAN, KEYRING)
    with pytest.raises(SageError, match=message):
        raise error
    assert hint in str(error.hint)
    assert error.exit_code == 1

# SPDX-License-Identifier: Apache-2.0
"""What apt says of an archive that can't be trusted is told in one line, with what to do."""

import pytest

from image_builder import archive_errors

URL = "http://mirror.example.org/ubuntu"
FILE = f"{URL}/dists/noble/main/binary-amd64/Packages.xz"
KEY = "F6ECB3762474EDA9D21B7022871920D1991BC93C"
NO_KEY = "The following signatures couldn't be verified because the public key is not available: NO_PUBKEY"
INVALID = "The following signatures were invalid:"
SIZE = "File has unexpected size (5 != 6). Mirror sync in progress? [IP: 192.0.2.1 80]"
NOSPLIT = "Clearsigned file isn't valid, got 'NOSPLIT' (does the network require authentication?)"
NOT_YET = "is not valid yet (invalid for another 9h 2min 1s). Updates for this repository will not be applied."
SQV = "Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key"
NOT_SIGNED = f"E: The repository '{URL} noble InRelease' is not signed.\nE: mmdebstrap failed to run\n"
BY_OTHER = f"the archive {URL} noble is signed by the key {KEY}, which is not in /k.gpg"
# As apt 2.6 prints them; the one of OpenPGP as apt 3.0 does, which checks by sqv.
CASES = [
    (f"W: GPG error: {URL} noble InRelease: {NO_KEY} {KEY}\n{NOT_SIGNED}", BY_OTHER, "--keyring"),
    (
        f"W: OpenPGP signature verification failed: {URL} noble InRelease: {SQV} {KEY}, which is needed to verify "
        f"signature.\n{NOT_SIGNED}",
        BY_OTHER,
        "--keyring",
    ),
    (
        f"W: GPG error: {URL} noble InRelease: {INVALID} BADSIG {KEY} Ubuntu\n{NOT_SIGNED}",
        f"the archive {URL} noble was changed after it was signed: {INVALID} BADSIG {KEY} Ubuntu",
        "another --mirror",
    ),
    (
        f"W: GPG error: {URL} noble InRelease: {INVALID} EXPKEYSIG {KEY} Ubuntu\n{NOT_SIGNED}",
        f"the archive {URL} noble is signed by a key that is no longer valid: {INVALID} EXPKEYSIG {KEY} Ubuntu",
        "--keyring",
    ),
    (NOT_SIGNED, f"the archive {URL} noble is not signed", "--mirror that is signed"),
    (
        f"E: Failed to fetch {URL}/dists/noble/InRelease  {NOSPLIT}\n",
        f"the archive {URL}/dists/noble/InRelease: the signed file is damaged: {NOSPLIT}",
        "another --mirror",
    ),
    (
        f"E: Failed to fetch {FILE}  Hash Sum mismatch\n   Hashes of expected",
        f"{FILE} is not the file that the archive's signed index tells of: Hash Sum mismatch",
        "something between",
    ),
    (
        f"E: Failed to fetch {FILE}  {SIZE}\n",
        f"{FILE} is not the file that the archive's signed index tells of: {SIZE}",
        "try again in some minutes",
    ),
    (
        f"E: Release file for {URL}/dists/noble/InRelease {NOT_YET}\n",
        f"the archive {URL}/dists/noble/InRelease {NOT_YET}",
        "clock",
    ),
]


@pytest.mark.parametrize(("log", "message", "hint"), CASES, ids=range(len(CASES)))
def test_the_archive_and_what_is_wrong_with_it_are_named(log: str, message: str, hint: str) -> None:
    found = archive_errors.find(f"I: running apt-get update...\n{log}", "/k.gpg")
    assert found is not None
    assert found.message == message
    assert hint in found.hint


def test_other_errors_are_not_taken_for_these() -> None:
    assert archive_errors.find("E: Unable to locate package nonesuch\n", "/k.gpg") is None
    assert archive_errors.find("W: Failed to fetch http://h/x  Connection refused\n", "/k.gpg") is None

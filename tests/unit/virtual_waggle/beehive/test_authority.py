# SPDX-License-Identifier: Apache-2.0
"""The Beehive's certificate authority: what it certifies, when it does so anew, and that it never replaces a key."""

import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from groundwork.errors import InputError
from virtual_waggle import certificates
from virtual_waggle.beehive import authority
from virtual_waggle.beehive.authority import Authority

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
NODE = "node-0000000000000001"


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    authority.make_authority(tmp_path / "ca-key.pem", tmp_path / "ca-cert.pem", now=NOW)
    return authority.open_authority(tmp_path / "ca-key.pem", tmp_path / "ca-cert.pem")


def certify(ours: Authority, folder: Path, name: str = NODE, *, now: datetime = NOW, **more: object) -> bool:
    given = {"days": 90, **more}
    return authority.certify(ours, folder / "key.pem", folder / "cert.pem", name, now=now, **given)  # type: ignore[arg-type]


def extension(certificate: x509.Certificate, kind: type) -> object:
    return certificate.extensions.get_extension_for_class(kind).value


def test_an_authority_made_twice_is_the_same(tmp_path: Path, ours: Authority) -> None:
    before = [(tmp_path / name).read_bytes() for name in ("ca-key.pem", "ca-cert.pem")]
    assert not authority.make_authority(tmp_path / "ca-key.pem", tmp_path / "ca-cert.pem", now=NOW)
    assert [(tmp_path / name).read_bytes() for name in ("ca-key.pem", "ca-cert.pem")] == before
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o777 == 0o600


def test_an_authority_whose_making_was_broken_off_is_finished_with_its_key(tmp_path: Path, ours: Authority) -> None:
    key = (tmp_path / "ca-key.pem").read_bytes()
    (tmp_path / "ca-cert.pem").unlink()
    assert authority.make_authority(tmp_path / "ca-key.pem", tmp_path / "ca-cert.pem", now=NOW)
    assert (tmp_path / "ca-key.pem").read_bytes() == key


def test_a_lost_authoritys_key_is_told_and_not_replaced(tmp_path: Path, ours: Authority) -> None:
    (tmp_path / "ca-key.pem").unlink()
    with pytest.raises(InputError, match="stands without its key"):
        authority.make_authority(tmp_path / "ca-key.pem", tmp_path / "ca-cert.pem", now=NOW)
    assert not (tmp_path / "ca-key.pem").exists()


def test_another_authoritys_key_is_told(tmp_path: Path, ours: Authority) -> None:
    other = tmp_path / "other"
    authority.make_authority(other / "ca-key.pem", other / "ca-cert.pem", now=NOW)
    with pytest.raises(InputError, match="is not the certificate of"):
        authority.open_authority(other / "ca-key.pem", tmp_path / "ca-cert.pem")


def test_a_servers_certificate_names_its_hosts_and_serves_servers_alone(tmp_path: Path, ours: Authority) -> None:
    certify(ours, tmp_path, "beehive.example.org", hosts=("beehive.example.org", "192.0.2.7", "2001:db8::1"))
    certificate = certificates.read_certificate(tmp_path / "cert.pem")
    names = extension(certificate, x509.SubjectAlternativeName)
    assert isinstance(names, x509.SubjectAlternativeName)
    # Erlang, a shovel's, asks for an address as if it were a name.
    assert names.get_values_for_type(x509.DNSName) == ["beehive.example.org", "192.0.2.7", "2001:db8::1"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["192.0.2.7", "2001:db8::1"]
    assert extension(certificate, x509.ExtendedKeyUsage) == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def test_a_nodes_certificate_carries_its_name_and_signs_nothing(tmp_path: Path, ours: Authority) -> None:
    certify(ours, tmp_path)
    certificate = certificates.read_certificate(tmp_path / "cert.pem")
    assert certificates.common_name_of(certificate) == NODE
    assert extension(certificate, x509.ExtendedKeyUsage) == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    constraints = extension(certificate, x509.BasicConstraints)
    assert isinstance(constraints, x509.BasicConstraints)
    assert not constraints.ca
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


def test_openssl_takes_key_and_certificate_as_a_pair(tmp_path: Path, ours: Authority) -> None:
    certify(ours, tmp_path)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca-cert.pem"))
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_serial_numbers_differ(tmp_path: Path, ours: Authority) -> None:
    serials = set()
    for number in range(20):
        certify(ours, tmp_path / str(number))
        serials.add(certificates.read_certificate(tmp_path / str(number) / "cert.pem").serial_number)
    assert len(serials) == 20


def test_a_certificate_is_renewed_in_the_last_third_of_its_time_with_its_key(tmp_path: Path, ours: Authority) -> None:
    assert certify(ours, tmp_path)
    key = (tmp_path / "key.pem").read_bytes()
    assert not certify(ours, tmp_path, now=NOW + timedelta(days=59))
    assert certify(ours, tmp_path, now=NOW + timedelta(days=61))
    assert (tmp_path / "key.pem").read_bytes() == key
    end = certificates.end_of(certificates.read_certificate(tmp_path / "cert.pem"))
    assert end == NOW + timedelta(days=151)


@pytest.mark.parametrize("changed", ["name", "hosts", "authority", "key"])
def test_a_certificate_that_is_no_longer_right_is_made_anew(tmp_path: Path, ours: Authority, changed: str) -> None:
    certify(ours, tmp_path, hosts=("a",))
    before = (tmp_path / "cert.pem").read_bytes()
    by, name, hosts = ours, NODE, ("a",)
    if changed == "name":
        name = "node-0000000000000002"
    elif changed == "hosts":
        hosts = ("b",)
    elif changed == "key":
        (tmp_path / "key.pem").unlink()
    else:
        # an authority of the same name, as a forger would make it
        key, certificate = tmp_path / "2/ca-key.pem", tmp_path / "2/ca-cert.pem"
        authority.make_authority(key, certificate, now=NOW)
        by = Authority(certificates.read_key(key), ours.certificate)
    assert certify(by, tmp_path, name, hosts=hosts)
    assert (tmp_path / "cert.pem").read_bytes() != before
    assert not certify(by, tmp_path, name, hosts=hosts)


def test_no_certificate_outlives_the_authority(tmp_path: Path, ours: Authority) -> None:
    certify(ours, tmp_path, days=10_000_000 // 365)
    certificate = certificates.read_certificate(tmp_path / "cert.pem")
    assert certificates.end_of(certificate) == certificates.end_of(ours.certificate)


def test_what_is_no_certificate_or_key_is_told(tmp_path: Path, ours: Authority) -> None:
    (tmp_path / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    with pytest.raises(InputError, match=r"can't read the certificate .*cert\.pem"):
        certify(ours, tmp_path)
    (tmp_path / "key.pem").write_text("none")
    with pytest.raises(InputError, match=r"can't read the key .*key\.pem"):
        certify(ours, tmp_path)


def test_an_ssh_certificate_is_for_its_users_until_its_end_and_grants_nothing(tmp_path: Path) -> None:
    assert authority.make_ssh_key(tmp_path / "ca", "beehive", public_file=tmp_path / "ca.pub")
    assert not authority.make_ssh_key(tmp_path / "ca", "beehive", public_file=tmp_path / "ca.pub")
    authority.make_ssh_key(tmp_path / "key", NODE)
    end = NOW + timedelta(days=90)
    authority.certify_ssh_user(tmp_path / "ca", tmp_path / "key", tmp_path / "cert", [NODE, "more"], end=end, now=NOW)
    certificate: Any = asyncssh.read_certificate(str(tmp_path / "cert"))
    assert certificate.principals == [NODE, "more"]
    assert certificate.signing_key == asyncssh.read_public_key(str(tmp_path / "ca.pub"))
    assert certificate.options == {}
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600

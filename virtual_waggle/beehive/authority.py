# SPDX-License-Identifier: Apache-2.0
"""The Beehive's own certificate authority: TLS certificates (X.509) and SSH user certificates.

Only what ``cryptography`` 38 and the newest both have is used.  TLS keys are EC P-256, SSH keys Ed25519.  A
certificate that is renewed keeps its key, so that a key and a certificate beside it fit each other at any moment; each
file is written beside its place and renamed.  RFC 5280; OpenSSH's PROTOCOL.certkeys.
"""

import contextlib
import ipaddress
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from groundwork import files
from groundwork.errors import InputError
from virtual_waggle import certificates, state_folder

AUTHORITY_DAYS = 7300
SERVICE_DAYS = 730  # the Beehive's own services
NODE_TIME = timedelta(days=365)
_EARLY = timedelta(days=1)  # clocks of nodes may be behind
_RESTORE = "restore it from a backup; a new authority would shut out every registered node"


class Authority:
    """A certificate authority: its key, and its certificate as PEM."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.key = key
        self.certificate = certificate

    @property
    def pem(self) -> str:
        """Its certificate."""
        return _pem(self.certificate)


def open_authority(key_file: Path, certificate_file: Path) -> Authority:
    """The authority that stands in these files.  Raises InputError where they are no such thing."""
    key = certificates.read_key(key_file)
    certificate = certificates.read_certificate(certificate_file)
    if not certificates.fits(key, certificate):
        raise InputError(f"{certificate_file} is not the certificate of {key_file}", hint=_RESTORE)
    return Authority(key, certificate)


def make_authority(key_file: Path, certificate_file: Path, *, now: datetime) -> bool:
    """Have an authority in these files.  Whether anything changed.  A lost key is told, not replaced."""
    if not key_file.exists():
        if certificate_file.exists():
            raise InputError(f"{certificate_file} stands without its key {key_file}", hint=_RESTORE)
        _write_key(key_file)
    if certificate_file.exists():
        open_authority(key_file, certificate_file)
        return state_folder.guard(key_file)
    key = certificates.read_key(key_file)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Beehive {secrets.token_hex(4)}")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    files.write_text(certificate_file, _pem(builder.sign(key, hashes.SHA256())))
    return True


def certify(
    authority: Authority,
    key_file: Path,
    certificate_file: Path,
    common_name: str,
    *,
    hosts: Sequence[str] = (),
    days: int,
    now: datetime,
) -> bool:
    """Have a key and this authority's certificate of it in these files.  Whether anything changed.

    With ``hosts`` (names and addresses) it is a server's certificate, else a client's.  It is made anew where it is
    missing, another's, for other hosts, or when less than a third of its time is left.
    """
    if not key_file.exists():
        _write_key(key_file)
    changed = state_folder.guard(key_file)
    key = certificates.read_key(key_file)
    if certificate_file.exists():
        certificate = certificates.read_certificate(certificate_file)
        if (
            _is_signed_by(authority, certificate)
            and certificates.fits(key, certificate)
            and certificates.common_name_of(certificate) == common_name
            and _names_of(certificate) == _general_names(hosts)
            and not certificates.is_near_end(certificate, now)
        ):
            return changed
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    public_key = authority.key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(min(now + timedelta(days=days), certificates.end_of(authority.certificate)))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(hosts)), critical=False)
    files.write_text(certificate_file, _pem(builder.sign(authority.key, hashes.SHA256())))
    return True


def make_ssh_key(key_file: Path, comment: str, *, public_file: Path | None = None) -> bool:
    """Have an SSH key in this file, and its public half in another where that is given.  Whether anything changed."""
    changed = False
    if not key_file.exists():
        text = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        files.write_text(key_file, text.decode(), mode=0o600)
        changed = True
    changed |= state_folder.guard(key_file)
    if public_file is not None:
        line = f"{ssh_public(key_file)} {comment}\n"
        if not public_file.exists() or public_file.read_text() != line:
            files.write_text(public_file, line)
            changed = True
    return changed


def ssh_public(key_file: Path) -> str:
    """The public half of an SSH key: ``ssh-ed25519 AAAA...``."""
    try:
        key = serialization.load_ssh_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise InputError(f"can't read the SSH key {key_file}: {error}") from None
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def certify_ssh_user(
    authority_file: Path,
    key_file: Path,
    certificate_file: Path,
    principals: Sequence[str],
    *,
    end: datetime,
    now: datetime,
) -> None:
    """Write this authority's SSH certificate of a key: for these users and no other, for no terminal, no forwarding."""
    import asyncssh  # takes 0.2 s

    authority = asyncssh.read_private_key(str(authority_file))
    certificate = authority.generate_user_certificate(
        asyncssh.import_public_key(ssh_public(key_file)),
        key_id=principals[0],
        serial=secrets.randbits(63),
        principals=list(principals),
        valid_after=int((now - _EARLY).timestamp()),
        valid_before=int(end.timestamp()),
        permit_x11_forwarding=False,
        permit_agent_forwarding=False,
        permit_port_forwarding=False,
        permit_pty=False,
        permit_user_rc=False,
        comment=principals[0],
    )
    files.write_text(certificate_file, certificate.export_certificate().decode())


def _names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _general_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Names and addresses; an address stands there as a name too, for Erlang looks it up as one (a node's shovel)."""
    found: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
    for host in hosts:
        with contextlib.suppress(ValueError):
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
    return found


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_signed_by(authority: Authority, certificate: x509.Certificate) -> bool:
    algorithm = certificate.signature_hash_algorithm
    if certificate.issuer != authority.certificate.subject or algorithm is None:
        return False
    try:
        authority.key.public_key().verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _write_key(path: Path) -> None:
    text = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files.write_text(path, text.decode(), mode=0o600)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()

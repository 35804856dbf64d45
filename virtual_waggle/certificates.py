# SPDX-License-Identifier: Apache-2.0
"""Certificates (X.509) as node and Beehive read them: whose, until when, of which key."""

from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from groundwork.errors import InputError


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file.  Raises InputError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"can't read the certificate {path}: {error}") from None


def end_of(certificate: x509.Certificate) -> datetime:
    """When a certificate ends."""
    # cryptography 42 has the first, releases to come may lack the second
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc
    return certificate.not_valid_after.replace(tzinfo=timezone.utc)


def begin_of(certificate: x509.Certificate) -> datetime:
    """When a certificate begins."""
    if hasattr(certificate, "not_valid_before_utc"):
        return certificate.not_valid_before_utc
    return certificate.not_valid_before.replace(tzinfo=timezone.utc)


def is_near_end(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether less than a third of a certificate's time is left."""
    end = end_of(certificate)
    return end - now < (end - begin_of(certificate)) / 3


def common_name_of(certificate: x509.Certificate) -> str:
    """The common name of a certificate's subject, or ""."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def fits(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bool:
    """Whether a certificate is of this key."""
    public_key = certificate.public_key()
    return isinstance(public_key, ec.EllipticCurvePublicKey) and (
        public_key.public_numbers() == key.public_key().public_numbers()
    )


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The elliptic curve key in a PEM file.  Raises InputError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"can't read the key {path}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} holds no elliptic curve key")
    return key

# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests of brokers: an authority, servers, nodes, and such as are not valid."""

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from groundwork import files

Key = ec.EllipticCurvePrivateKey


class Authority:
    """A certificate authority of its own."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = datetime.now(timezone.utc)
        self.certificate = (
            _builder(self._name, self._name, self._key, now - timedelta(days=2), now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def server(self, folder: Path) -> Path:
        """What a Beehive's broker has: ca-cert.pem, server-cert.pem for localhost, server-key.pem."""
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        self._issue(folder, "localhost", "server", names=names)
        _write(folder / "ca-cert.pem", self.certificate.public_bytes(serialization.Encoding.PEM))
        return folder

    def client(self, folder: Path, user: str, kind: str, *, expired: bool = False) -> Path:
        """``<kind>-cert.pem`` and ``<kind>-key.pem`` of a user of the Beehive's broker, with beehive-ca.pem."""
        self._issue(folder, user, kind, expired=expired)
        _write(folder / "beehive-ca.pem", self.certificate.public_bytes(serialization.Encoding.PEM))
        return folder

    def node(self, folder: Path, node_id: str, *, expired: bool = False) -> Path:
        """What registration gives a node: beehive-ca.pem, node-cert.pem, node-key.pem."""
        return self.client(folder, f"node-{node_id}", "node", expired=expired)

    def _issue(
        self,
        folder: Path,
        name: str,
        kind: str,
        *,
        names: "list[x509.GeneralName] | None" = None,
        expired: bool = False,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        end = datetime.now(timezone.utc) + timedelta(days=-1 if expired else 1)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(_name(name), self._name, key, end - timedelta(days=1, hours=12), end).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        _write(folder / f"{kind}-cert.pem", certificate.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(folder / f"{kind}-key.pem", secret)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _write(path: Path, text: bytes) -> None:
    files.write_text(path, text.decode(), mode=0o600)

"""Real certificates, made in a moment: an authority of one's own, and what it signs."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: str = "") -> bytes:
        kind: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            kind = serialization.BestAvailableEncryption(password.encode())
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kind)


def signed(
    name: str,
    by: Pair | None = None,
    *,
    authority: bool = False,
    begins: timedelta = -DAY,
    ends: timedelta = 30 * DAY,
    curve: ec.EllipticCurve | None = None,
    purpose: x509.ObjectIdentifier | None = None,
) -> Pair:
    """A certificate for localhost and 127.0.0.1 that `by` signed, or it itself; valid from and to a time from now.

    curve: of its key; None for P-256. purpose: None says none.
    """
    key, now = ec.generate_private_key(curve or ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if not authority:
        hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return Pair(builder.sign(by.key if by else key, hashes.SHA256()), key)


@dataclass(frozen=True)
class Files:
    """Where a server's certificate lies, with the authority that clients believe."""

    folder: Path
    authority: Pair

    @property
    def chain(self) -> Path:
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def put(self, pair: Pair) -> None:
        """Puts a server's certificate there, as a tool does that renews it."""
        self.chain.write_bytes(pair.pem())
        self.key.write_bytes(pair.key_pem())

    def client(self, name: str, by: Pair | None = None) -> tuple[Path, Path]:
        """A client's certificate and key, signed by the authority unless by another."""
        pair = signed(name, by or self.authority)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(pair.pem())
        key.write_bytes(pair.key_pem())
        return certificate, key


def files(folder: Path) -> Files:
    """An authority and a server's certificate, in a folder."""
    folder.mkdir(exist_ok=True)
    made = Files(folder, signed("test authority", authority=True))
    made.ca.write_bytes(made.authority.pem())
    made.put(signed("the first", made.authority))
    return made

"""TLS: the server's certificate and key, and whose certificates callers must show; exchanged without a restart."""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, PublicKeyAlgorithmOID

from coldframe.errors import InvalidArgument
from server.security.files import Watched, content

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = logging.getLogger("coldframe.server")
_SOON = timedelta(days=14)
_DAY_S = 86_400
_CURVES = frozenset({"secp256r1", "secp384r1"})
_PEM_END = re.compile(rb"-----END [^-\n]+-----")


@dataclass(frozen=True)
class CertificateFiles:
    """Where they lie, all in PEM.

    chain: the server's certificate and those that signed it, the root left out. client_ca: callers must show a
    certificate that one of these signed; None asks for none.
    """

    chain: Path
    key: Path
    client_ca: Path | None = None
    password: str | None = None
    """Of an encrypted key."""

    @property
    def paths(self) -> list[Path]:
        """The files to watch."""
        return [self.chain, self.key, *([self.client_ca] if self.client_ca else [])]


@dataclass(frozen=True)
class Certificate:
    """A certificate that a server can be run with: read, and found whole, valid and of this key."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    subject: str
    names: list[str]
    """The hosts that it stands for."""
    expires_at: datetime


class Tls:
    """What every handshake asks for; `refresh` exchanges it."""

    def __init__(self, files: CertificateFiles) -> None:
        self._client_ca = files.client_ca is not None
        self._watched = Watched("certificate", files.paths, lambda: read_certificate(files))
        self._told: Certificate | None = self._watched.value
        self._warned_at: float | None = None
        self._lock = threading.Lock()

    @property
    def certificate(self) -> Certificate:
        """The one in use."""
        return self._watched.value

    @property
    def refused(self) -> bool:
        """Whether the files hold another one by now, which cannot be used."""
        return self._watched.refused

    def credentials(self) -> grpc.ServerCredentials:
        """For a port of a gRPC server. Connections that stand keep what they began with."""
        now = _configuration(self.certificate)
        return grpc.dynamic_ssl_server_credentials(now, self._news, self._client_ca)  # type: ignore[arg-type]  # None, too

    def _news(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake, on a thread of gRPC's: another configuration, or None for the one before."""
        with self._lock:
            if self._told is self._watched.value:
                return None
            self._told = self._watched.value
            return _configuration(self._told)

    def refresh(self) -> None:
        """Looks whether the files changed; warns once a day of a certificate that will soon be worth nothing."""
        self._watched.refresh()
        if self.certificate.expires_at - datetime.now(UTC) > _SOON:
            return
        now = time.monotonic()  # a clock that was ahead and is put back would keep it silent until then
        if self._warned_at is None or now - self._warned_at > _DAY_S:
            self._warned_at = now
            _log.warning("the certificate of %s ends on %s", self.certificate.subject, self.certificate.expires_at)


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    pair = (certificate.key, certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], certificate.client_ca)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_certificate(files: CertificateFiles) -> Certificate:
    """Reads and checks. Raises InvalidArgument that names the file, and what is wrong with it."""
    chain, key, now = _chain(files.chain), _key(files), datetime.now(UTC)
    leaf = chain[0]
    _require_kind(leaf, files.chain)
    _require_purpose(leaf, files.chain)
    if _spki(leaf.public_key()) != _spki(key.public_key()):
        raise _refused(files.key, "is not the key of", f"{files.chain}; give the pair that belongs together", "tls_key")
    for certificate in chain:
        _require_valid(certificate, files.chain, now)
    _require_order(chain, files.chain)
    return Certificate(
        # Without what else the files may hold: gRPC takes the first key or certificate that it finds.
        b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        _client_ca(files, now),
        leaf.subject.rfc4514_string() or "no name",
        names(leaf),
        leaf.not_valid_after_utc,
    )


def _chain(path: Path, field: str = "tls_cert") -> list[x509.Certificate]:
    content = _bytes(path, field)
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise _refused(path, "holds no certificate", "in PEM (-----BEGIN CERTIFICATE-----)", field) from error
    # What has no end is passed over in there: callers would be shown a chain that stops where the disk was full.
    if content.count(b"-----BEGIN ") != len(_PEM_END.findall(content)):
        raise _refused(path, "is cut off: a certificate", "in it has no end; put it there whole", field)
    return found


def _key(files: CertificateFiles) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    content = _bytes(files.key, "tls_key")
    password = files.password.encode() if files.password else None
    try:
        # A key that is not encrypted refuses a password, which one who changes both cannot help giving for a while.
        if password is not None and b"ENCRYPTED" not in content:
            password = None
        key = serialization.load_pem_private_key(content, password)
    except TypeError as error:
        raise _refused(files.key, "is encrypted;", "give its password as --tls-key-password", "tls_key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refused(files.key, "holds no private key in PEM", "that this password opens", "tls_key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise _refused(files.key, "is of a kind that", "gRPC does not take; make an ECDSA or RSA key", "tls_key")
    return key


def _client_ca(files: CertificateFiles, now: datetime) -> bytes | None:
    if files.client_ca is None:
        return None
    found = [one for one in _chain(files.client_ca, "tls_client_ca") if one.not_valid_after_utc > now]
    if not found:
        raise _refused(files.client_ca, "holds only", "certificates that have expired", "tls_client_ca")
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in found)


def _require_kind(leaf: x509.Certificate, path: Path) -> None:
    """With others gRPC does not start, or goes on with the one before in silence; of P-521 its clients take none."""
    try:
        key = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    of_curve = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    of_rsa = (
        isinstance(key, rsa.RSAPublicKey) and leaf.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5
    )
    if not (of_curve or of_rsa):
        raise _refused(
            path, "is for a key that", "gRPC does not take; make one of ECDSA with P-256 or P-384, or of RSA"
        )


def _require_purpose(leaf: x509.Certificate, path: Path) -> None:
    """Every client refuses another one, such as a client's own."""
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {*purposes}:
        raise _refused(path, "is not for a server:", "its extendedKeyUsage has no serverAuth")


def _require_valid(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    name = certificate.subject.rfc4514_string()
    if now >= until:
        raise _refused(path, f"has expired: {name}", f"was valid until {until:%Y-%m-%d %H:%M} UTC")
    if now < since:
        raise _refused(path, f"is not valid yet: {name}", f"begins on {since:%Y-%m-%d %H:%M} UTC")


def _require_order(chain: Sequence[x509.Certificate], path: Path) -> None:
    for below, above in pairwise(chain):
        try:
            below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise _refused(
                path,
                f"is no chain: {below.subject.rfc4514_string()} was not signed by the one after it;",
                "put the server's own certificate first, and behind each the one that signed it",
            ) from error


def names(leaf: x509.Certificate) -> list[str]:
    """The hosts that a certificate stands for."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # of any kind that a certificate may hold
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _bytes(path: Path, field: str) -> bytes:
    try:
        return content(path)
    except OSError as error:
        raise _refused(path, "cannot be read:", str(error.strerror), field) from error


def _refused(path: Path, what: str, more: str, field: str = "tls_cert") -> InvalidArgument:
    return InvalidArgument(f"{path} {what} {more}", field=field)

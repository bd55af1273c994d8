"""What a certificate's files must be, and what is said of them and of its end."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from coldframe.errors import InvalidArgument
from server.security.certificates import CertificateFiles, Tls, read_certificate
from tests.certificates import DAY, files, signed
from tests.clocks import ahead

if TYPE_CHECKING:
    from pathlib import Path


def test_a_certificate_says_what_it_is(tmp_path: Path) -> None:
    own = files(tmp_path / "tls")
    found = read_certificate(CertificateFiles(own.chain, own.key, own.ca))
    assert (found.subject, found.names) == ("CN=the first", ["localhost", "127.0.0.1"])
    assert timedelta(days=29) < found.expires_at - datetime.now(UTC) < timedelta(days=31)


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    own, pair = files(tmp_path / "tls"), signed("x")
    own.chain.write_bytes(pair.pem())
    own.key.write_bytes(pair.key_pem("open sesame"))
    assert read_certificate(CertificateFiles(own.chain, own.key, password="open sesame")).subject == "CN=x"
    for password, why in ((None, "is encrypted; give its password"), ("wrong", "that this password opens")):
        with pytest.raises(InvalidArgument, match=why) as raised:
            read_certificate(CertificateFiles(own.chain, own.key, password=password))
        assert raised.value.field == "tls_key"
    own.key.write_bytes(pair.key_pem())
    read_certificate(CertificateFiles(own.chain, own.key, password="left over"))


def test_a_whole_chain_is_sent_and_a_key_of_a_kind_that_grpc_does_not_take_is_named(tmp_path: Path) -> None:
    own = files(tmp_path / "tls")
    middle = signed("middle", own.authority, authority=True)
    leaf = signed("leaf", middle)
    own.put(leaf)
    own.chain.write_bytes(leaf.pem() + middle.pem())
    assert read_certificate(CertificateFiles(own.chain, own.key)).chain.count(b"BEGIN CERTIFICATE") == 2
    own.chain.write_bytes(middle.pem() + leaf.pem())
    with pytest.raises(InvalidArgument):
        read_certificate(CertificateFiles(own.chain, own.key))
    key = ed25519.Ed25519PrivateKey.generate()
    own.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(InvalidArgument, match="make an ECDSA or RSA key"):
        read_certificate(CertificateFiles(own.chain, own.key))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"curve": ec.SECP256K1()}, "for a key that gRPC does not take"),
        ({"curve": ec.BrainpoolP256R1()}, "for a key that gRPC does not take"),
        ({"curve": ec.SECP521R1()}, "for a key that gRPC does not take"),
        ({"purpose": ExtendedKeyUsageOID.CLIENT_AUTH}, "is not for a server"),
    ],
)
def test_a_certificate_that_no_client_could_be_shown_is_refused(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    own = files(tmp_path / "tls")
    own.put(signed("odd", own.authority, **options))
    with pytest.raises(InvalidArgument, match=why):
        read_certificate(CertificateFiles(own.chain, own.key))
    own.put(signed("good", own.authority, curve=ec.SECP384R1(), purpose=ExtendedKeyUsageOID.SERVER_AUTH))
    read_certificate(CertificateFiles(own.chain, own.key))


@pytest.mark.parametrize("kept", [20, 200, -10], ids=["first line", "body", "last line"])
def test_a_chain_that_a_full_disk_cut_off_is_not_taken_for_a_shorter_one(tmp_path: Path, kept: int) -> None:
    own = files(tmp_path / "tls")
    middle = signed("middle", own.authority, authority=True)
    own.put(leaf := signed("leaf", middle))
    own.chain.write_bytes(leaf.pem() + middle.pem()[:kept])
    with pytest.raises(InvalidArgument, match="is cut off"):
        read_certificate(CertificateFiles(own.chain, own.key))


def test_a_certificate_that_will_soon_end_is_warned_of_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = files(tmp_path / "tls")
    own.put(signed("brief", own.authority, ends=2 * DAY))
    tls = Tls(CertificateFiles(own.chain, own.key))
    for _ in range(3):
        tls.refresh()
    assert caplog.text.count("the certificate of CN=brief ends on") == 1


def test_a_clock_that_was_ahead_keeps_no_warning_of_a_certificate_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = files(tmp_path / "tls")
    own.put(signed("brief", own.authority, ends=2 * DAY))
    tls = Tls(CertificateFiles(own.chain, own.key))
    with monkeypatch.context() as patch:
        patch.setattr("server.security.certificates.datetime", ahead(by=365 * DAY))
        tls.refresh()
    a_day_later = time.monotonic() + DAY.total_seconds() + 1
    monkeypatch.setattr(time, "monotonic", lambda: a_day_later)
    tls.refresh()
    assert caplog.text.count("the certificate of CN=brief ends on") == 2

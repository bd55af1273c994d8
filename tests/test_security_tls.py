"""TLS and mutual TLS, with real certificates: who is let in, and what happens when certificates change or end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coldframe import Client, connection
from coldframe.credentials import is_local
from coldframe.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from server.observe.metrics import Pulse, ServerCollector, registry
from server.observe.witness import Witness
from tests.certificates import DAY, Files, Pair, files, signed
from tests.guarded import guarded
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Background
    from tests.guarded import Guarded


@pytest.fixture
def server(background: Background, newsroom: Path, tmp_path: Path) -> Iterator[Guarded]:
    with guarded(background, newsroom, tmp_path / "secrets", tls=True) as running:
        yield running


@pytest.fixture
def mutual(background: Background, newsroom: Path, tmp_path: Path) -> Iterator[Guarded]:
    with guarded(background, newsroom, tmp_path / "secrets", tls=True, client_ca=True) as running:
        yield running


def subject(target: str, by: Files) -> str:
    """Whose certificate a server shows to the next who connects."""
    context = ssl.create_default_context(cafile=str(by.ca))
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(plain, server_hostname="localhost") as secured:
            shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).subject.rfc4514_string()


def served(server: Guarded) -> Files:
    assert server.files is not None
    return server.files


# ------------------------------------------------------------------------------------------------------- who gets in


def test_a_key_over_tls_is_answered_and_both_are_needed(server: Guarded) -> None:
    with server.client(server.key()) as client:
        assert client.index().index.article_count == 120
    with server.client() as client, pytest.raises(Unauthenticated):
        client.index()


def test_the_command_line_speaks_tls_and_sends_a_key(server: Guarded) -> None:
    flags = ["--server", server.target, "--tls-ca", str(served(server).ca)]
    environment = {**os.environ, "COLDFRAME_API_KEY": server.key()}

    def script(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "coldframe.cli", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    done = script("info", "--json", *flags, env=environment)
    assert (done.returncode, json.loads(done.stdout)["index"]["article_count"]) == (0, 120)
    done = script("activate", "x", *flags, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: the key 'the-reader' has the role read; /coldframe.v1.IndexService/ActivateGeneration takes the role "
        "admin\n"
    )
    done = script("info", "--server", "news.internal:1", env=environment)
    assert done.returncode == 2
    assert "in plain text" in done.stderr
    assert environment["COLDFRAME_API_KEY"] not in done.stderr


def test_plain_text_to_a_tls_port_fails_with_a_hint_and_disturbs_nobody(server: Guarded) -> None:
    with server.client(server.key()) as good:
        for _ in range(20):
            with Client(server.target, attempts=1, timeout=10) as plain, pytest.raises(Unavailable) as raised:
                plain.index()
            assert "it may speak TLS: tls, tls_ca" in raised.value.message
        host, _, port = server.target.rpartition(":")
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01" + b"\0" * 200,
            b"",
        ):
            with socket.create_connection((host, int(port)), timeout=10) as raw:
                raw.sendall(junk)
        assert good.index().index.article_count == 120


@pytest.mark.parametrize("field", ["tls_ca", "tls_cert", "tls_key", "tls_server_name"])
def test_an_empty_value_is_not_plain_text(field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{field} is empty; give it a value, or leave it away"):
        Client("localhost:50051", **cast("Any", {field: ""}))


def test_a_client_believes_only_its_authority(server: Guarded, tmp_path: Path) -> None:
    stranger = files(tmp_path / "stranger")
    with Client(server.target, tls_ca=stranger.ca, attempts=1) as client, pytest.raises(Unavailable) as raised:
        client.index()
    assert "is not one to believe (" in raised.value.message
    assert "--tls-ca" in raised.value.message
    options: dict[str, Any] = {"tls_ca": served(server).ca, "attempts": 1, "api_key": server.key()}
    with Client(server.target, tls_server_name="elsewhere", **options) as client, pytest.raises(Unavailable) as raised:
        client.index()
    assert "is for another name" in raised.value.message
    assert "--tls-server-name" in raised.value.message
    with Client(server.target, tls_server_name="localhost", **options) as client:
        client.index()


def test_a_certificate_for_another_name_is_told_as_such_by_every_grpc() -> None:
    for said in (
        "Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
        "Peer name news.internal is not in peer certificate",  # 1.72
    ):
        message = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: {said}"
        told = connection._explained(Unavailable, message, "news.internal:1", None, True)
        assert told.startswith("the certificate of news.internal:1 is for another name; ")


def test_tls_to_a_plain_port_says_so(target: str, tmp_path: Path) -> None:
    with (
        Client(target, tls_ca=files(tmp_path / "tls").ca, attempts=1) as client,
        pytest.raises(Unavailable, match="does not speak TLS"),
    ):
        client.index()


def test_mutual_tls_wants_a_certificate_of_the_right_authority(mutual: Guarded, tmp_path: Path) -> None:
    key, own = mutual.key(), served(mutual)
    certificate, private = own.client("backend")
    with mutual.client(key, tls_cert=certificate, tls_key=private) as client:
        assert client.index()
    with mutual.client(key) as client, pytest.raises(Unavailable, match="it may ask for the client's own certificate"):
        client.index()
    for name, by in (("impostor", signed("another authority", authority=True)), ("self-made", None)):
        pair = own.client(name, by) if by else self_made(own, name)
        with mutual.client(key, tls_cert=pair[0], tls_key=pair[1]) as client, pytest.raises(Unavailable):
            client.index()
    with mutual.client(key, tls_cert=certificate, tls_key=private) as client:
        assert client.index()


def self_made(own: Files, name: str) -> tuple[Path, Path]:
    pair = signed(name)
    certificate, key = own.folder / f"{name}.pem", own.folder / f"{name}.key"
    certificate.write_bytes(pair.pem())
    key.write_bytes(pair.key_pem())
    return certificate, key


def test_an_expired_certificate_of_a_client_is_refused(mutual: Guarded) -> None:
    own = served(mutual)
    old = signed("retired", own.authority, begins=-9 * DAY, ends=-DAY)
    certificate, key = own.folder / "retired.pem", own.folder / "retired.key"
    certificate.write_bytes(old.pem())
    key.write_bytes(old.key_pem())
    with mutual.client(mutual.key(), tls_cert=certificate, tls_key=key) as client, pytest.raises(Unavailable):
        client.index()


def test_the_audit_names_the_certificate(mutual: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="coldframe.audit")
    certificate, key = served(mutual).client("ingest.internal")
    with mutual.client(mutual.key("write"), tls_cert=certificate, tls_key=key) as client:
        client.delete(["none"], validate_only=True)
    wait_until(lambda: '"certificate": "ingest.internal"' in caplog.text)
    caplog.clear()
    with mutual.client(mutual.key(), tls_cert=certificate, tls_key=key) as client, pytest.raises(PermissionDenied):
        client.delete(["none"])
    wait_until(lambda: '"certificate": "ingest.internal"' in caplog.text)


# ------------------------------------------------------------------------------------------------ a new certificate


def test_a_new_certificate_is_shown_without_a_restart_and_open_connections_go_on(server: Guarded) -> None:
    own = served(server)
    with server.client(server.key()) as before:
        before.index()
        assert subject(server.target, own) == "CN=the first"
        own.put(signed("the second", own.authority))
        wait_until(lambda: subject(server.target, own) == "CN=the second")
        before.index()
    with server.client(server.key()) as after:
        after.index()


def broken(own: Files) -> Iterator[tuple[str, Callable[[], object]]]:
    expired = signed("expired", own.authority, begins=-9 * DAY, ends=-DAY)
    tomorrow = signed("tomorrow", own.authority, begins=DAY)
    other = signed("other", own.authority)
    yield "has expired: CN=expired was valid until", lambda: own.put(expired)
    yield "is not valid yet: CN=tomorrow", lambda: own.put(tomorrow)
    yield "is not the key of", lambda: own.chain.write_bytes(other.pem())
    yield "holds no certificate", lambda: own.chain.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA")
    yield "is not the key of", lambda: own.put(Pair(other.certificate, signed("x").key))
    yield "No such file", own.chain.unlink
    yield "is no chain", lambda: unchained(own, other)


def unchained(own: Files, pair: Pair) -> None:
    own.key.write_bytes(pair.key_pem())
    own.chain.write_bytes(pair.pem() + signed("unrelated").pem())


def test_a_certificate_that_is_worth_nothing_is_refused_in_the_log_and_the_old_one_goes_on(
    server: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    own = served(server)
    for why, put in broken(own):
        caplog.clear()
        put()
        wait_until(lambda why=why: why in caplog.text)  # type: ignore[misc]
        assert f"certificate refused, and the old goes on: {own.folder}" in caplog.text
        assert subject(server.target, own) == "CN=the first"
        with server.client(server.key()) as client:
            client.index()
    assert "PRIVATE KEY" not in caplog.text
    own.put(signed("the good one", own.authority))
    wait_until(lambda: subject(server.target, own) == "CN=the good one")


def test_a_certificate_of_tomorrow_is_taken_tomorrow(server: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    own = served(server)
    own.put(signed("soon", own.authority, begins=timedelta(seconds=2)))
    wait_until(lambda: "is not valid yet: CN=soon" in caplog.text)
    assert subject(server.target, own) == "CN=the first"
    wait_until(lambda: subject(server.target, own) == "CN=soon")
    assert caplog.text.count("is not valid yet") == 1


def test_a_new_authority_of_clients_counts_from_the_next_connection(mutual: Guarded, tmp_path: Path) -> None:
    own, later = served(mutual), signed("the next authority", authority=True)
    key, believed = mutual.key(), tmp_path / "believed.pem"
    believed.write_bytes(own.ca.read_bytes())
    old, new = own.client("old"), own.client("new", later)
    own.ca.write_bytes(later.pem())

    def let_in(pair: tuple[Path, Path]) -> bool:
        with Client(
            mutual.target, api_key=key, attempts=1, tls_ca=believed, tls_cert=pair[0], tls_key=pair[1]
        ) as client:
            try:
                client.index()
            except Unavailable:
                return False
            return True

    wait_until(lambda: let_in(new))
    assert not let_in(old)


def test_metrics_say_when_the_certificate_ends_and_which_file_is_refused(server: Guarded) -> None:
    own, metrics = served(server), registry(ServerCollector(server.engine, Witness(), Pulse(), server.guard))

    def refused() -> tuple[float | None, ...]:
        files = "certificate", "API keys"
        return tuple(metrics.get_sample_value("coldframe_file_refused", {"file": file}) for file in files)

    ends = server.guard.tls.certificate.expires_at.timestamp() if server.guard.tls else 0.0
    assert metrics.get_sample_value("coldframe_certificate_expires_timestamp_seconds") == ends
    assert refused() == (0, 0)
    own.put(signed("expired", own.authority, begins=-9 * DAY, ends=-DAY))
    wait_until(lambda: refused() == (1, 0))
    assert metrics.get_sample_value("coldframe_certificate_expires_timestamp_seconds") == ends
    own.put(signed("the next", own.authority, ends=60 * DAY))
    server.keys.write_bytes(b"{")
    wait_until(lambda: refused() == (0, 1))
    later = metrics.get_sample_value("coldframe_certificate_expires_timestamp_seconds")
    assert later is not None
    assert later > ends


# ---------------------------------------------------------------------------------------------------- the client


@pytest.mark.parametrize(
    "target", ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/tmp/x", "dns:///localhost:1", "localhost"]
)
def test_a_key_goes_to_this_machine_in_plain_text(target: str) -> None:
    assert is_local(target)
    Client(target, api_key="cfk_x").close()


@pytest.mark.parametrize(
    "target",
    ["news.internal:1", "10.0.0.1:1", "localhost.evil.org:1", "127.0.0.1.evil.org:1", "dns:///news:1", "[::2]:1",
     "dns://8.8.8.8/localhost:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "127.evil:1"],
)  # fmt: skip
def test_a_key_goes_nowhere_else_in_plain_text_unless_told(target: str) -> None:
    for given in ({"api_key": "cfk_secret"}, {"metadata": [("Authorization", "Bearer cfk_secret")]}):
        options: dict[str, Any] = given
        with pytest.raises(InvalidArgument, match="in plain text") as raised:
            Client(target, **options)
        assert "cfk_secret" not in raised.value.message
        Client(target, insecure=True, **options).close()
        Client(target, tls=True, **options).close()
        Client(target, credentials=grpc.ssl_channel_credentials(), **options).close()


@pytest.mark.parametrize("key", ["", " ", "cfk_a b", "cfk_a\n", "schlüssel", "x" * 1025])
def test_what_is_no_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InvalidArgument, match="the API key is empty or holds") as raised:
        Client("localhost:1", api_key=key)
    assert not key.strip() or key not in raised.value.message


def test_a_pair_that_does_not_belong_together_is_not_told_as_a_server_that_is_away(
    mutual: Guarded, tmp_path: Path
) -> None:
    own = served(mutual)
    (certificate, _), (_, other) = own.client("backend"), own.client("another")
    locked = tmp_path / "locked.key"
    locked.write_bytes(signed("x").key_pem("a password"))
    for key in (other, locked):
        with mutual.client(tls_cert=certificate, tls_key=key) as client, pytest.raises(Unavailable) as raised:
            client.index()
        assert "tls_ca, tls_cert and tls_key cannot be used" in raised.value.message
        assert "start one with" not in raised.value.message


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_bytes(b"junk")
    for options, why in (
        ({"tls_ca": tmp_path / "none.pem"}, "none.pem cannot be read: No such file"),
        ({"tls_ca": tmp_path / "no.pem"}, "no.pem is not PEM"),
        ({"tls_cert": tmp_path / "no.pem"}, "belong together"),
    ):
        given: dict[str, Any] = options
        with pytest.raises(InvalidArgument, match=why):
            Client("localhost:1", **given)
    with pytest.raises(InvalidArgument, match="give them or tls options"):
        Client("localhost:1", tls=True, credentials=grpc.ssl_channel_credentials())


def test_a_half_open_handshake_is_ended(background: Background, newsroom: Path, tmp_path: Path) -> None:
    with guarded(background, newsroom, tmp_path / "s", tls=True, handshake_s=0.5) as server:
        host, _, port = server.target.rpartition(":")
        idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(50)]
        for one in idle:
            assert one.recv(1) == b"", "the server has hung up"
            one.close()
        with server.client(server.key()) as client:
            client.index()


def test_so_many_connections_and_no_more(background: Background, newsroom: Path, tmp_path: Path) -> None:
    with guarded(background, newsroom, tmp_path / "s", connections=5) as server, contextlib.ExitStack() as stack:
        channels = [stack.enter_context(alone(server.target)) for _ in range(5)]
        for channel in channels:
            assert healthy(channel)
        with alone(server.target) as late:
            assert not healthy(late)
        assert healthy(channels[0])
        for channel in channels:
            channel.close()
        wait_until(lambda: healthy(stack.enter_context(alone(server.target))))


def alone(target: str) -> grpc.Channel:
    """A channel with a connection of its own; others of one process share theirs."""
    return grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)])


def healthy(channel: grpc.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True

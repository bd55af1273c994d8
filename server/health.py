"""Whether the server of a configuration answers, asked of it on this machine: for a HEALTHCHECK and its like."""

from __future__ import annotations

import http
import http.client
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coldframe.errors import InvalidArgument, Unavailable
from server.address import Address

if TYPE_CHECKING:
    from typing import Any

    from server.config import Config
    from server.security.certificates import CertificateFiles

# Where it listens, and where it is asked: [::] is IPv4 alone where the machine has no IPv6.
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "localhost"}  # noqa: S104
_SERVING = health_pb2.HealthCheckResponse.SERVING


def require_healthy(config: Config, timeout_s: float) -> None:
    """Raises Unavailable where nobody answers in time or there is nothing to answer from, and InvalidArgument where it
    cannot be asked.
    """
    if config.tls_client_ca is not None and config.metrics is not None:
        _require_ready(Address.parse(config.metrics, flag="metrics"), timeout_s)
        return
    with _channel(config, timeout_s) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status
        except grpc.RpcError as error:
            refused: Any = error
            said = f"{refused.code().name}: {refused.details()}".partition("\n")[0]  # and then bytes
            raise Unavailable(f"no server is healthy at {config.listen}: {said}") from error
    if status != _SERVING:
        raise Unavailable(f"the server at {config.listen} has no index to answer from yet, or stops")


def _require_ready(metrics: Address, timeout_s: float) -> None:
    """Of a server that speaks to nobody without a certificate, asked on the port that wants none."""
    asked = _asked(metrics)
    connection = http.client.HTTPConnection(asked.host.strip("[]"), asked.port, timeout=timeout_s)
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        said = f"{reply.status} {reply.read().decode(errors='replace').strip()}"
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"no server is healthy at {metrics}: {error}") from error
    finally:
        connection.close()
    if reply.status != http.HTTPStatus.OK:
        raise Unavailable(f"no server is healthy at {metrics}: {said}")


def _asked(address: Address) -> Address:
    return replace(address, host=_ANYWHERE.get(address.host, address.host))


def _channel(config: Config, timeout_s: float) -> grpc.Channel:
    asked = _asked(Address.parse(config.listen))
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]  # which is not for this machine
    files = config.certificate_files()
    if files is None:
        return grpc.insecure_channel(str(asked), options)
    if files.client_ca is not None:
        raise InvalidArgument(
            "a server that asks callers for a certificate cannot be asked by one who has none; give it --metrics, and "
            "it is asked there for /readyz",
            field="tls_client_ca",
        )
    try:
        pem, name = _given(files)
    except InvalidArgument:  # as the server finds, too, and goes on with the one that it had
        pem, name = _shown(asked, timeout_s)
    options.append(("grpc.ssl_target_name_override", name))
    return grpc.secure_channel(str(asked), grpc.ssl_channel_credentials(pem), options)


def _given(files: CertificateFiles) -> tuple[bytes, str]:
    """The certificate that the server was given, believed whoever signed it, and a host that it stands for."""
    from server.security.certificates import read_certificate

    certificate = read_certificate(files)
    return certificate.chain, _host(certificate.names, certificate.subject)


def _shown(address: Address, timeout_s: float) -> tuple[bytes, str]:
    """The same of the one that a server on this machine shows, which is told no secret. Raises Unavailable where there
    is none.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from server.security.certificates import names

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    place = address.host.strip("[]"), address.port
    try:
        with socket.create_connection(place, timeout_s) as connection, context.wrap_socket(connection) as secured:
            leaf = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError) as error:
        raise Unavailable(f"no server is healthy at {address}: {error}") from error
    return leaf.public_bytes(Encoding.PEM), _host(names(leaf), leaf.subject.rfc4514_string())


def _host(names: list[str], subject: str) -> str:
    first, *_ = names or [subject.partition("CN=")[2].partition(",")[0]]
    return first.replace("*", "host")

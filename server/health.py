"""Whether the server of a configuration answers, asked of it on this machine: for a HEALTHCHECK and its like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coldframe.errors import InvalidArgument, Unavailable
from server.address import Address

if TYPE_CHECKING:
    from typing import Any

    from server.config import Config
    from server.security.certificates import CertificateFiles

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  # where it listens, and where it is asked
_SERVING = health_pb2.HealthCheckResponse.SERVING


def require_healthy(config: Config, timeout_s: float) -> None:
    """Raises Unavailable where nobody answers in time or there is nothing to answer from, and InvalidArgument where it
    cannot be asked.
    """
    with _channel(config) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status
        except grpc.RpcError as error:
            refused: Any = error
            said = f"{refused.code().name}: {refused.details()}"
            raise Unavailable(f"no server is healthy at {config.listen}: {said}") from error
    if status != _SERVING:
        raise Unavailable(f"the server at {config.listen} has no index to answer from yet, or stops")


def _channel(config: Config) -> grpc.Channel:
    address = Address.parse(config.listen)
    target = f"{_ANYWHERE.get(address.host, address.host)}:{address.port}"
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]  # which is not for this machine
    files = config.certificate_files()
    if files is None:
        return grpc.insecure_channel(target, options)
    credentials, name = _itself(files)
    return grpc.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", name)])


def _itself(files: CertificateFiles) -> tuple[grpc.ChannelCredentials, str]:
    """Believes the certificate that the server was given, whoever signed it, and asks for a host that it stands for."""
    from server.security.certificates import read_certificate

    if files.client_ca is not None:
        raise InvalidArgument(
            "a server that asks callers for a certificate cannot be asked by one who has none; ask --metrics for "
            "/readyz instead",
            field="tls_client_ca",
        )
    certificate = read_certificate(files)
    names = certificate.names or [certificate.subject.partition("CN=")[2].partition(",")[0]]
    return grpc.ssl_channel_credentials(certificate.chain), names[0].replace("*", "host")

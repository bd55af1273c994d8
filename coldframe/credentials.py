"""How a client proves who it is, and makes sure of whom it talks to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import grpc

from coldframe.errors import InvalidArgument

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    Metadata = Sequence[tuple[str, str | bytes]]

_KEY = re.compile(r"[!-~]{1,1024}")
_HERE = r"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d+)?"
_LOCAL = re.compile(rf"(dns:(///)?|ipv4:|ipv6:)?{_HERE}(,{_HERE})*|unix(-abstract)?:.+")


class SecurityOptions(TypedDict, total=False):
    """What `Client` takes for a server that is guarded.

    tls: speak TLS, and believe the authorities that gRPC comes with. The others of the name mean it, too.
    tls_ca: a file of authorities (PEM) to believe instead, such as one's own.
    tls_cert, tls_key: files (PEM) of the client's own certificate and its key, for servers that ask for one.
    tls_server_name: the name in the server's certificate, where it is not that of the target.
    api_key: sent with every call as `authorization: Bearer ...`. Over plain text it leaves this machine only with
    insecure=True.
    """

    tls: bool
    tls_ca: str | os.PathLike[str] | None
    tls_cert: str | os.PathLike[str] | None
    tls_key: str | os.PathLike[str] | None
    tls_server_name: str | None
    api_key: str | None
    insecure: bool


def is_local(target: str) -> bool:
    """Whether a target is this machine whatever a name server says."""
    return _LOCAL.fullmatch(target) is not None


def channel_credentials(options: SecurityOptions) -> grpc.ChannelCredentials | None:
    """TLS as it was asked for; None for plain text. Raises InvalidArgument for files that cannot be read."""
    files = {name: options.get(name) for name in ("tls_ca", "tls_cert", "tls_key")}
    name = options.get("tls_server_name")
    if not options.get("tls") and all(value is None for value in (name, *files.values())):
        return None
    for field, value in {**files, "tls_server_name": name}.items():
        if value == "":  # of a variable that is not set: whoever names it means TLS, and no plain text
            raise InvalidArgument(f"{field} is empty; give it a value, or leave it away.", field=field)
    if (files["tls_cert"] is None) != (files["tls_key"] is None):
        raise InvalidArgument("tls_cert and tls_key belong together; give both, or neither.", field="tls_cert")
    ca, cert, key = (None if path is None else _read(str(path), name) for name, path in files.items())
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


def channel_options(options: SecurityOptions) -> list[tuple[str, int | str]]:
    """What a channel must be told beside its credentials."""
    name = options.get("tls_server_name")
    return [("grpc.ssl_target_name_override", name)] if name else []


def _read(path: str, field: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.", field=field) from error
    if b"-----BEGIN " not in content:
        raise InvalidArgument(f"{path} is not PEM: it has no line -----BEGIN ...-----.", field=field)
    return content


def with_key(metadata: Metadata, options: SecurityOptions) -> Metadata:
    """The metadata of every call, the key among it. Raises InvalidArgument, which does not repeat it."""
    api_key = options.get("api_key")
    if api_key is None:
        return metadata
    if not _KEY.fullmatch(api_key):
        raise InvalidArgument(
            "the API key is empty or holds a space, a line break or a letter that no key has; give it as "
            "`python -m server keys add` printed it.",
            field="api_key",
        )
    return [*metadata, ("authorization", f"Bearer {api_key}")]


def require_private(target: str, metadata: Metadata, secured: bool, options: SecurityOptions) -> None:
    """Raises InvalidArgument where a key would go to another machine for all to read on the way."""
    given = any(key.lower() == "authorization" for key, _ in metadata)
    if given and not secured and not options.get("insecure") and not is_local(target):
        raise InvalidArgument(
            f"the API key would go to {target} in plain text, for everybody on the way to read; speak TLS (tls=True, "
            f"tls_ca; on the command line --tls, --tls-ca), or say insecure=True (--insecure) if the way is guarded.",
            field="api_key",
        )

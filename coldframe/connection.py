"""The client's connection: how calls are made, retried and timed, and how errors become Python's again."""

from __future__ import annotations

import json
import math
import os
import re
from copy import deepcopy
from functools import cached_property
from itertools import cycle
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar, cast
from urllib.parse import unquote

import grpc

from coldframe.credentials import (
    SecurityOptions,
    channel_credentials,
    channel_options,
    is_local,
    require_private,
    with_key,
)
from coldframe.errors import (
    ColdframeError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Overloaded,
    Unavailable,
    error_classes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from coldframe.streams import Requests
    from coldframe.v1.types_pb2 import ItemError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message, both ways. gRPC's own limit of 4 MiB is less than 256 long articles."""

MAX_ATTEMPTS = 5
"""gRPC makes no more attempts than this, whatever its retry policy says."""

MAX_CONNECTIONS = 64
"""Of one client: more than that are rather several clients."""

_LONGEST_TIMEOUT_S = 1e9
"""31 years. gRPC counts nanoseconds in 64 bits, and a moment past the year 2262 is over at once."""

_LAST_PORT = 65_535
_PORT = re.compile(r"(?!unix).*:(\d{1,9})")
_ONE_PLACE = re.compile(r"([^:/,]+|\[[^\]]+\]):\d+")
"""A target that a server can be told to listen on: no list, and no scheme of gRPC's."""

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables of the environment in which gRPC looks for a proxy, whatever a target's kind: the first one holds."""

_RETRY_THROTTLING = {"maxTokens": 1000, "tokenRatio": 0.1}
"""A token for each call that failed, a tenth of one back for each that did not; without half of them nothing is tried
again (gRFC A6): a burst comes through, and a server that has too much to do is not asked for more."""

_PING_MS, _ANSWER_MS = 15_000, 20_000
"""While a call waits its server is pinged so often, and given up where it has not answered by then: one that is gone
without a word would be asked for a quarter of an hour, and its streams never end. Servers permit a ping in 10 s."""

_STREAMS = {
    "coldframe.v1.ArticleService": "StreamUpsertArticles",
    "coldframe.v1.EmbeddingService": "StreamEmbed",
    "coldframe.v1.SearchService": "StreamSearch",
}

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")


class Paged(Protocol):
    """A request that can ask for the next page."""

    page_token: str


class PageOf(Protocol):
    """A reply that may be continued."""

    next_page_token: str


Page = TypeVar("Page", bound=PageOf)


class UseClientDefault:
    """The type of `USE_CLIENT_DEFAULT`, for a timeout that is not given: None already means to wait for ever."""


USE_CLIENT_DEFAULT: Final = UseClientDefault()

Timeout: TypeAlias = float | UseClientDefault | None
"""Seconds to wait for an answer; None waits for ever."""


class Terms:
    """What all calls on a connection have in common, however they are waited for.

    `Client` says what the arguments mean.
    """

    def __init__(
        self,
        target: str,
        timeout: float | None,
        attempts: int,
        metadata: Sequence[tuple[str, str | bytes]],
        credentials: grpc.ChannelCredentials | None,
        *,
        connections: int,
        security: SecurityOptions,
    ) -> None:
        self.target = _checked_target(target)
        self._connections = _checked_connections(connections)
        own = channel_credentials(security)
        if own is not None and credentials is not None:
            raise InvalidArgument("credentials are TLS of their own; give them or tls options.", field="credentials")
        self._credentials = own or credentials
        metadata = with_key(metadata, security)
        require_private(target, metadata, self._credentials is not None, security)
        self.closed = False
        self._timeout = _checked_timeout(timeout)
        self._metadata = tuple((key.lower(), value) for key, value in metadata)
        self._options = _channel_options(target, _checked_attempts(attempts), connections, channel_options(security))

    def _require_usable(self) -> None:
        if self.closed:
            raise FailedPrecondition("this client is closed; make a new one to ask again.")

    def _closed_meanwhile(self) -> ColdframeError:
        return ColdframeError("the client was closed before the answer came.")

    def _seconds(self, timeout: Timeout) -> float | None:
        """Return what a call that begins now may take."""
        self._require_usable()
        return self._timeout if isinstance(timeout, UseClientDefault) else _checked_timeout(timeout)

    def _error(self, error: grpc.RpcError, seconds: float | None) -> ColdframeError:
        """Return what a call raises where gRPC raised this."""
        if self.closed and error.code() is grpc.StatusCode.CANCELLED:
            return self._closed_meanwhile()
        return _translated(error, self.target, seconds, self._credentials is not None)


class Turns:
    """Several channels as one, to make stubs of: calls go by them in turns."""

    def __init__(self, channels: Sequence[grpc.Channel | grpc.aio.Channel]) -> None:
        self._channels = channels

    def __getattr__(self, kind: str) -> Callable[..., Callable[..., object]]:
        """Return what makes methods of a kind, such as `unary_unary`, of all channels."""
        makers = [getattr(channel, kind) for channel in self._channels]

        def make(*method: object, **options: object) -> Callable[..., object]:
            methods = cycle([maker(*method, **options) for maker in makers])

            def call(*request: object, **terms: object) -> object:
                return next(methods)(*request, **terms)

            return call

        return make


class Connection(Terms):
    """Channels to a server on which threads wait for answers."""

    @cached_property
    def channel(self) -> grpc.Channel:
        """What stubs are made of. gRPC connects at the first call."""
        return self._channels[0] if len(self._channels) == 1 else cast("grpc.Channel", Turns(self._channels))

    @cached_property
    def _channels(self) -> list[grpc.Channel]:
        return [self._open() for _ in range(self._connections)]

    def _open(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.target, self._options)
        return grpc.secure_channel(self.target, self._credentials, self._options)

    def close(self) -> None:
        """Cancel what is in flight; closing twice does no harm."""
        self.closed = True
        for channel in self._channels:
            channel.close()

    def call(self, method: Callable[..., Response], request: object, timeout: Timeout) -> Response:
        """Ask once, or as often as the attempts allow while the server is UNAVAILABLE or turns the call away unseen."""
        seconds = self._seconds(timeout)
        try:
            return self._begun(method, request, seconds)
        except grpc.RpcError as error:
            raise self._error(error, seconds) from error

    def _begun(self, method: Callable[..., Response], request: object, seconds: float | None) -> Response:
        try:
            return method(request, timeout=seconds, metadata=self._metadata)
        except ValueError as error:
            if not self.closed:
                raise
            raise self._closed_meanwhile() from error  # by another thread, since it was asked

    def pages(
        self,
        method: Callable[..., Page],
        request: Paged,
        items: Callable[[Page], Iterable[Item]],
        timeout: Timeout,
    ) -> Iterator[Item]:
        """Ask for page after page, and yield the items of each."""
        request = deepcopy(request)
        while True:
            page = self.call(method, request, timeout)
            yield from items(page)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    def stream(
        self,
        method: grpc.StreamStreamMultiCallable[Request, Response],
        requests: Requests[Item, Request],
        items: Iterable[Item],
        timeout: Timeout,
    ) -> Iterator[Response]:
        """Send requests as the server takes them, and yield its answers. Leaving the iterator ends the call.

        Where the items themselves raise, those before are answered first: then the same error is raised here.
        """
        seconds = self._seconds(timeout)
        failures: list[Exception] = []

        def fed() -> Iterator[Request]:
            # gRPC would answer UNKNOWN, and log the error in a thread of its own.
            try:
                for item in items:
                    yield from requests.add(item)
                yield from requests.rest()
            except Exception as error:
                failures.append(error)

        answers = self._begun(method, fed(), seconds)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise self._error(error, seconds) from error
        finally:
            answers.cancel()
        for failure in failures:
            raise failure


def _checked_target(target: str) -> str:
    port = _PORT.fullmatch(target)
    if target.startswith(("http://", "https://", ":")) or not target or (port and int(port[1]) > _LAST_PORT):
        raise InvalidArgument(
            f"{target!r} is not a server's address; give HOST:PORT, such as localhost:50051.", field="target"
        )
    return target


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not 0 < timeout < math.inf:
        raise InvalidArgument(f"timeout is {timeout}; give seconds above 0, or None to wait for ever.", field="timeout")
    return min(timeout, _LONGEST_TIMEOUT_S)


def _checked_attempts(attempts: int) -> int:
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise InvalidArgument(f"attempts is {attempts}; give 1 to {MAX_ATTEMPTS}.", field="attempts")
    return attempts


def _checked_connections(connections: int) -> int:
    if not 1 <= connections <= MAX_CONNECTIONS:
        raise InvalidArgument(
            f"connections is {connections}; give 1 to {MAX_CONNECTIONS}, twice the server's workers or so.",
            field="connections",
        )
    return connections


def _channel_options(
    target: str, attempts: int, connections: int, more: Sequence[tuple[str, int | str]]
) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A request larger than this buffer (256 KiB unless told) is silently never retried.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        # As quick as the retries: otherwise all of them meet the connection's first pause of one second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A name is asked again where none of its servers answers, at most once in half a minute unless told.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        *_pings(),
        ("grpc.service_config", _service_config(attempts, connections)),
        # Otherwise all channels of a process to one address are one connection.
        ("grpc.use_local_subchannel_pool", int(connections > 1)),
        *more,
    ]
    if not _may_need_proxy(target):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _may_need_proxy(target: str) -> bool:
    """GRPC obeys http_proxy even for this machine itself, which no proxy can reach, and names it a list of addresses as
    though that were one host.
    """
    return not is_local(target) and "," not in target


def _pings() -> list[tuple[str, int]]:
    return [
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _ANSWER_MS),
        ("grpc.http2.ping_timeout_ms", _ANSWER_MS),  # a minute unless told, whatever the one above says
        ("grpc.http2.max_pings_without_data", 0),  # after two, else, it waits for something to send
    ]


def _service_config(attempts: int, connections: int = 1) -> str:
    method: dict[str, object] = {"name": [{}]}
    # No retry: by the time a stream breaks its beginning has been answered.
    streams = {"name": [{"service": service, "method": name} for service, name in _STREAMS.items()]}
    if attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": attempts,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            # CANCELLED by the server, not by the caller: turned away before it was looked at, as of a burst of calls.
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        }
    config: dict[str, object] = {"methodConfig": [method, streams], "retryThrottling": _RETRY_THROTTLING}
    if connections > 1:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
    return json.dumps(config)


# ---------------------------------------------------------------------------------------------------------------
# Errors: the server names the class in `coldframe-error`; what gRPC itself raises goes by its status code.

_BY_NAME = error_classes()
_BY_CODE: dict[str, type[ColdframeError]] = {}
for _class in _BY_NAME.values():
    _BY_CODE.setdefault(_class.code, _class)  # parents come first: NOT_FOUND is NotFound


def error_of(item: ItemError) -> ColdframeError:
    """Return the error of one item among many, to be raised or shown: what a call of its own would have raised."""
    return _rebuilt(_BY_CODE.get(item.code, ColdframeError), item.message, {"coldframe-field": item.field})


def broke_off(error: ColdframeError) -> bool:
    """Return whether a connection ended in the middle of what raised this: more may be done than was answered."""
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and _BROKEN.match(cause.details() or "") is not None


_NO_GRPC = re.compile(r"Received http2 header with status: \d+|Failed parsing HTTP/2")
# What gRPC says of a connection that stood; of one that could not be made it says so first, and why behind it.
_BROKEN = re.compile(
    r"(?:Stream removed \()?((?:Socket closed|recvmsg|sendmsg|Broken pipe|Connection reset|ping timeout|GOAWAY"
    r"|Cancelling all calls|max connection age)[^()\n]*)"
)
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")


def _translated(error: grpc.RpcError, target: str, timeout: float | None, secured: bool) -> ColdframeError:
    trailers = cast("tuple[tuple[str, str | bytes], ...]", error.trailing_metadata() or ())
    metadata = {key: unquote(value) for key, value in trailers if isinstance(value, str)}
    message = error.details() or error.code().name
    named = _BY_NAME.get(metadata.get("coldframe-error", ""))
    if named is not None:
        return _rebuilt(named, message, metadata)
    too_large = _TOO_LARGE.search(message)
    if too_large is not None:
        return _message_too_large(*map(int, too_large.groups()))
    # Whoever cancels a call here, or closes the channel, is told so by gRPC in other words.
    if error.code() is grpc.StatusCode.CANCELLED and message == "CANCELLED":
        return Overloaded(
            f"{target} turned the call away before it looked at it: more is asked of it than it can refuse; try again "
            f"in a second, or ask another server."
        )
    if (no_grpc := _NO_GRPC.search(message)) is not None:
        return Unavailable(
            f"what answers at {target} does not speak gRPC ({no_grpc[0]}); give the address of the server's --listen, "
            f"and look whether a proxy stands in between (http_proxy, https_proxy)."
        )
    kind = _BY_CODE.get(error.code().name, ColdframeError)
    return _rebuilt(kind, _explained(kind, message, target, timeout, secured), metadata)


def _rebuilt(kind: type[ColdframeError], message: str, metadata: dict[str, str]) -> ColdframeError:
    if issubclass(kind, InvalidArgument):
        return kind(message, field=metadata.get("coldframe-field", ""))
    retry_after_ms = metadata.get("coldframe-retry-after-ms", "")
    if issubclass(kind, Overloaded) and retry_after_ms.isdecimal():
        return kind(message, retry_after_s=int(retry_after_ms) / 1000)
    return kind(message)


def _message_too_large(size: int, limit: int) -> InvalidArgument:
    return InvalidArgument(
        f"the message is too large: {size:,} bytes, and at most {limit:,} are allowed; "
        "send fewer or shorter texts at once, or ask for fewer results."
    )


def _explained(kind: type[ColdframeError], message: str, target: str, timeout: float | None, secured: bool) -> str:
    """Say what a person can do about an error that gRPC raised on its own."""
    if kind is Unavailable and (broken := _BROKEN.match(message)) is not None:
        return (
            f"the connection to {target} broke off before all was answered ({broken[1].rstrip()}); what has no answer "
            f"may have been done or not: ask again."
        )
    if kind is Unavailable:
        return _unreached(message, target, secured)
    if kind is DeadlineExceeded and timeout is not None:
        return f"no answer from {target} within {timeout:g} s; allow a longer timeout, or ask for less."
    return message


def _unreached(message: str, target: str, secured: bool) -> str:
    if "create security handshaker" in message:
        return (
            f"{target} was not asked, for the files of tls_ca, tls_cert and tls_key cannot be used: give certificates "
            f"in PEM, and as tls_key the key of tls_cert, without a password."
        )
    if "Hostname Verification" in message or "is not in peer certificate" in message:
        return (
            f"the certificate of {target} is for another name; ask by one that is in it, or give that one as "
            f"tls_server_name (--tls-server-name)."
        )
    if "handshake failed" in message:
        if "WRONG_VERSION_NUMBER" in message:
            return f"what listens at {target} does not speak TLS; leave the tls options away, or ask another port."
        if "certificate" in message.lower():
            return (
                f"the certificate of {target} is not one to believe ({_reason(message)}); give the authority that "
                f"signed it as tls_ca (--tls-ca), and the name that is in it as tls_server_name (--tls-server-name)."
            )
        return f"the TLS handshake with {target} failed ({_reason(message)})."
    # Behind a line break gRPC shows the bytes of the address.
    cause = message.partition("\n")[0].rstrip("]").rsplit(": ", 1)[-1]
    if not _PORT.fullmatch(target) and not target.startswith("unix"):
        cause += "; the port is 443 where none is given"
    if "Socket closed" in message or "Connection reset" in message:
        own = "ask for the client's own certificate, of an authority that it believes: tls_cert, tls_key"
        hint = own if secured else "speak TLS: tls, tls_ca"
        cause += f"; it may {hint}"
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    if proxy is not None and _may_need_proxy(target):
        cause += f"; it was asked by way of {proxy}, unless no_proxy names it"
    listen = f" --listen {target}" if _ONE_PLACE.fullmatch(target) else ""
    return f"no Coldframe server answers at {target} ({cause}); start one with: python -m server --store DIR{listen}"


def _reason(message: str) -> str:
    """Why, without OpenSSL's numbers, such as "CERTIFICATE_VERIFY_FAILED: certificate has expired"."""
    return message.removesuffix(": OK").rpartition("OPENSSL_internal:")[2]

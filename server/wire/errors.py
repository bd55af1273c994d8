"""Errors on the wire: every ColdframeError as its status with standard details.

Beside google.rpc details (BadRequest, RetryInfo, ErrorInfo) the trailing metadata names the class, for clients that
have no google.rpc: `coldframe-error`, `coldframe-field`, `coldframe-retry-after-ms`, percent-encoded.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from coldframe.errors import ColdframeError, InvalidArgument, Overloaded

if TYPE_CHECKING:
    from google.protobuf.message import Message

Status = tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]
"""Code, message and trailing metadata."""

# gRPC drops a reply whose headers hold over 8 KiB. The message is there three times: percent-encoded, which may triple
# it, and twice in the details.
_MESSAGE_HEAD_BYTES, _MESSAGE_TAIL_BYTES = 600, 300


def status_of(error: ColdframeError) -> Status:
    """What stands for an error."""
    if type(error) is Overloaded:  # said again and again, and when there is least time to write it
        return _overloaded(error.message, error.retry_after_s)
    return _status(error)


@functools.lru_cache(maxsize=256)
def _overloaded(message: str, retry_after_s: float) -> Status:
    return _status(Overloaded(message, retry_after_s=retry_after_s))


def _status(error: ColdframeError) -> Status:
    code, message = grpc.StatusCode[error.code], _shortened(error.message)
    status = status_pb2.Status(code=code.value[0], message=message, details=_details(error, message))
    hints = {"coldframe-error": type(error).__name__}
    if isinstance(error, InvalidArgument):
        hints["coldframe-field"] = error.field
    if isinstance(error, Overloaded):
        hints["coldframe-retry-after-ms"] = str(_retry_ms(error))
    trailing: list[tuple[str, str | bytes]] = [(key, quote(value)) for key, value in hints.items() if value]
    trailing.append(("grpc-status-details-bin", status.SerializeToString()))
    return code, message, tuple(trailing)


def _retry_ms(error: Overloaded) -> int:
    return math.ceil(1e3 * error.retry_after_s)  # who comes half a millisecond too early is refused again


def _shortened(message: str) -> str:
    """The message without its middle, where it quotes something endless."""
    raw = message.encode("utf-8", "replace")
    if len(raw) <= _MESSAGE_HEAD_BYTES + _MESSAGE_TAIL_BYTES:
        return message
    return b" ... ".join((raw[:_MESSAGE_HEAD_BYTES], raw[-_MESSAGE_TAIL_BYTES:])).decode("utf-8", "ignore")


def _details(error: ColdframeError, message: str) -> list[Any]:
    messages: list[Message] = [error_details_pb2.ErrorInfo(reason=type(error).__name__, domain="coldframe")]
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(_retry_ms(error))
        messages.append(retry)
    packed = []
    for detail in messages:
        packed.append(Any())
        packed[-1].Pack(detail)
    return packed

"""grpc.reflection, v1 and v1alpha: what grpcio-reflection serves, and what it does not find."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.descriptor import FileDescriptor

NAMES = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")


def handlers(services: Iterable[str]) -> list[grpc.GenericRpcHandler]:
    """What answers, under both names, which services there are and what they take."""
    servicer = reflection.aio.ReflectionServicer((*services, *NAMES), pool=_Pool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES]


class _Pool:
    """The default pool, and what that does not find: methods by their names, and reflection's own v1, which
    grpcio-reflection does not bring. Its messages are those of v1alpha in another package.
    """

    def __init__(self) -> None:
        alpha = FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        v1 = descriptor_pool.DescriptorPool()
        v1.Add(text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto()))
        self._default, self._pools = descriptor_pool.Default(), (descriptor_pool.Default(), v1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._default, name)

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802
        return _first(name, [pool.FindFileByName for pool in self._pools])

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        ways = [way for pool in self._pools for way in (pool.FindFileContainingSymbol, _methods_file(pool))]
        return _first(symbol, ways)


def _methods_file(pool: Any) -> Callable[[str], FileDescriptor]:
    return lambda name: pool.FindMethodByName(name).containing_service.file


def _first(name: str, ways: Iterable[Callable[[str], FileDescriptor]]) -> FileDescriptor:
    """What the first of the ways finds. Raises KeyError where none does."""
    for way in ways:
        with contextlib.suppress(KeyError):
            return way(name)
    raise KeyError(name)

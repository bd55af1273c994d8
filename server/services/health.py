"""grpc.health.v1: whether there is something to answer from, for the server as a whole and for each service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.services import Context

_NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(health_pb2_grpc.HealthServicer):
    """Where one who watches a service goes, grpcio-health-checking's own forgets all others who watch it: they go on to
    believe what they heard last.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._state: Any = _NOT_SERVING
        self._changed = asyncio.Event()
        self._stopping = False

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:  # noqa: N802, D102
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this server has no such service")
        return pb.HealthCheckResponse(status=self._state)

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> None:  # noqa: N802, D102
        told = None
        while True:
            changed, state = self._changed, self._state if request.service in self._services else _UNKNOWN
            if state != told:
                await context.write(pb.HealthCheckResponse(status=state))
                told = state
            await changed.wait()

    async def set(self, *, serving: bool) -> None:
        """Tells whoever asks or watches, unless the server stops."""
        if not self._stopping:
            self._state = pb.HealthCheckResponse.SERVING if serving else _NOT_SERVING
            self._tell()

    async def enter_graceful_shutdown(self) -> None:
        """Tells that no service answers any more, whatever is said later."""
        self._stopping = True
        self._state = _NOT_SERVING
        self._tell()

    def _tell(self) -> None:
        """Wakes who watches. Whoever comes or writes meanwhile waits for the next change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

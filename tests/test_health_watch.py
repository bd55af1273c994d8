"""What health checking tells those who watch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coldframe.store import Store
from server.address import Address
from server.app import SERVICES, Server
from server.engine import Engine
from server.services.health import HealthService
from tests.test_server_process import NOT_SERVING, SERVING, dial
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Background

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize("service", ["", SERVICES[0]])
def test_who_watches_goes_on_to_hear_where_another_one_goes(
    background: Background, tmp_path: Path, service: str
) -> None:
    async def start() -> tuple[Server, Address]:
        server = Server(Engine(Store(tmp_path)))
        return server, await server.start(Address("127.0.0.1", 0))

    server, address = background.run(start())
    with dial(str(address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        leaving, staying = stub.Watch(request, timeout=60), stub.Watch(request, timeout=60)
        assert [next(watch).status for watch in (leaving, staying)] == [NOT_SERVING] * 2
        leaving.cancel()
        wait_until(lambda: len(server._door._watching) == 1)
        background.run(server._health.set(serving=True))
        assert next(staying).status == SERVING
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=60)
        assert next(unknown).status == UNKNOWN
        background.run(server.stop(1))
        assert next(staying).status == NOT_SERVING


def test_a_server_that_stops_is_not_said_to_answer_by_what_it_hears_of_its_engine_late() -> None:
    async def told() -> list[int]:
        health, nobody = HealthService([]), cast("Any", None)
        await health.set(serving=True)
        before = await health.Check(health_pb2.HealthCheckRequest(), nobody)
        await health.enter_graceful_shutdown()
        await health.set(serving=True)
        return [before.status, (await health.Check(health_pb2.HealthCheckRequest(), nobody)).status]

    assert asyncio.run(told()) == [SERVING, NOT_SERVING]

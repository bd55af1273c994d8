"""The server's life: load, listen, answer, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from threadpoolctl import ThreadpoolController

from coldframe.errors import NoGeneration
from coldframe.v1 import (
    article_service_pb2,
    article_service_pb2_grpc,
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    index_service_pb2,
    index_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from server.address import Address, require_free, taken
from server.door import Door
from server.interceptor import ErrorInterceptor
from server.observe.witness import Witness
from server.security.guard import Guard
from server.services import reflection
from server.services.articles import ArticleService
from server.services.clusters import ClusterService
from server.services.embedding import EmbeddingService
from server.services.health import HealthService
from server.services.index import IndexService
from server.services.search import SearchService
from server.signals import ENDS, hear_no_more

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.engine import Engine
    from server.observe.station import Station
    from server.place import Place

_log = logging.getLogger("coldframe.server")

_PROTOS = (embedding_service_pb2, search_service_pb2, cluster_service_pb2, article_service_pb2, index_service_pb2)
SERVICES = tuple(
    descriptor.full_name for module in _PROTOS for descriptor in module.DESCRIPTOR.services_by_name.values()
)
_YOUNG = 10_000
"""Objects that are made before the collector looks for cycles among them; calls leave next to none."""


class Server:
    """A gRPC server over an engine, behind a guard; the default one lets everybody in, within the limits.

    A worker shares its port with others.
    """

    def __init__(
        self, engine: Engine, guard: Guard | None = None, *, worker: bool = False, witness: Witness | None = None
    ) -> None:
        self._engine, self._guard, self._worker = engine, guard or Guard(), worker
        self._door, witness = Door(engine.searches), witness or Witness()
        self._guard.gate.witness, self._guard.gate.door = witness, self._door
        limits = self._guard.limits
        errors = ErrorInterceptor(engine.catch_up, witness, limits.message_bytes)
        # Two servers on one port would share its calls in silence; unless they are of one crew the second one fails.
        options = (("grpc.so_reuseport", int(worker)), *limits.options(keys=self._guard.keys() is not None))
        self._server = grpc.aio.server(interceptors=[self._guard.gate, errors], options=options)
        self._health = HealthService(SERVICES)
        self._register()

    def _register(self) -> None:
        server, engine = cast("grpc.aio.Server", _ByName(self._server)), self._engine
        embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(EmbeddingService(engine), server)
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(SearchService(engine), server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterService(engine), server)
        article_service_pb2_grpc.add_ArticleServiceServicer_to_server(ArticleService(engine), server)
        index_service_pb2_grpc.add_IndexServiceServicer_to_server(IndexService(engine), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._guard.reflection:
            health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            self._server.add_generic_rpc_handlers(reflection.handlers((*SERVICES, health)))

    async def start(self, address: Address) -> Address:
        """Listens, and returns the address with the port that was taken. Raises InvalidArgument where it cannot."""
        if not self._worker:
            require_free(address)
        try:
            port = self._open(str(address))
        except RuntimeError as error:
            raise taken(address) from error
        await self.set_health()
        await self._server.start()
        return address.at(port)

    def _open(self, address: str) -> int:
        credentials = self._guard.credentials()
        if credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, credentials)

    async def follow(self) -> None:
        """Serves whatever the store makes current, telling the health service, and takes new certificates and keys;
        for ever.
        """
        await asyncio.gather(self._engine.watch(loaded=self.set_health), self._guard.watch())

    def look(self) -> None:
        """Looks at all that is followed now, and not when its turn comes."""
        self._engine.exchange.look()
        self._guard.look()

    async def set_health(self) -> None:
        """Tells whether there is something to answer from."""
        await self._health.set(serving=self._engine.ready)

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, finishes those under way within `grace_s`, and ends."""
        await self._health.enter_graceful_shutdown()
        self._door.close()
        await self._server.stop(grace_s)
        await self._engine.close()


class _ByName:
    """Takes services for a server that finds their methods by name, and registers none of them.

    For every call gRPC waits anew for one of every registered method's calls: 40 us of Python for ours together, which
    a search takes longer, and a refusal twice as long.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Does nothing."""


async def serve(
    engine: Engine,
    address: Address,
    guard: Guard,
    *,
    grace_s: float,
    announce: Callable[[str], object],
    place: Place | None,
    station: Station,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; looks at what it follows on SIGHUP. A worker, who has a place, ends
    with its supervisor, too.

    Raises what makes it impossible to serve at all.
    """
    # A product of a vector wakes no team of threads: what it waits for costs more than what it saves.
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
    gc.set_threshold(_YOUNG, 10, 10)
    listens, stopping = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def end_by(what: Callable[..., None], *about: object) -> None:
        for number in ENDS:
            loop.add_signal_handler(number, what, *about)
        if place is not None:
            loop.add_reader(place.alive, what, *about)

    end_by(_give_up, engine)
    station.open(engine, lambda: engine.ready and listens.is_set() and not stopping.is_set(), guard)
    if place is None:
        require_free(address)  # said at once, and not after a model was loaded
    lacking = ""
    try:
        await loop.run_in_executor(None, engine.load)
    except NoGeneration as error:  # an empty store may be filled any moment; a broken one needs a person
        lacking = f"waiting for a generation in {_told(engine.folder)}: {error.message}"
    end_by(stopping.set)
    # A full collection of what the libraries alone take stops everything for a tenth of a second.
    gc.collect()
    gc.freeze()
    server = Server(engine, guard, worker=place is not None, witness=station.witness)
    loop.add_signal_handler(signal.SIGHUP, server.look)
    listening = await server.start(address)
    listens.set()
    announce(f"listening on {listening}")
    following = asyncio.create_task(server.follow())
    if lacking:
        announce(lacking)
    await stopping.wait()
    if place is not None:
        loop.remove_reader(place.alive)
    following.cancel()
    with contextlib.suppress(OSError):  # whoever read what is printed may have gone
        announce("stopping: finishing the calls under way")
    await server.stop(grace_s)
    station.close()
    hear_no_more()


def _told(store: Path) -> str:
    """Whole, for whoever began where it is not looked for, or mistyped it."""
    return f"{store.absolute()}{'' if store.exists() else ', which is not there yet'}"


def _give_up(engine: Engine) -> None:
    """Ends the process in the middle of loading: nobody was let in, and a model that is being fetched, or thousands of
    live articles that are embedded anew, would keep it for minutes.
    """
    engine.abandon()
    logging.shutdown()
    os._exit(0)

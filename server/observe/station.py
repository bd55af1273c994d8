"""All that tells operators of a server, in one hand: what notes the calls, the port for machines, the pulse."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from server.observe.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.address import Address
    from server.engine import Engine
    from server.observe.metrics import Pulse
    from server.observe.port import Port
    from server.observe.traces import Tracer
    from server.security.guard import Guard

_log = logging.getLogger("coldframe.server")


class Station:
    """metrics: where /metrics, /livez and /readyz are answered; None: nowhere. slow_ms and tracer as of `Witness`."""

    def __init__(
        self, metrics: Address | None = None, slow_ms: float | None = None, tracer: Tracer | None = None
    ) -> None:
        self.witness = Witness(slow_ms, tracer)
        self._metrics = metrics
        self._port: Port | None = None
        self._beating: asyncio.Task[None] | None = None

    def open(self, engine: Engine, ready: Callable[[], bool], guard: Guard) -> None:
        """Answers from now on: alive, and ready once the engine is. Raises InvalidArgument for an address in use."""
        if self._metrics is None:
            return
        from server.observe.metrics import Pulse, ServerCollector, registry
        from server.observe.port import Port

        pulse = Pulse()
        self._port = Port(self._metrics, registry(ServerCollector(engine, self.witness, pulse, guard)), pulse, ready)
        self._beating = asyncio.create_task(_beat(pulse))
        _log.info("metrics at http://%s/metrics", self._metrics.at(self._port.port))

    def close(self) -> None:
        """Ends the port, and sends what is left of the traces."""
        if self._beating is not None:
            self._beating.cancel()
        if self._port is not None:
            self._port.close()
        if self.witness.tracer is not None:
            self.witness.tracer.close()


async def _beat(pulse: Pulse) -> None:
    from server.observe.metrics import BEAT_S

    while True:
        due = time.monotonic() + BEAT_S
        await asyncio.sleep(BEAT_S)
        pulse.note(max(0.0, time.monotonic() - due))

"""What the gate costs each call: the same small calls to a server in this process with a gate and to one without.

    python -m benchmarks.gate [--calls 4000]

One caller asks both in turn, in blocks. `GetIndex` is the least that can be asked: what is found is nearly all gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import numpy as np

from benchmarks.drawn import Drawn, store_of
from coldframe import Client
from server.address import Address
from server.admission import CALL, Call
from server.app import Server
from server.engine import Engine
from server.security.guard import Guard
from server.security.keys import Role, changed, new_key

if TYPE_CHECKING:
    from coldframe.store import Store

_BLOCK = 100


class _Ungated(Guard):
    """A guard whose gate lets everything pass unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = _Open()  # type: ignore[assignment]


class _Open(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        CALL.set(Call())
        return await continuation(handler_call_details)


async def _served(store: Store, guard: Guard) -> tuple[Server, str]:
    engine = Engine(store, precision="fp32")
    await asyncio.to_thread(engine.load)
    server = Server(engine, guard)
    return server, str(await server.start(Address("127.0.0.1", 0)))


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=4_000)
    args = parser.parse_args()
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        store, _ = store_of(Drawn(4_000, 0), Path(folder))
        token, key = new_key("one", Role.READ)
        with changed(Path(folder) / "keys.json") as keys:
            keys[key.id] = key
        gated = Guard(keys=Path(folder) / "keys.json")
        found = {}
        for name, guard in (("without a gate", _Ungated()), ("with a gate and keys", gated)):
            server, target = asyncio.run_coroutine_threadsafe(_served(store, guard), loop).result(120)
            found[name] = server, Client(target, api_key=token), list[float]()
        for _ in range(args.calls // _BLOCK):
            for _, client, waits in found.values():
                for _call in range(_BLOCK):
                    start = time.perf_counter()
                    client.index()
                    waits.append(1e6 * (time.perf_counter() - start))
        for name, (server, client, waits) in found.items():
            print(f"{name:22} p50 {statistics.median(waits):6.0f} us, p99 {np.percentile(waits, 99):6.0f} us")
            client.close()
            asyncio.run_coroutine_threadsafe(server.stop(1), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)


if __name__ == "__main__":
    main()

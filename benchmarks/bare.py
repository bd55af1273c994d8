"""The least that a search over gRPC can be: raw float32 bytes in, row numbers out, faiss and grpc and nothing between.

    python -m benchmarks.bare --index index.faiss --probes 16 --way threads

ways: `threads`, grpc's own server with a pool of threads; `aio`, grpc.aio that hands each search to a pool of threads;
`inline`, grpc.aio that searches on the event loop. One OpenMP thread per search, as in Coldframe's server. No check,
no names, no scores, nothing but the ids.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import faiss
import grpc
import grpc.aio
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Search = Callable[[bytes], bytes]

SERVICE, METHOD = "bare.Bare", "Search"
LIMIT = 10
WAYS = ("threads", "aio", "inline")
_THREADS = {"threads": 4, "aio": 2, "inline": 1}


def searcher(path: Path, probes: int) -> Search:
    """A search of an index, which is held in memory: the bytes of a vector to those of int64 row numbers."""
    index = cast("faiss.IndexIVF", faiss.read_index(str(path)))
    index.nprobe = probes

    def search(raw: bytes) -> bytes:
        rows: bytes = index.search(np.frombuffer(raw, np.float32)[None], LIMIT)[1].tobytes()
        return rows

    return search


def _handlers(call: Any) -> tuple[grpc.GenericRpcHandler]:
    return (grpc.method_handlers_generic_handler(SERVICE, {METHOD: grpc.unary_unary_rpc_method_handler(call)}),)


def one_thread() -> None:
    """Of OpenMP, for the thread that calls it: the searches themselves fill the cores."""
    faiss.omp_set_num_threads(1)


def serve_threads(search: Search) -> None:
    """By grpc's own pool."""
    server = grpc.server(ThreadPoolExecutor(_THREADS["threads"], initializer=one_thread))
    server.add_generic_rpc_handlers(_handlers(lambda raw, _: search(raw)))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(1).wait()


async def serve_aio(search: Search, *, inline: bool) -> None:
    """On an event loop."""
    server, loop, stopping = grpc.aio.server(), asyncio.get_running_loop(), asyncio.Event()
    pool = ThreadPoolExecutor(_THREADS["aio"], initializer=one_thread)

    async def hand_over(raw: bytes, _: Any) -> bytes:
        return await loop.run_in_executor(pool, search, raw)

    async def at_once(raw: bytes, _: Any) -> bytes:
        return search(raw)

    server.add_generic_rpc_handlers(_handlers(at_once if inline else hand_over))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await stopping.wait()
    await server.stop(1)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--probes", type=int, required=True)
    parser.add_argument("--way", choices=WAYS, default="threads")
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT} if args.way == "threads" else set())
    one_thread()
    search = searcher(args.index, args.probes)
    if args.way == "threads":
        serve_threads(search)
    else:
        asyncio.run(serve_aio(search, inline=args.way == "inline"))


if __name__ == "__main__":
    main()

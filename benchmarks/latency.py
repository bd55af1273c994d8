"""How long one caller waits, over gRPC: python -m benchmarks.latency --server HOST:PORT [--calls 300]

One call at a time, nothing else asking: the client's time, and the server's own by stage, in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np

from coldframe import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from coldframe.v1.index_service_pb2 import GetIndexResponse
    from coldframe.v1.search_service_pb2 import SearchResponse

    Reply = GetIndexResponse | SearchResponse

# About 20 tokens; the number makes every text a new one.
TEXT = "the central bank is expected to cut its interest rate for the {} time since spring"


def main() -> None:
    """Print a line per kind of call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    with Client(args.server) as client:
        dim = client.index().index.dimension
        vectors = np.random.default_rng(0).normal(size=(args.calls, dim)).tolist()
        print(f"{'':18}  client p50    p99   server: total  search   embed")
        _measure("GetIndex", args.calls, lambda _: client.index())
        _measure("Search by vector", args.calls, lambda n: client.search(vector=vectors[n], limit=10))
        _measure("Search by text", args.calls, lambda n: client.search(TEXT.format(n), limit=10))


def _measure(name: str, calls: int, call: Callable[[int], Reply]) -> None:
    waited, stages = [], []
    for n in range(calls):
        start = time.perf_counter()
        timing = call(n).timing
        waited.append(1e3 * (time.perf_counter() - start))
        stages.append((timing.total_ms, timing.search_ms, timing.embed_ms))
    total, search, embed = np.median(stages, axis=0)
    p50, p99 = np.percentile(waited, [50, 99])
    print(f"{name:18}  {p50:10.1f}  {p99:5.1f}   {total:13.1f}  {search:6.1f}  {embed:6.1f}")


if __name__ == "__main__":
    main()

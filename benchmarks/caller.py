"""One caller of a search service, in a process of its own: orders come as lines of JSON, and so do its times.

    python -m benchmarks.caller QUERIES.npy

An order names a target {"kind": "bare" | "coldframe" | "milvus", "address": "HOST:PORT", ...} and either "calls", how
many to make, or "at" and "seconds", when to begin and how long to go on. The answer has the milliseconds of each call,
with all that a caller does: to write the request and to read the reply. The file is run by another Python, too, that
has pymilvus and nothing of Coldframe.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Call = Callable[[int], list[Any]]

LIMIT = 10
_OPTIONS = [("grpc.enable_http_proxy", 0)]


def bare(target: dict[str, Any], queries: NDArray[np.float32]) -> Call:
    """Bytes out, bytes in."""
    import grpc

    call: Any = grpc.insecure_channel(target["address"], _OPTIONS).unary_unary("/bare.Bare/Search")

    def search(n: int) -> list[Any]:
        found: list[int] = np.frombuffer(call(queries[n].tobytes()), np.int64).tolist()
        return found

    return search


def coldframe(target: dict[str, Any], queries: NDArray[np.float32]) -> Call:
    """By the generated stubs; "paths" are those of a read_mask, "stories" is Ranking.max_per_story."""
    import grpc
    from google.protobuf.field_mask_pb2 import FieldMask

    from coldframe.v1.ranking_pb2 import Ranking
    from coldframe.v1.search_service_pb2 import SearchRequest
    from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
    from coldframe.v1.types_pb2 import Seed, Vector

    call = SearchServiceStub(grpc.insecure_channel(target["address"], _OPTIONS)).Search
    ranking = Ranking(read_mask=FieldMask(paths=target["paths"]) if target.get("paths") else None)
    if "stories" in target:
        ranking.max_per_story = target["stories"]
    asked = ranking if ranking.ByteSize() else None

    def search(n: int) -> list[Any]:
        seed = Seed(vector=Vector(packed=queries[n].tobytes()))
        return [hit.article.id for hit in call(SearchRequest(seed=seed, limit=LIMIT, ranking=asked)).hits]

    return search


def milvus(target: dict[str, Any], queries: NDArray[np.float32]) -> Call:
    """By pymilvus; "collection" and "probes" say where and how far to look."""
    from pymilvus import MilvusClient  # type: ignore[import-not-found, unused-ignore]

    client = MilvusClient(uri=f"http://{target['address']}")
    parameters = {"metric_type": "IP", "params": {"nprobe": target["probes"]}}

    def search(n: int) -> list[Any]:
        found = client.search(target["collection"], data=[queries[n].tolist()], limit=LIMIT, search_params=parameters)
        return [hit["id"] for hit in found[0]]

    return search


_KINDS = {"bare": bare, "coldframe": coldframe, "milvus": milvus}


class Caller:
    """Keeps a connection to each target, and goes through the queries in its own order."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self._queries = np.ascontiguousarray(queries, np.float32)
        self._calls: dict[str, Call] = {}

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Does what one line says."""
        key = json.dumps(order["target"], sort_keys=True)
        if key not in self._calls:
            self._calls[key] = _KINDS[order["target"]["kind"]](order["target"], self._queries)
        call, n = self._calls[key], order.get("first", 0)
        if order.get("answers"):
            return {"found": [call(i) for i in range(order["calls"])]}
        time.sleep(max(0.0, order.get("at", 0.0) - time.time()))
        begun = time.perf_counter()
        end = begun + order.get("seconds", 1e9)
        spent: list[float] = []
        while len(spent) < order.get("calls", 1e9) and (start := time.perf_counter()) < end:
            call(n % len(self._queries))
            spent.append(1e3 * (time.perf_counter() - start))
            n += 1
        return {"ms": spent, "seconds": time.perf_counter() - begun}


def main() -> None:
    """Obey until the input ends."""
    caller = Caller(np.load(sys.argv[1]))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(caller.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""Many callers in few processes: what presses on a server, and what it answered.

    python -m benchmarks.crowd QUERIES.npy

Orders come as lines of JSON: {"address": "HOST:PORT", "kind": ..., "callers": so many at a time, "seconds": how long,
"at": when to begin}, or with "rate" in place of "callers": so many calls a second, whether or not others are answered.
The answer has for each status the seconds since the beginning and the milliseconds of every call. Requests are written
beforehand and replies are not read: the callers shall cost the machine little. Calls by the clock cost it least: they
are made by `benchmarks.storm`, over two connections. Kinds:

    vector     Search by a vector of QUERIES
    text       Search by a seed text of about 20 tokens, each a new one
    article    Embed a text of 4,096 tokens
    upsert     UpsertArticles, one short article
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc.aio
import numpy as np

from benchmarks.storm import Connection, storm
from coldframe.v1.article_service_pb2 import UpsertArticlesRequest
from coldframe.v1.embedding_service_pb2 import EmbedRequest
from coldframe.v1.search_service_pb2 import SearchRequest
from coldframe.v1.types_pb2 import Article, Seed, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_SEARCH = "/coldframe.v1.SearchService/Search"
_HEAD_START_S = 0.3
_CONNECTIONS = 2
_TEXT = "the central bank is expected to cut its interest rate for the {} time since spring, said {}"
# Words of one token each; the text is cut at 4,096 tokens.
_LONG = "rain wind snow sun sea land king law bank war film club team band play home road city town farm "
# What gRPC says of a call whose connection ended before its answer: such a call may have been let in.
_BROKEN = ("Socket closed", "reset", "closed by peer", "Broken pipe")
_MESSAGE_BYTES = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]


@dataclass
class Answers:
    """By status: when each call began, in seconds, and how long it took, in milliseconds."""

    began: dict[str, list[float]] = field(default_factory=dict)
    took: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, code: str, began: float, took: float) -> None:
        """Notes a call."""
        self.began.setdefault(code, []).append(began)
        self.took.setdefault(code, []).append(took)

    def join(self, other: Answers) -> None:
        """Takes in what others saw in the same time."""
        for code in other.took:
            self.began.setdefault(code, []).extend(other.began[code])
            self.took.setdefault(code, []).extend(other.took[code])
        self.seconds = max(self.seconds, other.seconds)

    @property
    def count(self) -> int:
        """Of all calls."""
        return sum(map(len, self.took.values()))

    def ok(self) -> list[float]:
        """Milliseconds of the calls that were answered."""
        return self.took.get("OK", [])

    def p(self, percent: float, code: str = "OK") -> float:
        """A percentile of the milliseconds of a status; NaN where there is none."""
        took = self.took.get(code, [])
        return float(np.percentile(took, percent)) if took else float("nan")


class Crowd:
    """Makes the calls of one process."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self._queries = np.ascontiguousarray(queries, np.float32)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._numbers = itertools.count(time.time_ns() % 1_000_000_000)
        self._kinds: dict[str, tuple[str, Callable[[int], bytes]]] = {
            "vector": (_SEARCH, self._vector),
            "text": (_SEARCH, self._text),
            "article": ("/coldframe.v1.EmbeddingService/Embed", self._article),
            "upsert": ("/coldframe.v1.ArticleService/UpsertArticles", self._upsert),
        }

    def _vector(self, n: int) -> bytes:
        packed = self._queries[n % len(self._queries)].tobytes()
        return SearchRequest(seed=Seed(vector=Vector(packed=packed)), limit=10).SerializeToString()

    def _text(self, n: int) -> bytes:
        return SearchRequest(seed=Seed(text=_TEXT.format(n, n * 7 % 1_000)), limit=10).SerializeToString()

    def _article(self, n: int) -> bytes:
        return EmbedRequest(texts=[f"{n} {_LONG * 205}"]).SerializeToString()

    def _upsert(self, n: int) -> bytes:
        article = Article(id=f"load-{n % 500}", title=f"number {n}", content=_TEXT.format(n, n))
        return UpsertArticlesRequest(articles=[article]).SerializeToString()

    async def obey(self, order: dict[str, Any]) -> Answers:
        """Does what one line says."""
        address = order["address"]
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, _MESSAGE_BYTES)
        method, write = self._kinds[order["kind"]]
        call: Any = self._channels[address].unary_unary(method)
        await asyncio.sleep(max(0.0, order.get("at", 0.0) - time.time()))
        if "rate" in order:
            return by_the_clock(order, method, lambda: write(next(self._numbers)))
        pressing = _Pressing(call, write, self._numbers, order["seconds"], order.get("timeout"))
        await asyncio.gather(*(pressing.again_and_again() for _ in range(order["callers"])))
        pressing.answers.seconds = time.perf_counter() - pressing.begun
        return pressing.answers


class _Pressing:
    """The calls of one order."""

    def __init__(
        self, call: Any, write: Callable[[int], bytes], numbers: Iterator[int], seconds: float, timeout: float | None
    ) -> None:
        self._call, self._write, self._numbers, self._timeout = call, write, numbers, timeout
        self.answers = Answers()
        self.begun = time.perf_counter()
        self._end = self.begun + seconds

    async def _once(self, request: bytes) -> None:
        start = time.perf_counter()
        try:
            await self._call(request, timeout=self._timeout)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            if code == "UNAVAILABLE" and any(word in (error.details() or "") for word in _BROKEN):
                code = "BROKEN"
        self.answers.add(code, start - self.begun, 1e3 * (time.perf_counter() - start))

    async def again_and_again(self) -> None:
        """A caller who calls again as soon as it has its answer, whatever that is."""
        while time.perf_counter() < self._end:
            await self._once(self._write(next(self._numbers)))


def by_the_clock(order: dict[str, Any], method: str, write: Callable[[], bytes]) -> Answers:
    """So many calls a second, whether or not others are answered; those that never are count as UNANSWERED."""
    answers, begun = Answers(), time.perf_counter()

    def ended(code: str, due: float) -> None:
        answers.add(code, due - begun, 1e3 * (time.perf_counter() - due))

    connections = [Connection.to(order["address"], method, order["timeout"], ended) for _ in range(_CONNECTIONS)]
    storm(connections, write, order["rate"], order["seconds"], order["timeout"])
    for due in (due for connection in connections for due in connection.unanswered()):
        ended("UNANSWERED", due)
    answers.seconds = order["seconds"]
    return answers


# --- the one who gives the orders ------------------------------------------------------------------------------------


class Crowds:
    """Processes of callers that wait for orders."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def press(self, *orders: dict[str, Any]) -> list[Answers]:
        """Begins all orders at the same time, each in a process of its own, and waits for what they saw."""
        return self.wait(self.begin(*orders))

    def begin(self, *orders: dict[str, Any]) -> int:
        """Begins without waiting. Gives how many there are to `wait` for."""
        at = time.time() + _HEAD_START_S
        for process, order in zip(self._processes, orders, strict=False):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"at": at, **order}) + "\n")
            process.stdin.flush()
        return len(orders)

    def wait(self, count: int) -> list[Answers]:
        """What the first processes saw."""
        return [_read(process) for process in self._processes[:count]]


def _read(process: subprocess.Popen[str]) -> Answers:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        sys.exit(f"a crowd ended with status {process.wait()}; what it said stands above")
    return Answers(**json.loads(line))


@contextmanager
def crowds(count: int, queries: Path) -> Iterator[Crowds]:
    """Starts processes of callers, and ends them."""
    command = [sys.executable, "-m", "benchmarks.crowd", str(queries)]
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in processes:
            _read(process)
        yield Crowds(processes)
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


async def _main() -> None:
    crowd = Crowd(np.load(sys.argv[1]))
    print(json.dumps({}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        answers = await crowd.obey(json.loads(line))
        print(json.dumps({"began": answers.began, "took": answers.took, "seconds": answers.seconds}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())

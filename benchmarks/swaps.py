"""Generations exchanged under full load: nothing fails, no answer mixes two, and callers hardly notice.

    python -m benchmarks.swaps --folder DIR [--rows 100000] [--swaps 50] [--rollbacks 10] [--workers 1]

A store holds two generations of drawn vectors. Callers, each in a process of its own, ask by vector without a pause,
and hold every answer against what the generation that it names gave when nothing else went on. Meanwhile the other
generation is made current, as a rebuild does, or the last change is rolled back, and the next exchange comes when
callers are answered from it. p99 is over the calls that began between an exchange's beginning and half a second after
its end, and over those of a time of the same load without one.

The exit status is 1 where a call failed, an answer was wrong, or the p99 of exchanges is over twice that without.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from benchmarks.crash import ANYTHING
from benchmarks.drawn import Drawn, build, queries_path, serving, store_of
from coldframe.v1.index_service_pb2 import GetIndexRequest
from coldframe.v1.index_service_pb2_grpc import IndexServiceStub
from coldframe.v1.search_service_pb2 import SearchRequest
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from coldframe.v1.types_pb2 import Seed, Vector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event

    from coldframe.store import Store

    Answers = dict[str, list[list[str]]]

_ASKED, _LIMIT = 400, 10
_AFTER_S = 0.5
_MOST_P99 = 2.0
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Heard:
    """What a caller was answered."""

    begun: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def ask(target: tuple[str, Path, Answers], number: int, stop: Event, out: Connection) -> None:
    """One caller: asks until it is told to stop, and sends what it heard. target: address, questions, answers."""
    address, queries, answers = target
    stub, heard, asked = _stub(address), Heard(), _requests(queries)
    n = 37 * number
    out.send("ready")
    while not stop.is_set():
        place, begun = n % len(asked), time.time()
        n += 1
        try:
            reply = stub.Search(asked[place], timeout=30)
        except grpc.RpcError as error:
            heard.failed.append(str(error))
            continue
        heard.begun.append(begun)
        heard.ms.append(1e3 * (time.time() - begun))
        if [hit.article.id for hit in reply.hits] != answers[reply.served_by.generation][place]:
            heard.wrong.append(f"question {place} of {reply.served_by.generation}")
    out.send(heard)


def _stub(address: str) -> Any:
    return SearchServiceStub(grpc.insecure_channel(address, _OPTIONS))


def _requests(queries: Path) -> list[SearchRequest]:
    vectors = np.load(queries)[:_ASKED]
    return [SearchRequest(seed=Seed(vector=Vector(packed=one.tobytes())), limit=_LIMIT) for one in vectors]


@contextmanager
def crowd(callers: int, target: tuple[str, Path, Answers]) -> Iterator[list[Heard]]:
    """Callers that ask as long as the block lasts; what they heard is there after it."""
    context = multiprocessing.get_context("spawn")
    stop, heard, pipes, processes = context.Event(), list[Heard](), [], []
    for number in range(callers):
        ours, theirs = context.Pipe()
        process = context.Process(target=ask, args=(target, number, stop, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    try:
        yield heard
    finally:
        stop.set()
        heard.extend(pipe.recv() for pipe in pipes)
        for process in processes:
            process.join()


# --- the run ---------------------------------------------------------------------------------------------------------


def prepare(rows: int, folder: Path) -> Store:
    """A store of two generations, built where there are fewer."""
    store, _ = store_of(Drawn(rows), folder)
    if len(store.names()) < 2:
        build(Drawn(rows, seed=1), folder, ANYTHING)
    return store


def alone(address: str, store: Store, queries: Path) -> Answers:
    """What each generation answers when nothing else goes on."""
    stub, answers = _stub(address), {}
    for name in store.names():
        store.activate(name)
        until_served(address, name)
        answers[name] = [[hit.article.id for hit in stub.Search(one).hits] for one in _requests(queries)]
    return answers


def until_served(address: str, name: str, connections: int = 1) -> None:
    """Waits until every one of some new connections is answered from a generation."""
    for _ in range(connections):
        with grpc.insecure_channel(address, _OPTIONS) as channel:
            stub = IndexServiceStub(channel)
            while stub.GetIndex(GetIndexRequest(), timeout=30).index.generation != name:
                time.sleep(0.02)


def exchange(address: str, store: Store, rolls_back: bool, workers: int) -> tuple[float, float]:
    """Makes the other generation current; when that began, and when callers were answered from it."""
    begun = time.time()
    if rolls_back:
        store.rollback()
    else:
        current = store.current()
        store.activate(next(name for name in store.names() if name != current))
    until_served(address, str(store.current()), connections=1 if workers == 1 else 8 * workers)
    return begun, time.time()


def run(args: argparse.Namespace) -> bool:
    """Prepares, loads, exchanges; says whether all bars were kept."""
    store = prepare(args.rows, args.folder)
    queries = queries_path(args.folder)
    with ExitStack() as stack:
        log = args.folder / "server.log"
        path = args.folder / "store"
        address = stack.enter_context(serving(path, log, "--workers", str(args.workers)))
        answers = alone(address, store, queries)
        with crowd(args.callers, (address, queries, answers)) as heard:
            time.sleep(2)
            quiet = (time.time(), time.time() + args.idle)
            time.sleep(args.idle)
            spans = []
            for n in range(args.swaps + args.rollbacks):
                every = (args.swaps + args.rollbacks) // max(args.rollbacks, 1)
                spans.append(exchange(address, store, n % every == every - 1, args.workers))
                time.sleep(_AFTER_S + 0.2)
    return tell(heard, quiet, spans)


def tell(heard: list[Heard], quiet: tuple[float, float], spans: list[tuple[float, float]]) -> bool:
    """Prints what was heard; says whether the bars were kept."""
    begun = np.concatenate([one.begun for one in heard])
    ms = np.concatenate([one.ms for one in heard])
    failed, wrong = [f for one in heard for f in one.failed], [w for one in heard for w in one.wrong]
    still = ms[(begun >= quiet[0]) & (begun < quiet[1])]
    during = ms[np.any([(begun >= first) & (begun < last + _AFTER_S) for first, last in spans], axis=0)]
    took = [last - first for first, last in spans]
    print(f"{len(spans)} exchanges in {np.median(took):.2f} s each (median; the longest {max(took):.2f} s)")
    print(f"{len(ms):,} calls, {len(failed)} failed, {len(wrong)} answers that no single generation gives")
    for name, of in (("without an exchange", still), ("during exchanges", during)):
        p50, p99 = np.percentile(of, [50, 99])
        print(f"{name:20} {len(of):8,} calls  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  longest {of.max():6.1f} ms")
    ratio = float(np.percentile(during, 99) / np.percentile(still, 99))
    print(f"p99 during exchanges {ratio:.2f}x, allowed {_MOST_P99:g}x")
    for line in (failed + wrong)[:5]:
        print(line)
    return not failed and not wrong and ratio <= _MOST_P99


def main() -> None:
    """Run, and tell by the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--idle", type=float, default=15.0, help="seconds of load without an exchange")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if run(args) else 1)


if __name__ == "__main__":
    main()

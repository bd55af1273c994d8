"""What a filter costs and finds: 200,000 drawn articles of which it keeps 50%, 10%, 1% and 0.1%.

    python -m benchmarks.filters --folder DIR [--rows 200000]

Half of the filters have nothing to do with the vectors (a range of a number that was drawn for each article), half
everything (sections, which lie together in space: those at one end of a direction). Each is asked for its 10 nearest,
on `server.view` in this process and over gRPC from a server of its own; unfiltered calls take turns with the filtered.

    bars    recall@10 against brute force over what the filter keeps, at least 0.98
            as many hits as were asked for wherever so many exist, one of each story or all of them
            p99 over gRPC at most 3 times that of the unfiltered call

A filter that came before is remembered by the server; "first" is what one costs that never came before.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np

from benchmarks.drawn import DRAWS, Drawn, serving, store_of
from coldframe.v1.ranking_pb2 import Filter, Ranking
from coldframe.v1.search_service_pb2 import SearchRequest, SearchResponse
from server import filters
from server.view import Base, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from coldframe.generation import Generation

    Floats = NDArray[np.float32]

_SHARES = (0.5, 0.1, 0.01, 0.001)
_LIMIT = 10
_LEAST_RECALL, _MOST_P99 = 0.98, 3.0
_NEVER = 10**6


@dataclass(frozen=True)
class Kept:
    """A filter, and the articles that it keeps, (rows,); `message` is None for no filter."""

    name: str
    mask: NDArray[np.bool_]
    message: Filter | None


@dataclass
class Measured:
    """Of one filter: milliseconds in this process and over gRPC, those of filters that are new, and what was found."""

    here: list[float] = field(default_factory=list)
    wire: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    found: list[set[int]] = field(default_factory=list)
    found_here: list[set[int]] = field(default_factory=list)
    too_few: int = 0


def _range(least: int, most: int) -> Filter:
    message = Filter()
    message.attribute.key = "draw"
    message.attribute.range.min, message.attribute.range.max = least, most
    return message


def _sections(topics: Sequence[int]) -> Filter:
    message = Filter()
    message.attribute.key = "section"
    getattr(message.attribute, "in").values.extend(f"s{topic}" for topic in topics)
    return message


def all_kept(drawn: Drawn, vectors: Floats) -> list[Kept]:
    """No filter, then every share in both ways."""
    everything = [Kept("none", np.ones(drawn.rows, np.bool_), None)]
    independent = [
        Kept(f"{share:.1%} independent", drawn.draws < share * DRAWS, _range(0, round(share * DRAWS) - 1))
        for share in _SHARES
    ]
    order = _along_a_direction(drawn, vectors)
    sizes = np.bincount(drawn.topics, minlength=len(order))[order]
    correlated = []
    for share in _SHARES:
        count = 1 + int(np.argmin(np.abs(np.cumsum(sizes) - share * drawn.rows)))
        mask = np.isin(drawn.topics, order[:count])
        correlated.append(Kept(f"{mask.mean():.2%} correlated", mask, _sections(order[:count].tolist())))
    return everything + independent + correlated


def _along_a_direction(drawn: Drawn, vectors: Floats) -> NDArray[np.int64]:
    """The topics by how far their articles lie along one direction, which is that of an article in the middle."""
    along = vectors @ vectors[drawn.rows // 2]
    count = int(drawn.topics.max()) + 1
    sizes = np.bincount(drawn.topics, minlength=count)
    means = np.bincount(drawn.topics, along, minlength=count) / np.maximum(sizes, 1)
    return np.argsort(np.where(sizes > 0, -means, np.inf), kind="stable")


def exact(kept: Kept, vectors: Floats, queries: Floats) -> list[set[int]]:
    """The true nearest rows among those kept, of each question."""
    rows = np.flatnonzero(kept.mask)
    wanted = min(_LIMIT, len(rows))
    _, found = faiss.knn(queries, np.ascontiguousarray(vectors[rows]), wanted, faiss.METRIC_INNER_PRODUCT)
    return [set(rows[of].tolist()) for of in found]


class Here:
    """Searches of a view, in this process."""

    def __init__(self, generation: Generation) -> None:
        self._view = View.of(Base(generation))
        self._probes, self._clusters = generation.probes, generation.numbers

    def search(self, query: Floats, message: Filter | None) -> list[int]:
        """Rows."""
        condition = None if message is None else filters.compile(message, self._clusters)
        found: list[int] = self._view.search(query, _LIMIT, self._probes, self._view.allow(condition))[0].tolist()
        return found


class Wire:
    """Searches over gRPC."""

    def __init__(self, address: str) -> None:
        import grpc

        from coldframe.v1.search_service_pb2_grpc import SearchServiceStub

        self._search: Callable[[SearchRequest], SearchResponse]
        self._search = SearchServiceStub(grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])).Search

    def search(self, query: Floats, message: Filter | None, stories: int = 0) -> list[int]:
        """Rows; every one of a story, or `stories` of each."""
        request = SearchRequest(limit=_LIMIT, ranking=Ranking(filter=message, max_per_story=stories))
        request.seed.vector.packed = query.tobytes()
        return [int(hit.article.id) for hit in self._search(request).hits]


def measure(every: Sequence[Kept], queries: Floats, here: Here, wire: Wire) -> dict[str, Measured]:
    """Each question with each filter in turn."""
    measured = {kept.name: Measured() for kept in every}
    for kept in every:  # what is remembered of a filter is made here
        here.search(queries[0], kept.message)
        wire.search(queries[0], kept.message)
    for query in queries:
        for kept in every:
            of = measured[kept.name]
            of.found_here.append(set(_timed(of.here, here.search, query, kept.message)))
            of.found.append(set(_timed(of.wire, wire.search, query, kept.message)))
    return measured


def measure_first(every: Sequence[Kept], measured: dict[str, Measured], queries: Floats, wire: Wire) -> None:
    """The same filters, each time with one value more that no article has: nobody remembers them."""
    for n, query in enumerate(queries):
        for kept in every:
            if kept.message is not None:
                never = Filter()
                never.any_of.filters.extend([kept.message, _range(_NEVER + n, _NEVER + n)])
                _timed(measured[kept.name].first, wire.search, query, never)


def count_missing(
    every: Sequence[Kept], measured: dict[str, Measured], queries: Floats, wire: Wire, stories: NDArray[np.int64]
) -> None:
    """How many answers have fewer hits than there could be, by default and with all articles of a story."""
    for kept in every:
        of, exist = measured[kept.name], int(kept.mask.sum())
        of.too_few += sum(len(found) < min(_LIMIT, exist) for found in [*of.found, *of.found_here])
        told = len(np.unique(stories[kept.mask]))
        answers = [wire.search(query, kept.message, stories=1) for query in queries]
        of.too_few += sum(len(found) < min(_LIMIT, told) for found in answers)


def _timed(spent: list[float], search: Callable[..., list[int]], *args: object) -> list[int]:
    start = time.perf_counter()
    found = search(*args)
    spent.append(1e3 * (time.perf_counter() - start))
    return found


def tell(every: Sequence[Kept], measured: dict[str, Measured], recalls: dict[str, tuple[float, float]]) -> bool:
    """Prints the table; says whether the bars were kept."""
    plain = np.percentile(measured[every[0].name].wire, 99)
    head = "kept recall: here gRPC | here ms p50 p99 | gRPC ms p50 p99 ratio | first p50 p99 ratio | too few"
    print(f"{'filter':20} " + head)
    missed = []
    for kept in every:
        of, found = measured[kept.name], recalls[kept.name]
        here, wire = np.percentile(of.here, [50, 99]), np.percentile(of.wire, [50, 99])
        first = np.percentile(of.first or [0], [50, 99])
        print(
            f"{kept.name:20} {kept.mask.sum():7,} {found[0]:.4f} {found[1]:.4f} | {here[0]:6.2f} {here[1]:6.2f} | "
            f"{wire[0]:6.2f} {wire[1]:6.2f} {wire[1] / plain:5.2f}x | {first[0]:6.2f} {first[1]:6.2f} "
            f"{first[1] / plain:5.2f}x | {of.too_few}"
        )
        if min(found) < _LEAST_RECALL or wire[1] > _MOST_P99 * plain or of.too_few:
            missed.append(kept.name)
    print("the bars are kept" if not missed else f"A BAR IS MISSED by: {', '.join(missed)}")
    return not missed


def main() -> None:
    """Build where needed, measure, tell; the exit status is 1 where a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=500)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    drawn = Drawn(args.rows, args.seed)
    store, queries = store_of(drawn, args.folder)
    queries, generation = queries[: args.queries], store.open()
    vectors = np.asarray(generation.index.vectors)
    every = all_kept(drawn, vectors)
    true = {kept.name: exact(kept, vectors, queries) for kept in every}
    faiss.omp_set_num_threads(1)  # as on the server's threads
    with serving(store.path, args.folder / "server.log") as address:
        here, wire = Here(generation), Wire(address)
        measured = measure(every, queries, here, wire)
        measure_first(every, measured, queries[: len(queries) // 2], wire)
        stories = np.asarray(generation.articles.column("story").to_numpy(), np.int64)
        count_missing(every, measured, queries[:100], wire, stories)
    recalls = {kept.name: _recalls(measured[kept.name], true[kept.name]) for kept in every}
    print(
        f"{args.rows:,} articles, {len(generation.clusters)} lists, {generation.probes} visited, "
        f"{len(queries)} questions"
    )
    sys.exit(0 if tell(every, measured, recalls) else 1)


def _recalls(of: Measured, true: list[set[int]]) -> tuple[float, float]:
    wanted = sum(len(rows) for rows in true)
    found = [sum(len(a & b) for a, b in zip(answers, true, strict=True)) for answers in (of.found_here, of.found)]
    return found[0] / wanted, found[1] / wanted


if __name__ == "__main__":
    main()

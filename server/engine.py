"""What the service knows and can do, without the wire: the generation that is served, its encoder, seeds, searches."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import faiss

from coldframe.encoder import Device, Encoder, Precision
from coldframe.errors import (
    ColdframeError,
    CorruptGeneration,
    FailedPrecondition,
    FingerprintMismatch,
    InvalidArgument,
    NoGeneration,
    UnknownArticle,
)
from coldframe.text import article_text, text_digest
from server.embed_queue import EmbedQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from coldframe.encoder import Tokens
    from coldframe.generation import Generation
    from coldframe.store import Store

_T = TypeVar("_T")
_log = logging.getLogger("coldframe.server")

NO_GENERATION = (
    "nothing has been published in this server's store yet; build a generation (python -m indexer build), and the "
    "server answers a moment later"
)


@dataclass(slots=True)
class Timing:
    """Milliseconds by stage, filled in on the way."""

    arrived: float = field(default_factory=time.perf_counter)
    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    embed_ms: float = 0.0
    search_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """Since the request arrived."""
        return 1e3 * (time.perf_counter() - self.arrived)


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a text was read, in tokens."""

    seen: int
    used: int


@dataclass(frozen=True, slots=True)
class TextSeed:
    """Any text; `article_id` is the id of the article that it is, if it is one."""

    text: str
    article_id: str = ""


@dataclass(frozen=True, slots=True)
class RowSeed:
    """An indexed article."""

    article_id: str


@dataclass(frozen=True, slots=True)
class VectorSeed:
    """A vector, (dim,), of unit length."""

    vector: NDArray[np.float32]


Seed = TextSeed | RowSeed | VectorSeed


@dataclass(frozen=True, slots=True)
class Query:
    """A seed as a point in the index's space, (dim,), and the row that it must not find: itself."""

    vector: NDArray[np.float32]
    hidden: frozenset[int] = frozenset()
    usage: Usage | None = None


@dataclass(frozen=True)
class Served:
    """A generation and the encoder that built it. A request takes it once and keeps it to its end."""

    generation: Generation
    encoder: Encoder
    queue: EmbedQueue


class Engine:
    """Opens what the store publishes and answers from it. Torch and FAISS run on its threads, never on the loop."""

    def __init__(
        self,
        store: Store,
        *,
        model: str | None = None,
        precision: Precision = "auto",
        device: Device = "auto",
        threads: int = 2,
    ) -> None:
        self._store = store
        self._model, self._precision, self._device = model, precision, device
        self._served: Served | None = None
        self._refusal: ColdframeError = NoGeneration(NO_GENERATION)
        # One OpenMP thread per query: under load the queries themselves fill the cores.
        self._search = ThreadPoolExecutor(threads, "search", initializer=faiss.omp_set_num_threads, initargs=(1,))
        self._tokenize = ThreadPoolExecutor(1, "tokenize")
        # All that torch does, loading included, it does on this thread. Each thread that computes gets a team of OpenMP
        # threads of its own; with two teams for the same cores every hand-over sleeps, and a short text takes twice as
        # long (docs/decisions/0008-one-thread-computes.md).
        self._compute = ThreadPoolExecutor(1, "compute")

    def load(self) -> None:
        """Opens the current generation and its encoder; blocks. Raises what makes it impossible to serve."""
        self._served = self._compute.submit(self._open).result()

    def _open(self) -> Served:
        generation = self._store.open()
        manifest = generation.manifest
        encoder = Encoder.load(self._model or manifest.source, manifest.model.recipe, self._precision, self._device)
        generation.require(encoder.fingerprint)
        encoder.embed(["warm"])
        return Served(generation, encoder, EmbedQueue(encoder, self._compute))

    async def wait_and_load(self, poll_s: float = 1.0) -> None:
        """Waits for the first generation of an empty store and opens it. What cannot be opened becomes the answer to
        every call until something else is published.
        """
        tried: str | None = None
        while self._served is None:
            try:
                current = self._store.current()
                if current is not None and current != tried:
                    tried = current
                    self._served = await self._run(self._compute, self._open)
                    return
            except Exception as error:  # whatever it is, a server that waits must say why
                _log.error("cannot serve: %s", error, exc_info=not isinstance(error, ColdframeError))
                self._refusal = _refusal(error)
            await asyncio.sleep(poll_s)

    @property
    def ready(self) -> bool:
        """Whether there is something to answer from."""
        return self._served is not None

    def served(self) -> Served:
        """What answers at this moment. Raises NoGeneration, or what keeps the published one from being served."""
        if self._served is None:
            raise self._refusal.with_traceback(None)  # or each raise would add to the last one's traceback
        return self._served

    async def tokenize(self, served: Served, texts: Sequence[str], timing: Timing) -> list[Tokens]:
        """Token ids of each text, their ends cut off where they are too long."""
        start = time.perf_counter()
        tokens = await self._run(self._tokenize, lambda: served.encoder.tokenize(texts))
        timing.tokenize_ms += 1e3 * (time.perf_counter() - start)
        return tokens

    async def embed(
        self, served: Served, texts: Sequence[str], timing: Timing
    ) -> tuple[NDArray[np.float32], list[Usage]]:
        """Vectors of the texts in the index's space, (n, dim), and how much of each was read."""
        tokens = await self.tokenize(served, texts, timing)
        embedded = await served.queue.embed(tokens)
        timing.queue_ms += embedded.queue_ms
        timing.embed_ms += embedded.embed_ms
        return served.generation.placement(embedded.vectors), [Usage(t.seen, t.used) for t in tokens]

    async def query(self, served: Served, seed: Seed, timing: Timing) -> Query:
        """The seed as a point. Raises UnknownArticle, or InvalidArgument for a vector of another length."""
        articles, index = served.generation.articles, served.generation.index
        if isinstance(seed, VectorSeed):
            if len(seed.vector) != index.dim:
                raise InvalidArgument(
                    f"seed.vector has {len(seed.vector)} values; this index's vectors have {index.dim}",
                    field="seed.vector",
                )
            return Query(seed.vector)
        if isinstance(seed, RowSeed):
            row = articles.row_of(seed.article_id)
            if row is None:
                raise UnknownArticle(
                    f"no article {seed.article_id!r} in the index; to ask about a new one, send its text"
                )
            return Query(index.vector(row), frozenset({row}))
        itself = articles.row_of(seed.article_id) if seed.article_id else None
        hidden = frozenset() if itself is None else frozenset({itself})
        # A text that was indexed has its vector already: the same one, whatever it was batched with.
        known = articles.row_of_text(text_digest(seed.text))
        if known is not None:
            article = articles[known]
            return Query(index.vector(known), hidden, Usage(article.tokens_seen, article.tokens_used))
        vectors, usage = await self.embed(served, [seed.text], timing)
        return Query(vectors[0], hidden, usage[0])

    async def search(
        self, served: Served, query: Query, limit: int, *, exact: bool, timing: Timing
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Nearest rows and their similarities, best first."""
        index = served.generation.index
        probes = index.clusters if exact else served.generation.manifest.parameters.probes
        start = time.perf_counter()
        found = await self._run(self._search, lambda: index.search(query.vector, limit, probes, query.hidden))
        timing.search_ms += 1e3 * (time.perf_counter() - start)
        return found

    async def nearest_clusters(
        self, served: Served, query: Query, limit: int, timing: Timing
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Nearest clusters' numbers and their similarities, nearest first."""
        start = time.perf_counter()
        numbers, similarities = await self._run(
            self._search, lambda: served.generation.index.nearest_clusters(query.vector[None], limit)
        )
        timing.search_ms += 1e3 * (time.perf_counter() - start)
        return numbers[0], similarities[0]

    @staticmethod
    async def _run(pool: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def close(self) -> None:
        """Ends the threads once their work is done."""
        if self._served is not None:
            await self._served.queue.drain()
        self._compute.shutdown()
        self._search.shutdown()
        self._tokenize.shutdown()


def _refusal(error: Exception) -> ColdframeError:
    """What callers hear of a generation that cannot be served: nothing of this machine, which the log names."""
    if isinstance(error, CorruptGeneration | FingerprintMismatch):
        return error
    return FailedPrecondition("the published generation cannot be served here; the server's log says why")


def seed_of_article(article_id: str, title: str, content: str) -> TextSeed:
    """An article as the index embeds it."""
    return TextSeed(article_text(title, content), article_id)

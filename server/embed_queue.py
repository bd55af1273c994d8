"""One encoder for many callers: texts wait in line, and what waits together is computed together.

Torch never runs on the event loop; one thread computes, batch after batch, each bounded by tokens. A text whose
caller has gone is dropped, and a full line says so at once instead of growing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coldframe.encoder import TOKENS_PER_BATCH
from coldframe.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from coldframe.encoder import Encoder, Tokens

# About half a minute of work for two cores and a base model; whoever comes later had better try elsewhere.
MAX_WAITING_TOKENS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of a request's texts, (n, dim), and where the time went."""

    vectors: NDArray[np.float32]
    queue_ms: float
    embed_ms: float


@dataclass(slots=True)
class _Waiting:
    ids: list[int]
    done: asyncio.Future[_Done]


@dataclass(frozen=True, slots=True)
class _Done:
    vector: NDArray[np.float32]
    started: float
    finished: float


class EmbedQueue:
    """The line before an encoder, which computes on `thread`. `drain` it when the server stops."""

    def __init__(self, encoder: Encoder, thread: Executor, max_waiting_tokens: int = MAX_WAITING_TOKENS) -> None:
        self._encoder = encoder
        self._thread = thread
        self._max_waiting_tokens = max_waiting_tokens
        self._line: deque[_Waiting] = deque()
        self._waiting_tokens = 0
        self._worker: asyncio.Task[None] | None = None

    async def embed(self, texts: Sequence[Tokens]) -> Embedded:
        """Waits its turn and computes. Raises Overloaded, at once, where too much is waiting already."""
        tokens = sum(text.used for text in texts)
        if self._line and self._waiting_tokens + tokens > self._max_waiting_tokens:
            raise Overloaded(
                f"{len(self._line):,} texts are waiting to be embedded, which is as many as this server takes; try "
                f"again in a second, or ask another server"
            )
        arrived = time.perf_counter()
        loop = asyncio.get_running_loop()
        items = [_Waiting(text.ids, loop.create_future()) for text in texts]
        self._line.extend(items)
        self._waiting_tokens += tokens
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        done = await asyncio.gather(*(item.done for item in items))
        started = min(item.started for item in done)
        return Embedded(
            np.stack([item.vector for item in done]),
            queue_ms=1e3 * (started - arrived),
            embed_ms=1e3 * (max(item.finished for item in done) - started),
        )

    async def _work(self) -> None:
        """Computes until nobody waits."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            started = time.perf_counter()
            try:
                vectors = await loop.run_in_executor(
                    self._thread, self._encoder.embed_ids, [item.ids for item in batch]
                )
            except Exception as error:  # noqa: BLE001, RUF100  # whatever it is, the callers must hear of it
                for item in batch:
                    if not item.done.done():
                        item.done.set_exception(error)
                continue
            finished = time.perf_counter()
            for item, vector in zip(batch, vectors, strict=True):
                if not item.done.done():
                    item.done.set_result(_Done(vector, started, finished))

    def _next_batch(self) -> list[_Waiting]:
        """The first in line, as many as fit the budget, without those whose callers have gone."""
        batch: list[_Waiting] = []
        budget = TOKENS_PER_BATCH
        while self._line and (not batch or len(self._line[0].ids) <= budget):
            item = self._line.popleft()
            self._waiting_tokens -= len(item.ids)
            if item.done.done():
                continue
            budget -= len(item.ids)
            batch.append(item)
        return batch

    async def drain(self) -> None:
        """Serves who still waits."""
        if self._worker is not None:
            await self._worker

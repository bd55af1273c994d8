"""One encoder for many callers: texts wait in line, and what waits together is computed together.

Torch never runs on the event loop; one thread computes, batch after batch, each bounded by tokens. Two lines:

    quick    calls of `QUICK_TOKENS` tokens at most, such as the seed text of a reader who waits, in order of arrival
    bulk     all others, and articles that are going to be kept: the shortest first, but a token counts as a millisecond
             of waiting only, so that a long article is overtaken for four seconds and then by nobody

Quick ones overtake: they are computed between two bulk batches, and also in the middle of one, which is interrupted
after every 384 tokens of a layer. They get three quarters of the time at most while bulk waits, so neither starves.
While the server is `busy` searching, long batches go `aside`, to a thread that is nobody's equal, on half of the cores
(`server.aside`), and come back where it does not get on.
Texts of several callers at once are computed on half of them, too (`server.cores`).
A full line says so at once instead of growing; a text whose caller has gone, or whose deadline has passed, is dropped.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coldframe.encoder import TOKENS_PER_BATCH
from coldframe.errors import DeadlineExceeded, Overloaded
from coldframe.longformer import ROWS
from server.admission import CALL, TOO_LATE, Call, Counts, admitted
from server.aside import GivenBack
from server.cores import Cores
from server.door import stopping
from server.tally import TOKENS, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from coldframe.encoder import Encoder, Tokens
    from server.aside import Aside

QUICK_TOKENS = 256
MAX_QUICK_TOKENS = 2_048
"""About 100 seed texts, or fewer: no more wait than are computed soon, but `_LEAST_ROOM` always."""
MAX_BULK_TOKENS = 64 * 1024
"""About half a minute of work for two cores and a base model; whoever comes later had better try elsewhere."""
MAX_COMING_CHARS = 8_000_000
"""Of texts that are being turned into tokens."""
# What may wait, and what may where the line is pressed.
_SOON_S, _SOONER_S, _LEAST_ROOM = 0.2, 0.12, QUICK_TOKENS
_BATCH_S, _LEAST_BATCH = 0.06, 128
_WAIT_S = 0.002
# Of a token: more than any text has, until one was seen; and never fewer, or texts of a letter would make all others
# look too long.
_MANY_CHARS, _FEW_CHARS = 64.0, 4.0
_TOKEN_S = 0.001
_QUICK_SHARE = 3


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of a request's texts, (n, dim), and where the time went."""

    vectors: NDArray[np.float32]
    queue_ms: float
    embed_ms: float


@dataclass(frozen=True, slots=True)
class _Done:
    vector: NDArray[np.float32]
    started: float
    finished: float


@dataclass(slots=True, eq=False)
class _Waiting:
    ids: list[int]
    done: asyncio.Future[_Done]
    call: Call
    line: Line
    left: bool = False
    """Whether it stands in the line no longer."""


class Line:
    """Texts that wait, in an order of their own, and how many tokens they are."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most = name, most
        self.tokens = 0
        self.texts = 0
        self.running = 0
        """Texts that are computed now, or as soon as the thread is free."""
        self.computing = 0
        """Tokens that are computed now: who comes waits for them, too. Written by the thread that computes."""
        self.counts = Counts()
        self._paces = [math.inf, math.inf]
        self._heap: list[tuple[float, int, _Waiting]] = []
        self._order = itertools.count()

    def takes(self, tokens: int) -> bool:
        """Whether a call with so many tokens may join. One that finds nobody may, whatever its size."""
        return not self.texts or self.tokens + tokens <= self.room

    @property
    def pace(self) -> float:
        """Tokens that are computed in a second; where the line is pressed it is another one, for saying no takes time,
        too. Written by the thread that computes.
        """
        calm, pressed = self._paces
        return pressed if self.counts.pressed and pressed < math.inf else calm

    @pace.setter
    def pace(self, pace: float) -> None:
        self._paces[self.counts.pressed] = pace

    @property
    def room(self) -> int:
        """Tokens that may wait: so many as are done soon, after those that are computed now, at the present pace."""
        soon_s = _SOONER_S if self.counts.pressed else _SOON_S
        return int(min(self.most, max(_LEAST_ROOM, self.pace * soon_s - self.computing)))

    @property
    def batch(self) -> int:
        """Tokens to compute at once: nobody waits long for those who came with him."""
        return int(min(TOKENS_PER_BATCH, max(_LEAST_BATCH, self.pace * _BATCH_S)))

    def noticed(self, tokens: int, seconds: float) -> None:
        """Remembers how fast a batch was, and forgets older ones. Small ones say nothing of it: most of their time is
        the same for any batch. Nor do those beside the first refusals: a line that grew shorter by them would cause
        more.
        """
        if 2 * tokens < self.batch or self.counts.refusing > self.counts.pressed:
            return
        pace, new = tokens / seconds, 0.4 if self.counts.pressed else 0.2
        self.pace = pace if math.isinf(self.pace) else (1 - new) * self.pace + new * pace

    def join(self, item: _Waiting, place: float) -> None:
        """Stands in line; the least place comes first, and of equal ones the first to come."""
        self.texts += 1
        self.tokens += len(item.ids)
        heapq.heappush(self._heap, (place, next(self._order), item))

    def leave(self, item: _Waiting, reason: str = "") -> None:
        """Makes room: an item is computed now, or given up for a reason."""
        if item.left:
            return
        item.left = True
        self.texts -= 1
        self.tokens -= len(item.ids)
        if reason:
            self.counts.dropped[reason] += 1

    def take(self, budget: int) -> tuple[list[_Waiting], list[_Waiting]]:
        """The first in line, as many as fit the budget, at least one; and those whose deadline has passed."""
        batch: list[_Waiting] = []
        late: list[_Waiting] = []
        while self._heap and (not batch or len(self._heap[0][2].ids) <= budget):
            item = heapq.heappop(self._heap)[2]
            if item.left or item.done.done():
                self.leave(item, item.call.reason)
            elif item.call.late:
                self.leave(item, "deadline")
                late.append(item)
            else:
                self.leave(item)
                budget -= len(item.ids)
                batch.append(item)
        self.running = len(batch)
        return batch, late


@dataclass
class Batches:
    """What was computed. Written by the thread that computes."""

    tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    texts: int = 0
    overtaken: int = 0
    """Quick batches in the middle of a bulk one."""


class EmbedQueue:
    """The lines before an encoder, which computes on `thread`. `drain` it when the server stops.

    Once that is `stopping`, a long text is computed no further: nobody waits for it any more. It goes on counting where
    the one `before` it, of another encoder on the same thread, ends.
    """

    def __init__(
        self,
        encoder: Encoder,
        thread: Executor,
        *,
        aside: Aside | None = None,
        busy: Callable[[], bool] = lambda: False,
        cores: Cores | None = None,
        stopping: threading.Event | None = None,
        before: EmbedQueue | None = None,
    ) -> None:
        self._stopping = stopping or threading.Event()
        self._aside_thread, self._busy = aside, busy
        self._aside: asyncio.Task[None] | None = None
        self._given_back: list[_Waiting] = []
        self._cores = cores or Cores()
        self._encoder = encoder
        self._thread = thread
        self.quick = Line("quick", MAX_QUICK_TOKENS)
        self.bulk = Line("bulk", MAX_BULK_TOKENS)
        self.lines = self.quick, self.bulk
        self.batches = Batches()
        if before is not None:
            self.batches = before.batches
            self.quick.counts, self.bulk.counts = before.quick.counts, before.bulk.counts
        self._loop: asyncio.AbstractEventLoop
        self._lock = threading.Lock()  # of the lines: quick texts are taken by the computing thread, too
        self._worker: asyncio.Task[None] | None = None
        self._coming = 0
        self._coming_chars = 0
        self._chars_per_token = _MANY_CHARS
        self._all_here = asyncio.Event()
        self._bulk_turn = False

    # --- joining, on the event loop ----------------------------------------------------------------------------------

    @contextmanager
    def expecting(self, texts: Sequence[str], *, bulk: bool = False) -> Iterator[None]:
        """While texts are turned into tokens; a batch waits for them a moment, if they are nearly here.

        Raises Overloaded, at once, where it can be seen already that there is no room for them: to turn into tokens
        what is then refused would take from those that were let in.
        """
        chars = sum(map(len, texts))
        # No text has more tokens than characters, but for the two at its ends.
        quick = not bulk and chars + 2 * len(texts) <= QUICK_TOKENS
        least = 2 * len(texts) + max(1, int(chars / max(_FEW_CHARS, self._chars_per_token)))
        # The parts of a batch or a stream wait for each other after this, however short the line has become.
        if quick and CALL.get().company is None and not self.quick.takes(least):
            raise self._refusal(self.quick)
        if self._coming_chars and self._coming_chars + chars > MAX_COMING_CHARS:
            raise self._refusal(self.bulk)
        self._coming += 1
        self._coming_chars += chars
        try:
            yield
        finally:
            self._coming -= 1
            self._coming_chars -= chars
            if not self._coming:
                self._all_here.set()

    def noticed(self, texts: Sequence[str], tokens: Sequence[Tokens]) -> None:
        """Remembers how long a token is, and forgets earlier texts."""
        length = sum(map(len, texts)) / sum(text.used for text in tokens)
        self._chars_per_token += 0.1 * (length - self._chars_per_token)

    async def embed(self, texts: Sequence[Tokens], *, bulk: bool = False) -> Embedded:
        """Waits its turn and computes; in the bulk line, whatever its size, where that is asked for.

        Raises Overloaded, at once, where too much is waiting already, and DeadlineExceeded where the caller's time was
        up before its turn came.
        """
        tokens, call = sum(text.used for text in texts), CALL.get()
        line = self.bulk if bulk or tokens > QUICK_TOKENS else self.quick
        if call.company is None:
            return await self._through(line, texts, tokens)
        async with call.company.tokens(line.name, tokens, lambda: line.room // 2):
            return await self._through(line, texts, tokens)

    async def _through(self, line: Line, texts: Sequence[Tokens], tokens: int) -> Embedded:
        arrived = time.perf_counter()
        items = self._join(line, texts, tokens)
        self._wake()
        try:
            done = await asyncio.gather(*(item.done for item in items))
        except asyncio.CancelledError:  # others have the room of texts that nobody waits for
            with self._lock:
                for item in items:
                    line.leave(item, item.call.reason)
            raise
        started = min(item.started for item in done)
        if (spans := CALL.get().spans) is not None:
            spans += [("queue", arrived, started), ("embed", started, max(item.finished for item in done))]
        return Embedded(
            np.stack([item.vector for item in done]),
            queue_ms=1e3 * (started - arrived),
            embed_ms=1e3 * (max(item.finished for item in done) - started),
        )

    def _join(self, line: Line, texts: Sequence[Tokens], tokens: int) -> list[_Waiting]:
        if not line.takes(tokens):
            raise self._refusal(line)
        admitted()
        self._loop = asyncio.get_running_loop()
        call, now = CALL.get(), time.monotonic()
        place = now if line is self.quick else now + _TOKEN_S * tokens
        items = [_Waiting(text.ids, self._loop.create_future(), call, line) for text in texts]
        with self._lock:
            for item in items:
                line.join(item, place)
        return items

    @staticmethod
    def _refusal(line: Line) -> Overloaded:
        line.counts.refuse()
        return Overloaded(
            f"{line.texts:,} texts are waiting to be embedded, which is as many as this server takes; try again in a "
            f"second, or ask another server"
        )

    # --- computing ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Computes until nobody waits."""
        while self.quick.texts or self._given_back or (self.bulk.texts and self._aside is None):
            if self._given_back:
                batch, self._given_back = self._given_back, []
                await self._loop.run_in_executor(self._thread, self._embed_long, batch)
                continue
            await self._wait_for_more()
            line = self._next_line()
            if not (batch := self._take(line)):
                continue
            long = line is self.bulk and sum(len(item.ids) for item in batch) > ROWS
            if long and (aside := self._aside_thread) is not None and aside.ready and self._busy():
                self._aside = asyncio.create_task(self._compute_aside(aside, batch))
                continue
            run = self._embed_long if long else self._embed_short
            await self._loop.run_in_executor(self._thread, run, batch)

    async def _compute_aside(self, aside: Aside, batch: list[_Waiting]) -> None:
        if not await aside.does(lambda go_on: self._embed_aside(batch, go_on)):
            self._given_back = batch
        self._aside = None
        self._wake()

    def _wake(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _wait_for_more(self) -> None:
        """Waits a moment for texts of which it is known that they come. A caller who is alone waits for nobody."""
        if self._coming:
            self._all_here.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_S):
                    await self._all_here.wait()

    def _next_line(self) -> Line:
        """Bulk after quick, and quick after bulk, where both wait."""
        bulk = self.bulk.texts and self._aside is None and (self._bulk_turn or not self.quick.texts)
        self._bulk_turn = not bulk
        return self.bulk if bulk else self.quick

    def _take(self, line: Line) -> list[_Waiting]:
        with self._lock:
            batch, late = line.take(line.batch)
        if late:
            self._loop.call_soon_threadsafe(_refuse, late)
        return batch

    def _embed_aside(self, batch: list[_Waiting], go_on: Callable[[], None]) -> None:
        self._cores.half()

        def between() -> None:
            self._go_on()
            go_on()

        self._embed(batch, between)

    def _embed_short(self, batch: list[_Waiting]) -> None:
        """Computes a batch, and quick texts that came in the meantime. Runs on the computing thread, as what follows.

        To ask the loop what is next, which may be busy saying no, costs each batch as long as some of its texts.
        """
        since = time.perf_counter()
        while batch:
            alone = self._aside is None and len(batch) == 1 and not self.quick.texts
            (self._cores.everybodys if alone else self._cores.half)()
            self._embed(batch, since=since)
            since = time.perf_counter()
            batch = [] if self.bulk.texts else self._take(self.quick)

    def _embed_long(self, batch: list[_Waiting]) -> None:
        """Computes a batch, and lets quick texts past on the way."""
        (self._cores.half if self._busy() else self._cores.all)()
        begun, past = time.perf_counter(), 0.0

        def between() -> None:
            nonlocal past
            self._go_on()
            now = time.perf_counter()
            while (
                self.quick.texts and past <= _QUICK_SHARE * (now - begun - past) and (quick := self._take(self.quick))
            ):
                self._embed(quick)
                self.batches.overtaken += 1
                past += time.perf_counter() - now
                now = time.perf_counter()

        self._embed(batch, between)

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise stopping()

    def _embed(self, batch: list[_Waiting], *between: Callable[[], None], since: float | None = None) -> None:
        """Computes a batch. Its pace counts from `since`, when the one before was done, or from its own start."""
        if not batch:
            return
        line, tokens = batch[0].line, sum(len(item.ids) for item in batch)
        line.computing = tokens
        started = time.perf_counter()
        try:
            vectors = self._encoder.embed_ids([item.ids for item in batch], *between)
        except GivenBack:  # who does it now counts it
            raise
        except Exception as error:  # noqa: BLE001, RUF100  # whatever it is, the callers must hear of it
            line.computing = line.running = 0
            self._loop.call_soon_threadsafe(_fail, batch, error)
            return
        line.computing = line.running = 0
        finished = time.perf_counter()
        self.batches.tokens.observe(tokens)
        self.batches.texts += len(batch)
        if line is self.quick:
            line.noticed(tokens, finished - (since or started))
        self._loop.call_soon_threadsafe(_settle, batch, vectors, started, finished)

    async def drain(self) -> None:
        """Serves who still waits."""
        while (task := self._aside or self._worker) is not None and not task.done():
            await task


def _settle(batch: list[_Waiting], vectors: NDArray[np.float32], started: float, finished: float) -> None:
    for item, vector in zip(batch, vectors, strict=True):
        if not item.done.done():
            item.done.set_result(_Done(vector, started, finished))


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for item in batch:
        if not item.done.done():
            item.done.set_exception(error)


def _refuse(late: list[_Waiting]) -> None:
    _fail(late, DeadlineExceeded(TOO_LATE))

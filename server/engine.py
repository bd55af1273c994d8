"""The service without the wire: what is served at this moment, how it is exchanged, and the threads that work.

Torch and FAISS run on threads, never on the event loop:

    compute     all that torch does, loading included: a second thread that computes would halve the speed of both
                (docs/decisions/0008-one-thread-computes.md)
    aside       long texts while there are searches: when nobody else wants the core, and on half of them only
    tokenize    texts to token ids; long ones have a thread of their own. Seed texts are done on the loop: it takes less
                time than to ask a thread
    search      filters, searches, ranking; one OpenMP thread each; short ones by one thread, long ones by several
    write       changes to live articles, and the exchange of one generation for another: one after the other
    load        a new generation, beside the one that answers
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import faiss
import numpy as np

from coldframe.errors import ColdframeError, FailedPrecondition, InvalidArgument, NoGeneration
from coldframe.live import LIVE, Embedded, LiveStore
from coldframe.text import text_digest
from server.admission import CALL, MAX_SEARCHES, SearchLine
from server.aside import Aside
from server.cores import Cores
from server.exchange import Exchange, gone
from server.place import Latest
from server.serving import Loader, Served
from server.threads import Threads
from server.turns import next_in_line
from server.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.encoder import Tokens
    from coldframe.precision import Device, Precision
    from coldframe.store import Store
    from server.place import Presence
    from server.view import View

_T = TypeVar("_T")
_log = logging.getLogger("coldframe.server")

_AT_ONCE_CHARS, _QUICK_CHARS = 512, 4_096
_PR_SET_TIMERSLACK = 29
NO_GENERATION = (
    "no generation is current in this server's store; build one (python -m indexer build), or choose one that lies "
    "there (python -m indexer list, activate), and the server answers a moment later"
)


@dataclass(slots=True)
class Timing:
    """Milliseconds by stage, filled in on the way."""

    arrived: float = field(default_factory=time.perf_counter)
    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    embed_ms: float = 0.0
    search_ms: float = 0.0
    rank_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """Since the request arrived."""
        return 1e3 * (time.perf_counter() - self.arrived)

    def searched(self, work: Callable[[], _T]) -> Callable[[], _T]:
        """The work, whose time counts as that of a search."""

        def timed() -> _T:
            start = time.perf_counter()
            try:
                return work()
            finally:
                self.search_ms += 1e3 * (time.perf_counter() - start)

        return timed


class Engine:
    """Opens what the store publishes, answers from it, and takes in what comes between two builds."""

    def __init__(
        self,
        store: Store,
        *,
        model: str | None = None,
        precision: Precision = "auto",
        device: Device = "auto",
        threads: int = 2,
        latest: Latest | None = None,
        presence: Presence | None = None,
        max_searches: int = MAX_SEARCHES,
    ) -> None:
        """`latest` and `presence`: what several servers of one store tell each other; None: this one is alone."""
        self._store = store
        self.searches = SearchLine(max_searches)
        store.current()  # refuses what is no store
        self._live = LiveStore(store.path / LIVE, read_only=True)
        self._writable: LiveStore | None = None
        self._opening = threading.Lock()
        self._stopping = threading.Event()
        self._unwritable = ""
        self._served: Served | None = None
        self._latest, self._presence = latest or Latest(), presence
        self._refusal: ColdframeError = NoGeneration(NO_GENERATION)
        self._compute = ThreadPoolExecutor(1, "compute", initializer=_be_on_time)
        self._aside = Aside()
        self._tokenize = ThreadPoolExecutor(1, "tokenize")
        self._tokenize_bulk = ThreadPoolExecutor(1, "tokenize-bulk")
        self._search = Threads(threads, "search", lambda: faiss.omp_set_num_threads(1))
        self._write = ThreadPoolExecutor(1, "write", initializer=faiss.omp_set_num_threads, initargs=(1,))
        self._load = ThreadPoolExecutor(1, "load", initializer=faiss.omp_set_num_threads, initargs=(1,))
        self._pools = self._load, self._write, self._tokenize, self._tokenize_bulk, self._compute
        for pool in self._pools:
            pool.submit(int)  # begins its thread, which may not be had when it is wanted
        self._loader = Loader(
            store,
            self._live,
            self.writable,
            self._compute,
            model,
            precision,
            device,
            self._aside,
            self.searches.busy,
            Cores(presence),
            self._stopping,
        )
        self.exchange = Exchange(
            store,
            load=lambda name: self.run(self._load, lambda: self._loader.load(self._served, name)),
            take_over=lambda new: self.run(self._write, lambda: self._take_over(new)),
            served=lambda: self._served,
            refused=self._refuse,
        )
        self.writer = Writer(
            self.writable, self._write, lambda: self.served().view, self._show, self._see_others, turns=self._turn
        )

    # --- what is served ----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Opens the current generation and its encoder; blocks. Raises what makes it impossible to serve."""
        self._serve(self._loader.load(None))

    async def watch(self, loaded: Callable[[], Awaitable[None]], poll_s: float = 1.0) -> None:
        """Exchanges what is served whenever another generation becomes current, and tells `loaded`; for ever. Shows
        what other servers of the store write.

        What cannot be opened is logged and tried again, and what was served goes on; where nothing was, it is the
        answer to every call.
        """
        await asyncio.gather(self.exchange.follow(loaded, poll_s), self._hear(poll_s))

    async def _hear(self, poll_s: float) -> None:
        """Looks whether servers that share no page with this one have written in the store, and whether it is still
        the file that is open, and shows what others wrote, also where nobody asks; for ever.
        """
        said = ""
        if self._live.reads_copy:
            self._tell_copy()
        while True:
            self._aside.look_about()
            try:
                self._latest.tell(await asyncio.to_thread(self._last_change))
                if (others := self._behind()) is not None:
                    await others
                said = ""
            except Exception as error:  # the next look may be a better one
                if said != (said := str(error)):
                    _log.error("what is written in the store cannot be followed: %s; looking again each second", error)
            await asyncio.sleep(poll_s)

    def _last_change(self) -> int:
        """The number of the last change. Raises where the file cannot be read, or is not the store's any more."""
        for store in (self._live, self._writable):
            if store is not None:
                store.require_in_place()
        before = self._live.reads_copy
        with self._opening:  # to close a file that was copied would take the locks of who has it open to write
            self._live.refresh()
        if self._live.reads_copy != before:
            self._tell_copy()
        return self._live.sequence

    def _tell_copy(self) -> None:
        if self._live.reads_copy:
            _log.warning(
                "live.db lies in a folder that this server cannot write, or on a full disk: a copy is read, and a new "
                "one whenever it changed, which is looked at each second"
            )
        else:
            _log.info("live.db itself is read again, and no copy")

    def _refuse(self, refusal: ColdframeError) -> None:
        self._refusal = refusal.with_traceback(None)  # which would hold on to all that was loaded before it was raised

    def _take_over(self, new: Served) -> None:
        """Replays what was written while the generation was loaded, on the thread that writes: nothing is lost."""
        self._serve(new.showing(self._loader.replay(new.view, new.encoder)))

    def writable(self) -> LiveStore:
        """The live articles, to be written. The file is made with the first of them: a store that may only be read can
        be served. Raises FailedPrecondition where it cannot be written.
        """
        with self._opening:
            if self._writable is None:
                self._writable = self._open_to_write()
            return self._writable

    def _open_to_write(self) -> LiveStore:
        self._live.require_in_place()  # or a new file would be made where the one that is read was moved away
        try:
            self._require_store()
            store = LiveStore(self._store.path / LIVE)
        except (InvalidArgument, FailedPrecondition) as error:
            # It names a folder of this machine, which is for the log; and no caller can send anything better.
            if self._unwritable != (said := str(error)):
                _log.error("live articles cannot be written: %s", said)
            self._unwritable = said
            raise FailedPrecondition(
                "articles can be neither added nor removed: this server cannot write in its store, and its log says "
                "why; it answers searches all the same"
            ) from error
        try:
            self._live.require_in_place()  # both have the same one open
            self._live.look_again()
        except BaseException:
            store.close()
            raise
        self._unwritable = ""
        return store

    def _require_store(self) -> None:
        """A new file lies beside generations: in the place of a store that was moved nobody would look for it."""
        if self._store.current() is None and not (self._store.path / LIVE).exists():
            raise FailedPrecondition(gone(self._store))

    def _turn(self) -> AbstractContextManager[Callable[[], None]]:
        return next_in_line(self._store.path / "generations")

    def _show(self, view: View) -> None:
        self._serve(self.served().showing(view))

    def _serve(self, served: Served) -> None:
        """Answers from another state. The workers are told of it first: who saw a change here must not be shown what
        was before it by the next one, though the one who wrote it may not have come to tell of it yet.
        """
        self._latest.tell(served.view.sequence)
        self._served = served

    def catch_up(self) -> Awaitable[None] | None:
        """What must be waited for before a request is looked at: changes of other workers; None where there is none."""
        if self._presence is not None:
            self._presence.note()
        return self._behind()

    def _behind(self) -> Awaitable[None] | None:
        served = self._served
        if served is None or self._latest.number <= served.view.sequence:
            return None
        return self.run(self._write, self._see_told)

    def _see_told(self) -> None:
        if self._latest.number > self.served().view.sequence:  # else a request that waited before has seen to it
            self._see_others()

    def _see_others(self) -> None:
        """Shows what others wrote. On the thread that writes."""
        served, told = self.served(), self._latest.number  # read first: the file has all that was told of
        self._serve(served.showing(self._loader.see_others(served.view, served.encoder, told)))

    @property
    def folder(self) -> Path:
        """Where its store is."""
        return self._store.path

    @property
    def ready(self) -> bool:
        """Whether there is something to answer from."""
        return self._served is not None

    def served(self) -> Served:
        """What answers at this moment. Raises NoGeneration, or what keeps the published one from being served."""
        if self._served is None:
            raise self._refusal.with_traceback(None)  # or each raise would add to the last one's traceback
        return self._served

    # --- work --------------------------------------------------------------------------------------------------------

    async def tokenize(self, served: Served, texts: Sequence[str], timing: Timing) -> list[Tokens]:
        """Token ids of each text, their ends cut off where they are too long."""
        start, chars = time.perf_counter(), sum(map(len, texts))
        if chars <= _AT_ONCE_CHARS:
            tokens = served.encoder.tokenize(texts)
        else:
            pool = self._tokenize if chars <= _QUICK_CHARS else self._tokenize_bulk
            tokens = await self.run(pool, lambda: served.encoder.tokenize(texts))
        timing.tokenize_ms += 1e3 * (time.perf_counter() - start)
        CALL.get().spent("tokenize", start)
        return tokens

    async def embed(
        self, served: Served, texts: Sequence[str], timing: Timing, *, bulk: bool = False
    ) -> list[Embedded]:
        """The encoder's own vectors of the texts, before the index's placement. Others go first where it is `bulk`."""
        if not texts:
            return []
        with served.queue.expecting(texts, bulk=bulk):
            tokens = await self.tokenize(served, texts, timing)
        served.queue.noticed(texts, tokens)
        done = await served.queue.embed(tokens, bulk=bulk)
        timing.queue_ms += done.queue_ms
        timing.embed_ms += done.embed_ms
        about = served.encoder.fingerprint, served.encoder.precision
        return [Embedded(v, *about, t.seen, t.used) for v, t in zip(done.vectors, tokens, strict=True)]

    async def embed_articles(self, served: Served, texts: Sequence[str], timing: Timing) -> list[Embedded]:
        """The same for articles that are going to be kept: a text that is held already is not computed again."""
        fingerprint = served.encoder.fingerprint
        digests = [text_digest(text) for text in texts]
        held = await self.searching(lambda: [self._live.embedded(digest, fingerprint) for digest in digests], timing)
        unknown = [text for text, known in zip(texts, held, strict=True) if known is None]
        new = await self.embed(served, unknown, timing, bulk=True)
        fresh = iter(new)
        return [next(fresh) if known is None else known for known in held]

    def searching(self, work: Callable[[], _T], timing: Timing | None = None) -> Awaitable[_T]:
        """Begins to run something that reads the index on a search thread. The loop is free until it is awaited. What
        it takes there counts as searching, unless the work itself says where it goes.

        Raises Overloaded, at once, where too many wait for one; awaited, DeadlineExceeded where its turn came too late.
        """
        return self.searches.through(self._search, work if timing is None else timing.searched(work))

    @staticmethod
    async def run(pool: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        """Runs something on a thread of a pool."""
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def abandon(self) -> None:
        """Leaves nothing behind where the process ends at once, while it loads."""
        self._live.close()

    @property
    def stands(self) -> bool:
        """Whether a thread of what is closed stands where it gets no core: Python would wait for it before it ends."""
        return self._aside.stands

    async def close(self) -> None:
        """Ends the threads once their work is done; long texts, for which nobody waits any more, are given up."""
        self._stopping.set()
        await self.writer.drain()
        if self._served is not None:
            await self._served.queue.drain()
        for pool in (*self._pools, self._aside, self._search):
            pool.shutdown()
        self._live.close()
        if self._writable is not None:
            self._writable.close()


def placed(served: Served, embedded: Sequence[Embedded]) -> NDArray[np.float32]:
    """Vectors in the index's space, (n, dim)."""
    return served.generation.placement(np.stack([e.vector for e in embedded]))


def _be_on_time() -> None:
    """Lets the system wake this thread when it asks for it, and not 0.05 ms later: it waits for Python, for less than
    that, some hundred times a text.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)

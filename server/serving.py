"""What is being served, and how a generation comes to be: opened, its encoder loaded, live changes replayed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coldframe.encoder import Encoder
from coldframe.errors import FailedPrecondition
from coldframe.generation import Generation, Manifest
from coldframe.live import Embedded, Upsert
from coldframe.text import article_text
from server.door import stopping
from server.embed_queue import EmbedQueue
from server.view import Base, View
from server.writer import applied

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    import numpy as np
    from numpy.typing import NDArray

    from coldframe.live import Entry, LiveStore
    from coldframe.precision import Device, Precision
    from coldframe.store import Store
    from server.aside import Aside
    from server.cores import Cores

_log = logging.getLogger("coldframe.server")
_EMBED_AT_ONCE = 64
# To replay so many changes takes a second and more, and a start says nothing else until they are.
_MANY = 1_000
# Computed before anybody asks, to know how long a line may be: as many as a batch has, but for an encoder that would
# keep the first caller waiting for it. It is a tenth slower with so few.
_CROWD, _FEW, _LONG_S = 32, 8, 0.02


@dataclass(frozen=True)
class Served:
    """A state of the index and the encoder that built it. A request takes it once and keeps it to its end."""

    view: View
    encoder: Encoder
    queue: EmbedQueue

    @property
    def generation(self) -> Generation:
        """The generation below the live articles."""
        return self.view.base.generation

    def showing(self, view: View) -> Served:
        """The same with another state of the index."""
        return replace(self, view=view)


@dataclass(frozen=True)
class Loader:
    """Makes what is served of what the store publishes. All that torch does, it does on the `compute` thread."""

    store: Store
    live: LiveStore
    writable: Callable[[], LiveStore]
    compute: Executor
    model: str | None
    precision: Precision
    device: Device
    aside: Aside
    """Where long texts are computed while searches need the cores, too."""
    busy: Callable[[], bool]
    """Whether they do."""
    cores: Cores
    """For the encoder."""
    stopping: threading.Event
    """Whether nobody waits for what takes long any more."""

    def load(self, before: Served | None, name: str | None = None) -> Served:
        """Opens a generation, the current one for None, and replays the live changes since it was built; blocks.

        Keeps the encoder of what was served `before` where that is the same. Raises what makes it impossible to serve.
        """
        directory = self.store.find(name)
        # While files are verified; beside others that are served it would take their thread for what may be corrupt.
        ahead = self._encoder(Manifest.read(directory), None) if before is None else None
        generation = Generation(directory)
        encoder, queue = (ahead or self._encoder(generation.manifest, before))()
        generation.require(encoder.fingerprint)
        generation.warm()
        return Served(self.replay(View.of(Base(generation)), encoder), encoder, queue)

    def _encoder(self, manifest: Manifest, before: Served | None) -> Callable[[], tuple[Encoder, EmbedQueue]]:
        """Begins to load the encoder of a generation, where another one was served before; gives who waits for it."""
        if before is not None and before.encoder.fingerprint == manifest.model.fingerprint:
            return lambda: (before.encoder, before.queue)
        loading = self.compute.submit(self._load_encoder, manifest)

        def wait() -> tuple[Encoder, EmbedQueue]:
            encoder, pace = loading.result()
            queue = EmbedQueue(
                encoder,
                self.compute,
                cores=self.cores,
                aside=self.aside,
                busy=self.busy,
                stopping=self.stopping,
                before=None if before is None else before.queue,
            )
            queue.quick.pace = pace
            return encoder, queue

        return wait

    def _load_encoder(self, manifest: Manifest) -> tuple[Encoder, float]:
        """The encoder, warm, and how many tokens of short texts it computes in a second."""
        encoder = Encoder.load(self.model or manifest.source, manifest.model.recipe, self.precision, self.device)
        encoder.embed(["warm"])
        return encoder, _pace(encoder)

    def replay(self, view: View, encoder: Encoder) -> View:
        """The view after all live changes that it does not know of."""
        if (count := self.live.pending(view.sequence)) >= _MANY:
            _log.info("replaying %d live changes, a few milliseconds for each; a build folds them in", count)
        return self._replayed(view, encoder, self.live.since(view.sequence))

    def _replayed(self, view: View, encoder: Encoder, entries: Iterable[Entry]) -> View:
        for entry in self._embedded(entries, encoder):
            if entry.article is None or entry.embedded is None:
                view = view.without_article(entry.id, entry.sequence)
            else:
                view = applied(view, Upsert(entry.article, entry.embedded), entry.sequence)
        return view

    def see_others(self, view: View, encoder: Encoder, told: int) -> View:
        """The view after what another process wrote since; every one of a store numbers its changes alike.

        told: the number of a change that the file has, or had: one that a generation's watermark names may be in none.
        A copy of the file may be from before it.
        """
        known = 0 if self.live.reads_copy else told
        entries, sequence = self.live.news(view.sequence)
        view = self._replayed(view, encoder, entries)
        return replace(view, sequence=max(view.sequence, sequence, known))

    def _embedded(self, entries: Iterable[Entry], encoder: Encoder) -> Iterable[Entry]:
        """The entries, those of another encoder embedded anew."""
        waiting: list[Entry] = []
        for entry in entries:
            waiting.append(entry)
            if len(waiting) == _EMBED_AT_ONCE:
                yield from self._embed_anew(waiting, encoder)
                waiting = []
        yield from self._embed_anew(waiting, encoder)

    def _embed_anew(self, entries: list[Entry], encoder: Encoder) -> list[Entry]:
        stale = [e for e in entries if e.article and e.embedded and e.embedded.fingerprint != encoder.fingerprint]
        if not stale:
            return entries
        _log.info("embedding %d live articles with the encoder of the new generation", len(stale))
        tokens = encoder.tokenize([article_text(e.article.title, e.article.content) for e in stale if e.article])
        anew: dict[int, Entry] = {}
        for entry, text in zip(stale, tokens, strict=True):
            if self.stopping.is_set():
                raise stopping()
            vector = self._embed_one(encoder, text.ids)
            embedded = Embedded(vector, encoder.fingerprint, encoder.precision, text.seen, text.used)
            self._keep(entry, embedded)
            anew[entry.sequence] = replace(entry, embedded=embedded)
        return [anew.get(entry.sequence, entry) for entry in entries]

    def _embed_one(self, encoder: Encoder, ids: list[int]) -> NDArray[np.float32]:
        """Aside while there are searches, whose own texts wait for the thread that computes."""
        found: list[NDArray[np.float32]] = []

        def embed(*between: Callable[[], None]) -> None:
            found.append(encoder.embed_ids([ids], *between)[0])

        if not (self.busy() and self.aside.ready and self.aside.does_blocking(embed)):
            self.compute.submit(embed).result()
        return found[0]

    def _keep(self, entry: Entry, embedded: Embedded) -> None:
        """So that it need not be computed again when the server starts the next time."""
        try:
            self.writable().reembed(entry.id, entry.sequence, embedded)
        except FailedPrecondition as error:
            _log.warning("the vector of a live article is not kept: %s", error)


def _pace(encoder: Encoder) -> float:
    """How many tokens of short texts it computes in a second."""
    crowd = encoder.tokenize(["the pace of a crowd of short texts"] * _CROWD)
    for count in (_FEW, _CROWD):
        texts, start = [tokens.ids for tokens in crowd[:count]], time.perf_counter()
        encoder.embed_ids(texts)
        spent = time.perf_counter() - start
        if spent > _LONG_S:
            break
    return sum(map(len, texts)) / spent

"""Changes to the live articles: committed in groups, then seen by everybody, then acknowledged.

Callers that wait together share one transaction, and so one wait for the disk. A group is taken whole or, where the
disk refuses, not at all: nobody is told of a change that a crash could undo, and no view shows one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING

from coldframe.articles import ArticleRow, excerpt
from coldframe.errors import FailedPrecondition, Overloaded
from coldframe.live import Delete, Outdated, Upsert
from coldframe.stories import shingles
from coldframe.text import article_text, text_digest
from server.admission import CALL, Call, Counts
from server.overlay import LiveRow
from server.stories import Telling, story_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from coldframe.live import Embedded, LiveArticle, LiveStore
    from server.view import View

_log = logging.getLogger("coldframe.server")
_GROUP = 1_024
# Who says again, after so long, that an article is gone means now: a corpus may have brought it back meanwhile.
_AGAIN = timedelta(minutes=1)
MAX_WAITING = 16_384
_UNSEEN = (
    "live.db of the store has changes that this server does not find there, so none of this call was taken: it may "
    "read another file than it writes. Start the servers of the store anew, and send it again"
)


class Outcome(Enum):
    """What came of a change."""

    CREATED = 1
    REPLACED = 2
    UNCHANGED = 3
    DELETED = 4
    MISSING = 5
    """There was no such article to delete."""


@dataclass(frozen=True, slots=True)
class Same:
    """An article that the index held exactly so when its caller looked: nobody embedded it."""

    article: LiveArticle


Change = Upsert | Same | Delete
Outcomes = list[Outcome]


class StaleVector(Exception):  # noqa: N818  # no error: the one who calls tries again
    """Another encoder serves by now, or the article is no longer the `Same`: it must be embedded."""


@dataclass(slots=True)
class _Waiting:
    changes: Sequence[Change]
    done: asyncio.Future[tuple[Outcomes, View]]
    call: Call


class Writer:
    """The one who writes in this process. On `thread`, `view` gives the newest state, `publish` makes one the newest,
    and `see_others` brings it up to what other processes wrote, with whom it takes `turns`: nobody else begins to write
    until it is said that this one has.
    """

    def __init__(
        self,
        store: Callable[[], LiveStore],
        thread: Executor,
        view: Callable[[], View],
        publish: Callable[[View], None],
        see_others: Callable[[], None],
        *,
        turns: Callable[[], AbstractContextManager[Callable[[], None]]],
    ) -> None:
        self._store, self._thread = store, thread
        self._view, self._publish, self._see_others, self._turns = view, publish, see_others, turns
        self._line: deque[_Waiting] = deque()
        self.waiting = 0
        """Changes that wait to be written."""
        self.writing = 0
        """Changes of the transaction that is under way."""
        self.counts = Counts()
        """Of calls."""
        self.failed = 0
        """Changes that were not kept, though they could have been: what the disk or the file refused."""
        self._said = ""
        self._worker: asyncio.Task[None] | None = None

    async def apply(self, changes: Sequence[Change]) -> tuple[Outcomes, View]:
        """Commits all of the changes, no two of one id, or none; says what came of each, and the first view with them.

        Raises Overloaded, at once, where too many wait; StaleVector; and what the store says of a disk that refuses.
        """
        if self.waiting + len(changes) > MAX_WAITING:
            self.counts.refuse()
            raise Overloaded(f"{self.waiting:,} changes wait to be written, which is as many as this server takes")
        item = _Waiting(changes, asyncio.get_running_loop().create_future(), CALL.get())
        self._line.append(item)
        self.waiting += len(changes)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await item.done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while group := self._next_group():
            self.writing = sum(len(item.changes) for item in group)
            results = await loop.run_in_executor(self._thread, self._commit, [item.changes for item in group])
            self.writing = 0
            for item, result in zip(group, results, strict=True):
                if item.done.done():
                    continue
                if isinstance(result, Exception):
                    item.done.set_exception(result)
                else:
                    item.done.set_result(result)

    def _next_group(self) -> list[_Waiting]:
        """The first in line, up to a limit, and up to the first that changes an id that the group changes already."""
        group: list[_Waiting] = []
        ids: set[str] = set()
        while self._line and len(ids) < _GROUP:
            item = self._line[0]
            new = {_id_of(change) for change in item.changes}
            gone = item.done.cancelled()  # of a caller who has gone nothing is written, and nothing needs to wait
            if ids & new and not gone:
                break
            self._line.popleft()
            self.waiting -= len(item.changes)
            if gone:
                self.counts.dropped[item.call.reason] += 1
            else:
                ids |= new
                group.append(item)
        return group

    def _commit(self, group: list[Sequence[Change]]) -> list[tuple[Outcomes, View] | Exception]:
        """One transaction for all. Runs on the writer's thread."""
        try:
            with self._turns() as begun:
                return self._agreed(group, begun)
        except Exception as error:  # whatever it is, each caller must hear of it
            self._note_failed(error, sum(map(len, group)))
            return [error] * len(group)

    def _note_failed(self, error: Exception, changes: int) -> None:
        """Counts them, and tells the log of a reason once: again where another one, or kept changes, came between."""
        self.failed += changes
        if self._said != (said := str(error)):
            _log.error("changes to live articles are not kept: %s", said)
        self._said = said

    def _note_kept(self) -> None:
        if self._said:
            _log.info("changes to live articles are kept again")
        self._said = ""

    def _agreed(
        self, group: list[Sequence[Change]], begun: Callable[[], None]
    ) -> list[tuple[Outcomes, View] | Exception]:
        """Decides anew where others have written meanwhile: what comes of a change hangs on those before it."""
        while True:
            before = self._view().sequence
            try:
                return self._committed(group, begun)
            except Outdated:
                self._see_others()
                if self._view().sequence == before:  # nor would it ever move
                    raise FailedPrecondition(_UNSEEN) from None

    def _committed(
        self, group: list[Sequence[Change]], begun: Callable[[], None]
    ) -> list[tuple[Outcomes, View] | Exception]:
        view = self._view()
        found = [self._judge(view, changes) for changes in group]
        writes = [
            change
            for changes, outcomes in zip(group, found, strict=True)
            if isinstance(outcomes, list)
            for change, outcome in zip(changes, outcomes, strict=True)
            if not isinstance(change, Same) and self._counts(change, outcome)
        ]
        if writes:
            writes = self._alike(writes)
            numbers = self._store().apply(writes, view.sequence, alone=True, begun=begun)
            self._note_kept()
            for change, sequence in zip(writes, numbers, strict=True):
                view = applied(view, change, sequence)
            self._publish(view)
        else:
            self._see_others()  # or what another server changed a moment ago would pass for what it was
            if self._view().sequence > view.sequence:
                raise Outdated
        return [(outcomes, view) if isinstance(outcomes, list) else outcomes for outcomes in found]

    @staticmethod
    def _judge(view: View, changes: Sequence[Change]) -> Outcomes | StaleVector:
        fingerprint = view.base.generation.manifest.model.fingerprint
        outcomes = [outcome(view, change) for change in changes]
        for change, found in zip(changes, outcomes, strict=True):
            other = isinstance(change, Upsert) and change.embedded.fingerprint != fingerprint
            if other or (isinstance(change, Same) and found is not Outcome.UNCHANGED):
                return StaleVector()
        return outcomes

    def _counts(self, change: Upsert | Delete, outcome: Outcome) -> bool:
        """Whether a change must be written; what is gone is marked once, and once more where it is said much later."""
        if outcome is Outcome.MISSING:
            known = self._store().get(_id_of(change))
            if known is None or known.article is not None:
                return True
            # Its moment is still to come where a clock was put back.
            return abs(datetime.now(UTC) - known.changed_at) > _AGAIN
        return outcome is not Outcome.UNCHANGED

    def _alike(self, writes: Sequence[Upsert | Delete]) -> list[Upsert | Delete]:
        """The same with one vector for each text, that of the file where it has one. Texts that came at the same time
        were embedded apart, and the last digits hang on what beside: a view gives a copy the vector of the first, and
        one that is made later, when the first is gone, must give it no other.
        """
        vectors: dict[bytes, Embedded] = {}
        alike: list[Upsert | Delete] = []
        for change in writes:
            if isinstance(change, Upsert):
                digest = text_digest(article_text(change.article.title, change.article.content))
                if digest not in vectors:
                    held = self._store().embedded(digest, change.embedded.fingerprint)
                    vectors[digest] = held or change.embedded
                alike.append(replace(change, embedded=vectors[digest]))
            else:
                alike.append(change)
        return alike

    async def drain(self) -> None:
        """Serves who still waits."""
        if self._worker is not None:
            await self._worker


def _id_of(change: Change) -> str:
    return change.id if isinstance(change, Delete) else change.article.id


def outcome(view: View, change: Change) -> Outcome:
    """What a change comes to."""
    row = view.row_of(_id_of(change))
    if isinstance(change, Delete):
        return Outcome.MISSING if row is None else Outcome.DELETED
    if row is None:
        return Outcome.CREATED
    return Outcome.UNCHANGED if holds(view, change.article) else Outcome.REPLACED


def holds(view: View, article: LiveArticle) -> bool:
    """Whether an article is in the index exactly as it comes."""
    row = view.row_of(article.id)
    if row is None:
        return False
    known = view.article(row)
    return (
        known.text_digest == text_digest(article_text(article.title, article.content))
        and known.title == article.title.strip()
        and known.published_at == article.published_at
        and known.attributes == article.attributes
    )


def applied(view: View, change: Upsert | Delete, sequence: int) -> View:
    """The view after a change that is on the disk."""
    if isinstance(change, Upsert):
        return view.with_article(live_row(view, change), sequence)
    return view.without_article(change.id, sequence)


def live_row(view: View, upsert: Upsert) -> LiveRow:
    """An article where it belongs in this view: its cluster and its story."""
    article, generation = upsert.article, view.base.generation
    text = article_text(article.title, article.content)
    digest, words = text_digest(text), shingles(text)
    known = view.row_of_text(digest)
    # Equal texts have equal vectors, whatever they were batched with.
    vectors = generation.placement(upsert.embedded.vector[None]) if known is None else view.vector(known)[None]
    clusters, similarities = generation.index.nearest_clusters(vectors, 1)
    cluster, similarity = int(clusters[0, 0]), float(similarities[0, 0])
    row = ArticleRow(
        id=article.id,
        title=article.title.strip(),
        excerpt=excerpt(article.content.strip()),
        published_at=article.published_at,
        attributes=article.attributes,
        cluster=cluster,
        tokens_seen=upsert.embedded.tokens_seen,
        tokens_used=upsert.embedded.tokens_used,
        text_digest=digest,
        story=story_of(view, Telling(article.id, vectors[0], words, digest, article.published_at)),
        similarity=similarity,
        outlier=similarity < generation.clusters[cluster].outlier_below,
    )
    return LiveRow(row, vectors[0], words)

"""Live articles laid over the corpus: a rebuild takes in what came and went while servers answered.

An article that was added or replaced online (STORE/live.db) takes the place of the corpus row of its id, or is one
more; one that was removed online is removed. That holds however often the index is built again, since the corpus may
never learn of it. A corpus that does, and is newer than some of the changes, says so with `--corpus-as-of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import ColdframeError
from coldframe.generation import Manifest
from coldframe.live import LIVE, LiveStore
from indexer.corpus import Article

if TYPE_CHECKING:
    from datetime import datetime

    from coldframe.live import Entry
    from indexer.plan import Job
    from indexer.spool import Spool


@dataclass(frozen=True)
class Folded:
    """What became of the live changes."""

    watermark: int
    """The number of the last one that was looked at: a server replays those after it."""
    upserts: int = 0
    """Articles that stand in the corpus, in a row's place or beside the rows."""
    deletes: int = 0
    """Rows that were removed."""
    yielded: int = 0
    """Changes that the corpus is newer than."""
    yielded_last: int = 0
    """The number of the last of them."""

    @property
    def told(self) -> str:
        """What there is to say of it to a person; empty if nothing came of the live changes."""
        counts = {"folded in": self.upserts, "taken out": self.deletes, "older than the corpus": self.yielded}
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        return told and f"live articles: {told}"


def fold(spool: Spool, live: LiveStore, as_of: datetime | None = None) -> Folded:
    """Lays the live articles over a spool that holds the whole corpus and is not in order yet.

    Changes made before `as_of` yield to the corpus for every id that it holds; of those that it does not hold, articles
    are added all the same. Raises CorruptGeneration where live.db is damaged.
    """
    # What was acknowledged before this number was asked for is in what is read after it.
    watermark, counts, last = live.sequence, {"upserts": 0, "deletes": 0, "yielded": 0}, 0
    for entry in live.since(0):
        watermark = max(watermark, entry.sequence)
        became = _fold_one(spool, entry, yields=as_of is not None and entry.changed_at < as_of)
        if became is not None:
            counts[became] += 1
        if became == "yielded":
            last = entry.sequence
    return Folded(watermark, **counts, yielded_last=last)


def _fold_one(spool: Spool, entry: Entry, *, yields: bool) -> str | None:
    """What became of a change; None for the removal of an article that the corpus does not hold."""
    if yields and spool.where(entry.id) is not None:
        return "yielded"
    removed = spool.remove(entry.id)
    if entry.article is None:
        return "deletes" if removed else None
    sent = entry.article
    spool.add(Article(sent.id, sent.title, sent.content, sent.published_at, sent.attributes, LIVE, entry.sequence))
    return "upserts"


def live_changes(job: Job) -> tuple[int, int]:
    """How many ids have a live change, and of how many that was made since the current generation was built."""
    with LiveStore(job.live, read_only=True) as live:
        return live.pending(0), live.pending(_watermark(job))


def _watermark(job: Job) -> int:
    current = job.store.current()
    try:
        return 0 if current is None else Manifest.read(job.store.directory(current)).watermark
    except ColdframeError:  # the build says what is wrong with it
        return 0

"""What the backend knows of its readers. Coldframe keeps nothing of it: each call is sent what it needs."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coldframe import seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coldframe.v1.search_service_pb2 import WeightedSeed

SEEDS = 64
"""A call takes no more."""
HISTORY = 1_000
"""Articles that are remembered, so that nobody is shown one again."""


@dataclass
class Reader:
    """One reader: words typed at the start, articles read and waved away, the newest last."""

    interests: list[str] = field(default_factory=list)
    read: deque[str] = field(default_factory=lambda: deque(maxlen=HISTORY))
    disliked: deque[str] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def seeds(self) -> list[WeightedSeed]:
        """What to recommend by, the weightiest first: what was read last counts most, words fade behind reading."""
        return [*self._liked(), *(seed(article_id=one, weight=-0.5) for one in reversed(self.disliked))][:SEEDS]

    def _liked(self) -> Iterator[WeightedSeed]:
        words_weight = 1.0 / (1 + len(self.read) / 5)
        yield from (seed(words, weight=words_weight) for words in self.interests)
        recent = [*self.read][-SEEDS // 2 :]
        yield from (seed(article_id=one, weight=0.9**age) for age, one in enumerate(reversed(recent)))

    def seen(self) -> list[str]:
        """What is not to be shown again."""
        return [*self.read, *self.disliked]

    @property
    def known(self) -> bool:
        """Whether there is anything to recommend by."""
        return bool(self.interests or self.read)


class Readers:
    """All readers, in memory: a real backend has a database."""

    def __init__(self) -> None:
        self._readers: dict[str, Reader] = {}
        self._lock = threading.Lock()

    def __getitem__(self, reader_id: str) -> Reader:
        with self._lock:
            return self._readers.setdefault(reader_id, Reader())

    def forget(self, article_id: str) -> None:
        """An article was taken down: no reader's history holds it any longer."""
        with self._lock:
            for reader in self._readers.values():
                for past in (reader.read, reader.disliked):
                    if article_id in past:
                        past.remove(article_id)

"""Clients that change articles until their server dies, and the ledger of what they sent and what was acknowledged."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import numpy as np

from coldframe.v1 import article_service_pb2 as pb
from coldframe.v1 import types_pb2
from coldframe.v1.article_service_pb2_grpc import ArticleServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.random import Generator

CORPORA = {"A": frozenset(f"{n:03}" for n in range(40)), "B": frozenset(f"{n:03}" for n in range(15, 60))}
"""Ids of the corpora that generations are built from; beside them each has "corpus-A" or "corpus-B"."""
BASE, GONE = "of the corpus", "removed"
_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_DEAD = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


def letters(seed: int, words: int) -> str:
    """A text of single letters."""
    return " ".join(np.random.default_rng(seed).choice([*"abcdefghijklmnopqrstuvwxyz"], words))


@dataclass(eq=False, slots=True)
class Change:
    """Something that was sent."""

    number: int
    id: str
    call: int
    """Changes of one call are taken together or not at all."""
    removes: bool
    sent: float
    done: float = math.inf
    """When it was acknowledged."""

    @property
    def makes(self) -> str:
        """What becomes of the id."""
        return GONE if self.removes else str(self.number)

    def article(self) -> types_pb2.Article:
        """What is put: everything in it tells the number."""
        n = self.number
        article = types_pb2.Article(id=self.id, title=f"change {n}", content=letters(n, 12), attributes={"op": str(n)})
        article.published_at.FromDatetime(_DAY + timedelta(minutes=n))
        return article


def whole(shown: types_pb2.ArticleSummary) -> bool:
    """Whether an article that a change made is exactly what was sent."""
    sent = Change(int(shown.attributes["op"]), shown.id, 0, False, 0.0).article()
    pairs = [(shown.title, sent.title), (shown.excerpt, sent.content), (shown.published_at, sent.published_at)]
    return all(found == true for found, true in pairs) and dict(shown.attributes) == dict(sent.attributes)


class Ledger:
    """What was sent to one store since it was looked at last, and what each id may be by then."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._numbers, self._calls = itertools.count(), itertools.count()
        self._changes: list[Change] = []
        self._lock = threading.Lock()
        known = {*CORPORA["A"], *CORPORA["B"]}
        self._may_be: dict[str, set[str]] = {name: {BASE} for name in known}

    def send(self, ids: Sequence[str], *, removes: bool) -> list[Change]:
        """Writes down changes that are about to be sent in one call."""
        with self._lock:
            call, now = next(self._calls), time.monotonic()
            changes = [Change(next(self._numbers), each, call, removes, now) for each in ids]
            self._changes.extend(changes)
        return changes

    @staticmethod
    def acknowledge(changes: Iterable[Change]) -> None:
        """Writes down that a call was answered."""
        now = time.monotonic()
        for change in changes:
            change.done = now

    def settle(self, shown: Mapping[str, str], corpus: str) -> list[str]:
        """Holds what is there (what each id was made by; `BASE`) against what may be. Gives the faults.

        An id may be what any change made of it but those that another one followed: one that was sent after they were
        acknowledged, and was acknowledged itself. Where none was acknowledged it may also be what it was before.
        """
        by_id: dict[str, list[Change]] = defaultdict(list)
        for change in self._changes:
            by_id[change.id].append(change)
        faults = [f"{name!r} is there and was never sent" for name in shown.keys() - by_id.keys() - self._may_be.keys()]
        for name in by_id.keys() | self._may_be.keys():
            allowed = self._allowed(by_id[name], self._may_be.get(name, {BASE}))
            found = shown.get(name, GONE)
            self._may_be[name] = {state for state in allowed if _shows(state, name, corpus) == found}
            if not self._may_be[name]:
                faults.append(f"{name!r} is {found}, and should be one of {sorted(allowed)} in corpus {corpus}")
                self._may_be[name] = {found}
        return faults + self._torn(by_id)

    @staticmethod
    def _allowed(changes: list[Change], before: set[str]) -> set[str]:
        last = max((change.sent for change in changes if change.done < math.inf), default=-math.inf)
        allowed = {change.makes for change in changes if not change.done < last}
        return allowed if last > -math.inf else allowed | before

    def _torn(self, by_id: Mapping[str, list[Change]]) -> list[str]:
        """Calls of which a part was taken, as far as it can be told: where no other change met their ids."""
        calls: dict[int, list[Change]] = defaultdict(list)
        for change in self._changes:
            if not change.removes and change.done == math.inf and len(by_id[change.id]) == 1:
                calls[change.call].append(change)
        taken = {call: [self._may_be[c.id] == {c.makes} for c in changes] for call, changes in calls.items()}
        return [f"call {call} is taken in part" for call, each in taken.items() if any(each) != all(each)]

    def forget(self, shown: Mapping[str, str]) -> tuple[int, int, int]:
        """Begins anew. Says how many changes were acknowledged, how many not, and how many of those are seen."""
        left_open = [change for change in self._changes if change.done == math.inf]
        taken = sum(not change.removes and shown.get(change.id) == change.makes for change in left_open)
        counts = len(self._changes) - len(left_open), len(left_open), taken
        self._changes = []
        return counts


def _shows(state: str, name: str, corpus: str) -> str:
    """What a look sees of an id in a state."""
    return state if state != BASE or name in CORPORA[corpus] else GONE


class Clients:
    """Threads that change articles of one server until it is dead."""

    def __init__(self, address: str, ledger: Ledger, count: int) -> None:
        self.faults: list[str] = []
        self.refused = 0
        self._address, self._ledger = address, ledger
        seeds = np.random.SeedSequence([ledger.seed, time.monotonic_ns()]).spawn(count)
        self._threads = [
            threading.Thread(target=self._work, args=(number, np.random.default_rng(seed)))
            for number, seed in enumerate(seeds)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits until all have seen that the server is dead."""
        for thread in self._threads:
            thread.join()

    def _work(self, number: int, random: Generator) -> None:
        own = [f"own-{number}-{n}" for n in range(10)]
        shared = [*(f"shared-{n}" for n in range(8)), *(f"{n:03}" for n in range(10, 30))]
        with grpc.insecure_channel(self._address, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = ArticleServiceStub(channel)
            while True:
                ids = own if random.random() < 0.5 else shared
                some = random.choice(ids, int(random.integers(1, 5)), replace=False).tolist()
                try:
                    self._act(stub, some, float(random.random()), is_own=ids is own)
                except grpc.RpcError as error:
                    if error.code() in _DEAD:
                        return
                    self.faults.append(f"a call failed: {error.code()} {error.details()}")
                    return

    def _act(self, stub: ArticleServiceStub, ids: list[str], kind: float, *, is_own: bool) -> None:
        if kind < 0.2:
            changes = self._ledger.send(ids, removes=True)
            stub.DeleteArticles(pb.DeleteArticlesRequest(ids=ids))
        elif kind < 0.75:
            changes = self._ledger.send(ids, removes=False)
            stub.UpsertArticles(_upsert(changes))
        else:
            self._stream(stub, ids)
            return
        self._ledger.acknowledge(changes)
        if is_own:
            self._look(stub, changes[0])

    def _stream(self, stub: ArticleServiceStub, ids: list[str]) -> None:
        """Each id twice over, one after the other and without waiting."""
        sent: dict[str, list[Change]] = {}

        def requests() -> Iterable[pb.StreamUpsertArticlesRequest]:
            for number, name in enumerate([*ids, *ids]):
                changes = sent[str(number)] = self._ledger.send([name], removes=False)
                yield pb.StreamUpsertArticlesRequest(correlation_id=str(number), request=_upsert(changes))

        for reply in stub.StreamUpsertArticles(iter(requests())):
            if reply.HasField("error"):
                self.faults.append(f"a streamed change failed: {reply.error.code} {reply.error.message}")
            else:
                self._ledger.acknowledge(sent[reply.correlation_id])

    def _look(self, stub: ArticleServiceStub, change: Change) -> None:
        """What nobody else changes is there as soon as it is acknowledged."""
        try:
            found = stub.GetArticle(pb.GetArticleRequest(id=change.id)).article.attributes["op"]
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            found = GONE
        if found != change.makes:
            self.faults.append(f"{change.id!r} is {found} right after {change.makes} was acknowledged")


def _upsert(changes: Sequence[Change]) -> pb.UpsertArticlesRequest:
    return pb.UpsertArticlesRequest(articles=[change.article() for change in changes])

"""Who is let in: a line that says no at once where it is full, and what a call carries to wherever it is worked on.

The rule is the same for a call of its own, a search of a batch and a request of a stream: one that finds the line full
is refused with Overloaded, by itself, before anything is computed for it; one that was let in is answered. Those of a
batch or a stream take turns, so that they fill no line by themselves: nobody is refused for its own company.

All of it runs on the event loop and counts with plain numbers: it must cost a search microseconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from coldframe.errors import DeadlineExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from server.security.keys import Key
    from server.threads import Threads

_T = TypeVar("_T")

MAX_SEARCHES = 64
"""Searches that wait or run: a tenth of a second of work for two cores. More of them would only wait longer."""
BUSY_S = 1.0
# A line takes a burst in. One that turns callers away is kept shorter as long as that goes on: a long one would not
# answer a call more, and each would wait for all before it. Of texts, who is turned away by a hair may soon find room.
_PAUSE_S, _WHILE_S = 0.25, 0.15
AT_ONCE = 4
"""Searches of one batch or stream in the line."""
TOO_LATE = "the deadline passed before the server came to it; nothing was computed"
_ROUNDED = 0.01
"""Of the time that a caller gives, at most: so much more of it gRPC says that there is."""


@dataclass(slots=True, eq=False)
class Call:
    """What is known of a call beside its request, from its first byte to its end. The gate makes it."""

    method: str = ""
    pool: str = ""
    audited: bool = False
    key: Key | None = None
    peer: str = ""
    certificate: str = ""
    """The name in the certificate that the caller showed; "" for none."""
    request_id: str = ""
    requests: int = 0
    items: int = 0
    """Articles or ids in them."""
    item_errors: int = 0
    outcome: str = "CANCELLED"
    """A status; this one until another is known."""
    began: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    """Its caller's, of `time.monotonic()`; None where he waits for ever."""
    company: Company | None = None
    """What the parts of a batch or a stream share."""
    spans: list[tuple[str, float, float]] | None = None
    """Where calls are traced: (stage, start, end) of `time.perf_counter()`; else None."""
    traced_from: float = 0.0
    parent: Mapping[str, str] | None = None
    """What its caller said of the trace."""

    def spent(self, stage: str, start: float) -> None:
        """Notes that a stage went from `start`, of `time.perf_counter()`, to now, where that is wanted."""
        if self.spans is not None:
            self.spans.append((stage, start, time.perf_counter()))

    @property
    def late(self) -> bool:
        """Whether nobody can have an answer in time any more."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def reason(self) -> str:
        """Why nobody waits any more, where the call was cancelled: "deadline" or "gone". The caller's own clock may end
        it before the server's does.
        """
        if self.deadline is None:
            return "gone"
        return "deadline" if time.monotonic() >= self.deadline - _ROUNDED * (self.deadline - self.began) else "gone"

    def require_time(self) -> None:
        """Raises DeadlineExceeded where the deadline has passed."""
        if self.late:
            raise DeadlineExceeded(TOO_LATE)


class Company:
    """The parts of a batch or a stream: how much of a line they may have between them. The others wait their turn."""

    def __init__(self) -> None:
        self.searches = asyncio.Semaphore(AT_ONCE)
        self._tokens: dict[str, int] = {}
        self._moved = asyncio.Condition()

    @asynccontextmanager
    async def tokens(self, line: str, count: int, most: Callable[[], int]) -> AsyncIterator[None]:
        """Has room for some tokens in a line, of which all parts together have `most`, or one part alone more. As much
        as a line takes at this moment: it may have become shorter while a part waited.
        """
        async with self._moved:
            await self._moved.wait_for(lambda: not (held := self._tokens.get(line, 0)) or held + count <= most())
            self._tokens[line] = self._tokens.get(line, 0) + count
        try:
            yield
        finally:
            self._tokens[line] -= count
            async with self._moved:
                self._moved.notify_all()


NOBODY = Call()
CALL: ContextVar[Call] = ContextVar("call", default=NOBODY)
"""The call that is being answered."""
_ADMITTED: ContextVar[bool] = ContextVar("admitted", default=False)
"""Whether this call, or this part of a batch or a stream, was let in. Each part is a task with a context of its own."""


class Counts:
    """What became of work that was not done. `dropped` is by reason: "deadline" or "gone"."""

    __slots__ = ("_first", "_last", "dropped", "refused")

    def __init__(self) -> None:
        self.refused = 0
        self.dropped = {"deadline": 0, "gone": 0}
        self._first = self._last = -math.inf  # refusals without a pause

    def refuse(self) -> None:
        """Counts a call that was not let in."""
        self.refused += 1
        now = time.monotonic()
        if now > self._last + _PAUSE_S:
            self._first = now
        self._last = now

    @property
    def refusing(self) -> bool:
        """Whether anybody was refused a moment ago."""
        return time.monotonic() < self._last + _PAUSE_S

    @property
    def pressed(self) -> bool:
        """Whether callers are refused again and again."""
        return self._last > self._first + _WHILE_S and self.refusing


class SearchLine:
    """The line before the search threads."""

    def __init__(self, most: int = MAX_SEARCHES) -> None:
        self.most, self._few = most, max(AT_ONCE, most // 8)  # nobody is refused for its own company
        self.waiting = 0
        """Works that wait or run."""
        self.counts = Counts()
        self._searched = 0.0

    @property
    def full(self) -> bool:
        """Whether the next one is refused. A line that refuses is kept an eighth as long."""
        return self.waiting >= self.most or (self.waiting >= self._few and self.counts.refusing)

    def busy(self) -> bool:
        """Whether anything is searched, or was a moment ago."""
        return bool(self.waiting) or time.monotonic() < self._searched + BUSY_S

    def admit(self) -> None:
        """Lets the call at hand in, once. Raises Overloaded where the line is full."""
        if _ADMITTED.get():
            return
        if self.full:
            raise self.refuse()
        _ADMITTED.set(True)

    def refuse(self) -> Overloaded:
        """Counts a call that is not let in; what its caller hears."""
        self.counts.refuse()
        return Overloaded(
            f"{self.waiting:,} searches are waiting or running, which is as many as this server takes; try again in a "
            f"second, or ask another server"
        )

    def through(self, threads: Threads, work: Callable[[], _T]) -> Awaitable[_T]:
        """Begins a work on a thread: once its call is admitted, and if somebody still waits when its turn comes.

        Raises Overloaded, at once; awaited, DeadlineExceeded where the thread came to it too late. Parts of a batch or
        a stream are begun, and refused, when they are awaited and have their turn.
        """
        call = CALL.get()
        if call.company is None:
            return self._begin(threads, work, call)
        return self._in_turn(call.company, threads, work, call)

    async def _in_turn(self, company: Company, threads: Threads, work: Callable[[], _T], call: Call) -> _T:
        async with company.searches:
            return await self._begin(threads, work, call)

    def _begin(self, threads: Threads, work: Callable[[], _T], call: Call) -> asyncio.Future[_T]:
        self.admit()
        begun = False

        def timely() -> _T:
            nonlocal begun
            begun = True
            call.require_time()
            if call.spans is None:
                return work()
            start = time.perf_counter()
            try:
                return work()
            finally:
                call.spent("search", start)

        def ended(future: asyncio.Future[_T]) -> None:
            self.waiting -= 1
            self._searched = time.monotonic()
            if future.cancelled():  # the thread passes over what was cancelled before its turn
                self.counts.dropped[call.reason] += not begun
            elif isinstance(future.exception(), DeadlineExceeded):
                self.counts.dropped["deadline"] += 1

        self.waiting += 1
        future = threads.run(timely)
        future.add_done_callback(ended)
        return future


def admitted() -> None:
    """Says that the call at hand was let in elsewhere: it is answered, however long the line has become."""
    _ADMITTED.set(True)

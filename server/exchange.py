"""How one generation takes over from another: because CURRENT names it, or because somebody asks the server for it.

What cannot be served is tried again, at first after a second and then ever more seldom: a model that could not be
fetched, or a disk that was away, comes back without anybody's doing. What was served goes on all the while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import (
    ColdframeError,
    CorruptGeneration,
    FailedPrecondition,
    FingerprintMismatch,
    InvalidArgument,
    NotFound,
    UnknownGeneration,
)
from coldframe.generation import Manifest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coldframe.store import Store
    from server.serving import Served

_log = logging.getLogger("coldframe.server")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Activation:
    """What came of asking for a generation."""

    before: str
    """What was served before; "" where nothing was."""
    changed: bool
    """Whether anything had to be done."""


class Exchange:
    """Makes what the store names the served generation.

    load: opens a generation beside the one that answers. take_over: makes it the served one. served: that one, None
    where there is none. refused: is told what cannot be served, and why callers may know.
    """

    def __init__(
        self,
        store: Store,
        *,
        load: Callable[[str], Awaitable[Served]],
        take_over: Callable[[Served], Awaitable[None]],
        served: Callable[[], Served | None],
        refused: Callable[[ColdframeError], None],
    ) -> None:
        self._store, self._load, self._take_over = store, load, take_over
        self._served, self._refused = served, refused
        self._one_at_a_time = asyncio.Lock()
        self._woken = asyncio.Event()
        self._failures = _Failures()
        self._done: str | None = None  # what CURRENT said then: a folder may have been given another name
        self._loaded: Callable[[], Awaitable[None]] = _nobody

    async def follow(self, loaded: Callable[[], Awaitable[None]], poll_s: float = 1.0) -> None:
        """Serves whatever is current, and tells `loaded` of every exchange; for ever."""
        self._loaded = loaded
        while True:
            await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), poll_s)
            self._woken.clear()

    @property
    def refused(self) -> bool:
        """Whether what is current, as it is now, is not what is served."""
        return self._failures.any

    def look(self) -> None:
        """Looks at CURRENT now, and tries at once what could not be served."""
        self._failures.forget()
        self._woken.set()

    async def _look(self) -> None:
        current: str | None = None
        try:
            current = self._store.current()
            if current is None and self._name() is not None:
                raise FailedPrecondition(f"{gone(self._store)}. {self._name()} goes on")
            if current is None or current in {self._name(), self._done}:
                self._failures.forget()  # what was refused may have been current before, and is said again if it comes
                return
            if not self._failures.due(current):
                return
            async with self._one_at_a_time:
                current = self._store.current()
                if current is not None and current != self._name():
                    # By its name: CURRENT may say another one by the time that it is opened.
                    await self._serve(await self._load(current))
                    self._failures.forget()
                    self._done = current
        except Exception as error:  # whatever it is, a server that waits must say why
            self._refused(explained(error))
            self._failures.note(current or "", error)

    async def activate(self, name: str, force: bool) -> Activation:
        """Opens a generation, makes it current and serves it. What fails before it is current changes nothing.

        Raises UnknownGeneration; FailedPrecondition for one that was kept back, unless by `force`, and where the store
        cannot be written; and what keeps it from being served.
        """
        async with self._one_at_a_time:
            before = self._name()
            if name == before == self._store.current():
                return Activation(name, changed=False)
            new = None if name == before else await self._prepared(name, force)
            await asyncio.to_thread(self._make_current, name)
            if new is not None:
                await self._serve(new)
            self._failures.forget()
            self._done = name
            return Activation(before or "", changed=True)

    async def _prepared(self, name: str, force: bool) -> Served:
        await asyncio.to_thread(self._require, name, force)
        try:
            return await self._load(name)
        except Exception as error:
            _log.error("generation %s was asked for and cannot be served: %s", name, error, exc_info=_unforeseen(error))
            told = explained(error)
            stays = self._name()
            told = type(told)(f"{told.message.rstrip('.')}; {stays} goes on") if stays else told
            raise told from error

    def _require(self, name: str, force: bool) -> None:
        names = self._store.names()
        if name not in names:
            # Another one may have built it while this server could not know, or pruned it.
            known = ", ".join(reversed(names)) or "none yet"
            raise UnknownGeneration(f"there is no generation {name!r} in this server's store; it holds: {known}")
        held = Manifest.read(self._store.directory(name)).held
        if held and not force:
            raise FailedPrecondition(
                f"generation {name} was kept back: {'; '.join(held)}; activate it all the same with force"
            )

    def _make_current(self, name: str) -> None:
        try:
            self._store.activate(name)
        except (InvalidArgument, NotFound, OSError) as error:
            # It names a folder of this machine, which is for the log; and no caller can send anything better.
            _log.error("generation %s was asked for and cannot be made current: %s", name, error)
            raise FailedPrecondition(
                f"generation {name} can be served, but this server cannot write in its store, and its log says why; "
                f"activate it where the store can be written: python -m indexer activate"
            ) from error

    async def _serve(self, new: Served) -> None:
        """Calls under way end on the generation that they began with."""
        await self._take_over(new)
        _log.info("serving generation %s", new.generation.name)
        await self._loaded()

    def _name(self) -> str | None:
        served = self._served()
        return None if served is None else served.generation.name


class _Failures:
    """What could not be served, and when it is tried again."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The next try is at once, and the pause after it the first."""
        self._name: str | None = None
        self._said, self._pause_s, self._due_at = "", 0.0, 0.0

    @property
    def any(self) -> bool:
        """Whether the last try was one."""
        return bool(self._pause_s)

    def due(self, name: str) -> bool:
        """Whether it is time to try that generation; for another one than the last it always is."""
        return name != self._name or time.monotonic() >= self._due_at

    def note(self, name: str, error: Exception) -> None:
        """Sets the next try, and logs what is new. The name is "" where the store does not tell one."""
        again = name == self._name
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if again else FIRST_PAUSE_S
        said, self._said = self._said, str(error)
        if said != self._said or not again:
            _log.error("cannot serve: %s; trying again", error, exc_info=_unforeseen(error))
        self._name, self._due_at = name, time.monotonic() + self._pause_s


async def _nobody() -> None:
    """Is told of an exchange before anybody asked to be."""


def _unforeseen(error: Exception) -> bool:
    return not isinstance(error, ColdframeError)


def gone(store: Store) -> str:
    """What is to be said of a store that does not even name a generation, though one of it is served."""
    return (
        f"the store {store.path} names no generation any more: it was moved, replaced or emptied, or its disk is not "
        f"mounted; put it back, or stop this server and give it the store's new place"
    )


def explained(error: Exception) -> ColdframeError:
    """What callers hear of a generation that cannot be served: nothing of this machine, which the log names."""
    if isinstance(error, CorruptGeneration | FingerprintMismatch):
        return error
    return FailedPrecondition("the published generation cannot be served here; the server's log says why")

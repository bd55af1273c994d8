"""Whose turn it is before an encoder, for how long and on how many cores, by a clock that only computing moves."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coldframe.encoder import Tokens
from coldframe.errors import Overloaded
from server.admission import CALL, Call, Company, SearchLine
from server.aside import Aside
from server.embed_queue import EmbedQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from server.embed_queue import Embedded

TOKEN_S = 1e-4
STEP = 512
"""Tokens after which a long text can be interrupted."""


class Clock:
    """Stands in for `time` where the queue reads it."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


class Lanes:
    """A queue before an encoder that takes a tenth of a millisecond a token, and `meanwhile` is what others do then.

    That runs on the loop after every step, and the step ends when it has ended: who has come has joined.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock, self.busy = clock, False
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.aside = Aside()
        self.aside.look_s = 60  # it waits for the loop here, which says nothing of how it gets on
        self.queue = EmbedQueue(
            self,  # type: ignore[arg-type]
            self._compute,
            aside=self.aside,
            busy=lambda: self.busy,
            cores=self,  # type: ignore[arg-type]
        )
        self.batches: list[list[int]] = []
        """Lengths of the texts of each, in the order in which they were begun."""
        self.places: list[tuple[str, str]] = []
        """Of each batch: its thread, and how many cores that has."""
        self.meanwhile: Callable[[], Awaitable[object]] = self.nobody
        self._cores = threading.local()
        self._loop: asyncio.AbstractEventLoop
        self.callers: list[asyncio.Task[Embedded]] = []

    async def nobody(self) -> None:
        """Comes."""

    def embed_ids(
        self, documents: Sequence[Sequence[int]], between: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        self.batches.append([len(document) for document in documents])
        self.places.append(
            (threading.current_thread().name.partition("_")[0].removeprefix("compute-"), self._cores.name)
        )
        for document in documents:
            for start in range(0, len(document), STEP):
                self.clock.now += TOKEN_S * min(STEP, len(document) - start)
                asyncio.run_coroutine_threadsafe(self._others(), self._loop).result(20)
                if between is not None:
                    between()
        return np.array([[len(document)] for document in documents], np.float32)

    async def _others(self) -> None:
        await self.meanwhile()

    def half(self) -> None:
        self._cores.name = "half"

    def all(self) -> None:
        self._cores.name = "all"

    def everybodys(self) -> None:
        self._cores.name = "everybody's"

    async def come(self, *tokens: int) -> asyncio.Task[Embedded]:
        """A caller with a text, or several, of so many tokens; he stands in line when this returns."""
        caller = self._caller(*tokens)
        await asyncio.sleep(0)
        return caller

    async def come_together(self, *tokens: int) -> list[asyncio.Task[Embedded]]:
        """Callers with a text each, before anybody is computed."""
        callers = [self._caller(count) for count in tokens]
        await asyncio.sleep(0)
        return callers

    def _caller(self, *tokens: int) -> asyncio.Task[Embedded]:
        caller = asyncio.create_task(self.queue.embed([Tokens([1] * count, count) for count in tokens]))
        self.callers.append(caller)
        return caller

    async def once(self, *tokens: int) -> None:
        """Come together, and nobody after them."""
        self.meanwhile = self.nobody
        await self.come_together(*tokens)

    def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Runs it on a loop, until all who came are answered."""

        async def whole() -> None:
            self._loop = asyncio.get_running_loop()
            await work()
            while not all(caller.done() for caller in self.callers):
                await asyncio.wait(self.callers)
            for caller in self.callers:
                if not caller.cancelled():
                    caller.result()  # or what went wrong meanwhile

        asyncio.run(asyncio.wait_for(whole(), 30))

    def close(self) -> None:
        """Ends the threads."""
        for pool in (self._compute, self.aside):
            pool.shutdown()


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lanes]:
    clock = Clock()
    monkeypatch.setattr("server.embed_queue.time", clock)
    lanes = Lanes(clock)
    yield lanes
    lanes.close()


def never_ending(lanes: Lanes, until: Callable[[], bool]) -> Callable[[], Awaitable[None]]:
    """Four seed texts wait at every moment, until something has happened or for two hundred batches."""

    async def seeds() -> None:
        if not until() and len(lanes.batches) < 200:
            for _ in range(4 - lanes.queue.quick.texts):
                await lanes.come(100)

    return seeds


# --- turns -----------------------------------------------------------------------------------------------------------


def test_seed_texts_that_never_end_take_three_quarters_of_the_time_of_a_long_article(lanes: Lanes) -> None:
    took: list[float] = []

    async def work() -> None:
        article = await lanes.come(8 * STEP)
        lanes.meanwhile = never_ending(lanes, article.done)
        took.append((await article).embed_ms)

    lanes.run(work)
    own = 1e3 * TOKEN_S * 8 * STEP
    assert took[0] == pytest.approx(4 * own, rel=0.05)


def test_a_short_article_does_not_wait_for_the_end_of_seed_texts_that_never_end(lanes: Lanes) -> None:
    async def begin() -> None:
        article = await lanes.come(300)
        lanes.meanwhile = never_ending(lanes, article.done)
        await lanes.meanwhile()

    async def work() -> None:
        lanes.meanwhile = begin
        await lanes.come(100)

    lanes.run(work)
    assert lanes.batches[:2] == [[100], [300]]


def test_seed_texts_do_not_wait_for_the_end_of_short_articles_that_never_end(lanes: Lanes) -> None:
    async def both() -> None:
        if len(lanes.batches) < 8:
            for line, most, tokens in (lanes.queue.quick, 2, 100), (lanes.queue.bulk, 1, 300):
                for _ in range(most - line.texts):
                    await lanes.come(tokens)

    async def work() -> None:
        lanes.meanwhile = both
        await lanes.come(300)

    lanes.run(work)
    assert lanes.batches[:5] == [[300], [100, 100], [300], [100, 100], [300]]


def test_an_article_is_overtaken_by_shorter_ones_for_a_millisecond_a_token_and_then_by_nobody(lanes: Lanes) -> None:
    async def come() -> None:
        lanes.meanwhile = lanes.nobody
        await lanes.come(3_000)
        lanes.clock.now += 1.89
        await lanes.come(1_100)  # of 1,900 tokens less, after 1.89 s
        lanes.clock.now += 0.07
        await lanes.come(1_050)  # of 1,950 less, after 1.96 s

    async def work() -> None:
        lanes.meanwhile = come
        await lanes.come(2_000)

    lanes.run(work)
    assert lanes.batches == [[2_000], [1_100], [3_000], [1_050]]


def test_seed_texts_are_computed_in_the_order_in_which_they_came_a_long_one_too(lanes: Lanes) -> None:
    async def work() -> None:
        lanes.meanwhile = lambda: lanes.once(256, 20, 100)
        await lanes.come(30)

    lanes.run(work)
    assert lanes.batches == [[30], [256, 20, 100]]


def test_a_reply_says_how_long_its_texts_waited_and_how_long_all_of_them_took(lanes: Lanes) -> None:
    said: list[Embedded] = []

    async def late() -> None:
        lanes.meanwhile = lanes.nobody
        caller = await lanes.come(600, 700)
        caller.add_done_callback(lambda done: said.append(done.result()))

    async def work() -> None:
        lanes.meanwhile = late
        await lanes.come(1_000)

    lanes.run(work)
    assert lanes.batches == [[1_000], [600], [700]]
    assert (said[0].queue_ms, said[0].embed_ms) == pytest.approx((48.8, 130))


# --- room ------------------------------------------------------------------------------------------------------------


def test_seed_texts_that_are_done_in_a_fifth_of_a_second_have_room_and_go_sixty_milliseconds_at_once(
    lanes: Lanes,
) -> None:
    async def crowd() -> None:
        await lanes.once(*[200] * 7)
        with pytest.raises(Overloaded, match="7 texts are waiting"):
            await lanes.queue.embed([Tokens([1], 1)])

    async def work() -> None:
        lanes.meanwhile = lambda: lanes.once(*[200] * 4)
        await (await lanes.come(200))
        await asyncio.gather(*lanes.callers)
        assert lanes.batches == [[200], [200] * 4], "by which it is known how fast many are"
        lanes.meanwhile = crowd
        await lanes.come_together(*[200] * 3)
        await asyncio.gather(*lanes.callers)
        await asyncio.gather(*lanes.callers)
        await lanes.come_together(*[200] * 10)  # while nothing is computed

    lanes.run(work)
    assert lanes.batches[2:] == [[200] * 3, [200] * 3, [200] * 3, [200], [200] * 3, [200] * 3, [200] * 3, [200]]
    assert lanes.queue.quick.counts.refused == 1


def test_articles_may_wait_for_longer_than_is_soon_however_slow_the_encoder(lanes: Lanes) -> None:
    async def work() -> None:
        await (await lanes.come(1_000))
        await lanes.come_together(*[4_096] * 14)

    lanes.run(work)
    assert lanes.queue.bulk.counts.refused == 0


def test_the_parts_of_a_batch_leave_half_of_the_line_to_others(lanes: Lanes) -> None:
    async def parts() -> None:
        lanes.meanwhile = lanes.nobody
        together = Call()
        together.company = Company()
        CALL.set(together)
        callers = await lanes.come_together(*[200] * 20)
        for _ in range(3):
            await asyncio.sleep(0)  # until as many as may have joined
        CALL.set(Call())
        await lanes.come_together(*[256] * 4)
        assert lanes.queue.quick.texts == 5 + 4
        CALL.set(together)
        with lanes.queue.expecting(["a"] * 20):  # which have no room now, and wait for it
            pass
        for caller in callers:
            caller.cancel()

    async def work() -> None:
        lanes.meanwhile = parts
        await lanes.come(100)

    lanes.run(work)
    assert lanes.queue.quick.counts.refused == 0


def test_the_parts_of_a_batch_wait_for_each_other_however_short_the_line(lanes: Lanes) -> None:
    async def work() -> None:
        lanes.queue.quick.pace = 1.0
        together = Call()
        together.company = Company()
        CALL.set(together)
        await lanes.come_together(*[200, 250, 150] * 4)  # each more than half of it

    lanes.run(work)
    assert sum(map(sum, lanes.batches)) == 4 * (200 + 250 + 150)


def test_a_call_whose_text_was_let_in_is_not_refused_by_a_full_line_of_searches(lanes: Lanes) -> None:
    searches = SearchLine(0)

    async def work() -> None:
        with pytest.raises(Overloaded):
            searches.admit()
        await lanes.queue.embed([Tokens([1], 1)])
        searches.admit()

    lanes.run(work)


# --- who goes, and what goes wrong -----------------------------------------------------------------------------------


def test_a_caller_who_goes_while_his_text_is_computed_takes_no_vector_from_the_others(lanes: Lanes) -> None:
    async def goes() -> None:
        lanes.callers.pop(0).cancel()
        lanes.meanwhile = lanes.nobody

    async def work() -> None:
        lanes.meanwhile = goes
        await lanes.come_together(100, 100, 100)

    lanes.run(work)
    assert lanes.batches == [[100] * 3]
    assert [caller.result().vectors.tolist() for caller in lanes.callers] == [[[100]]] * 2


def test_what_an_encoder_fails_at_all_its_callers_hear_and_the_next_are_answered(lanes: Lanes) -> None:
    async def fails() -> None:
        lanes.meanwhile = lanes.nobody
        raise MemoryError("too much")

    async def work() -> None:
        lanes.meanwhile = fails
        for caller in await lanes.come_together(100, 100):
            with pytest.raises(MemoryError, match="too much"):
                await caller
        lanes.callers.clear()
        assert (await (await lanes.come(100))).vectors.tolist() == [[100]]

    lanes.run(work)


def test_texts_on_their_way_are_bounded_by_their_letters_but_one_that_is_alone_may_be_longer(lanes: Lanes) -> None:
    many, expecting = ["a" * 8_000_000], lanes.queue.expecting
    for _ in range(2):
        with expecting([*many, "and more"], bulk=True), pytest.raises(Overloaded), expecting(["a"]):
            pass
    with expecting(["short"]), expecting(["short"]), pytest.raises(Overloaded), expecting(many, bulk=True):
        pass


def test_it_is_learned_from_texts_how_many_letters_a_token_has(lanes: Lanes) -> None:
    async def crowd() -> None:
        await lanes.once(*[100] * 20)
        for learned in (False, True):
            if learned:
                for _ in range(100):
                    lanes.queue.noticed(["four"] * 100, [Tokens([1] * 100, 100)])
            refused = lanes.queue.quick.counts.refused
            try:
                with lanes.queue.expecting(["word" * 60]):  # 64 letters a token are 6 tokens, and 4 are 62
                    pass
            except Overloaded:
                pass
            assert lanes.queue.quick.counts.refused == refused + learned

    async def work() -> None:
        lanes.meanwhile = crowd
        await lanes.come(30)

    lanes.run(work)


# --- threads and cores -----------------------------------------------------------------------------------------------


def test_a_text_that_is_alone_has_everybodys_cores_several_have_half_and_a_long_one_has_all(lanes: Lanes) -> None:
    async def work() -> None:
        await (await lanes.come(100))
        await asyncio.gather(*await lanes.come_together(100, 100))
        await (await lanes.come(300))
        await (await lanes.come(1_000))

    lanes.run(work)
    assert lanes.batches == [[100], [100, 100], [300], [1_000]]
    assert lanes.places == [("compute", cores) for cores in ("everybody's", "half", "everybody's", "all")]


def test_while_searches_run_a_long_article_goes_aside_seed_texts_go_on_and_the_next_article_waits_for_it(
    lanes: Lanes,
) -> None:
    async def seed() -> None:
        lanes.meanwhile = lanes.nobody
        lanes.busy = False
        article = await lanes.come(700)
        for _ in range(2):
            await (await lanes.come(100))
        assert not article.done()

    async def work() -> None:
        lanes.busy = True
        lanes.meanwhile = seed
        await lanes.come(600)

    lanes.run(work)
    assert lanes.batches == [[600], [100], [100], [700]]
    assert lanes.places == [("aside", "half"), *[("compute", "half")] * 2, ("compute", "all")]


def test_what_does_not_get_on_aside_comes_back_and_seed_texts_pass_it_there(lanes: Lanes) -> None:
    async def stand_still() -> None:
        lanes.meanwhile = seed
        while lanes.aside.ready:
            await asyncio.sleep(0.001)

    async def seed() -> None:
        lanes.meanwhile = lanes.nobody
        await lanes.come(100)

    async def work() -> None:
        lanes.busy, lanes.aside.look_s = True, 0.05
        lanes.meanwhile = stand_still
        await (await lanes.come(600))
        await (await lanes.come(700))

    lanes.run(work)
    assert lanes.batches == [[600], [600], [100], [700]]
    assert lanes.places == [("aside", "half"), *[("compute", "half")] * 3]
    assert lanes.queue.batches.texts == 3
    assert lanes.queue.bulk.running == 0


def test_short_articles_do_not_go_aside_and_long_ones_only_while_searches_run(lanes: Lanes) -> None:
    async def work() -> None:
        await (await lanes.come(1_000))
        lanes.busy = True
        await (await lanes.come(300))

    lanes.run(work)
    assert lanes.places == [("compute", "all"), ("compute", "everybody's")]


def test_a_server_that_stops_waits_for_what_is_computed_aside_and_for_what_waits_behind_it(lanes: Lanes) -> None:
    async def work() -> None:
        lanes.busy = True
        await lanes.come_together(600, 700)
        while not lanes.batches:
            await asyncio.sleep(0.001)
        await lanes.queue.drain()
        await asyncio.sleep(0)
        assert [caller.done() for caller in lanes.callers] == [True, True]

    lanes.run(work)

"""The lines of texts before an encoder: who overtakes whom, who is refused, and what is computed together."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coldframe.encoder import Tokens
from coldframe.errors import DeadlineExceeded, Overloaded
from coldframe.longformer import Longformer
from server.admission import CALL, Call
from server.embed_queue import MAX_QUICK_TOKENS, QUICK_TOKENS, EmbedQueue
from tests.newsroom import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.conftest import Background


class Slow:
    """An encoder by the clock: a token takes a tenth of a millisecond, and it can be interrupted every 512 tokens."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def embed_ids(
        self, documents: Sequence[Sequence[int]], between: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        for document in documents:
            for start in range(0, len(document), 512):
                time.sleep(1e-4 * min(512, len(document) - start))
                if between is not None:
                    between()
            self.order.append(len(document))
        return np.array([[len(document)] for document in documents], np.float32)


def text_of(tokens: int) -> Tokens:
    return Tokens([1] * tokens, tokens)


class Lines:
    """A queue before a slow encoder, on a loop of its own."""

    def __init__(self) -> None:
        self.encoder, self._pool = Slow(), ThreadPoolExecutor(1)
        self.queue = EmbedQueue(self.encoder, self._pool)  # type: ignore[arg-type]

    async def embed(self, tokens: int, deadline_s: float | None = None, *, bulk: bool = False) -> float:
        """Seconds until a text of so many tokens has its vector."""
        if deadline_s is not None:
            CALL.set(Call(deadline=time.monotonic() + deadline_s))
        start = time.perf_counter()
        found = await self.queue.embed([text_of(tokens)], bulk=bulk)
        assert found.vectors.tolist() == [[tokens]]
        return time.perf_counter() - start

    async def rest(self) -> None:
        """Until the computing thread, which takes what comes while it is at it, has nothing more to do."""
        await asyncio.wrap_future(self._pool.submit(int))

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


def test_a_seed_text_overtakes_long_articles_even_in_the_middle_of_one(lines: Lines) -> None:
    async def run() -> tuple[float, list[float]]:
        articles = [asyncio.create_task(lines.embed(4_096)) for _ in range(3)]  # 0.4 s each
        await asyncio.sleep(0.1)
        seed = await lines.embed(20)
        return seed, await asyncio.gather(*articles)

    seed, articles = asyncio.run(run())
    assert seed < 0.2, "no longer than 512 tokens take, and its own"
    assert lines.encoder.order == [20, 4_096, 4_096, 4_096]
    assert max(articles) < 3, "all of them in turn"
    assert lines.queue.batches.overtaken == 1


def test_short_articles_overtake_long_ones_and_nobody_waits_for_ever(lines: Lines) -> None:
    async def run() -> float:
        long = [asyncio.create_task(lines.embed(4_096)) for _ in range(2)]
        await asyncio.sleep(0.05)
        short = [asyncio.create_task(lines.embed(300)) for _ in range(3)]
        last = (await asyncio.gather(*long))[-1]
        await asyncio.gather(*short)
        return last

    asyncio.run(run())
    assert lines.encoder.order == [4_096, 300, 300, 300, 4_096]


def test_a_small_article_that_is_to_be_kept_waits_behind_seed_texts(lines: Lines) -> None:
    async def run() -> None:
        first = asyncio.create_task(lines.embed(200))
        await asyncio.sleep(0.005)
        kept = [asyncio.create_task(lines.embed(50, bulk=True)) for _ in range(2)]
        await asyncio.sleep(0)
        assert lines.queue.bulk.texts == 2
        assert lines.queue.quick.texts == 0
        await asyncio.gather(first, *kept)

    asyncio.run(run())


def test_a_full_line_of_texts_refuses_and_the_other_line_does_not() -> None:
    lines = Lines()
    lines.queue.quick.most, lines.queue.bulk.most = 95, 1_000

    async def run() -> None:
        first = asyncio.create_task(lines.embed(200))  # computed at once
        await asyncio.sleep(0.005)
        waiting = [asyncio.create_task(lines.embed(90)), asyncio.create_task(lines.embed(900))]
        await asyncio.sleep(0)
        for tokens in (20, 300):
            with pytest.raises(Overloaded, match="1 texts are waiting to be embedded"):
                await lines.embed(tokens)
        with pytest.raises(Overloaded), lines.queue.expecting(["four short texts without room"] * 4):
            pass
        waiting.append(asyncio.create_task(lines.embed(5)))
        await asyncio.gather(first, *waiting)
        assert [line.counts.refused for line in (lines.queue.quick, lines.queue.bulk)] == [2, 1]
        assert [line.tokens for line in (lines.queue.quick, lines.queue.bulk)] == [0, 0]

    asyncio.run(run())
    lines.close()


def test_texts_of_a_letter_do_not_make_others_look_too_long(lines: Lines) -> None:
    async def run() -> None:
        for _ in range(1_000):
            lines.queue.noticed(["a"], [text_of(3)])
        first = asyncio.create_task(lines.embed(200))
        await asyncio.sleep(0.005)
        waiting = asyncio.create_task(lines.embed(20))
        await asyncio.sleep(0)
        with lines.queue.expecting(["word " * 40]):  # some 50 tokens
            pass
        await asyncio.gather(first, waiting)

    asyncio.run(run())


def test_a_text_that_is_late_or_given_up_is_dropped_counted_and_makes_room(lines: Lines) -> None:
    async def run() -> None:
        first = asyncio.create_task(lines.embed(256))  # 26 ms
        await asyncio.sleep(0.005)
        late = asyncio.create_task(lines.embed(30, deadline_s=0.001))
        gone = asyncio.create_task(lines.embed(40))
        stays = asyncio.create_task(lines.embed(50, deadline_s=60))
        await asyncio.sleep(0)
        assert lines.queue.quick.tokens == 120
        gone.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert lines.queue.quick.tokens == 80, "others may have its room"
        with pytest.raises(DeadlineExceeded, match="nothing was computed"):
            await late
        await asyncio.gather(first, stays)

    asyncio.run(run())
    assert lines.encoder.order == [256, 50]
    assert lines.queue.quick.counts.dropped == {"deadline": 1, "gone": 1}
    assert lines.queue.quick.texts == 0


def test_texts_that_are_nearly_here_are_computed_together_and_who_is_alone_waits_for_nobody(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.embed_queue._WAIT_S", 600.0)

    async def together() -> None:
        with lines.queue.expecting(["another text"]):
            with lines.queue.expecting(["and a third one"]):
                first = asyncio.create_task(lines.embed(20))
                await asyncio.sleep(0.01)
            second = asyncio.create_task(lines.embed(30))
            await asyncio.sleep(0.01)
        await lines.embed(40)
        await asyncio.gather(first, second)

    async def run() -> None:
        for _ in range(2):
            await together()
            await lines.rest()
            await lines.embed(10)
            await lines.rest()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert lines.queue.batches.texts == 8
    assert sum(lines.queue.batches.tokens.counts) == 4, "of 90 tokens, and of 10"


def test_a_bound_is_above_what_one_call_may_have() -> None:
    assert MAX_QUICK_TOKENS >= 2 * QUICK_TOKENS


def test_vectors_are_the_same_whatever_overtook(
    background: Background, newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(background, newsroom, threads=1) as (client, engine):  # of no searches: a long text would stand aside
        long, alone = "q w e " * 250, engine.served().queue.batches.overtaken
        wanted = [client.embed([text]).embeddings[0].vector.values for text in (long, "a b c")]
        forward, inside = Longformer.forward, threading.Event()

        def slowly(self: Longformer, documents: Any, recipes: Any, between: Any = None) -> Any:
            if between is None:
                return forward(self, documents, recipes)

            def pause() -> None:
                inside.set()
                time.sleep(0.2)
                between()

            return forward(self, documents, recipes, pause)

        monkeypatch.setattr(Longformer, "forward", slowly)
        with ThreadPoolExecutor(1) as pool:
            article = pool.submit(client.embed, [long])
            assert inside.wait(30)
            seed = client.embed(["a b c"]).embeddings[0].vector.values
            assert not article.done()
            np.testing.assert_allclose(article.result(60).embeddings[0].vector.values, wanted[0], atol=1e-6)
        np.testing.assert_allclose(seed, wanted[1], atol=1e-6)
        assert engine.served().queue.batches.overtaken > alone

"""One generation exchanged for another while calls are under way: nothing is lost, mixed or refused."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coldframe import Encoder
from coldframe.errors import (
    CorruptGeneration,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    UnknownGeneration,
)
from coldframe.generation import Manifest
from coldframe.live import LIVE, LiveStore
from coldframe.store import Store
from coldframe.text import article_text, text_digest
from tests.builds import build, letters
from tests.corpus_files import write
from tests.newsroom import Barrier, make_store, nearest, opened, piece, sealed_again, settled, words
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from coldframe import Client
    from server.engine import Engine
    from tests.conftest import Background


@dataclass(frozen=True)
class Shelf:
    """A store of three generations: the first is current."""

    store: Path
    first: str
    second: str
    """Of the same encoder: 40 articles more."""
    other: str
    """Of another recipe."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    path = make_store(folder)
    usual: dict[str, Any] = {"model": str(folder / "model"), "clusters": 6}
    first = str(Store(path).current())
    more = write(folder / "more.csv", letters(160))
    second = build(path, more, recipe="mean-centred", **usual).name
    other = build(path, more, recipe="mean", **usual).name
    Store(path).activate(first)
    return Shelf(path, first, second, other)


@pytest.fixture
def own(shelf: Shelf, tmp_path: Path) -> Store:
    return Store(shutil.copytree(shelf.store, tmp_path / "store"))


@contextlib.contextmanager
def followed(background: Background, store: Store) -> Iterator[tuple[Client, Engine]]:
    """A server that follows the store."""
    with opened(background, store.path) as (client, engine):
        watching = follow(background, engine)
        try:
            yield client, engine
        finally:
            watching.cancel()


def follow(background: Background, engine: Engine) -> Future[None]:
    async def nothing() -> None:
        """Is told that a generation was loaded."""

    return asyncio.run_coroutine_threadsafe(engine.watch(nothing, poll_s=0.02), background.loop)


def served_by(client: Client) -> str:
    return client.index().served_by.generation


def test_activate_and_rollback_are_noticed(background: Background, own: Store, shelf: Shelf) -> None:
    with followed(background, own) as (client, _):
        for name, count in ((shelf.second, 160), (shelf.first, 120), (shelf.other, 160)):
            own.activate(name)
            wait_until(lambda name=name: served_by(client) == name)  # type: ignore[misc]
            assert client.index().index.article_count == count
        assert client.search(words("x")).served_by.fingerprint == Store(own.path).open().manifest.model.fingerprint


def test_what_is_activated_while_another_is_opened_is_served_and_so_is_the_other_again(
    background: Background, own: Store, shelf: Shelf
) -> None:
    with followed(background, own) as (client, engine):
        held = Barrier(engine._load)
        own.activate(shelf.second)
        wait_until(engine.exchange._one_at_a_time.locked)
        settled(background)  # it waits for its turn to be opened
        own.activate(shelf.other)
        held.open()
        wait_until(lambda: served_by(client) == shelf.other)
        own.activate(shelf.second)
        wait_until(lambda: served_by(client) == shelf.second)


def test_a_generation_whose_folder_has_another_name_is_opened_once(
    background: Background, own: Store, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coldframe.server")
    folder = own.directory(shelf.second)
    folder.rename(folder.with_name("renamed"))
    with followed(background, own) as (client, _):
        (own.path / "CURRENT").write_text("renamed\n")
        wait_until(lambda: served_by(client) == shelf.second)
        background.run(asyncio.sleep(1))  # fifty looks
        assert caplog.text.count(f"serving generation {shelf.second}") == 1


def test_a_current_that_names_no_generation_is_said_in_the_log(
    background: Background, own: Store, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    with followed(background, own) as (client, _):
        (own.path / "CURRENT").write_text("20200101T000000Z-gone\n")
        wait_until(lambda: "CURRENT names the generation '20200101T000000Z-gone'" in caplog.text)
        assert served_by(client) == shelf.first


def test_a_call_under_way_ends_on_the_generation_it_began_with(
    background: Background, own: Store, shelf: Shelf
) -> None:
    with followed(background, own) as (client, engine), ThreadPoolExecutor(2) as pool:
        queue = engine.served().queue
        held = Barrier(engine._compute)
        calls: list[Future[Any]] = [
            pool.submit(client.search, words("x"), limit=200, exact=True),
            pool.submit(client.nearest_clusters, words("y")),
        ]
        wait_until(lambda: queue._worker is not None and not queue._worker.done())
        own.activate(shelf.second)
        wait_until(lambda: served_by(client) == shelf.second)
        held.open()
        replies = [call.result(60) for call in calls]
        assert {reply.served_by.generation for reply in replies} == {shelf.first}
        assert len(calls[0].result().hits) == 120
        assert len(client.search(words("x"), limit=200, exact=True).hits) > 120


@pytest.mark.parametrize("target", ["second", "other"])
def test_what_is_written_during_an_exchange_is_there_afterwards(
    background: Background, own: Store, shelf: Shelf, target: str
) -> None:
    name = getattr(shelf, target)
    with followed(background, own) as (client, engine):
        client.upsert([piece("before"), piece("001"), piece("gone"), piece("again")])
        client.delete(["002", "gone"])
        own.activate(name)
        written = 0
        while served_by(client) != name:
            client.upsert([piece(f"during-{written}"), piece("again", words(f"again {written}"))])
            client.delete([f"{written % 40 + 3:03}"])
            written += 1
        client.upsert([piece("after")])
        view = engine.served().view
        assert view.base.generation.name == name
        deleted = {"002", "gone", *(f"{n % 40 + 3:03}" for n in range(written))}
        live = {"before", "001", "again", "after", *(f"during-{n}" for n in range(written))}
        shown = client.search(words("x"), limit=1000, exact=True, max_per_story=0).hits
        found = {hit.article.id for hit in shown}
        assert found == {f"{n:03}" for n in range(160)} - deleted | live
        assert {hit.article.id for hit in shown if hit.article.live} == live
        with LiveStore(own.path / LIVE, read_only=True) as kept:
            assert view.sequence == kept.sequence
        for article_id in sorted(live)[:10]:
            row = view.row_of(article_id)
            assert row is not None
            wanted = nearest(view, view.vector(row), {article_id})[:5]
            hits = client.search(article_id=article_id, limit=5, exact=True, max_per_story=0).hits
            assert [hit.article.id for hit in hits] == wanted


def test_a_generation_of_another_encoder_has_the_live_articles_in_its_own_space(
    background: Background, own: Store, shelf: Shelf
) -> None:
    with followed(background, own) as (client, engine):
        client.upsert([piece(f"n{n}", title=words(f"title {n}", 9)) for n in range(70)])
        own.activate(shelf.other)
        wait_until(lambda: served_by(client) == shelf.other)
        served = engine.served()
        for n in (0, 33, 69):
            row = served.view.row_of(f"n{n}")
            assert row is not None
            text = article_text(words(f"title {n}", 9), words(f"n{n}"))
            own_vector = served.generation.placement(served.encoder.embed([text]))[0]
            np.testing.assert_allclose(served.view.vector(row), own_vector, atol=1e-5)
        with LiveStore(own.path / LIVE, read_only=True) as kept:
            held = kept.embedded(text_digest(text), served.encoder.fingerprint)
            assert held is not None, "it need not be computed again"
            assert kept.sequence == 70
        assert client.upsert([piece("n5", title=words("title 5", 9))]).served_by.live_sequence == 70, "unchanged"


def test_changes_that_a_build_has_looked_at_are_not_laid_over_it_again(
    background: Background, own: Store, shelf: Shelf
) -> None:
    """It may have read a corpus that is newer than they are."""

    def shown(client: Client) -> tuple[Any, ...]:
        live = [client.get_article(known).article.live for known in ("005", "006", "after")]
        return served_by(client), client.index().index.article_count, *live

    with followed(background, own) as (client, _):
        client.upsert([piece("005", title="as it was before the corpus"), piece("gone from the corpus")])
        client.delete(["006"])
        name = sealed_again(own.directory(shelf.second), watermark=3)
        client.activate(name)
        client.upsert([piece("after")])
        shown_at_once = shown(client)
    with followed(background, own) as (client, _):
        assert shown(client) == shown_at_once == (name, 161, False, False, True)


def test_what_was_counted_stays_when_another_encoder_takes_over(
    background: Background, own: Store, shelf: Shelf
) -> None:
    with followed(background, own) as (client, engine):
        first = engine.served().queue
        client.embed([words("one"), words("another")])
        first.quick.counts.refuse()
        own.activate(shelf.other)
        wait_until(lambda: served_by(client) == shelf.other)
        client.embed([words("one more")])
        queue = engine.served().queue
        assert queue is not first
        assert (queue.batches.texts, sum(queue.batches.tokens.counts)) == (3, 2)
        assert queue.quick.counts.refused == 1


def test_readers_do_not_wait_while_live_articles_are_embedded_for_another_encoder(
    background: Background, own: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_ids = Encoder.embed_ids

    def slow(encoder: Encoder, documents: Any, *between: Any) -> Any:
        if encoder.recipe.name == "mean" and len(documents) == 1:  # and not the texts that measure its pace
            time.sleep(0.1)
        return embed_ids(encoder, documents, *between)

    with followed(background, own) as (client, _):
        client.upsert([piece(f"n{n}") for n in range(40)])
        monkeypatch.setattr(Encoder, "embed_ids", slow)
        own.activate(shelf.other)
        longest = 0.0
        while served_by(client) != shelf.other:
            began = time.monotonic()
            client.search(words("reader"))
            longest = max(longest, time.monotonic() - began)
        assert longest < 2, "of the four seconds that all of them take"


def test_live_articles_that_are_embedded_for_another_encoder_keep_no_writer_and_no_stop_waiting(
    background: Background, own: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_ids, computed = Encoder.embed_ids, list[str]()

    def slow(encoder: Encoder, documents: Any, *between: Any) -> Any:
        if encoder.recipe.name == "mean" and len(documents) == 1:
            time.sleep(0.2)
            computed.append(encoder.recipe.name)
        return embed_ids(encoder, documents, *between)

    with followed(background, own) as (client, _):
        client.upsert([piece(f"n{n}") for n in range(60)])
        monkeypatch.setattr(Encoder, "embed_ids", slow)
        own.activate(shelf.other)
        wait_until(lambda: len(computed) > 2)
        client.delete(["000"])
        assert len(computed) < 60, "who writes does not wait for them"
    assert len(computed) < 60


def test_a_generation_that_is_corrupt_leaves_the_old_one_serving(
    background: Background, own: Store, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    path = own.directory(shelf.second) / "articles.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with followed(background, own) as (client, _):
        own.activate(shelf.second)
        wait_until(lambda: served_by(client) == shelf.second)
        own.activate(shelf.first)
        wait_until(lambda: served_by(client) == shelf.first)
        path.write_bytes(bytes(content))
        (own.path / "CURRENT").write_text(f"{shelf.second}\n")
        wait_until(lambda: "articles.arrow" in caplog.text)
        assert client.upsert([piece("new")]).served_by.generation == shelf.first
        assert client.search(words("x")).served_by.generation == shelf.first
        own.activate(shelf.other)
        wait_until(lambda: served_by(client) == shelf.other)
        assert client.get_article("new").article.live


def encoders() -> set[Encoder]:
    """Those in memory."""
    gc.collect()
    return {one for one in gc.get_objects() if type(one) is Encoder}


def test_what_cannot_be_served_does_not_stay_in_memory(
    background: Background, own: Store, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    directory = own.directory(shelf.second)
    another = replace(Manifest.read(directory).model, fingerprint="f1" * 32)
    name = sealed_again(directory, model=another)
    with followed(background, own) as (client, _):
        before = encoders()  # those that a test before this one left behind stay, too, while they are named here
        own.activate(name)
        wait_until(lambda: "their vectors cannot be compared" in caplog.text)
        wait_until(lambda: encoders() <= before)
        assert served_by(client) == shelf.first


# --- asked for over gRPC ---------------------------------------------------------------------------------------------


def test_a_generation_that_is_asked_for_is_current_and_served_when_the_answer_comes(
    background: Background, own: Store, shelf: Shelf
) -> None:
    with opened(background, own.path) as (client, _):  # nobody follows CURRENT here
        for name, before in ((shelf.second, shelf.first), (shelf.other, shelf.second), (shelf.first, shelf.other)):
            reply = client.activate(name)
            assert (reply.changed, reply.previous_generation, reply.served_by.generation) == (True, before, name)
            assert own.current() == served_by(client) == name
            again = client.activate(name)
            assert (again.changed, again.previous_generation) == (False, name)
        assert own.before() == shelf.other, "a rollback goes back to it"


def test_what_is_served_and_is_asked_for_is_made_current_where_another_was(
    background: Background, own: Store, shelf: Shelf
) -> None:
    with opened(background, own.path) as (client, _):  # nobody follows CURRENT here
        own.activate(shelf.second)
        reply = client.activate(shelf.first)
        assert (reply.changed, reply.previous_generation) == (True, shelf.first)
        assert own.current() == served_by(client) == shelf.first, "or the next start would serve the other one"


def test_many_who_ask_for_one_generation_at_once_get_it_once(background: Background, own: Store, shelf: Shelf) -> None:
    with followed(background, own) as (client, _), ThreadPoolExecutor(6) as pool:
        replies = [*pool.map(client.activate, [shelf.second] * 6)]
    assert sorted(reply.changed for reply in replies) == [False] * 5 + [True]


def test_what_was_current_while_another_was_asked_for_is_not_served_after_it(
    background: Background, own: Store, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coldframe.server")
    with followed(background, own) as (client, engine), ThreadPoolExecutor(1) as pool:
        held = Barrier(engine._load)
        asked = pool.submit(client.activate, shelf.other)
        wait_until(engine.exchange._one_at_a_time.locked)
        own.activate(shelf.second)
        background.run(asyncio.sleep(0.2))  # it is noticed, and waits for its turn to be opened
        held.open()
        assert asked.result(60).served_by.generation == shelf.other
        background.run(asyncio.sleep(0.5))
        assert own.current() == served_by(client) == shelf.other
        assert caplog.text.count("serving generation") == 1


def test_what_cannot_be_served_changes_nothing_and_says_why(background: Background, own: Store, shelf: Shelf) -> None:
    path = own.directory(shelf.second) / "articles.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with opened(background, own.path) as (client, _):
        with pytest.raises(CorruptGeneration, match=rf"articles\.arrow.*; {shelf.first} goes on$"):
            client.activate(shelf.second)
        with pytest.raises(UnknownGeneration, match=shelf.first) as unknown:
            client.activate("../generations/" + shelf.other)
        with pytest.raises(InvalidArgument, match="generation is empty"):
            client.activate(" ")
        assert str(own.path) not in unknown.value.message
        assert own.current() == served_by(client) == shelf.first


def test_a_generation_that_was_kept_back_needs_force(background: Background, own: Store, shelf: Shelf) -> None:
    held = sealed_again(own.directory(shelf.second), held=["recall fell"])
    with opened(background, own.path) as (client, _):
        with pytest.raises(FailedPrecondition, match=r"was kept back: recall fell; .* with force"):
            client.activate(held)
        assert own.current() == served_by(client) == shelf.first
        assert client.activate(held, force=True).served_by.generation == held


def test_a_store_that_cannot_be_written_is_told_without_its_path(
    background: Background, own: Store, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    (own.path / "HISTORY").unlink()
    (own.path / "HISTORY").mkdir()  # root may write anywhere else
    with opened(background, own.path) as (client, _):
        with pytest.raises(FailedPrecondition, match="this server cannot write in its store") as raised:
            client.activate(shelf.second)
        assert str(own.path) not in raised.value.message
        assert str(own.path) in caplog.text
        assert own.current() == served_by(client) == shelf.first


def test_an_activation_goes_on_when_its_caller_has_gone(background: Background, own: Store, shelf: Shelf) -> None:
    with opened(background, own.path) as (client, engine):
        held = Barrier(engine._load)
        with pytest.raises(DeadlineExceeded):
            client.activate(shelf.second, timeout=0.3)
        held.open()
        wait_until(lambda: served_by(client) == shelf.second)
        assert own.current() == shelf.second


def test_what_could_not_be_served_is_tried_again_though_current_stays_as_it_is(
    background: Background, own: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.exchange.FIRST_PAUSE_S", 0.05)
    path = own.directory(shelf.second) / "articles.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with followed(background, own) as (client, _):
        own.activate(shelf.second)
        wait_until(lambda: "articles.arrow" in caplog.text)
        assert served_by(client) == shelf.first
        path.write_bytes(whole)
        wait_until(lambda: served_by(client) == shelf.second)
        path.write_bytes(whole[:-1])
        assert caplog.text.count("cannot serve") == 1, "the same reason is told once"
        path.write_bytes(whole)


def test_a_look_tries_at_once_what_would_wait_for_its_turn(
    background: Background, own: Store, shelf: Shelf, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.exchange.FIRST_PAUSE_S", 3_600.0)
    path = own.directory(shelf.second) / "articles.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with followed(background, own) as (client, engine):
        own.activate(shelf.second)
        wait_until(lambda: "articles.arrow" in caplog.text)
        path.write_bytes(whole)
        background.run(asyncio.sleep(0.2))
        assert served_by(client) == shelf.first
        background.loop.call_soon_threadsafe(engine.exchange.look)
        wait_until(lambda: served_by(client) == shelf.second)


def test_a_page_token_of_another_generation_is_refused_in_a_sentence(
    background: Background, own: Store, shelf: Shelf
) -> None:
    with followed(background, own) as (client, _):
        tokens = {
            "search": client.search("a b", limit=2).next_page_token,
            "recommend": client.recommend(["a b"], limit=2).next_page_token,
        }
        own.activate(shelf.second)
        wait_until(lambda: served_by(client) == shelf.second)
        for call, token in tokens.items():
            ask: Any = getattr(client, call)
            with pytest.raises(InvalidArgument, match="an index that is no longer served; leave it empty") as refused:
                ask("a b" if call == "search" else ["a b"], limit=2, page_token=token)
            assert refused.value.field == "page_token"


def test_what_another_server_of_the_store_writes_is_soon_shown(background: Background, own: Store) -> None:
    def shown(client: Client) -> str:
        hits = client.search(words("told"), limit=1).hits
        return hits[0].article.title if hits[0].article.id == "told" else ""

    with followed(background, own) as (one, _), followed(background, own) as (other, _):
        one.upsert([piece("told", title="as one wrote it")])
        wait_until(lambda: shown(other) == "as one wrote it")
        other.upsert([piece("told", title="as the other did")])
        wait_until(lambda: shown(one) == "as the other did")
        one.delete(["told"])
        wait_until(lambda: shown(other) == "")

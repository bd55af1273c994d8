"""What callers of the engine rely on, beside the wire."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.errors import Overloaded
from coldframe.live import LIVE, Delete, LiveStore
from coldframe.longformer import Longformer
from coldframe.store import Store
from coldframe.v1.article_service_pb2 import UPSERT_OUTCOME_REPLACED
from server.aside import Aside
from server.engine import Engine, Timing
from tests.disks import mount
from tests.newsroom import Barrier, opened, piece, words
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from coldframe.recipe import Recipe
    from tests.conftest import Background


def test_all_that_torch_computes_it_computes_on_one_thread(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    forward = Longformer.forward

    def spied(
        self: Longformer,
        documents: Sequence[Sequence[int]],
        recipes: Sequence[Recipe],
        between: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        names.append(threading.current_thread().name)
        return forward(self, documents, recipes, between)

    monkeypatch.setattr(Longformer, "forward", spied)
    engine = Engine(Store(store_path), precision="fp32")

    async def ask() -> None:
        await asyncio.to_thread(engine.load)
        served = engine.served()
        await asyncio.gather(*(engine.embed(served, [text], Timing()) for text in ("rain", "wind", "snow")))
        await engine.close()

    asyncio.run(ask())
    assert len(names) >= 2, "it was warmed, and asked"
    assert set(names) == {"compute_0"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_long_texts_beside_searches_are_computed_where_nobody_else_wants_the_core(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, set[int]]] = []
    forward = Longformer.forward

    def spied(self: Longformer, *asked: Any) -> list[torch.Tensor]:
        thread = threading.get_native_id()
        name = threading.current_thread().name.partition("_")[0]
        seen.append((name, os.sched_getscheduler(thread), os.sched_getaffinity(thread)))
        return forward(self, *asked)

    monkeypatch.setattr(Longformer, "forward", spied)
    monkeypatch.setattr(Aside, "look_s", 60)  # whatever else the machine does
    engine = Engine(Store(store_path), precision="fp32")
    cores = sorted(os.sched_getaffinity(0))

    async def ask() -> None:
        await asyncio.to_thread(engine.load)
        seen.clear()
        await engine.searching(lambda: None)
        await engine.embed(engine.served(), ["storm " * 700], Timing(), bulk=True)
        await asyncio.sleep(1.1)  # nobody has searched for a while
        await engine.embed(engine.served(), ["flood " * 700], Timing(), bulk=True)
        await engine.close()

    asyncio.run(ask())
    assert seen == [
        ("compute-aside", os.SCHED_IDLE, set(cores[len(cores) // 2 :])),
        ("compute", os.SCHED_OTHER, set(cores)),
    ]


def test_long_texts_are_computed_where_threads_may_not_stand_back(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a filter of system calls (systemd's ~@resources), or in a sandbox that has no such priority."""

    def refuse(*asked: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    engine = Engine(Store(store_path), precision="fp32")

    async def ask() -> None:
        await asyncio.to_thread(engine.load)
        for text in ("storm " * 700, "flood " * 750):
            await engine.searching(lambda: None)
            await asyncio.wait_for(engine.embed(engine.served(), [text], Timing(), bulk=True), 60)
        await engine.close()

    asyncio.run(ask())


def test_all_goes_on_where_no_more_threads_can_be_had(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> None:
        engine = Engine(Store(own_store), precision="fp32")
        await asyncio.to_thread(engine.load)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for text in ("storm " * 700, "flood " * 750):
                await engine.searching(lambda: None)
                await engine.embed(engine.served(), [text], Timing(), bulk=True)
            await engine.writer.apply([Delete("nobody's")])
        await engine.close()

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_a_store_that_can_be_written_at_last_is_read_from_its_own_file(
    background: Background, newsroom: Path, disk: Path
) -> None:
    store = shutil.copytree(newsroom, disk / "store")
    with opened(background, store) as (client, _):
        client.upsert([piece("kept")])
    assert mount(disk, "remount,ro")
    with opened(background, store) as (one, _):
        assert one.get_article("kept").article.id == "kept", "of a copy of the file"
        assert mount(disk, "remount,rw")
        with opened(background, store) as (other, _):
            other.upsert([piece("more")])
            one.upsert([piece("most")])
        assert [one.get_article(name).article.id for name in ("kept", "more", "most")] == ["kept", "more", "most"]


def test_an_id_that_no_article_can_have_is_not_remembered_as_removed(
    background: Background, own_newsroom: Path
) -> None:
    with opened(background, own_newsroom) as (client, _):
        reply = client.delete(["x" * 513, "000", "y" * 512])
    assert (list(reply.deleted_ids), list(reply.missing_ids)) == (["000"], ["x" * 513, "y" * 512])
    with LiveStore(own_newsroom / LIVE, read_only=True) as live:
        assert [entry.id for entry in live.since(0)] == ["000", "y" * 512]


def test_an_article_that_was_there_as_it_comes_and_is_not_when_its_turn_comes_is_written(
    background: Background, own_newsroom: Path
) -> None:
    with opened(background, own_newsroom) as (client, engine), ThreadPoolExecutor(2) as pool:
        client.upsert([piece("x", words("before"))])
        held = Barrier(engine._write)
        other = pool.submit(client.upsert, [piece("x", words("meanwhile"))])
        wait_until(lambda: engine._write._work_queue.qsize() == 1)
        same = pool.submit(client.upsert, [piece("x", words("before"))])  # nothing to embed, as the index is now
        wait_until(lambda: engine.writer.waiting == 1)
        held.open()
        assert [reply.result(60).results[0].outcome for reply in (other, same)] == [UPSERT_OUTCOME_REPLACED] * 2
        assert client.get_article("x").article.excerpt == words("before")


def test_of_two_versions_that_wait_together_the_later_stays_though_the_index_holds_it_before_both(
    background: Background, own_newsroom: Path
) -> None:
    with opened(background, own_newsroom) as (client, engine), ThreadPoolExecutor(4) as pool:
        client.upsert([piece("x", words("before"))])
        held = Barrier(engine._write)
        first = pool.submit(client.delete, ["000"])
        wait_until(lambda: engine._write._work_queue.qsize() == 1)
        other = pool.submit(client.upsert, [piece("x", words("meanwhile"))])
        wait_until(lambda: engine.writer.waiting == 1)
        between = pool.submit(client.delete, ["001"])
        wait_until(lambda: engine.writer.waiting == 2)
        same = pool.submit(client.upsert, [piece("x", words("before"))])
        wait_until(lambda: engine.writer.waiting == 3)
        held.open()
        assert [[*reply.result(60).deleted_ids] for reply in (first, between)] == [["000"], ["001"]]
        assert [reply.result(60).results[0].outcome for reply in (other, same)] == [UPSERT_OUTCOME_REPLACED] * 2
        assert client.get_article("x").article.excerpt == words("before")


def test_a_title_that_stood_in_the_content_before_is_a_change(background: Background, own_newsroom: Path) -> None:
    with opened(background, own_newsroom) as (client, _):
        client.upsert([piece("x", "A headline\na b c")])
        reply = client.upsert([piece("x", "a b c", title="A headline")])
        assert reply.results[0].outcome == UPSERT_OUTCOME_REPLACED
        assert client.get_article("x").article.title == "A headline"


def test_so_many_changes_wait_to_be_written_and_the_next_one_is_refused_at_once(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.writer.MAX_WAITING", 2)
    with opened(background, own_newsroom) as (client, engine), ThreadPoolExecutor(2) as pool:
        held = Barrier(engine._write)
        first = pool.submit(client.delete, ["000"])
        wait_until(lambda: engine._write._work_queue.qsize() == 1)
        others = pool.submit(client.delete, ["001", "002"])
        wait_until(lambda: engine.writer.waiting == 2)
        with pytest.raises(Overloaded, match="2 changes wait to be written"):
            client.delete(["003"])
        held.open()
        assert [[*reply.result(60).deleted_ids] for reply in (first, others)] == [["000"], ["001", "002"]]
        assert [*client.delete(["003"]).deleted_ids] == ["003"]

"""A file of live articles under running servers: moved away or replaced, nothing is acknowledged and lost; read from a
copy, others' changes are seen.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coldframe import Client
from coldframe.errors import CorruptGeneration, FailedPrecondition, UnknownArticle
from coldframe.live import LIVE, Delete, LiveStore
from coldframe.live_file import copied
from server import serving
from server.observe.metrics import Pulse, ServerCollector, registry
from server.observe.witness import Witness
from server.place import PAGE_BYTES, Latest
from server.security.guard import Guard
from tests.disks import mount, read_only_view, used_kib
from tests.live_articles import contents, filled, upsert
from tests.newsroom import opened, piece, words
from tests.test_server_process import Process
from tests.test_workers import place
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Background

NO_LONGER = "no longer the file that this server has open"


def move(source: Path, target: Path) -> None:
    """All that belongs to the file."""
    target.mkdir(exist_ok=True)
    for file in [*source.glob(f"{LIVE}*")]:
        file.rename(target / file.name)


def test_a_file_that_is_replaced_by_a_later_one_ends_no_write_thread_in_a_loop(
    own_newsroom: Path, tmp_path: Path
) -> None:
    filled(own_newsroom / LIVE, 5)
    later = filled(tmp_path / "later.db", 20)
    with Process(tmp_path, "--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0") as server:
        with Client(server.address(), timeout=20) as client:
            later.replace(own_newsroom / LIVE)
            for _ in range(2):
                with pytest.raises(FailedPrecondition, match=NO_LONGER):
                    client.upsert([piece("new")])
            assert client.search(article_id="001").hits, "searches go on"
            wait_until(lambda: NO_LONGER in server.errors())
            time.sleep(2.5)
            for line in ("cannot be followed: live.db", "are not kept: live.db"):
                assert server.errors().count(line) == 1, "each is said once"
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0


def test_a_file_that_is_moved_away_takes_no_change_until_it_is_back(
    background: Background, own_newsroom: Path, tmp_path: Path
) -> None:
    with opened(background, own_newsroom) as (client, _):
        client.upsert([piece("a")])
        move(own_newsroom, tmp_path / "aside")
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match=NO_LONGER):
                client.upsert([piece("b")])
        with pytest.raises(FailedPrecondition, match=NO_LONGER):
            client.delete(["a"])
        assert client.get_article("a").article.id == "a"
        assert not (own_newsroom / LIVE).exists(), "no new one is begun"
        move(tmp_path / "aside", own_newsroom)
        client.upsert([piece("c")])
    with opened(background, own_newsroom) as (client, _):
        assert [client.get_article(name).article.id for name in ("a", "c")] == ["a", "c"]


def test_a_file_that_is_moved_away_before_anybody_looked_at_it_again_still_tells_what_it_held(
    own_newsroom: Path, tmp_path: Path
) -> None:
    filled(own_newsroom / LIVE, 5)
    with LiveStore(own_newsroom / LIVE, read_only=True) as reader:
        before = reader.sequence
        reader.look_again()
        move(own_newsroom, tmp_path / "aside")
        assert reader.sequence == before


def test_a_server_that_only_reads_begins_no_file_where_its_own_was(
    background: Background, own_newsroom: Path, tmp_path: Path
) -> None:
    filled(own_newsroom / LIVE, 5)
    with opened(background, own_newsroom) as (client, _):
        move(own_newsroom, tmp_path / "aside")
        with pytest.raises(FailedPrecondition, match=NO_LONGER):
            client.upsert([piece("b")])
        assert not (own_newsroom / LIVE).exists()


def test_changes_that_a_server_cannot_find_are_refused_and_not_looked_for_again_and_again(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(background, own_newsroom) as (client, engine):
        client.upsert([piece("a")])
        monkeypatch.setattr(engine.writer, "_see_others", lambda: None)
        monkeypatch.setattr(engine._latest, "tell", lambda number: None)
        with LiveStore(own_newsroom / LIVE) as other:
            other.apply([upsert("other")])
        with pytest.raises(FailedPrecondition, match="Start the servers of the store anew"):
            client.upsert([piece("b")])


@pytest.mark.parametrize("beside", ["", "-wal"])
def test_what_is_written_beside_a_file_that_was_removed_is_not_taken(tmp_path: Path, beside: str) -> None:
    path = filled(tmp_path / LIVE)
    with LiveStore(path) as store:
        store.apply([upsert("a")])
        os.remove(f"{path}{beside}")
        with pytest.raises(FailedPrecondition, match=NO_LONGER):
            store.apply([upsert("b")])
        assert store.get("a") is not None


def test_of_a_file_that_is_a_link_the_log_lies_beside_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    real, link = filled(tmp_path / "fast" / LIVE), tmp_path / LIVE
    link.symlink_to(real)
    with LiveStore(link) as store:
        [number] = store.apply([upsert("a")])
        with copied(link).folder as folder, LiveStore(Path(folder) / LIVE, read_only=True) as copy:
            assert copy.sequence == number, "the change is in the log alone"
        os.remove(f"{real}-wal")
        with pytest.raises(FailedPrecondition, match=NO_LONGER):
            store.apply([upsert("b")])


def test_another_file_is_not_opened_in_the_place_of_the_one_that_was_open(tmp_path: Path) -> None:
    path, other = filled(tmp_path / LIVE), filled(tmp_path / "other.db", 5)
    held = contents(path)
    with LiveStore(path, read_only=True) as store:
        other.replace(path)
        for ask in (store.require_in_place, lambda: [*store.since(0)]):
            with pytest.raises(FailedPrecondition, match=NO_LONGER):
                ask()
        assert store.sequence == held[-1][0], "what is open is read on"


def test_a_full_disk_is_said_once_in_the_log_and_counted(
    background: Background, newsroom: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = shutil.copytree(newsroom, disk / "store")

    def said(level: int) -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelno == level and "changes to live" in r.getMessage()]

    caplog.set_level("INFO", "coldframe.server")
    with opened(background, store) as (client, engine):
        client.upsert([piece("before")])
        for times in (1, 2):
            assert mount(disk, f"remount,size={used_kib(disk)}k")
            with suppress(FailedPrecondition):
                for n in range(100):
                    client.upsert([piece(f"{times}-{n}", words(f"{times}-{n}", 2_000))])
            before = engine.writer.failed
            with pytest.raises(FailedPrecondition, match="No space left"):
                client.delete([f"{n:03}" for n in range(100)])
            assert engine.writer.failed == before + 100
            [*_, line] = said(logging.ERROR)
            assert "No space left on device" in line
            assert len(said(logging.ERROR)) == times
            registered = registry(ServerCollector(engine, Witness(), Pulse(), Guard()))
            assert registered.get_sample_value("coldframe_failed_writes_total") == engine.writer.failed
            assert mount(disk, "remount,size=64m")
            client.upsert([piece("after", words(f"after {times}"))])
            assert len(said(logging.INFO)) == times, "it is well again"


# --- a copy of it ----------------------------------------------------------------------------------------------------


def test_a_server_that_may_only_read_shows_what_one_writes_that_began_after_it(
    background: Background, newsroom: Path, disk: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(newsroom, disk / "store")
    with opened(background, store) as (client, _):
        client.upsert([piece("before")])
    with read_only_view(store, tmp_path / "view") as view:
        arguments = ("--store", view, "--precision", "fp32", "--listen", "127.0.0.1:0")
        with Process(tmp_path, *arguments) as server, Client(server.address(), timeout=20) as reader:

            def shown(article_id: str) -> bool:
                with suppress(UnknownArticle):
                    return bool(reader.get_article(article_id).article.id)
                return False

            assert shown("before")
            for name in ("first", "second"):
                with opened(background, store) as (writer, _):
                    writer.upsert([piece(name)])
                    wait_until(partial(shown, name), 10)
            assert server.errors().count("a copy is read") == 1


def test_a_worker_whose_copy_is_older_shows_a_deletion_that_another_told_it_of_once_its_copy_has_it(
    background: Background, newsroom: Path, disk: Path, tmp_path: Path
) -> None:
    """Each looks once a second, and one of them before the others."""
    store, page = shutil.copytree(newsroom, disk / "store"), tmp_path / "page"
    page.write_bytes(bytes(PAGE_BYTES))
    places = [Latest(place(page, number)) for number in (0, 1)]
    with LiveStore(store / LIVE) as writer:
        writer.apply([Delete("004")])
    with (
        read_only_view(store, tmp_path / "view") as view,
        opened(background, view, latest=places[0]) as (_, first),
        opened(background, view, latest=places[1]) as (client, second),
    ):
        with LiveStore(store / LIVE) as writer:
            writer.apply([Delete("005")])
        for engine, latest in zip((first, second), places, strict=True):
            assert client.get_article("005").article.id == "005", "its copy is from before"
            latest.tell(engine._last_change())
        with pytest.raises(UnknownArticle):
            client.get_article("005")


def test_a_copy_is_made_anew_only_where_the_file_has_changed(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    path = filled(disk / LIVE, 5)
    with read_only_view(disk, tmp_path / "view") as view, LiveStore(view / LIVE, read_only=True) as store:
        [copy] = os.listdir(tmp_path / "copies")
        store.refresh()
        assert os.listdir(tmp_path / "copies") == [copy]
        with LiveStore(path) as writer:
            [number] = writer.apply([upsert("new")])
        store.refresh()
        assert store.sequence == number
        assert len(os.listdir(tmp_path / "copies")) == 1
        assert os.listdir(tmp_path / "copies") != [copy]
    assert os.listdir(tmp_path / "copies") == []


def test_a_copy_that_cannot_be_opened_is_not_kept(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    whole = filled(disk / LIVE, 5).read_bytes()
    with read_only_view(disk, tmp_path / "view") as view, LiveStore(view / LIVE, read_only=True) as store:
        (disk / LIVE).write_bytes(b"x" * len(whole))
        with pytest.raises(CorruptGeneration):
            store.refresh()
        assert store.sequence == 7, "the one of before is read on"
        assert len(os.listdir(tmp_path / "copies")) == 1
        (disk / LIVE).write_bytes(whole)
        store.refresh()
        assert len([*store.since(0)]) == 6


def test_a_start_says_that_it_replays_many_changes(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers nobody until then, which may take minutes."""
    monkeypatch.setattr(serving, "_MANY", 3)
    caplog.set_level(logging.INFO, "coldframe.server")
    with LiveStore(own_newsroom / LIVE) as live:
        live.apply([Delete(f"gone-{n}") for n in range(3)])
    with opened(background, own_newsroom):
        assert "replaying 3 live changes" in caplog.text

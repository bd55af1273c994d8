"""A store where people put it: moved away below a server, on another disk, in a folder with a strange name."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from coldframe.errors import CorruptGeneration, FailedPrecondition, InvalidArgument, ModelUnavailable, NoGeneration
from coldframe.generation import verify
from coldframe.live import LIVE
from coldframe.models import read_weights
from coldframe.store import Store
from server.check import checks
from server.config import Config
from tests.builds import build, letters
from tests.corpus_files import write
from tests.generations import publish
from tests.models import longformer_directory
from tests.newsroom import opened, piece
from tests.rights import nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Background

GONE = "names no generation any more"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Of three generations, the last one served."""
    store = Store(tmp_path / "store")
    for seed in range(3):
        publish(store, seed, after=store.names())
    return store


# --- moved away ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty_folder", [False, True], ids=["moved", "unmounted"])
def test_no_article_is_taken_where_the_store_was(
    background: Background, own_newsroom: Path, tmp_path: Path, empty_folder: bool
) -> None:
    """Who puts the store back puts it over the file that was begun in its place."""
    with opened(background, own_newsroom) as (client, _):
        own_newsroom.rename(tmp_path / "aside")
        if empty_folder:
            own_newsroom.mkdir()
        with pytest.raises(FailedPrecondition, match="cannot write in its store, and its log says why"):
            client.upsert([piece("a")])
        with pytest.raises(FailedPrecondition, match="cannot write in its store, and its log says why"):
            client.delete(["001"])
        assert client.search(article_id="001").hits, "searches go on"
        if empty_folder:
            own_newsroom.rmdir()  # where anything lies in it, this fails
        (tmp_path / "aside").rename(own_newsroom)
        client.upsert([piece("a")])
    assert (own_newsroom / LIVE).exists()
    with opened(background, own_newsroom) as (client, _):
        assert client.get_article("a").article.id == "a"


def test_a_store_that_is_gone_is_said_by_a_metric_and_in_the_log_once_each_time(
    background: Background, own_newsroom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(background, own_newsroom) as (_, engine):
        for times in (1, 2):
            own_newsroom.rename(tmp_path / "aside")
            for _ in range(3):
                background.run(engine.exchange._look())
                assert engine.exchange.refused
            assert caplog.text.count(GONE) == times
            (tmp_path / "aside").rename(own_newsroom)
            background.run(engine.exchange._look())
            assert not engine.exchange.refused
        assert engine.ready


# --- other things in it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["lost+found", ".snapshot", "0-put-aside"])
def test_folders_that_are_no_generations_are_neither_listed_nor_pruned_nor_kept_in_the_place_of_one(
    store: Store, other: str
) -> None:
    names = store.names()
    folder = store.path / "generations" / other
    (folder / "of somebody else").mkdir(parents=True)
    assert store.names() == names
    publish(store, 4, after=names)
    with store.locked():
        assert [*store.prune(2)] == names[:2]
    assert (folder / "of somebody else").is_dir()
    assert len(store.names()) == 2


def test_of_a_generation_that_is_a_link_pruning_takes_the_link_alone(store: Store, tmp_path: Path) -> None:
    first, *others = store.names()
    aside = tmp_path / "aside"
    store.directory(first).rename(aside)
    (store.path / "generations" / first).symlink_to(aside)
    files = sorted(aside.iterdir())
    with store.locked():
        assert store.prune(2) == {first: 0}
    assert store.names() == others
    assert sorted(aside.iterdir()) == files
    assert not (store.path / "drafts").is_symlink(), "the next build makes its draft there"


def test_a_store_without_current_says_which_generation_may_be_chosen(store: Store) -> None:
    """As one whose generations were copied back, and nothing else."""
    last = str(store.current())
    for restored in ("", "\n"):
        (store.path / "CURRENT").write_text(restored)
        with pytest.raises(NoGeneration, match=f"python -m indexer activate {last} --store DIR"):
            store.open()
        [finding] = [f for f in checks(Config(store=store.path)) if f.about == "store"]
        assert "holds generations, and none is current" in finding.said
    store.activate(last)
    assert store.open().name == last


# --- on two disks ----------------------------------------------------------------------------------------------------


def linked(folder: Path, other: Path) -> None:
    shutil.move(folder, other)
    folder.symlink_to(other)


def mounted(folder: Path, other: Path) -> None:
    """A volume of its own, of the same disk."""
    shutil.move(folder, other)
    folder.mkdir()
    subprocess.run(["mount", "--bind", str(other), str(folder)], check=True, timeout=30)


@contextmanager
def elsewhere(folder: Path, other: Path, how: Callable[[Path, Path], None]) -> Iterator[None]:
    how(folder, other)
    try:
        yield
    finally:
        if folder.is_symlink():
            folder.unlink()
        else:
            subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)
            folder.rmdir()
        shutil.move(other, folder)


@pytest.mark.parametrize("how", [linked, mounted])
def test_a_store_on_two_disks_is_refused_before_anything_is_built(
    own_newsroom: Path, newsroom: Path, tmp_path: Path, disk: Path, how: Callable[[Path, Path], None]
) -> None:
    store, corpus = Store(own_newsroom), write(tmp_path / "other.csv", letters(90, seed=1))
    options = {"model": str(newsroom.parent / "model"), "recipe": "mean-centred", "clusters": 6}
    before, current = store.names(), str(store.current())
    other = disk / "generations" if how is linked else tmp_path / "generations"
    with elsewhere(own_newsroom / "generations", other, how):
        with pytest.raises(FailedPrecondition, match="lie on different disks or mounts"):
            build(own_newsroom, corpus, **options)
        assert [*other.iterdir()] == [other / name for name in before]
        assert not (own_newsroom / "PUBLISHING").exists()
        store.activate(current)  # a rollback is possible all the same
        assert store.open().name == current
    assert build(own_newsroom, corpus, **options).name == store.current()


def test_generations_that_came_with_an_image_are_said_to_and_left_whole(store: Store, disk: Path) -> None:
    upper, work, merged = (disk / name for name in ("upper", "work", "merged"))
    for folder in (upper, work, merged):
        folder.mkdir()
    layers = f"lowerdir={store.path},upperdir={upper},workdir={work},redirect_dir=off"
    command = ["mount", "-t", "overlay", "-o", layers, "overlay", str(merged)]
    if subprocess.run(command, check=False, timeout=30).returncode:
        pytest.skip("there is no overlayfs here")
    try:
        over, names = Store(merged), store.names()
        with over.locked(), pytest.raises(FailedPrecondition, match=r"came with an image .* link or mount the store"):
            over.prune(1)
        assert over.names() == names
        over.activate(names[0])
        assert over.open().name == names[0]
    finally:
        subprocess.run(["umount", "--lazy", str(merged)], check=True, timeout=30)


# --- under a strange name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["s3://bucket/news", "file:///data/news", "gs://bucket"])
def test_a_url_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A build would make a folder 's3:' where it stands, and its user look for a store in the bucket."""
    monkeypatch.chdir(tmp_path)
    store = Store(url)
    for opening in (lambda: store.draft().__enter__(), store.open):
        with pytest.raises(InvalidArgument, match="it is a folder of this machine; give its path"):
            opening()
    assert [*tmp_path.iterdir()] == []


def test_a_store_whose_path_is_no_utf_8_is_refused_by_who_serves_it_too(store: Store, tmp_path: Path) -> None:
    """FAISS raised a TypeError. It could be copied there."""
    latin = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    copy = Store(shutil.copytree(store.path, latin))
    for opening in (copy.open, copy.find):
        with pytest.raises(InvalidArgument, match="that is no UTF-8; give another folder"):
            opening()


# --- of another user -------------------------------------------------------------------------------------------------


def test_a_generation_that_this_user_may_not_read_is_not_called_missing(store: Store) -> None:
    """As a build by another user leaves it whose umask is 077: to build anew would change nothing."""
    folder = store.directory(str(store.current()))
    folder.chmod(0)
    with (
        nobody(),
        pytest.raises(CorruptGeneration, match=r"^manifest.json of generation .* may not be read") as refused,
    ):
        verify(folder)
    assert "chmod" in refused.value.message
    assert str(store.path) not in refused.value.message, "callers hear it"


def test_a_live_file_that_root_put_back_takes_articles_once_its_owner_may_write_it_and_not_after_a_restart(
    background: Background, newsroom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TemporaryDirectory() as folder:
        store = Path(shutil.copytree(newsroom, Path(folder) / "store"))
        with opened(background, store) as (client, _):
            client.upsert([piece("before")])
        live = store / LIVE
        for path, mode in ((Path(folder), 0o755), (store, 0o777), (live, 0o444)):
            path.chmod(mode)
        with opened(background, store) as (client, _):
            with nobody(), pytest.raises(FailedPrecondition, match="can be neither added nor removed"):
                client.upsert([piece("refused")])
            assert f"{LIVE} cannot be written in the store {store}: it may only be read; give" in caplog.text
            with nobody():
                [*_, note] = [found.said for found in checks(Config(store=store)) if found.about == "live articles"]
                assert str(live) in note
            for path in store.glob(f"{LIVE}*"):
                path.chmod(0o666)
            with nobody():
                client.upsert([piece("after")])
            assert client.get_article("after").article.id == "after"


def test_weights_that_this_user_may_not_read_are_not_called_damaged() -> None:
    with TemporaryDirectory() as folder:  # pytest's own can be entered by nobody else
        Path(folder).chmod(0o755)
        model = longformer_directory(Path(folder) / "model", layers=1)
        (model / "model.safetensors").chmod(0)
        with nobody(), pytest.raises(ModelUnavailable, match=r"^the weights in model.safetensors may not be read"):
            read_weights(model, "model")

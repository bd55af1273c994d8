"""A full disk, a limit on the size of files, a read-only store: said in a sentence, and made good later.

The disks are small ones of their own (tmpfs), which takes the right to mount; where that is missing, those tests are
skipped, and the limit on the size of files stands in for them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from coldframe import settings
from coldframe.errors import ColdframeError, FailedPrecondition, InvalidArgument
from coldframe.live import LIVE, Delete, LiveStore
from coldframe.store import Store
from indexer.__main__ import app
from indexer.train import train
from tests.builds import build, letters
from tests.corpus_files import rows_of, write
from tests.disks import files_of_at_most, mount, used_kib
from tests.models import longformer_directory

if TYPE_CHECKING:
    from pathlib import Path

    from coldframe.generation import Manifest

KIB = 1024
LEAST_KIB = 64


@dataclass(frozen=True)
class Desk:
    """A model, a corpus and its successor, and what an undisturbed store comes to with them."""

    folder: Path
    first: Path
    undisturbed: Manifest

    def build(self, store: Path, **options: Any) -> Manifest:
        """Builds the successor."""
        return build(store, self.folder / "second.csv", model=str(self.folder / "model"), **options)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    model = longformer_directory(folder / "model", window=256, layers=4)
    write(folder / "second.csv", letters(150))
    build(folder / "first", write(folder / "first.csv", letters(40)), model=str(model))
    shutil.copytree(folder / "first", folder / "undisturbed")
    undisturbed = build(folder / "undisturbed", folder / "second.csv", model=str(model))
    return Desk(folder, folder / "first", undisturbed)


def assert_no_room(error: ColdframeError, store: Path) -> None:
    assert isinstance(error, FailedPrecondition)
    assert "room" in error.message
    assert str(store) in error.message


# --- a disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [True, False], ids=["estimated", "found out"])
def test_a_build_on_a_disk_that_grows_step_by_step(
    desk: Desk, disk: Path, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more room each time it comes a little farther, until it is done; whatever it is that finds no room."""
    if not early:
        monkeypatch.setattr("indexer.build.require_room", lambda *_: None)
    store = shutil.copytree(desk.first, disk / "store")
    served, refusals, base = Store(store).current(), [], used_kib(disk)
    for more in range(LEAST_KIB, 4_000, 48):
        assert mount(disk, f"remount,size={base + more}k")
        try:
            manifest = desk.build(store)
            break
        except ColdframeError as error:
            assert_no_room(error, store)
            refusals.append(error.message)
            assert Store(store).open().name == served
    assert len(refusals) > 3, "the first steps are too small for a build"
    assert manifest.digest == desk.undisturbed.digest
    assert Store(store).open().name == manifest.name
    assert not (store / "drafts").exists()


def test_what_was_embedded_before_the_disk_was_full_is_kept(
    desk: Desk, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copytree(desk.first, disk / "store")

    def full(*args: Any) -> Any:
        assert mount(disk, f"remount,size={used_kib(disk) + 4}k")
        return train(*args)

    with monkeypatch.context() as patch:
        patch.setattr("indexer.build.require_room", lambda *_: None)
        patch.setattr("indexer.build.train", full)
        with pytest.raises(FailedPrecondition, match="no room"):
            desk.build(store)
    assert (store / "drafts" / "job" / "job.json").exists()
    assert mount(disk, "remount,size=64m")
    with monkeypatch.context() as patch:
        patch.setattr("indexer.build.compute", None)  # it is not even asked
        manifest = desk.build(store)
    assert manifest.digest == desk.undisturbed.digest


def test_a_read_only_store_is_served_and_verified_and_says_that_it_cannot_be_built_in(
    desk: Desk, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(desk.first, disk / "store")
    name = str(Store(store).current())
    assert mount(disk, "remount,ro")
    with pytest.raises(InvalidArgument, match="Read-only file system") as refused:
        desk.build(store)
    assert (refused.value.field, str(store) in refused.value.message) == ("store", True)
    commands = {"list": 0, "verify": 0, "rollback": 2, f"activate {name}": 2, "prune --keep 1": 2}
    for command, code in commands.items():
        with pytest.raises(SystemExit) as ended:
            settings.run(app, prog="indexer", prefix="X", args=[*command.split(), "--store", str(store)])
        assert (command, ended.value.code) == (command, code)
    assert capsys.readouterr().err.count("cannot be written (Read-only file system)") == 3
    assert Store(store).open().name == name
    assert mount(disk, "remount,rw")
    assert desk.build(store).digest == desk.undisturbed.digest


def test_old_generations_can_be_removed_where_not_one_folder_more_has_room(desk: Desk, disk: Path) -> None:
    """And prune is what people are told to do then."""
    store = shutil.copytree(desk.first, disk / "store")
    desk.build(store)
    kept = [str(Store(store).before()), str(Store(store).current())]
    old = [f"2025010{n}T000000Z-0123456789ab" for n in range(1, 5)]
    for name in old:
        shutil.copytree(Store(store).directory(kept[0]), store / "generations" / name)
    files = os.statvfs(disk)
    assert mount(disk, f"remount,nr_inodes={files.f_files - files.f_ffree}")
    with pytest.raises(OSError, match="No space left"):
        (disk / "one-more").mkdir()
    with pytest.raises(SystemExit) as ended:
        settings.run(app, prog="indexer", prefix="X", args=["prune", "--keep", "1", "--store", str(store)])
    assert ended.value.code == 0
    assert Store(store).names() == kept
    assert not (store / "drafts").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_live_articles_on_a_full_disk_are_read_by_who_begins_then(disk: Path, killed: bool) -> None:
    path = disk / LIVE
    with LiveStore(path) as live:
        live.apply([Delete("a"), Delete("b")])
        if killed:
            shutil.copytree(disk, disk.parent / "left")
    if killed:
        for file in (LIVE, f"{LIVE}-wal"):
            shutil.copyfile(disk.parent / "left" / file, disk / file)
    assert mount(disk, f"remount,size={used_kib(disk)}k")
    with LiveStore(path, read_only=True) as live:
        assert live.reads_copy
        assert [entry.id for entry in live.since(0)] == ["a", "b"]
        with pytest.raises(FailedPrecondition, match="no room for live"):
            LiveStore(path)
        assert mount(disk, "remount,size=64m")
        with LiveStore(path) as writer:
            writer.apply([Delete("c")])
            live.refresh()
            assert (live.sequence, live.reads_copy) == (3, False)


def test_live_articles_that_have_no_room_to_be_read_anywhere_are_refused(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveStore(disk / LIVE) as live:
        live.apply([Delete("a")])
    (disk / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk / "temporary"))
    assert mount(disk, f"remount,size={used_kib(disk)}k")
    with pytest.raises(FailedPrecondition, match="Make room"):
        LiveStore(disk / LIVE, read_only=True)
    assert [*(disk / "temporary").iterdir()] == []


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_FSYNC])
def test_a_disk_that_fails_is_not_told_as_a_full_one(tmp_path: Path, code: int) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    with pytest.raises(FailedPrecondition, match=r"\(Input/output error\); see to its disk"), Store(tmp_path).saving():
        raise error


# --- a limit on the size of files ------------------------------------------------------------------------------------


def test_a_packed_parquet_file_that_finds_no_room_to_be_unpacked_says_where_it_wants_some(tmp_path: Path) -> None:
    packed = write(tmp_path / "news.parquet.gz", letters(40))
    with (
        files_of_at_most(KIB),
        pytest.raises(FailedPrecondition, match=f"no room in {tempfile.gettempdir()} for .*news.parquet.gz.* TMPDIR"),
    ):
        rows_of(packed)
    assert len(rows_of(packed)) == 40


def test_a_build_under_a_limit_on_the_size_of_files_that_is_raised_step_by_step(desk: Desk, tmp_path: Path) -> None:
    store = shutil.copytree(desk.first, tmp_path / "store")
    served, refusals = Store(store).current(), []
    for size in range(4 * KIB, 400 * KIB, 6 * KIB):
        try:
            with files_of_at_most(size):
                manifest = desk.build(store)
            break
        except ColdframeError as error:
            assert_no_room(error, store)
            refusals.append(error.message)
            assert Store(store).open().name == served
    assert len(refusals) > 3, "the first limits are too low for a build"
    assert manifest.digest == desk.undisturbed.digest

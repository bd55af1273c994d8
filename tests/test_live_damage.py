"""The file of live articles, damaged, foreign, without room or right: said, and left as it is, with nothing lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe.errors import CorruptGeneration, FailedPrecondition, InvalidArgument
from coldframe.live import LIVE, LiveStore
from tests.disks import files_of_at_most, mount, used_kib
from tests.live_articles import MODEL, assert_is, contents, filled, upsert, vector

if TYPE_CHECKING:
    from collections.abc import Callable

# --- files that are damaged or foreign -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("whole") / LIVE)


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), length=st.integers(1, 400))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_are_refused_or_change_nothing_and_the_file_is_left_as_it_is(
    tmp_path: Path, whole: Path, place: float, flip: int, length: int
) -> None:
    content = bytearray(whole.read_bytes())
    start = int(place * len(content))
    content[start : start + length] = bytes(byte ^ flip for byte in content[start : start + length])
    path = tmp_path / LIVE
    path.write_bytes(bytes(content))
    with suppress(CorruptGeneration):
        assert contents(path) == contents(whole)
    assert path.read_bytes() == bytes(content)


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), length=st.integers(1, 400))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_on_a_damaged_file_nothing_is_acknowledged_that_is_lost(
    tmp_path: Path, whole: Path, place: float, flip: int, length: int
) -> None:
    content = bytearray(whole.read_bytes())
    start = int(place * len(content))
    content[start : start + length] = bytes(byte ^ flip for byte in content[start : start + length])
    path = tmp_path / LIVE
    path.write_bytes(bytes(content))
    for beside in ("-wal", "-shm"):
        Path(f"{path}{beside}").unlink(missing_ok=True)
    try:
        with LiveStore(path) as store:
            numbers = store.apply([upsert("id005", 77), upsert("new", 78)])
            assert_is(store.get("id005"), numbers[0], upsert("id005", 77))
            assert_is(store.get("new"), numbers[1], upsert("new", 78))
            assert [entry.sequence for entry in store.since(numbers[0] - 1)] == numbers
    except CorruptGeneration:
        pass


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")


def later_version(path: Path) -> None:
    with closing(sqlite3.connect(filled(path))) as db:
        db.execute("PRAGMA user_version = 7")


def altered(sql: str, path: Path) -> None:
    with closing(sqlite3.connect(filled(path))) as db, db:
        db.execute(sql)


DAMAGED: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("id,title\n" * 900),
    "cut short": lambda path: path.write_bytes(filled(path).read_bytes()[:9_000]),
    "database": other_database,
    "no table": lambda path: altered("DROP TABLE changes", path),
    "no state": lambda path: altered("DELETE FROM state", path),
    "row gone": lambda path: altered("DELETE FROM changes WHERE id = 'id007'", path),
    "row altered": lambda path: altered("UPDATE changes SET title = 'Another' WHERE id = 'id007'", path),
    "row renumbered": lambda path: altered("UPDATE changes SET sequence = 99 WHERE id = 'id007'", path),
    "row of another kind": lambda path: altered("UPDATE changes SET seen = 0.5 WHERE id = 'id007'", path),
    "state of another kind": lambda path: altered("UPDATE state SET sequence = 'many'", path),
    "set back": lambda path: altered("UPDATE state SET sequence = 3", path),
    "log alone": lambda path: Path(f"{path}-wal").write_bytes(b"log"),
    "empty beside a log": lambda path: Path(f"{path}-wal").write_bytes(b"log" * (1 + path.write_bytes(b""))),
    "folder": lambda path: path.mkdir(),
}


def files(folder: Path) -> dict[str, bytes]:
    """What lies there, without the log's index, and an empty log, which readers make."""
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    return {name: content for name, content in found.items() if content and not name.endswith("-shm")}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_with_its_name_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / LIVE
    DAMAGED[kind](path)
    before = files(tmp_path)
    with pytest.raises(CorruptGeneration, match=r"live\.db .*left as it is.*Put a copy in its place"):
        contents(path)
    if not kind.startswith("row ") or kind == "row gone":  # what is within the rows is looked at when they are read
        with pytest.raises(CorruptGeneration, match=r"live\.db"):
            LiveStore(path)
    assert files(tmp_path) == before


def test_nobody_is_told_to_put_away_a_file_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / LIVE
    later_version(path)
    before = files(tmp_path)
    for opening in (contents, LiveStore):
        with pytest.raises(CorruptGeneration, match=r"has format 7, .* with the Coldframe that wrote it") as refused:
            opening(path)
        assert "out of it" not in refused.value.message
    assert files(tmp_path) == before


@pytest.mark.parametrize("column", ["title", "content"])
def test_an_article_that_is_no_utf_8_any_more_is_refused_and_not_quoted(tmp_path: Path, column: str) -> None:
    path = tmp_path / LIVE
    altered(f"UPDATE changes SET {column} = CAST('Not for callers' || x'ff' AS TEXT) WHERE id = 'id007'", path)
    with pytest.raises(CorruptGeneration, match=f"column '{column}'\\. .*left as it is") as refused:
        contents(path)
    assert "Not for callers" not in str(refused.value)


def test_an_article_that_was_altered_gets_no_other_vector_and_with_it_a_checksum_that_fits(tmp_path: Path) -> None:
    path = tmp_path / LIVE
    DAMAGED["row altered"](path)
    with LiveStore(path) as store, pytest.raises(CorruptGeneration, match="change 8 does not match"):
        store.reembed("id007", 8, vector(1))


def test_a_file_whose_index_is_broken_is_read_and_not_written(tmp_path: Path) -> None:
    path = filled(tmp_path / LIVE)
    whole = contents(path)
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'changes_by_digest'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    raw = bytearray(path.read_bytes())
    raw[raw.index(whole[7][2], (page - 1) * size, page * size)] ^= 1
    path.write_bytes(raw)
    assert contents(path) == whole
    with pytest.raises(CorruptGeneration, match=r"cannot be trusted: .*changes_by_digest"):
        LiveStore(path)


def test_a_part_of_the_changes_is_held_against_the_whole_too(tmp_path: Path) -> None:
    path = tmp_path / LIVE
    DAMAGED["row gone"](path)
    with LiveStore(path, read_only=True) as store, pytest.raises(CorruptGeneration, match="should hold 61"):
        list(store.since(50))


def test_a_file_that_its_disk_does_not_give_is_said_to_be_that(tmp_path: Path) -> None:
    """Neither damaged nor without room. What is behind the link fails as a broken disk does, on each read (EIO)."""
    (tmp_path / LIVE).symlink_to("/proc/self/mem")
    for read_only in (True, False):
        with pytest.raises(FailedPrecondition, match=r"live\.db .*\(Input/output error\); see to its disk"):
            LiveStore(tmp_path / LIVE, read_only=read_only)


def test_an_empty_file_without_a_log_is_a_store_that_was_never_begun(tmp_path: Path) -> None:
    (tmp_path / LIVE).touch()
    with LiveStore(tmp_path / LIVE) as store:
        assert store.apply([upsert("a")]) == [1]


# --- no room, no right -----------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_an_empty_store_to_a_reader_until_it_is(tmp_path: Path) -> None:
    with LiveStore(tmp_path / "store" / LIVE, read_only=True) as store:
        assert (store.sequence, list(store.since(0)), store.get("a"), store.embedded(b"0" * 16, MODEL)) == (
            0,
            [],
            None,
            None,
        )
        with pytest.raises(FailedPrecondition, match="open for reading only"):
            store.apply([upsert("a")])
        assert not (tmp_path / "store").exists()
        with LiveStore(tmp_path / "store" / LIVE) as writer_:
            writer_.apply([upsert("a")])
            assert_is(store.get("a"), 1, upsert("a"))


def test_a_store_that_is_no_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(InvalidArgument, match=r"live\.db cannot be written in the store .*store") as refused:
        LiveStore(tmp_path / "store" / LIVE)
    assert refused.value.field == "store"


def groups_until_refused(store: LiveStore, most: int = 2_000) -> tuple[int, str]:
    """Groups of 8 that were taken before one was refused, and the sentence."""
    for n in range(most):
        try:
            store.apply([upsert(f"{n}-{k}", n, 200) for k in range(8)])
        except FailedPrecondition as error:
            return n, error.message
    raise AssertionError("it was never refused")


def assert_whole(path: Path, groups: int) -> None:
    with LiveStore(path, read_only=True) as store:
        wanted = [f"{n}-{k}" for n in range(groups) for k in range(8)]
        assert [entry.id for entry in store.since(0)] == wanted
        assert store.sequence == len(wanted)


def test_a_full_disk_is_said_keeps_what_was_taken_and_goes_on_when_there_is_room(disk: Path) -> None:
    assert mount(disk, f"remount,size={used_kib(disk) + 900}k")
    path = disk / LIVE
    with LiveStore(path) as store:
        taken, said = groups_until_refused(store)
        assert taken > 5
        assert all(part in said for part in ("cannot keep these articles", "none of this call was taken", "Make room"))
        assert str(disk) not in said
        assert_whole(path, taken)
        assert mount(disk, "remount,size=64m")
        store.apply([upsert(f"{taken}-{k}", taken) for k in range(8)])
    assert_whole(path, taken + 1)


def test_a_full_disk_and_then_the_end_of_the_process_keep_what_was_taken(disk: Path) -> None:
    assert mount(disk, f"remount,size={used_kib(disk) + 900}k")
    with LiveStore(disk / LIVE) as store:
        taken, _ = groups_until_refused(store)
    assert_whole(disk / LIVE, taken)


def test_there_is_no_room_even_for_the_file(disk: Path) -> None:
    assert mount(disk, f"remount,size={used_kib(disk) + 4}k")
    (disk / "filler").write_bytes(b"0" * 4096)
    with pytest.raises(FailedPrecondition, match=r"no room for live\.db"):
        LiveStore(disk / LIVE)


def test_a_limit_on_the_size_of_files_is_said_and_keeps_what_was_taken(tmp_path: Path) -> None:
    with LiveStore(tmp_path / LIVE) as store:
        with files_of_at_most(300 * 1024):
            taken, said = groups_until_refused(store)
        assert taken > 5
        assert "none of this call was taken" in said
        assert_whole(tmp_path / LIVE, taken)
        store.apply([upsert(f"{taken}-{k}", taken) for k in range(8)])
    assert_whole(tmp_path / LIVE, taken + 1)


@dataclass
class Snapshot:
    """A store as a server that was killed, or one that ended well, leaves it."""

    ended_well: bool

    def make(self, path: Path) -> None:
        filled(path.with_name("source.db"))
        with LiveStore(path.with_name("source.db")) as store:
            store.apply([upsert("last", 5)])
            if not self.ended_well:
                for beside in ("", "-wal"):
                    shutil.copyfile(path.with_name(f"source.db{beside}"), f"{path}{beside}")
        if self.ended_well:
            shutil.copyfile(path.with_name("source.db"), path)


@pytest.mark.parametrize("ended_well", [True, False], ids=["ended well", "killed"])
def test_a_store_on_a_read_only_disk_is_read_and_not_written(disk: Path, ended_well: bool) -> None:
    path = disk / LIVE
    Snapshot(ended_well).make(path)
    assert mount(disk, "remount,ro")
    with LiveStore(path, read_only=True) as store:
        assert_is(store.get("last"), 63, upsert("last", 5))
        assert len(list(store.since(0))) == 62
        assert store.sequence == 63
    with pytest.raises(InvalidArgument, match=r"live\.db cannot be written in the store .*you may write") as refused:
        LiveStore(path)
    assert refused.value.field == "store"


def test_a_disk_that_becomes_read_only_refuses_changes_and_still_answers(disk: Path) -> None:
    with LiveStore(disk / LIVE) as store:
        store.apply([upsert("a", 1)])
    assert mount(disk, "remount,ro")
    with LiveStore(disk / LIVE, read_only=True) as store, pytest.raises(FailedPrecondition):
        store.apply([upsert("b")])


def test_the_copy_of_a_reader_is_cleared_away(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    filled(disk / LIVE)
    assert mount(disk, "remount,ro")
    with LiveStore(disk / LIVE, read_only=True):
        assert len(os.listdir(tmp_path / "copies")) == 1
    assert os.listdir(tmp_path / "copies") == []

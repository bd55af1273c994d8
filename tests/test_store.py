"""A store: what is published is served, whole, until something else is; whoever is killed leaves it good."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe.errors import ColdframeError, CorruptGeneration, FailedPrecondition, InvalidArgument, NoGeneration
from coldframe.store import Store
from tests.generations import LISTS, ROWS, draft, publish
from tests.rights import nobody

if TYPE_CHECKING:
    from pathlib import Path

SETTLED = ["CURRENT", "HISTORY", "LOCK", "generations"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a" / "store")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three generations, the last one served; copy it before changing it."""
    store = Store(tmp_path_factory.mktemp("three") / "store")
    for seed in range(3):
        publish(store, seed)
    return store.path


@pytest.fixture
def own(three: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(three, tmp_path / "own"))


def served(store: Store) -> list[str]:
    """What is served now, and before that, and so on: by rolling back in a copy."""
    with_names = []
    copy = Store(shutil.copytree(store.path, store.path.parent / "copy"))
    with suppress(FailedPrecondition):
        with_names.append(str(copy.current()))
        while True:
            with_names.append(copy.rollback())
    shutil.rmtree(copy.path)
    return with_names


# --- publish, activate, rollback -------------------------------------------------------------------------------------


def test_a_new_store_holds_nothing_and_says_how_to_fill_it(store: Store) -> None:
    assert (store.names(), store.current(), store.before()) == ([], None, None)
    with pytest.raises(NoGeneration, match="indexer build"):
        store.open()
    assert not store.path.exists()


def test_what_is_published_is_current_and_opens(store: Store) -> None:
    name = publish(store)
    assert (store.names(), store.current(), store.open().name) == ([name], name, name)
    opened = store.open()
    assert (len(opened.index), len(opened.articles), len(opened.clusters)) == (ROWS, ROWS, LISTS)
    assert opened.placement.mean is not None
    assert opened.numbers == {"c0": 0, "c1": 1, "c2": 2}
    assert opened.table.next_number == 10
    assert sorted(entry.name for entry in store.path.iterdir()) == SETTLED


def test_the_last_published_is_current_until_another_is_activated(store: Store) -> None:
    names = [publish(store, seed) for seed in range(3)]
    assert (store.names(), store.current(), store.before()) == (sorted(names), names[2], names[1])
    store.activate(names[0])
    assert (store.current(), store.before()) == (names[0], names[2])
    assert store.open().manifest.parameters.seed == 0
    assert store.open(names[1]).manifest.parameters.seed == 1


def test_publishing_the_same_bytes_twice_is_one_generation(own: Store) -> None:
    current = str(own.current())
    with own.draft() as folder:
        shutil.copytree(own.directory(current), folder / "generation")
        own.publish(folder / "generation", current)
    assert (len(own.names()), own.current()) == (3, current)


def test_what_is_kept_back_is_there_and_not_current(store: Store) -> None:
    current = publish(store)
    with store.draft() as folder:
        generation, name = draft(folder, seed=1, held=["too few articles"])
        store.keep(generation, name)
    assert (store.names(), store.current(), store.before()) == (sorted([current, name]), current, None)
    assert store.open(name).manifest.held == ["too few articles"]


@pytest.mark.parametrize("name", ["20260101T000000Z-abc", "..", "", "../../etc"])
def test_only_generations_that_are_there_can_be_activated(own: Store, name: str) -> None:
    current = str(own.current())
    with pytest.raises(InvalidArgument, match=current):
        own.activate(name)
    assert own.current() == current


def test_readers_find_a_whole_name_while_others_activate(own: Store) -> None:
    names = own.names()[:2]
    done = threading.Event()

    def activate(name: str) -> None:
        while not done.is_set():
            own.activate(name)

    writers = [threading.Thread(target=activate, args=(name,)) for name in names]
    for writer in writers:
        writer.start()
    seen = {own.current() for _ in range(2000)}
    done.set()
    for writer in writers:
        writer.join()
    assert seen <= {*own.names()}
    assert sorted(entry.name for entry in own.path.iterdir()) == SETTLED


@pytest.mark.parametrize("content", [b"20200101T000000Z-gone\n", b"\xff\xfe"])
def test_a_current_that_names_no_generation_is_corrupt(own: Store, content: bytes) -> None:
    (own.path / "CURRENT").write_bytes(content)
    with pytest.raises(CorruptGeneration, match="CURRENT"):
        own.open()


@given(steps=st.lists(st.integers(-2, 2), max_size=12))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rolling_back_goes_through_what_was_served_in_turn(own: Store, steps: list[int]) -> None:
    """Steps are activations of one of three generations, and, below zero, rollbacks."""
    for name in ("CURRENT", "HISTORY"):
        (own.path / name).unlink(missing_ok=True)
    turns: list[str] = []
    for step in steps:
        if step >= 0:
            own.activate(own.names()[step])
            turns += [name for name in [own.names()[step]] if turns[-1:] != [name]]
        elif len(turns) > 1:
            turns.pop()
            assert own.rollback() == turns[-1]
        else:
            with pytest.raises(FailedPrecondition, match="nothing to go back to"):
                own.rollback()
        assert own.current() == (turns[-1] if turns else None)
        assert own.before() == (turns[-2] if len(turns) > 1 else None)


def test_the_history_does_not_grow_for_ever(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldframe.store._HISTORY_NAMES", 3)
    for turn in range(8):
        own.activate(own.names()[turn % 3])
    assert (own.path / "HISTORY").read_text().split() == [own.names()[turn % 3] for turn in (4, 5, 6)]
    assert own.rollback() == own.names()[0]


def test_a_store_without_a_history_goes_back_to_the_generation_before(own: Store) -> None:
    (own.path / "HISTORY").unlink()
    own.path.joinpath("CURRENT").write_text(own.names()[1] + "\n")
    assert own.rollback() == own.names()[0]
    with pytest.raises(FailedPrecondition):
        own.rollback()


# --- a draft, the lock, and what a kill leaves -----------------------------------------------------------------------


def fail_in_a_draft(store: Store) -> None:
    with store.draft() as folder:
        (folder / "half").write_text("written")
        raise ZeroDivisionError


def test_a_draft_that_fails_stays_until_it_is_discarded(own: Store) -> None:
    current = own.current()
    with pytest.raises(ZeroDivisionError):
        fail_in_a_draft(own)
    assert own.unfinished()
    with own.draft() as folder:
        assert (folder / "half").read_text() == "written"
        own.discard()
    assert not own.unfinished()
    assert own.current() == current
    assert sorted(entry.name for entry in own.path.iterdir()) == SETTLED


def test_one_build_at_a_time(store: Store) -> None:
    with store.draft() as folder:
        for again in (Store(store.path).draft(), Store(store.path).locked()):
            with pytest.raises(FailedPrecondition, match="another build"), again:
                pass
        assert folder.is_dir()
    publish(store)


def test_a_generation_can_be_activated_while_another_is_built(own: Store) -> None:
    current = own.current()
    other = next(name for name in own.names() if name != current)
    with own.draft():
        own.activate(other)
        assert own.rollback() == current


def test_a_build_waits_for_who_holds_the_store_for_a_moment(own: Store) -> None:
    """As everybody does who activates a generation or rolls back."""
    held = threading.Event()

    def hold() -> None:
        with own.locked():
            held.set()
            time.sleep(0.2)

    holding = threading.Thread(target=hold)
    holding.start()
    assert held.wait(60)
    with own.draft():
        own.discard()
    holding.join()


DRAFT_FOR_EVER = """
import sys, time
from coldframe.store import Store
with Store(sys.argv[1]).draft() as folder:
    (folder / "corpus.db").write_bytes(bytes(4096))
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_build_that_is_killed_lets_the_lock_go_and_leaves_its_draft(own: Store) -> None:
    current = own.current()
    command = [sys.executable, "-c", DRAFT_FOR_EVER, str(own.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        with pytest.raises(FailedPrecondition, match="another build"), own.draft():
            pass
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    (own.path / "drafts" / "of-another-coldframe").mkdir()
    assert own.open().name == current
    with own.draft() as folder:
        assert [entry.name for entry in folder.iterdir()] == ["corpus.db"]
        assert [entry.name for entry in folder.parent.iterdir()] == ["job"]


KILLED_AT_A_CALL = """
import os, signal, sys
from pathlib import Path
from coldframe.store import Store
calls = 0
def dying(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)
store = Store(sys.argv[1])
with store.draft() as folder:
    for name in ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink"):
        dying(name)
    store.publish(folder / "generation", sys.argv[2])
"""


def test_a_publication_that_is_killed_anywhere_is_whole_or_not_begun_and_can_be_ended(
    own: Store, tmp_path: Path
) -> None:
    before = served(own)
    with own.draft() as folder:
        _, name = draft(folder, seed=7)
    for call in range(1, 100):
        store = Store(shutil.copytree(own.path, tmp_path / f"killed-{call}"))
        done = subprocess.run([sys.executable, "-c", KILLED_AT_A_CALL, store.path, name, str(call)], check=False)
        assert store.open().name in {before[0], name}
        with store.locked():
            pass
        if store.current() != name:
            with store.draft() as folder:
                store.publish(folder / "generation", name)
        assert served(store) == [name, *before]
        assert store.open().name == name
        assert {entry.name for entry in store.path.iterdir() if entry.suffix != ".partial"} == {*SETTLED}
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert call > 15, "a publication syncs, renames and removes more than that"


def test_a_choice_made_after_a_crash_is_not_undone_by_mending_it(own: Store) -> None:
    with own.draft() as folder:
        generation, name = draft(folder, seed=7)
        own.keep(generation, name)
    (own.path / "PUBLISHING").write_text(f"{name}\n")  # killed before CURRENT named it
    own.activate(own.names()[0])
    with own.locked():
        pass
    assert served(own)[:2] == [own.names()[0], name]


def test_partial_files_of_the_dead_are_cleared_away_and_those_of_the_living_are_not(own: Store) -> None:
    old, young = own.path / "CURRENT.1.partial", own.path / "CURRENT.2.partial"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    with own.locked():
        pass
    assert (old.exists(), young.exists()) == (False, True)


# --- prune -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "keep", "left"),
    [(4, 1, {3, 4}), (4, 2, {3, 4}), (4, 3, {2, 3, 4}), (4, 9, {0, 1, 2, 3, 4}), (0, 1, {0, 4}), (0, 2, {0, 3, 4})],
)
def test_pruning_leaves_the_newest_the_current_and_the_one_before_it(
    store: Store, current: int, keep: int, left: set[int]
) -> None:
    for seed in range(5):
        publish(store, seed)
    names, sizes = store.names(), {}
    store.activate(names[current]) if current != names.index(str(store.current())) else None
    (store.path / "HISTORY").write_text(f"{names[3]}\n" if current == 4 else f"{names[4]}\n")
    for name in names:
        sizes[name] = sum(path.stat().st_size for path in store.directory(name).iterdir())
    with store.locked():
        freed = store.prune(keep)
    assert {names.index(name) for name in store.names()} == left
    assert freed == {name: sizes[name] for n, name in enumerate(names) if n not in left}
    assert store.open().name == names[current]
    assert sorted(entry.name for entry in store.path.iterdir()) == SETTLED


def filled(store: Store, kinds: str, first: int = 1) -> list[str]:
    """Publishes a generation for each p, and keeps one back for each h, one a day; their names."""
    names = []
    for day, kind in enumerate(kinds, start=first):
        names.append(f"202601{day:02}T000000Z-{kind}")
        with store.draft() as folder:
            generation, _ = draft(folder, day, held=["too few articles"] if kind == "h" else [])
            keep = store.keep if kind == "h" else store.publish
            keep(generation, names[-1])
            store.discard()
    return names


@pytest.mark.parametrize(
    ("kinds", "keep", "left"),
    [
        ("ppphhh", 1, {1, 2, 5}),
        ("ppphhh", 2, {1, 2, 4, 5}),
        ("pppphhh", 3, {1, 2, 3, 4, 5, 6}),  # bad nights push out nothing that is good
        ("pphphh", 9, {0, 1, 3, 4, 5}),  # what was kept back before the current one is of no use any more
        ("phhhhh", 2, {0, 4, 5}),
        ("hhh", 2, {1, 2}),
    ],
)
def test_generations_that_were_kept_back_neither_pile_up_nor_push_others_out(
    store: Store, kinds: str, keep: int, left: set[int]
) -> None:
    names = filled(store, kinds)
    with store.locked():
        store.prune(keep)
    assert {names.index(name) for name in store.names()} == left


def test_one_that_was_kept_back_and_activated_all_the_same_is_like_any_other(store: Store) -> None:
    names = filled(store, "pph")
    store.activate(names[2])
    names += filled(store, "pp", first=4)
    with store.locked():
        store.prune(3)
    assert store.names() == names[2:]


def test_pruning_keeps_at_least_one(own: Store) -> None:
    with pytest.raises(InvalidArgument, match="--keep is 0") as refused:
        own.prune(0)
    assert (refused.value.field, len(own.names())) == ("keep", 3)


# --- a store that cannot be written ----------------------------------------------------------------------------------


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "articles.csv"
    file.write_text("id,title")
    for path in (file, file / "store"):
        with pytest.raises(InvalidArgument, match=r"articles\.csv") as refused, Store(path).draft():
            pass
        assert refused.value.field == "store"
        with pytest.raises(InvalidArgument, match=r"articles\.csv"):
            Store(path).open()
    assert file.read_text() == "id,title"


def test_a_store_that_cannot_be_read_is_refused(own: Store) -> None:
    own.path.chmod(0)
    try:
        with nobody():
            for read in (own.current, own.names, own.before, own.open):
                with pytest.raises(InvalidArgument, match=r"can be read \(Permission denied\)") as refused:
                    read()
                assert refused.value.field == "store"
    finally:
        own.path.chmod(0o755)


def test_a_store_that_cannot_be_written_is_refused(own: Store) -> None:
    names, current = own.names(), own.current()
    for path in (own.path / "LOCK", own.path):
        path.chmod(0o555)
    try:
        with nobody():
            for change in (own.draft(), Store(own.path / "deeper").draft(), own.locked()):
                with pytest.raises(InvalidArgument, match="cannot be written") as refused, change:
                    pass
                assert refused.value.field == "store"
    finally:
        own.path.chmod(0o755)
    assert (own.names(), own.current()) == (names, current)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    return error


NO_ROOM = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded", "{store}/corpus.db"),
    OSError(errno.EFBIG, "File too large"),
    OSError("4096 requested and 512 written"),
    RuntimeError("Error in faiss::FileIOWriter: write error in index.faiss: 12 != 40 (No space left on device)"),
    sqlite_error(sqlite3.SQLITE_FULL),
    sqlite_error(sqlite3.SQLITE_IOERR_WRITE),
]
NO_RIGHT = [OSError(errno.EROFS, "Read-only file system", "{store}/x"), sqlite_error(sqlite3.SQLITE_READONLY)]
OTHERS = [
    OSError(errno.EACCES, "Permission denied", "/elsewhere/weights.bin"),
    OSError(errno.ENOENT, "No such file", "{store}/x"),
    RuntimeError("shapes do not match"),
    sqlite_error(sqlite3.SQLITE_CORRUPT),
    ValueError("no"),
]


def saved(store: Store, error: Exception) -> Exception:
    """What comes of an error in a block that writes to the store."""
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.format(store=store.path)
    with pytest.raises(type(error) if error in OTHERS else ColdframeError) as raised, store.saving():
        raise error
    return raised.value


@pytest.mark.parametrize("error", NO_ROOM, ids=str)
def test_want_of_room_is_said_in_a_sentence(store: Store, error: Exception) -> None:
    refusal = saved(store, error)
    assert isinstance(refusal, FailedPrecondition)
    said = ("no room", str(store.path), "current generation is as it was", "prune", "goes on")
    assert all(part in str(refusal) for part in said), refusal


@pytest.mark.parametrize("error", NO_RIGHT, ids=str)
def test_want_of_the_right_to_write_is_said_in_a_sentence(store: Store, error: Exception) -> None:
    refusal = saved(store, error)
    assert isinstance(refusal, InvalidArgument)
    assert (refusal.field, "cannot be written" in refusal.message) == ("store", True)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_pass_as_they_are(store: Store, error: Exception) -> None:
    assert saved(store, error) is error

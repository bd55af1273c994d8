"""The store of live articles: what was acknowledged is there, and nothing else, whatever happens to the file."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coldframe.live import LIVE, Change, Delete, LiveArticle, LiveStore, Upsert
from coldframe.text import article_text, text_digest
from tests.live_articles import MODEL, PUBLISHED, assert_is, plain, upsert, vector
from tests.power import Power

if TYPE_CHECKING:
    from collections.abc import Sequence

# --- what it does ----------------------------------------------------------------------------------------------------


def test_what_was_applied_is_there_after_reopening_and_numbers_go_on(tmp_path: Path) -> None:
    changes: list[Change] = [upsert("a", 1), upsert("é\0b", 2), Delete("never seen"), upsert("c", 3)]
    with LiveStore(tmp_path / LIVE) as store:
        assert (store.sequence, list(store.since(0)), store.get("a")) == (0, [], None)
        before = datetime.now(UTC)
        assert store.apply(changes[:2]) == [1, 2]
        assert store.apply(changes[2:]) == [3, 4]
        assert store.apply([]) == []
    assert [path.name for path in tmp_path.iterdir()] == [LIVE]
    for read_only in (True, False):
        with LiveStore(tmp_path / LIVE, read_only=read_only) as store:
            entries = list(store.since(0))
            assert len(entries) == 4
            for number, (entry, change) in enumerate(zip(entries, changes, strict=True), 1):
                assert_is(entry, number, change)
                assert_is(store.get(entry.id), number, change)
                assert before <= entry.changed_at <= datetime.now(UTC)
            assert [entry.sequence for entry in store.since(2)] == [3, 4]
            assert (store.sequence, store.pending(1), list(store.since(4)), store.get("d")) == (4, 3, [], None)


def test_a_commit_waits_for_the_disk_which_knows_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = Power(monkeypatch)
    with LiveStore(tmp_path / LIVE) as store:
        assert power.lost == []
        assert store._writer is not None
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: no commit without an fsync"


def test_a_new_file_beside_an_older_generation_numbers_on_where_its_watermark_stands(tmp_path: Path) -> None:
    with LiveStore(tmp_path / LIVE) as store:
        assert store.apply([upsert("a", 1)], after=40) == [41]
        assert store.apply([upsert("b", 2)], after=7) == [42]
    with LiveStore(tmp_path / LIVE, read_only=True) as store:
        assert [entry.id for entry in store.since(40)] == ["a", "b"]


def test_of_several_changes_of_one_id_the_last_one_stays(tmp_path: Path) -> None:
    with LiveStore(tmp_path / LIVE) as store:
        assert store.apply([upsert("a", 1), upsert("b", 2), Delete("a"), upsert("a", 3)]) == [1, 2, 3, 4]
        assert store.apply([Delete("b"), Delete("b")]) == [5, 6]
        assert [(entry.sequence, entry.id) for entry in store.since(0)] == [(4, "a"), (6, "b")]
        assert_is(store.get("a"), 4, upsert("a", 3))
        assert_is(store.get("b"), 6, Delete("b"))
        assert store.sequence == 6


@pytest.mark.parametrize(
    "article",
    [
        LiveArticle("x", "", "only a content", None, {}),
        LiveArticle("x", "only a title", "", datetime(1000, 1, 1, tzinfo=UTC), {"": ""}),
        LiveArticle("x", "a\0b", "…" * 9, datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), {"b": "2", "a": "é"}),
    ],
)
def test_every_part_of_an_article_comes_back(tmp_path: Path, article: LiveArticle) -> None:
    with LiveStore(tmp_path / LIVE) as store:
        store.apply([Upsert(article, vector(1))])
        assert_is(store.get("x"), 1, Upsert(article, vector(1)))


def test_a_moment_of_another_zone_is_the_same_moment_and_one_of_no_zone_is_refused_whole(tmp_path: Path) -> None:
    from zoneinfo import ZoneInfo

    there = replace(upsert("a").article, published_at=PUBLISHED.astimezone(ZoneInfo("Asia/Kolkata")))
    nowhere = replace(upsert("b").article, published_at=datetime(2026, 1, 1))
    with LiveStore(tmp_path / LIVE) as store:
        store.apply([Upsert(there, vector(0))])
        entry = store.get("a")
        assert entry is not None
        assert entry.article is not None
        assert (entry.article.published_at, entry.article.published_at and entry.article.published_at.tzinfo) == (
            PUBLISHED,
            UTC,
        )
        with pytest.raises(TypeError):
            store.apply([upsert("c"), Upsert(nowhere, vector(0))])
        assert (store.sequence, store.get("c")) == (1, None)
        assert store.apply([upsert("d")]) == [2]


def test_a_vector_of_an_equal_text_is_found_by_what_computed_it(tmp_path: Path) -> None:
    other = replace(vector(7), fingerprint="f2" * 32)
    coarse = replace(vector(8), precision="int8")
    with LiveStore(tmp_path / LIVE) as store:
        digest = text_digest(article_text(upsert("a", 1).article.title, upsert("a", 1).article.content))
        assert store.embedded(digest, MODEL) is None
        store.apply([Upsert(upsert("a", 1).article, other), Upsert(upsert("b", 1).article, coarse), upsert("c", 1)])
        assert plain(store.embedded(digest, other.fingerprint)) == plain(other)
        assert plain(store.embedded(digest, MODEL)) == plain(coarse)
        assert plain(store.embedded(digest, MODEL, "fp32")) == plain(vector(1))
        assert store.embedded(digest, MODEL, "bf16") is None
        store.apply([Delete("c"), upsert("b", 2)])
        assert store.embedded(digest, MODEL) is None


def test_an_entry_is_embedded_anew_under_its_number_unless_it_has_changed(tmp_path: Path) -> None:
    fresh = replace(vector(99), fingerprint="f2" * 32)
    with LiveStore(tmp_path / LIVE) as store:
        store.apply([upsert("a", 1), upsert("b", 2), Delete("c")])
        store.reembed("a", 1, fresh)
        store.reembed("b", 1, fresh)
        store.reembed("c", 3, fresh)
        store.reembed("d", 4, fresh)
        assert store.sequence == 3
    with LiveStore(tmp_path / LIVE) as store:
        assert_is(store.get("a"), 1, Upsert(upsert("a", 1).article, fresh))
        assert_is(store.get("b"), 2, upsert("b", 2))
        assert_is(store.get("c"), 3, Delete("c"))
        assert len(list(store.since(0))) == 3


def test_a_store_that_was_closed_says_so(tmp_path: Path) -> None:
    store = LiveStore(tmp_path / LIVE)
    store.close()
    store.close()
    for use in (lambda: store.sequence, lambda: store.get("a"), lambda: list(store.since(0)), lambda: store.apply([])):
        with pytest.raises(ValueError, match="closed"):
            use()


# --- a model of it ---------------------------------------------------------------------------------------------------

_IDS = st.sampled_from([f"id{n}" for n in range(8)])
_CHANGES = st.lists(
    st.one_of(_IDS.map(Delete), st.builds(upsert, _IDS, st.integers(0, 99), st.sampled_from([0, 5, 3_000]))), max_size=6
)


class Machine(RuleBasedStateMachine):
    """The store against a dict, with readers of other connections, reopened at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / LIVE
        self.store = LiveStore(self.path)
        self.reader = LiveStore(self.path, read_only=True)
        self.sequence = 0
        self.model: dict[str, tuple[int, Change]] = {}

    @rule(changes=_CHANGES)
    def apply(self, changes: Sequence[Change]) -> None:
        numbers = self.store.apply(changes)
        assert numbers == list(range(self.sequence + 1, self.sequence + 1 + len(changes)))
        for number, change in zip(numbers, changes, strict=True):
            self.model[change.id if isinstance(change, Delete) else change.article.id] = number, change
        self.sequence += len(changes)

    @rule(article_id=_IDS, seed=st.integers(0, 99), off=st.integers(0, 1))
    def reembed(self, article_id: str, seed: int, off: int) -> None:
        number, change = self.model.get(article_id, (1, Delete(article_id)))
        self.store.reembed(article_id, number + off, vector(seed))
        if isinstance(change, Upsert) and not off:
            self.model[article_id] = number, Upsert(change.article, vector(seed))

    @rule(reader=st.booleans())
    def reopen(self, reader: bool) -> None:
        if reader:
            self.reader.close()
        self.store.close()
        self.store = LiveStore(self.path)
        if reader:
            self.reader = LiveStore(self.path, read_only=True)

    @rule(sequence=st.integers(0, 40))
    def since(self, sequence: int) -> None:
        wanted = sorted((number, article_id) for article_id, (number, _) in self.model.items() if number > sequence)
        for store in (self.store, self.reader):
            assert [(entry.sequence, entry.id) for entry in store.since(sequence)] == wanted
            assert store.pending(sequence) == len(wanted)

    @rule(article_id=_IDS)
    def get(self, article_id: str) -> None:
        for store in (self.store, self.reader):
            if article_id in self.model:
                assert_is(store.get(article_id), *self.model[article_id])
            else:
                assert store.get(article_id) is None

    @invariant()
    def both_know_how_far_it_is(self) -> None:
        assert self.store.sequence == self.reader.sequence == self.sequence

    def teardown(self) -> None:
        for entry in self.reader.since(0):
            assert_is(entry, *self.model[entry.id])
        self.store.close()
        self.reader.close()
        shutil.rmtree(self.folder)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=30)


# --- several at once -------------------------------------------------------------------------------------------------


def test_threads_write_and_read_together(tmp_path: Path) -> None:
    with LiveStore(tmp_path / LIVE) as store:
        numbers: list[int] = []
        seen: list[int] = []

        def write(name: str) -> None:
            for n in range(20):
                numbers.extend(store.apply([upsert(f"{name}{n}", n), upsert(name, n)]))

        def read() -> None:
            while len(numbers) < 160:
                entries = list(store.since(0))
                assert len({entry.id for entry in entries}) == len(entries)
                seen.append(store.sequence)
                assert not entries or entries[-1].sequence <= seen[-1]

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"] + [threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(numbers) == list(range(1, 161))
        assert seen == sorted(seen)
        assert len(list(store.since(0))) == 84


_WRITER = """
import sys
from pathlib import Path
from coldframe.live import LiveStore
from coldframe.live import Delete
from tests.live_articles import upsert
store, n = LiveStore(Path(sys.argv[1])), int(sys.argv[2])
print(store.sequence, flush=True)
while True:
    group = [upsert(f"{n}-{k}", n, 300) for k in range(5)]
    if n % 3 == 0:
        group[4] = Delete(f"{n - 3}-0")
    print(n, *store.apply(group), flush=True)
    n += 1
"""


def writer(path: Path, first: int) -> subprocess.Popen[str]:
    """A process that applies five changes at a time until it is killed, and then says so."""
    command = [sys.executable, "-c", _WRITER, str(path), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)


def expected(groups: dict[int, int]) -> dict[str, tuple[int, Change]]:
    """What is there after these groups, n by the number of its first change."""
    model: dict[str, tuple[int, Change]] = {}
    for n, first in groups.items():
        for k in range(5):
            change: Change = upsert(f"{n}-{k}", n, 300)
            if k == 4 and n % 3 == 0:
                change = Delete(f"{n - 3}-0")
            model[change.id if isinstance(change, Delete) else change.article.id] = first + k, change
    return model


def killed(path: Path, first: int, seconds: float) -> dict[int, int]:
    """What a writer that begins at group `first` acknowledged before SIGKILL."""
    process = writer(path, first)
    assert process.stdout is not None
    process.stdout.readline()
    threading.Timer(seconds, process.kill).start()
    lines = [line.split() for line in process.stdout if line.endswith("\n")]
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    return {int(n): int(number) for n, number, *_ in lines}


def test_a_writer_killed_again_and_again_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    path, groups, dice = tmp_path / LIVE, dict[int, int](), random.Random(0)
    for _ in range(6):
        first = max(groups, default=-1) + 1
        acknowledged = killed(path, first, dice.uniform(0.02, 0.3))
        groups |= acknowledged
        with LiveStore(path, read_only=True) as store:
            following = max(groups, default=-1) + 1
            more = store.get(f"{following}-0")
            if more is not None:  # committed, and killed before it could say so: whole, or the following fails
                groups[following] = more.sequence
            entries = {entry.id: entry for entry in store.since(0)}
            model = expected(groups)
            assert entries.keys() == model.keys()
            for article_id, (number, change) in model.items():
                assert_is(entries[article_id], number, change)
            assert store.sequence == 5 * len(groups)
    assert len(groups) > 20, "it was killed before it wrote"


def test_two_that_write_one_file_at_once_wait_for_each_other(tmp_path: Path) -> None:
    def write(store: LiveStore) -> list[int]:
        return [number for n in range(30) for number in store.apply([upsert(f"{id(store)} {n}")])]

    with LiveStore(tmp_path / LIVE) as one, LiveStore(tmp_path / LIVE) as other, ThreadPoolExecutor(2) as pool:
        first, second = pool.map(write, (one, other))
    assert sorted(first + second) == list(range(1, 61))


def test_another_process_reads_what_is_acknowledged_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / LIVE
    process = writer(path, 0)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        with LiveStore(path, read_only=True) as store:
            for n in range(40):
                assert process.stdout.readline().split()[0] == str(n)
                entries = {entry.id: entry for entry in store.since(0)}
                model = expected({group: 5 * group + 1 for group in range(n + 1)})
                assert entries.keys() >= model.keys()
                assert len(entries) % 5 in {0, 4} or n
                assert store.sequence % 5 == 0
                assert_is(store.get(f"{n}-1"), *model[f"{n}-1"])
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()

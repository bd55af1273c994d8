"""The cache of embeddings: what was put comes back to the bit or not at all, whatever happens to the file."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe.encoder import Tokens
from coldframe.errors import FailedPrecondition
from coldframe.text import text_digest
from indexer.cache import CACHE, Cache, Space, count, look_up, prune

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

DIM = 48
SPACE = Space("f1" * 32, "fp32", DIM)


def texts(count: int, first: int = 0) -> list[bytes]:
    return [text_digest(f"text {n}") for n in range(first, first + count)]


def vectors(digests: list[bytes]) -> NDArray[np.float32]:
    """Made from the digests: what a wrong answer is told from."""
    return np.stack([np.random.default_rng([*digest]).standard_normal(DIM) for digest in digests]).astype(np.float32)


def tokens(digests: list[bytes]) -> list[Tokens]:
    return [Tokens([0] * (1 + digest[0]), seen=1 + digest[0] + digest[1]) for digest in digests]


def filled(path: Path, digests: list[bytes], space: Space = SPACE) -> Path:
    with Cache(path, space, warn=pytest.fail) as cache:
        cache.put(digests, tokens(digests), vectors(digests))
    return path


def assert_right(cache: Cache, digests: list[bytes]) -> int:
    """That what is known of the texts is what was put; says of how many."""
    known = cache.get(digests)
    for (digest, found), token in zip(known.items(), tokens([*known]), strict=True):
        assert found.vector.tobytes() == vectors([digest])[0].tobytes()
        assert (found.seen, found.used) == (token.seen, token.used)
    return len(known)


def test_what_was_put_comes_back_to_the_bit_and_nothing_else_does(tmp_path: Path) -> None:
    path = filled(tmp_path / CACHE, texts(300))
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert assert_right(cache, texts(400)) == 300
        assert cache.get(texts(10, first=300)) == {}
    assert [entry.name for entry in tmp_path.iterdir()] == [CACHE]


@pytest.mark.parametrize("other", [Space("f2" * 32, "fp32", DIM), Space("f1" * 32, "bf16", DIM)])
def test_another_encoder_or_precision_has_vectors_of_its_own(tmp_path: Path, other: Space) -> None:
    path = filled(tmp_path / CACHE, texts(3))
    assert (count(path, other, texts(3)), look_up(path, other, texts(3))) == (0, {})
    with Cache(path, other, warn=pytest.fail) as cache:
        assert cache.get(texts(3)) == {}
        cache.put(texts(1), tokens(texts(1)), -vectors(texts(1)))
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert assert_right(cache, texts(3)) == 3


def test_a_text_that_is_put_again_has_its_last_vector(tmp_path: Path) -> None:
    path = filled(filled(tmp_path / CACHE, texts(3)), texts(5))
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert assert_right(cache, texts(5)) == 5


def test_the_texts_of_a_chunk_are_put_together_or_not_at_all(tmp_path: Path) -> None:
    digests = texts(3)
    with Cache(tmp_path / CACHE, SPACE, warn=pytest.fail) as cache:
        with pytest.raises(ValueError, match="zip"):
            cache.put(digests, tokens(digests)[:2], vectors(digests))
        assert cache.get(digests) == {}
        cache.put(digests, tokens(digests), vectors(digests))
        assert assert_right(cache, digests) == 3


# --- files that are damaged or foreign -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return filled(tmp_path_factory.mktemp("whole") / CACHE, texts(100)).read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), length=st.integers(1, 400))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_never_give_a_wrong_vector_nor_stop_a_build(
    tmp_path: Path, whole: bytes, place: float, flip: int, length: int
) -> None:
    content = bytearray(whole)
    start = int(place * len(content))
    content[start : start + length] = bytes(byte ^ flip for byte in content[start : start + length])
    path = tmp_path / CACHE
    path.write_bytes(bytes(content))
    said: list[str] = []
    with Cache(path, SPACE, warn=said.append) as cache:
        assert_right(cache, texts(100))
        more = texts(20, first=90)
        cache.put(more, tokens(more), vectors(more))
        assert assert_right(cache, more) == 20
    assert all("cannot be read" in text and str(path) in text for text in said)


def test_a_vector_that_is_no_number_is_computed_again(tmp_path: Path) -> None:
    digests = texts(3)
    broken = vectors(digests).copy()
    broken[1, 0] = np.nan
    with Cache(tmp_path / CACHE, SPACE, warn=pytest.fail) as cache:
        cache.put(digests, tokens(digests), broken)
        assert set(cache.get(digests)) == {digests[0], digests[2]}
        cache.put(digests, tokens(digests), vectors(digests))
        assert assert_right(cache, digests) == 3


@pytest.mark.parametrize(
    "damage",
    [
        *("seen = 'many'", "vector = 0.5", "vector = printf('%.*c', length(vector), 'x')"),
        *("seen = seen + 1", "used = used - 1"),
    ],
)
def test_a_vector_beside_which_a_value_is_another_is_computed_again(tmp_path: Path, damage: str) -> None:
    path, digests = filled(tmp_path / CACHE, texts(3)), texts(3)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"UPDATE vectors SET {damage} WHERE digest = ?", (digests[1],))
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert set(cache.get(digests)) == {digests[0], digests[2]}
    assert set(look_up(path, SPACE, digests)) == {digests[0], digests[2]}


def test_the_vector_of_another_text_is_never_given(tmp_path: Path) -> None:
    """As where a flipped bit of SQLite's tree leads to another row."""
    path, digests = filled(tmp_path / CACHE, texts(3)), texts(3)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM vectors WHERE digest = ?", (digests[0],))
        db.execute("UPDATE vectors SET digest = ? WHERE digest = ?", (digests[0], digests[1]))
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert assert_right(cache, digests) == 1


def test_a_vector_that_became_a_text_of_no_letters_does_not_stop_a_build(tmp_path: Path) -> None:
    path, digests, said = filled(tmp_path / CACHE, texts(3)), texts(3), list[str]()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE vectors SET vector = CAST(x'ff' || vector AS TEXT)")
    with Cache(path, SPACE, said.append) as cache:
        assert cache.get(digests) == {}
        cache.put(digests, tokens(digests), vectors(digests))
        assert assert_right(cache, digests) == 3
    assert [text.isprintable() for text in said] == [True]


def test_a_file_whose_damage_is_no_text_is_set_aside_or_removed(tmp_path: Path, whole: bytes) -> None:
    path, content, said = tmp_path / CACHE, bytearray(whole), list[str]()
    content[whole.index(b"TABLE")] ^= 0x80  # SQLite quotes the word
    path.write_bytes(bytes(content))
    Cache(path, SPACE, warn=said.append).close()
    assert [str(path) in text for text in said] == [True]
    path.write_bytes(bytes(content))
    assert prune(path, []) == len(content)
    assert not path.exists()


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")
        db.execute("PRAGMA user_version = 1")


def later_version(path: Path) -> None:
    with closing(sqlite3.connect(filled(path, texts(1)))) as db:
        db.execute("PRAGMA user_version = 7")


def without_a_table(path: Path) -> None:
    with closing(sqlite3.connect(filled(path, texts(1)))) as db:
        db.execute("DROP TABLE vectors")


FOREIGN = {
    "text": lambda path: path.write_text("id,title\n" * 900),
    "cut short": lambda path: path.write_bytes(filled(path, texts(100)).read_bytes()[:9_000]),
    "database": other_database,
    "later": later_version,
    "no table": without_a_table,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_cache_is_set_aside_whole_and_a_new_one_is_begun(tmp_path: Path, kind: str) -> None:
    path, said = tmp_path / CACHE, list[str]()
    FOREIGN[kind](path)
    before = path.read_bytes()
    with Cache(path, SPACE, said.append) as cache:
        assert cache.get(texts(2)) == {}
        cache.put(texts(2), tokens(texts(2)), vectors(texts(2)))
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert assert_right(cache, texts(2)) == 2
    aside = tmp_path / f"{CACHE}.damaged"
    assert aside.read_bytes() == before
    assert len(said) == 1
    assert all(part in said[0] for part in ("cannot be read", str(aside), "a new one is begun"))


def test_a_journal_that_is_left_without_its_file_is_not_played_back_into_a_new_one(tmp_path: Path) -> None:
    path, digests = filled(tmp_path / CACHE, texts(200)), texts(200)
    journal = path.with_name(f"{CACHE}-journal")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")  # so that the journal reaches the disk before the commit
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE vectors SET seen = 0")
        left = journal.read_bytes()
    path.unlink()
    journal.write_bytes(left)
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert cache.get(digests) == {}
        cache.put(digests, tokens(digests), vectors(digests))
        assert assert_right(cache, digests) == 200


def test_an_empty_file_is_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / CACHE).touch()
    assert filled(tmp_path / CACHE, texts(2)).stat().st_size


def test_a_folder_in_its_place_is_an_error_of_the_stores(tmp_path: Path) -> None:
    (tmp_path / CACHE).mkdir()
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        Cache(tmp_path / CACHE, SPACE, warn=pytest.fail)


# --- files that others use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["opens", "gets", "puts", "prunes"])
def test_one_who_waits_too_long_for_the_file_is_told_who_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.setattr("indexer.cache._WAIT_S", 0.05)
    path = filled(tmp_path / CACHE, texts(3))
    with Cache(path, SPACE, warn=pytest.fail) as cache, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        uses: dict[str, Callable[[], object]] = {
            "opens": lambda: Cache(path, SPACE, warn=pytest.fail),
            "gets": lambda: cache.get(texts(3)),
            "puts": lambda: cache.put(texts(1), tokens(texts(1)), vectors(texts(1))),
            "prunes": lambda: prune(path, []),
        }
        with pytest.raises(FailedPrecondition, match=r"another process .* for 0\.05 seconds; wait until") as refused:
            uses[use]()
        assert str(path) in refused.value.message
        other.execute("ROLLBACK")
        assert assert_right(cache, texts(3)) == 3


def test_two_who_begin_one_file_at_once_share_it(tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / f"{n}.db"
        with ThreadPoolExecutor(4) as pool:
            caches = [*pool.map(lambda _, path=path: filled(path, texts(3)), range(4))]
        assert caches == [path] * 4
        with Cache(path, SPACE, warn=pytest.fail) as cache:
            assert assert_right(cache, texts(3)) == 3


# --- counting and pruning --------------------------------------------------------------------------------------------


def test_texts_are_counted_without_touching_the_file(tmp_path: Path) -> None:
    path = tmp_path / CACHE
    assert count(path, SPACE, texts(5)) == 0
    assert not path.exists()
    filled(path, texts(5))
    before = path.stat().st_mtime_ns
    assert count(path, SPACE, texts(100, first=2)) == 3
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"no database at all" * 99)
    assert count(path, SPACE, texts(5)) == 0


def test_pruning_keeps_what_is_used_and_gives_back_the_room_of_the_rest(tmp_path: Path) -> None:
    path, other = tmp_path / CACHE, Space("f2" * 32, "bf16", DIM)
    filled(filled(path, texts(3_000)), texts(2_000), other)
    before = path.stat().st_size
    kept = [("f1" * 32, "fp32", texts(20, first=100)), ("f1" * 32, "fp32", texts(20, first=110))]
    freed = prune(path, [*kept, ("f3" * 32, "fp32", texts(5))])
    assert (before - path.stat().st_size, freed > 0.9 * before) == (freed, True)
    with Cache(path, SPACE, warn=pytest.fail) as cache:
        assert assert_right(cache, [*texts(200), *texts(10, first=2_900)]) == 30
    with Cache(path, other, warn=pytest.fail) as cache:
        assert cache.get(texts(300)) == {}


def test_pruning_no_cache_frees_nothing_and_pruning_a_damaged_one_removes_it(tmp_path: Path) -> None:
    path = tmp_path / CACHE
    assert prune(path, []) == 0
    path.write_bytes(b"no database" * 1_000)
    assert prune(path, []) == 11_000
    assert not path.exists()

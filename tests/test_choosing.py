"""Several who activate, roll back and prune in one store at the same moment."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.errors import ColdframeError, InvalidArgument
from coldframe.store import Store
from tests.test_store import filled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TURNS = 8


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Store]:
    """Stores of the same twelve generations."""
    first = Store(tmp_path / "store")
    filled(first, "p" * 12)
    return (Store(shutil.copytree(first.path, tmp_path / f"copy-{turn}")) for turn in range(TURNS))


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each comes to, or the error that it raises."""
    ready = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        ready.wait(60)
        try:
            return work()
        except ColdframeError as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return [*pool.map(run, works)]


def test_a_generation_that_is_activated_at_this_moment_is_not_pruned(copies: Iterator[Store]) -> None:
    for turn, store in enumerate(copies):
        name = store.names()[turn]
        with store.locked():
            said, freed = at_once(partial(store.activate, name), partial(store.prune, 2))
        assert store.open().name
        assert (name in freed) == isinstance(said, InvalidArgument) == (store.current() != name)


def test_two_who_roll_back_at_once_go_back_two(copies: Iterator[Store]) -> None:
    for store in copies:
        names = store.names()
        assert sorted(at_once(store.rollback, store.rollback)) == names[-3:-1]
        assert (store.current(), store.before()) == (names[-3], names[-4])

"""A store whose power is cut, or whose disk is full, at any moment: what was published or chosen is there, whole."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from coldframe.errors import FailedPrecondition
from coldframe.store import Store
from tests.generations import draft, publish
from tests.power import Power

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for seed in range(2):
        publish(store, seed)
    return store


def test_a_power_cut_takes_nothing_of_what_was_published_kept_or_activated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = Power(monkeypatch, needs={"PUBLISHING": store.path / "drafts" / "job" / "generation"})
    with store.draft() as folder:
        store.publish(*draft(folder, seed=7))
    with store.draft() as folder:
        store.keep(*draft(folder, seed=8))
    store.activate(store.names()[0])
    store.rollback()
    assert power.lost == []


def test_a_file_that_finds_no_room_leaves_the_old_one_and_no_half(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    current = store.current()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FailedPrecondition, match="there is no room"):
            store.activate(store.names()[0])
    assert store.current() == current
    assert sorted(entry.name for entry in store.path.iterdir()) == ["CURRENT", "HISTORY", "LOCK", "generations"]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Does what takes folders away, up to the first file of the first one."""

    def half_way(folder: Path, **_: object) -> None:
        next(path for path in sorted(folder.rglob("*")) if path.is_file()).unlink()
        raise ZeroDivisionError

    def kill(work: Callable[[], object]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", half_way)
            with pytest.raises(ZeroDivisionError):
                work()

    return kill


def test_what_is_pruned_or_discarded_is_out_of_sight_before_its_files_go(
    store: Store, killed: Callable[[Callable[[], object]], None]
) -> None:
    publish(store, 2)
    with store.locked():
        (store.path / "drafts").mkdir()
        killed(lambda: store.prune(1))
    assert [store.open(name).name for name in store.names()] == store.names()
    assert len(store.names()) == 2
    with store.draft() as folder:
        draft(folder, seed=3)
        killed(store.discard)
        assert not store.unfinished()

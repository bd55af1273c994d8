"""A process that may open no more files: it says so, and goes on once it may."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from coldframe.errors import ColdframeError, FailedPrecondition
from coldframe.generation import verify
from coldframe.live import LIVE, Delete, LiveStore
from coldframe.store import Store
from indexer.plan import open_previous
from indexer.progress import Reporter
from tests.disks import files_left

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("begun", [False, True])
def test_live_articles_for_which_no_file_can_be_opened_are_not_said_to_lie_where_nobody_may_write(
    tmp_path: Path, begun: bool
) -> None:
    if begun:
        with LiveStore(tmp_path / LIVE) as live:
            live.apply([Delete("a")])
    for count in range(20):
        with files_left(count):
            try:
                LiveStore(tmp_path / LIVE).close()
                break
            except ColdframeError as refused:
                error = refused
        assert isinstance(error, FailedPrecondition)
        assert "Too many open files" in error.message
        assert {path.name for path in tmp_path.iterdir()} <= {LIVE, f"{LIVE}-wal", f"{LIVE}-shm"}
    assert count > 0
    with LiveStore(tmp_path / LIVE) as live:
        assert live.sequence == begun


def test_a_generation_whose_files_cannot_be_opened_now_is_not_said_to_be_damaged(newsroom: Path) -> None:
    directory = Store(newsroom).find()
    with files_left(0), pytest.raises(FailedPrecondition, match=r"^manifest\.json of .* \(Too many open files\)"):
        verify(directory)


def test_a_build_that_cannot_open_the_generation_before_does_not_begin_as_a_first_one(newsroom: Path) -> None:
    """All names of clusters would be new, and what readers follow would lead nowhere."""
    store, said = Store(newsroom), io.StringIO()
    for count in range(20):
        try:
            with files_left(count):
                previous = open_previous(store, Reporter(Console(file=said)))
            break
        except ColdframeError as refused:
            assert "Too many open files" in refused.message  # noqa: PT017  # whichever it is
    assert previous is not None
    assert (count > 0, said.getvalue()) == (True, "")

"""A process that may open no more files: it says so, and goes on once it may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coldframe.errors import ColdframeError, FailedPrecondition
from coldframe.live import LIVE, Delete, LiveStore
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

"""A process that gets no more files, threads or memory: it says so, and goes on once it gets them."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import pytest
import torch
import typer
from rich.console import Console

from coldframe import settings
from coldframe.errors import ColdframeError, FailedPrecondition
from coldframe.generation import verify
from coldframe.live import LIVE, Delete, LiveStore
from coldframe.store import Store
from indexer.plan import open_previous
from indexer.progress import Reporter
from tests.disks import files_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@pytest.fixture
def no_threads() -> Iterator[None]:
    before = threading.stack_size(1 << 47)  # for which no process has room
    yield
    threading.stack_size(before)


def begin_a_thread() -> None:
    threading.Thread(target=int).start()


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (lambda: bytearray(1 << 47), "memory"),
        (lambda: torch.empty(1 << 47, dtype=torch.uint8), "memory"),
        (begin_a_thread, "threads"),
    ],
)
def test_a_command_for_which_the_system_has_no_more_ends_with_a_sentence(
    needs: Callable[[], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def one() -> None:
        needs()

    with pytest.raises(SystemExit) as ended:
        settings.run(app, prog="x", prefix="X", args=[])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert (said in error, error.count("\n")) == (True, 1)

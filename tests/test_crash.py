"""Builds killed with SIGKILL, a few times: `python -m benchmarks.crash` does it hundreds of times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.crash import Crash, write_versions
from tests.builds import letters
from tests.corpus_files import write
from tests.models import longformer_directory

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 10


def test_a_build_killed_at_random_loses_nothing_and_computes_nothing_twice(tmp_path: Path) -> None:
    model = longformer_directory(tmp_path / "model", window=256, layers=4)
    corpus = write(tmp_path / "articles.csv", letters(110))
    versions = write_versions([str(corpus)], tmp_path, rows=80, versions=2)
    crash = Crash(tmp_path, str(model), versions, seed=0)
    crash.build_undisturbed()
    crash.kill_at_random(KILLS)
    outcome = crash.outcome
    assert outcome.faults == []
    assert outcome.random_kills == KILLS
    assert outcome.builds >= 2
    assert outcome.twice <= KILLS * outcome.largest_chunk

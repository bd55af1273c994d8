"""A server driven at random over gRPC against a plain model: `python -m benchmarks.state_machine` goes on longer."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.index_machine import IndexMachine
from tests.index_world import World, one_encoder, one_moment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe import Encoder
    from tests.conftest import Background

RUNS, STEPS = 8, 40


@pytest.fixture
def world(store_path: Path, tmp_path: Path, background: Background, encoder: Encoder) -> Iterator[World]:
    with one_encoder(), one_moment():
        world = World(shutil.copytree(store_path, tmp_path / "template"), background, encoder)
        world.make()
        yield world
        world.close()


def test_a_server_answers_as_the_model_does_whatever_happens_to_its_articles(world: World) -> None:
    class Machine(IndexMachine):
        pass

    Machine.world, Machine.steps = world, Counter()
    how = settings(
        max_examples=RUNS,
        stateful_step_count=STEPS,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # the shortest way is looked for by hand: swaps take their time
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=how)
    assert Machine.steps.total() >= RUNS * STEPS // 2

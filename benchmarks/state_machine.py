"""Drives a server over gRPC at random, for thousands of steps, and holds every answer against a plain model.

    python -m benchmarks.state_machine --steps 5000 --seed 1

The machine and the model are those of the tests (`tests.index_machine`, `tests.index_model`), which run them for a few
hundred steps. Ids, order, scores to 1e-5, parts of scores, clusters, stories, sizes and pages are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from rich.console import Console
from rich.table import Table

from coldframe import Encoder
from tests.conftest import Background
from tests.index_machine import IndexMachine
from tests.index_world import World, one_encoder, one_moment

_STEPS_PER_RUN = 50


def run(world: World, steps: int, number: int, *, shrink: bool) -> Counter[str]:
    """Runs the machine; raises the first difference that it finds. Returns how often each rule was checked."""

    class Machine(IndexMachine):
        pass

    Machine.world, Machine.steps = world, Counter()
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    how = settings(
        max_examples=max(steps // _STEPS_PER_RUN, 1),
        stateful_step_count=min(steps, _STEPS_PER_RUN),
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(Machine), settings=how)
    return Machine.steps


def main() -> None:
    """Prints how often each rule was checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shrink", action="store_true", help="look for the shortest way to a difference")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the texts are short
    background = Background()
    console = Console(highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="coldframe-machine-") as name, one_encoder(), one_moment():
            world = World(Path(name) / "template", background, Encoder.load("minilm", precision="fp32"))
            world.make()
            start = time.perf_counter()
            steps = run(world, args.steps, args.seed, shrink=args.shrink)
            seconds = time.perf_counter() - start
            world.close()
    finally:
        background.close()
    table = Table("rule", "checked", box=None)
    for rule, count in sorted(steps.items()):
        table.add_row(rule, f"{count:,}")
    console.print(table)
    console.print(f"{steps.total():,} steps in {seconds:,.0f} s, no difference (seed {args.seed})")


if __name__ == "__main__":
    main()

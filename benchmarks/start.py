"""From the start of a server to its first right answer, beside what loading the model alone takes; memory of workers.

    python -m benchmarks.start --folder DIR [--rows 500000] [--rounds 5]

A store of drawn vectors is served by `python -m server`. The clock runs from the start of its process to the answer to
a search by text that is the one the index should give; `model` is a process that loads the same encoder and embeds the
same text. Both have imported nothing before. Files are in the system's cache, as they are after the first start.

Then `--workers 2`: memory that each worker has for itself alone, and that another one would take, and
beside it a quarter of the vectors of the index. The exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.drawn import Drawn, serving, store_of
from coldframe import Client

if TYPE_CHECKING:
    from coldframe.generation import Generation

_TEXT = "the central bank is expected to cut its interest rate"
_ALONE = "from coldframe import Encoder; Encoder.load('minilm', {recipe!r}).embed([{text!r}])"
_MOST_START, _MOST_SHARE = 1.5, 0.25
_MIB = 2**20


def model_alone(recipe: str) -> float:
    """Seconds to load the encoder and embed a text, in a new process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", _ALONE.format(recipe=recipe, text=_TEXT)], check=True)
    return time.perf_counter() - begun


def first_answer(folder: Path, answer: list[str]) -> float:
    """Seconds from the start of a server to its first right answer."""
    begun = time.perf_counter()
    with serving(folder / "store", folder / "start.log") as address, Client(address, timeout=60) as client:
        found = [hit.article.id for hit in client.search(_TEXT, limit=10).hits]
        took = time.perf_counter() - begun
    if found != answer:
        sys.exit(f"the first answer is {found}, and should be {answer}")
    return took


def right_answer(folder: Path) -> list[str]:
    """What a server that has run for a while answers."""
    with serving(folder / "store", folder / "start.log") as address, Client(address, timeout=60) as client:
        for _ in range(3):
            found = [hit.article.id for hit in client.search(_TEXT, limit=10).hits]
    return found


def own_memory(folder: Path) -> list[float]:
    """MiB that each of two workers has for itself, after both have answered by text and by article."""
    with serving(folder / "store", folder / "start.log", "--workers", "2") as address:
        for _ in range(24):  # each a connection of its own, dealt out by the kernel
            with Client(address, timeout=60) as client:
                hits = client.search(_TEXT, limit=10).hits
                client.search(article_id=hits[0].article.id)
        asked = ["pgrep", "-f", f"server --store {folder / 'store'} "]
        (supervisor,) = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
        return sorted(map(_own, [worker for child in _children(supervisor) for worker in _children(child)]))


def _children(pid: str) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def _own(pid: str) -> float:
    """MiB that would be free without the process: what it shares with others does not count."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def tell(generation: Generation, alone: list[float], started: list[float], own: list[float]) -> bool:
    """Prints all, and whether the bars were kept."""
    index = generation.index
    ratio = statistics.median(started) / statistics.median(alone)
    print(f"{len(index):,} x {index.dim}, {index.storage}, {len(generation.clusters)} lists")
    print(f"the model alone {statistics.median(alone):.2f} s ({min(alone):.2f} to {max(alone):.2f})")
    print(f"to the first right answer {statistics.median(started):.2f} s ({min(started):.2f} to {max(started):.2f})")
    print(f"ratio of medians {ratio:.2f}x, allowed {_MOST_START}x")
    vectors = index.vectors.nbytes / _MIB
    print(f"a worker's own memory {own[0]:.0f} and {own[1]:.0f} MiB; lists {index.bytes / _MIB:,.0f} MiB, vectors")
    print(f"{vectors:,.0f} MiB: {max(own) / vectors:.1%} of the vectors, allowed {_MOST_SHARE:.0%}")
    return ratio <= _MOST_START and max(own) <= _MOST_SHARE * vectors


def main() -> None:
    """Run, and tell by the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    store, _ = store_of(Drawn(args.rows), args.folder)
    generation = store.open()
    answer, alone, started = right_answer(args.folder), [], []
    for _ in range(args.rounds):
        alone.append(model_alone(generation.manifest.model.recipe))
        started.append(first_answer(args.folder, answer))
    sys.exit(0 if tell(generation, alone, started, own_memory(args.folder)) else 1)


if __name__ == "__main__":
    main()

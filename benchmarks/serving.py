"""What Coldframe adds to a bare search over gRPC, and what another server costs, on the same cores in the same run.

    python -m benchmarks.serving --folder DIR --prepare [--milvus-python VENV/bin/python]
    python -m benchmarks.serving --folder DIR [--milvus-python VENV/bin/python]

100,000 drawn vectors of 768 numbers (`benchmarks.drawn`) in one IVF index, whose recall@10 is measured first. Servers
and callers, each in a process of its own, share the machine; targets take turns, so that a slow moment meets them all:

    bare        `benchmarks.bare`: faiss behind grpc, ids only, over IVF lists as faiss makes them unless told otherwise
                (fp32), the fastest of three ways to write it, by each measure
    bare codes  the same over the file that Coldframe serves, whose lists hold what its build chose (fp16), to tell what
                of a difference is the storage's; no bar is on it
    coldframe   `python -m server`, by vector, as it answers by default; and with ids alone
    milvus      milvus-lite, IVF_FLAT, the same number of lists and of lists visited, by pymilvus (a Python of its own)
    text        `python -m server`, by a seed text of 20 tokens, beside the encoder alone in this process

The exit status is 1 where a bar is missed. `--prepare` builds what the run needs and leaves it in the folder.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bare import WAYS
from benchmarks.callers import callers
from benchmarks.drawn import Drawn, announced, exact, queries_path, recall, serving, store_of
from coldframe.generation import INDEX
from coldframe.index import ClusterIndex, nearest_centroids

if TYPE_CHECKING:
    from benchmarks.callers import Callers, Target
    from coldframe.generation import Generation

_MILVUS = Path(__file__).with_name("milvus.py")
_LEVELS = (1, 2, 8, 32)
_BLOCK, _MILVUS_BLOCK = 25, 3
_ASKED = 500
_IDS = ["article.id"]
_CODES, _WAY = "bare codes", "inline"
# About 20 tokens; the number makes every text a new one.
_TEXT = "the central bank is expected to cut its interest rate for the {} time since spring"
_MOST_P50, _LEAST_PACE, _MOST_TEXT, _LEAST_RECALL = 1.4, 0.75, 1.5, 0.99
_MILVUS_P50, _MILVUS_PACE = 20, 40


@dataclass
class Measured:
    """Of one target: milliseconds of single calls, and by number of callers the calls per second and milliseconds."""

    waits: list[float] = field(default_factory=list)
    paces: dict[int, list[float]] = field(default_factory=dict)
    crowded: dict[int, list[float]] = field(default_factory=dict)

    @property
    def p50(self) -> float:
        """Median of single calls, in ms."""
        return statistics.median(self.waits)

    def pace(self, level: int) -> float:
        """Calls per second by so many callers, the median of the rounds."""
        return statistics.median(self.paces[level])


@dataclass
class Targets:
    """What takes turns. Milvus has callers of its own, which have pymilvus."""

    callers: Callers
    milvus_callers: Callers | None
    named: dict[str, Target]
    measured: dict[str, Measured] = field(default_factory=dict)

    def of(self, name: str) -> Callers:
        """Who calls a target."""
        if name != "milvus":
            return self.callers
        assert self.milvus_callers is not None
        return self.milvus_callers

    def greet(self) -> None:
        """Every caller connects to every target before the clock runs."""
        for name, target in self.named.items():
            self.measured[name] = Measured()
            self.of(name).greet(target)


def one_at_a_time(targets: Targets, rounds: int) -> None:
    """Fills in `waits`: a few calls of each target in turn."""
    for n in range(rounds):
        for name, target in targets.named.items():
            block = _MILVUS_BLOCK if name == "milvus" else _BLOCK
            targets.measured[name].waits += targets.of(name).latencies(target, block, n * block)


def many_at_a_time(targets: Targets, rounds: int, seconds: float) -> None:
    """Fills in `paces` and `crowded`."""
    for _ in range(rounds):
        for level in _LEVELS:
            for name, target in targets.named.items():
                pace, spent = targets.of(name).together(target, level, seconds)
                targets.measured[name].paces.setdefault(level, []).append(pace)
                targets.measured[name].crowded.setdefault(level, []).extend(spent)


def recalls(targets: Targets, generation: Generation, queries: Path) -> dict[str, float]:
    """recall@10 of every target against brute force."""
    true = exact(generation, np.load(queries)[:_ASKED], 10)
    found: dict[str, float] = {}
    for name in ("bare threads", "coldframe", "milvus"):
        if name in targets.named:
            # All articles of a story, as brute force finds them; by default a story is answered once.
            target = targets.named[name] | ({"stories": 0} if name == "coldframe" else {})
            answers = targets.of(name).answers(target, _ASKED)
            found[name] = recall([{int(one) for one in ids} for ids in answers], true)
    return found


def text_beside_encoder(address: str, texts: int) -> tuple[list[float], list[float], float]:
    """Milliseconds of seed texts over gRPC, of the encoder alone for the same ones, and their mean length in tokens."""
    from coldframe import Client, Encoder

    asked = [_TEXT.format(n) for n in range(100, 100 + texts)]
    with Client(address) as client:
        encoder = Encoder.load("minilm", precision=client.index().index.precision)  # type: ignore[arg-type]
        over_grpc, alone = [], []
        for text in asked[:_BLOCK]:
            client.search(f"{text} again")
            encoder.embed([f"{text} again"])
        for start in range(0, texts, _BLOCK):
            block = asked[start : start + _BLOCK]
            over_grpc += [_timed(lambda text=text: client.search(text, limit=10)) for text in block]
            alone += [_timed(lambda text=text: encoder.embed([text])) for text in block]
    return over_grpc, alone, statistics.mean(len(tokens.ids) for tokens in encoder.tokenize(asked))


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


# --- what is told ----------------------------------------------------------------------------------------------------


def tell(targets: Targets, found: dict[str, float]) -> bool:
    """Prints the tables, and whether the bars were kept."""
    print(f"\n{'one caller':20} {'p50 ms':>8} {'p99 ms':>8}")
    for name, of in targets.measured.items():
        print(f"{name:20} {of.p50:8.2f} {np.percentile(of.waits, 99):8.2f}")
    print(
        f"\n{'calls per second':20} " + " ".join(f"{level:>8}" for level in _LEVELS) + "   callers; p50 / p99 ms at 32"
    )
    for name, of in targets.measured.items():
        paces = " ".join(f"{of.pace(level):8,.1f}" for level in _LEVELS)
        p50, p99 = np.percentile(of.crowded[_LEVELS[-1]], [50, 99])
        print(f"{name:20} {paces}   {p50:.1f} / {p99:.1f}")
    print("\nrecall@10: " + ", ".join(f"{name} {share:.4f}" for name, share in found.items()))
    return all([_against_bare(targets), *_against_milvus(targets), *_enough(found)])


def _against_bare(targets: Targets) -> bool:
    bare = [targets.measured[f"bare {way}"] for way in WAYS]
    kept = []
    for name in ("coldframe", "coldframe ids"):
        of = targets.measured[name]
        ratio = of.p50 / min(way.p50 for way in bare)
        paces = {level: of.pace(level) / max(way.pace(level) for way in bare) for level in _LEVELS}
        said = ", ".join(f"{pace:.2f} ({level})" for level, pace in paces.items())
        codes = of.p50 / targets.measured[_CODES].p50
        print(f"{name} / {_CODES}: p50 {codes:.2f}x")
        print(f"{name} / the fastest bare: p50 {ratio:.2f}x; throughput {said}")
        kept += [_bar(f"{name}: p50 at most {_MOST_P50}x", ratio <= _MOST_P50)]
        kept += [_bar(f"{name}: throughput at least {_LEAST_PACE}x", min(paces.values()) >= _LEAST_PACE)]
    return all(kept[:2])  # the bars are on the default reply


def _against_milvus(targets: Targets) -> list[bool]:
    if "milvus" not in targets.measured:
        print("milvus-lite was not asked: give --milvus-python")
        return []
    ours, theirs = targets.measured["coldframe"], targets.measured["milvus"]
    times = theirs.p50 / ours.p50
    paces = {level: ours.pace(level) / theirs.pace(level) for level in _LEVELS}
    most = max(map(ours.pace, _LEVELS)) / max(map(theirs.pace, _LEVELS))
    print(
        f"milvus / coldframe: p50 {times:.1f}x; coldframe / milvus: the most that each answers {most:.1f}x, by callers "
        + ", ".join(f"{pace:.1f} ({level})" for level, pace in paces.items())
    )
    return [
        _bar(f"p50 of milvus-lite at least {_MILVUS_P50}x", times >= _MILVUS_P50),
        _bar(f"throughput at least {_MILVUS_PACE}x milvus-lite's", min(paces.values()) >= _MILVUS_PACE),
    ]


def _enough(found: dict[str, float]) -> list[bool]:
    return [_bar(f"recall@10 of {name} at least {_LEAST_RECALL}", found[name] >= _LEAST_RECALL) for name in found]


def _tell_text(over_grpc: list[float], alone: list[float], tokens: float) -> bool:
    ratio = statistics.median(over_grpc) / statistics.median(alone)
    print(f"\nseed text of {tokens:.0f} tokens, ms p50 / p99")
    for name, spent in (("over gRPC", over_grpc), ("the encoder alone", alone)):
        print(f"{name:20} {statistics.median(spent):8.2f} {np.percentile(spent, 99):8.2f}")
    print(f"ratio of medians {ratio:.2f}x")
    return _bar(f"text: p50 at most {_MOST_TEXT}x the encoder's own", ratio <= _MOST_TEXT)


def _bar(name: str, kept: bool) -> bool:
    print(f"    {'kept  ' if kept else 'MISSED'}  {name}")
    return kept


# --- the run ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Prepare, or measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--milvus-python", type=Path, help="a Python that has milvus-lite 3.2 and pymilvus")
    parser.add_argument("--prepare", action="store_true", help="build what the run needs, and end")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of many callers; eight times as many of one")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each target, each number of callers, each round")
    parser.add_argument("--workers", type=int, default=1, help="processes of Coldframe's server")
    parser.add_argument("--texts", type=int, default=200, help="seed texts; 0 leaves them out")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    store, _ = store_of(Drawn(args.rows, args.seed), args.folder)
    generation = store.open()
    flat(args.folder, generation)
    if args.prepare and args.milvus_python:
        subprocess.run(_milvus("load", args, generation), check=True)
    if not args.prepare:
        sys.exit(0 if run(args, generation) else 1)


def flat(folder: Path, generation: Generation) -> Path:
    """The same vectors in the same lists, as fp32."""
    path = folder / "flat.faiss"
    if not path.exists():
        vectors, centroids = np.array(generation.index.vectors), generation.index.centroids
        lists = nearest_centroids(centroids, vectors, 1)[0][:, 0]
        ClusterIndex.build(centroids, vectors, lists).write(path)
    return path


def _milvus(command: str, args: argparse.Namespace, generation: Generation) -> list[str]:
    base = generation.manifest
    vectors = args.folder / "store" / "generations" / base.name / "vectors.npy"
    lists = ["--vectors", str(vectors), "--lists", str(base.parameters.clusters)]
    return [str(args.milvus_python), str(_MILVUS), command, "--folder", str(args.folder / "milvus"), *lists]


def run(args: argparse.Namespace, generation: Generation) -> bool:
    """Measures everything; says whether all bars were kept."""
    probes, queries = generation.probes, queries_path(args.folder)
    print(f"{len(generation.index):,} x {generation.index.dim}, {len(generation.clusters)} lists, {probes} visited")
    store, kept = args.folder / "store", True
    with ExitStack() as stack:
        named: dict[str, Target] = {}
        own = store / "generations" / generation.name / INDEX
        for name, index, way in [
            *((f"bare {way}", flat(args.folder, generation), way) for way in WAYS),
            (_CODES, own, _WAY),
        ]:
            command = [sys.executable, "-m", "benchmarks.bare", "--index", str(index), "--probes", str(probes)]
            log = args.folder / f"{name.replace(' ', '-')}.log"
            named[name] = {"kind": "bare", "address": stack.enter_context(announced([*command, "--way", way], log))}
        ours = stack.enter_context(serving(store, args.folder / "server.log", "--workers", str(args.workers)))
        named["coldframe"] = {"kind": "coldframe", "address": ours}
        named["coldframe ids"] = named["coldframe"] | {"paths": _IDS}
        if args.texts:
            kept = _tell_text(*text_beside_encoder(ours, args.texts))
        theirs = None
        if args.milvus_python:
            command = _milvus("serve", args, generation)
            address = stack.enter_context(announced(command, args.folder / "milvus.log"))
            named["milvus"] = {"kind": "milvus", "address": address, "collection": "articles", "probes": probes}
            theirs = stack.enter_context(callers(max(_LEVELS), queries, args.milvus_python))
        targets = Targets(stack.enter_context(callers(max(_LEVELS), queries)), theirs, named)
        targets.greet()
        found = recalls(targets, generation, queries)
        one_at_a_time(targets, 8 * args.rounds)
        many_at_a_time(targets, args.rounds, args.seconds)
        return tell(targets, found) and kept


if __name__ == "__main__":
    main()

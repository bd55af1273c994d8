"""A server under more load than it can bear, with long articles among its texts, and told to stop in the middle of it.

    python -m benchmarks.load overload --folder DIR     ten times as many calls a second as it can answer
    python -m benchmarks.load long --folder DIR         one client who embeds articles of 4,096 tokens, again and again
    python -m benchmarks.load term --folder DIR         SIGTERM
    python -m benchmarks.load soak --folder DIR         reads, upserts, seed texts and swaps for `--minutes`

A real `python -m server` over a drawn store (`benchmarks.drawn`), and callers in processes of their own
(`benchmarks.crowd`) on the same machine. The exit status is 1 where a bar is missed.

Capacity is what the server answers to as many callers as its lines take, where 99 of 100 calls are answered: fewer and
fewer are tried. Overload comes by the clock: so many calls a second, whether or not others are answered. Each has ten
seconds of patience.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.crowd import Answers, Crowds, crowds
from benchmarks.drawn import Drawn, queries_path, store_of
from coldframe.generation import MANIFEST, Manifest
from coldframe.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE_S = 10.0
_MOST_TIMES = 2.0
_RECOVERY_S = 5.0
_GRACE_S = 10.0
_MOST_GROWTH = 1.1
_PROCESSES = 3
# By the server, and by gRPC before the server sees the call.
_REFUSED = ("RESOURCE_EXHAUSTED", "CANCELLED")


@dataclass
class Running:
    """A server, and those who press on it."""

    process: subprocess.Popen[str]
    address: str
    crowds: Crowds

    def press(self, kind: str, callers: int, seconds: float) -> Answers:
        """So many callers at a time, in as many processes as are useful."""
        processes = min(callers, 2)
        orders = [self.order(kind, seconds, callers=callers // processes) for _ in range(processes)]
        return together(self.crowds.press(*orders))

    def order(self, kind: str, seconds: float, **more: Any) -> dict[str, Any]:
        """For one process."""
        return {"address": self.address, "kind": kind, "seconds": seconds, "timeout": _PATIENCE_S, **more}

    @property
    def memory_mib(self) -> float:
        """What the server holds in memory at this moment."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @property
    def open_files(self) -> int:
        """Files and connections that the server has open."""
        return len([*Path(f"/proc/{self.process.pid}/fd").iterdir()])


def together(answers: list[Answers]) -> Answers:
    """What all of them saw."""
    whole = Answers()
    for one in answers:
        whole.join(one)
    return whole


@contextmanager
def running(store: Path, folder: Path, *options: str) -> Iterator[Running]:
    """A server over a store, and callers that are ready."""
    command = [sys.executable, "-m", "server", "--store", str(store), "--listen", "127.0.0.1:0"]
    log = folder / "load.log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        crowds(_PROCESSES, queries_path(folder)) as pressing,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                sys.exit(f"the server ended: {log.read_text(encoding='utf-8')[-2_000:]}")
            server = Running(process, line.removeprefix("listening on ").strip(), pressing)
            server.crowds.press(*[server.order("vector", 1.0, callers=1) for _ in range(_PROCESSES)])
            server.press("text", 2, 1.0)
            yield server
        finally:
            process.kill()


def bar(said: str, kept: bool) -> bool:
    """Prints whether a bar was kept."""
    print(f"    {'kept  ' if kept else 'MISSED'}  {said}", flush=True)
    return kept


def tell(name: str, answers: Answers) -> None:
    """Prints calls, pace and percentiles of each status."""
    for code in sorted(answers.took):
        count = len(answers.took[code])
        print(
            f"{name:28} {code:20} {count:7,} calls {count / answers.seconds:8,.1f}/s   "
            f"p50 {answers.p(50, code):8.1f}  p99 {answers.p(99, code):8.1f} ms",
            flush=True,
        )


# --- overload --------------------------------------------------------------------------------------------------------


def overload(folder: Path, kind: str, times: float, seconds: float, *, callers: int, unseen: int = 0) -> bool:
    """Presses with `times` the capacity. unseen: calls that may wait in gRPC's own line (docs/operations.md)."""
    with running(folder / "store", folder, "--max-unseen", str(unseen)) as server:
        callers, at_capacity = _at_capacity(server, kind, callers, min(seconds, 10.0))
        tell(f"{callers} callers", at_capacity)
        calm = server.press(kind, 1, min(seconds, 5.0))
        tell("1 caller", calm)
        pace = len(at_capacity.ok()) / at_capacity.seconds
        before = server.memory_mib
        waiting = server.crowds.begin(*[server.order(kind, seconds, rate=times * pace / 2) for _ in range(2)])
        memory = _watch_memory(server, seconds)
        pressed = together(server.crowds.wait(waiting))
        tell(f"{times:g} times capacity", pressed)
        print(f"offered {pressed.count / seconds:,.0f} calls a second of {times * pace:,.0f}")
        recovered = _recovery(server, kind, callers, pace)
        tail = max(memory[len(memory) // 2 :])
        early = memory[len(memory) // 4]
        print(f"memory: {before:.0f} MiB before, {early:.0f} after a quarter, {tail:.0f} at most after half")
        return _judge_overload(at_capacity, pressed, recovered, tail / early)


def _at_capacity(server: Running, kind: str, most: int, seconds: float) -> tuple[int, Answers]:
    """As many callers as next to nobody of is refused, for a moment and for longer, and what they saw."""
    callers = most
    while True:
        if _answered(server.press(kind, callers, 3.0)) or callers == 1:
            seen = server.press(kind, callers, seconds)
            if _answered(seen) or callers == 1:
                return callers, seen
        callers = max(1, callers * 7 // 8)


def _answered(seen: Answers) -> bool:
    return len(seen.ok()) >= 0.99 * seen.count


def _watch_memory(server: Running, seconds: float) -> list[float]:
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        found.append(server.memory_mib)
        time.sleep(seconds / 40)
    return found


def _recovery(server: Running, kind: str, callers: int, pace: float) -> float:
    """Seconds after the overload until as many calls are answered as before it, and next to none refused."""
    begun = time.monotonic()
    while time.monotonic() - begun < 60:
        again = server.press(kind, callers, 1.0)
        if _answered(again) and len(again.ok()) / again.seconds > 0.8 * pace:
            break
    took = time.monotonic() - begun
    tell("afterwards", again)
    return took


def _judge_overload(at_capacity: Answers, pressed: Answers, recovered: float, growth: float) -> bool:
    times = pressed.p(99) / at_capacity.p(99)
    refused = max((pressed.p(50, code) for code in _REFUSED if code in pressed.took), default=float("nan"))
    others = {code for code in pressed.took if code not in {"OK", "RESOURCE_EXHAUSTED"}}
    return all(
        [
            bar(f"admitted: p99 {times:.1f}x of that at capacity, at most {_MOST_TIMES:g}x", times <= _MOST_TIMES),
            bar(f"refusals: median {refused:.1f} ms, below that of admitted calls", refused < pressed.p(50)),
            bar(f"nothing but answers and refusals: {', '.join(sorted(others)) or 'so it is'}", not others),
            bar(
                f"memory flat: {growth:.2f}x of that after a quarter, at most {_MOST_GROWTH:g}x", growth <= _MOST_GROWTH
            ),
            bar(f"recovered within {recovered:.1f} s, at most {_RECOVERY_S:g}", recovered <= _RECOVERY_S),
        ]
    )


# --- long articles ---------------------------------------------------------------------------------------------------


def long(folder: Path, seconds: float, rounds: int, *, searchers: int = 1, neighbours: int = 0) -> bool:
    """Vector searches and seed texts alone, and beside articles of 4,096 tokens; in turn, so that all meet the same.

    searchers: callers of each kind, who never pause. neighbours: other processes that compute all the while.
    """
    seen: dict[str, tuple[Answers, Answers]] = {kind: (Answers(), Answers()) for kind in ("vector", "text")}
    articles = Answers()
    with running(folder / "store", folder) as server, busy(neighbours):
        for _ in range(rounds):
            for kind, (alone, beside) in seen.items():
                alone.join(server.press(kind, searchers, seconds))
                orders = server.order(kind, seconds, callers=searchers), server.order("article", seconds, callers=1)
                found, long_ones = server.crowds.press(*orders)
                beside.join(found)
                articles.join(long_ones)
    times = {}
    articles.seconds = 2 * rounds * seconds
    for kind, (alone, beside) in seen.items():
        alone.seconds = beside.seconds = rounds * seconds
        tell(f"{kind}, alone", alone)
        tell(f"{kind}, beside articles", beside)
        times[kind] = beside.p(99) / alone.p(99)
        print(f"the longest: {alone.p(100):.1f} ms alone, {beside.p(100):.1f} beside articles")
    tell("articles of 4,096 tokens", articles)
    print(f"p99 of seed texts {times['text']:.1f}x")
    said = f"p99 of vector searches {times['vector']:.1f}x, at most {_MOST_TIMES:g}x"
    return bar(said, times["vector"] <= _MOST_TIMES)


@contextmanager
def busy(neighbours: int) -> Iterator[None]:
    """Other processes of this machine that never rest, on whichever core there is."""
    with ExitStack() as stack:
        for _ in range(neighbours):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


# --- SIGTERM ---------------------------------------------------------------------------------------------------------


def term(folder: Path, seconds: float) -> bool:
    """Tells a server to stop while all kinds of callers press on it."""
    with running(folder / "store", folder, "--grace", f"{_GRACE_S:g}") as server:
        orders = [server.order(kind, seconds, callers=4) for kind in ("vector", "text", "article")]
        waiting = server.crowds.begin(*orders)
        time.sleep(0.3 + seconds / 2)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(_GRACE_S + 20)
        took = time.monotonic() - told
        found = server.crowds.wait(waiting)
    for order, answers in zip(orders, found, strict=True):
        tell(str(order["kind"]), answers)
    codes = {code for answers in found for code in answers.took}
    return all(
        [
            bar(f"exit status {status}, wanted 0", status == 0),
            bar(f"ended after {took:.1f} s, at most the grace of {_GRACE_S:g}", took <= _GRACE_S),
            bar(
                f"only answers, refusals and UNAVAILABLE, none broken off: {', '.join(sorted(codes))}",
                codes <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"},
            ),
        ]
    )


# --- soak ------------------------------------------------------------------------------------------------------------


def soak(folder: Path, minutes: float, every_s: float = 10.0) -> bool:
    """Mixed reads, upserts and swaps between two names of the same generation; memory and open files over time."""
    store = _two_generations(folder)
    names = sorted(path.name for path in (store.path / "generations").iterdir())
    samples: list[tuple[float, float, float]] = []
    whole = {kind: Answers() for kind in ("vector", "text", "upsert")}
    with running(store.path, folder) as server:
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < 60 * minutes:
            samples.append((now, server.memory_mib, server.open_files))
            store.activate(names[len(samples) % len(names)])
            orders = [server.order(kind, every_s, callers=n) for kind, n in (("vector", 2), ("text", 2), ("upsert", 1))]
            for kind, answers in zip(whole, server.crowds.press(*orders), strict=True):
                whole[kind].join(answers)
        spent = time.monotonic() - begun
    for kind, answers in whole.items():
        answers.seconds = spent
        tell(kind, answers)
    return _judge_soak(samples, whole)


def _two_generations(folder: Path) -> Store:
    """A copy of the store, its generation there twice under two names, each with a manifest that says its own: a server
    takes one that is named as what it serves for what it serves.
    """
    path = folder / "soak"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder / "store", path, copy_function=_linked)
    store = Store(path)
    name = str(store.current())
    twin = store.directory(name).with_name("twin")
    shutil.copytree(store.directory(name), twin, copy_function=_linked)
    of = Manifest.read(twin)
    (twin / MANIFEST).unlink()  # which is the other's file, too
    said = Manifest.seal(
        twin,
        model=of.model,
        corpus=of.corpus,
        parameters=of.parameters,
        report=of.report,
        source=of.source,
        precision=of.precision,
        requested=of.requested,
        after=[name],
    )
    twin.rename(twin.with_name(said.name))
    return store


def _linked(source: str, target: str) -> str:
    """Files of generations are never written again, and may be shared; others are copied."""
    if "generations" in Path(source).parts:
        Path(target).hardlink_to(source)
        return target
    return str(shutil.copy2(source, target))


def _judge_soak(samples: list[tuple[float, float, float]], whole: dict[str, Answers]) -> bool:
    table = np.array(samples)[len(samples) // 4 :]  # (samples, 3); the first quarter is warming up
    hours = table[:, 0] / 3600
    slopes = [float(np.polyfit(hours, table[:, column], 1)[0]) for column in (1, 2)]
    first, last = samples[0], samples[-1]
    print(f"memory {first[1]:.0f} to {last[1]:.0f} MiB, open files {first[2]:.0f} to {last[2]:.0f}")
    print(f"slopes after the first quarter: {slopes[0]:+.1f} MiB and {slopes[1]:+.1f} files an hour")
    growth = table[-len(table) // 3 :, 1].mean() / table[: max(len(table) // 3, 1), 1].mean()
    files = table[-len(table) // 3 :, 2].mean() - table[: max(len(table) // 3, 1), 2].mean()
    failed = {code for answers in whole.values() for code in answers.took} - {"OK"}
    return all(
        [
            bar(f"memory: last third {growth:.3f}x of the first, at most 1.05x", growth <= 1.05),
            bar(f"open files: {files:+.1f} on average, at most 3 more", files <= 3),
            bar(f"no call failed: {', '.join(sorted(failed)) or 'so it is'}", not failed),
        ]
    )


def main() -> None:
    """Prepare the store where there is none, and run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["overload", "long", "term", "soak"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--seconds", type=float, default=None, help="60 of overload, 5 of each round of long, 6 of term"
    )
    parser.add_argument("--kind", choices=["vector", "text"], default="vector", help="of overload")
    parser.add_argument("--times", type=float, default=10.0, help="of overload")
    parser.add_argument("--callers", type=int, default=64, help="at capacity, at most")
    parser.add_argument("--unseen", type=int, default=0, help="of overload: the server's --max-unseen; 0: its own")
    parser.add_argument("--rounds", type=int, default=3, help="of long")
    parser.add_argument("--searchers", type=int, default=1, help="of long: callers of each kind beside the articles")
    parser.add_argument("--neighbours", type=int, default=0, help="of long: other processes that compute")
    parser.add_argument("--minutes", type=float, default=30.0, help="of soak")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    store_of(Drawn(args.rows), args.folder)
    parts: dict[str, Callable[[], bool]] = {
        "overload": lambda: overload(
            args.folder, args.kind, args.times, args.seconds or 60.0, callers=args.callers, unseen=args.unseen
        ),
        "long": lambda: long(
            args.folder, args.seconds or 5.0, args.rounds, searchers=args.searchers, neighbours=args.neighbours
        ),
        "term": lambda: term(args.folder, args.seconds or 6.0),
        "soak": lambda: soak(args.folder, args.minutes),
    }
    sys.exit(0 if parts[args.part]() else 1)


if __name__ == "__main__":
    main()

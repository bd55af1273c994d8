"""Kills a server with SIGKILL while clients change its articles, and looks at what is left.

    python -m benchmarks.live_crash --kills 500

Several clients put, replace and remove articles, in calls and in streams, each on ids of its own and on ids that
all of them change. The server is killed at a random moment and started again. Then every article must be in exactly one
cluster's list, searches must find what the lists hold, and every id must be what an acknowledged change made of it, or
one that was not acknowledged and is whole. Some kills come while the server starts, while it exchanges generations, and
while a rebuild publishes; in some of these the rebuild is killed too.

The server is `python -m server` over the real SQLite file, forked from a process that has imported everything, so that
it starts in a fraction of a second. SIGKILL shows that what was acknowledged had left the process; that it had reached
the disk, only a machine that loses power can show.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.crash import ANYTHING, small_model
from benchmarks.live_clients import Clients, Ledger, letters
from benchmarks.live_look import Look
from coldframe.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

_PRELOADED = (
    "server.app",
    "server.engine",
    "server.__main__",
    "coldframe.longformer",
    "coldframe.models",
    "indexer.build",
    "indexer.report.page",
)
_PATIENCE = 20_000  # naps: a machine that stops all its work for a while must not look like a fault
_KILLS_PER_STORE = 20
ROUND = (
    *("traffic",) * 3,
    "swap",
    *("traffic",) * 3,
    "start",
    "swap",
    *("traffic",) * 2,
    "publication",
    *("traffic",) * 2,
    "swap",
    "start",
    "swap",
    *("traffic",) * 2,
    "publication, both",
)
"""What the server is killed in, kill by kill, again and again."""


# --- the children ----------------------------------------------------------------------------------------------------


def serve(store: Path, log: Path) -> None:
    """`python -m server`, in a process of its own; what it says goes to the log."""
    import torch

    from server.__main__ import run
    from server.config import Config

    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)  # the model is tiny
    run(Config(store=store, listen="127.0.0.1:0", precision="fp32", device="cpu"))


def rebuild(store: Path, corpus: Path, model: str) -> None:
    """A build over a corpus, live articles folded in, published whatever it is like."""
    import torch

    from indexer.build import BuildConfig, run
    from indexer.corpus import CorpusConfig
    from indexer.progress import Reporter
    from tests.builds import undrawn

    torch.set_num_threads(1)
    with undrawn(), open(os.devnull, "w", encoding="utf-8") as nowhere:
        about = CorpusConfig([str(corpus)])
        config = BuildConfig(corpus=about, store=store, model=model, precision="fp32", limits=ANYTHING)
        run(config, Reporter(Console(file=nowhere)))


@cache
def _processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    return context


# --- the benchmark ---------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What was seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By what the server was killed in."""
    swaps: int = 0
    """Looks that met another generation than the one before."""
    acknowledged: int = 0
    open: int = 0
    """Changes that were sent and not acknowledged."""
    open_taken: int = 0
    """Those of them that were there after the kill."""
    refused: int = 0
    articles_looked_at: int = 0
    faults: list[str] = field(default_factory=list)


class LiveCrash:
    """A benchmark under way, in a folder; every so many kills it begins a new store."""

    def __init__(self, folder: Path, model: str, seed: int, *, clients: int = 4) -> None:
        self.folder, self.model, self.clients = folder, model, clients
        self.random = np.random.default_rng(seed)
        self.outcome = Outcome()
        self.corpora = [self._corpus("A", range(40)), self._corpus("B", range(15, 60))]
        self.template = folder / "template"
        for corpus in self.corpora:
            self._build(self.template, corpus).join()
        assert len(Store(self.template).names()) == len(self.corpora), "the template is not built"

    def _corpus(self, name: str, numbers: range) -> Path:
        path = self.folder / f"{name}.csv"
        rows = [f"{n:03},title {letters(n, 2)},{letters(n, 30)}" for n in numbers]
        path.write_text("\n".join(["id,title,content", *rows, f"corpus-{name},which,corpus {name}"]) + "\n")
        return path

    def _build(self, store: Path, corpus: Path) -> BaseProcess:
        process = _processes().Process(target=rebuild, args=(store, corpus, self.model))
        process.start()
        return process

    def run(self, modes: Sequence[str], tell: Callable[[Outcome], None] = lambda _outcome: None) -> Outcome:
        """Kills once for each mode, and tells what was seen so far after each store."""
        for first in range(0, len(modes), _KILLS_PER_STORE):
            store = self.folder / f"store-{first}"
            shutil.copytree(self.template, store)
            life = Life(self, store, Ledger(int(self.random.integers(2**31))))
            for mode in modes[first : first + _KILLS_PER_STORE]:
                life.kill(mode)
            life.end()
            shutil.rmtree(store)
            tell(self.outcome)
        return self.outcome


class Life:
    """One store, and the servers over it, one after the other."""

    def __init__(self, crash: LiveCrash, store: Path, ledger: Ledger) -> None:
        self.crash, self.store, self.ledger = crash, Store(store), ledger
        self.log = store.with_suffix(".log")
        self.generation = ""

    def start(self) -> BaseProcess:
        """A server that was just begun."""
        self.log.write_bytes(b"")
        server = _processes().Process(target=serve, args=(self.store.path, self.log))
        server.start()
        return server

    def address(self, server: BaseProcess) -> str:
        """Where it listens, once it does."""
        naps = 0
        while not (found := self.log.read_text().rpartition("listening on ")[2].partition("\n")[0:2])[1]:
            assert server.is_alive(), f"the server does not start: {self.log.read_text()}"
            assert (naps := naps + 1) < _PATIENCE, "the server does not come to listen"
            time.sleep(0.005)
        return found[0].strip()

    def kill(self, mode: str) -> None:
        """Starts a server, looks, lets the clients work, and kills it in the middle of that."""
        server = self.start()
        if mode == "start":
            time.sleep(self.crash.random.uniform(0, 0.5))
            self._kill(server, mode)
            return
        address = self.address(server)
        self.look(address)
        clients = Clients(address, self.ledger, self.crash.clients)
        builder = self._disturb(mode)
        self._kill(server, mode)
        if builder is not None:
            if mode == "publication, both":
                builder.kill()
            builder.join()
        clients.join()
        self.crash.outcome.faults.extend(clients.faults)
        self.crash.outcome.refused += clients.refused

    def _disturb(self, mode: str) -> BaseProcess | None:
        """What goes on beside the clients until the moment of the kill; a rebuild that is under way."""
        random = self.crash.random
        if mode == "traffic":
            time.sleep(random.uniform(0.02, 0.5))
            return None
        if mode == "swap":
            others = [name for name in self.store.names() if name != self.store.current()]
            time.sleep(random.uniform(0, 0.1))
            self.store.activate(others[int(random.integers(len(others)))])
            time.sleep(random.uniform(0, 1.3))  # a server looks once a second
            return None
        builder = self.crash._build(self.store.path, self.crash.corpora[int(random.integers(2))])
        before, publishing = self.store.names(), self.store.path / "PUBLISHING"
        naps = 0
        while builder.is_alive() and not publishing.exists() and self.store.names() == before:
            assert (naps := naps + 1) < 5 * _PATIENCE, "a rebuild does not come to publish"
            time.sleep(0.001)
        time.sleep(random.choice([random.uniform(0, 0.02), random.uniform(0, 1.3)]))
        return builder

    def _kill(self, server: BaseProcess, mode: str) -> None:
        if not server.is_alive():
            self.crash.outcome.faults.append(f"{mode}: the server ended by itself: {self.log.read_text()[-2_000:]}")
        server.kill()
        server.join()
        self.crash.outcome.kills[mode] += 1

    def look(self, address: str) -> None:
        """Holds what the server has against what was sent to the ones before it."""
        outcome = self.crash.outcome
        with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            found = Look(channel)
            outcome.faults.extend(found.faults)
            outcome.faults.extend(self.ledger.settle(found.shown, found.corpus))
        acknowledged, left_open, taken = self.ledger.forget(found.shown)
        outcome.acknowledged += acknowledged
        outcome.open += left_open
        outcome.open_taken += taken
        outcome.articles_looked_at += len(found.shown)
        outcome.swaps += found.generation != self.generation
        self.generation = found.generation
        if "Traceback" in self.log.read_text():
            outcome.faults.append(f"the server says: {self.log.read_text()[-2_000:]}")

    def end(self) -> None:
        """A last look after the last kill."""
        server = self.start()
        self.look(self.address(server))
        server.kill()
        server.join()


def show(outcome: Outcome, seconds: float) -> None:
    """Prints what was seen."""
    table = Table("killed in", "kills", box=None)
    for mode, count in sorted(outcome.kills.items()):
        table.add_row(mode, str(count))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{outcome.kills.total()} kills in {seconds:,.0f} s; {outcome.swaps} looks met another generation")
    console.print(
        f"{outcome.acknowledged:,} changes were acknowledged; {outcome.open:,} were not, and {outcome.open_taken:,} of "
        f"those were seen; {outcome.refused} refused; {outcome.articles_looked_at:,} articles looked at"
    )
    for fault in outcome.faults[:50]:
        console.print(f"FAULT: {fault}", style="red", markup=False)
    console.print("no fault" if not outcome.faults else f"{len(outcome.faults)} faults")


def _progress(outcome: Outcome, seconds: float) -> None:
    last = f"; the last one: {outcome.faults[-1]}" if outcome.faults else ""
    print(f"{outcome.kills.total()} kills, {len(outcome.faults)} faults, {seconds:,.0f} s{last}", flush=True)


def main() -> None:
    """Kills as often as asked, and exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    modes = [ROUND[n % len(ROUND)] for n in range(args.kills)]
    with tempfile.TemporaryDirectory(prefix="coldframe-live-crash-") as name:
        crash = LiveCrash(Path(name), str(small_model(Path(name) / "model")), args.seed, clients=args.clients)
        start = time.perf_counter()
        outcome = crash.run(modes, lambda so_far: _progress(so_far, time.perf_counter() - start))
    show(outcome, time.perf_counter() - start)
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()

"""`make demo`: index the sample corpus, serve it, ask four questions, stop.

Each step is the command that a person would type; it is printed before its answer.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe.errors import ColdframeError
from coldframe.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

CORPUS = Path("examples/news/articles.csv")
UNSEEN = Path("examples/news/unseen.txt")
STORE = Path("build/demo-store")
SEED = "My street floods every winter. What are towns doing about the water?"
COLDFRAME = str(Path(sys.executable).with_name("coldframe"))


def main() -> None:
    """Run the demonstration."""
    build()
    with serving() as address:
        at = ["--server", address]
        title("A reader's words: which clusters and which articles are near?")
        run([COLDFRAME, "nearest", SEED, "--limit", "3", *at])
        run([COLDFRAME, "search", SEED, "--limit", "4", *at])
        title("An article of the corpus: what is like it?")
        run([COLDFRAME, "search", "--id", "1001", "--limit", "4", *at])
        title(f"An article the index has never seen ({UNSEEN}): where does it belong?")
        run([COLDFRAME, "search", "--article", str(UNSEEN), "--limit", "4", *at])
        title("All clusters, with the words that tell them apart")
        run([COLDFRAME, "clusters", *at])
    print("\nThe server is stopped. The index lies in", STORE)


def build() -> None:
    """Build the sample index, unless a sound one lies there from last time."""
    store = Store(STORE)
    with contextlib.suppress(ColdframeError):
        if store.open().manifest.created_at.timestamp() > CORPUS.stat().st_mtime:
            print(f"{STORE} holds the sample index already; remove it to build it again.")
            return
    title("Building an index of the 91 sample articles")
    run([sys.executable, "-m", "indexer", "build", "--corpus", str(CORPUS), "--store", str(STORE)])


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Start the server on a free port of this machine; give its address; stop it at the end."""
    command = [sys.executable, "-m", "server", "--store", str(STORE), "--listen", "127.0.0.1:0"]
    show(command)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline().strip()
            if not line:
                sys.exit("the server did not start; run the command above to see why")
            print(line)
            yield line.rpartition(" ")[2]
        finally:
            server.terminate()
            server.stdout.read()


def title(text: str) -> None:
    """Print a headline."""
    print(f"\n== {text}", flush=True)


def run(command: list[str]) -> None:
    """Show a command, run it, and stop the demonstration if it fails."""
    show(command)
    finished = subprocess.run(command, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def show(command: list[str]) -> None:
    """Print a command as one would type it."""
    program = Path(command[0])
    words = ["coldframe" if program.name == "coldframe" else "python", *command[1:]]
    print(f"\n$ {shlex.join(words)}", flush=True)


if __name__ == "__main__":
    main()

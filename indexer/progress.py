"""What a person, or a log, sees of a build while it runs, and what each phase took of time and memory."""

from __future__ import annotations

import resource
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from coldframe.encoder import give_back_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console
    from rich.progress import Task

Row = TypeVar("Row")
_LOG_EVERY_S = 15.0


class Reporter:
    """Prints phases as they pass: a bar on a terminal, a line now and then in a log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        """Wall time by phase, in the order in which they ran."""
        self.peak_memory_mib: dict[str, float] = {}
        """The most memory that the process held during each phase, files that it had mapped included."""
        self._heard = 0.0
        """When something was last to be seen of the build."""

    def note(self, text: str) -> None:
        """Says something beside the phases."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """Measures a phase. The block may call what it is given to say what came of it."""
        start = time.perf_counter()
        outcome: list[str] = []
        give_back_memory()  # or it would count among this phase's
        forget_peak_memory()
        with self._going_on(name):
            yield outcome.append
        self.seconds[name] = time.perf_counter() - start
        self.peak_memory_mib[name] = peak_memory_mib()
        line = Text(f"{name:<9}", style="bold")
        line.append(f"{self.seconds[name]:8.1f} s  ", style="dim")
        self.console.print(line.append("; ".join(outcome), style="not bold"), soft_wrap=True)

    @contextmanager
    def _going_on(self, name: str) -> Iterator[None]:
        """Says of a phase that nothing is seen of that it goes on; after each time it is silent for twice as long."""
        begun = self._heard = time.perf_counter()
        done = threading.Event()

        def tell() -> None:
            silence = _LOG_EVERY_S
            while not done.wait(max(self._heard + silence - time.perf_counter(), 0.01)):
                if (now := time.perf_counter()) - self._heard >= silence:
                    self.console.print(f"{name}: {now - begun:,.0f} s so far", highlight=False)
                    self._heard, silence = now, 2 * silence

        thread = threading.Thread(target=tell, name="going on", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def reading(self, rows: Iterable[Row], share: Callable[[Row], float | None]) -> Iterator[Row]:
        """The same rows; says now and then how many have passed, and which share of the corpus the last one ends."""
        said = time.perf_counter()
        for count, row in enumerate(rows, 1):
            yield row
            if (now := time.perf_counter()) - said < _LOG_EVERY_S:
                continue
            said, known = now, share(row)
            self._heard = now
            part = "" if known is None else f", {known:.0%} of the corpus"
            self.console.print(f"reading: {count:,} rows{part}", highlight=False)

    @contextmanager
    def embedding(self, articles: int, chars: int) -> Iterator[Callable[[int, int, int], None]]:
        """Shows articles, tokens/s and time left. The block reports articles, tokens and characters as they pass.

        Time left goes by characters: texts come sorted by length, and the last article costs far more than the first.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[articles]:,}/{task.fields[of]:,} articles"),
            _TokensPerSecond(),
            TimeRemainingColumn(compact=True),
        )
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not terminal, expand=True) as progress:
            task = progress.add_task("embedding", total=chars, articles=0, of=articles, tokens=0)
            log = _Log(self.console, articles, chars)
            done = [0, 0]

            def advance(more_articles: int, more_tokens: int, more_chars: int) -> None:
                done[0] += more_articles
                done[1] += more_tokens
                self._heard = time.perf_counter()
                progress.update(task, advance=more_chars, articles=done[0], tokens=done[1])
                if not terminal:
                    log.advance(done[0], done[1], more_chars)

            yield advance


class _TokensPerSecond(ProgressColumn):
    """The mean rate since the first batch."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        rate = task.fields["tokens"] / elapsed if elapsed else 0.0
        return Text(f"{rate:,.0f} tokens/s")


class _Log:
    """The same progress for a file: one line every so many seconds, and one at the end."""

    def __init__(self, console: Console, articles: int, chars: int) -> None:
        self._console, self._articles, self._chars = console, articles, chars
        self._start = time.perf_counter()
        self._done_chars = 0
        self._before: tuple[float, int] | None = None
        """When the last line was written, and how many characters were done by then."""

    def advance(self, articles: int, tokens: int, chars: int) -> None:
        self._done_chars += chars
        now = time.perf_counter()
        # Time left goes by the pace since then: until the first texts are done most is compiling, which is done once.
        at, done = self._before = self._before or (now, self._done_chars)
        if now - at < _LOG_EVERY_S and self._done_chars < self._chars:
            return
        self._before = now, self._done_chars
        elapsed = now - self._start
        left = (now - at) * (self._chars - self._done_chars) / max(self._done_chars - done, 1)
        self._console.print(
            f"embedding {articles:,}/{self._articles:,} articles, {tokens / elapsed:,.0f} tokens/s, {left:,.0f} s left",
            highlight=False,
        )


def forget_peak_memory() -> None:
    """Lets `peak_memory_mib` count from here, where the system allows it (Linux: proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mib() -> float:
    """The most resident memory of this process since `forget_peak_memory`, or since it began."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

"""Many callers at once: processes of `benchmarks.caller`, held ready, of which the first few are told to call."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    Target = dict[str, Any]

_FILE = Path(__file__).with_name("caller.py")
_HEAD_START_S = 0.2


class Callers:
    """Callers that wait for orders."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def __len__(self) -> int:
        return len(self._processes)

    def latencies(self, target: Target, calls: int, first: int = 0) -> list[float]:
        """Milliseconds of each of some calls by one caller alone."""
        ms: list[float] = self._ask(0, {"target": target, "calls": calls, "first": first})["ms"]
        return ms

    def answers(self, target: Target, calls: int) -> list[list[Any]]:
        """The ids that each of the first questions finds."""
        found: list[list[Any]] = self._ask(0, {"target": target, "calls": calls, "answers": True})["found"]
        return found

    def greet(self, target: Target) -> None:
        """Lets every caller connect, and call once."""
        for caller in range(len(self)):
            self._send(caller, {"target": target, "calls": 1})
        for caller in range(len(self)):
            self._receive(caller)

    def together(self, target: Target, callers: int, seconds: float) -> tuple[float, list[float]]:
        """Calls per second of so many callers at once, and the milliseconds of each call."""
        order = {"target": target, "seconds": seconds, "at": time.time() + _HEAD_START_S}
        for caller in range(callers):
            self._send(caller, order | {"first": 31 * caller})
        answers = [self._receive(caller) for caller in range(callers)]
        # Each by its own clock: a last call may end after others have stopped.
        pace = sum(len(answer["ms"]) / answer["seconds"] for answer in answers)
        return pace, [ms for answer in answers for ms in answer["ms"]]

    def _ask(self, caller: int, order: dict[str, Any]) -> dict[str, Any]:
        self._send(caller, order)
        return self._receive(caller)

    def _send(self, caller: int, order: dict[str, Any]) -> None:
        pipe = self._processes[caller].stdin
        assert pipe is not None
        pipe.write(json.dumps(order) + "\n")
        pipe.flush()

    def _receive(self, caller: int) -> dict[str, Any]:
        pipe = self._processes[caller].stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            sys.exit(f"a caller ended with status {self._processes[caller].wait()}; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def callers(count: int, queries: Path, python: Path | None = None) -> Iterator[Callers]:
    """Starts callers, of another Python where one is given, and ends them."""
    command = [str(python), str(_FILE)] if python else [sys.executable, "-m", "benchmarks.caller"]
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            processes.append(_start([*command, str(queries)]))
        started = Callers(processes)
        for number in range(count):
            started._receive(number)
        yield started
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

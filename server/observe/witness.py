"""What is noted of every call, on its way: for metrics, for the log of slow calls, and for traces.

It runs on the event loop, a few microseconds a call: plain numbers, looked up once for each method.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

from server.tally import STAGES, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.admission import Call
    from server.observe.traces import Tracer

_slow = logging.getLogger("coldframe.slow")
REQUEST_ID = "x-request-id"
_TAKEN = re.compile(r"[ -~]{1,128}")  # gRPC reads more and sends none of it back: the call would end as INTERNAL


class MethodTally:
    """Of one method, "/package.Service/Method"."""

    __slots__ = ("codes", "items", "name", "seconds", "stages")

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = Histogram()
        self.codes: dict[str, int] = {}
        """Calls by status."""
        self.items: dict[str, int] = {}
        """Replies of streams by the status that stands in each."""
        self.stages = tuple(Histogram() for _ in STAGES)

    def staged(self, timing: Any) -> None:
        """Counts a reply's parts; what a call did not do, it has no part of."""
        parts = timing.tokenize_ms, timing.queue_ms, timing.embed_ms, timing.search_ms, timing.rank_ms
        for histogram, ms in zip(self.stages, parts, strict=True):
            if ms:
                histogram.observe(1e-3 * ms)


class Witness:
    """slow_ms: calls and replies of streams that take longer are logged; None: none. tracer: None traces nothing."""

    def __init__(self, slow_ms: float | None = None, tracer: Tracer | None = None) -> None:
        self._slow_ms, self.tracer = slow_ms, tracer
        self.methods: dict[str, MethodTally] = {}
        self._beginning = os.urandom(4).hex()
        self._numbers = itertools.count(1)

    def of(self, name: str) -> MethodTally:
        """The tally of a method."""
        tally = self.methods.get(name)
        if tally is None:
            tally = self.methods[name] = MethodTally(name)
        return tally

    def request_id(self, metadata: Iterable[tuple[str, Any]]) -> str:
        """The caller's own name for a call, if it has one that can be sent back; else one that no other call has."""
        for key, value in metadata:
            if key == REQUEST_ID and isinstance(value, str) and _TAKEN.fullmatch(value):
                return value
        return f"{self._beginning}-{next(self._numbers):x}"

    def ended(self, call: Call) -> None:
        """Counts a call that is over, whatever became of it."""
        tally = self.of(call.method)
        tally.codes[call.outcome] = tally.codes.get(call.outcome, 0) + 1
        seconds = time.monotonic() - call.began
        tally.seconds.observe(seconds)
        if call.outcome == "OK" or call.pool.endswith("stream"):  # which lasts as long as its caller likes
            return
        if self._slow_ms is not None and 1e3 * seconds > self._slow_ms:
            _tell_slow_end(call, 1e3 * seconds)

    def replied(self, tally: MethodTally, reply: Any, call: Call) -> None:
        """Notes where the time of an answered call went."""
        self._answered(tally, reply.timing, call)
        if call.spans is not None and self.tracer is not None:
            self.tracer.finish(tally.name, reply.timing, call)

    def streamed(self, tally: MethodTally, reply: Any, call: Call) -> None:
        """Counts a reply of a stream, and notes where its time went."""
        failed = reply.HasField("error")
        code = reply.error.code if failed else "OK"
        tally.items[code] = tally.items.get(code, 0) + 1
        if not failed:
            timing = getattr(reply, "response", reply).timing
            self._answered(tally, timing, call)
            if self.tracer is not None:
                self.tracer.replied(tally.name, timing, call)

    def _answered(self, tally: MethodTally, timing: Any, call: Call) -> None:
        tally.staged(timing)
        if self._slow_ms is not None and timing.total_ms > self._slow_ms:
            _tell_slow(tally.name, timing, call.request_id)


def _tell_slow(method: str, timing: Any, request_id: str) -> None:
    """A line for a call that took long, with its parts in milliseconds; the rest is waiting for threads and gRPC."""
    parts = {f"{stage}_ms": round(getattr(timing, f"{stage}_ms"), 1) for stage in (*STAGES, "total")}
    told = ", ".join(f"{name.removesuffix('_ms')} {ms:g}" for name, ms in parts.items())
    _slow.warning("slow: %s, ms: %s", method, told, extra={"method": method, **parts, "request_id": request_id})


def _tell_slow_end(call: Call, ms: float) -> None:
    """A line for a call that took long and was not answered: of its parts nobody knows."""
    fields = {"method": call.method, "code": call.outcome, "total_ms": round(ms, 1)}
    beside = {**fields, "request_id": call.request_id}
    _slow.warning("slow: %s ended with %s, ms: total %g", *fields.values(), extra=beside)

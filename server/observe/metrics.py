"""What Prometheus is told, made when it asks: nothing here runs while a call is answered.

Every process has metrics of its own. With `--workers N` worker k answers on the port of `--metrics` plus k, and
Prometheus, which tells them apart by port, adds up: `sum without (instance) (...)`. That needs no files shared between
processes, as prometheus-client's multiprocess mode does, and no gauge that would have to say whose it is.
"""

from __future__ import annotations

import threading
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from server.observe import logs
from server.observe.drift import Drifts
from server.tally import STAGES
from server.writer import MAX_WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Metric

    from server.admission import Counts
    from server.engine import Engine
    from server.observe.witness import MethodTally, Witness
    from server.security.guard import Guard
    from server.serving import Served
    from server.tally import Histogram

_OURS = "coldframe.v1."
"""Of our methods only service and name are told. Of others all: reflection has the same ones in two versions."""


class ServerCollector(Collector):
    """Reads what a server counted."""

    def __init__(self, engine: Engine, witness: Witness, pulse: Pulse, guard: Guard) -> None:
        self._engine, self._witness, self._pulse, self._guard = engine, witness, pulse, guard
        self._drifts = Drifts()

    def collect(self) -> Iterator[Metric]:
        """All families; those of the index only where there is one."""
        methods = [self._witness.methods[name] for name in sorted(self._witness.methods)]
        yield from _calls(methods)
        yield from self._lines()
        yield from self._process()
        yield from _open_calls(self._guard)
        served = self._engine.served() if self._engine.ready else None
        yield from self._files(served)
        yield _gauge("coldframe_ready", "1 where there is an index to answer from.", float(served is not None))
        if served is not None:
            yield from _batches(served)
            yield from self._index(served)

    def _lines(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("coldframe_queue_depth", "Works that wait or run, by line.", labels=["queue"])
        limit = GaugeMetricFamily(
            "coldframe_queue_limit", "Where a line refuses: searches, tokens, changes.", labels=["queue"]
        )
        tokens = GaugeMetricFamily("coldframe_queue_tokens", "Tokens of the texts that wait.", labels=["queue"])
        counts: dict[str, Counts] = {"search": self._engine.searches.counts, "write": self._engine.writer.counts}
        depth.add_metric(["search"], self._engine.searches.waiting)
        limit.add_metric(["search"], self._engine.searches.most)
        depth.add_metric(["write"], self._engine.writer.waiting + self._engine.writer.writing)
        limit.add_metric(["write"], MAX_WAITING)
        if self._engine.ready:
            for line in self._engine.served().queue.lines:
                depth.add_metric([line.name], line.texts + line.running)
                limit.add_metric([line.name], line.room)
                tokens.add_metric([line.name], line.tokens)
                counts[line.name] = line.counts
        failed = CounterMetricFamily("coldframe_failed_writes", "Changes to articles that the store did not keep.")
        failed.add_metric([], self._engine.writer.failed)
        yield from (depth, limit, tokens, failed)
        yield from _given_up(counts)

    def _index(self, served: Served) -> Iterator[Metric]:
        view, manifest = served.view, served.generation.manifest
        found = self._drifts.of(view)
        created = manifest.created_at.timestamp()
        yield _gauge("coldframe_generation_created_timestamp_seconds", "When the generation was built.", created)
        yield _gauge("coldframe_generation_age_seconds", "Since then.", time.time() - created)
        info = GaugeMetricFamily("coldframe_generation_info", "1, with what is served.", labels=["generation", "model"])
        info.add_metric([manifest.name, manifest.model.name], 1)
        yield info
        yield _gauge("coldframe_articles", "Articles that can be found.", len(view))
        yield _gauge("coldframe_live_articles", "Of them those that came since the build.", found.live)
        yield _gauge("coldframe_replaced_articles", "Articles of the build that are hidden.", len(view.replaced))
        yield _gauge("coldframe_live_sequence", "Number of the last change that is shown.", view.sequence)
        yield _gauge("coldframe_changed_ratio", "Articles that came, went or were replaced, of all.", found.changed)
        yield _gauge("coldframe_drift_ratio", "Outliers of their clusters among live articles.", found.outliers)
        yield _gauge("coldframe_built_outliers_ratio", "The same among the build's own.", found.built)
        yield _gauge("coldframe_rebuild_advised", "1 where it is time for a new build.", float(found.rebuild_advised))

    def _files(self, served: Served | None) -> Iterator[Metric]:
        refused = GaugeMetricFamily(
            "coldframe_file_refused",
            "1 where a file changed and cannot be used, and what was before goes on.",
            labels=["file"],
        )
        found = self._guard.refused()
        if served is not None:  # else there is none of before
            found["generation"] = self._engine.exchange.refused
        for name, value in found.items():
            refused.add_metric([name], float(value))
        yield refused
        if self._guard.tls is not None:
            ends = self._guard.tls.certificate.expires_at.timestamp()
            yield _gauge("coldframe_certificate_expires_timestamp_seconds", "When the certificate in use ends.", ends)

    def _process(self) -> Iterator[Metric]:
        lost = CounterMetricFamily("coldframe_log_lines_lost", "Lines of the log that are left out: nobody takes them.")
        lost.add_metric([], logs.lost())
        yield lost
        yield _gauge("coldframe_threads", "Threads of the process, torch's and gRPC's among them.", _threads())
        yield _gauge("coldframe_loop_lag_seconds", "How late the event loop is.", self._pulse.lag_s)


BEAT_S = 1.0


class Pulse:
    """Whether the event loop still turns: it notes the time again and again."""

    def __init__(self) -> None:
        self.beat = time.monotonic()
        self._late_s = 0.0

    def note(self, late_s: float) -> None:
        """Is called by the loop every `BEAT_S`, and told how late it comes."""
        self.beat, self._late_s = time.monotonic(), late_s

    @property
    def lag_s(self) -> float:
        """How late the last beat was, or the next one is by now: a loop that hangs notes nothing."""
        return max(self._late_s, self.silent_s - BEAT_S)

    @property
    def silent_s(self) -> float:
        """Since the last beat."""
        return time.monotonic() - self.beat


def registry(collector: ServerCollector) -> CollectorRegistry:
    """Everything that is told: the server's own, and what prometheus-client knows of the process."""
    made = CollectorRegistry()
    made.register(collector)
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


def _calls(methods: Sequence[MethodTally]) -> Iterator[Metric]:
    requests = CounterMetricFamily("coldframe_requests", "Calls that ended, by status.", labels=["method", "code"])
    items = CounterMetricFamily("coldframe_stream_replies", "Replies of streams.", labels=["method", "code"])
    seconds = HistogramMetricFamily("coldframe_request_seconds", "From a call to its end.", labels=["method"])
    stages = HistogramMetricFamily("coldframe_stage_seconds", "Parts of it.", labels=["method", "stage"])
    for tally in methods:
        name = tally.name.removeprefix("/").removeprefix(_OURS)
        for code, count in sorted(tally.codes.items()):
            requests.add_metric([name, code], count)
        for code, count in sorted(tally.items.items()):
            items.add_metric([name, code], count)
        _add(seconds, [name], tally.seconds)
        for stage, histogram in zip(STAGES, tally.stages, strict=True):
            if any(histogram.counts):
                _add(stages, [name, stage], histogram)
    yield from (requests, items, seconds, stages)


def _open_calls(guard: Guard) -> Iterator[Metric]:
    calls = GaugeMetricFamily("coldframe_open_calls", "Calls that are open; streams are calls, too.", labels=["pool"])
    limit = GaugeMetricFamily("coldframe_open_calls_limit", "Where one more is refused.", labels=["pool"])
    for pool, (count, most) in guard.gate.pools.items():
        calls.add_metric([pool], count)
        limit.add_metric([pool], most)
    yield from (calls, limit)


def _given_up(counts: dict[str, Counts]) -> Iterator[Metric]:
    refused = CounterMetricFamily("coldframe_refused", "Works that a full line refused.", labels=["queue"])
    dropped = CounterMetricFamily(
        "coldframe_dropped",
        "Works that were let in and not done: too late, or nobody waited.",
        labels=["queue", "reason"],
    )
    for queue, of in counts.items():
        refused.add_metric([queue], of.refused)
        for reason, count in of.dropped.items():
            dropped.add_metric([queue, reason], count)
    yield from (refused, dropped)


def _batches(served: Served) -> Iterator[Metric]:
    batches = served.queue.batches
    tokens = HistogramMetricFamily("coldframe_batch_tokens", "Tokens that were embedded together.", labels=[])
    _add(tokens, [], batches.tokens)
    yield tokens
    texts = CounterMetricFamily("coldframe_embedded_texts", "Texts that were embedded.")
    texts.add_metric([], batches.texts)
    overtaken = CounterMetricFamily("coldframe_overtaking_batches", "Quick batches in the middle of a long one.")
    overtaken.add_metric([], batches.overtaken)
    yield from (texts, overtaken)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    bounds = (*map(str, histogram.bounds), "+Inf")
    family.add_metric(labels, [*zip(bounds, accumulate(histogram.counts), strict=True)], histogram.total)


def _gauge(name: str, said: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, said, value=value)


def _threads() -> int:
    tasks = Path("/proc/self/task")
    return len([*tasks.iterdir()]) if tasks.is_dir() else threading.active_count()

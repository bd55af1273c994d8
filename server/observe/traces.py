"""OpenTelemetry: a span for each answered call, and below it tokenize, queue, embed, search and rank, as they were.

Spans are made once the call has its answer, from the times that were noted on its way, so that nothing of OpenTelemetry
runs while it is worked on. Parts of a batch overlap, and a stream has a span for each of its replies. The extra
`telemetry` brings it; where spans go is for OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and the like),
and which are kept for its sampler.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from coldframe.errors import InvalidArgument
from server.tally import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.admission import Call

_WORK = "search"
_LAST_SPANS_S = 2.0


class Tracer:
    """Makes spans by an OpenTelemetry provider."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("coldframe.server")
        self._kind = SpanKind.SERVER
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, call: Call, metadata: Iterable[tuple[str, Any]], *, stream: bool) -> None:
        """Remembers whose part a call is, and lets it note its times; a stream, which may never end, notes none."""
        call.traced_from = time.perf_counter()
        call.spans = None if stream else []
        call.parent = {key: value for key, value in metadata if key in {"traceparent", "tracestate"}}

    def finish(self, method: str, timing: Any, call: Call) -> None:
        """Makes the spans of a call that was answered."""
        self._tell(method, call, call.traced_from, _parts(timing, call))

    def replied(self, method: str, timing: Any, call: Call) -> None:
        """Makes the spans of a reply of a stream. How long its parts took is known, and their order; so they follow
        each other from its beginning on.
        """
        began = start = time.perf_counter() - 1e-3 * timing.total_ms
        parts = []
        for stage in STAGES:
            if spent := 1e-3 * getattr(timing, f"{stage}_ms"):
                parts.append((stage, start, start + spent))
                start += spent
        self._tell(method, call, began, parts)

    def _tell(self, method: str, call: Call, began: float, parts: Iterable[tuple[str, float, float]]) -> None:
        from opentelemetry.trace import set_span_in_context

        # Anew for each call, for clocks are set while a server runs; once, or its parts would not fit together.
        epoch_ns = time.time_ns() - time.perf_counter_ns()

        def ns(moment: float) -> int:
            return epoch_ns + int(1e9 * moment)

        parent = self._propagator.extract(call.parent) if call.parent else None
        span = self._tracer.start_span(
            method.removeprefix("/"),
            context=parent,
            kind=self._kind,
            start_time=ns(began),
            attributes={"rpc.system": "grpc", "coldframe.request_id": call.request_id},
        )
        inside = set_span_in_context(span)
        for name, start, end in parts:
            part = self._tracer.start_span(name, context=inside, start_time=ns(start))
            part.end(end_time=ns(end))
        span.end(end_time=ns(time.perf_counter()))

    def close(self) -> None:
        """Sends what was not sent yet, and gives it up where nobody takes it."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_S)


def _parts(timing: Any, call: Call) -> list[tuple[str, float, float]]:
    """What was noted on the way; of the last work of a search thread the end is ranking."""
    spans = list(call.spans or ())
    works = [n for n, span in enumerate(spans) if span[0] == _WORK]
    if works and timing.rank_ms:
        name, start, end = spans[works[-1]]
        ranking = max(start, end - 1e-3 * timing.rank_ms)
        spans[works[-1]] = name, start, ranking
        spans.append(("rank", ranking, end))
    return spans


def require_telemetry() -> None:
    """Raises InvalidArgument where the extra is not installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401 - whether it is there
    except ImportError as error:
        raise InvalidArgument(
            "--traces needs OpenTelemetry; install it, in a checkout of Coldframe: pip install '.[server,telemetry]'",
            field="traces",
        ) from error


def tracer() -> Tracer:
    """Sends spans by OTLP over HTTP. Raises InvalidArgument where the extra is not installed."""
    require_telemetry()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()  # of OTEL_SERVICE_NAME and its like, which a name given here would undo
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "coldframe"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)

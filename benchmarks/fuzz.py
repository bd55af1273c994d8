"""Sends what nobody should send to every method, and looks at what comes back.

    python -m benchmarks.fuzz --requests 100000 [--seed 0] [--first N] [--case N]

Requests are drawn by `benchmarks.hostile` for a real server over a small store of drawn vectors. Never may the server
end, hang, answer INTERNAL, UNKNOWN or UNIMPLEMENTED, or refuse a request without naming a field that the request has.
From time to time, and in the end, an exact search must give what numpy finds in the articles that no request changes.

A case is known by seed and number: `--case N` sends one again, and a run that was broken off goes on with `--first`
where it said that it stood. What fails is made smaller as long as it fails the same way, and printed at once.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from google.protobuf import message_factory, text_format
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

from benchmarks.drawn import Drawn, serving, store_of
from benchmarks.hostile import STRINGS, Hostile, World
from coldframe.client import MAX_MESSAGE_BYTES
from coldframe.v1 import (
    article_service_pb2,
    cluster_service_pb2,
    embedding_service_pb2,
    index_service_pb2,
    search_service_pb2,
    types_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from google.protobuf.descriptor import MethodDescriptor

    from coldframe.generation import Generation

_MODULES = (article_service_pb2, cluster_service_pb2, embedding_service_pb2, index_service_pb2, search_service_pb2)
METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for module in _MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
_ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
_TIMEOUT_S = 60
_ROWS, _NAMED = 4_000, 64
_CHECK_EVERY = 5_000
_SMALLER_STEPS = 300
_WRITES = {"UpsertArticles", "StreamUpsertArticles", "DeleteArticles"}


@dataclass(frozen=True)
class Case:
    """One call: the bytes of its request, or those of a stream's requests."""

    number: int
    method: MethodDescriptor
    payloads: tuple[bytes, ...]

    def text(self) -> str:
        """The requests as protobuf writes them for people, or their bytes."""
        return "\n".join(_text(self.method, raw) for raw in self.payloads)


def draw(number: int, world: World, seed: int) -> Case:
    """The case of that number: every method has its turn."""
    method = METHODS[number % len(METHODS)]
    hostile = Hostile(world, f"{seed}/{number}")
    count = 1 + number // len(METHODS) % 4 if method.client_streaming else 1
    return Case(number, method, tuple(hostile.payload(_message(method.input_type)) for _ in range(count)))


def changes(case: Case) -> set[str]:
    """Ids of the articles that a case may put or remove: damage can make an id of one into that of another."""
    found: set[str] = set()
    if case.method.name in _WRITES:
        for raw in case.payloads:
            message = _message(case.method.input_type)
            with contextlib.suppress(DecodeError, UnicodeDecodeError):
                message.ParseFromString(raw)
                inside = getattr(message, "request", message)
                found.update(getattr(inside, "ids", ()), (one.id for one in getattr(inside, "articles", ())))
    return found


def _message(kind: Any) -> Any:
    return message_factory.GetMessageClass(kind)()


def _text(method: MethodDescriptor, raw: bytes) -> str:
    message = _message(method.input_type)
    try:
        message.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError):
        return f"bytes.fromhex('{raw[:400].hex()}')  # {len(raw):,} bytes"
    return text_format.MessageToString(message, as_one_line=True)[:4_000]


# --- what came back --------------------------------------------------------------------------------------------------


@dataclass
class Fuzz:
    """Calls a server, and judges."""

    channel: grpc.Channel
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, address: str) -> Fuzz:
        """A fuzz of a server that listens."""
        names = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
        options = [(name, 2 * MAX_MESSAGE_BYTES) for name in names]  # it is the server that shall refuse
        return cls(grpc.insecure_channel(address, [*options, ("grpc.enable_http_proxy", 0)]))

    def _count(self, method: MethodDescriptor, code: str) -> None:
        with self._lock:
            self.codes[method.name, code] += 1

    def fault(self, case: Case) -> str | None:
        """What is wrong with the answer to a case; None where nothing is."""
        method = case.method
        path = f"/{method.containing_service.full_name}/{method.name}"
        read = message_factory.GetMessageClass(method.output_type).FromString
        try:
            if method.client_streaming:
                stream: Any = self.channel.stream_stream(path, response_deserializer=read)
                replies = list(stream(iter(case.payloads), timeout=_TIMEOUT_S))
            else:
                unary: Any = self.channel.unary_unary(path, response_deserializer=read)
                replies = [unary(*case.payloads, timeout=_TIMEOUT_S)]
        except grpc.RpcError as error:
            return self._refused(case, error)
        self._count(method, "OK")
        errors = [error for reply in replies for error in _item_errors(reply)]
        faults = [self._item_fault(case, error) for error in errors]
        if method.client_streaming and len(replies) != len(case.payloads):
            faults.append(f"{len(replies)} answers to {len(case.payloads)} requests")
        return next((fault for fault in faults if fault), None)

    def _refused(self, case: Case, error: Any) -> str | None:
        code = error.code().name
        self._count(case.method, code)
        if code not in _ALLOWED:
            return f"{code}: {error.details()}"
        if code != "INVALID_ARGUMENT":
            return None
        status = rpc_status.from_call(error)
        request = error_details_pb2.BadRequest()
        if status is None or not any(detail.Unpack(request) for detail in status.details):
            return f"a refusal without BadRequest: {error.details()}"
        fields = [violation.field for violation in request.field_violations]
        wrong = [name for name in fields if not is_path(name, case.method.input_type)]
        return f"a refusal that names {wrong or 'no field'}: {error.details()}" if wrong or not fields else None

    def _item_fault(self, case: Case, error: types_pb2.ItemError) -> str | None:
        self._count(case.method, f"item {error.code}")
        if error.code not in _ALLOWED:
            return f"an item's {error.code}: {error.message}"
        if error.code == "INVALID_ARGUMENT" and not is_path(error.field, case.method.input_type):
            return f"an item's refusal that names {error.field!r}: {error.message}"
        return None


def _kind(fault: str) -> str:
    """The same for faults that only differ in numbers and names."""
    return re.sub(r"ticket|\w*\d\w*|'[^']*'", "", fault)[:60]


def _item_errors(reply: Message) -> Iterator[types_pb2.ItemError]:
    for found in reply.ListFields():
        value = found[1]
        if isinstance(value, types_pb2.ItemError):
            yield value
        elif isinstance(value, Message):
            yield from _item_errors(value)
        elif found[0].message_type is not None and found[0].is_repeated and not _is_map(found[0]):
            for one in value:
                yield from _item_errors(one)


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def is_path(name: str, kind: Any) -> bool:
    """Whether a request has such a field: "seeds[2].seed.text", or "request" for one that could not be read at all.

    An error of one of many items may name a field of the item alone.
    """
    if name == "request":
        return True
    inner = [f.message_type for f in kind.fields if f.name in {"request", "requests"} and f.message_type is not None]
    return any(_leads_somewhere(name, one) for one in (kind, *inner))


def _leads_somewhere(name: str, kind: Any) -> bool:
    parts = re.sub(r"\[[^\]]*\]", "", name).split(".")
    for part in parts:
        found = kind.fields_by_name.get(part) if kind is not None else None
        if found is None:
            return False
        kind = found.message_type
    return True


# --- smaller and smaller ---------------------------------------------------------------------------------------------


def smaller(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case found that fails, too: as long as something can be left out, it is."""
    left = _SMALLER_STEPS
    while left > 0:
        found = None
        for candidate in _reduced(case):
            left -= 1
            if fails(candidate):
                found = candidate
                break
            if left <= 0:
                break
        if found is None:
            break
        case = found
    return case


def _reduced(case: Case) -> Iterator[Case]:
    """Cases with something less."""
    if len(case.payloads) > 1:
        for n in range(len(case.payloads)):
            yield Case(case.number, case.method, (*case.payloads[:n], *case.payloads[n + 1 :]))
    for n, raw in enumerate(case.payloads):
        for less in _less(case.method, raw):
            yield Case(case.number, case.method, (*case.payloads[:n], less, *case.payloads[n + 1 :]))


def _less(method: MethodDescriptor, raw: bytes) -> Iterator[bytes]:
    message = _message(method.input_type)
    try:
        message.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError):
        yield from (raw[: len(raw) // 2], raw[len(raw) // 2 :]) if len(raw) > 1 else ()
        return
    for place in range(_places(message)):
        copy = _message(method.input_type)
        copy.CopyFrom(message)
        _drop(copy, place)
        yield copy.SerializeToString()


def _places(message: Message) -> int:
    """How many things of a message could be dropped."""
    return sum(1 for _ in _droppable(message))


def _droppable(message: Message) -> Iterator[tuple[Message, Any, slice | None]]:
    """(message, field, which of its values; None for all): whole fields, and halves of what is repeated."""
    for found, value in message.ListFields():
        yield message, found, None
        if found.is_repeated and not _is_map(found) and len(value) > 1:
            yield message, found, slice(0, len(value) // 2)
            yield message, found, slice(len(value) // 2, None)
        inside = value if found.is_repeated else [value]
        if found.message_type is not None and not _is_map(found):
            for one in inside[:20]:
                yield from _droppable(one)


def _drop(message: Message, place: int) -> None:
    owner, found, some = next(one for n, one in enumerate(_droppable(message)) if n == place)
    if some is None:
        owner.ClearField(found.name)
    else:
        del getattr(owner, found.name)[some]


# --- the server still answers right ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Untouched:
    """The articles that no request means: an exact search must find them as numpy does, but those that were changed."""

    generation: Generation
    ids: Sequence[str]
    vectors: np.ndarray[Any, np.dtype[np.float32]]

    def fault(self, fuzz: Fuzz, seed: int, changed: AbstractSet[str]) -> str | None:
        """What is wrong with one search; None where nothing is."""
        query = np.random.default_rng(seed).standard_normal(self.vectors.shape[1]).astype(np.float32)
        query /= np.linalg.norm(query)
        request = search_service_pb2.SearchRequest(limit=1_000, effort=types_pb2.EFFORT_EXACT)
        request.seed.vector.packed = query.tobytes()
        request.ranking.max_per_story = 0
        call: Any = fuzz.channel.unary_unary(
            "/coldframe.v1.SearchService/Search", response_deserializer=search_service_pb2.SearchResponse.FromString
        )
        kept = [n for n, one in enumerate(self.ids) if one not in changed]
        known, ids = {self.ids[n] for n in kept}, [self.ids[n] for n in kept]
        hits = [hit for hit in call(request.SerializeToString(), timeout=_TIMEOUT_S).hits if hit.article.id in known]
        # Row by row, rounded: of equal vectors a matrix product may make unequal scores, and another order.
        scores = (self.vectors[kept].astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
        order = np.lexsort((np.arange(len(scores)), -scores))[: len(hits)]
        if not hits or [hit.article.id for hit in hits] != [ids[n] for n in order]:
            return "an exact search finds other articles than numpy"
        far = np.abs(np.array([hit.score for hit in hits]) - scores[order]).max()
        return f"a score is {far:.1e} off" if far > 1e-5 else None


def world_of(generation: Generation, named: int = _NAMED) -> tuple[World, Untouched]:
    """What may be asked about, and what is left alone: all but the first articles."""
    articles = generation.articles
    ids = [articles.id_of(row) for row in range(len(articles))]
    attributes: dict[str, list[str]] = {}
    for row in range(0, len(articles), max(1, len(articles) // 32)):
        for key, value in articles[row].attributes.items():
            attributes.setdefault(key, []).append(value)
    fields = [f"article.{name}" for name in types_pb2.ArticleSummary.DESCRIPTOR.fields_by_name]
    world = World(
        dim=generation.index.dim,
        ids=ids[:named],
        clusters=[cluster.id for cluster in generation.clusters],
        attributes=dict(attributes),
        paths=["article", "score", "explanation", *fields],
        generations=[generation.name],
    )
    left = [row for row in range(named, len(ids)) if ids[row] not in STRINGS]  # hostile texts may be ids as well
    return world, Untouched(generation, [ids[row] for row in left], np.asarray(generation.index.vectors[left]))


# --- the run ---------------------------------------------------------------------------------------------------------


def run(fuzz: Fuzz, world: World, untouched: Untouched, numbers: Sequence[int], seed: int) -> list[str]:
    """Sends the cases, a few at a time, and gives the faults, one of each kind, made small."""
    faults: dict[str, str] = {}
    changed: set[str] = set()

    def attempt(number: int) -> None:
        case = draw(number, world, seed)
        changed.update(changes(case))
        fault = fuzz.fault(case)
        if fault is not None and faults.setdefault(key := f"{case.method.name} {_kind(fault)}", fault) is fault:
            kind = _kind(fault)
            small = smaller(case, lambda one: (found := fuzz.fault(one)) is not None and _kind(found) == kind)
            faults[key] = f"case {number}, {case.method.name}: {fault}\n    {small.text()}"
            print(faults[key], file=sys.stderr, flush=True)

    for start in range(0, len(numbers), _CHECK_EVERY):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(attempt, numbers[start : start + _CHECK_EVERY]))
        wrong = untouched.fault(fuzz, start, changed)
        last = numbers[start : start + _CHECK_EVERY][-1]
        if wrong is not None:
            faults[wrong] = f"after case {last}: {wrong}"
        print(f"up to case {last:,}: {len(faults)} faults", file=sys.stderr, flush=True)
    return list(faults.values())


def main() -> None:
    """Fuzz, tell, and exit with 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first request")
    parser.add_argument("--case", type=int, help="send this one alone")
    parser.add_argument("--folder", type=Path, help="where the store is kept; else a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        store, _ = store_of(Drawn(_ROWS, args.seed), folder)
        (store.path / "live.db").unlink(missing_ok=True)  # of the last run
        log = folder / "server.log"
        world, untouched = world_of(store.open())
        numbers = range(args.first, args.first + args.requests) if args.case is None else [args.case]
        with serving(store.path, log) as address:
            fuzz = Fuzz.of(address)
            faults = run(fuzz, world, untouched, numbers, args.seed)
        said = log.read_text(encoding="utf-8")
    if "Traceback" in said:
        faults.append("the server's log has a traceback:\n" + said[said.index("Traceback") :][:3_000])
    _tell(fuzz, faults)
    sys.exit(1 if faults else 0)


def _tell(fuzz: Fuzz, faults: Sequence[str]) -> None:
    for method in METHODS:
        codes = {code: n for (name, code), n in sorted(fuzz.codes.items()) if name == method.name}
        print(f"{method.name:22} " + ", ".join(f"{code} {n:,}" for code, n in codes.items()))
    print("\n\n".join(faults) or "no fault")


if __name__ == "__main__":
    main()

"""Hostile requests, some of every method: `python -m benchmarks.fuzz` sends a hundred thousand of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.drawn import serving
from benchmarks.fuzz import METHODS, Case, Fuzz, draw, is_path, run, smaller, world_of
from coldframe.store import Store
from coldframe.v1.search_service_pb2 import BatchSearchRequest, RecommendRequest, SearchRequest
from coldframe.v1.types_pb2 import Seed

if TYPE_CHECKING:
    from pathlib import Path

EACH = 60


def test_a_server_bears_what_nobody_should_send(own_store: Path, tmp_path: Path) -> None:
    world, untouched = world_of(Store(own_store).open(), named=20)
    log = tmp_path / "server.log"
    with serving(own_store, log, "--precision", "fp32") as address:
        fuzz = Fuzz.of(address)
        assert run(fuzz, world, untouched, range(EACH * len(METHODS)), seed=1) == []
    assert "Traceback" not in log.read_text(encoding="utf-8")
    answered = {method for method, code in fuzz.codes if code == "OK"}
    refused = {method for method, code in fuzz.codes if "INVALID_ARGUMENT" in code}
    assert answered == {method.name for method in METHODS}, "what is always refused tests one check"
    assert refused == answered


def test_a_case_is_the_same_again(own_store: Path) -> None:
    world, _ = world_of(Store(own_store).open(), named=20)
    cases = [draw(number, world, seed=3) for number in range(64)]
    assert cases == [draw(number, world, seed=3) for number in range(64)]
    assert len({case.payloads for case in cases}) > 50


def test_what_fails_is_made_as_small_as_it_can_be() -> None:
    """Of a request that fails by the word "storm", all else is dropped."""
    search = next(method for method in METHODS if method.name == "BatchSearch")
    rest = [SearchRequest(seed=Seed(text="rain"), limit=3) for _ in range(5)]
    request = BatchSearchRequest(requests=[*rest, SearchRequest(seed=Seed(text="storm"), limit=2)])
    case = Case(0, search, (request.SerializeToString(),))
    small = smaller(case, lambda one: any(b"storm" in raw for raw in one.payloads))
    left = BatchSearchRequest.FromString(small.payloads[0])
    assert list(left.requests) == [SearchRequest(seed=Seed(text="storm"))]


def test_a_path_is_a_field_of_the_request() -> None:
    kind = RecommendRequest.DESCRIPTOR
    assert is_path("seeds[63].seed.vector.packed", kind)
    assert is_path("ranking.filter.all_of.filters[0].attribute.in.values", kind)
    assert is_path("seed.text", BatchSearchRequest.DESCRIPTOR), "of an item"
    assert not any(is_path(name, kind) for name in ("", "seed", "ranking.", "seeds[0].limit", "RANKING"))

"""Whatever the gate refuses, and every line of the audit log, has the id of its request."""

from __future__ import annotations

import json
import logging
import re
import shutil
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from coldframe.v1.article_service_pb2 import DeleteArticlesRequest
from server.admission import SearchLine
from tests.guarded import guarded
from tests.newsroom import piece
from tests.test_security import endless
from tests.test_server_process import dial
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Background
    from tests.guarded import Guarded

DELETE = "/coldframe.v1.ArticleService/DeleteArticles"
INDEX = "/coldframe.v1.IndexService/GetIndex"
SEARCH = "/coldframe.v1.SearchService/Search"
MADE = r"[0-9a-f]{8}-[0-9a-f]+"


@pytest.fixture(scope="module")
def server(background: Background, newsroom: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("named")
    store = shutil.copytree(newsroom, folder / "store")
    with guarded(background, store, folder / "secrets", receive_s=0.5, requests_per_second=0.01, burst=2) as running:
        yield running


def refused(server: Guarded, method: str, key: str, name: str | None, requests: Any = None) -> tuple[str, str]:
    """The status of a call and the id that its answer has."""
    metadata = [("authorization", f"Bearer {key}"), *([("x-request-id", name)] if name else [])]
    with dial(server.target) as channel:
        call: Any = channel.stream_unary(method)
        with pytest.raises(grpc.RpcError) as raised:
            call(iter([b""]) if requests is None else requests, metadata=metadata, timeout=60)
    error: Any = raised.value
    [told] = [value for key, value in error.trailing_metadata() if key == "x-request-id"]
    return error.code().name, told


def documents(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [record for record in caplog.records if record.name == "coldframe.audit"]
    found = [json.loads(record.getMessage()) for record in records]
    assert [document["request_id"] for document in found] == [record.__dict__["request_id"] for record in records]
    return found


def test_a_call_that_finds_the_line_full_is_told_its_id_and_a_stranger_does_not_count_as_one(
    server: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SearchLine, "full", True)
    counts = server.engine.searches.counts
    before = counts.refused
    assert refused(server, SEARCH, "cfk_no", None)[0] == "UNAUTHENTICATED"
    assert counts.refused == before
    assert refused(server, SEARCH, server.key(), "mine-2") == ("RESOURCE_EXHAUSTED", "mine-2")
    assert counts.refused == before + 1


@pytest.mark.parametrize("name", ["mine-1", None])
def test_what_the_gate_refuses_says_the_id_of_its_request(server: Guarded, name: str | None) -> None:
    quick = server.key()
    with server.client(quick) as client:
        client.index()
        client.index()
    told = [
        refused(server, INDEX, "cfk_no", name),
        refused(server, DELETE, server.key(), name),
        refused(server, INDEX, quick, name),
        refused(server, INDEX, server.key(), name, endless()),
        refused(server, INDEX, server.key(), name, iter([])),
    ]
    assert [status for status, _ in told] == [
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "INVALID_ARGUMENT",
    ]
    assert all(re.fullmatch(name or MADE, id_) for _, id_ in told), told
    assert name or len({id_ for _, id_ in told}) == len(told)


def test_every_line_of_the_audit_log_has_the_id_that_the_caller_was_told(
    server: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="coldframe.audit")
    _, denied = refused(server, DELETE, server.key(), None)
    with dial(server.target) as channel:
        call: Any = channel.unary_unary(DELETE, DeleteArticlesRequest.SerializeToString)
        request, key = DeleteArticlesRequest(ids=["n1"], validate_only=True), server.key("write")
        _, done = call.with_call(request, metadata=[("authorization", f"Bearer {key}")])
        answered = dict(done.trailing_metadata())["x-request-id"]
    wait_until(lambda: len(documents(caplog)) == 2)
    assert [document["request_id"] for document in documents(caplog)] == [denied, answered]
    with server.client(server.key("write")) as client:
        [*client.stream_upsert([piece("n4")])]
    wait_until(lambda: len(documents(caplog)) == 4)
    begun, ended = [document["request_id"] for document in documents(caplog)[2:]]
    assert begun == ended
    assert re.fullmatch(MADE, begun)


def test_the_line_about_strangers_has_the_id_of_the_one_it_names(
    server: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    server.guard.gate._strangers._told_at = 0.0
    assert refused(server, INDEX, "cfk_no", "stranger-1") == ("UNAUTHENTICATED", "stranger-1")
    [record] = [record for record in caplog.records if "no good key" in record.getMessage()]
    assert record.__dict__["request_id"] == "stranger-1"

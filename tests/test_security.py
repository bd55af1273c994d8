"""Keys, roles, rates, what is audited: who may ask a real server for what."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from coldframe.client import MAX_MESSAGE_BYTES
from coldframe.errors import (
    ColdframeError,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
)
from coldframe.requests import search_request
from server.app import _PROTOS
from server.place import Words
from server.security import roles
from server.security.keys import Role, changed, identify, new_key, read_keys, removed
from server.security.limits import Bucket
from tests.guarded import add_key, guarded
from tests.newsroom import piece, words
from tests.test_server_process import dial
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe import Client
    from coldframe.v1.search_service_pb2 import SearchRequest
    from tests.conftest import Background
    from tests.guarded import Guarded


@pytest.fixture(scope="module")
def server(background: Background, newsroom: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    import shutil

    folder = tmp_path_factory.mktemp("guarded")
    store = shutil.copytree(newsroom, folder / "store")
    with guarded(background, store, folder / "secrets") as running:
        yield running


def status(error: BaseException) -> grpc.StatusCode:
    cause = error.__cause__
    assert isinstance(cause, grpc.RpcError)
    code: grpc.StatusCode = cause.code()
    return code


# ---------------------------------------------------------------------------------------------------- who, and what


READS: dict[str, Any] = {
    "search": lambda client: client.search(words("x")),
    "stream": lambda client: list(client.stream_search([search_request(words("x"))])),
    "index": lambda client: client.index(),
    "clusters": lambda client: list(client.clusters()),
    "embed": lambda client: client.embed(["a b"]),
    "article": lambda client: client.get_article("001"),
}
WRITES: dict[str, Any] = {
    "upsert": lambda client: client.upsert([piece("a-new-one")]),
    "stream": lambda client: list(client.stream_upsert([piece("a-new-one")])),
    "delete": lambda client: client.delete(["a-new-one"]),
}


@pytest.mark.parametrize("ask", [*READS.values(), *WRITES.values()])
@pytest.mark.parametrize("api_key", [None, "cfk_" + 16 * "0" + "_" + 64 * "0", "hunter2"])
def test_nobody_without_a_good_key_is_answered(server: Guarded, ask: Any, api_key: str | None) -> None:
    with server.client(api_key) as client, pytest.raises(Unauthenticated) as raised:
        ask(client)
    assert status(raised.value) is grpc.StatusCode.UNAUTHENTICATED
    assert "authorization: Bearer" in raised.value.message
    assert api_key is None or api_key not in raised.value.message


def test_a_key_of_the_right_id_and_the_wrong_secret_is_told_the_same(server: Guarded) -> None:
    good = server.key()
    said = set()
    for wrong in (good[:-1] + ("0" if good[-1] != "0" else "1"), good.upper(), good + "0", "cfk__"):
        with server.client(wrong) as client, pytest.raises(Unauthenticated) as raised:
            client.index()
        said.add(raised.value.message)
    assert len(said) == 1


@pytest.mark.parametrize("ask", READS.values())
@pytest.mark.parametrize("role", ["read", "write", "admin"])
def test_every_role_reads(server: Guarded, ask: Any, role: str) -> None:
    with server.client(server.key(role)) as client:
        assert ask(client)


@pytest.mark.parametrize("ask", WRITES.values())
def test_a_read_key_writes_nothing(server: Guarded, ask: Any) -> None:
    before = server.engine.served().view.sequence
    with server.client(server.key()) as client, pytest.raises(PermissionDenied) as raised:
        ask(client)
    assert status(raised.value) is grpc.StatusCode.PERMISSION_DENIED
    assert "has the role read" in raised.value.message
    assert "takes the role write" in raised.value.message
    assert server.engine.served().view.sequence == before


def test_write_writes_and_admin_does_everything(server: Guarded) -> None:
    name = server.engine.served().generation.name
    with server.client(server.key("write")) as client:
        for ask in WRITES.values():
            assert ask(client)
        with pytest.raises(PermissionDenied, match="takes the role admin"):
            client.activate(name)
    with server.client(server.key("admin")) as client:
        for ask in WRITES.values():
            assert ask(client)
        assert not client.activate(name).changed


def test_every_method_has_its_role_and_what_has_none_is_shut() -> None:
    ours = {
        f"/{service.full_name}/{method.name}"
        for module in _PROTOS
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    reflection = {name for name in roles.BY_METHOD if "reflection" in name}
    assert set(roles.BY_METHOD) - reflection == ours
    assert roles.needed("/coldframe.v1.IndexService/DropEverything") is Role.ADMIN
    assert roles.needed("/grpc.health.v1.Health/Check") is None
    assert {m for m in ours if roles.audited(m)} == {m for m, role in roles.BY_METHOD.items() if role is not Role.READ}


def test_probes_need_no_key_and_reflection_does(server: Guarded) -> None:
    with dial(server.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        ask: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as raised:
            next(ask(iter([question])))
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = [("authorization", f"Bearer {server.key()}")]
        assert next(ask(iter([question]), metadata=metadata)).list_services_response.service


def test_reflection_can_be_turned_off(background: Background, newsroom: Path, tmp_path: Path) -> None:
    with guarded(background, newsroom, tmp_path / "s", reflection=False) as server, dial(server.target) as channel:
        metadata = [("authorization", f"Bearer {server.key('admin')}")]
        for version in ("v1", "v1alpha"):
            call: Any = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
            with pytest.raises(grpc.RpcError) as raised:
                next(call(iter([b""]), metadata=metadata))
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ------------------------------------------------------------------------------------------------- keys come and go


def test_a_key_is_worth_nothing_once_it_was_taken_away_or_has_expired(server: Guarded) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    passing, taken = server.key(expires_at=soon), server.key(name="taken")
    with server.client(passing) as one, server.client(taken) as other:
        one.index()
        other.index()
        with changed(server.keys) as keys:
            assert [key.name for key in removed(keys, "taken")] == ["taken"]
        wait_until(lambda: refused(other, "is not one of this server's"))
        wait_until(lambda: refused(one, "has expired"))


def refused(client: Client, why: str) -> bool:
    try:
        client.index()
    except Unauthenticated as error:
        return why in error.message
    return False


def test_a_stream_ends_when_its_key_is_taken_away(server: Guarded) -> None:
    with server.client(server.key(name="streaming")) as client:
        taken = False

        def questions() -> Iterator[SearchRequest]:
            yield search_request(words("x"))
            wait_until(lambda: taken)
            yield search_request(words("y"))

        answers = client.stream_search(questions())
        assert next(answers).response.hits
        with changed(server.keys) as keys:
            removed(keys, "streaming")
        server.guard.refresh()
        taken = True
        with pytest.raises(Unauthenticated, match="worth nothing any more"):
            next(answers)


def test_a_file_of_keys_that_breaks_is_refused_and_the_old_keys_go_on(
    server: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with server.client(server.key()) as client:
        whole = server.keys.read_bytes()
        for broken in (b"{", b'{"version": 2}', b'{"version": 1, "keys": [{"id": "x"}]}', b""):
            caplog.clear()
            server.keys.with_name("next").write_bytes(broken)  # whole: half of it would be refused in other words
            server.keys.with_name("next").replace(server.keys)
            wait_until(lambda: "API keys refused, and the old goes on" in caplog.text)
            client.index()
        server.keys.unlink()
        wait_until(lambda: "No such file" in caplog.text)
        client.index()
        server.keys.write_bytes(whole)
        wait_until(lambda: "API keys read anew" in caplog.text)
        client.index()


def test_the_file_holds_no_key_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token = add_key(path, "write", requests_per_second=5.0)
    assert token.rpartition("_")[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    other = add_key(path, name="other")
    assert path.stat().st_mode & 0o777 == 0o640
    keys = read_keys(path)
    assert [identify(keys, t).name for t in (token, other)] == ["the-writeer", "other"]
    assert identify(keys, token).requests_per_second == 5.0
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"]


def test_two_who_add_keys_at_once_both_have_theirs(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = [*pool.map(lambda n: add_key(tmp_path / "keys.json", name=f"k{n}"), range(16))]
    keys = read_keys(tmp_path / "keys.json")
    assert {identify(keys, token).name for token in tokens} == {f"k{n}" for n in range(16)}


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, '"', "-x", "naïve", "a\nb"])
def test_a_name_that_would_not_do_in_a_log_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="1 to 64 letters"):
        new_key(name, Role.READ)


def test_what_is_wrong_with_a_key_is_said_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="worth nothing"):
        new_key("a", Role.READ, expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidArgument, match="above 0"):
        new_key("a", Role.READ, requests_per_second=0)
    with pytest.raises(NotFound, match="no key 'b'; the file holds: a"):
        removed({"1": new_key("a", Role.READ)[1]}, "b")
    with pytest.raises(ColdframeError, match="cannot be written"), changed(tmp_path / "no" / "keys.json"):
        pass


# ------------------------------------------------------------------------------------------------- how often, how much


def test_a_bucket_gives_what_it_holds_and_what_flows_in() -> None:
    now = 0.0
    bucket = Bucket(10, 5, Words().of("a"), clock=lambda: round(1e9 * now))
    assert [bucket.take() for _ in range(6)] == [0, 0, 0, 0, 0, pytest.approx(0.1)]
    now = 0.25
    assert [bucket.take(), bucket.take(), bucket.take()] == [0, 0, pytest.approx(0.05)]
    now = 100
    assert bucket.take(50) == 0, "a batch above the burst is owed"
    assert bucket.take() == pytest.approx(4.6)
    now = 104.6
    assert bucket.take() == 0


def test_a_bucket_of_next_to_nothing_a_second_gives_its_burst_and_then_next_to_never_more() -> None:
    bucket = Bucket(1e-12, 2, Words().of("a"))
    assert bucket.take(50) == 0
    assert bucket.take() > 24 * 3_600


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 12)), max_size=60),
    rate=st.floats(0.1, 1_000),
    burst=st.floats(1, 50),
)
def test_a_bucket_is_one_that_counts_its_tokens(steps: list[tuple[float, int]], rate: float, burst: float) -> None:
    now = 0.0
    bucket = Bucket(rate, burst, Words().of("a"), clock=lambda: round(1e9 * now))
    tokens, before = burst, 0.0  # what one obviously is
    for wait, count in steps:
        now += wait
        tokens, before = min(burst, tokens + (now - before) * rate), now
        missing = min(count, burst) - tokens
        said = bucket.take(count)
        if abs(missing) > 1e-6 * (1 + rate):  # what rounding leaves is no token
            assert said == (pytest.approx(missing / rate, rel=1e-3, abs=1e-6) if missing > 0 else 0)
        if not said:
            tokens -= count


def test_a_key_that_asks_too_often_is_told_when_to_come_back_and_others_are_answered(
    background: Background, newsroom: Path, tmp_path: Path
) -> None:
    with guarded(background, newsroom, tmp_path / "s", requests_per_second=2, burst=3) as server:
        with server.client(server.key(name="greedy")) as greedy, server.client(server.key(name="calm")) as calm:
            for _ in range(3):
                greedy.index()
            with pytest.raises(Overloaded, match="the key 'greedy' may make 2 requests a second") as raised:
                greedy.index()
            assert status(raised.value) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert 0 < raised.value.retry_after_s <= 0.5
            calm.index()
            time.sleep(raised.value.retry_after_s)
            greedy.index()
            with pytest.raises(Overloaded):
                calm.batch_search([search_request(words("x"))] * 4), calm.index()
        with server.client(server.key(name="trusted", requests_per_second=1_000.0)) as trusted:
            for _ in range(50):
                trusted.index()


def test_a_stream_of_a_key_that_asks_too_often_is_slowed_down_and_loses_nothing(
    background: Background, newsroom: Path, tmp_path: Path
) -> None:
    with (
        guarded(background, newsroom, tmp_path / "s", requests_per_second=20, burst=1) as server,
        server.client(server.key()) as client,
    ):
        start = time.monotonic()
        answers = [*client.stream_search([search_request(words("x"))] * 11)]
        assert time.monotonic() - start > 0.45
        assert len(answers) == 11
        assert all(answer.response.hits for answer in answers)


def test_a_key_has_so_many_calls_open_and_the_server_so_many_streams(
    background: Background, newsroom: Path, tmp_path: Path
) -> None:
    with (
        guarded(background, newsroom, tmp_path / "s", streams=4, calls_per_key=3) as server,
        dial(server.target) as channel,
    ):
        ask: Any = channel.stream_stream("/coldframe.v1.SearchService/StreamSearch")

        def open_stream(key: str) -> Any:
            return ask(endless(), metadata=[("authorization", f"Bearer {key}")])

        one, other = server.key(name="one"), server.key(name="other")
        calls = [open_stream(one) for _ in range(3)]
        wait_until(lambda: server.guard.gate.open == 3)
        assert code_of(open_stream(one)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the key 'one' has 3 calls open")
        calls.append(open_stream(other))
        wait_until(lambda: server.guard.gate.open == 4)
        assert code_of(open_stream(other)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "4 streams are open")
        with server.client(other) as client:
            client.index()
        calls[0].cancel()
        wait_until(lambda: server.guard.gate.open == 3)
        calls[0] = open_stream(other)
        wait_until(lambda: server.guard.gate.open == 4)
        for call in calls:
            call.cancel()
        wait_until(lambda: server.guard.gate.open == 0)


def endless() -> Iterator[bytes]:
    """Says nothing for a long while."""
    time.sleep(60)
    yield b""


def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """With what a call fails, and the message's beginning."""
    with pytest.raises(grpc.RpcError) as raised:
        next(call)
    error: Any = raised.value
    return error.code(), error.details().partition(", which")[0]


def test_limits_of_what_a_request_may_hold(server: Guarded) -> None:
    from coldframe import filters, seed

    with server.client(server.key("write")) as client:
        deep = filters.attribute("desk").is_in("a")
        for _ in range(8):
            deep = ~deep & filters.cluster("c")
        for ask, field in (
            (lambda: client.search("a" * 1_000_001), "seed.text"),
            (lambda: client.embed(["a"] * 257), "texts"),
            (lambda: client.recommend([seed(article_id="001")] * 65), "seeds"),
            (lambda: client.batch_search([search_request("a")] * 65), "requests"),
            (lambda: client.search("a", filter=deep), "ranking.filter"),
            (lambda: client.upsert([piece(str(n), "a") for n in range(257)]), "articles"),
            (lambda: client.delete([str(n) for n in range(1_001)]), "ids"),
        ):
            with pytest.raises(InvalidArgument) as raised:
                ask()
            assert status(raised.value) is grpc.StatusCode.INVALID_ARGUMENT
            assert raised.value.field.startswith(field)


def test_a_message_that_is_too_large_is_refused_with_both_sizes(
    background: Background, newsroom: Path, tmp_path: Path
) -> None:
    with (
        guarded(background, newsroom, tmp_path / "s", message_bytes=1 << 20) as server,
        server.client(server.key()) as client,
    ):
        with pytest.raises(InvalidArgument, match=r"1,\d{3},\d{3} bytes, and at most 1,048,576"):
            client.embed(["a" * 400_000] * 3)
        client.index()
    assert MAX_MESSAGE_BYTES == 64 << 20


def test_the_context_of_a_call_is_its_own(server: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """Callers at once are not taken for each other."""
    caplog.set_level(logging.INFO, logger="coldframe.audit")
    keys = {name: server.key("write", name=name) for name in ("ann", "bob", "cat", "dan")}

    def ask(name: str) -> None:
        with server.client(keys[name], metadata=[("x-request-id", f"of-{name}")]) as client:
            for n in range(10):
                client.delete([f"{name}-{n}"])

    def told() -> Counter[tuple[str, str]]:
        lines = [json.loads(r.getMessage()) for r in [*caplog.records] if r.name == "coldframe.audit"]
        return Counter((line["who"], line["request_id"]) for line in lines if line["who"] in keys)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, keys))
    wait_until(lambda: told().total() == 40)
    assert told() == {(name, f"of-{name}"): 10 for name in keys}


def test_the_gate_counts_nothing_when_all_have_gone(server: Guarded) -> None:
    gate = server.guard.gate
    with server.client(server.key()) as client:
        client.index()
        with pytest.raises(PermissionDenied):
            client.delete(["001"])
    with dial(server.target) as channel:
        ask: Any = channel.stream_stream("/coldframe.v1.SearchService/StreamSearch")
        call = ask(endless(), metadata=[("authorization", f"Bearer {server.key()}")])
        wait_until(lambda: gate.open == 1)
        assert list(gate._meter._by_key.values()) == [1]
        call.cancel()
        wait_until(lambda: gate.open == 0)
    assert not gate._meter._by_key

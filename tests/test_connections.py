"""Clients of several connections, and of names with several servers."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from coldframe import AsyncClient, Client, connection, search_request
from coldframe.errors import FailedPrecondition, InvalidArgument, Unavailable
from server.security.limits import Limits
from tests.relay import Relay
from tests.scripted import Server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Background


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("127.0.0.1:0") as running:
        running.target = running.target.replace("localhost", "127.0.0.1")  # a name that may have two addresses
        yield running


def test_calls_go_by_all_connections_in_turns(server: Server) -> None:
    with Client(server.target, connections=3) as client:
        for _ in range(6):
            client.index()
        assert sorted(Counter(server.peers).values()) == [2, 2, 2]
        for _ in range(3):
            assert len(list(client.stream_search([search_request("storm")] * 2))) == 2
        assert sorted(Counter(server.peers).values()) == [4, 4, 4]
    with pytest.raises(FailedPrecondition, match="closed"):
        client.index()


def test_so_they_do_in_an_event_loop(server: Server, background: Background) -> None:
    async def ask() -> None:
        async with AsyncClient(server.target, connections=3) as client:
            for _ in range(6):
                await client.index()
            async for _ in client.stream_search([search_request("storm")] * 3):
                pass
        with pytest.raises(FailedPrecondition, match="closed"):
            await client.index()

    background.run(ask())
    assert sorted(Counter(server.peers).values()) == [2, 2, 5]


def test_one_connection_is_the_default(server: Server) -> None:
    with Client(server.target) as client:
        for _ in range(5):
            client.index()
    assert len(set(server.peers)) == 1


def test_all_servers_of_a_name_are_asked(server: Server) -> None:
    with Server("127.0.0.1:0") as other:
        port = other.target.partition(":")[2]
        with Client(f"ipv4:{server.target},127.0.0.1:{port}", connections=2) as client:

            def both() -> bool:
                client.index()
                return bool(server.requests and other.requests)

            wait_until(both)
            for _ in range(20):
                client.index()
            assert len(set(server.peers)) == len(set(other.peers)) == 2
            assert min(len(server.peers), len(other.peers)) >= 10


def test_a_server_that_vanishes_without_a_word_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_PING_MS", 300)
    monkeypatch.setattr(connection, "_ANSWER_MS", 700)
    over = threading.Event()

    def texts() -> Iterator[str]:
        yield "storm"
        over.wait(60)

    with Server("127.0.0.1:0") as other, Relay(server.target) as relay:
        with Client(f"ipv4:{relay.target},127.0.0.1:{other.target.partition(':')[2]}") as client:
            answers = client.stream_embed(texts(), timeout=20)
            assert next(answers).correlation_id == "0"
            relay.fall_silent()
            client.index(timeout=20)
            assert other.requests
            with pytest.raises(Unavailable):
                next(answers)
        over.set()


@pytest.mark.parametrize("asked", ["call", "stream"])
def test_a_connection_that_breaks_is_told_from_one_that_was_not_made(server: Server, asked: str) -> None:
    server.stalled = True
    with Relay(server.target) as relay, Client(relay.target, attempts=1) as client, ThreadPoolExecutor(1) as pool:
        told = pool.submit(client.index if asked == "call" else lambda: list(client.stream_embed(["storm"])))
        wait_until(lambda: bool(server.requests))
        relay.cut()
        with pytest.raises(Unavailable, match=r"broke off before all was answered .*may have been done or not"):
            told.result(20)
    server.stalled = False


@pytest.mark.parametrize("said", ["Socket closed", "recvmsg:Connection reset by peer", "max connection age"])
def test_so_it_is_whichever_way_grpc_says_it(said: str) -> None:
    def told(message: str) -> str:
        return connection._explained(Unavailable, message, "news:1", None, False)

    for message in (said, f"Stream removed ({said} (104))"):
        assert f"broke off before all was answered ({said});" in told(message)
    never = told(f"failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:1: {said}")
    assert never.startswith("no Coldframe server answers at news:1 (")


def test_the_client_pings_no_more_often_than_the_server_permits() -> None:
    permitted_ms = dict(Limits().options(keys=False))["grpc.http2.min_ping_interval_without_data_ms"]
    assert 1.2 * permitted_ms <= connection._PING_MS


@pytest.mark.parametrize("scheme", ["", "ipv4:", "dns:", "dns:///"])
def test_no_proxy_is_asked_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Client(f"{scheme}{server.target}", attempts=1) as client:
        client.index()


def test_no_proxy_is_asked_for_a_list_of_addresses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for other, key in (("127.0.0.1:1", "cfk_of_this_machine"), ("192.0.2.1:1", None)):
        with Client(f"ipv4:{server.target},{other}", attempts=1, timeout=10, api_key=key) as client:
            client.index()


def test_a_proxy_that_was_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with Client("news.internal:50051", attempts=1, timeout=10) as client, pytest.raises(Unavailable) as caught:
        client.index()
    assert "; it was asked by way of https_proxy, unless no_proxy names it)" in caught.value.message


@pytest.mark.parametrize(
    ("target", "listen"),
    [("[::1]:1", " --listen [::1]:1"), ("ipv4:127.0.0.1:1", ""), ("ipv4:127.0.0.1:1,127.0.0.1:2", "")],
)
def test_no_server_is_told_to_listen_on_what_is_no_address_of_one(target: str, listen: str) -> None:
    with Client(target, attempts=1, timeout=10) as client, pytest.raises(Unavailable) as caught:
        client.index()
    assert caught.value.message.endswith(f"start one with: python -m server --store DIR{listen}")


class Names:
    """A name server that says 127.0.0.1 of every name."""

    def __init__(self) -> None:
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            question, caller = self._socket.recvfrom(512)
            end = question.index(b"\0", 12) + 5
            found = question[end - 4 : end - 2] == b"\0\1"  # an address of IPv4, and no other
            self.asked += found
            head = question[:2] + struct.pack(">5H", 0x8180, 1, found, 0, 0) + question[12:end]
            address = struct.pack(">3HIH4B", 0xC00C, 1, 1, 5, 4, 127, 0, 0, 1) if found else b""
            self._socket.sendto(head + address, caller)


def test_a_name_is_asked_again_soon_where_its_server_is_gone(server: Server) -> None:
    names, port = Names(), server.target.rpartition(":")[2]
    with Client(f"dns://127.0.0.1:{names.port}/news.test:{port}", timeout=5, attempts=1) as client:
        client.index()
        assert names.asked == 1
        server.__exit__()
        until = time.monotonic() + 15
        while names.asked == 1 and time.monotonic() < until:
            with pytest.raises(Unavailable):
                client.index()
            time.sleep(0.1)
    assert names.asked > 1


@pytest.mark.parametrize("connections", [0, -1, 65])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_connection_and_very_many_are_refused(kind: type[Client | AsyncClient], connections: int) -> None:
    with pytest.raises(InvalidArgument, match="give 1 to 64") as caught:
        kind(connections=connections)
    assert caught.value.field == "connections"

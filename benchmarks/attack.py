"""Attacks a guarded server of its own while somebody else asks it, and tells what became of both.

    python -m benchmarks.attack [--streams 10000] [--connections 50] [--seconds 20] [--rounds 1]

A real `python -m server` with TLS and keys over a small store of drawn vectors. Before, between and after the attacks
one caller searches by vector, one call after the other: how long it waits, and whether it is ever refused, is what an
attack costs the others. What must come: every attacker is refused with the right status, the server stays up, its
memory comes back, and the searcher is never refused.

    strangers      streams without a good key, all at once
    streams        the same of a good key, which may have 512 open; they stay open and say nothing
    bodies         calls of a good key whose message never comes; the same number
    oversized      messages of 65 MiB
    plain text     connections that speak no TLS, and some that say nothing at all
    too often      one key that asks as fast as it can, of which 50 requests a second are allowed
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
import numpy as np

from benchmarks.drawn import Drawn, store_of
from coldframe.requests import search_request
from server.security.keys import Role, changed, new_key
from tests.certificates import Files, files

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import TypeAlias

    Attack: TypeAlias = Callable[["Attacked", argparse.Namespace], Coroutine[Any, Any, dict[str, int]]]

_STREAM = "/coldframe.v1.SearchService/StreamSearch"
_SEARCH = "/coldframe.v1.SearchService/Search"
_ROWS = 4_000
_WARM = 20
_RECEIVE_S, _IDLE_S = 5, 30


# --- attackers -------------------------------------------------------------------------------------------------------


class Crowd:
    """Callers of one key over several connections, who open and say nothing. `codes` is what they were told."""

    def __init__(self, target: str, key: str, connections: int, ca: bytes | None = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if ca is None:
            self._channels = [grpc.aio.insecure_channel(target, options) for _ in range(connections)]
        else:
            credentials = grpc.ssl_channel_credentials(ca)
            self._channels = [grpc.aio.secure_channel(target, credentials, options) for _ in range(connections)]
        self.metadata = (("authorization", f"Bearer {key}"),)
        self.codes: Counter[str] = Counter()
        self._open: set[Any] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in self._open:
            call.cancel()
        for channel in self._channels:
            await channel.close()

    @property
    def standing(self) -> int:
        """Calls that were not ended."""
        return len(self._open)

    def channel(self, number: int) -> grpc.aio.Channel:
        """One of the connections."""
        return self._channels[number % len(self._channels)]

    async def stand(self, number: int, method: str = _STREAM) -> None:
        """Opens a stream; returns when it was refused, or has not been for a while."""
        call: Any = self.channel(number).stream_stream(method)(metadata=self.metadata)
        self._open.add(call)
        await self._ended(call, 8)

    async def _ended(self, call: Any, seconds: float) -> None:
        waiting = asyncio.ensure_future(call.code())
        done, _ = await asyncio.wait([waiting], timeout=seconds)
        if done:
            self.codes[waiting.result().name] += 1
            self._open.discard(call)
        else:
            waiting.cancel()

    async def wait(self, seconds: float) -> None:
        """Waits for those that stand to be ended."""
        await asyncio.gather(*(self._ended(call, seconds) for call in [*self._open]))

    async def ask(self, number: int, method: str, message: bytes) -> None:
        """Makes one whole call."""
        try:
            await self.channel(number).unary_unary(method)(message, metadata=self.metadata, timeout=60)  # type: ignore[arg-type]
            self.codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1


async def flood(crowd: Crowd, count: int, method: str = _STREAM) -> None:
    """Opens so many streams at once."""
    await asyncio.gather(*(crowd.stand(n, method) for n in range(count)))


# --- the one who only asks -------------------------------------------------------------------------------------------


@dataclass
class Searcher:
    """Searches by vector, one call after the other, in a process of its own: `python -m benchmarks.attack --ask`."""

    process: subprocess.Popen[str]

    def stop(self) -> tuple[list[float], int]:
        """Milliseconds of every call, and how many were refused."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.stdout is not None
        said = self.process.stdout.read().split()[-1].split(",")
        self.process.wait(60)
        return [float(word) for word in said[:-1]], int(said[-1])


def ask(target: str, key: str, ca: str, dim: int) -> None:
    """Asks until standard input ends, and then prints the waits and the number of refusals."""
    import threading

    from coldframe import Client
    from coldframe.errors import ColdframeError

    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    random, waits, refused = np.random.default_rng(0), list[float](), 0
    with Client(target, api_key=key, tls_ca=ca, timeout=60, attempts=1) as client:
        while not ended.is_set():
            vector = random.standard_normal(dim).tolist()
            start = time.perf_counter()
            try:
                client.search(vector=vector, limit=10)
            except ColdframeError:
                refused += 1
            waits.append(1e3 * (time.perf_counter() - start))
            if len(waits) == _WARM:
                print("asking", flush=True)
            time.sleep(0.002)
    print(",".join(f"{wait:.3f}" for wait in waits[_WARM:]), refused, sep=",")


# --- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Attacked:
    """The server, its files and its keys."""

    target: str
    process: subprocess.Popen[str]
    tls: Files
    keys: Path
    dim: int
    found: list[bool] = field(default_factory=list)

    def key(self, name: str, **options: Any) -> str:
        """A new key, once the server has noticed it."""
        token, key = new_key(name, Role.READ, **options)
        with changed(self.keys) as keys:
            keys[key.id] = key
        time.sleep(1.5)
        return token

    def crowd(self, key: str, connections: int) -> Crowd:
        """Callers with that key."""
        return Crowd(self.target, key, connections, self.tls.ca.read_bytes())

    def searcher(self, key: str) -> Searcher:
        """Somebody who only asks."""
        about = [self.target, key, str(self.tls.ca), str(self.dim)]
        command = [sys.executable, "-m", "benchmarks.attack", "--ask", *about]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        return Searcher(process)

    def memory_mib(self) -> float:
        """Of the server, at this moment."""
        said = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", said)
        assert found is not None
        return int(found[1]) / 1024

    def files(self) -> int:
        """Open files of the server."""
        return len([*Path(f"/proc/{self.process.pid}/fd").iterdir()])


@contextlib.contextmanager
def attacked(folder: Path) -> Iterator[Attacked]:
    """A server with TLS and keys."""
    store, _ = store_of(Drawn(_ROWS, 0), folder)
    tls, keys = files(folder / "tls"), folder / "keys.json"
    with changed(keys):
        pass
    command = [sys.executable, "-m", "server", "--store", str(store.path), "--listen", "127.0.0.1:0"]
    command += ["--tls-cert", str(tls.chain), "--tls-key", str(tls.key), "--api-keys", str(keys)]
    command += ["--receive-timeout", str(_RECEIVE_S), "--stream-idle", str(_IDLE_S)]  # the rest is as it comes
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            target = process.stdout.readline().strip().removeprefix("listening on ")
            yield Attacked(target, process, tls, keys, store.open().index.dim)
        finally:
            process.terminate()
            process.wait(60)


# --- the attacks -----------------------------------------------------------------------------------------------------


async def _strangers(server: Attacked, args: argparse.Namespace) -> dict[str, int]:
    async with server.crowd("cfk_" + 16 * "0" + "_" + 64 * "0", args.connections) as crowd:
        await flood(crowd, args.streams)
        await crowd.wait(20)
        return {**crowd.codes, "standing": crowd.standing}


async def _streams(server: Attacked, args: argparse.Namespace) -> dict[str, int]:
    async with server.crowd(server.key("crowd"), args.connections) as crowd:
        await flood(crowd, args.streams)
        standing = crowd.standing
        await crowd.wait(_IDLE_S + 5)
        return {**crowd.codes, "stood for a while": standing, "standing": crowd.standing}


async def _bodies(server: Attacked, args: argparse.Namespace) -> dict[str, int]:
    async with server.crowd(server.key("bodies"), args.connections) as crowd:
        await flood(crowd, args.streams, _SEARCH)
        await crowd.wait(20)
        return {**crowd.codes, "standing": crowd.standing}


async def _oversized(server: Attacked, _args: argparse.Namespace) -> dict[str, int]:
    async with server.crowd(server.key("oversized"), 4) as crowd:
        message = b"\x0a" + b"\0" * (65 << 20)
        for _round in range(5):
            await asyncio.gather(*(crowd.ask(n, _SEARCH, message) for n in range(4)))
        return dict(crowd.codes)


async def _plain(server: Attacked, args: argparse.Namespace) -> dict[str, int]:
    host, _, port = server.target.rpartition(":")
    found: Counter[str] = Counter()
    silent: list[socket.socket] = []
    for n in range(20 * args.connections):
        raw = await asyncio.to_thread(socket.create_connection, (host, int(port)), 30)
        if n % 2:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        silent.append(raw)
    for raw in silent:
        try:
            ended = await asyncio.to_thread(raw.recv, 1)
            found["hung up" if not ended else "answered"] += 1
        except ConnectionResetError:
            found["hung up"] += 1
        except TimeoutError:
            found["standing"] += 1
        raw.close()
    return dict(found)


async def _too_often(server: Attacked, args: argparse.Namespace) -> dict[str, int]:
    key = server.key("greedy", requests_per_second=50.0)
    async with server.crowd(key, 8) as crowd:
        message = search_request(vector=[1.0] * server.dim).SerializeToString()
        until = time.monotonic() + args.seconds

        async def press(n: int) -> None:
            while time.monotonic() < until:
                await crowd.ask(n, _SEARCH, message)

        await asyncio.gather(*(press(n) for n in range(8)))
        return dict(crowd.codes)


_ATTACKS: dict[str, tuple[Attack, set[str]]] = {
    "strangers": (_strangers, {"UNAUTHENTICATED"}),
    "streams": (_streams, {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}),
    "bodies": (_bodies, {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}),
    "oversized": (_oversized, {"RESOURCE_EXHAUSTED"}),
    "plain text": (_plain, {"hung up"}),
    "too often": (_too_often, {"OK", "RESOURCE_EXHAUSTED"}),
}


def quiet(server: Attacked, key: str, seconds: float) -> list[float]:
    """How long the searcher waits when nobody attacks."""
    searcher = server.searcher(key)
    time.sleep(seconds)
    return searcher.stop()[0]


def run(server: Attacked, args: argparse.Namespace) -> bool:
    """Makes every attack, and says whether each met what it should."""
    key, kept = server.key("other"), True
    idle = quiet(server, key, args.seconds / 2)
    print(f"no attack: {_told(idle)}; {server.memory_mib():,.0f} MiB, {server.files()} files", flush=True)
    for name, (attack, allowed) in [*_ATTACKS.items()] * args.rounds:
        if args.only and name not in args.only:
            continue
        searcher, start = server.searcher(key), time.perf_counter()
        found: dict[str, int] = asyncio.run(attack(server, args))
        spent, memory = time.perf_counter() - start, server.memory_mib()
        waits, refused = searcher.stop()
        met = {what for what, count in found.items() if count} - {"stood for a while"}
        fine = met <= allowed and not refused and server.process.poll() is None
        kept &= fine
        said = ", ".join(f"{count:,} {what}" for what, count in found.items())
        print(f"{name} ({spent:.1f} s): {said}")
        print(f"    the others: {_told(waits)}, {refused} refused; server {memory:,.0f} MiB", flush=True)
        print(f"    {'kept' if fine else 'MISSED'}")
    time.sleep(3)
    after = quiet(server, key, args.seconds / 2)
    print(f"afterwards: {_told(after)}; {server.memory_mib():,.0f} MiB, {server.files()} files")
    return kept


def _told(waits: list[float]) -> str:
    if not waits:
        return "no call"
    p99, worst = np.percentile(waits, 99), max(waits)
    return f"{len(waits):,} searches, p50 {statistics.median(waits):.2f} ms, p99 {p99:.2f} ms, most {worst:.0f} ms"


def main() -> None:
    """Attack, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=1, help="all attacks so often: memory must not grow")
    parser.add_argument("--only", nargs="*", choices=[*_ATTACKS])
    parser.add_argument("--ask", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        target, key, ca, dim = args.ask
        ask(target, key, ca, int(dim))
        return
    with tempfile.TemporaryDirectory() as folder, attacked(Path(folder)) as server:
        kept = run(server, args)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()

"""How much one caller, and all of them, may have open and ask for in a second."""

from __future__ import annotations

import logging
import resource
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.place import Words
    from server.security.keys import Key

_log = logging.getLogger("coldframe.server")
MOST_RATE = 1e6
"""Requests a second that a limit may allow; more are as good as any number."""
LARGEST = 2**31 - 2
"""gRPC takes numbers up to this one, milliseconds among them; one more connection, and it ends the process."""
_WAIT_S = 1.0
# Rarer requests than one in eleven days are as good as none, and their times must find room in a word.
_LONGEST_NS = 1e15
_UNSEEN, _UNSEEN_STRANGERS = 64, 16_384
# Health is open to all. Who watches it holds a place, and those who only ask must find one all the same.
_KEYLESS, _KEYLESS_STREAMS = 2_048, 128
# That no connection takes: two dozen of the libraries', the store's and the next generation's, those of probes.
_OWN_FILES = 128


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All of them hold for one process, but requests a second, which hold for all workers together."""

    message_bytes: int = 64 * 1024 * 1024
    """Of one message; gRPC refuses a larger one before it is read."""
    requests_per_second: float = 0.0
    """Of one key, unless the key says otherwise; 0 for no limit."""
    burst: int = 0
    """Requests that a key may have saved up; 0 for two seconds' worth."""
    calls: int = 4_096
    """Open at once, streams among them."""
    calls_per_key: int = 512
    """The same of one key: fewer than there are streams, so that one key cannot hold all of them."""
    streams: int = 1_000
    streams_per_connection: int = 1_000
    """Calls of any kind, which are streams to HTTP/2: a client waits with more of them."""
    connections: int = 4_096
    unseen: int = 0
    """That came and were not looked at yet; 0 for 64, and 16,384 where callers need keys. gRPC cancels what comes
    above it, calls of good callers among them, and none hears why. Where more calls come than the event loop can
    refuse, all others wait behind those that it has not seen: the more, the longer. Strangers come in crowds, and each
    must hear why it is refused; who needs no key is known, and must not wait."""
    receive_s: float = 30.0
    """Until the one message of a call must be there."""
    idle_s: float = 300.0
    """For which a stream may bring no message."""
    handshake_s: float = 10.0
    connection_idle_s: float = 900.0
    """For which a connection may be without a call."""
    connection_age_s: float = 0.0
    """After which a connection is asked to begin anew, with the certificate of that time; 0 for never."""

    def options(self, *, keys: bool) -> list[tuple[str, int]]:
        """What of it gRPC itself sees to; keys: whether callers need one."""
        unseen = self.unseen or (_UNSEEN_STRANGERS if keys else _UNSEEN)
        options = [
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server.max_pending_requests", unseen),
            ("grpc.server.max_pending_requests_hard_limit", unseen),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_s)),
            ("grpc.max_connection_idle_ms", _ms(self.connection_idle_s)),
            # A caller that vanished without a word holds its streams no longer than this.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.ping_timeout_ms", 20_000),  # a minute unless told, whatever the one above says
            # Whoever pings more often is cut off: each ping is answered. Where pings without a call were not permitted,
            # one in two hours would be too many on an idle connection.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
        ]
        if self.connection_age_s:
            options.append(("grpc.max_connection_age_ms", _ms(self.connection_age_s)))
            options.append(("grpc.max_connection_age_grace_ms", 60_000))
        return options


def bearable(connections: int) -> int:
    """So many connections, or as many as this process may have open files for, each of which is one.

    Where they took all, nobody could be answered on --metrics, no article kept and no new generation opened.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = files - min(_OWN_FILES, files // 2)
    if files == resource.RLIM_INFINITY or connections <= most:
        return connections
    _log.warning(
        "%s connections are taken at once, and not %s (--max-connections): this process may have %s files open, each "
        "connection is one, and the store and probes need some; raise the limit (ulimit -n, LimitNOFILE=) for more",
        f"{most:,}",
        f"{connections:,}",
        f"{files:,}",
    )
    return most


def _ms(seconds: float) -> int:
    return round(1e3 * seconds)


class Bucket:
    """A token bucket: `rate` tokens a second, `burst` of them at most.

    More than a burst at once is given to a full bucket, which owes the rest: a large batch is not refused for ever.
    All that is known of it is when it will be full again (the generic cell rate algorithm, ITU-T I.371), in a word that
    several processes may share: of two who take in the same microsecond one may have it for nothing.
    """

    def __init__(
        self, rate: float, burst: float, full_at: memoryview, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """full_at: a word for nanoseconds of the clock, 0 at first."""
        self.rate, self.burst, self._full_at, self._clock = rate, burst, full_at, clock
        self._token_ns = min(1e9 / rate, _LONGEST_NS)

    def take(self, count: int = 1, paid: int = 0) -> float:
        """Takes tokens; 0.0, or seconds until they will be there, and then takes none.

        paid: how many of them were taken before, and are to be taken again by who comes again.
        """
        now = self._clock()
        full_at = max(self._full_at[0], now)
        early_ns = full_at - now - round((self.burst - (min(count, self.burst) - paid)) * self._token_ns)
        if early_ns > 0:
            return (early_ns + round(paid * self._token_ns)) / 1e9
        self._full_at[0] = full_at + round((count - paid) * self._token_ns)
        return 0.0


class Meter:
    """What is open, and what was asked for. words: of `Bucket`s, by key."""

    def __init__(self, limits: Limits, words: Words) -> None:
        self._limits, self._words = limits, words
        self._most = {
            "stream": limits.streams,
            "call": limits.calls,
            "keyless": _KEYLESS,
            "keyless stream": _KEYLESS_STREAMS,
        }
        self._open: Counter[str] = Counter()
        self._by_key: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}

    @property
    def open(self) -> int:
        """Calls that are open at this moment."""
        return self._open.total()

    @property
    def pools(self) -> dict[str, tuple[int, int]]:
        """By pool, the calls that are open, and how many there may be. Streams count as calls, too."""
        return {pool: (self._taken(pool), most) for pool, most in self._most.items()}

    def _taken(self, pool: str) -> int:
        return self._open[pool] + (self._open["stream"] if pool == "call" else 0)

    def enter(self, pool: str, key: Key | None) -> None:
        """Counts a call. Raises Overloaded where there are too many.

        pool: "stream" or "call"; "keyless" or "keyless stream", which starve no one who has a key.
        """
        most, taken = self._most[pool], self._taken(pool)
        if taken >= most:
            kind = "streams" if pool.endswith("stream") else "calls"
            raise Overloaded(f"{taken:,} {kind} are open, which is as many as this server takes", retry_after_s=_WAIT_S)
        if key is not None and self._by_key[key.id] >= self._limits.calls_per_key:
            raise Overloaded(
                f"the key {key.name!r} has {self._by_key[key.id]:,} calls open, which is as many as one may have",
                retry_after_s=_WAIT_S,
            )
        self._open[pool] += 1
        if key is not None:
            self._by_key[key.id] += 1

    def leave(self, pool: str, key: Key | None) -> None:
        """The call has ended."""
        self._open[pool] -= 1
        if key is None:
            return
        self._by_key[key.id] -= 1
        if not self._by_key[key.id]:
            del self._by_key[key.id]

    def wait(self, key: Key | None, count: int = 1, paid: int = 0) -> float:
        """Takes the turns of so many requests, some of which were paid for before: 0.0, or seconds until all may be
        made, and then takes none.
        """
        own = key.requests_per_second if key else None
        rate = own or self._limits.requests_per_second
        if not rate:
            return 0.0
        name = key.id if key else ""
        bucket = self._buckets.get(name)
        if bucket is None or bucket.rate != rate:
            burst = 2 * rate if own else self._limits.burst or 2 * rate
            bucket = self._buckets[name] = Bucket(rate, max(1.0, burst), self._words.of(name))
        return bucket.take(count, paid)

    def spend(self, key: Key | None, count: int = 1, paid: int = 0) -> None:
        """The same, of a call that cannot wait. Raises Overloaded."""
        wait_s = self.wait(key, count, paid)
        if wait_s:
            rate = self._buckets[key.id if key else ""].rate
            who = f"the key {key.name!r}" if key else "callers without a key"
            raise Overloaded(f"{who} may make {rate:g} requests a second; wait {wait_s:.2g} s", retry_after_s=wait_s)

"""All that guards a server, in one hand: certificates, keys, limits, and the files behind them, watched."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
from functools import cached_property
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument
from server.place import Words
from server.security.files import Watched
from server.security.keys import read_keys
from server.security.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import grpc

    from server.security.certificates import Tls
    from server.security.gate import Gate
    from server.security.keys import Key

_log = logging.getLogger("coldframe.server")


class Guard:
    """tls: None speaks plain text. keys: the file of API keys; None asks for none. reflection: whether it is answered.
    words: what workers tell each other of their callers.

    Raises InvalidArgument where the keys cannot be read.
    """

    def __init__(
        self,
        *,
        tls: Tls | None = None,
        keys: Path | None = None,
        limits: Limits | None = None,
        reflection: bool = True,
        words: Words | None = None,
    ) -> None:
        self.tls, self.limits, self.reflection = tls, limits or Limits(), reflection
        self._keys = None if keys is None else Watched("API keys", [keys], lambda: read_keys(keys))
        self._words = words or Words()
        self._woken = asyncio.Event()

    @cached_property
    def gate(self) -> Gate:
        """What every call passes. torch and FAISS come with it, which who only looks after workers does without."""
        from server.security.gate import Gate

        return Gate(self.keys, self.limits, self._words)

    def keys(self) -> Mapping[str, Key] | None:
        """The keys of this moment by id; None where callers need none."""
        return None if self._keys is None else self._keys.value

    def refused(self) -> dict[str, bool]:
        """By what is read from files: whether they are not used as they are now, and what was before goes on."""
        watched = {"certificate": self.tls, "API keys": self._keys}
        return {name: one.refused for name, one in watched.items() if one is not None}

    def credentials(self) -> grpc.ServerCredentials | None:
        """For the server's port; None for plain text."""
        return None if self.tls is None else self.tls.credentials()

    async def watch(self, poll_s: float = 1.0) -> None:
        """Reads certificates and keys again when they change; for ever."""
        while True:
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # the files are looked at again, and whoever could go on may
                _log.exception("certificates and keys could not be looked at")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), poll_s)
            self._woken.clear()

    def look(self) -> None:
        """Looks at the files now."""
        self._woken.set()

    def refresh(self) -> None:
        """Reads what changed; blocks for as long as that takes."""
        if self.tls is not None:
            self.tls.refresh()
        if self._keys is not None:
            self._keys.refresh()


def require_guarded(host: str, *, tls: bool, keys: bool) -> None:
    """Raises InvalidArgument where a host is open to others, and has no certificate or no keys."""
    missing = [
        *([] if tls else ["certificate (--tls-cert, --tls-key)"]),
        *([] if keys else ["API keys (--api-keys)"]),
    ]
    if missing and not is_loopback(host):
        raise InvalidArgument(
            f"--listen {host} is open to other machines, and this server has no {' and no '.join(missing)}; give "
            f"both, listen on localhost, or say --insecure where something else guards it (docs/security.md)",
            field="listen",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's addresses; one that has none is reached by nobody."""
    try:
        places = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback for *_, place in places)


def raise_open_files() -> None:
    """Lets this process open as many files as it may: each connection is one, and so are those of the store."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

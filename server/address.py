"""Where a server listens: HOST:PORT, and whether it is free."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, replace
from typing import Any

from coldframe.errors import InvalidArgument

_ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104  # of either family: gRPC listens on both


@dataclass(frozen=True)
class Address:
    """HOST:PORT; port 0 takes a free one."""

    host: str
    port: int
    flag: str = "listen"
    """By which it was given."""

    @classmethod
    def parse(cls, value: str, flag: str = "listen") -> Address:
        """Raises InvalidArgument for anything that is not HOST:PORT."""
        host, colon, port = value.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or not port.isdecimal() or int(port) > 65_535 or (":" in bare and bare == host):
            raise InvalidArgument(
                f"--{flag} is {value!r}; give HOST:PORT with a port of 0 to 65535, such as localhost:50051 or "
                f"[::1]:50051",
                field=flag,
            )
        return cls(host, int(port), flag)

    def at(self, port: int) -> Address:
        """Another port of the host."""
        return replace(self, port=port)

    def places(self) -> list[tuple[int, Any]]:
        """The families and socket addresses that the host has. Raises InvalidArgument where it has none."""
        try:
            found = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise taken(self) from error
        return [(family, place) for family, _, _, _, place in found]

    def meets(self, other: Address) -> bool:
        """Whether who listens here keeps the other address from everybody else."""
        if self.port != other.port or not self.port:
            return False
        mine, theirs = ({str(place[0]) for _, place in one.places()} for one in (self, other))
        return bool(mine & theirs or (mine | theirs) & _ANYWHERE)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def require_free(address: Address) -> None:
    """Raises InvalidArgument where the port is taken on any of the host's addresses, or none of them is this machine's.

    gRPC is content with one of them: where another program has 127.0.0.1 it would take localhost's ::1 and say nothing.
    """
    free, refusal = False, None
    for family, place in address.places():
        try:
            _try(family, place)
            free = True
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise taken(address) from error
            refusal = error
    if not free:
        raise taken(address) from refusal


def _try(family: int, place: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(place)


def taken(address: Address) -> InvalidArgument:
    """What is said where an address cannot be listened on."""
    return InvalidArgument(
        f"cannot listen on {address}: the port is taken, or the host is not this machine's; choose another with "
        f"--{address.flag} HOST:PORT",
        field=address.flag,
    )

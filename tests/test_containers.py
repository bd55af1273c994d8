"""Where much is missing that programs take for granted: small, closed and odd containers."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

from coldframe import Client
from coldframe.errors import ColdframeError
from tests.test_server_process import Process
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def answers(address: str) -> bool:
    with Client(address, timeout=60, attempts=1) as client:
        try:
            return bool(client.search("rain").hits)
        except ColdframeError:
            return False


def test_a_server_without_standard_streams_answers_and_ends_in_order(newsroom: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
    flags = ("--store", newsroom, "--precision", "fp32", "--listen", address)
    with Process(tmp_path, *flags, by=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]) as server:
        wait_until(lambda: answers(address))
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0

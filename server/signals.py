"""The signals that end a server."""

from __future__ import annotations

import asyncio
import signal

ENDS = (signal.SIGTERM, signal.SIGINT)


def hear_no_more() -> None:
    """For the last moments of a process: told to end again, it would end otherwise than in order."""
    loop = asyncio.get_running_loop()
    for number in ENDS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)

"""Whoever reads what a server says may stop reading, as a collector of logs that hangs: the server waits for nobody."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from coldframe import Client
from server.observe import logs
from server.observe.lines import Lines
from server.observe.logs import Told
from tests.disks import files_of_at_most
from tests.newsroom import piece

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PIPE_BYTES = 4_096


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a small one."""
    reads, writes = os.pipe()
    try:
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield reads, writes
    finally:
        os.close(writes)
        os.close(reads)


def until_listening(reads: int) -> str:
    """Reads a server's lines up to its address, and not a byte more."""
    line = b""
    while not line.startswith(b"listening on "):
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(reads, 1)
    return line.decode().split()[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_whose_log_nobody_reads_goes_on_and_ends(own_newsroom: Path, workers: int) -> None:
    """Each write has a line of audit there; some ten fill the pipe."""
    flags = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", workers)
    with pipe() as (reads, writes):
        server = subprocess.Popen([sys.executable, "-m", "server", *map(str, flags)], stdout=writes, stderr=writes)
        guard = threading.Timer(120, server.kill)
        guard.start()
        try:
            with Client(until_listening(reads), timeout=20, connections=4) as client:
                for _ in range(20):
                    client.upsert([piece("new")])
                    client.delete(["new"])
                assert client.search("rain").hits
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
            server.wait()
            guard.cancel()


def said(reads: int, last: str) -> list[str]:
    """What a pipe gives up to this line."""
    told = b""
    while not told.endswith(f"{last}\n".encode()):
        told += os.read(reads, 1 << 16)
    return told.decode().splitlines()


def left_out(gap: str) -> int:
    """How many lines the log says that it lacks."""
    told = r"(\d+) lines of the log are left out here: nobody read what stood in line, or its disk was full"
    found = re.fullmatch(told, gap)
    assert found is not None, gap
    return int(found[1])


def test_lines_that_nobody_read_come_later_in_order_and_what_found_no_room_is_counted() -> None:
    with (
        pipe() as (reads, writes),
        open(writes, "w", closefd=False) as stream,  # it has no path
        ThreadPoolExecutor(1) as pool,
    ):
        handler, logger = Told(lines := Lines(stream, room=10_000)), logging.Logger("some")
        logger.addHandler(handler)
        for number in range(100):
            logger.info("%d %s", number, "é" * 150)
        begun = time.monotonic()
        handler.flush()  # the process ends with it, so it waits for nobody either
        assert time.monotonic() - begun < 20
        reading = pool.submit(said, reads, "again")
        lines.flush(60)
        logger.info("again")
        *kept, gap, _ = reading.result()
    assert kept == [f"{number} {'é' * 150}" for number in range(len(kept))]
    assert 0 < len(kept) == 100 - left_out(gap) < 100
    logging.getLogger().addHandler(handler)
    try:
        assert logs.lost() == left_out(gap)
    finally:
        logging.getLogger().removeHandler(handler)


def test_of_a_log_on_a_full_disk_all_lines_are_there_or_counted_and_none_runs_into_another(tmp_path: Path) -> None:
    """Standard error goes to a file. What the disk took of one line stands there in part."""
    logger = logging.Logger("some")
    with (tmp_path / "log").open("a") as stream:
        logger.addHandler(handler := Told(Lines(stream)))
        with files_of_at_most(700):
            for number in range(20):
                logger.info("%d %s", number, "x" * 50)
        logger.info("again")
    *kept, torn, gap, last = (tmp_path / "log").read_text().splitlines()
    assert kept == [f"{number} {'x' * 50}" for number in range(13)]
    assert f"13 {'x' * 50}".startswith(torn)
    assert (left_out(gap), handler.lost, last) == (7, 7, "again")


def test_lines_whose_reader_has_gone_are_counted() -> None:
    with pipe() as (reads, writes), open(writes, "w", closefd=False) as stream:  # it has no path
        logger = logging.Logger("some")
        logger.addHandler(handler := Told(Lines(stream)))
        os.dup2(os.open(os.devnull, os.O_RDONLY), reads)
        logger.info("unheard")
    assert handler.lost == 1


def test_what_is_longer_than_a_pipe_and_what_cannot_be_said_at_all_keep_nobody_waiting() -> None:
    with pipe() as (reads, writes), open(writes, "w", closefd=False) as stream:  # it has no path
        lines = Lines(stream)
        assert lines.put("x" * 100_000)
        assert lines.put("behind it")
        assert [len(line) for line in said(reads, "behind it")] == [100_000, 9]
    for nowhere in (None, io.StringIO(), stream):  # no stream; one that is not the system's; one that was closed
        assert Lines(nowhere).put("unheard")

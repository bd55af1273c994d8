"""Where much is missing that programs take for granted: small, closed and odd containers."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from coldframe import Client
from coldframe.errors import ColdframeError
from coldframe.live import LIVE, LiveStore
from tests import forbidden
from tests.conftest import SAMPLE
from tests.newsroom import piece
from tests.test_observe import get
from tests.test_server_process import Process
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls have other numbers there")


def answers(address: str) -> bool:
    with Client(address, timeout=60, attempts=1) as client:
        try:
            return bool(client.search("rain").hits)
        except ColdframeError:
            return False


@contextlib.contextmanager
def in_crowd(address: str, connections: int) -> Iterator[None]:
    """While so many strangers try to be connected, and say nothing but that they speak HTTP/2."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        time.sleep(1)
        yield


def test_a_server_without_standard_streams_answers_and_ends_in_order(newsroom: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
    flags = ("--store", newsroom, "--precision", "fp32", "--listen", address)
    with Process(tmp_path, *flags, by=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]) as server:
        wait_until(lambda: answers(address))
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0


@pytest.mark.parametrize(
    ("program", "status"), [("server", 0), ("indexer", 128 + signal.SIGTERM), ("coldframe.cli", 128 + signal.SIGTERM)]
)
def test_a_program_that_is_still_being_imported_hears_that_it_shall_end(
    tmp_path: Path, program: str, status: int
) -> None:
    """As process 1 of a container it would not even end by the signal."""
    (tmp_path / "typer.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    begun = subprocess.Popen(
        [sys.executable, "-m", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        text=True,
    )
    with begun:
        assert begun.stdout is not None
        assert begun.stdout.readline() == "importing\n"
        begun.send_signal(signal.SIGTERM)
        assert begun.wait(30) == status


@x86_64
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "refused",
    [(errno.EINVAL, "sched_setscheduler"), (errno.EPERM, "sched_setscheduler", "sched_setaffinity")],
    ids=["gVisor", "systemd's @resources"],
)
def test_articles_are_taken_where_no_thread_may_stand_back(
    own_newsroom: Path, tmp_path: Path, workers: int, refused: tuple[int, str]
) -> None:
    flags = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", workers)
    with Process(tmp_path, *flags, by=forbidden.by(*refused)) as server, Client(server.address(), timeout=60) as client:
        client.upsert([piece("long", "a b c d " * 1_000)])
        assert client.get_article("long").article.id == "long"
        assert "Traceback" not in server.errors()


def test_strangers_leave_files_to_probes_and_to_the_store_where_few_may_be_open(
    own_newsroom: Path, tmp_path: Path
) -> None:
    flags = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    with Process(tmp_path, *flags, by=["sh", "-c", 'ulimit -n 96; exec "$@"', "sh"]) as server:
        address = server.address()
        port = int(re.findall(r"metrics at http://127\.0\.0\.1:(\d+)", server.errors())[0])
        assert "48 connections are taken at once, and not 4,096 (--max-connections)" in server.errors()
        with Client(address, timeout=60) as client:
            client.index()
            with in_crowd(address, 200):
                assert get(port, "/livez") == (200, "alive\n")
                client.upsert([piece("kept")])
                assert client.get_article("kept").article.id == "kept"


@pytest.mark.parametrize(
    ("arguments", "drawing", "said"),
    [
        (("server", "--workers", "2", "--listen", "127.0.0.1:0"), "/proc/none", "no folder for temporary files"),
        (("indexer", "build", "--query", "select 1 as id, 'a' as content"), "", "no folder for temporary files"),
        (("indexer", "build", "--corpus", SAMPLE), "/proc/none", "the report of the build could not be drawn"),
    ],
)
def test_what_needs_a_folder_for_temporary_files_says_so_at_once(
    tmp_path: Path, arguments: tuple[object, ...], drawing: str, said: str
) -> None:
    """Where no file can be written, none of the usual folders will do."""
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", *map(str, arguments), "--store", tmp_path],
        env=os.environ | {"MPLCONFIGDIR": drawing or str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {said}"), done.stderr


# -------------------------------------------------------------------------------------- a file system that lacks much


def refused(error: int, calls: str, *arguments: object) -> tuple[int, str]:
    """How Python ended with these arguments, and its last line, where the system refuses these calls."""
    command = [*forbidden.by(error, calls), sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stdout + done.stderr).splitlines()[-1]


@x86_64
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_store_without_locks_is_refused_in_a_sentence(newsroom: Path, error: int) -> None:
    for command in (("build", "--corpus", SAMPLE), ("prune", "--keep", 1)):
        status, said = refused(error, "flock", "indexer", *command, "--store", newsroom)
        assert status == 1
        assert said.startswith(f"error: the file system of the store {newsroom} keeps no locks ({os.strerror(error)})")


@x86_64
def test_live_articles_that_cannot_be_locked_are_refused_in_a_sentence(own_newsroom: Path) -> None:
    LiveStore(own_newsroom / LIVE).close()
    flags = ("--store", own_newsroom, "--listen", "127.0.0.1:0")
    status, said = refused(errno.ENOLCK, "locks", "server", *flags)
    assert (status, said[:31]) == (1, "error: live.db cannot be locked")


@x86_64
def test_articles_are_taken_where_files_have_one_name_each(own_newsroom: Path, tmp_path: Path) -> None:
    flags = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0")
    by = forbidden.by(errno.EPERM, "link", "linkat")
    with Process(tmp_path, *flags, by=by) as server, Client(server.address(), timeout=60) as client:
        client.upsert([piece("kept")])
        assert client.get_article("kept").article.id == "kept"
    with LiveStore(own_newsroom / LIVE, read_only=True) as live:
        assert [entry.id for entry in live.since(0)] == ["kept"]
    assert list(own_newsroom.glob("*.partial")) == []


@x86_64
@pytest.mark.parametrize("command", [("server", "health", "--listen"), ("coldframe.cli", "info", "--server")])
def test_who_cannot_even_ask_says_why_on_one_line(command: tuple[str, ...]) -> None:
    status, said = refused(errno.EAFNOSUPPORT, "socket", *command, "[::1]:1")
    assert status == 1
    assert said.startswith("error: no ")
    assert "Address family not supported by protocol" in said
    assert said.isprintable()

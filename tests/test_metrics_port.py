"""The port for machines, and callers of it who mean no good."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from server.address import Address
from server.observe.metrics import Pulse
from server.observe.port import Port

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port(Address("127.0.0.1", 0), CollectorRegistry(), Pulse(), lambda: True)
    yield made
    made.close()


@pytest.mark.parametrize(
    "accept",
    ["text/plain;version=abc", "application/openmetrics-text;version=1.x", "application/openmetrics-text;version="],
)
def test_metrics_are_told_to_whoever_accepts_what_there_is_not(
    port: Port, accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port.port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.status == 200
    assert caplog.text == ""


def test_a_header_of_several_lines_makes_no_header_of_the_answer(port: Port) -> None:
    accept = b"application/openmetrics-text;\r\n version=1.0.0.0\r\n X-Mine: 1"
    with socket.create_connection(("127.0.0.1", port.port), timeout=10) as caller:
        caller.sendall(b"GET /metrics HTTP/1.0\r\nAccept: " + accept + b"\r\n\r\n")
        with caller.makefile("rb") as answer:
            head = [*iter(answer.readline, b"\r\n")]
    assert [line for line in head if b"X-Mine" in line] == [line for line in head if line.startswith(b"Content-Type:")]


@pytest.mark.parametrize(("path", "status"), [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/no", 404)])
def test_a_probe_may_ask_for_the_head_alone(port: Port, path: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port.port), timeout=10) as caller:
        caller.sendall(b"HEAD %b HTTP/1.0\r\n\r\n" % path.encode())
        with caller.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 %d " % status)
    assert b"Content-Length:" in head
    assert body == b""


def test_a_crowd_at_once_keeps_no_probe_waiting(port: Port) -> None:
    began = time.monotonic()
    with ExitStack() as crowd:
        for _ in range(100):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port.port), timeout=10))
        with urllib.request.urlopen(f"http://127.0.0.1:{port.port}/livez", timeout=10) as reply:
            assert reply.status == 200
    assert time.monotonic() - began < 1, "the kernel tries again after a second where a line of callers is full"


def test_a_probe_for_which_no_file_is_left_waits_and_keeps_no_core_busy(port: Port) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clock = time.pthread_getcpuclockid(next(t.ident for t in threading.enumerate() if t.name == "metrics" and t.ident))
    with socket.socket() as caller:
        caller.settimeout(10)
        os.close(first_free := os.dup(caller.fileno()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
        try:
            caller.connect(("127.0.0.1", port.port))
            caller.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            before = time.clock_gettime(clock)
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(caller.fileno())
            time.sleep(1)
            spent = time.clock_gettime(clock) - before
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert spent < 0.05
        assert caller.recv(100).startswith(b"HTTP/1.0 200 ")


def test_a_probe_is_answered_where_no_thread_can_be_begun(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    threading.stack_size(1 << 47)  # for which no process has room
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=int).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{port.port}/livez", timeout=10) as reply:
            assert reply.status == 200
    finally:
        threading.stack_size(0)
    assert caplog.text == ""

"""The thread that stands back: what it does, and what it gives back beside processes that leave it no core."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from server.aside import Aside
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from server.aside import Work

    Does = Callable[[Work], bool]

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a priority")


@pytest.fixture
def aside() -> Iterator[Aside]:
    thread = Aside()
    yield thread
    thread.shutdown()


@contextmanager
def busy_neighbours() -> Iterator[None]:
    """Two processes on every core that do nothing but compute."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    processes = []
    try:
        for core in sorted(os.sched_getaffinity(0)) * 2:
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            os.sched_setaffinity(process.pid, [core])
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


class Computing:
    """Computes for some seconds of its thread's time, asking on the way whether to go on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.ended = False

    def __call__(self, go_on: Callable[[], None]) -> None:
        until = time.thread_time() + self._seconds
        while time.thread_time() < until:
            go_on()
        self.ended = True


@pytest.fixture(params=["on the loop", "on a thread"])
def does(request: pytest.FixtureRequest, aside: Aside) -> Does:
    """Has a work done, and waits for it there."""
    return aside.does_blocking if request.param == "on a thread" else lambda work: asyncio.run(aside.does(work))


def test_what_gets_on_is_done(does: Does, aside: Aside) -> None:
    aside.look_s = 60  # whatever else the machine does
    work = Computing(0.01)
    assert does(work)
    assert work.ended
    assert aside.ready


def test_who_waits_hears_what_went_wrong(does: Does) -> None:
    def fail(go_on: Callable[[], None]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        does(fail)


@linux
def test_beside_processes_that_leave_it_no_core_work_comes_back_and_the_thread_rests(does: Does, aside: Aside) -> None:
    aside.rest_s = 0.5
    work = Computing(2)
    with busy_neighbours():
        begun = time.monotonic()
        assert not does(work)
        assert time.monotonic() - begun < 5
        rests_at_first = not aside.ready
    until = time.monotonic() + 60
    while not aside.ready:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert rests_at_first
    assert not work.ended


@pytest.fixture
def core(aside: Aside) -> Iterator[threading.Event]:
    """What a work waits for that has no core until then; it has one in the end."""
    event = threading.Event()
    yield event
    event.set()


@linux
def test_it_is_worth_a_try_again_when_it_has_rested_and_what_it_gave_back_is_ended(
    does: Does, aside: Aside, core: threading.Event
) -> None:
    aside.look_s, aside.rest_s = 0.01, 0
    assert not does(lambda go_on: core.wait(60))
    assert not aside.ready, "another one would stand behind it"
    core.set()
    wait_until(lambda: aside.ready)
    core.clear()
    aside.rest_s = 3_600
    assert not does(lambda go_on: core.wait(60))
    core.set()
    aside.look_s = 60
    assert does(lambda go_on: None), "which begins when that has ended"
    assert not aside.ready, "it rests"


@linux
def test_what_somebody_else_does_is_not_begun_any_more(does: Does, aside: Aside, core: threading.Event) -> None:
    aside.look_s = 0.01
    begun: list[bool] = []
    assert not does(lambda go_on: core.wait(60))
    assert not does(lambda go_on: begun.append(True))
    core.set()
    aside.look_s = 60
    assert does(lambda go_on: None), "which comes after both"
    assert not begun


@linux
def test_however_well_it_got_on_it_comes_back_soon_where_it_does_no_longer(
    does: Does, aside: Aside, core: threading.Event
) -> None:
    computed, stopped_at = Computing(1), list[float]()

    def work(go_on: Callable[[], None]) -> None:
        computed(go_on)
        stopped_at.append(time.monotonic())
        core.wait(60)

    assert not does(work)
    # On a machine that others keep busy it may have been given back before.
    assert all(time.monotonic() - then < 5 for then in stopped_at)


@linux
def test_less_than_a_fiftieth_of_a_core_is_too_little_to_get_on_with(does: Does, aside: Aside) -> None:
    aside.look_s = 0.5

    def work(go_on: Callable[[], None]) -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            Computing(0.001)(go_on)
            time.sleep(0.2)

    assert not does(work)


@linux
def test_while_the_thread_is_told_to_stand_back_it_runs_no_python(
    does: Does, aside: Aside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system stops it at once there, and whoever wants Python would wait for it."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda thread, *_: told.append((thread, threading.get_native_id())))
    aside.look_s = 60
    threads: list[int] = []
    assert does(lambda _: threads.append(threading.get_native_id()))
    [(thread, by)] = told
    assert [thread] == threads
    assert by != thread


@linux
def test_who_ends_it_does_not_wait_for_what_was_given_back(does: Does, aside: Aside, core: threading.Event) -> None:
    aside.look_s = 0.01
    assert not does(lambda _: core.wait(60))
    aside.shutdown()
    assert aside.stands


_STANDING = """
import sys, threading
from server.__main__ import app
from server.engine import Engine

async def close(self, close=Engine.close):
    self._aside.look_s = 0.5
    assert not await self._aside.does(lambda _: threading.Event().wait())
    await close(self)

Engine.close = close
app(["--store", sys.argv[1], "--listen", "127.0.0.1:0"])
"""


@linux
def test_a_server_ends_where_a_thread_of_it_gets_no_core(tmp_path: Path) -> None:
    """Python waits for every thread of a pool: a server beside busy processes was killed for it."""
    command = [sys.executable, "-c", _STANDING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any(line.startswith("listening on") for line in server.stdout)
            server.terminate()
            assert server.wait(60) == 0
            assert "stopping" in server.stdout.read()
        finally:
            server.kill()


@linux
def test_it_rests_twice_as_long_after_each_try_in_vain_until_it_gets_on(does: Does, aside: Aside) -> None:
    def rest() -> float:
        core = threading.Event()
        aside.look_s = 0.01
        begun = time.monotonic()
        assert not does(lambda _: core.wait(60))
        rests_s = aside._rests_until - time.monotonic()
        core.set()
        wait_until(lambda: not aside.stands)
        assert time.monotonic() - begun < 50
        return rests_s

    aside.rest_s = 100
    assert [round(rest(), -2) for _ in range(6)] == [100, 200, 400, 800, 1_600, 1_600]
    aside.look_s = 60
    assert does(lambda _: None)
    assert round(rest(), -2) == 100


@linux
def test_beside_processes_that_have_the_cores_it_is_not_tried(aside: Aside) -> None:
    with busy_neighbours():
        aside.look_about()
        time.sleep(0.5)
        aside.look_about()
        tried = aside.ready
    assert not tried


@linux
def test_what_the_server_itself_computes_keeps_it_from_nothing(aside: Aside, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(10.0, 0.0, 6.0), (20.0, 0.0, 10.0), (30.0, 1.0, 10.0), (30.0, 1.0, 10.0)])
    monkeypatch.setattr("server.aside._times", lambda: next(times))
    monkeypatch.setattr(aside, "_times", (0.0, 0.0, 0.0))
    ready = []
    for _ in range(4):
        aside.look_about()
        ready.append(aside.ready)
    assert ready == [True, False, True, True]


def test_where_the_system_does_not_say_what_others_have_it_is_tried(
    aside: Aside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.aside._STAT", tmp_path / "none")
    monkeypatch.setattr(aside, "_times", (0.0, 0.0, 0.0))
    for _ in range(2):
        aside.look_about()
        assert aside.ready

"""Several processes on one port: what one was told, all show; one that dies is replaced; none outlives the first."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch

from coldframe.errors import InvalidArgument
from coldframe.live import LIVE, LiveStore
from coldframe.store import Store
from coldframe.v1 import article_service_pb2 as pb
from coldframe.v1.article_service_pb2_grpc import ArticleServiceStub
from coldframe.v1.index_service_pb2 import GetIndexRequest
from coldframe.v1.index_service_pb2_grpc import IndexServiceStub
from server.address import Address, require_free
from server.cores import Cores
from server.engine import Engine
from server.place import MOST_NAMES, MOST_WORKERS, PAGE_BYTES, Latest, Place, Presence, Words
from server.workers import _keep_to_share, held
from tests.newsroom import COUNT, piece
from tests.test_server_process import Process
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS = 12


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()  # a child is its thread's
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def workers_of(pid: int) -> list[int]:
    """They are forked by a child of the one who looks after them."""
    return [worker for child in children(pid) for worker in children(child)]


def sockets(pid: int) -> set[str]:
    """The inodes of a process's open sockets."""
    links = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(file.readlink().name)
        except OSError:
            continue
    return {name[8:-1] for name in links if name.startswith("socket:[")}


def served_by(pid: int, port: int) -> int:
    """How many connections to the port a process has accepted."""
    mine, established = sockets(pid), "01"
    tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return sum(row[9] in mine and row[3] == established and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def dial(address: str) -> grpc.Channel:
    """A connection of its own: others to the same address are not shared."""
    return grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)])


class Crew:
    """A server of two workers, and connections to both."""

    def __init__(self, process: Process) -> None:
        self.process, self.address = process, process.address()
        self.port = int(self.address.rpartition(":")[2])
        self.channels = [dial(self.address) for _ in range(CONNECTIONS)]
        self.articles = [ArticleServiceStub(channel) for channel in self.channels]
        for channel in self.channels:
            IndexServiceStub(channel).GetIndex(GetIndexRequest(), timeout=60)

    @property
    def workers(self) -> list[int]:
        return workers_of(self.process.popen.pid)

    def shown(self, article_id: str) -> list[str]:
        """The title that each connection is shown; empty where it is shown none."""
        return [_title(stub, article_id) for stub in self.articles]


def _title(stub: Any, article_id: str) -> str:
    try:
        return str(stub.GetArticle(pb.GetArticleRequest(id=article_id), timeout=60).article.title)
    except grpc.RpcError as error:
        refused: Any = error
        if refused.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return ""


@pytest.fixture
def crew(own_newsroom: Path, tmp_path: Path) -> Iterator[Crew]:
    arguments = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments) as process:
        crew = Crew(process)
        yield crew
        for channel in crew.channels:
            channel.close()
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(60) == 0
        assert "Traceback" not in process.errors()


def test_what_one_worker_was_told_every_worker_shows_at_once(crew: Crew) -> None:
    assert [served_by(pid, crew.port) > 0 for pid in crew.workers] == [True, True]
    for turn in range(2 * CONNECTIONS):
        stub = crew.articles[turn % CONNECTIONS]
        one = piece("told", title=f"turn {turn}")
        assert stub.UpsertArticles(pb.UpsertArticlesRequest(articles=[one]), timeout=60).results[0].HasField("article")
        assert crew.shown("told") == [f"turn {turn}"] * CONNECTIONS
        if turn % 5 == 4:
            stub.DeleteArticles(pb.DeleteArticlesRequest(ids=["told"]), timeout=60)
            assert crew.shown("told") == [""] * CONNECTIONS


def test_who_looks_after_workers_loads_nothing_of_what_they_load(crew: Crew) -> None:
    loaded = Path(f"/proc/{crew.process.popen.pid}/maps").read_text()
    assert [name for name in ("torch", "faiss", "pyarrow", "numpy") if name in loaded] == []


def test_workers_share_out_the_cores(crew: Crew) -> None:
    cores = os.sched_getaffinity(0)
    first, second = (os.sched_getaffinity(pid) for pid in crew.workers)
    if len(cores) == 1:
        assert (first, second) == (cores, cores)
    else:
        assert first | second == cores
        assert not first & second


def test_workers_that_write_at_once_lose_nothing_and_agree(crew: Crew, own_newsroom: Path) -> None:
    turns = 25

    def write(number: int) -> None:
        for turn in range(turns):
            articles = [piece(f"own-{number}-{turn}", title="own"), piece("everyone's", title=f"{number} {turn}")]
            crew.articles[number].UpsertArticles(pb.UpsertArticlesRequest(articles=articles), timeout=120)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(write, range(CONNECTIONS)))
    for number in range(CONNECTIONS):
        for turn in range(0, turns, 6):
            assert set(crew.shown(f"own-{number}-{turn}")) == {"own"}
    (last,) = set(crew.shown("everyone's"))
    with LiveStore(own_newsroom / LIVE, read_only=True) as live:
        kept = list(live.since(0))
    assert len(kept) == CONNECTIONS * turns + 1
    (of_all,) = [entry.article.title for entry in kept if entry.article and entry.id == "everyone's"]
    assert of_all == last
    # Every change has a number of its own: none was made on a state that another worker had left behind.
    assert max(entry.sequence for entry in kept) == 2 * CONNECTIONS * turns


def test_what_one_may_ask_in_a_second_holds_for_all_workers_together(own_newsroom: Path, tmp_path: Path) -> None:
    arguments = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments, "--requests-per-second", 0.001, "--burst", 7) as process:
        address, answers = process.address(), []
        channels = [dial(address) for _ in range(CONNECTIONS)]
        for channel in channels:
            grpc.channel_ready_future(channel).result(60)
        port = int(address.rpartition(":")[2])
        assert [served_by(pid, port) > 0 for pid in workers_of(process.popen.pid)] == [True, True]
        for channel in channels:
            try:
                IndexServiceStub(channel).GetIndex(GetIndexRequest(), timeout=60)
                answers.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                refused: Any = error
                answers.append(refused.code())
            channel.close()
    refused_ones = [grpc.StatusCode.RESOURCE_EXHAUSTED] * (CONNECTIONS - 7)
    assert answers == [grpc.StatusCode.OK] * 7 + refused_ones


def test_every_name_has_a_word_of_its_own_which_is_the_same_for_all(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(bytes(PAGE_BYTES))
    one, other = Words(page), Words(page)
    names = [f"key {n}" for n in range(MOST_NAMES)]
    for n, name in enumerate(names):
        (one if n % 2 else other).of(name)[0] = n
    assert [one.of(name)[0] for name in names] == [*range(MOST_NAMES)]
    assert [other.of(name)[0] for name in names] == [*range(MOST_NAMES)]
    one.of("one too many")[0] = 5
    assert other.of("one too many")[0] == 0, "which each worker counts for itself"
    assert Latest(place(page, 0)).number == 0


def test_a_worker_that_dies_is_replaced_and_what_it_acknowledged_stays(crew: Crew) -> None:
    one = piece("before", title="before")
    crew.articles[0].UpsertArticles(pb.UpsertArticlesRequest(articles=[one]), timeout=60)
    victim, other = crew.workers
    os.kill(victim, signal.SIGKILL)
    now: list[int] = []

    def replaced() -> bool:
        now[:] = crew.workers  # of one look: the next may miss a child beside another one that comes or goes
        return len(now) == 2 and victim not in now

    wait_until(replaced)
    assert other in now
    (new,) = set(now) - {other}

    def reached() -> bool:
        with dial(crew.address) as channel:
            assert _title(ArticleServiceStub(channel), "before") == "before"
            return served_by(new, crew.port) > 0

    wait_until(reached)


def test_workers_do_not_outlive_the_one_who_looks_after_them(own_newsroom: Path, tmp_path: Path) -> None:
    arguments = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments) as process:
        process.address()
        workers = workers_of(process.popen.pid)
        assert len(workers) == 2
        process.popen.kill()
        process.popen.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in workers))


def test_a_server_that_cannot_start_says_so_once_and_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no store")
    arguments = ("--store", tmp_path / "file", "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments) as process:
        assert process.popen.wait(60) == 2
        assert process.errors().count("error: ") >= 1
        assert "Traceback" not in process.errors()


def test_hangups_while_workers_start_end_none_of_them(newsroom: Path, tmp_path: Path) -> None:
    arguments = ("--store", newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments) as process, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: bool(children(process.popen.pid)))
        listening = pool.submit(process.address)
        while not listening.done():
            process.popen.send_signal(signal.SIGHUP)
            time.sleep(0.02)
        with dial(listening.result()) as channel:
            IndexServiceStub(channel).GetIndex(GetIndexRequest(), timeout=60)


def test_a_stop_while_workers_start_is_a_stop(newsroom: Path, tmp_path: Path) -> None:
    arguments = ("--store", newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments) as process:
        wait_until(lambda: bool(workers_of(process.popen.pid)))
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(60) == 0, process.errors()


def test_a_stop_that_all_processes_hear_waits_for_the_workers(crew: Crew) -> None:
    """As of a systemd unit with its usual KillMode, or of `kill` with the number of the group."""
    workers, (forks,) = crew.workers, [child for child in children(crew.process.popen.pid) if children(child)]
    for _ in range(2):
        os.kill(forks, signal.SIGTERM)
    os.kill(workers[0], signal.SIGSTOP)  # so that it cannot have ended already
    for pid in (forks, crew.process.popen.pid, *workers):
        os.kill(pid, signal.SIGTERM)
    time.sleep(1)
    assert crew.process.popen.poll() is None
    os.kill(workers[0], signal.SIGCONT)  # and the fixture waits for an orderly end


@pytest.mark.parametrize("after_s", [0.5, 1.5, 2.5])
def test_ctrl_c_while_workers_start_is_no_fault(newsroom: Path, tmp_path: Path, after_s: float) -> None:
    arguments = ("--store", newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments) as process:
        wait_until(lambda: bool(children(process.popen.pid)))
        time.sleep(after_s)
        pid = process.popen.pid
        for each in (*workers_of(pid), *children(pid), pid):
            os.kill(each, signal.SIGINT)
        assert process.popen.wait(60) in (0, 130)  # or before there are any
        assert process.errors() == ""


def test_a_worker_is_replaced_where_old_files_were_cleared_away(newsroom: Path, tmp_path: Path) -> None:
    arguments = ("--store", newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", 2)
    # Not under `tmp_path`, which is too long for a socket's where pytest-xdist has made it.
    with tempfile.TemporaryDirectory() as temporary, Process(tmp_path, *arguments, TMPDIR=temporary) as process:
        address = process.address()
        for path in Path(temporary).rglob("*"):
            if path.is_file():  # sockets stay
                path.unlink()
        victim, other = workers_of(process.popen.pid)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len({*workers_of(process.popen.pid)} - {victim, other}) == 1)
        (new,) = {*workers_of(process.popen.pid)} - {victim, other}

        def asked() -> bool:
            with dial(address) as channel:
                IndexServiceStub(channel).GetIndex(GetIndexRequest(), timeout=60)
                return served_by(new, int(address.rpartition(":")[2])) > 0

        wait_until(asked)


def test_a_folder_for_temporary_files_with_too_long_a_path_for_sockets_is_said(newsroom: Path, tmp_path: Path) -> None:
    (folder := tmp_path / ("long" * 25)).mkdir()
    arguments = ("--store", newsroom, "--listen", "127.0.0.1:0", "--workers", 2)
    with Process(tmp_path, *arguments, TMPDIR=str(folder)) as process:
        assert process.popen.wait(60) == 2
        assert "Traceback" not in process.errors()
        assert f"a socket in {folder}, which is too long a path for one; name a shorter one by" in process.errors()


def test_a_port_that_workers_share_is_taken_for_everybody_else(crew: Crew, tmp_path: Path, own_newsroom: Path) -> None:
    (tmp_path / "other").mkdir()
    with Process(tmp_path / "other", "--store", own_newsroom, "--listen", crew.address, "--workers", 2) as second:
        assert second.popen.wait(60) == 2
        assert "the port is taken" in second.errors()


def test_workers_have_a_port_where_a_connection_ended_a_moment_ago_and_nobody_else_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as before, socket.create_connection(before.getsockname()) as caller:
        before.accept()[0].close()  # who ends it first keeps it for a minute, in TIME_WAIT
        assert caller.recv(1) == b""
        address = Address("127.0.0.1", before.getsockname()[1])
    require_free(address)
    with held(address) as port:
        assert port == address
        with pytest.raises(InvalidArgument, match="the port is taken"):
            require_free(address)
        with socket.socket() as worker:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                worker.setsockopt(socket.SOL_SOCKET, option, 1)
            worker.bind(("127.0.0.1", address.port))
            worker.listen()


def test_workers_of_an_address_that_is_not_this_machines_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="the host is not this machine's"), held(Address("203.0.113.5", 50051)):
        pass


def test_the_number_of_the_last_change_only_grows(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(bytes(PAGE_BYTES))
    first, second = (Latest(place(tmp_path / "page", number)) for number in (0, MOST_WORKERS - 1))
    assert first.number == 0
    second.tell(7)
    first.tell(3)
    assert (first.number, second.number, Latest().number) == (7, 7, 0)


class Slow(int):
    """A number that takes its time to be compared."""

    meanwhile: Callable[[], None]

    def __gt__(self, other: int) -> bool:
        self.meanwhile()
        return int(self) > other


def test_a_worker_that_is_stopped_as_it_tells_puts_no_older_number_back(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(bytes(PAGE_BYTES))
    first, second = (Latest(place(tmp_path / "page", number)) for number in (0, 1))
    older = Slow(7)
    older.meanwhile = lambda: second.tell(8)
    first.tell(older)
    assert (first.number, second.number) == (8, 8)


def place(page: Path, number: int) -> Place:
    return Place(number, MOST_WORKERS, page, -1, frozenset(os.sched_getaffinity(0)))


def presence(page: Path, number: int) -> Presence:
    return Presence(place(page, number))


def test_a_worker_is_alone_until_another_has_something_to_do(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(bytes(PAGE_BYTES))
    latest, first, second = (
        Latest(place(tmp_path / "page", 0)),
        *(presence(tmp_path / "page", number) for number in (0, 63)),
    )
    first.note()
    assert (first.alone, second.alone) == (True, False)
    second.note()
    assert not first.alone
    time.sleep(0.15)
    assert (first.alone, second.alone, latest.number) == (True, True, 0)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_a_text_that_is_alone_has_the_cores_of_idle_workers_and_gives_them_back(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(bytes(PAGE_BYTES))
    everything = os.sched_getaffinity(0)
    first, second = (presence(tmp_path / "page", number) for number in (0, 1))

    def had(take: Callable[[], None]) -> tuple[int, set[int]]:
        take()
        return torch.get_num_threads(), os.sched_getaffinity(0)

    def as_worker() -> list[tuple[int, set[int]]]:
        os.sched_setaffinity(0, {min(everything)})
        torch.set_num_threads(1)
        cores = Cores(first)
        found = [had(cores.everybodys), had(cores.half), had(cores.everybodys), had(cores.all)]
        second.note()
        return [*found, had(cores.everybodys)]

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(as_worker).result()
    torch.set_num_threads(before)
    own, all_ = (1, {min(everything)}), (len(everything), everything)
    assert found == [all_, own, all_, own, own]


def test_a_batch_beside_others_has_half_of_the_cores_and_never_none() -> None:
    def had(count: int) -> list[int]:
        torch.set_num_threads(count)
        cores = Cores()
        found = []
        for take in (cores.half, cores.all, cores.half, cores.everybodys):
            take()
            found.append(torch.get_num_threads())
        return found

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        found = [pool.submit(had, count).result() for count in (1, 4)]
    torch.set_num_threads(before)
    assert found == [[1, 1, 1, 1], [2, 4, 2, 4]]


def test_cores_that_are_there_no_longer_keep_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: int, cores: object) -> None:
        raise OSError(errno.EINVAL, "no such core")

    (tmp_path / "page").write_bytes(bytes(PAGE_BYTES))
    cores = Cores(presence(tmp_path / "page", 0))
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    for take in (cores.everybodys, cores.half, cores.everybodys, cores.all):
        take()
    assert torch.get_num_threads() == before
    torch.set_num_threads(before)


def test_workers_go_without_a_share_of_the_cores_where_a_sandbox_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: int, cores: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    _keep_to_share(0, 1)


def test_a_number_that_no_change_in_the_file_has_is_looked_for_once(newsroom: Path) -> None:
    async def ask(engine: Engine) -> list[bool]:
        behind = [engine.catch_up() for _ in range(3)]
        await asyncio.gather(*(waiting for waiting in behind if waiting is not None))
        return [engine.catch_up() is None, len(engine.served().view) == COUNT]

    latest = Latest()
    engine = Engine(Store(newsroom), precision="fp32", latest=latest)
    engine.load()
    latest.tell(999)  # as a worker does whose generation folded in a file that is gone
    assert asyncio.run(ask(engine)) == [True, True]
    asyncio.run(engine.close())

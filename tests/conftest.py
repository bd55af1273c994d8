"""What many tests share: a small corpus, a store built from it once, the encoder, and a server in this process.

articles      43 short articles: cut from the sample corpus, with copies of texts and unusual ids among them
store_path    a store with one generation of them, built once; read it, and change `own_store` instead
generation    that generation, open
encoder       minilm in fp32
disk          a small disk of its own (tmpfs), where this user may mount one
background    an event loop in a thread; `background.serving(engine)` runs a real gRPC server on a free port
target        HOST:PORT of a server over `store_path`
newsroom      a store of 120 articles of single letters (tests.newsroom); `own_newsroom` is a copy to change
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import os

# Before torch and FAISS are there. Their teams of threads look for more work for milliseconds when they are done, by
# default, and beside other processes of tests they look away the time that those would work in.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import settings
from rich.console import Console

from coldframe import Encoder
from coldframe.store import Store
from coldframe.text import article_text
from tests.disks import mount

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from coldframe.generation import Generation
    from server.engine import Engine
    from server.security.guard import Guard

# Tables are as wide as in a pipe, whatever the shell of who tests, or pytest-xdist, says of its window.
os.environ.pop("COLUMNS", None)

# How long an example takes says how busy the machine is.
settings.register_profile("coldframe", deadline=None)
settings.load_profile("coldframe")

T = TypeVar("T")
SAMPLE = Path(__file__).parent.parent / "examples" / "news" / "articles.csv"


@dataclass(frozen=True)
class Sample:
    """An article of the small corpus."""

    id: str
    title: str
    content: str
    date: str

    @property
    def text(self) -> str:
        """What of it is embedded."""
        return article_text(self.title, self.content)


def cut_samples() -> list[Sample]:
    """40 articles of 40 to 80 words, two of their texts again under other ids, and one again with a word changed."""
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)][:40]
    unusual = {3: "Ärger/über 100%", 7: "新聞 7", 11: "%2F..%00", 13: "🗞", 17: "a b+c&d=e"}
    cut = []
    for n, row in enumerate(rows):
        words = row["Content"].split()[: 40 + 7 * n % 41]
        cut.append(Sample(unusual.get(n, row["Article_Id"]), row["Title"], " ".join(words), row["Date"] if n else ""))
    copies = [Sample("copy-of-5", cut[5].title, cut[5].content, ""), Sample("0999", cut[7].title, cut[7].content, "")]
    near = Sample("nearly-9", cut[9].title, cut[9].content.replace("the", "that", 1), "")
    return [*cut, *copies, near]


def write_corpus(path: Path, articles: Sequence[Sample]) -> None:
    """Writes a CSV that the indexer reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Article_Id", "Title", "Content", "Date", "Author"])
        writer.writerows((a.id, a.title, a.content, a.date, f"Author of {a.id}") for a in articles)


@pytest.fixture(scope="session")
def articles() -> list[Sample]:
    return cut_samples()


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory, articles: list[Sample]) -> Path:
    from indexer.build import BuildConfig, run
    from indexer.corpus import CorpusConfig
    from indexer.progress import Reporter

    folder = tmp_path_factory.mktemp("built")
    write_corpus(folder / "articles.csv", articles)
    config = BuildConfig(corpus=CorpusConfig([str(folder / "articles.csv")]), store=folder / "store", precision="fp32")
    run(config, Reporter(Console(file=io.StringIO())))
    return folder / "store"


@pytest.fixture
def own_store(store_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store_path, tmp_path / "own-store"))


@pytest.fixture(scope="session")
def generation(store_path: Path) -> Generation:
    return Store(store_path).open()


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return Encoder.load("minilm", precision="fp32")


class Background:
    """An event loop in a thread of its own. gRPC's asyncio servers all live on one: they share a poller."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="event loop")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 60) -> T:
        """Runs a coroutine over there and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    @contextlib.contextmanager
    def serving(self, engine: Engine, guard: Guard | None = None) -> Iterator[str]:
        """A server over an engine, as loaded as it is; yields HOST:PORT. It closes the engine in the end."""
        from server.address import Address
        from server.app import Server

        async def start() -> tuple[Server, Address]:
            server = Server(engine, guard)
            return server, await server.start(Address("127.0.0.1", 0))

        server, address = self.run(start())
        try:
            yield str(address)
        finally:
            self.run(server.stop(1))

    def close(self) -> None:
        """Ends the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own; `mount(disk, "remount,...")` changes it."""
    path = tmp_path / "disk"
    path.mkdir()
    if shutil.which("mount") is None or not mount(path, "size=64m"):
        pytest.skip("this user may not mount a tmpfs")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=30)


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


@pytest.fixture(scope="session")
def target(background: Background, store_path: Path) -> Iterator[str]:
    from server.engine import Engine

    engine = Engine(Store(store_path), precision="fp32")
    engine.load()
    with background.serving(engine) as address:
        yield address


@pytest.fixture(scope="session")
def newsroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.newsroom import make_store

    return make_store(tmp_path_factory.mktemp("newsroom"))


@pytest.fixture
def own_newsroom(newsroom: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(newsroom, tmp_path / "own-newsroom"))

"""A store of articles of single letters, which cost next to nothing to embed, and real servers over it.

The random Longformer of `tests.models` reads them: articles of equal letters are near, and nothing else is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe import Client, article
from coldframe.generation import Manifest
from coldframe.store import Store
from server.engine import Engine
from tests.builds import build, letters
from tests.corpus_files import write
from tests.models import longformer_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.v1.types_pb2 import Article
    from server.view import View
    from tests.conftest import Background

COUNT = 120


def make_store(folder: Path, **options: Any) -> Path:
    """A store with one generation of 120 articles, three desks of 40, one a day."""
    model = longformer_directory(folder / "model", window=256, layers=2)
    rows = letters(COUNT)
    for n, row in enumerate(rows):
        row["views"] = str(n * n)
    corpus = write(folder / "articles.csv", rows)
    build(folder / "store", corpus, model=str(model), **{"clusters": 6, "recipe": "mean-centred", **options})
    return folder / "store"


def sealed_again(directory: Path, **changes: Any) -> str:
    """Gives a generation another manifest, and with it another name, which is returned."""
    manifest = Manifest.read(directory)
    kept = ("model", "corpus", "parameters", "report", "source", "precision", "requested", "watermark")
    arguments = {key: getattr(manifest, key) for key in kept} | changes
    name = Manifest.seal(directory, **arguments, after=[manifest.name]).name
    directory.rename(directory.with_name(name))
    return name


@contextlib.contextmanager
def opened(background: Background, store: Path, **options: Any) -> Iterator[tuple[Client, Engine]]:
    """A server over a store, and a client that asks it."""
    engine = Engine(Store(store), precision="fp32", **options)
    engine.load()
    with background.serving(engine) as address, Client(address, timeout=60) as client:
        yield client, engine


def piece(article_id: str, text: str = "", **fields: Any) -> Article:
    """An article to upsert; its text is its own where none is given."""
    return article(article_id, content=text or words(article_id), **fields)


def words(seed: str, count: int = 40) -> str:
    """Letters that only this seed draws."""
    rng = np.random.default_rng(list(seed.encode()))
    return " ".join(rng.choice([*"abcdefghijklmnopqrstuvwxyz"], count))


def every_id(view: View) -> dict[str, int]:
    """All articles of a view and their rows."""
    rows = [*view.base_rows.rows().tolist(), *(np.flatnonzero(view.alive) + len(view.base)).tolist()]
    return {view.id_of(row): row for row in rows}


def everything(view: View) -> tuple[list[str], NDArray[np.float64]]:
    """Ids of all articles of a view, in their order, and their vectors, (n, dim), for brute force."""
    known = sorted(every_id(view).items())
    return [name for name, _ in known], view.vectors(np.array([row for _, row in known])).astype(np.float64)


def nearest(view: View, vector: NDArray[Any], without: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """All articles of a view by brute force: the most similar first, equal ones by id."""
    names, vectors = everything(view)
    scores = (vectors * vector.astype(np.float64)).sum(axis=1).astype(np.float32)
    found = sorted(zip((-scores).tolist(), names, strict=True))
    return [name for _, name in found if name not in without]


class Barrier:
    """Holds a thread pool of an engine until it is opened."""

    def __init__(self, pool: Any) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()
        self.done = pool.submit(self._wait)
        assert self.reached.wait(60)

    def _wait(self) -> None:
        self.reached.set()
        assert self._open.wait(60)

    def open(self) -> None:
        """Lets the thread go on."""
        self._open.set()
        self.done.result(60)


def settled(background: Background) -> None:
    """Waits until the event loop has done what was ready to be done."""
    for _ in range(5):
        background.run(asyncio.sleep(0))

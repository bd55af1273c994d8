"""What all runs of the state machine share: articles and texts, the encoder, three generations, and a live.db."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import grpc.aio
import numpy as np

from coldframe import Encoder
from coldframe.live import LIVE, Delete, Embedded, LiveArticle, LiveStore, Upsert
from coldframe.store import Store
from coldframe.text import text_digest
from tests.builds import build
from tests.conftest import SAMPLE, Sample, cut_samples, write_corpus
from tests.index_model import Article, Basis
from tests.index_questions import ATTRIBUTES, DATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from coldframe.live import Change
    from tests.conftest import Background
    from tests.index_model import Log, Vector


def _texts(samples: Sequence[Sample]) -> Iterator[tuple[str, str]]:
    """Titles and contents: some of the corpus, versions of those, short ones of no article, and versions of those."""
    for sample in samples[4:9]:
        yield sample.title, sample.content
    for sample in samples[8:11]:
        yield sample.title, sample.content.rsplit(" ", 6)[0]
        yield f"{sample.title} again", sample.content.replace(" the ", " that ", 2)
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)][45:53]
    for n, row in enumerate(rows):
        words = row["Content"].split()[: 18 + 3 * n]
        yield row["Title"], " ".join(words)
        if n % 3 == 0:
            yield row["Title"], " ".join([*words[:-1], "otherwise"])
    yield "", rows[0]["Title"]


SAMPLES = cut_samples()
TEXTS = tuple(_texts(SAMPLES))
NEW_IDS = ("0000", "zzz", "Neu/1 %", "新", "new 5", "copy-of-6")
IDS = (*(sample.id for sample in SAMPLES[2:14]), "copy-of-5", "0999", "nearly-9", *NEW_IDS)
CLUSTER_IDS = [f"c{number:04}" for number in range(8)]


@dataclass
class World:
    """`template` is a store with three generations: of all samples, of every second one, and of the first half with
    some live changes folded in. Runs work on copies.
    """

    template: Path
    background: Background
    encoder: Encoder
    log: Log = field(default_factory=dict)
    """What the template's live.db holds."""
    names: list[str] = field(default_factory=list)
    """The generations."""

    def __post_init__(self) -> None:
        self._raw: dict[str, Vector] = {}
        known = [Article("", *about) for about in [*TEXTS, *((s.title, s.content) for s in SAMPLES)]]
        self._articles = {text_digest(article.text): article for article in known}
        self._bases: dict[str, Basis] = {}
        # gRPC closes its poller with the last of its asyncio objects, and does not survive that often.
        self._anchor = self.background.run(_idle_channel())

    def close(self) -> None:
        """Ends what the servers stood on."""
        self.background.run(self._anchor.close())

    def make(self) -> None:
        """Builds what is missing of the template; a store with the generation of all samples may be there."""
        store = Store(self.template)
        if not store.names():
            self._build("all", SAMPLES)
        self._build("half", SAMPLES[::2], clusters=4)
        with LiveStore(self.template / LIVE) as live:
            self._change(live)
        self._build("folded", SAMPLES[: len(SAMPLES) // 2], clusters=6, seed=1)
        self.names = store.names()

    def _build(self, name: str, samples: Sequence[Sample], **options: Any) -> None:
        path = self.template.with_name(f"{name}.csv")
        write_corpus(path, samples)
        build(self.template, path, model="minilm", **options)

    def _change(self, live: LiveStore) -> None:
        """Three articles put and two removed, as a server would have written them."""
        put = [
            Article(IDS[0], *TEXTS[0], DATES[3], ATTRIBUTES[1]),
            Article(NEW_IDS[1], *TEXTS[8], DATES[2], ATTRIBUTES[2]),
            Article(NEW_IDS[2], *TEXTS[9], None, ATTRIBUTES[3]),
        ]
        changes: list[tuple[str, Article | None]] = [(article.id, article) for article in put]
        changes += [(IDS[1], None), (NEW_IDS[3], None)]
        numbers = live.apply([self._written(article_id, article) for article_id, article in changes])
        self.log = {name: (number, article) for number, (name, article) in zip(numbers, changes, strict=True)}

    def _written(self, article_id: str, article: Article | None) -> Change:
        if article is None:
            return Delete(article_id)
        vector = self.raw(article.text).astype(np.float32)
        embedded = Embedded(vector, self.encoder.fingerprint, self.encoder.precision, 9, 9)
        sent = LiveArticle(article_id, article.title, article.content, article.published_at, dict(article.attributes))
        return Upsert(sent, embedded)

    def raw(self, text: str) -> Vector:
        """The encoder's own vector of a text, computed once."""
        if text not in self._raw:
            self._raw[text] = self.encoder.embed([text])[0].astype(np.float64)
        return self._raw[text]

    def basis(self, folder: Path, name: str) -> Basis:
        """A generation of a store, as the model sees it."""
        if name not in self._bases:
            generation = Store(folder).open(name)
            self._bases[name] = Basis(generation, lambda _id, digest: self._articles[digest], self.raw)
        return self._bases[name]

    def copy(self, folder: Path) -> Path:
        """The template, to be worked on."""
        return shutil.copytree(self.template, folder, ignore=shutil.ignore_patterns("embeddings.db*"))


def one_encoder() -> AbstractContextManager[Any]:
    """Lets each encoder be loaded once: servers that start again and again are about their articles."""
    return patch.object(Encoder, "load", cache(Encoder.load))


def one_moment() -> AbstractContextManager[Any]:
    """Lets a deletion that is said again be no change, however long the steps take: the model knows no time."""
    return patch("server.writer._AGAIN", timedelta.max)


async def _idle_channel() -> grpc.aio.Channel:
    return grpc.aio.insecure_channel("localhost:1")

"""A corpus to measure with: distinct articles, their labels, the links between them, the sessions of their readers."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import numpy as np

from coldframe.errors import InvalidArgument
from coldframe.text import article_text, text_digest
from indexer.corpus import Article

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from indexer.corpus import CorpusConfig

LABELS = "label"
_SOURCES, _TARGETS = ("source", "from"), ("target", "to")
_READERS, _ARTICLES = ("session", "user", "reader"), ("article", "article_id", "id", "item")


@dataclass(frozen=True)
class Corpus:
    """Distinct articles by row, and what is known of them. Rows follow the order of ids."""

    ids: list[str]
    texts: list[str]
    labels: list[str]
    """By row; "" where unknown."""
    rows: dict[str, int]
    """Id -> row; the id of a duplicate gives the row of the article that was kept."""
    links: list[tuple[int, int]] = field(default_factory=list)
    """(source, target), each pair once, none to itself."""
    sessions: list[list[int]] = field(default_factory=list)
    """What each reader read, in order, each article once."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was read and what was left out, for the report."""


def load(corpus: CorpusConfig, label_column: str | None, sample: int | None, seed: int) -> Corpus:
    """Articles without exact duplicates (of the whole text or of the content, whatever its case and spaces).

    With `sample`, so many are drawn, from the labelled where there are any. Raises InvalidArgument for a corpus
    without articles or without the label column that was named.
    """
    counts: Counter[str] = Counter()
    articles = sorted(_articles(corpus, counts), key=lambda article: article.id)
    if not articles:
        raise InvalidArgument(
            "the corpus has no article that can be used; give --corpus a file with rows", field="corpus"
        )
    label_column = _label_column(articles, label_column)
    kept, duplicates = _distinct(articles)
    counts["duplicates"] = len(duplicates)
    kept = _drawn(kept, label_column, sample, seed)
    rows = {article.id: row for row, article in enumerate(kept)}
    rows |= {copy: rows[original] for copy, original in duplicates.items() if original in rows}
    labels = [article.attributes.get(label_column or "", "").strip() for article in kept]
    counts |= {"articles": len(kept), "labelled": sum(map(bool, labels))}
    texts = [article_text(article.title, article.content) for article in kept]
    return Corpus([article.id for article in kept], texts, labels, rows, counts=dict(counts))


def _articles(corpus: CorpusConfig, counts: Counter[str]) -> Iterator[Article]:
    seen: set[str] = set()
    for row in corpus.read():
        counts["read"] += 1
        if isinstance(row, Article) and row.id not in seen:
            seen.add(row.id)
            yield row
        else:
            counts["rejected"] += 1


def _label_column(articles: Iterable[Article], wanted: str | None) -> str | None:
    names = {name for article in articles for name in article.attributes}
    if wanted is not None and wanted not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise InvalidArgument(
            f"the corpus has no column {wanted!r} to take labels from; its further columns: {listed}", field="labels"
        )
    return wanted or (LABELS if LABELS in names else None)


def _distinct(articles: Iterable[Article]) -> tuple[list[Article], dict[str, str]]:
    """The first of each text, and of the others which one it repeats."""
    first: dict[bytes, str] = {}
    kept, duplicates = [], {}
    for article in articles:
        texts = (article_text(article.title, article.content), article.content or article.title)
        digests = [text_digest(" ".join(text.lower().split())) for text in texts]
        original = next((first[digest] for digest in digests if digest in first), None)
        if original is None:
            kept.append(article)
        else:
            duplicates[article.id] = original
        for digest in digests:
            first.setdefault(digest, original or article.id)
    return kept, duplicates


def _drawn(articles: list[Article], label_column: str | None, sample: int | None, seed: int) -> list[Article]:
    if sample is None:
        return articles
    labelled = [article for article in articles if article.attributes.get(label_column or "", "").strip()]
    pool = labelled or articles
    if sample >= len(pool):
        return pool
    drawn = np.random.default_rng(seed).choice(len(pool), sample, replace=False)
    return [pool[n] for n in sorted(drawn)]


def without(corpus: Corpus, kept: NDArray[np.int64]) -> Corpus:
    """The corpus with near duplicates merged: `kept` gives for each row the row that stands for it."""
    stay = np.flatnonzero(kept == np.arange(len(kept)))
    moved = {int(row): n for n, row in enumerate(stay)}
    rows = {name: moved[int(kept[row])] for name, row in corpus.rows.items()}
    counts = corpus.counts | {"near duplicates": len(kept) - len(stay), "articles": len(stay)}
    labels = [corpus.labels[n] for n in stay]
    counts["labelled"] = sum(map(bool, labels))
    return Corpus([corpus.ids[n] for n in stay], [corpus.texts[n] for n in stay], labels, rows, counts=counts)


def add_links(corpus: Corpus, file: Path) -> None:
    """Reads links: a CSV, plain or .gz, of source and target ids. Those of unknown articles are counted."""
    source_of, target_of = _columns(file, {"source": _SOURCES, "target": _TARGETS}, "links")
    links, unknown = set(), 0
    for row in _table(file, "links"):
        source, target = corpus.rows.get(row[source_of]), corpus.rows.get(row[target_of])
        if source is None or target is None:
            unknown += 1
        elif source != target:
            links.add((source, target))
    corpus.links.extend(sorted(links))
    corpus.counts.update({"links": len(links), "links of unknown articles": unknown})


def add_sessions(corpus: Corpus, file: Path, skip_events: Sequence[str]) -> None:
    """Reads sessions: a CSV, plain or .gz, of reader (or session), article, and where there are, timestamp and event.

    Reads are ordered by time, with equal times by their place in the file; those of unknown articles are counted and
    left out, and so are rows of the events in `skip_events`.
    """
    reader_of, article_of = _columns(file, {"session": _READERS, "article": _ARTICLES}, "sessions")
    reads: dict[str, list[tuple[float, int]]] = defaultdict(list)
    unknown = skipped = 0
    for row in _table(file, "sessions"):
        if row.get("event") in skip_events:
            skipped += 1
        elif row[article_of] not in corpus.rows:
            unknown += 1
        else:
            reads[row[reader_of]].append((_time(row, file), corpus.rows[row[article_of]]))
    for reader in sorted(reads):
        corpus.sessions.append(list(dict.fromkeys(row for _, row in sorted(reads[reader], key=lambda read: read[0]))))
    corpus.counts.update(
        {"sessions": len(reads), "reads of unknown articles": unknown, "reads of skipped events": skipped}
    )


def _time(row: Mapping[str, str], file: Path) -> float:
    try:
        return float(row.get("timestamp") or 0)
    except ValueError as error:
        raise InvalidArgument(
            f"{file}: the timestamp {row['timestamp']!r} is no number; give seconds", field="sessions"
        ) from error


def _columns(file: Path, roles: Mapping[str, Sequence[str]], flag: str) -> list[str]:
    with _open(file, flag) as opened:
        names = next(csv.reader(opened), [])
    found = []
    for role, usual in roles.items():
        name = next((name for name in usual if name in names), None)
        if name is None:
            raise InvalidArgument(
                f"{file} has no {role} column ({', '.join(usual)}); its columns: {', '.join(names) or 'none'}",
                field=flag,
            )
        found.append(name)
    return found


def _table(file: Path, flag: str) -> Iterator[dict[str, str]]:
    with _open(file, flag) as opened:
        yield from csv.DictReader(opened, restval="")


@contextmanager
def _open(file: Path, flag: str) -> Iterator[IO[str]]:
    """Raises InvalidArgument for what is found to be wrong with the file while it is open, too."""
    opens = gzip.open if file.name.lower().endswith(".gz") else open
    try:
        with opens(file, "rt", encoding="utf-8-sig", newline="") as opened:
            yield opened
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{file} is not UTF-8; save it as UTF-8, or as .gz if it is packed", field=flag
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidArgument(f"{file} is not a whole gzip file; copy it again, or rename it", field=flag) from error
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}", field=flag) from error
    except csv.Error as error:
        raise InvalidArgument(f"{file} is not CSV: {error}; is a quote in it never closed?", field=flag) from error

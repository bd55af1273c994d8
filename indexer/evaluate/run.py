"""Measures recipes on one corpus, beside the baselines, and recommends one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe.errors import InvalidArgument
from coldframe.recipe import Placement
from coldframe.text import text_digest
from indexer.cache import CACHE, Space, look_up
from indexer.evaluate.baselines import Chance, Scorer, Vectors, near_duplicates, tfidf
from indexer.evaluate.bootstrap import RESAMPLES, Interval, resampled_means
from indexer.evaluate.corpus import Corpus, add_links, add_sessions, load, without
from indexer.evaluate.tasks import Task, contingencies, label_task, link_task, session_tasks, v_measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.encoder import Encoder
    from coldframe.recipe import Recipe
    from indexer.corpus import CorpusConfig

TFIDF, POPULARITY, RANDOM = "tf-idf", "popularity", "random"
V_MEASURE = "clustering v-measure"
_TEXTS_AT_ONCE = 64
_DIGESTS_AT_ONCE = 512


@dataclass(frozen=True)
class Config:
    """What is measured."""

    corpus: CorpusConfig
    recipes: Sequence[Recipe]
    label_column: str | None = None
    links: Path | None = None
    sessions: Path | None = None
    skip_events: Sequence[str] = ()
    sample: int | None = None
    seed: int = 0
    store: Path | None = None
    """Whose builds have embedded some of the texts already."""


@dataclass(frozen=True)
class Figure:
    """One measure of one representation, and its difference to TF-IDF where it is an average over items."""

    measure: str
    of: str
    result: Interval
    over_tfidf: Interval | None = None


@dataclass(frozen=True)
class Report:
    """What came of it."""

    counts: dict[str, int]
    figures: list[Figure]
    recommended: str
    certainty: float
    """Share of the resamples in which the recommended recipe is the best."""
    own: str
    """The model's own recipe."""

    def document(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True)
class _Family:
    """Tasks of one kind, and what each scorer gets: values by task and by the scorer's name, (items,)."""

    tasks: list[Task]
    values: list[dict[str, NDArray[np.float64]]]


def evaluate(config: Config, encoder: Encoder, say: Callable[[str], None]) -> Report:
    """Raises InvalidArgument for a corpus that knows nothing to measure by."""
    corpus, terms = read(config)
    families = tasks_of(corpus, config.seed)
    say(", ".join(f"{count:,} {name}" for name, count in corpus.counts.items()))
    stored = cached(config, encoder, corpus.texts)
    if stored:
        say(f"{len(stored):,} of {len(corpus.texts):,} vectors are in the store")
    vectors: dict[str, Any] = embed(encoder, corpus.texts, config.recipes, say, stored) | {TFIDF: terms}
    labelled = np.array([row for row, label in enumerate(corpus.labels) if label], np.int64)
    measured, figures = [], []
    for kind, tasks in families.items():
        rows = labelled if kind == "labels" else np.arange(len(corpus.ids))
        scorers: dict[str, Scorer] = {name: Vectors(array[rows]) for name, array in vectors.items()}
        scorers[RANDOM] = Chance(len(rows), config.seed)
        family = _Family(tasks, [_values(task, scorers) for task in tasks])
        measured.append(family)
        figures += _figures(family, config.seed)
    if "labels" in families:
        known = [corpus.labels[row] for row in labelled]
        figures += [_clustering(name, array[labelled], known, config.seed) for name, array in vectors.items()]
    best, certainty = recommend(measured, [recipe.name for recipe in config.recipes], config.seed)
    return Report(corpus.counts, figures, best, certainty, encoder.recipe.name)


def read(config: Config) -> tuple[Corpus, Any]:
    """The corpus without duplicates and near duplicates, and its TF-IDF vectors by row."""
    files = replace(config.corpus, apart_from=[config.store] if config.store else [])
    corpus = load(files, config.label_column, config.sample, config.seed)
    terms = tfidf(corpus.texts)
    kept = near_duplicates(terms)
    corpus = without(corpus, kept)
    if config.links is not None:
        add_links(corpus, config.links)
    if config.sessions is not None:
        add_sessions(corpus, config.sessions, config.skip_events)
    return corpus, terms[np.flatnonzero(kept == np.arange(len(kept)))]


def tasks_of(corpus: Corpus, seed: int) -> dict[str, list[Task]]:
    """Tasks by kind: labels, links, sessions; those that the corpus can give."""
    labels, links = label_task(corpus.labels), link_task(corpus)
    found = {
        "labels": [labels] if labels else [],
        "links": [links] if links else [],
        "sessions": session_tasks(corpus, seed),
    }
    found = {kind: tasks for kind, tasks in found.items() if tasks}
    if not found:
        raise InvalidArgument(
            "there is nothing to measure by: the corpus needs a label column with at least two labels (--labels), or "
            "give --links or --sessions whose ids are those of its articles",
            field="labels",
        )
    return found


def cached(config: Config, encoder: Encoder, texts: Sequence[str]) -> dict[int, NDArray[np.float32]]:
    """Vectors that a store has of the texts, by their places; {} unless the encoder's own recipe alone is asked for."""
    if config.store is None or [recipe.name for recipe in config.recipes] != [encoder.recipe.name]:
        return {}
    space = Space(encoder.fingerprint, encoder.precision, encoder.dim)
    digests = [text_digest(text) for text in texts]
    found: dict[bytes, NDArray[np.float32]] = {}
    for start in range(0, len(digests), _DIGESTS_AT_ONCE):
        found |= look_up(config.store / CACHE, space, digests[start : start + _DIGESTS_AT_ONCE])
    return {place: found[digest] for place, digest in enumerate(digests) if digest in found}


def embed(
    encoder: Encoder,
    texts: Sequence[str],
    recipes: Sequence[Recipe],
    say: Callable[[str], None],
    known: Mapping[int, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    """Placed vectors by the recipe's name, (n, dim) each; every text that is not known goes through the model once.

    known: vectors by place, where there is but one recipe.
    """
    found: list[dict[int, NDArray[np.float32]]] = [dict(known) for _ in recipes]
    order = sorted((n for n in range(len(texts)) if n not in known), key=lambda n: len(texts[n]))
    for start in range(0, len(order), _TEXTS_AT_ONCE):
        places = order[start : start + _TEXTS_AT_ONCE]
        tokens = encoder.tokenize([texts[n] for n in places])
        for part, vectors in zip(found, encoder.embed_ids_by([t.ids for t in tokens], recipes), strict=True):
            part.update(zip(places, vectors, strict=True))
        if start // _TEXTS_AT_ONCE % 8 == 7:
            say(f"{start + len(tokens):,} of {len(order):,} articles embedded")
    placed = {}
    for recipe, part in zip(recipes, found, strict=True):
        vectors = np.stack([part[n] for n in range(len(texts))])
        placed[recipe.name] = Placement.fit(recipe, vectors)(vectors)
    return placed


def _values(task: Task, scorers: Mapping[str, Scorer]) -> dict[str, NDArray[np.float64]]:
    popular = {POPULARITY: task.popularity} if task.popularity else {}
    return {name: task.values(scorer) for name, scorer in ({**scorers} | popular).items()}


def _figures(family: _Family, seed: int) -> list[Figure]:
    figures = []
    for task, values in zip(family.tasks, family.values, strict=True):
        resampled = {name: resampled_means(value, seed) for name, value in values.items()}
        terms = values[TFIDF].mean()
        for name, value in values.items():
            over = Interval.of(value.mean() - terms, resampled[name] - resampled[TFIDF])
            result = Interval.of(value.mean(), resampled[name])
            figures.append(Figure(task.name, name, result, None if name == TFIDF else over))
    return figures


def _clustering(name: str, vectors: Any, labels: Sequence[str], seed: int) -> Figure:
    """The mean over starts; articles are resampled as draws from the cells of each table.

    Draws that repeat articles agree better than the articles do, the more so the fewer there are: what resampling tells
    is how far the figure may lie off, and that is laid about the figure.
    """
    tables = contingencies(vectors, labels, seed)
    value = float(np.mean([v_measure(table) for table in tables]))
    rng = np.random.default_rng(seed)
    resampled = np.zeros(RESAMPLES)
    for table in tables:
        drawn = rng.multinomial(len(labels), table.ravel() / table.sum(), RESAMPLES)
        resampled += [v_measure(one.reshape(table.shape)) / len(tables) for one in drawn]
    about = np.clip(value + resampled - resampled.mean(), 0, 1)
    return Figure(V_MEASURE, name, Interval.of(value, about))


def recommend(families: Sequence[_Family], recipes: Sequence[str], seed: int) -> tuple[str, float]:
    """The recipe with the best mean over the kinds of tasks, each kind the mean of its tasks, and its certainty."""
    means = np.zeros(len(recipes))
    resampled = np.zeros((RESAMPLES, len(recipes)))
    for family in families:
        for values in family.values:
            columns = np.stack([values[name] for name in recipes], axis=1)  # (items, recipes)
            share = 1 / (len(families) * len(family.values))
            means += share * columns.mean(axis=0)
            resampled += share * resampled_means(columns, seed)
    best = int(means.argmax())
    return recipes[best], float((resampled.argmax(axis=1) == best).mean())

"""Is the next article of a reader among the ten recommended from the first one, three or five?

    python -m server --store store --listen localhost:50051
    python -m benchmarks.sessions --store store --corpus articles.csv.gz --sessions interactions.csv.gz

Sessions are split in three by chance: one part tells what is popular, one chooses how much that counts and how fast
what was read is forgotten, and the last is asked about. Every recommendation is a call of `Recommend` on the server.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coldframe import Client, seed
from indexer.corpus import CorpusConfig
from indexer.evaluate.baselines import Chance, Popularity, Scorer, Vectors, nearest
from indexer.evaluate.bootstrap import Interval, resampled_means
from indexer.evaluate.run import Config, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from coldframe.v1.search_service_pb2 import RecommendResponse
    from indexer.evaluate.corpus import Corpus

SEEDS = (1, 3, 5)
LIMIT = 10
PRIOR_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
DECAYS = (1.0, 0.7, 0.5, 0.3)
DIVERSITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Setting:
    """How a backend calls `Recommend`."""

    decay: float = 1.0
    """Weight of a seed over that of the one read after it."""
    priors: Mapping[str, float] = field(default_factory=dict)
    diversity: float = 0.0
    averaged: bool = False
    """One seed, the mean of all vectors, instead of the articles."""


@dataclass(frozen=True)
class Session:
    """The rows of what was read, and of what was read next."""

    seeds: tuple[int, ...]
    right: int


class Bench:
    """Asks the server, and counts."""

    def __init__(self, client: Client, corpus: Corpus, vectors: NDArray[np.float32]) -> None:
        self._client, self._corpus, self._vectors = client, corpus, vectors

    def answers(self, sessions: Sequence[Session], setting: Setting) -> list[RecommendResponse]:
        """What the server recommends in each session."""
        return [self._ask(session, setting) for session in sessions]

    def _ask(self, session: Session, setting: Setting) -> RecommendResponse:
        ids = [self._corpus.ids[row] for row in session.seeds]
        weights = [setting.decay ** (len(ids) - 1 - n) for n in range(len(ids))]
        if setting.averaged:
            mean = np.average(self._vectors[list(session.seeds)], axis=0, weights=weights)
            seeds = [seed(vector=mean.astype("<f4").tobytes())]
        else:
            seeds = [seed(article_id=name, weight=weight) for name, weight in zip(ids, weights, strict=True)]
        return self._client.recommend(
            seeds,
            limit=LIMIT,
            priors=dict(setting.priors),
            diversity=setting.diversity,
            exclude_ids=ids,
            read_mask=["article.id", "article.story_id"],
        )

    def found(self, sessions: Sequence[Session], setting: Setting) -> NDArray[np.float64]:
        """Whether what was read next is among the ten, (sessions,)."""
        ids = self._corpus.ids
        answers = self.answers(sessions, setting)
        return np.array(
            [
                float(ids[one.right] in {hit.article.id for hit in reply.hits})
                for one, reply in zip(sessions, answers, strict=True)
            ]
        )


def split(corpus: Corpus, seed_: int) -> tuple[list[list[int]], list[list[int]], NDArray[np.float64]]:
    """Sessions to choose by, sessions to ask about, and how often the others read each article, (n,), in logarithms."""
    order = np.random.default_rng(seed_).permutation(len(corpus.sessions))
    counting, choosing, asking = np.array_split(order, (len(order) // 2, len(order) // 2 + len(order) // 6))
    counts = np.zeros(len(corpus.ids))
    for n in counting:
        counts[corpus.sessions[n]] += 1
    popularity = np.log1p(counts) / np.log1p(counts.max())
    return [corpus.sessions[n] for n in choosing], [corpus.sessions[n] for n in asking], popularity


def asked(sessions: Sequence[Sequence[int]], seeds: int, most: int) -> list[Session]:
    """The first `most` sessions that are long enough."""
    long = [session for session in sessions if len(session) > seeds]
    return [Session(tuple(session[:seeds]), session[seeds]) for session in long[:most]]


def choose(bench: Bench, sessions: Sequence[Sequence[int]], corpus: Corpus, popularity: NDArray[np.float64]) -> Setting:
    """The weight of popularity that serves one seed best, and then the decay that serves five best."""
    one, five = asked(sessions, 1, 400), asked(sessions, 5, 400)
    by_weight = {w: bench.found(one, Setting(priors=priors(corpus, popularity, w))).mean() for w in PRIOR_WEIGHTS}
    weight = max(by_weight, key=lambda w: by_weight[w])
    chosen = priors(corpus, popularity, weight)
    by_decay = {decay: bench.found(five, Setting(decay, chosen)).mean() for decay in DECAYS}
    decay = max(by_decay, key=lambda d: by_decay[d])
    print(f"chosen on other sessions: popularity counts {weight:g}, a seed counts {decay:g} of the next one")
    return Setting(decay, chosen)


def priors(corpus: Corpus, popularity: NDArray[np.float64], weight: float) -> dict[str, float]:
    """For `Ranking.priors`."""
    if weight == 0:
        return {}
    return {name: float(weight * share) for name, share in zip(corpus.ids, popularity, strict=True) if share > 0}


def table(bench: Bench, sessions: Sequence[Session], chosen: Setting, scorers: Mapping[str, Scorer]) -> None:
    """Recall of everybody, with intervals, and how many times that of TF-IDF."""
    profiles = [session.seeds for session in sessions]
    right = np.array([session.right for session in sessions])
    values = {
        name: (nearest(scorer, profiles, LIMIT) == right[:, None]).any(axis=1).astype(float)
        for name, scorer in scorers.items()
    }
    plain = Setting(chosen.decay)
    for name, setting in {
        "Recommend, all seeds alike": Setting(),
        "Recommend, the last counts most": plain,
        "Recommend, and popularity as a prior": chosen,
        "one averaged vector, seeds alike": Setting(averaged=True),
        "one averaged vector, the last counts most": Setting(chosen.decay, averaged=True),
        "one averaged vector, and popularity": Setting(chosen.decay, chosen.priors, averaged=True),
    }.items():
        values[name] = bench.found(sessions, setting)
    base = resampled_means(values["TF-IDF"], 0)
    for name, value in values.items():
        means = resampled_means(value, 0)
        recall, ratio = (
            Interval.of(value.mean(), means),
            Interval.of(value.mean() / values["TF-IDF"].mean(), means / base),
        )
        print(
            f"{name:44} {recall.value:.3f} [{recall.low:.3f}, {recall.high:.3f}]   "
            f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
        )


def diversity(
    bench: Bench, sessions: Sequence[Session], chosen: Setting, corpus: Corpus, vectors: NDArray[np.float32]
) -> None:
    """What `diversity` does to recall, to likeness within a list, to coverage, to stories told twice."""
    print(f"{'diversity':>9} {'recall':>7} {'unlikeness':>10} {'coverage':>8} {'told twice':>10}")
    for amount in DIVERSITIES:
        setting = Setting(chosen.decay, chosen.priors, amount)
        replies = bench.answers(sessions, setting)
        rows = [[corpus.rows[hit.article.id] for hit in reply.hits] for reply in replies]
        found = np.mean([one.right in row for one, row in zip(sessions, rows, strict=True)])
        unlike = np.mean([1 - _mean_cosine(vectors[row]) for row in rows])
        covered = len({row for found_rows in rows for row in found_rows}) / len(corpus.ids)
        stories = [[hit.article.story_id for hit in reply.hits] for reply in replies]
        twice = np.mean([1 - len(set(told)) / len(told) for told in stories])
        print(f"{amount:9.2f} {found:7.3f} {unlike:10.3f} {covered:8.1%} {twice:10.1%}")


def _mean_cosine(vectors: NDArray[np.float32]) -> float:
    """Between any two of some vectors, (n, dim)."""
    return float((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].mean())


def embedded(client: Client, ids: Sequence[str], store: Path) -> NDArray[np.float32]:
    """The index's own vectors of the articles, (n, dim)."""
    from coldframe.store import Store

    generation = Store(store).open(client.index().index.generation)
    rows = [generation.articles.row_of(name) for name in ids]
    return np.array(generation.index.vectors[[row for row in rows if row is not None]])


def main() -> None:
    """Reads the corpus, asks the server, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--store", type=Path, required=True, help="the server's, for the averaged vectors")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sessions", type=Path, required=True)
    parser.add_argument(
        "--calls", type=int, default=1_000, help="sessions that are asked about, for each number of seeds"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    corpus, terms = read(Config(CorpusConfig([str(args.corpus)]), [], sessions=args.sessions, seed=args.seed))
    choosing, asking, popularity = split(corpus, args.seed)
    scorers: dict[str, Scorer] = {
        "TF-IDF": Vectors(terms),
        "popularity": Popularity(popularity.astype(np.float32)),
        "random": Chance(len(corpus.ids), args.seed),
    }
    with Client(args.server) as client:
        vectors = embedded(client, corpus.ids, args.store)
        bench = Bench(client, corpus, vectors)
        chosen = choose(bench, choosing, corpus, popularity)
        for seeds in SEEDS:
            sessions = asked(asking, seeds, args.calls)
            print(f"\nfrom {seeds}: {len(sessions):,} sessions, recall at {LIMIT} and times TF-IDF, 95% intervals")
            table(bench, sessions, chosen, scorers)
        print("\nfrom 3, popularity as a prior")
        diversity(bench, asked(asking, 3, args.calls // 2), chosen, corpus, vectors)


if __name__ == "__main__":
    main()

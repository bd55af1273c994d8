"""Words and examples for each cluster: class-based TF-IDF terms, a medoid, representative articles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coldframe.clusters import Cluster, cluster_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

TERMS = 10
LABEL_TERMS = 3
REPRESENTATIVES = 5
# The words of so many typical articles describe a cluster as well as those of all.
_ARTICLES_PER_CLUSTER = 200
_CHARS_PER_ARTICLE = 4_000
# Two words of two letters or more, not starting with a digit; apostrophes and hyphens stay inside a word.
_WORD = r"(?u)\b[^\W\d_][\w'’-]*\w\b"
# Reported speech and dates, which every news article has and no topic is about.
_NEWS_WORDS = frozenset(
    [
        "said",
        "says",
        "say",
        "saying",
        "told",
        "added",
        "asked",
        "according",
        "spokesman",
        "spokeswoman",
        "mr",
        "mrs",
        "ms",
        "dr",
        "new",
        "year",
        "years",
        "month",
        "months",
        "week",
        "weeks",
        "day",
        "days",
        "time",
        "people",
        "percent",
        "pct",
        "mln",
        "dlrs",
        "just",
        "like",
        "make",
        "made",
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "january",
        "february",
        "march",
        "april",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
        "it's",
        "i'm",
        "don't",
        "that's",
        "he's",
        "didn't",
        "isn't",
    ]
)


def describe(
    vectors: NDArray[np.float32],
    assignment: NDArray[np.int64],
    similarity: NDArray[np.float32],
    texts: Iterable[str],
) -> list[Cluster]:
    """One description per cluster, in the order of their numbers.

    vectors: (n, dim). assignment, similarity: (n,), each row's cluster and its similarity to the centroid. texts: of
    every row, in order; read once.
    """
    sizes = np.bincount(assignment)
    # By cluster, the most typical first, equal ones by row.
    ranked = np.lexsort((np.arange(len(assignment)), -similarity, assignment))
    members = np.split(ranked, np.cumsum(sizes)[:-1])
    typical = {int(row) for rows in members for row in rows[:_ARTICLES_PER_CLUSTER]}
    chosen = ((row, text) for row, text in enumerate(texts) if row in typical)
    terms = label_terms(chosen, assignment, len(sizes))
    return [
        Cluster(
            id=cluster_id(number),
            label=", ".join(term for term, _ in terms[number][:LABEL_TERMS]) or "(no words)",
            terms=terms[number],
            size=int(sizes[number]),
            medoid=int(rows[0]),
            representatives=_representatives(vectors, rows),
        )
        for number, rows in enumerate(members)
    ]


def _representatives(vectors: NDArray[np.float32], ranked: NDArray[np.int64]) -> list[int]:
    """The most typical rows, leaving out those that tell the story of one already taken."""
    taken: list[int] = []
    for row in ranked[: 10 * REPRESENTATIVES]:
        if not taken or float((vectors[taken] @ vectors[row]).max()) < 0.98:
            taken.append(int(row))
        if len(taken) == REPRESENTATIVES:
            break
    return taken


def label_terms(
    texts: Iterable[tuple[int, str]], assignment: NDArray[np.int64], clusters: int
) -> list[list[tuple[str, float]]]:
    """The terms of each cluster with weights relative to the first, best first.

    Class-based TF-IDF (Grootendorst 2022, arXiv:2203.05794, eq. 2): a term's share of its cluster, times
    log(1 + average words per cluster / the term's count). An article counts a term once, or one article that repeats
    a name would label its cluster.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    rows: list[int] = []

    def words() -> Iterator[str]:
        for row, text in texts:
            rows.append(row)
            yield text[:_CHARS_PER_ARTICLE]

    vectorizer = CountVectorizer(
        token_pattern=_WORD, ngram_range=(1, 2), binary=True, stop_words=sorted(ENGLISH_STOP_WORDS | _NEWS_WORDS)
    )
    try:
        counts = vectorizer.fit_transform(words())  # (articles, vocabulary)
    except ValueError:  # no article has a word: the corpus is numbers
        return [[] for _ in range(clusters)]
    ones = np.ones(len(rows), np.int64)
    membership = csr_matrix((ones, (assignment[rows], np.arange(len(rows)))), shape=(clusters, len(rows)))
    by_cluster = (membership @ counts).tocsr()  # (clusters, vocabulary)
    total = np.asarray(by_cluster.sum(axis=0)).ravel()
    idf = np.log1p(by_cluster.sum() / clusters / total)
    vocabulary = vectorizer.get_feature_names_out()
    return [_best_terms(by_cluster[number], idf, vocabulary) for number in range(clusters)]


def _best_terms(counts, idf: NDArray[np.float64], vocabulary: NDArray[np.str_]) -> list[tuple[str, float]]:  # type: ignore[no-untyped-def]
    """The best terms of one cluster, (1, vocabulary); a term that repeats a word of a better one is left out."""
    weights = counts.data * idf[counts.indices]
    order = np.lexsort((vocabulary[counts.indices], -weights))
    best: list[tuple[str, float]] = []
    used: set[str] = set()
    for place in order[: 20 * TERMS]:
        term = str(vocabulary[counts.indices[place]])
        stems = {word.removesuffix("'s").removesuffix("s") for word in term.split()}
        if stems & used:
            continue
        used |= stems
        best.append((term, round(float(weights[place] / weights[order[0]]), 4)))
        if len(best) == TERMS:
            break
    return best

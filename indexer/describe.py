"""Words and examples for each cluster: class-based TF-IDF terms, a medoid, representative articles."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np

from coldframe.clusters import Cluster, cluster_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

TERMS = 10
LABEL_TERMS = 3
REPRESENTATIVES = 5
# The words of so many typical articles describe a cluster as well as those of all.
_ARTICLES_PER_CLUSTER = 200
_CHARS_PER_ARTICLE = 4_000
# Two words of two letters or more, not starting with a digit; apostrophes and hyphens stay inside a word.
_WORD = r"(?u)\b[^\W\d_][\w'-]*\w\b"
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
    ]
)
# ENGLISH_STOP_WORDS knows no apostrophes.
_CONTRACTIONS = frozenset(
    [
        "i'm", "i've", "i'd", "i'll", "you're", "you've", "you'd", "you'll", "he's", "he'd", "he'll", "she's", "she'd",
        "she'll", "it's", "it'd", "it'll", "we're", "we've", "we'd", "we'll", "they're", "they've", "they'd", "they'll",
        "that's", "that'd", "that'll", "there's", "there'd", "there'll", "here's", "what's", "who's", "who'd", "who'll",
        "where's", "when's", "how's", "why's", "let's", "isn't", "aren't", "wasn't", "weren't", "don't", "doesn't",
        "didn't", "haven't", "hasn't", "hadn't", "can't", "couldn't", "won't", "wouldn't", "shan't", "shouldn't",
        "mustn't", "mightn't", "needn't", "ain't",
    ]
)  # fmt: skip


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
    """The terms of each cluster with weights relative to the first, best first; `texts` are (row, text).

    Class-based TF-IDF (Grootendorst 2022, arXiv:2203.05794, section 3.3) in this form: a term's share of its cluster's
    words, times the log of how many times larger that is than its share of all words. An article counts a term
    1 + log(n) times, and the weight falls with the root of the share of articles that use the term, or one article
    that repeats a name would label its cluster.
    """
    from scipy.sparse import csr_array

    rows, counts, vocabulary = _count_terms(texts)
    if not len(vocabulary):
        return [[] for _ in range(clusters)]
    members = (np.ones(len(rows)), (assignment[rows], np.arange(len(rows))))
    membership = csr_array(members, shape=(clusters, len(rows)))
    words = (membership @ counts).tocsr()  # (clusters, vocabulary)
    articles = (membership @ (counts > 0).astype(np.float64)).tocsr()  # the same places are filled
    words.sort_indices()
    articles.sort_indices()
    share = np.asarray(words.sum(axis=0)).ravel() / words.sum()
    sizes = np.bincount(assignment[rows], minlength=clusters)
    alone = np.count_nonzero(np.diff(words.indptr)) == 1
    terms = []
    for number, (start, end) in enumerate(pairwise(words.indptr)):
        columns, tf = words.indices[start:end], words.data[start:end] / words.data[start:end].sum()
        shared = articles.data[start:end] / sizes[number]
        # The only cluster with words has none to be told from: its commonest describe it.
        telling = np.ones(len(tf)) if alone else np.log(tf / share[columns])
        terms.append(_best_terms(tf * telling * np.sqrt(shared), vocabulary[columns]))
    return terms


def _count_terms(texts: Iterable[tuple[int, str]]) -> tuple[list[int], csr_array, NDArray[np.str_]]:
    """Rows, sublinear counts of words and pairs of words, (articles, vocabulary), and the vocabulary."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    rows: list[int] = []

    def words() -> Iterator[str]:
        for row, text in texts:
            rows.append(row)
            # One way to write what looks the same: letters with their accents, the typewriter's apostrophe.
            yield normalize("NFC", text[:_CHARS_PER_ARTICLE]).replace("\u2019", "'")

    stop_words = sorted(ENGLISH_STOP_WORDS | _NEWS_WORDS | _CONTRACTIONS)
    vectorizer = CountVectorizer(token_pattern=_WORD, ngram_range=(1, 2), stop_words=stop_words)
    try:
        counts = csr_array(vectorizer.fit_transform(words()), dtype=np.float64)
    except ValueError:  # no text has a word: the corpus is numbers, or of stop words
        return rows, csr_array((len(rows), 0)), np.array([], np.str_)
    counts.data = 1 + np.log(counts.data)
    return rows, counts, vectorizer.get_feature_names_out()


def _best_terms(weights: NDArray[np.float64], terms: NDArray[np.str_]) -> list[tuple[str, float]]:
    """The best terms of one cluster; a term that repeats a word of a better one is left out."""
    order = np.lexsort((terms, -weights))
    best: list[tuple[str, float]] = []
    used: set[str] = set()
    for place in order[: 20 * TERMS]:
        stems = {word.removesuffix("'s").removesuffix("s") for word in str(terms[place]).split()}
        if weights[place] <= 0 or len(best) == TERMS:
            break
        if not stems & used:
            used |= stems
            best.append((str(terms[place]), round(float(weights[place] / weights[order[0]]), 4)))
    return best

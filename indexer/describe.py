"""What is said of each cluster: class-based TF-IDF terms, typical articles, outliers, the topic that it belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import regex

from coldframe.clusters import Cluster, ClusterTable, Residuals, Topic
from coldframe.text import seen
from indexer.sample import take
from indexer.topics import group_clusters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from indexer.lineage import Naming
    from indexer.topics import Grouping

TERMS = 10
LABEL_TERMS = 3
REPRESENTATIVES = 5
# The words of so many typical articles describe a cluster as well as those of all.
_ARTICLES_PER_CLUSTER = 200
# In all, so that counting their words takes about half a gigabyte at most; but some of every cluster.
_MOST_ARTICLES = 20_000
_LEAST_PER_CLUSTER = 20
_CHARS_PER_ARTICLE = 4_000
_OUTLIER_DEVIATIONS = 3
_NORMAL_PER_MAD = 1.4826  # standard deviations of a normal distribution per median absolute deviation
_CORPUS_COUNTS_AS = 10
_FP32_NOISE = 1e-6
# Words of two letters or more, not starting with a digit; apostrophes and hyphens stay inside a word, and so do the
# quotes of Hebrew's abbreviations and the dot of Catalan's double l. To `re` a vowel sign is no part of a word, and
# words of Hindi or Tamil fall to pieces; to `regex` it is.
_ASCII_WORD = re.compile(r"\b[^\W\d_][\w'-]*\w\b")
_ANY_WORD = regex.compile(r"\b[^\W\d_](?:[\w'\u05f3\u05f4-]|(?<=l)\u00b7(?=l))*\w\b")
# One way to write what looks the same: the typewriter's apostrophe and hyphen, Hebrew's own quotes.
_TYPED = str.maketrans("\u2019\u2010\u2011", "'--")
_HEBREW_QUOTE = regex.compile(r'(?<=\p{Hebrew})["\u201d](?=\p{Hebrew})')
# Written without spaces, and taken by pieces that overlap: of two signs for Chinese and Japanese, of four for Thai,
# Lao, Burmese and Khmer, which have more signs to a word.
_PAIRED, _FOURFOLD = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc", r"\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}"
_RUN = regex.compile(rf"([{_PAIRED}]+)|([{_FOURFOLD}]+)|[^{_PAIRED}{_FOURFOLD}]+")
_SIGN = regex.compile(r"\X")
# The word at the end of a text, if it has one there; sought from the end.
_LAST_WORD = regex.compile(rf"(?r)(?:(?![{_PAIRED}{_FOURFOLD}])[\w'\u2019\u2010\u2011\u00ad\u05f3\u05f4-])+\Z")
# Reported speech and dates, which every news article has and no topic is about.
_NEWS_WORDS = frozenset(
    [
        "said", "says", "say", "saying", "told", "added", "asked", "according", "spokesman", "spokeswoman", "mr", "mrs",
        "ms", "dr", "new", "year", "years", "month", "months", "week", "weeks", "day", "days", "time", "people",
        "percent", "pct", "mln", "dlrs", "just", "like", "make", "made", "monday", "tuesday", "wednesday", "thursday",
        "friday", "saturday", "sunday", "january", "february", "march", "april", "june", "july", "august", "september",
        "october", "november", "december",
    ]
)  # fmt: skip
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
    naming: Naming,
    *,
    topics: int | None,
) -> ClusterTable:
    """The table of clusters, in the order of their numbers, and of the topics that they form.

    vectors: (n, dim). assignment, similarity: (n,), each row's cluster and its similarity to the centroid. texts: of
    every row, in order; read once. topics: how many; None: about the square root of the clusters; 0: none.
    """
    limits = outlier_limits(assignment, similarity)
    # By cluster, the most typical first, equal ones by row.
    ranked = np.lexsort((np.arange(len(assignment)), -similarity, assignment))
    members = np.split(ranked, np.cumsum(np.bincount(assignment))[:-1])
    typical = [rows[similarity[rows] >= limit] for rows, limit in zip(members, limits, strict=True)]
    each = max(_LEAST_PER_CLUSTER, min(_ARTICLES_PER_CLUSTER, _MOST_ARTICLES // len(members)))
    read = {int(row) for rows in typical for row in rows[:each]}
    words = _count_words((row, text) for row, text in enumerate(texts) if row in read)
    grouping = group_clusters(vectors, assignment, naming, topics)
    terms = label_terms(words, assignment, len(members))
    clusters = [
        Cluster(
            id=name,
            label=_label(terms[number]),
            terms=terms[number],
            size=len(rows),
            medoid=int(rows[0]),
            representatives=_representatives(vectors, typical[number]),
            residuals=_residuals(similarity[rows]),
            outlier_below=float(limits[number]),
            outliers=len(rows) - len(typical[number]),
            lineage=naming.lineages[number],
            topic=grouping.id_of(number),
        )
        for number, (name, rows) in enumerate(zip(naming.ids, members, strict=True))
    ]
    terms = label_terms(words, grouping.numbers[assignment], len(grouping.ids)) if grouping.ids else []
    return ClusterTable(clusters, _topics(clusters, grouping, terms), naming.vanished, grouping.next_number)


def outlier_limits(assignment: NDArray[np.int64], similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """The similarity to its centroid below which a row is an outlier of its cluster, (clusters,).

    Three robust standard deviations below the cluster's median, by the median absolute deviation, which outliers
    hardly move (Leys et al. 2013, doi:10.1016/j.jesp.2013.03.013). A small cluster's own deviation says little and one
    of copies has none: it is averaged with the deviation of the whole corpus, which counts as ten articles.
    """
    sizes = np.bincount(assignment)
    centre = _medians(assignment, similarity.astype(np.float64))
    deviation = np.abs(similarity - centre[assignment])
    spread = sizes * _medians(assignment, deviation) + _CORPUS_COUNTS_AS * np.median(deviation)
    spread /= sizes + _CORPUS_COUNTS_AS
    limits: NDArray[np.float64] = centre - _OUTLIER_DEVIATIONS * _NORMAL_PER_MAD * spread - _FP32_NOISE
    return limits.astype(np.float32)


def _medians(assignment: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each cluster's values, (clusters,)."""
    ordered = values[np.lexsort((values, assignment))]
    groups = np.split(ordered, np.cumsum(np.bincount(assignment))[:-1])
    return np.array([np.median(group) for group in groups])


def _residuals(similarity: NDArray[np.float32]) -> Residuals:
    distances = np.maximum(1 - similarity.astype(np.float64), 0)
    quantiles = np.quantile(distances, [0.5, 0.9, 0.99])
    mean, p50, p90, p99 = (round(float(value), 6) for value in (distances.mean(), *quantiles))
    return Residuals(mean, p50, p90, p99)


def _representatives(vectors: NDArray[np.float32], ranked: NDArray[np.int64]) -> list[int]:
    """The most typical rows, leaving out those that tell the story of one already taken."""
    rows = ranked[: 10 * REPRESENTATIVES]
    typical = take(vectors, rows)
    taken: list[int] = []
    for place in range(len(rows)):
        if not taken or float((typical[taken] @ typical[place]).max()) < 0.98:
            taken.append(place)
        if len(taken) == REPRESENTATIVES:
            break
    chosen: list[int] = rows[taken].tolist()
    return chosen


def _topics(clusters: list[Cluster], grouping: Grouping, terms: list[list[tuple[str, float]]]) -> list[Topic]:
    topics = []
    for number, name in enumerate(grouping.ids):
        inside = sorted((c for c in clusters if c.topic == name), key=lambda cluster: -cluster.size)
        size = sum(cluster.size for cluster in inside)
        topics.append(Topic(name, _label(terms[number]), terms[number], [c.id for c in inside], size))
    return topics


def _label(terms: list[tuple[str, float]]) -> str:
    return ", ".join(term for term, _ in terms[:LABEL_TERMS]) or "(no words)"


@dataclass(frozen=True)
class _Words:
    """How often the articles that were read use each term."""

    rows: list[int]
    counts: csr_array
    """(articles, vocabulary), 1 + log(n) for a term that stands there n times."""
    vocabulary: NDArray[np.str_]


def label_terms(words: _Words, assignment: NDArray[np.int64], clusters: int) -> list[list[tuple[str, float]]]:
    """The terms of each cluster, or topic, with weights relative to the first, best first; `assignment`, (n,), by row.

    Class-based TF-IDF (Grootendorst 2022, arXiv:2203.05794, section 3.3) in this form: a term's share of its cluster's
    words, times the log of how many times larger that is than its share of all words. An article counts a term
    1 + log(n) times, and the weight falls with the root of the share of articles that use the term, or one article
    that repeats a name would label its cluster.
    """
    from scipy.sparse import csr_array

    rows, counts, vocabulary = words.rows, words.counts, words.vocabulary
    if not len(vocabulary):
        return [[] for _ in range(clusters)]
    members = (np.ones(len(rows)), (assignment[rows], np.arange(len(rows))))
    membership = csr_array(members, shape=(clusters, len(rows)))
    used = (membership @ counts).tocsr()  # (clusters, vocabulary)
    articles = (membership @ (counts > 0).astype(np.float64)).tocsr()  # the same places are filled
    used.sort_indices()
    articles.sort_indices()
    share = np.asarray(used.sum(axis=0)).ravel() / used.sum()
    sizes = np.bincount(assignment[rows], minlength=clusters)
    alone = np.count_nonzero(np.diff(used.indptr)) == 1
    terms = []
    for number, (start, end) in enumerate(pairwise(used.indptr)):
        columns, tf = used.indices[start:end], used.data[start:end] / used.data[start:end].sum()
        shared = articles.data[start:end] / sizes[number]
        # The only cluster with words has none to be told from: its commonest describe it.
        telling = np.ones(len(tf)) if alone else np.log(tf / share[columns])
        terms.append(_best_terms(tf * telling * np.sqrt(shared), vocabulary[columns]))
    return terms


def _count_words(texts: Iterable[tuple[int, str]]) -> _Words:
    """Counts the words and the pairs of words of (row, text)."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    rows: list[int] = []

    def words() -> Iterator[str]:
        for row, text in texts:
            rows.append(row)
            yield _written(_beginning(text))

    vectorizer = CountVectorizer(analyzer=partial(_terms_of, ENGLISH_STOP_WORDS | _NEWS_WORDS | _CONTRACTIONS))
    try:
        counts = csr_array(vectorizer.fit_transform(words()), dtype=np.float64)
    except ValueError:  # no text has a word: the corpus is numbers, or of stop words
        return _Words(rows, csr_array((len(rows), 0)), np.array([], np.str_))
    counts.data = 1 + np.log(counts.data)
    return _Words(rows, counts, vectorizer.get_feature_names_out())


def _written(text: str) -> str:
    """The text with what looks the same written one way."""
    if text.isascii():
        return text
    written: str = _HEBREW_QUOTE.sub("\u05f4", seen(text).translate(_TYPED))
    return written


def _beginning(text: str) -> str:
    """What is read of a text: no more than `_CHARS_PER_ARTICLE` characters, without a word that would be cut in two."""
    if len(text) <= _CHARS_PER_ARTICLE:
        return text
    whole: str = _LAST_WORD.sub("", text[: _CHARS_PER_ARTICLE + 1])
    return whole[:_CHARS_PER_ARTICLE]


def _terms_of(stop_words: frozenset[str], text: str) -> list[str]:
    """The words of a text and their pairs. Pieces make no pairs: two that overlap are one longer piece."""
    if text.isascii():
        words = [word for word in _ASCII_WORD.findall(text.lower()) if word not in stop_words]
        return words + [f"{one} {other}" for one, other in pairwise(words)]
    lower = text.lower().replace("i\u0307", "i")  # what Python makes of Turkish's capital i
    runs = [run for word in _ANY_WORD.findall(lower) if word not in stop_words for run in _runs(word)]
    pairs = [f"{one[0]} {other[0]}" for one, other in pairwise(runs) if len(one) == len(other) == 1]
    return [piece for run in runs for piece in run] + pairs


def _runs(word: str) -> Iterator[list[str]]:
    """A word as it is, and in pieces what of it is of a script without spaces."""
    for run in _RUN.finditer(word):
        size = 2 if run[1] else 4
        signs = _SIGN.findall(run[0]) if run[1] or run[2] else []
        if len(signs) > size:
            yield ["".join(signs[start : start + size]) for start in range(len(signs) - size + 1)]
        elif len(run[0]) > 1:
            yield [run[0]]


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

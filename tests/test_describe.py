"""What is said of clusters: labels, medoids, representatives."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
import pytest

from coldframe.recipe import unit
from indexer.describe import LABEL_TERMS, REPRESENTATIVES, TERMS, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from coldframe.clusters import Cluster

TOPICS = [
    ["volcano", "lava", "crater", "eruption", "ash"],
    ["goalkeeper", "penalty", "striker", "league", "referee"],
    ["interest", "inflation", "bank", "bonds", "economist"],
    ["telescope", "galaxy", "orbit", "comet", "astronomer"],
]
FRENCH = [
    ["élection", "présidentielle", "député", "sénat", "scrutin"],
    ["sécheresse", "forêt", "incendie", "pompiers", "canicule"],
    ["musée", "théâtre", "exposition", "œuvre", "peintre"],
]
RUSSIAN = [
    ["выборы", "президент", "парламент", "депутат", "голосование"],
    ["хоккей", "вратарь", "шайба", "чемпионат", "тренер"],
    ["музей", "художник", "выставка", "театр", "картина"],
]
FILLER = ["village", "morning", "road", "window", "letter", "garden", "green", "number"]
FRENCH_FILLER = ["les", "des", "dans", "une", "pour", "été", "qui", "avec"]
RUSSIAN_FILLER = ["на", "был", "что", "как", "это", "для", "или", "после"]


def write_texts(topics: list[list[str]], filler: Sequence[str], each: int = 8, seed: int = 0) -> list[str]:
    """Articles of 50 words, topic after topic, three fifths of them filler."""
    rng = np.random.default_rng(seed)
    texts = []
    for words in topics:
        for _ in range(each):
            drawn = [*rng.choice(filler, 30), *rng.choice(words, 20)]
            texts.append(" ".join(str(word) for word in rng.permutation(drawn)))
    return texts


def describe_texts(texts: Sequence[str], assignment: Sequence[int]) -> list[Cluster]:
    """As `describe` does, with vectors that matter to nothing but representatives."""
    vectors = np.eye(len(texts), dtype=np.float32)
    return describe(vectors, np.array(assignment), np.ones(len(texts), np.float32), texts)


def describe_topics(topics: list[list[str]], filler: Sequence[str]) -> list[Cluster]:
    return describe_texts(write_texts(topics, filler), np.repeat(np.arange(len(topics)), 8).tolist())


def words_of(cluster: Cluster, terms: int = TERMS) -> set[str]:
    return {word for term, _ in cluster.terms[:terms] for word in term.split()}


# --- terms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topics", "filler"),
    [(TOPICS, FILLER), (FRENCH, FRENCH_FILLER), (RUSSIAN, RUSSIAN_FILLER)],
    ids=["English", "French", "Russian"],
)
def test_the_words_of_a_topic_label_its_cluster(topics: list[list[str]], filler: list[str]) -> None:
    for cluster, words in zip(describe_topics(topics, filler), topics, strict=True):
        assert words_of(cluster, LABEL_TERMS) <= set(words)
        assert cluster.label == ", ".join(term for term, _ in cluster.terms[:LABEL_TERMS])


def test_terms_come_best_first_with_weights_relative_to_the_best() -> None:
    for cluster in describe_topics(TOPICS, FILLER):
        weights = [weight for _, weight in cluster.terms]
        assert weights[0] == 1.0
        assert weights == sorted(weights, reverse=True)
        assert weights[-1] > 0
        assert len(weights) <= TERMS


@pytest.mark.parametrize("apostrophe", ["'", "\u2019"])
def test_stop_words_are_never_terms(apostrophe: str) -> None:
    stop = [
        "the",
        "and",
        "of",
        "said",
        "mr",
        "according",
        "monday",
        "it's",
        "don't",
        "they're",
        "wouldn't",
        "can't",
        "i've",
    ]
    texts = write_texts(TOPICS, [word.replace("'", apostrophe) for word in stop])
    clusters = describe_texts(texts, np.repeat(np.arange(4), 8).tolist())
    for cluster, words in zip(clusters, TOPICS, strict=True):
        assert words_of(cluster) <= set(words)


def test_a_term_that_repeats_a_word_of_a_better_one_is_left_out() -> None:
    texts = ["silver mine silver mines silver\u2019s mine shaft"] * 4 + ["opera tenor stage singer"] * 4
    for cluster in describe_texts(texts, [0] * 4 + [1] * 4):
        stems = [word.removesuffix("s").removesuffix("'") for term, _ in cluster.terms for word in term.split()]
        assert len(stems) == len(set(stems))


def test_one_article_that_repeats_a_name_does_not_label_its_cluster() -> None:
    texts = ["lava ash", "lava crater", "lava smoke", "lava ground", "steam", "zebulon " * 60, "penalty", "striker"]
    volcano, _ = describe_texts(texts, [0] * 6 + [1] * 2)
    assert volcano.label.startswith("lava")


def test_letters_with_accents_are_read_the_same_however_they_are_encoded() -> None:
    assignment = np.repeat(np.arange(3), 8).tolist()
    texts = write_texts(FRENCH, FRENCH_FILLER)
    split = [normalize("NFD", text) for text in texts]
    assert split != texts
    assert describe_texts(split, assignment) == describe_texts(texts, assignment)


@pytest.mark.parametrize("text", ["1999 2,000 3.14 42", "!!! ... ???", "the of and a"])
def test_a_corpus_without_words_says_so(text: str) -> None:
    (cluster,) = describe_texts([text, text], [0, 0])
    assert (cluster.label, cluster.terms, cluster.size) == ("(no words)", [], 2)


def test_one_cluster_alone_is_labelled_by_its_commonest_words() -> None:
    (cluster,) = describe_texts(["lava ash lava", "the lava ash crater", "lava"], [0, 0, 0])
    assert [term for term, _ in cluster.terms] == ["lava", "ash", "crater"]


def test_a_cluster_without_words_among_others_says_so() -> None:
    first, second = describe_texts(["volcano lava", "crater lava", "12 345"], [0, 0, 1])
    assert "lava" in first.label
    assert (second.label, second.terms) == ("(no words)", [])


# --- members ---------------------------------------------------------------------------------------------------------


def spread(sizes: list[int], dim: int = 24, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of several clusters in mixed order, not too like each other."""
    rng = np.random.default_rng(seed)
    assignment = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = np.eye(len(sizes), dim)[assignment] + 0.3 * rng.standard_normal((sum(sizes), dim))
    return unit(vectors.astype(np.float32)), assignment


def describe_spread(sizes: list[int], seed: int) -> tuple[list[Cluster], NDArray[np.int64], NDArray[np.float32]]:
    vectors, assignment = spread(sizes, seed=seed)
    similarity = (vectors * np.eye(len(sizes), vectors.shape[1])[assignment]).sum(axis=1).astype(np.float32)
    return describe(vectors, assignment, similarity, ["lava"] * len(vectors)), assignment, similarity


@pytest.mark.parametrize("seed", range(3))
def test_the_medoid_is_the_row_most_like_its_centroid(seed: int) -> None:
    clusters, assignment, similarity = describe_spread([20, 12, 3, 1], seed)
    for number, cluster in enumerate(clusters):
        assert cluster.medoid == int(np.where(assignment == number, similarity, -2).argmax())
    assert [(cluster.id, cluster.size) for cluster in clusters] == [
        ("c0000", 20),
        ("c0001", 12),
        ("c0002", 3),
        ("c0003", 1),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_representatives_are_typical_members_and_the_medoid_is_the_first(seed: int) -> None:
    clusters, assignment, similarity = describe_spread([20, 12, 3, 1], seed)
    for number, cluster in enumerate(clusters):
        rows = cluster.representatives
        assert rows[0] == cluster.medoid
        assert len(rows) == len(set(rows)) == min(REPRESENTATIVES, cluster.size)
        assert (assignment[rows] == number).all()
        assert (np.diff(similarity[rows]) <= 0).all()


def test_of_rows_equally_near_the_first_is_the_medoid() -> None:
    clusters = describe_texts(["lava"] * 6, [1, 0, 0, 1, 0, 0])
    assert [cluster.medoid for cluster in clusters] == [1, 0]


def test_no_two_representatives_tell_the_same_story() -> None:
    vectors, assignment = spread([12, 6])
    copies = unit(vectors + np.float32(0.002))  # a word or two changed
    again = np.concatenate([vectors, vectors, copies])
    clusters = describe(
        again, np.tile(assignment, 3), np.linspace(1, 0.5, len(again)).astype(np.float32), ["lava"] * len(again)
    )
    for cluster in clusters:
        originals = [row % len(vectors) for row in cluster.representatives]
        assert len(originals) == len(set(originals)) == REPRESENTATIVES


def test_a_cluster_of_one_text_has_one_representative() -> None:
    vectors = np.tile(np.eye(1, 8, dtype=np.float32), (9, 1))
    (cluster,) = describe(vectors, np.zeros(9, np.int64), np.ones(9, np.float32), ["lava"] * 9)
    assert (cluster.size, cluster.medoid, cluster.representatives) == (9, 0, [0])


def test_the_same_corpus_is_described_the_same() -> None:
    assert describe_topics(TOPICS, FILLER) == describe_topics(TOPICS, FILLER)
    assert describe_spread([9, 5], 0)[0] == describe_spread([9, 5], 0)[0]


def test_texts_are_read_once() -> None:
    texts = iter(["volcano lava", "crater ash", "penalty striker"])
    first, second = describe(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), np.ones(3, np.float32), texts)
    assert (first.size, second.label) == (2, "penalty, striker")

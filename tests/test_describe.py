"""What is said of clusters: labels, medoids, representatives."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
import pytest

from coldframe.clusters import Lineage
from coldframe.recipe import unit
from indexer import describe as describe_module
from indexer.describe import LABEL_TERMS, REPRESENTATIVES, TERMS, describe, outlier_limits
from indexer.lineage import Naming

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from coldframe.clusters import Cluster, ClusterTable

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


def table(
    vectors: NDArray[np.float32],
    assignment: NDArray[np.int64],
    similarity: NDArray[np.float32],
    texts: Iterable[str],
    topics: int | None = None,
) -> ClusterTable:
    """Describes the clusters of a first generation."""
    count = int(assignment.max()) + 1
    ids = [f"c{number:04}" for number in range(count)]
    naming = Naming(ids, [Lineage("first", [], None)] * count, [], count, None)
    return describe(vectors, assignment, similarity, texts, naming, topics=topics)


def describe_texts(texts: Sequence[str], assignment: Sequence[int]) -> list[Cluster]:
    """As `describe` does, with vectors that matter to nothing but representatives."""
    vectors = np.eye(len(texts), dtype=np.float32)
    return table(vectors, np.array(assignment), np.ones(len(texts), np.float32), texts).clusters


def describe_topics(topics: list[list[str]], filler: Sequence[str]) -> list[Cluster]:
    return describe_texts(write_texts(topics, filler), np.repeat(np.arange(len(topics)), 8).tolist())


def words_of(cluster: Cluster, terms: int = TERMS) -> set[str]:
    found = {word for term, _ in cluster.terms[:terms] for word in term.split()}
    assert found, "a cluster without words is like any other"
    return found


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
        assert len(stems) >= 3
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


HINDI = [["दिल्ली", "चुनाव", "आयोग", "मतदान"], ["क्रिकेट", "भारत", "विकेट", "गेंदबाज़"], ["बारिश", "बाढ़", "नदी", "राहत"]]
HINDI_FILLER = ["ख़बर", "लोग", "आज", "और", "में"]


def test_words_whose_vowels_are_signs_are_whole() -> None:
    for cluster, words in zip(describe_topics(HINDI, HINDI_FILLER), HINDI, strict=True):
        assert words_of(cluster, LABEL_TERMS) <= {normalize("NFC", word) for word in words}


def test_what_is_written_without_spaces_is_told_by_what_articles_share() -> None:
    topics = ["政府宣布新的经济政策。就业形势严峻", "球队赢得比赛冠军。教练称赞球员"]
    texts = [f"今天。{topic}。记者{n}报道。" for n in range(6) for topic in topics]
    clusters = describe_texts(texts, [0, 1] * 6)
    for cluster, topic in zip(clusters, topics, strict=True):
        assert len(cluster.terms) == TERMS
        assert all(len(term) == 2 and term in topic for term, _ in cluster.terms[:LABEL_TERMS])
    thai = describe_texts(["รัฐบาลไทยประกาศนโยบายเศรษฐกิจใหม่", "ทีมฟุตบอลชนะการแข่งขัน"] * 4, [0, 1] * 4)
    assert [len(cluster.terms) for cluster in thai] == [TERMS] * 2
    assert all(3 <= len(term) <= 12 for cluster in thai for term, _ in cluster.terms)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Donau\u00addampf\u00adschiff", {"donaudampfschiff"}),
        ("co\u2011operation", {"co-operation"}),
        ("\u0130STANBUL", {"istanbul"}),
        ("נשיא ארה״ב", {"נשיא", "ארה״ב", "נשיא ארה״ב"}),
        ('ארה"ב', {"ארה״ב"}),
        ("צ\u05f3ק", {"צ\u05f3ק"}),
        ('"שלום"', {"שלום"}),
        ("intel·ligència", {"intel·ligència"}),
        ("정치·경제", {"정치", "경제", "정치 경제"}),
        ("🏳\ufe0f\u200d🌈 ❤\ufe0f\u200d🔥", set()),
        ("❤\ufe0fLiebe", {"liebe"}),
        ("葛\U000e0100城", {"葛城"}),
    ],
)
def test_words_are_whole_and_nothing_unseen_is_one(text: str, said: set[str]) -> None:
    assert {*describe_module._count_words([(0, text)]).vocabulary} == said


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
    return table(vectors, assignment, similarity, ["lava"] * len(vectors)).clusters, assignment, similarity


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
        assert len(rows) == len(set(rows)) == min(REPRESENTATIVES, cluster.size - cluster.outliers)
        assert (assignment[rows] == number).all()
        assert (np.diff(similarity[rows]) <= 0).all()


def test_of_rows_equally_near_the_first_is_the_medoid() -> None:
    clusters = describe_texts(["lava"] * 6, [1, 0, 0, 1, 0, 0])
    assert [cluster.medoid for cluster in clusters] == [1, 0]


def test_no_two_representatives_tell_the_same_story() -> None:
    vectors, assignment = spread([12, 6])
    copies = unit(vectors + np.float32(0.002))  # a word or two changed
    again = np.concatenate([vectors, vectors, copies])
    similarity = np.linspace(1, 0.5, len(again)).astype(np.float32)
    clusters = table(again, np.tile(assignment, 3), similarity, ["lava"] * len(again)).clusters
    for cluster in clusters:
        originals = [row % len(vectors) for row in cluster.representatives]
        assert len(originals) == len(set(originals)) == REPRESENTATIVES


def test_a_cluster_of_one_text_has_one_representative() -> None:
    vectors = np.tile(np.eye(1, 8, dtype=np.float32), (9, 1))
    (cluster,) = table(vectors, np.zeros(9, np.int64), np.ones(9, np.float32), ["lava"] * 9).clusters
    assert (cluster.size, cluster.medoid, cluster.representatives) == (9, 0, [0])


def test_the_same_corpus_is_described_the_same() -> None:
    assert describe_topics(TOPICS, FILLER) == describe_topics(TOPICS, FILLER)
    assert describe_spread([9, 5], 0)[0] == describe_spread([9, 5], 0)[0]


def test_texts_are_read_once() -> None:
    texts = iter(["volcano lava", "crater ash", "penalty striker"])
    first, second = table(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), np.ones(3, np.float32), texts).clusters
    assert (first.size, second.label) == (2, "penalty, striker")


# --- outliers and residuals ------------------------------------------------------------------------------------------


def oracle_limits(assignment: NDArray[np.int64], similarity: NDArray[np.float32]) -> list[float]:
    """The rule by the book, cluster by cluster."""
    groups = [similarity[assignment == number].astype(np.float64) for number in range(assignment.max() + 1)]
    deviations = [np.abs(group - np.median(group)) for group in groups]
    corpus = float(np.median(np.concatenate(deviations)))
    limits = []
    for group, deviation in zip(groups, deviations, strict=True):
        spread = (len(group) * float(np.median(deviation)) + 10 * corpus) / (len(group) + 10)
        limits.append(float(np.median(group)) - 3 * 1.4826 * spread)
    return limits


def with_outliers() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Three clusters; the last two rows of the first are unlike the rest."""
    assignment = np.repeat([0, 1, 2], [40, 12, 3])
    similarity = np.random.default_rng(0).normal(0.7, 0.03, 55).astype(np.float32)
    similarity[38:40] = [0.2, 0.3]
    return assignment, similarity


@pytest.mark.parametrize("seed", range(5))
def test_limits_are_what_numpy_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assignment = rng.permutation(np.repeat(np.arange(6), [50, 20, 7, 3, 2, 1]))
    similarity = rng.beta(8, 4, 83).astype(np.float32)
    np.testing.assert_allclose(outlier_limits(assignment, similarity), oracle_limits(assignment, similarity), atol=2e-6)


def test_an_outlier_is_counted_and_never_shown_as_typical() -> None:
    assignment, similarity = with_outliers()
    vectors, texts = np.eye(55, dtype=np.float32), ["lava"] * 38 + ["zebulon"] * 2 + ["comet"] * 15
    clusters = table(vectors, assignment, similarity, texts).clusters
    assert [cluster.outliers for cluster in clusters] == [2, 0, 0]
    assert 0.3 < clusters[0].outlier_below < similarity[:38].min()
    for number, cluster in enumerate(clusters):
        inside = similarity[assignment == number]
        assert cluster.outliers == (inside < cluster.outlier_below).sum()
        assert (similarity[cluster.representatives] >= cluster.outlier_below).all()
        assert cluster.size == len(inside)
    assert "zebulon" not in words_of(clusters[0])


def test_representatives_are_few_rather_than_outliers() -> None:
    assignment = np.repeat([0, 1], [4, 30])
    similarity = np.concatenate([[0.8, 0.79, 0.78, 0.1], np.linspace(0.6, 0.8, 30)]).astype(np.float32)
    first, _ = table(np.eye(34, dtype=np.float32), assignment, similarity, ["lava"] * 34).clusters
    assert (first.representatives, first.outliers) == ([0, 1, 2], 1)


@pytest.mark.parametrize("sizes", [[1], [2], [1, 1, 2], [9, 1]])
def test_where_all_are_alike_nothing_is_an_outlier(sizes: list[int]) -> None:
    assignment = np.repeat(np.arange(len(sizes)), sizes)
    similarity = np.full(len(assignment), 0.9, np.float32) - np.float32(1e-7) * (np.arange(len(assignment)) % 2)
    clusters = table(np.eye(len(assignment), dtype=np.float32), assignment, similarity, ["lava"] * len(assignment))
    assert sum(cluster.outliers for cluster in clusters.clusters) == 0


def test_residuals_are_what_numpy_finds() -> None:
    assignment, similarity = with_outliers()
    clusters = table(np.eye(55, dtype=np.float32), assignment, similarity, ["lava"] * 55).clusters
    for number, cluster in enumerate(clusters):
        far = 1 - similarity[assignment == number].astype(np.float64)
        found = cluster.residuals
        assert found.mean == pytest.approx(far.mean(), abs=1e-6)
        assert [found.p50, found.p90, found.p99] == pytest.approx(np.quantile(far, [0.5, 0.9, 0.99]).tolist(), abs=1e-6)


# --- topics ----------------------------------------------------------------------------------------------------------


def test_a_topic_is_labelled_by_the_words_of_its_clusters() -> None:
    texts = write_texts([*TOPICS, *TOPICS], FILLER)
    subject = np.tile(np.repeat(np.arange(4), 8), 2)
    vectors = unit(np.eye(4, 32, dtype=np.float32)[subject] + 0.05 * np.eye(64, 32, dtype=np.float32))
    found = table(vectors, np.repeat(np.arange(8), 8), np.ones(64, np.float32), texts, topics=4)
    assert [topic.size for topic in found.topics] == [16] * 4
    for topic in found.topics:
        first, second = topic.clusters
        assert int(second[1:]) == int(first[1:]) + 4
        assert {cluster.id for cluster in found.clusters if cluster.topic == topic.id} == {first, second}
        assert topic.label == ", ".join(term for term, _ in topic.terms[:LABEL_TERMS])
        assert set() < {word for term, _ in topic.terms[:LABEL_TERMS] for word in term.split()}
        assert {word for term, _ in topic.terms[:LABEL_TERMS] for word in term.split()} <= set(TOPICS[int(first[1:])])


def test_without_topics_clusters_have_none() -> None:
    vectors, assignment = spread([5, 4, 3])
    found = table(vectors, assignment, np.ones(12, np.float32), ["lava"] * 12, topics=0)
    assert (found.topics, [cluster.topic for cluster in found.clusters]) == ([], [None] * 3)
    assert found.next_number == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lava lava lava cra|ter", {"lava"}),
        ("lava lava crater|, lava", {"lava", "crater", "lava crater"}),
        ("lava lava Vol|canó", {"lava"}),
        ("lava lava o\u2019n|eill", {"lava"}),
        ("lava lava semi-|final", {"lava"}),
        ("lava lava semi\u00ad|final", {"lava"}),
        ("lava lava ארה״|ב", {"lava"}),
        ("火山噴火|警報", {"火山", "山噴", "噴火"}),
        ("火山 mag|ma", {"火山"}),
    ],
)
def test_a_word_that_a_long_text_is_cut_in_is_no_term(
    text: str, said: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe_module, "_CHARS_PER_ARTICLE", text.index("|"))
    words = describe_module._count_words([(0, text.replace("|", ""))])
    assert {*words.vocabulary} - {"lava lava"} == said


def test_of_many_clusters_fewer_articles_are_read_for_words(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    count_words = describe_module._count_words

    def remember(texts: Iterable[tuple[int, str]]) -> describe_module._Words:
        taken = list(texts)
        read.extend(row for row, _ in taken)
        return count_words(taken)

    monkeypatch.setattr(describe_module, "_count_words", remember)
    monkeypatch.setattr(describe_module, "_MOST_ARTICLES", 60)
    monkeypatch.setattr(describe_module, "_LEAST_PER_CLUSTER", 2)
    assignment = np.repeat([0, 1, 2], [50, 30, 1])
    similarity = np.linspace(0.9, 0.8, 81).astype(np.float32)
    table(np.eye(81, dtype=np.float32), assignment, similarity, ["lava"] * 81)
    assert read == [*range(20), *range(50, 70), 80]

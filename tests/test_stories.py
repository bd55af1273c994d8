"""Stories: copies and edited copies come together; other reports on the same subject, and later ones, do not."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.index import ClusterIndex
from coldframe.recipe import unit
from coldframe.stories import SAME_WORDS, overlap, shingles
from coldframe.text import text_digest
from indexer.spool import UNDATED
from indexer.stories import DAY_S, Texts, find_stories
from indexer.train import assign, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from coldframe import Encoder
    from tests.conftest import Sample

WORDS = [f"word{n}" for n in range(2_000)]
RAIN = (
    "बारिश से सड़कों पर पानी भर गया। मौसम विभाग ने दो दिन की चेतावनी जारी की है। स्कूल मंगलवार तक बंद रहेंगे।",
    "बारिश से दुकानों में पानी भर गया। मौसम विभाग ने तीन दिन की चेतावनी जारी की है। स्कूल गुरुवार तक बंद रहेंगे।",
)


class Article(NamedTuple):
    """An article of a made-up corpus; `day` is None where the date is unknown."""

    text: str
    day: float | None
    family: int


def vectors_of(texts: Sequence[str], dim: int = 64) -> NDArray[np.float32]:
    """Random directions of the words, summed: texts that share words are near, as an encoder would have it."""
    return unit(np.stack([sum((direction(w, dim) for w in text.split()), np.zeros(dim, np.float32)) for text in texts]))


@cache
def direction(word: str, dim: int) -> NDArray[np.float32]:
    seed = int.from_bytes(text_digest(word)[:4], "little")
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def index_of(vectors: NDArray[np.float32], clusters: int = 1) -> ClusterIndex:
    centroids, assignment, _ = assign(vectors, train(vectors, clusters, 0))
    return ClusterIndex.build(centroids, vectors, assignment)


def told(articles: Sequence[Article], threshold: float = 0.7, window_days: float = 3, clusters: int = 1) -> list[int]:
    texts = [article.text for article in articles]
    stories = find_stories(
        index_of(vectors_of(texts), clusters),
        np.array([UNDATED if a.day is None else round(a.day * DAY_S) for a in articles], np.int64),
        [text_digest(text) for text in texts],
        texts.__getitem__,
        threshold=threshold,
        window_days=window_days,
    )
    assert stories.dtype == np.int32
    return [int(story) for story in stories]


def written(seed: int, words: int = 200) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def edited(text: str, share: float, seed: int) -> str:
    """With a share of the words changed, a new headline, and for every other seed a paragraph added."""
    rng = np.random.default_rng(seed)
    words = np.array(text.split(), object)
    places = rng.choice(len(words), round(share * len(words)), replace=False)
    words[places] = rng.choice(WORDS, len(places))
    headline, paragraph = rng.choice(WORDS, 6), rng.choice(WORDS, 40 * (seed % 2))
    return " ".join([*headline, *words, *paragraph])


def families(count: int, seed: int = 0) -> list[Article]:
    """Of one to five versions each, in random order, all with dates of their own."""
    rng = np.random.default_rng(seed)
    articles = []
    for family in range(count):
        text, day = written(seed * 1000 + family), float(rng.uniform(0, 30))
        articles.append(Article(text, day, family))
        for version in range(int(rng.integers(0, 5))):
            share, later = float(rng.uniform(0.02, 0.1)), float(rng.uniform(0.01, 2))
            articles.append(Article(edited(text, share, version), day + later, family))
    return [articles[n] for n in rng.permutation(len(articles))]


def partition(stories: Sequence[int]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.array(stories) == story).tolist()) for story in set(stories)}


# --- who belongs together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clusters", "at_once"), [(1, 32_768), (12, 32_768), (12, 50)])
def test_edited_copies_share_the_story_of_the_earliest_and_nothing_else_does(
    clusters: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "indexer.stories._QUERIES", at_once
    )  # of a large corpus not all neighbours are asked for at once
    articles = families(120)
    stories = told(articles, clusters=clusters)
    for row, article in enumerate(articles):
        first = min((a.day, n) for n, a in enumerate(articles) if a.family == article.family)[1]
        assert stories[row] == first


@pytest.mark.parametrize("clusters", [1, 4])
def test_versions_share_a_story_however_many_copies_each_has(clusters: int) -> None:
    versions = [written(1), edited(written(1), 0.05, 0), written(2)]
    articles = [Article(text, copy / 100, min(n, 1)) for n, text in enumerate(versions) for copy in range(150)]
    assert set(told(articles, clusters=clusters)) == {0, 300}


def test_copies_share_a_story_whatever_their_dates() -> None:
    text = written(1)
    assert told([Article(text, 900, 0), Article(text, 3, 0), Article(text, None, 0), Article(written(2), 3, 1)]) == [
        1,
        1,
        1,
        3,
    ]


def test_of_equal_dates_the_lowest_row_is_first_and_an_unknown_date_never_is() -> None:
    text = written(1)
    assert told([Article(text, None, 0), Article(text, 5, 0), Article(text, 5, 0)]) == [1, 1, 1]


def test_different_reports_on_one_subject_stay_apart() -> None:
    rng = np.random.default_rng(0)
    few = WORDS[:30]  # one subject: the same few words in other orders
    articles = [Article(" ".join(rng.choice(few, 200)), 1, n) for n in range(20)]
    vectors = vectors_of([a.text for a in articles])
    assert (vectors @ vectors.T).min() > 0.7, "they are as near in meaning as edited copies are"
    assert told(articles) == list(range(20))


def test_the_same_words_do_not_join_what_the_encoder_holds_apart() -> None:
    brief = written(1, 60)
    roundup = brief + " " + written(2, 3_000)
    articles = [Article(roundup, 1, 0), Article(brief, 1, 1)]
    assert overlap(shingles(roundup), shingles(brief)) > SAME_WORDS
    assert told(articles) == [0, 1]
    assert told(articles, threshold=0.01) == [0, 0]


@pytest.mark.parametrize(("days", "joined"), [(0, True), (2.99, True), (3, True), (3.01, False), (None, True)])
def test_a_version_joins_within_the_window_and_with_an_unknown_date(days: float | None, joined: bool) -> None:
    text = written(1)
    articles = [Article(text, 10, 0), Article(edited(text, 0.02, 0), None if days is None else 10 + days, 0)]
    assert told(articles) == ([0, 0] if joined else [0, 1])


def test_a_story_does_not_drift_away_from_its_first_article() -> None:
    versions = [written(1)]
    for day in range(1, 12):
        versions.append(edited(versions[-1], 0.1, 2 * day))
    articles = [Article(text, 0.1 * day, 0) for day, text in enumerate(versions)]
    stories = told(articles)
    assert len(set(stories)) > 1
    for row, story in enumerate(stories):
        assert stories[story] == story
        if row != story:
            assert overlap(shingles(versions[row]), shingles(versions[story])) >= SAME_WORDS


def test_a_story_is_no_longer_than_the_window_however_steadily_it_is_repeated() -> None:
    text = written(1)
    articles = [Article(edited(text, 0.02, 2 * day), float(day), 0) for day in range(10)]
    stories = told(articles)
    assert stories == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]


def test_a_version_among_many_copies_is_found() -> None:
    text = written(1)
    articles = [*(Article(text, 1 + n / 100, 0) for n in range(60)), Article(edited(text, 0.05, 0), 0, 0)]
    assert told(articles) == [60] * 61


def test_a_large_family_is_one_story() -> None:
    text = written(1)
    articles = [Article(edited(text, 0.02, 2 * n), n / 1000, 0) for n in range(300)]
    stories = told(articles)
    assert stories.count(0) > 290


def test_one_article_is_a_story() -> None:
    assert told([Article("alone", None, 0)]) == [0]


def test_texts_are_asked_for_only_where_there_is_a_candidate() -> None:
    texts = [written(n) for n in range(50)]

    def refuse(row: int) -> str:
        raise AssertionError(row)

    find_stories(
        index_of(vectors_of(texts)),
        np.full(50, UNDATED),
        [text_digest(text) for text in texts],
        refuse,
        threshold=0.9,
        window_days=3,
    )


# --- the same, whatever the order ------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_rows_decides_nothing_where_dates_differ(seed: int, random: object) -> None:
    articles = families(20, seed)
    order = np.random.default_rng(random.randrange(10**6)).permutation(len(articles))  # type: ignore[attr-defined]
    stories = told(articles)
    moved = told([articles[n] for n in order])
    assert {frozenset(int(order[n]) for n in part) for part in partition(moved)} == partition(stories)
    assert [int(order[story]) for story in moved] == [stories[n] for n in order]


DAYS = st.one_of(st.none(), st.integers(0, 6))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), DAYS), min_size=1, max_size=14))
def test_every_story_is_a_star_about_its_first_article(rows: list[tuple[int, int, int | None]]) -> None:
    """By the slow and obvious reading of the docstring: all pairs, in the order of dates."""
    articles = [
        Article(edited(written(family, 80), 0.06 * version, 2 * version), day, family) for family, version, day in rows
    ]
    stories = told(articles)
    assert stories == by_the_book(articles)
    assert told(articles) == stories


def by_the_book(articles: Sequence[Article], threshold: float = 0.7, window: float = 3) -> list[int]:
    vectors = vectors_of([article.text for article in articles]).astype(np.float64)
    order = sorted(range(len(articles)), key=lambda n: (articles[n].day is None, articles[n].day or 0, n))
    firsts: dict[str, int] = {}
    story: dict[int, int] = {}
    for row in order:
        first = firsts.setdefault(articles[row].text, row)
        if first != row:
            story[row] = story[first]
            continue
        best, most = row, 0.0
        for other in [n for n in order if story.get(n) == n]:
            days = (articles[row].day, articles[other].day)
            near_in_time = None in days or abs(days[0] - days[1]) <= window  # type: ignore[operator]
            shared = overlap(shingles(articles[row].text), shingles(articles[other].text))
            if near_in_time and vectors[row] @ vectors[other] >= threshold and shared >= SAME_WORDS and shared > most:
                best, most = other, shared
        story[row] = best
    return [story[row] for row in range(len(articles))]


def test_texts_are_numbered_from_the_earliest() -> None:
    texts = Texts.of(np.array([UNDATED, 50, 10, 50], np.int64), [b"a", b"b", b"c", b"a"])
    assert texts.first.tolist() == [2, 1, 3]
    assert texts.number.tolist() == [2, 1, 0, 2]
    assert texts.days(0, 1) == pytest.approx(40 / DAY_S)


# --- words -----------------------------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_overlap_is_a_share_the_same_from_both_sides(one: str, other: str) -> None:
    shared = overlap(shingles(one), shingles(other))
    assert 0 <= shared <= 1
    assert shared == overlap(shingles(other), shingles(one))


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_shingles_are_the_distinct_runs_of_three_words(one: list[str], other: list[str]) -> None:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        padded = [*words, *[""] * (3 - len(words))] if words else []
        return {tuple(padded[n : n + 3]) for n in range(len(padded) - 2)}

    ours, theirs = shingles(" ".join(one)), shingles(" ".join(other))
    assert len(ours) == len(runs(one))
    assert len(np.intersect1d(ours, theirs)) == len(runs(one) & runs(other))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Rates cut!", "rates   CUT", True),  # case, spaces and points are nothing
        ("L\u00e9gislation adopt\u00e9e", "Le\u0301gislation adopte\u0301e", True),  # as a Mac writes it
        ("", "", False),
        ("...", "!!!", False),
        ("Qtly div 10 cts vs 10 cts prior Pay April 13", "Qtly div 11 cts vs 11 cts prior Pay May 9", False),
        (
            "中央銀行は金利を引き下げた。市場は歓迎している。",
            "中央銀行は金利を引き下げた。市場は歓迎しています。",
            True,
        ),
        ("中央銀行は金利を引き下げた。", "首相は来週の訪米を発表した。", False),
        # Rain in Mumbai, the same report edited, and rain in Chennai: of pieces of words all three have most.
        (f"मुंबई में सोमवार को भारी {RAIN[0]}", f"मुंबई में सोमवार को तेज {RAIN[0]}", True),
        (f"मुंबई में सोमवार को भारी {RAIN[0]}", f"चेन्नई में सोमवार को भारी {RAIN[1]}", False),
    ],
)
def test_versions_are_told_by_their_words(one: str, other: str, same: bool) -> None:
    assert (overlap(shingles(one), shingles(other)) >= SAME_WORDS) == same


def test_short_texts_need_more_to_agree() -> None:
    def changed(words: int) -> float:
        text = written(1, words)
        return overlap(shingles(text), shingles(" ".join([*text.split()[: -words // 4], *WORDS[: words // 4]])))

    assert changed(12) < SAME_WORDS < changed(200)


# --- the real encoder ------------------------------------------------------------------------------------------------


def test_with_minilm_edited_articles_join_and_others_do_not(encoder: Encoder, articles: list[Sample]) -> None:
    texts = [article.text for article in articles[:20]]
    changed = [
        text.replace(" the ", " a ", 3) + " The story continues tomorrow, said its editor." for text in texts[:8]
    ]
    every = [*texts, *changed]
    stories = find_stories(
        index_of(unit(encoder.embed(every)), 3),
        np.full(len(every), UNDATED),
        [text_digest(text) for text in every],
        every.__getitem__,
        threshold=0.85,
        window_days=3,
    )
    assert stories.tolist() == [*range(20), *range(8)]


THAI = (
    "รัฐบาล ประเทศ เศรษฐกิจ นายก รัฐมนตรี กระทรวง การคลัง นักท่องเที่ยว ตลาด ส่งออก นำเข้า ราคา น้ำมัน เพิ่มขึ้น ลดลง ประชาชน"
    " โครงการ งบประมาณ ธนาคาร ดอกเบี้ย ลงทุน ต่างชาติ กล่าวว่า เปิดเผย ประชุม วันนี้ ไตรมาส ขยายตัว ภาษี แรงงาน เกษตรกร ข้าว ยางพารา"
    " บริษัท อุตสาหกรรม พลังงาน มาตรการ ช่วยเหลือ สินค้า และ ของ ที่ ใน เป็น ได้ มี ว่า จะ ให้ กับ จาก ต่อ ปี เดือน"
)


def in_thai(seed: int, words: int) -> str:
    return "".join(np.random.default_rng(seed).choice(THAI.split(), words))


def test_a_brief_is_no_version_of_a_long_report_in_a_script_of_few_letters() -> None:
    brief, report = in_thai(1, 60), in_thai(2, 1_200)
    assert overlap(shingles(brief), shingles(report)) < SAME_WORDS
    assert overlap(shingles(brief), shingles(in_thai(3, 30) + brief + in_thai(4, 30))) > SAME_WORDS
    assert overlap(shingles(report), shingles(report[:1_000] + report[1_100:])) > SAME_WORDS


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("".join(THAI.split()), "\u200b".join(THAI.split())),
        ("Donaudampfschiff fährt", "Donau\u00addampf\u00adschiff fährt"),
        ("葛城市の人口", "葛\U000e0100城市の人口"),
        ("7月16日、政府宣布", "7 月 16 日 政府宣布"),
        ("covidไทยวันนี้", "Covid ไทยวันนี้"),
    ],
)
def test_what_is_not_seen_and_what_stands_between_scripts_are_nothing(text: str, same: str) -> None:
    assert np.array_equal(shingles(text), shingles(same))

"""Views and their overlay against slow oracles, where the wire is too coarse: ties, many live rows, older views."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coldframe.recipe import unit
from coldframe.store import Store
from coldframe.v1.ranking_pb2 import Filter
from server import filters
from server.columns import MAX_ATTRIBUTES, Attribute
from server.overlay import LiveRow, Overlay
from server.stories import Telling, story_of
from server.view import Base, View
from tests.generations import DIM, LISTS, ROWS, publish, row

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WORDS = np.empty(0, np.uint64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    store = Store(tmp_path_factory.mktemp("view") / "store")
    publish(store)
    return Base(store.open())


def random_units(count: int, seed: int) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32))


def live(base: Base, article_id: str, vector: NDArray[np.float32]) -> LiveRow:
    cluster = int(base.generation.index.nearest_clusters(vector[None], 1)[0][0, 0])
    return LiveRow(replace(row(article_id, cluster=cluster), story=0), vector, WORDS)


def slow(view: View, articles: dict[str, NDArray[np.float32]], query: NDArray[np.float32]) -> list[tuple[float, str]]:
    """(-similarity, id) of all articles, best first."""
    wide = query.astype(np.float64)
    return sorted((-float(np.float32((v.astype(np.float64) * wide).sum())), name) for name, v in articles.items())


def of_base(base: Base) -> dict[str, NDArray[np.float32]]:
    return {base.generation.articles.id_of(n): base.generation.index.vector(n) for n in range(ROWS)}


def found(view: View, query: NDArray[np.float32], limit: int, probes: int = LISTS) -> list[tuple[float, str]]:
    rows, scores = view.search(query, limit, probes, view.allow())
    return [(-float(score), view.id_of(int(n))) for n, score in zip(rows, scores, strict=True)]


def test_equal_rows_of_both_kinds_come_in_the_order_of_ids(base: Base) -> None:
    view, articles = View.of(base), of_base(base)
    twin = base.generation.index.vector(7)
    for n, name in enumerate(["zz", "a06x", "a", "a07a", "a08", "b"]):
        view = view.with_article(live(base, name, twin), n + 1)
        articles[name] = twin
    for limit in range(1, 9):
        assert found(view, twin, limit) == slow(view, articles, twin)[:limit]
        assert [name for _, name in found(view, twin, limit)] == ["a", "a06x", "a07", "a07a", "a08", "b", "zz"][
            :limit
        ] + [name for _, name in slow(view, articles, twin)[7:limit]]


def test_equal_live_rows_that_fp32_tells_apart_come_in_the_order_of_ids_too(base: Base) -> None:
    """Permutations of one vector are all as near to a vector of equal numbers; their sums in fp32 are not the same."""
    rng, one = np.random.default_rng(15), np.abs(random_units(1, 15)[0])
    view, query = View.of(base), unit(np.ones((1, DIM), np.float32))[0]
    for n in range(60):
        view = view.with_article(live(base, f"live-{n:02}", rng.permutation(one)), n + 1)
    for limit in (1, 5, 20):
        assert [name for _, name in found(view, query, limit)] == [f"live-{n:02}" for n in range(limit)]


def test_any_changes_and_any_limit_agree_with_brute_force_in_every_older_view_too(base: Base) -> None:
    rng = np.random.default_rng(0)
    pool = random_units(12, 1)  # few directions: many ties
    names = [*of_base(base), *(f"b{n:02}" for n in range(20))]
    view, articles = View.of(base), of_base(base)
    states = [(view, dict(articles))]
    for sequence in range(1, 150):
        name = names[int(rng.integers(len(names)))]
        if rng.random() < 0.3:
            view = view.without_article(name, sequence)
            articles.pop(name, None)
        else:
            vector = pool[int(rng.integers(len(pool)))]
            view = view.with_article(live(base, name, vector), sequence)
            articles[name] = vector
        states.append((view, dict(articles)))
    for then, there in states[::5]:
        assert len(then) == len(there) == int(then.sizes.sum())
        for name in names:
            n = then.row_of(name)
            assert (n is None) == (name not in there)
            if n is not None:
                assert then.has(n)
                assert (then.id_of(n), then.vector(n).tolist()) == (name, there[name].tolist())
        members = [then.id_of(int(n)) for cluster in range(LISTS) for n in then.members(cluster)]
        assert sorted(members) == sorted(there)
        for query in (*pool[:2], *random_units(2, len(there))):
            for limit in (1, 5, 200):
                assert found(then, query, limit) == slow(then, there, query)[:limit]


class Many:
    """Rows that were replaced, so many that nobody may look at them for each search."""

    def __len__(self) -> int:
        return 50_000


def test_what_a_search_may_answer_is_told_without_a_look_at_all_that_were_replaced(base: Base) -> None:
    view = View.of(base)
    for number in range(0, ROWS, 2):
        view = view.without_article(base.generation.articles.id_of(number), number + 1)
    view = replace(view, replaced=Many())  # type: ignore[arg-type]
    message = Filter()
    message.attribute.key, message.attribute.exists = "author", True
    for condition in (None, filters.compile(message, base.generation.numbers)):
        matching = set(range(ROWS) if condition is None else base.matching(condition).rows().tolist())
        allowed = view.allow(condition, [3])
        assert set(allowed.base.rows().tolist()) == (matching & set(range(1, ROWS, 2))) - {3}
        assert len(allowed.base) == len(allowed.base.rows())
        assert allowed.plain is None, "more than can be fetched and dropped"


def test_many_live_rows_are_searched_by_cluster_and_still_fill_the_limit(base: Base) -> None:
    vectors = random_units(2_500, 2)
    view, articles = View.of(base), of_base(base)
    for n, vector in enumerate(vectors):
        view = view.with_article(live(base, f"live-{n:04}", vector), n + 1)
        articles[f"live-{n:04}"] = vector
    sizes = view.live_sizes
    for query in random_units(5, 3):
        assert found(view, query, 50) == slow(view, articles, query)[:50]
        near, _ = base.generation.index.nearest_clusters(query[None], 1)
        one = [name for _, name in found(view, query, 20, probes=1) if name.startswith("live")]
        rows = [view.row_of(name) for name in one]
        assert {view.article(n).cluster for n in rows if n is not None} == {int(near[0, 0])}
        assert int(sizes[near[0, 0]]) < 2_500
        whole = found(view, query, 2_530, probes=1)
        assert whole == slow(view, articles, query), "more than the nearest cluster holds"


def test_few_live_rows_are_all_looked_at_however_few_lists_are_visited(base: Base) -> None:
    view = View.of(base)
    for n, vector in enumerate(random_units(200, 16)):
        view = view.with_article(live(base, f"live-{n:03}", vector), n + 1)
    for filtered in (False, True):
        rows = view.overlay.candidates(np.arange(LISTS), 1, 5, view.alive, filtered=filtered)
        assert rows.tolist() == list(range(200))


def test_a_filter_has_as_many_lists_visited_as_hold_enough_of_what_it_keeps() -> None:
    """As in the generation: four times as many, none of them empty, and until there are as many rows as in those."""
    overlay, vector, rows = Overlay(DIM), np.zeros(DIM, np.float32), np.arange(9_000)
    clusters = np.where(rows < 1_000, 10, rows % 50)  # 160 in each, and many more in one
    for n, cluster in enumerate(clusters.tolist()):
        overlay.append(LiveRow(row(f"live-{n:04}", cluster=cluster), vector, WORDS))

    def visited(allowed: NDArray[np.bool_], wanted: int = 5) -> list[int]:
        found = overlay.candidates(np.arange(50), 1, wanted, allowed, filtered=True)
        assert allowed[found].all()
        return sorted(set(clusters[found].tolist()))

    assert visited(clusters >= 10) == [*range(10, 14)]
    assert visited(clusters >= 11) == [*range(11, 16)], "which hold 720"
    assert visited((clusters >= 11) & (rows % 4 < 2)) == [*range(11, 20)]
    assert visited(clusters >= 11, wanted=1_000) == [*range(11, 18)]


def test_live_rows_of_all_lists_within_the_margin_are_looked_at(base: Base) -> None:
    """As those of the generation are: to a short text most clusters are about as near."""
    view, articles, index = View.of(base), of_base(base), base.generation.index
    for n, vector in enumerate(random_units(2_500, 6)):
        view = view.with_article(live(base, f"live-{n:04}", vector), n + 1)
        articles[f"live-{n:04}"] = vector
    for query in random_units(5, 7):
        near = np.sort(index.centroids @ query)[::-1]
        rows, _ = view.search(query, 20, 1, view.allow(), margin=float(near[0] - near[2]) + 1e-6)  # three lists
        visited = set(index.nearest_clusters(query[None], 3)[0][0].tolist())
        there = {name: v for name, v in articles.items() if int(index.nearest_clusters(v[None], 1)[0][0, 0]) in visited}
        assert [view.id_of(int(n)) for n in rows] == [name for _, name in slow(view, there, query)[:20]]


def test_many_replaced_articles_have_live_rows_sought_in_no_more_lists(base: Base) -> None:
    """A filter that hides as many of the generation's would; what was replaced says nothing of where live ones lie."""
    view = View.of(base)
    for n, vector in enumerate(random_units(2_500, 8)):
        view = view.with_article(live(base, f"live-{n:04}", vector), n + 1)
    allowed = replace(view, replaced=Many()).allow()  # type: ignore[arg-type]
    assert allowed.plain is None, "more than can be fetched and dropped"
    for query in random_units(5, 9):
        near, _ = base.generation.index.nearest_clusters(query[None], 1)
        rows, _ = view.search(query, 20, 1, allowed)
        assert {view.article(n).cluster for n in rows.tolist() if view.is_live(n)} == {int(near[0, 0])}


@pytest.mark.parametrize("kept", [30, 2_400])
def test_a_filter_finds_the_nearest_of_many_live_rows_whatever_cluster_they_are_in(base: Base, kept: int) -> None:
    view = View.of(base)
    for n, vector in enumerate(vectors := random_units(3_000, 4)):
        new = live(base, f"live-{n:04}", vector)
        view = view.with_article(replace(new, article=replace(new.article, attributes={"number": str(n)})), n + 1)
    message = Filter()
    message.attribute.key, message.attribute.range.max = "number", kept - 1
    allowed = view.allow(filters.compile(message, base.generation.numbers))
    articles = {f"live-{n:04}": vector for n, vector in enumerate(vectors[:kept])}
    for query in random_units(20, 5):
        rows, scores = view.search(query, 5, 1, allowed)
        answer = [(-float(score), view.id_of(int(n))) for n, score in zip(rows, scores, strict=True)]
        assert answer == slow(view, articles, query)[:5]


def test_trying_out_does_not_touch_what_is_served(base: Base) -> None:
    view = View.of(base).with_article(live(base, "one", random_units(1, 5)[0]), 1)
    tried = view.apart()
    for n in range(5):
        tried = tried.with_article(live(base, f"try-{n}", random_units(1, n)[0]), 1)
    tried = tried.without_article("one", 1)
    assert (len(view), view.row_of("try-0"), view.row_of("one")) == (ROWS + 1, None, ROWS)
    assert (len(tried), tried.row_of("one")) == (ROWS + 5, None)
    real = view.with_article(live(base, "two", random_units(1, 6)[0]), 2)
    assert (real.row_of("two"), real.id_of(ROWS + 1)) == (ROWS + 1, "two")


def test_what_is_tried_out_goes_its_own_way_from_where_it_began(base: Base) -> None:
    vectors = random_units(40, 12)
    view, articles = View.of(base), of_base(base)
    for n in range(10):
        view = view.with_article(live(base, f"n{n}", vectors[n]), n + 1)
        articles[f"n{n}"] = vectors[n]
    tried, served = view.apart(), view
    for n in range(10, 20):
        served = served.with_article(live(base, f"n{n - 5}", vectors[n]), n + 1)
        tried = tried.with_article(live(base, f"n{n + 5}", vectors[n + 10]), n + 1)
        articles[f"n{n + 5}"] = vectors[n + 10]
    tried, served = tried.without_article("n2", 21), served.with_article(live(base, "later", vectors[30]), 21)
    del articles["n2"]
    assert {name for name in articles if tried.row_of(name) is None} == set()
    assert [tried.row_of(name) for name in ("n2", "n10", "later")] == [None] * 3
    assert tried.row_of_text(row("n17").text_digest) == tried.row_of("n17")
    assert tried.row_of_text(row("n7").text_digest) == tried.row_of("n7") == ROWS + 7
    assert [tried.row_of_text(row(name).text_digest) for name in ("n10", "later")] == [None] * 2
    again = tried.apart().with_article(live(base, "n2", vectors[2]), 22)
    assert (again.row_of("n2"), tried.row_of("n2")) == (ROWS + 20, None)
    for query in random_units(4, 13):
        for limit in (1, 5, 60):
            assert found(tried, query, limit) == slow(tried, articles, query)[:limit]
            assert found(again, query, limit) == slow(again, articles | {"n2": vectors[2]}, query)[:limit]


def test_trying_out_copies_no_rows(base: Base) -> None:
    view = View.of(base)
    new = [live(base, f"n{n}", vector) for n, vector in enumerate(random_units(5_000, 14))]

    def copied() -> Overlay:
        overlay = Overlay(DIM)
        for one in new:
            overlay.append(one)
        return overlay

    view = replace(view, overlay=copied(), alive=np.ones(len(new), np.bool_))
    by_row, apart = (min(_seconds(work) for _ in range(5)) for work in (copied, view.apart))
    assert apart < by_row / 20


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def test_a_row_of_the_overlay_is_found_by_its_text_while_it_is_alive(base: Base) -> None:
    digest = row("same").text_digest
    view = View.of(base).with_article(live(base, "same", random_units(1, 7)[0]), 1)
    later = view.without_article("same", 2)
    assert view.row_of_text(digest) == ROWS
    assert later.row_of_text(digest) is None
    assert View.of(base).with_article(live(base, "a03", random_units(1, 8)[0]), 1).row_of_text(digest) is None
    replaced = View.of(base).without_article("a03", 1)
    assert replaced.row_of_text(row("a03").text_digest) == 3, "its vector is that of the text all the same"


def test_rows_of_a_change_that_failed_half_way_are_not_there_and_others_have_their_own(base: Base) -> None:
    view = View.of(base).with_article(live(base, "one", random_units(1, 9)[0]), 1)
    for name in ("one", "stray"):
        view.overlay.append(live(base, name, random_units(1, 10)[0]))  # and the view that would show it was never made
    later = view.with_article(live(base, "two", vector := random_units(1, 11)[0]), 2)
    there = of_base(base) | {"one": view.vector(ROWS), "two": vector}
    assert [later.id_of(row) for row in (later.row_of("one") or 0, later.row_of("two") or 0)] == ["one", "two"]
    assert later.row_of("stray") is None
    assert found(later, vector, 100) == slow(later, there, vector)
    tried = view.apart().with_article(live(base, "two", vector), 2)
    place = tried.row_of("two") or 0
    assert (tried.id_of(place), tried.row_of("stray")) == ("two", None)
    assert tried.clusters(np.array([place])).tolist() == [tried.article(place).cluster]
    assert found(tried, vector, 100) == slow(tried, there, vector)


def test_threads_that_ask_for_ever_other_attributes_at_once_fill_no_memory(base: Base) -> None:
    rows = np.arange(ROWS)
    for _ in range(10):
        view = View.of(base)

        def ask(number: int, view: View = view) -> None:
            for turn in range(100):
                view.popularity(rows, f"{number} {turn}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))
        assert len(view._most) < MAX_ATTRIBUTES + 4


class Codes:
    """Those of an attribute of very many rows, of which nobody may read all for each search."""

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        assert len(rows) <= 2
        return np.where(rows == 1, 0, -1).astype(np.int32)


def test_popularity_is_read_of_the_rows_that_are_asked_about_and_no_others(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = View.of(base)
    view._most["reads"] = 7.0  # the largest of all is looked for once
    reads = Attribute(Codes(), ["3"], np.array([3.0]), {"3": 0})  # type: ignore[arg-type]
    monkeypatch.setattr(base.columns, "attribute", lambda _key: reads)
    assert view.popularity(np.array([1, 2]), "reads").tolist() == [np.log1p(3) / np.log1p(7), 0.0]


def test_filters_that_come_again_are_kept_and_others_fill_no_memory(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.view._FILTERS_KEPT", 3)

    def condition(most: int) -> filters.Condition:
        message = Filter()
        message.attribute.key, message.attribute.range.max = "number", most
        return filters.compile(message, base.generation.numbers)

    often = base.matching(condition(0))
    for most in range(1, 9):
        base.matching(condition(most))
        assert base.matching(condition(0)) is often
    assert len(base._filtered) == 3


def test_the_story_of_a_copy_needs_no_search(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text that a feed sends 1,000 times a search took as many exact products, for each one more."""
    vector = random_units(1, 7)[0]
    view = View.of(base).with_article(live(base, "same", vector), 1)
    copy = Telling("copy", vector, WORDS, row("same").text_digest, None)
    monkeypatch.setattr(View, "search", None)
    assert story_of(view, copy) == 0
    with pytest.raises(TypeError):
        story_of(view, replace(copy, article_id="same"))  # itself, and nobody else
    with pytest.raises(TypeError):
        story_of(view.without_article("same", 2), copy)

"""report.html: what it says, that it is safe and whole, and that a browser shows it without a fault."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from coldframe.articles import ArticleRow, write_articles
from coldframe.clusters import Cluster, ClusterTable, Lineage, Residuals, Topic, Vanished, write_clusters
from coldframe.errors import CorruptGeneration, InvalidArgument, NoGeneration
from coldframe.generation import ARTICLES, CLUSTERS, REPORT, VECTORS, CorpusInfo, ModelInfo, Parameters
from coldframe.recipe import unit
from coldframe.store import Store
from indexer.report import ReportFacts, write_report
from indexer.report.figures import cluster_sizes, corpus_map, lengths, recall_curve
from indexer.report.projection import project, sample_rows
from indexer.report.wording import count, duration, mebibytes, percent
from indexer.store_commands import report_command
from tests.generations import publish

if TYPE_CHECKING:
    from pathlib import Path

ATTACK = '"><script>document.title = "taken"</script><img src=x onerror=alert(1)>'
DISPATCH = "北京电 " + "国务院总理周六在会议上说经济平稳。" * 10
CLUSTERS_MADE = 12
MEASURED: dict[str, Any] = {
    "recall_at_10": 0.995,
    "target_recall": 0.99,
    "recall_by_probes": [[1, 0.7, 0.05], [2, 0.85, 0.08], [4, 0.96, 0.11], [8, 0.995, 0.2], [9, 1, 0.2], [10, 1, 0.3]],
    "seconds": {"plan": 1.0, "read": 0.02, "embed": 240.0, "train": 1.5, "measure": 0.3},
    "peak_memory_mib": {"plan": 300, "read": 310, "embed": 1500, "train": 1510, "measure": 1510},
    "storages": [{"storage": "flat", "bytes": 2**22, "recall": 0.995, "probes": 8, "latency_ms": 0.2, "reason": ""}],
    "stories": {"stories": 118, "duplicates": 1, "near_duplicates": 1},
    "lineage": {"kept": 9, "new": 1, "split": 1, "merged": 1, "vanished": 1, "survived": 0.951},
    "drift": 0.0312,
    "cache": {"reused": 110, "computed": 10},
    "gates": [],
    "checks": [{"gate": "drift", "measured": 0.03, "limit": 0.1, "passed": True, "message": "the drift is small"}],
}


def facts(articles: int, **report: Any) -> ReportFacts:
    return ReportFacts(
        ModelInfo("minilm", "f1" * 32, "mean", 16, 4096),
        CorpusInfo("0" * 32, articles, articles, 3, 1, 90_000),
        Parameters(CLUSTERS_MADE, 0, 8, "flat", 0.9, 3.0, 0.8),
        "fp32",
        report,
        name="20260101T000000Z-0123456789ab",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def write_files(out: Path, articles: int = 120, *, same: bool = False, first: bool = False, topics: int = 4) -> Path:
    """Articles of 12 clusters in 4 topics: a title that attacks, one without end, two that repeat a story."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    numbers = np.arange(articles) % CLUSTERS_MADE
    vectors = np.eye(CLUSTERS_MADE, 16)[numbers] + (0 if same else 0.2) * rng.standard_normal((articles, 16))
    np.save(out / VECTORS, unit(vectors.astype(np.float32)) if not same else np.tile(np.eye(1, 16), (articles, 1)))
    titles = {0: ATTACK, 1: "x" * 300, 2: "An endless headline about everything " * 9, 3: "", 7: DISPATCH}
    lengths = np.clip(np.exp(rng.normal(6, 1, articles)), 5, 9_000).astype(int)
    write_articles(out / ARTICLES, (_row(n, int(numbers[n]), titles, int(lengths[n])) for n in range(articles)))
    write_clusters(out / CLUSTERS, _table(articles, first=first, topics=topics))
    return out


def _row(number: int, cluster: int, titles: dict[int, str], tokens: int) -> ArticleRow:
    return ArticleRow(
        id=f"a{number:05}",
        title=titles.get(number, f"Headline number {number}"),
        excerpt=f"The beginning of article {number}.",
        published_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number),
        attributes={},
        cluster=cluster,
        tokens_seen=tokens,
        tokens_used=min(tokens, 4096),
        text_digest=number.to_bytes(16),
        story=4 if number in (16, 28) else number,
        similarity=0.7,
        outlier=number == 5,
    )


def _table(articles: int, *, first: bool, topics: int) -> ClusterTable:
    numbers = range(min(CLUSTERS_MADE, articles))
    kinds = ["new", "split", "merged"]
    clusters = []
    for n in numbers:
        rows = list(range(n, articles, CLUSTERS_MADE))
        kind = "first" if first else kinds[n] if n < 3 else "kept"
        lineage = Lineage(kind, [] if kind in ("new", "first") else [f"c{n:04}", "c0099"], None)
        words = [f"{ATTACK if n == 1 else 'word'}{n}", f"term{n}", f"name{n}", f"more{n}"]
        topic = f"t{n % topics:04}" if topics else None
        clusters.append(
            Cluster(
                f"c{n:04}",
                ", ".join(words[:3]),
                [(word, 1.0) for word in words],
                len(rows),
                rows[0],
                rows[:5],
                Residuals(0.3, 0.3, 0.5, 0.6),
                0.4,
                int(n == 5),
                lineage,
                topic,
            )
        )
    parts = [[c for c in clusters if c.topic == f"t{n:04}"] for n in range(topics)]
    made = [
        Topic(f"t{n:04}", f"topic{n}, wide", [("wide", 1.0)], [c.id for c in part], sum(c.size for c in part))
        for n, part in enumerate(parts)
    ]
    gone = [] if first else [Vanished("c0099", f"gone, {ATTACK}", 7, ["c0002"])]
    return ClusterTable(clusters, made, gone, 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_files(tmp_path_factory.mktemp("report"))
    write_report(out, facts(120, **MEASURED))
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / REPORT).read_text(encoding="utf-8")


def words(page: str) -> str:
    """What a person reads of a page, on one line."""
    body = re.sub(r"<(script|style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "120 articles, 1 January 2026 to 5 January 2026",
        "Every gate passed.",
        "20260101T000000Z-0123456789ab",
        "the drift is small",
        "A balanced search visits 8 of 12 lists and finds 99.5% of the 10 nearest articles (target 99.0%",
        "110 of 120 texts (91.7%) came from the cache of embeddings, 10 were computed.",
        "The 120 articles tell 118 stories",
        "3\u00d7 Headline number 4",
        "12 clusters of 10 articles. Outliers: 1 article (0.8%)",
        "topic0, wide 30 articles in 3 clusters",
        "The beginning of article 3.",
        f"{DISPATCH[:140]}…",
    ],
)
def test_it_says_what_was_built(page: str, said: str) -> None:
    assert said in words(page)


def test_it_says_what_a_short_model_would_have_lost(folder: Path, page: str) -> None:
    from coldframe.articles import Articles

    tokens = np.asarray(Articles(folder / ARTICLES).column("tokens_seen").to_numpy(), np.int64)
    cut, lost = percent(float(np.mean(tokens > 512))), percent(sum(max(t - 512, 0) for t in tokens) / tokens.sum())
    assert f"would have cut {cut} of the articles and lost {lost} of all tokens" in words(page)


def test_it_says_where_clusters_come_from(page: str) -> None:
    said = words(page)
    assert "split c0001" in said
    assert "no cluster" not in said
    assert re.search(r"c0099 gone, .* 7 c0002 word2, term2, name2", said)
    assert "of its articles, those still there are in" in said, "few of them, maybe"
    assert "ids kept 95.1%" in said
    assert "drift 0.031" in said


def test_labels_of_any_script_are_text_and_no_font_is_missed() -> None:
    labels = ["上海, 会议, 说", "अर्थव्यवस्था", "اقتصاد", "🗞"]
    places = np.array([(n, n) for n in range(len(labels))], np.float32)
    drawn = corpus_map(places, ["c1"] * len(labels), [(text, 0.5, n) for n, text in enumerate(labels)])
    assert all(text in drawn for text in labels)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tokens", [[220_000], [5_000, 7_000], [600], [1]])
def test_limits_of_length_stand_in_their_figure_however_long_all_articles_are(tokens: list[int]) -> None:
    figure = lengths(np.array(tokens), 4_096)  # with a text out of sight Matplotlib warns, and lays nothing out
    placed = re.findall(r'text-anchor: end; [^>]* x="([\d.-]+)" y="29[^>]*>(512|4,096) <', figure)
    assert [limit for _, limit in placed[:2]] == ["512", "4,096"]
    assert all(50 < float(x) < 680 for x, _ in placed[:2]), "to the left of its limit, in the wide figure"


def written(figure: str) -> list[str]:
    return re.findall(r">([^<>]+) ?</text>", figure)


def test_what_is_written_in_a_figure_is_not_rounded_and_counts_are_whole() -> None:
    assert {"0.995", "0.99", "0.985"} <= {*map(str.strip, written(recall_curve([(1, 1.0, 0.6)], 1, 0.99)))}
    sizes = {*map(str.strip, written(cluster_sizes(np.array([2, 1]), np.zeros(2, int), ["c1", "c2"])))}
    assert "median 1.5" in sizes
    assert not sizes & {"0.5", "1.5"}, "half an article"


def test_a_breach_is_said_first_and_whether_it_was_forced(folder: Path, tmp_path: Path) -> None:
    breach = {"gate": "recall", "measured": 0.9, "limit": 0.98, "message": "a search finds <too> little"}
    for forced, said in [(False, "its build kept it back"), (True, "it was published all the same, by --force")]:
        out = shutil.copytree(folder, tmp_path / str(forced))
        write_report(out, facts(120, **MEASURED | {"gates": [breach], "forced": forced}))
        page = (out / REPORT).read_text(encoding="utf-8")
        assert f"1 gate did not pass; {said}. a search finds <too> little" in words(page)


def test_without_optional_facts_their_sections_are_left_out(tmp_path: Path) -> None:
    out = write_files(tmp_path / "first", first=True, topics=0)
    bare = replace(facts(120), name=None, created_at=None)
    write_report(out, bare)
    said = words((out / REPORT).read_text(encoding="utf-8"))
    for heading in ("Since the last generation", "Stories", "Search", "Gates", "Every gate passed"):
        assert heading not in said
    for heading in ("What this generation holds", "Map of the corpus", "Clusters", "Lengths", "Build"):
        assert heading in said


@pytest.mark.parametrize("articles", [1, 2, 9])
def test_a_few_articles_have_no_map_but_a_report(tmp_path: Path, articles: int) -> None:
    out = write_files(tmp_path, articles, first=True, topics=1)
    write_report(out, facts(articles, seconds={"embed": 0.0}))
    said = words((out / REPORT).read_text(encoding="utf-8"))
    assert f"A map needs at least 10 stories; this corpus has {articles}." in said
    assert not re.search(r"\b1 (articles|clusters|texts|distinct texts)\b|None", said)


def test_equal_vectors_have_a_map_too(tmp_path: Path) -> None:
    out = write_files(tmp_path, 40, same=True)
    write_report(out, facts(40))
    assert 'data-tips="map"' in (out / REPORT).read_text(encoding="utf-8")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    out = write_files(tmp_path)
    (out / VECTORS).write_bytes(b"broken")
    with pytest.raises(CorruptGeneration, match=VECTORS):
        write_report(out, facts(120))


# --- that it is safe, whole and the same again -----------------------------------------------------------------------


def test_titles_and_labels_are_text_and_never_markup(page: str) -> None:
    assert "<img" not in page
    assert page.count("<script") == 2
    assert html.escape(ATTACK, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    tips = json.loads(page.split('id="tips">')[1].split("</script>", maxsplit=1)[0])
    assert any(ATTACK in mark[0] for mark in tips["marks"]["map"])


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    outside = [link for link in re.findall(r'(?:src|href|action|data)="([^"]*)"', page) if not link.startswith("#")]
    assert outside == []
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    assert "default-src 'none'" in page


def test_every_id_is_there_once_and_every_reference_finds_one(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def weighed(storage: str, reason: str, recall: float | None = None) -> dict[str, Any]:
    return {"storage": storage, "bytes": 2**20, "recall": recall, "probes": 8, "latency_ms": 0.2, "reason": reason}


@pytest.mark.parametrize(
    ("storages", "said"),
    [
        ([("flat", "")], "The lists keep vectors as flat, in 1.0 MiB. "),
        ([("flat", ""), ("sq8", "not needed")], "in 1.0 MiB. Not needed: sq8. "),
        (
            [("flat", "over the memory budget"), ("fp16", "", 0.99), ("sq8", "not needed")],
            "fp16 (chosen) 1.0 MiB 99.0% 8 0.2 ms Not needed: sq8. ",
        ),
    ],
)
def test_storages_that_were_weighed_are_told_apart_from_those_that_were_not(
    tmp_path: Path, storages: list[tuple[Any, ...]], said: str
) -> None:
    chosen = next(storage for storage, reason, *_ in storages if not reason)
    what = facts(120, **MEASURED | {"storages": [weighed(*storage) for storage in storages]})
    what = replace(what, parameters=replace(what.parameters, storage=chosen))
    write_report(write_files(tmp_path), what)
    assert said in words((tmp_path / REPORT).read_text(encoding="utf-8"))


def test_the_same_generation_has_the_same_report(folder: Path, page: str) -> None:
    write_report(folder, facts(120, **MEASURED))
    assert (folder / REPORT).read_text(encoding="utf-8") == page


def test_colours_are_the_pages_own(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert re.findall(r"(?:fill|stroke): (#[0-9a-f]{3,6})", figures) == []
    assert len(page) < 600_000


# --- the map ---------------------------------------------------------------------------------------------------------


def test_the_sample_is_of_first_articles_of_stories_and_bounded() -> None:
    stories = np.arange(9_000)
    stories[1::2] -= 1
    rows = sample_rows(stories, 0)
    assert len(rows) == 2_500
    assert (rows % 2 == 0).all()
    assert (np.diff(rows) > 0).all()
    assert not np.array_equal(rows, sample_rows(stories, 1))


def test_what_is_near_in_the_index_is_near_on_the_map() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 40)
    vectors = unit((np.eye(6, 32)[groups] + 0.1 * rng.standard_normal((240, 32))).astype(np.float32))
    placed = project(vectors, 0)
    distances = np.linalg.norm(placed[:, None] - placed[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (groups[distances.argmin(axis=1)] == groups).mean() > 0.99
    assert np.array_equal(placed, project(vectors, 0))


# --- the command -----------------------------------------------------------------------------------------------------


def run_command(*args: object) -> Any:
    app = typer.Typer()
    app.command()(report_command)
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_report_of_a_published_generation_is_written_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    name = publish(store)
    before = (store.directory(name) / REPORT).read_bytes()
    done = run_command("--store", store.path, "--out", tmp_path / "new.html")
    assert done.exit_code == 0, done.output
    assert name in words((tmp_path / "new.html").read_text(encoding="utf-8"))
    assert (store.directory(name) / REPORT).read_bytes() == before


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = run_command("--store", tmp_path / "empty", "--out", tmp_path / "x.html")
    assert isinstance(empty.exception, NoGeneration)
    store = Store(tmp_path / "store")
    publish(store)
    unknown = run_command("--store", store.path, "--generation", "nope", "--out", tmp_path / "x.html")
    assert isinstance(unknown.exception, InvalidArgument)
    closed = run_command("--store", store.path, "--out", tmp_path / "no" / "x.html")
    assert isinstance(closed.exception, InvalidArgument)
    assert "cannot be written" in str(closed.exception)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (percent(0), "0%"),
        (percent(0.0001), "under 0.1%"),
        (percent(0.99999), "over 99.9%"),
        (percent(1), "100%"),
        (percent(float("nan")), "unknown"),
        (duration(0.01), "under 0.1 s"),
        (duration(9.94), "9.9 s"),
        (duration(99), "99 s"),
        (duration(300), "5.0 min"),
        (duration(36_000), "10.0 h"),
        (mebibytes(0.004), "under 0.1 MiB"),
        (mebibytes(0.42), "0.4 MiB"),
        (mebibytes(512), "512 MiB"),
        (mebibytes(2048), "2.0 GiB"),
        (count(1, "article"), "1 article"),
        (count(1.5, "article"), "1.5 articles"),
        (count(2_000, "story", "stories"), "2,000 stories"),
    ],
)
def test_numbers_are_said_as_people_say_them(said: str, expected: str) -> None:
    assert said == expected


# --- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1400,900",
]
# Every visible line of text, and which of them lie upon each other, leave the window or leave their figure.
LOOK = """
for (const each of document.querySelectorAll("details")) each.open = true;
const faults = [], lines = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, parent = node.parentElement;
  if (!node.data.trim() || !parent.checkVisibility() || parent.closest("script, style")) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const boxes = range.getClientRects();
  for (const box of boxes) lines.push([node.data.trim(), box, parent]);
  if (parent.matches("td code") && boxes.length > 1) faults.push(["broken", node.data.trim()]);
}
const cut = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
lines.forEach(([text, box, parent], n) => {
  const frame = parent.closest("svg")?.getBoundingClientRect();
  if (!parent.closest(".scroll") && (box.left < -1 || box.right > innerWidth + 1)) faults.push(["outside", text]);
  if (frame && (box.left < frame.left - 3 || box.right > frame.right + 3)) faults.push(["clipped", text]);
  for (const [other, its, where] of lines.slice(n + 1)) {
    const hidden = parent.closest(".scroll") !== where.closest(".scroll");
    if (!hidden && cut(box, its)) faults.push(["overlap", text, other]);
  }
});
if (document.documentElement.scrollWidth > innerWidth) faults.push(["wide", document.documentElement.scrollWidth]);
const points = document.querySelectorAll(".map use").length;
const result = { faults, lines: lines.length, points, width: innerWidth, title: document.title };
parent.document.body.textContent = "RESULT" + JSON.stringify(result) + "END";
"""


def look(path: Path, width: int, folder: Path) -> dict[str, Any]:
    """The page in a real browser, with a script of ours after its own."""
    source = path.read_text(encoding="utf-8")
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    opened = opened.replace("</body>", f"<script>addEventListener('load', () => {{{LOOK}}})</script></body>")
    # A window of Chromium's has 500 pixels at least; a frame may be as narrow as a telephone.
    frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{html.escape(opened)}"></iframe>'
    frame = f"<!doctype html>{frame}"
    (folder / "look.html").write_text(frame, encoding="utf-8")
    dom = dump(folder / "look.html", folder)
    found: dict[str, Any] = json.loads(html.unescape(dom.split("RESULT")[-1].split("END")[0]))
    return found


def dump(path: Path, folder: Path) -> str:
    assert CHROMIUM is not None
    place = [f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run([CHROMIUM, *FLAGS, *place], capture_output=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 700, 1280])
def test_no_text_lies_upon_another_or_leaves_the_page(folder: Path, tmp_path: Path, width: int) -> None:
    seen = look(folder / REPORT, width, tmp_path)
    assert seen["faults"] == []
    assert seen["lines"] > 150
    assert seen["points"] == 118
    assert seen["width"] == width
    assert seen["title"] == "20260101T000000Z-0123456789ab"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_pages_own_script_runs_under_its_policy(folder: Path, tmp_path: Path) -> None:
    dom = dump(folder / REPORT, tmp_path)
    assert 'data-ready="true"' in dom

"""What a rebuild costs, and what it keeps: with nothing changed, and with one article in a hundred changed.

    python -m benchmarks.rebuild --corpus ../shared/data/bbc_news/articles.csv.gz

Builds the corpus, builds it again as it is, and once more with some of its articles changed: the sentences of each
stand in the reverse order. The bars: no generation where nothing changed; else at most 5% of the first build's time for
embedding, and 95% of the first generation's cluster ids still there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks.machine import describe
from coldframe.store import Store
from indexer.build import run
from indexer.corpus import Article, CorpusConfig
from indexer.plan import BuildConfig
from indexer.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coldframe.generation import Generation

_MOST_TIME, _LEAST_KEPT = 0.05, 0.95


def main() -> None:
    """Build three times, and print what each took; the exit status is 1 if a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the articles")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of which articles change")
    parser.add_argument("--folder", type=Path, help="where to build, and leave what was built; else a temporary one")
    args = parser.parse_args()
    print(describe())
    articles = [row for row in CorpusConfig(args.corpus).read() if isinstance(row, Article)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        corpus = folder / "articles.jsonl"
        config = BuildConfig(
            corpus=CorpusConfig([str(corpus)]), store=folder / "store", model=args.model, precision=args.precision
        )
        write(corpus, articles)
        first = build(config)
        kept = unchanged(config, first)
        count = write(corpus, changed(articles, args.changed, args.seed))
        kept &= judge(first, build(config), count)
    sys.exit(0 if kept else 1)


def write(path: Path, articles: Sequence[Article]) -> int:
    """Writes the corpus as JSON lines; how many lines differ from those that were there."""
    before = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    lines = []
    for article in articles:
        date = article.published_at and article.published_at.isoformat()
        fields = {"id": article.id, "title": article.title, "content": article.content, "date": date}
        lines.append(json.dumps(fields | article.attributes, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len({*lines} - before)


def changed(articles: Sequence[Article], share: float, seed: int) -> list[Article]:
    """The same articles, a share of them with their sentences in the reverse order."""
    drawn = {*random.Random(seed).sample(range(len(articles)), max(1, round(share * len(articles))))}
    return [
        replace(article, content=". ".join(reversed(article.content.split(". ")))) if n in drawn else article
        for n, article in enumerate(articles)
    ]


def build(config: BuildConfig) -> Generation:
    """Builds, says what it takes, and opens what is current then."""
    start = time.perf_counter()
    run(config, Reporter(Console(highlight=False)))
    print(f"{time.perf_counter() - start:.1f} s in all\n")
    return Store(config.store).open()


def unchanged(config: BuildConfig, first: Generation) -> bool:
    """Whether a build of the same is a no-op."""
    again = build(config)
    return again.name == first.name and Store(config.store).names() == [first.name]


def judge(first: Generation, second: Generation, count: int) -> bool:
    """Prints what the second build took and kept, and says whether that is within the bars."""
    seconds = [generation.manifest.report["seconds"]["embed"] for generation in (first, second)]
    taken, names = seconds[1] / seconds[0], {*first.numbers}
    kept = len(names & {*second.numbers}) / len(names)
    cache, lineage = second.manifest.report["cache"], second.manifest.report["lineage"]
    print(f"{count:,} of {len(first.articles):,} articles changed; {cache['computed']:,} texts embedded")
    print(f"embedding {seconds[0]:.1f} s, then {seconds[1]:.1f} s: {taken:.1%}, at most {_MOST_TIME:.0%}")
    print(f"{len(names & {*second.numbers})} of {len(names)} cluster ids kept: {kept:.1%}, at least {_LEAST_KEPT:.0%}")
    print(f"{lineage['survived']:.1%} of the articles are in the cluster with the same id")
    passed = taken <= _MOST_TIME and kept >= _LEAST_KEPT
    print("the bars are kept" if passed else "A BAR IS MISSED")
    return passed


if __name__ == "__main__":
    main()

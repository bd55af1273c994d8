"""`python -m indexer calibrate`: a threshold for stories, and the pairs on either side of it."""

# ruff: noqa: TC001, TC003  (Typer reads annotations at run time)

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.flags import read_folder, spread
from indexer.corpus_flags import CorpusFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from coldframe.articles import Articles
    from coldframe.generation import Generation
    from indexer.calibrate import Calibration, Near, Pair
    from indexer.corpus import CorpusConfig

_SHARES_KEPT = (1.0, 0.99, 0.95, 0.9, 0.75, 0.5)


@spread
def calibrate_command(
    *,
    corpus: CorpusFlags,
    store: Annotated[Path, typer.Option(help="The folder of generations.", parser=read_folder, metavar="DIR")],
    generation: Annotated[str | None, typer.Option(help="Without it the current one.")] = None,
    story_window_days: Annotated[float, typer.Option(help="Days between the articles of a story, at most.")] = 3.0,
    sample: Annotated[int, typer.Option(help="Texts to look at.", min=1)] = 2_000,
    seed: Annotated[int, typer.Option(help="Of the sample.", min=0)] = 0,
    show: Annotated[int, typer.Option(help="Pairs to show of each kind.", min=0)] = 4,
) -> None:
    """Propose a --story-similarity for the encoder of a generation, and show pairs on either side of it.

    With the corpus that it was built from whole texts are compared, without it their first lines. Read the pairs that
    are missed: if they tell one story, take a lower threshold. Read those that are joined: if
    they tell two, take a higher one. Words decide in the end; a threshold that is too low mostly costs time.

    Example: python -m indexer calibrate --store store --corpus 'news/*.csv.gz'
    """
    from rich.console import Console

    from coldframe.errors import InvalidArgument
    from indexer.calibrate import nearest_pairs, propose
    from indexer.store_commands import existing_store

    if not 0 < story_window_days < math.inf:
        raise InvalidArgument(
            f"--story-window-days is {story_window_days}; it must be over 0", field="story-window-days"
        )
    found = existing_store(store).open(generation)
    console = Console(highlight=False, markup=False)
    published_at, digests = _dates_and_digests(found.articles)
    near = nearest_pairs(found.index, published_at, digests, window_days=story_window_days, seed=seed, sample=sample)
    near, text_of = _texts(found, near, replace(corpus.config(), apart_from=[store]), console)
    calibration = propose(near, text_of, sampled=min(sample, len(set(digests))))
    _print(calibration, found.articles, show, console)


def _dates_and_digests(articles: Articles) -> tuple[NDArray[np.int64], list[bytes]]:
    import pyarrow as pa

    from indexer.spool import UNDATED

    dates = articles.column("published_at").cast(pa.timestamp("s", tz="UTC"), safe=False).cast(pa.int64())
    return dates.fill_null(UNDATED).to_numpy(), articles.column("text_digest").to_pylist()


def _texts(
    generation: Generation, near: list[Near], corpus: CorpusConfig, console: Console
) -> tuple[list[Near], Callable[[int], str]]:
    """The pairs whose texts are there, and the texts of their rows: whole from the corpus, or begun from the store."""
    from coldframe.errors import InvalidArgument
    from coldframe.text import article_text

    articles = generation.articles
    if not corpus.named:
        console.print(
            "without --corpus, titles and first lines are compared; their threshold is a rough one", style="dim"
        )
        return near, lambda row: article_text(articles[row].title, articles[row].excerpt)
    texts = _read({articles[row].id: row for row in _rows(near)}, corpus)
    kept = [pair for pair in near if pair.first in texts and pair.second in texts]
    if near and not kept:
        raise InvalidArgument(
            f"--corpus has none of the articles of generation {generation.name} that are to be compared; give the "
            f"files that it was built from",
            field="corpus",
        )
    if len(kept) < len(near):
        console.print(f"{len(near) - len(kept):,} of {len(near):,} pairs are left out: the corpus lacks their texts")
    return kept, texts.__getitem__


def _rows(near: Iterable[Near]) -> set[int]:
    return {row for pair in near for row in (pair.first, pair.second)}


def _read(rows: dict[str, int], corpus: CorpusConfig) -> dict[int, str]:
    """The texts by row of the articles with these ids; the corpus is read once, and nothing else of it kept."""
    from coldframe.text import article_text
    from indexer.corpus import Article

    texts: dict[int, str] = {}
    for article in corpus.read():
        if isinstance(article, Article) and article.id in rows:
            texts.setdefault(rows[article.id], article_text(article.title, article.content))
    return texts


def _print(calibration: Calibration, articles: Articles, show: int, console: Console) -> None:
    from indexer.calibrate import LEAST_PAIRS

    same, threshold = len(calibration.same), calibration.threshold
    console.print(
        f"{calibration.sampled:,} texts, {len(calibration.pairs):,} pairs of near ones, {same:,} in the same words"
    )
    console.print(_table(calibration))
    joined = [pair for pair in calibration.pairs if pair.cosine >= threshold and pair.same]
    apart = [pair for pair in calibration.pairs if pair.cosine >= threshold and not pair.same]
    missed = [pair for pair in calibration.pairs if pair.cosine < threshold and pair.same]
    _print_pairs("joined, the least similar", joined[::-1][:show], articles, console)
    _print_pairs("kept apart by their words, the least similar", apart[::-1][:show], articles, console)
    _print_pairs("missed by the threshold, the most similar", missed[:show], articles, console)
    if not calibration.learned:
        console.print(
            f"fewer than {LEAST_PAIRS} pairs have the same words: the threshold is a guess from how near neighbours "
            f"usually are; a larger --sample may teach more",
            soft_wrap=True,
        )
    console.print(f"--story-similarity {threshold:.3f}", style="bold")


def _table(calibration: Calibration) -> object:
    """What thresholds about the proposed one would keep, and cost."""
    import numpy as np
    from rich.table import Column, Table

    cosines = [pair.cosine for pair in calibration.same]
    steps = {calibration.threshold}
    if cosines:
        lowest = [float(np.quantile(cosines, 1 - share, method="lower")) for share in _SHARES_KEPT]
        steps |= {math.floor(1_000 * step) / 1_000 for step in lowest}  # as they are printed, and copied
    names = ("threshold", "same words: kept", "compared in vain, per 100 texts")
    table = Table(*(Column(name, justify="right") for name in names), "", box=None)
    for step in sorted(steps):
        proposed = "proposed" if step == calibration.threshold else ""
        table.add_row(
            f"{step:.3f}", f"{calibration.kept(step):.1%}", f"{100 * calibration.in_vain(step):.1f}", proposed
        )
    return table


def _print_pairs(heading: str, pairs: Sequence[Pair], articles: Articles, console: Console) -> None:
    from rich.table import Column, Table

    if not pairs:
        return
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("cosine", "overlap", "days"))
    table = Table(*numbers, "titles", box=None, title=heading, title_justify="left")
    for pair in pairs:
        days = "?" if pair.days is None else f"{pair.days:.1f}"
        titles = "\n".join(articles[row].title or articles[row].id for row in (pair.first, pair.second))
        table.add_row(f"{pair.cosine:.3f}", f"{pair.overlap:.2f}", days, titles)
    console.print(table)

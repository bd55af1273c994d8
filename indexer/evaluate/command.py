"""`python -m indexer evaluate`: its flags, and what it prints."""

# ruff: noqa: TC001, TC003  (Typer calls by name and reads annotations at run time)

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.flags import read_folder, spread
from indexer.corpus_flags import CorpusFlags

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from coldframe.recipe import Recipe
    from indexer.evaluate.run import Figure, Report

_CERTAIN = 0.95
_MOST_SEED = 2**32 - 1  # of scikit-learn


@spread
def evaluate_command(
    *,
    corpus: CorpusFlags,
    model: Annotated[str, typer.Option(help="A hub id, a directory, or minilm, the embedded default.")] = "minilm",
    recipes: Annotated[str | None, typer.Option(help="Which, with commas between; without it all of them.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="The column of labels; without it `label` where there is one.")
    ] = None,
    links: Annotated[Path | None, typer.Option(help="A CSV of links between articles: source, target.")] = None,
    sessions: Annotated[
        Path | None, typer.Option(help="A CSV of what readers read: user, article; where known timestamp and event.")
    ] = None,
    skip_event: Annotated[
        list[str] | None, typer.Option(help="Rows of this event are no reads; repeatable; without it `target`, a goal.")
    ] = None,
    sample: Annotated[int | None, typer.Option(help="Measure so many articles, drawn from the labelled ones.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Whose embeddings of the texts are taken, if one recipe alone is asked for.",
            parser=read_folder,
            metavar="DIR",
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Measure recipes on a corpus by its labels, links or sessions, beside TF-IDF, popularity and chance.

    Example: python -m indexer evaluate --corpus news.csv.gz --sample 2000
    """
    from rich.console import Console

    from coldframe.encoder import Encoder
    from indexer.evaluate.run import Config, evaluate

    chosen = _recipes(recipes)
    _check(sample, seed)
    config = Config(
        corpus.config(),
        chosen,
        label_column=labels,
        links=links,
        sessions=sessions,
        skip_events=["target"] if skip_event is None else skip_event,
        sample=sample,
        seed=seed,
        store=store,
    )
    # The report alone goes to standard output.
    log = Console(stderr=True, highlight=False, markup=False)
    alone = chosen[0].name if len(chosen) == 1 else None
    encoder = Encoder.load(model, alone, precision, device)  # type: ignore[arg-type]  # it says what is allowed
    report = evaluate(config, encoder, lambda text: log.print(text, soft_wrap=True))
    if as_json:
        typer.echo(json.dumps(report.document(), ensure_ascii=False))
    else:
        show(report, Console(highlight=False, markup=False))


def _recipes(names: str | None) -> list[Recipe]:
    from coldframe.recipe import RECIPES, named

    if names is None:
        return list(RECIPES.values())
    return [named(name) for name in dict.fromkeys(part.strip() for part in names.split(","))]


def _check(sample: int | None, seed: int) -> None:
    from coldframe.errors import InvalidArgument

    if sample is not None and sample < 3:
        raise InvalidArgument(f"--sample is {sample}; at least 3 articles are needed", field="sample")
    if not 0 <= seed <= _MOST_SEED:
        raise InvalidArgument(f"--seed is {seed}; it must be 0 to {_MOST_SEED}", field="seed")


def show(report: Report, console: Console) -> None:
    """One table a measure, and the recommendation."""
    for measure in dict.fromkeys(figure.measure for figure in report.figures):
        console.print(_table(measure, [figure for figure in report.figures if figure.measure == measure]))
    console.print(verdict(report), soft_wrap=True)


def _table(measure: str, figures: list[Figure]) -> Table:
    from rich.table import Column, Table

    columns = (Column(measure, no_wrap=True), Column("", justify="right"), "95% interval", "over tf-idf")
    table = Table(*columns, box=None)
    for figure in sorted(figures, key=lambda figure: -figure.result.value):
        result, over = figure.result, figure.over_tfidf
        difference = f"{over.value:+.3f}  ({over.low:+.3f} to {over.high:+.3f})" if over else ""
        table.add_row(figure.of, f"{result.value:.3f}", f"{result.low:.3f} to {result.high:.3f}", difference)
    return table


def verdict(report: Report) -> str:
    """The recommendation in a sentence."""
    sure = f"the best in {report.certainty:.0%} of the resamples"
    if report.certainty >= _CERTAIN:
        return f"Recommended for this corpus: --recipe {report.recommended} ({sure})."
    rest = "" if report.recommended == report.own else f"; the model's own, {report.own}, may do as well"
    return f"Recommended for this corpus, without certainty: --recipe {report.recommended} ({sure}){rest}."

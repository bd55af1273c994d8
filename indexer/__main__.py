"""`python -m indexer`: build generations and look after a store."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from coldframe import settings
from coldframe.store import Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Build Coldframe's indexes from files of articles, and look after the store that holds them.",
)

StoreOption = Annotated[Path, typer.Option(help="The folder of generations; made if it is not there.")]
ExistingStore = Annotated[Path, typer.Option(help="The folder of generations.")]


@app.command()
def build(
    corpus: Annotated[
        list[str], typer.Option(help="CSV, TSV, JSONL or Parquet, plain or .gz: a file or a quoted glob; repeatable.")
    ],
    store: StoreOption,
    model: Annotated[
        str, typer.Option(help="A hub id, a directory, or minilm, the embedded default, which is for trying.")
    ] = "minilm",
    recipe: Annotated[
        str | None,
        typer.Option(help="seed, seed-centred, mean, mean-centred or first; without it the model's own."),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    clusters: Annotated[int | None, typer.Option(help="How many; without it the square root of the articles.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw: the same input and seed build the same.")] = 0,
    target_recall: Annotated[
        float, typer.Option(help="Share of the true 10 nearest that a search shall find; decides the lists it visits.")
    ] = 0.99,
    id_column: Annotated[str | None, typer.Option(help="The column of ids, where its name is unusual.")] = None,
    title_column: Annotated[str | None, typer.Option(help="The column of titles.")] = None,
    content_column: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    date_column: Annotated[str | None, typer.Option(help="The column of dates.")] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="Where rows that cannot be used are listed; without it STORE/rejects.jsonl.")
    ] = None,
    max_reject_share: Annotated[float, typer.Option(help="The build stops if more of the rows are rejected.")] = 0.05,
) -> None:
    """Embed a corpus, cluster it, and publish a generation that the server loads.

    Example: python -m indexer build --corpus 'news/*.csv.gz' --store store
    """
    from indexer.build import BuildConfig, run
    from indexer.corpus import Columns
    from indexer.progress import Reporter

    console = Console(highlight=False, markup=False)
    config = BuildConfig(
        corpus=corpus,
        store=store,
        model=model,
        recipe=recipe,
        precision=precision,  # type: ignore[arg-type]  # the encoder says what is allowed
        device=device,  # type: ignore[arg-type]
        clusters=clusters,
        seed=seed,
        target_recall=target_recall,
        columns=Columns(id_column, title_column, content_column, date_column),
        rejects=rejects,
        max_reject_share=max_reject_share,
    )
    manifest = run(config, Reporter(console))
    console.print(f"serve it: python -m server --store {store} --listen localhost:50051", soft_wrap=True)
    console.print(f"digest {manifest.digest}", style="dim", soft_wrap=True)


@app.command(name="list")
def list_generations(store: ExistingStore) -> None:
    """List the generations of a store, the oldest first; the served one has a star."""
    from coldframe.errors import ColdframeError
    from coldframe.generation import Manifest

    found = Store(store)
    current = found.current()
    # A name that is cut short is of no use to `activate`: in a narrow window the other columns give way.
    generation = Column("generation", no_wrap=True)
    table = Table("", generation, "articles", "clusters", "model", "recipe", "recall", box=None)
    for name in found.names():
        star = "*" if name == current else ""
        try:
            manifest = Manifest.read(found.directory(name))
        except ColdframeError as error:
            table.add_row(star, name, error.message)
            continue
        corpus, model = manifest.corpus, manifest.model
        recall = f"{manifest.report['recall_at_10']:.3f}"
        table.add_row(
            star, name, f"{corpus.articles:,}", f"{manifest.parameters.clusters:,}", model.name, model.recipe, recall
        )
    console = Console(highlight=False, markup=False)
    console.print(table if found.names() else "The store is empty; build a generation: python -m indexer build --help")


@app.command()
def verify(
    store: ExistingStore,
    generation: Annotated[str | None, typer.Option(help="Without it, all of them.")] = None,
) -> None:
    """Compare every file of the generations with its checksum."""
    from coldframe.errors import ColdframeError, CorruptGeneration, NoGeneration
    from coldframe.generation import verify as verify_generation

    found = Store(store)
    names = [generation] if generation else found.names()
    if not names:
        raise NoGeneration(f"there is nothing to verify: {store} holds no generation")
    broken: ColdframeError | None = None
    for name in names:
        try:
            verify_generation(found.directory(name))
            typer.echo(f"{name}: every file is as it was published")
        except CorruptGeneration as error:
            typer.echo(f"{name}: {error.message}")
            broken = error
    if broken is not None:
        raise broken


@app.command()
def activate(
    store: ExistingStore, generation: Annotated[str, typer.Argument(help="Its name, as `list` shows it.")]
) -> None:
    """Make a generation the current one, after verifying it. A running server is restarted to serve it."""
    from coldframe.generation import verify as verify_generation

    found = Store(store)
    verify_generation(found.directory(generation))
    found.activate(generation)
    typer.echo(f"{generation} is current")


@app.command()
def convert(
    model: Annotated[str, typer.Option(help="A BERT or RoBERTa sentence encoder: a hub id or a directory.")],
    out: Annotated[Path, typer.Option(help="The directory to make.")],
) -> None:
    """Make a Longformer that reads 4,096 tokens of a BERT or RoBERTa sentence encoder, without training.

    Example: python -m indexer convert --model sentence-transformers/all-distilroberta-v1 --out distil-4096
    """
    from coldframe import models
    from coldframe.convert import convert_directory
    from coldframe.errors import InvalidArgument

    directory = models.locate(model)
    config, weights = models.read_config(directory, model), models.read_weights(directory, model)
    try:
        convert_directory(directory, out, config, weights)
    except OSError as error:
        raise InvalidArgument(
            f"{out} cannot be written ({error.strerror}); name another directory", field="out"
        ) from error
    typer.echo(f"{out} is a Longformer; build with it: python -m indexer build --model {out} ...")


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    # Clears the draft away; and as process 1 of a container Python would ignore the signal.
    signal.signal(signal.SIGTERM, _stop)
    settings.run(app, prog="python -m indexer", prefix="COLDFRAME_INDEXER")

"""The commands that look after a store: list, verify, activate, rollback, prune, report."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.flags import read_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from coldframe.generation import Manifest
    from coldframe.store import Store

ExistingStore = Annotated[Path, typer.Option(help="The folder of generations.", parser=read_folder, metavar="DIR")]
_HEADINGS = ("articles", "clusters", "model", "recipe", "recall", "size")
_NUMBERS = {"articles", "clusters", "recall", "size"}
_NARROW = 10  # columns, for the longest word that is said of a generation
_Name = Annotated[str, typer.Argument(help="Its name, as `list` shows it.")]


def existing_store(path: Path) -> Store:
    """FAISS comes with it: no --help shall wait for that. Raises InvalidArgument where nothing has that name."""
    from coldframe.errors import InvalidArgument
    from coldframe.store import Store

    with suppress(OSError):  # such as a name that is too long, of which the store tells
        if not path.exists():
            reason = f"there is no store {path}; give the folder that a build published into"
            raise InvalidArgument(reason, field="store")
    return Store(path)


def list_command(store: ExistingStore) -> None:
    """List the generations of a store, the oldest first; the served one has a star."""
    from coldframe.errors import ColdframeError
    from coldframe.generation import Manifest

    found = existing_store(store)
    rows: list[list[str]] = []
    current, before, kept_back = found.current(), found.before(), found.kept_back()
    for name in found.names():
        try:
            manifest = Manifest.read(found.directory(name))
            said = _said(manifest, served_before=name == before, kept_back=name in kept_back)
            cells = [*_cells(manifest), said]
        except ColdframeError as error:
            cells = [*[""] * len(_HEADINGS), error.message]
        rows.append(["*" if name == current else "", name, *cells])
    _print_table(rows)


def _print_table(rows: list[list[str]]) -> None:
    """As wide as the terminal; to a pipe or a file as wide as the tables of replies."""
    from rich.console import Console
    from rich.table import Column, Table

    from coldframe.tables import MAX_WIDTH, has_window

    console = Console(highlight=False, markup=False)
    if not has_window(console):
        console.width = MAX_WIDTH
    # A name that is cut short is of no use to `activate`, nor is a gate's: in a narrow window the others give way.
    generation = Column("generation", no_wrap=True)
    said = Column("", overflow="fold", width=None if console.width >= MAX_WIDTH else _NARROW)
    others = (Column(name, justify="right" if name in _NUMBERS else "left") for name in _HEADINGS)
    table = Table("", generation, *others, said, box=None, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    console.print(table if rows else "The store is empty; build a generation: python -m indexer build --help")


def _cells(manifest: Manifest) -> Iterator[str]:
    from rich.filesize import decimal

    yield f"{manifest.corpus.articles:,}"
    yield f"{manifest.parameters.clusters:,}"
    yield manifest.model.name
    yield manifest.model.recipe
    yield f"{manifest.report['recall_at_10']:.3f}"
    yield decimal(sum(file["size"] for file in manifest.files.values()))


def _said(manifest: Manifest, *, served_before: bool, kept_back: bool) -> str:
    gates = ", ".join(breach["gate"] for breach in manifest.report["gates"])
    judged = f"{'kept back' if kept_back else 'by force'}: {gates}" if gates else ""
    return "; ".join(filter(None, ["served before" if served_before else "", judged]))


def verify_command(
    store: ExistingStore,
    generation: Annotated[str | None, typer.Option(help="Without it, all of them.")] = None,
) -> None:
    """Compare every file of the generations with its checksum."""
    from coldframe.errors import ColdframeError, CorruptGeneration, InvalidArgument, NoGeneration
    from coldframe.generation import verify

    found = existing_store(store)
    names = found.names() if generation is None else [generation]
    if not names:
        raise NoGeneration(f"there is nothing to verify: {store} holds no generation")
    broken: ColdframeError | None = None
    for name in names:
        try:
            verify(found.directory(name))
            typer.echo(f"{name}: every file is as it was published")
        except (CorruptGeneration, InvalidArgument) as error:
            if generation is None and name not in found.names():
                typer.echo(f"{name}: was removed meanwhile")
                continue
            if isinstance(error, InvalidArgument):
                raise
            typer.echo(f"{name}: {error.message}")
            broken = error
    if broken is not None:
        raise broken


def activate_command(
    store: ExistingStore,
    generation: _Name,
    force: Annotated[bool, typer.Option("--force", help="One that the gates kept back, too.")] = False,
) -> None:
    """Make a generation the current one, after verifying it. A running server serves it a second later."""
    from coldframe.errors import FailedPrecondition
    from coldframe.generation import verify

    found = existing_store(store)
    manifest = verify(found.directory(generation))
    if manifest.held and not force:
        raise FailedPrecondition(
            f"{generation} was kept back: {'; '.join(manifest.held)}. Activate it all the same with --force"
        )
    found.activate(generation)
    typer.echo(f"{generation} is current")


def rollback_command(store: ExistingStore) -> None:
    """Make the generation current that was so before, after verifying it; again, the one before that."""
    from coldframe.generation import verify

    found = existing_store(store)
    target = found.before()
    if target is not None:
        verify(found.directory(target))
    typer.echo(f"{found.rollback()} is current")


def prune_command(
    store: ExistingStore,
    keep: Annotated[int, typer.Option(help="So many of the newest; the current and the one before it stay anyway.")],
) -> None:
    """Remove old generations, and the cached embeddings of texts that none of the others holds.

    Those that were kept back do not count: as many of them stay beside the others, none older than the current one.

    Example: python -m indexer prune --store store --keep 7
    """
    from rich.console import Console

    prune(existing_store(store), keep, Console(highlight=False, markup=False))


def prune(store: Store, keep: int, console: Console) -> None:
    """Removes old generations and what only they need of the cache, and says what that frees."""
    from rich.filesize import decimal

    from indexer import cache

    with store.locked(), store.saving():
        freed = store.prune(keep)
        for name, size in freed.items():
            console.print(f"{name} is removed: {decimal(size)}", soft_wrap=True)
        if store.unfinished():
            console.print("The cache of embeddings stays as it is: an unfinished build may need all of it.")
            return
        cached = cache.prune(store.path / cache.CACHE, _texts(store))
    console.print(f"{decimal(sum(freed.values()) + cached)} freed; {len(store.names())} generation(s) stay.")


def _texts(store: Store) -> Iterator[tuple[str, str, Iterator[bytes]]]:
    """Of every generation, the encoder, its precision and the digests of the texts."""
    from coldframe.articles import Articles
    from coldframe.errors import ColdframeError
    from coldframe.generation import ARTICLES, Manifest

    for name in store.names():
        try:
            manifest = Manifest.read(store.directory(name))
            digests = Articles(store.directory(name) / ARTICLES).column("text_digest")
        except ColdframeError:
            continue
        yield manifest.model.fingerprint, manifest.precision, (digest.as_py() for digest in digests)


def report_command(
    store: ExistingStore,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    generation: Annotated[
        str | None, typer.Option(help="Its name, as `list` shows it; without it the current one.")
    ] = None,
) -> None:
    """Write the report of a generation to a file: how its clusters look, what it finds, what it took.

    Example: python -m indexer report --store store --out report.html
    """
    from coldframe.errors import InvalidArgument, NoGeneration
    from indexer.report import write_report_of

    found = existing_store(store)
    name = found.current() if generation is None else generation
    if name is None:
        raise NoGeneration(f"there is nothing to report: {store} holds no generation")
    try:
        write_report_of(found.directory(name), out)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidArgument(f"{out} cannot be written ({reason}); name another file", field="out") from error
    typer.echo(f"{out} shows generation {name}")

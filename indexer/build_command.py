"""`python -m indexer build`: its flags; once, or again and again, or only what it would take."""

# ruff: noqa: TC001  (Typer reads annotations at run time)

from __future__ import annotations

import shlex
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.errors import ColdframeError, FailedPrecondition, InvalidArgument
from coldframe.flags import spread
from indexer.build_flags import BuildFlags
from indexer.corpus_flags import CorpusFlags
from indexer.gates import GATES, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from indexer.plan import BuildConfig

_YEAR_S = 366 * 24 * 3600  # longer waits than some hundred years are none that a system can wait
_run = partial(typer.Option, rich_help_panel="Run")


@spread
def build_command(
    *,
    corpus: CorpusFlags,
    chosen: BuildFlags,
    limits: Limits,
    force: Annotated[
        bool, typer.Option("--force", help="Publish what is worse than these limits, too.", rich_help_panel=GATES)
    ] = False,
    dry_run: Annotated[
        bool, _run("--dry-run", help="Print what it would take of time, memory and disk, and build nothing.")
    ] = False,
    watch: Annotated[
        float | None, _run(help="Build again so many seconds after each end; without changes that is a no-op.")
    ] = None,
    keep: Annotated[
        int | None, _run(help="In the end, prune all but so many of the newest generations, as `prune` does.")
    ] = None,
) -> None:
    """Embed a corpus, cluster it, and publish a generation that the server loads.

    Example: python -m indexer build --corpus 'news/*.csv.gz' --store store
    """
    from rich.console import Console

    from coldframe.store import check_keep
    from indexer.plan import BuildConfig

    console = Console(highlight=False, markup=False)
    config = BuildConfig(**vars(chosen), corpus=corpus.config(), limits=limits, force=force)
    if keep is not None:
        check_keep(keep)
    if watch is not None and not 0 < watch <= _YEAR_S:
        raise InvalidArgument(
            f"--watch is {watch}; give the seconds to wait, more than 0 and at most {_YEAR_S:,}", field="watch"
        )
    if dry_run:
        from indexer.estimate import estimate
        from indexer.progress import Reporter

        estimate(config, Reporter(console)).show(console)
    elif watch is None:
        try:
            _build(config, keep, console)
        except (KeyboardInterrupt, SystemExit):  # SIGTERM, by the program's own handler
            typer.echo("stopped; the same command goes on from what is done", err=True)
            raise
    else:
        again_and_again(lambda: _build(config, keep, console), watch, console)


def _build(config: BuildConfig, keep: int | None, console: Console) -> None:
    from coldframe.store import Store
    from indexer.build import run
    from indexer.progress import Reporter
    from indexer.store_commands import prune

    store = Store(config.store)
    before = store.names() if keep is not None else []
    try:
        manifest = run(config, Reporter(console))
    except FailedPrecondition:
        if keep is not None and store.names() != before:  # what is kept back takes room, too
            prune(store, keep, console)
        raise
    if keep is not None:
        prune(store, keep, console)
    folder = shlex.quote(str(config.store))
    console.print(f"serve it: python -m server --store {folder} --listen localhost:50051", soft_wrap=True)
    console.print(f"digest {manifest.digest}", style="dim", soft_wrap=True)


def again_and_again(once: Callable[[], None], seconds: float, console: Console) -> None:
    """Does it, waits so many seconds, and does it again, until SIGTERM or SIGINT. What fails is said."""
    try:
        while True:
            try:
                once()
            except ColdframeError as error:
                typer.echo(f"error: {error.message}", err=True)
            except Exception:  # a fault of ours: the next round may go better, and this one must not be lost
                traceback.print_exc()
            console.print(f"{time.strftime('%H:%M:%S')} waiting {seconds:g} s", style="dim")
            time.sleep(seconds)
    except (KeyboardInterrupt, SystemExit):  # SIGTERM, by the program's own handler
        console.print("stopped")

"""`python -m indexer build`: its flags; once, or again and again, or only what it would take."""

# ruff: noqa: ARG001  (the flags go into the configuration by their names)

from __future__ import annotations

import re
import shlex
import time
import traceback
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coldframe.errors import ColdframeError, FailedPrecondition, InvalidArgument
from coldframe.flags import spread
from coldframe.precision import Device, Precision
from indexer.corpus_flags import PANEL, CorpusFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from indexer.corpus import CorpusConfig
    from indexer.plan import BuildConfig

_YEAR_S = 366 * 24 * 3600  # longer waits than some hundred years are none that a system can wait
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str) -> int:
    """Bytes: "2GiB", "1.5 GB", "800M" or a number alone."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise InvalidArgument(
            f"--memory-budget is {text[:40]!r}; give a size such as 2GiB, 800MB, or a number of bytes",
            field="memory-budget",
        )
    return int(float(found[1]) * _UNITS[found[2] or ""])


def parse_moment(text: str) -> datetime:
    """A date, or a date and a time, however a corpus may write it, of which there is one reading; without a zone it is
    UTC.
    """
    from indexer.dates import parse_date, shown_order

    moment = parse_date(text)
    if moment is None or shown_order(text) == "either":  # the other of its two days may be months away
        raise InvalidArgument(
            f"--corpus-as-of is {text!r}; give the date and time at which the corpus was written, such as "
            f"2026-03-01T04:30:00Z",
            field="corpus-as-of",
        )
    return moment


def _flag(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


_MODEL, _INDEX, _GATES, _RUN = "Model", "Index", "Gates: what is still good enough", "Run"
_CorpusAsOf = Annotated[
    datetime | None,
    _flag(
        PANEL,
        "When the corpus was written; UTC where no zone is given. Articles added, replaced or removed online before "
        "that yield to it, for every id that it holds; others stand. Without it all that was done online stands.",
        parser=parse_moment,
        metavar="TIME",
    ),
]
_Rejects = Annotated[
    Path | None, _flag(PANEL, "Where rows that cannot be used are listed; without it STORE/rejects.jsonl.")
]
_MaxRejectShare = Annotated[float, _flag(PANEL, "The build stops if more of the rows are rejected.")]

_Model = Annotated[str, _flag(_MODEL, "A hub id, a directory, or minilm, the embedded default, which is for trying.")]
_Recipe = Annotated[
    str | None,
    _flag(
        _MODEL, "seed, mean, first, lead, lead-words, and more that `evaluate` compares; without it the model's own."
    ),
]
_Precision = Annotated[Precision, _flag(_MODEL, "In what to compute; auto takes the fastest that is exact enough.")]
_Device = Annotated[Device, _flag(_MODEL, "On what; auto takes a GPU where there is one.")]

_Clusters = Annotated[
    int | None, _flag(_INDEX, "How many; without it about the square root of the texts, or as many as before.")
]
_Topics = Annotated[int | None, _flag(_INDEX, "Broad topics over the clusters; 0 for none, without it a few.")]
_Seed = Annotated[int, _flag(_INDEX, "Of every random draw: the same input and seed build the same.")]
_TargetRecall = Annotated[
    float, _flag(_INDEX, "Share of the true 10 nearest that a search shall find; decides the lists it visits.")
]
_MemoryBudget = Annotated[
    int | None, _flag(_INDEX, "What the index may take in memory, such as 2GiB.", parser=parse_size, metavar="SIZE")
]
_LatencyBudget = Annotated[float | None, _flag(_INDEX, "Milliseconds that a search may take.")]
_StorySimilarity = Annotated[
    float | None,
    _flag(_INDEX, "Cosine from which two articles may tell one story; without it learned, as `calibrate` does."),
]
_StoryWindow = Annotated[float, _flag(_INDEX, "Days between the first and the last article of one story, at most.")]
_MinClusterSimilarity = Annotated[
    float, _flag(_INDEX, "Cosine from which a cluster may keep the id of one of the previous generation.")
]

_MaxArticleLoss = Annotated[float, _flag(_GATES, "Share of articles fewer than before.")]
_RecallSlack = Annotated[float, _flag(_GATES, "What the recall may fall short of its target.")]
_MaxEmptyShare = Annotated[float, _flag(_GATES, "Share of clusters that drew no article.")]
_MaxCellShare = Annotated[float, _flag(_GATES, "Share of articles in the largest cluster.")]
_MinSurvived = Annotated[float, _flag(_GATES, "Share of articles that keep their cluster's id.")]
_MaxDrift = Annotated[float, _flag(_GATES, "Drift against the previous generation, 0 to 1.")]
_Force = Annotated[bool, _flag(_GATES, "Publish what is worse than these limits, too.", "--force")]

_Store = Annotated[Path, _flag(PANEL, "The folder of generations; made if it is not there.")]
_DryRun = Annotated[
    bool, _flag(_RUN, "Print what it would take of time, memory and disk, and build nothing.", "--dry-run")
]
_Watch = Annotated[
    float | None, _flag(_RUN, "Build again so many seconds after each end; without changes that is a no-op.")
]
_Keep = Annotated[
    int | None, _flag(_RUN, "In the end, prune all but so many of the newest generations, as `prune` does.")
]


@spread
def build_command(
    context: typer.Context,
    *,
    corpus: CorpusFlags,
    store: _Store,
    corpus_as_of: _CorpusAsOf = None,
    rejects: _Rejects = None,
    max_reject_share: _MaxRejectShare = 0.05,
    model: _Model = "minilm",
    recipe: _Recipe = None,
    precision: _Precision = "auto",
    device: _Device = "auto",
    clusters: _Clusters = None,
    topics: _Topics = None,
    seed: _Seed = 0,
    target_recall: _TargetRecall = 0.99,
    memory_budget: _MemoryBudget = None,
    latency_budget: _LatencyBudget = None,
    story_similarity: _StorySimilarity = None,
    story_window_days: _StoryWindow = 3.0,
    min_cluster_similarity: _MinClusterSimilarity = 0.8,
    max_article_loss: _MaxArticleLoss = 0.1,
    recall_slack: _RecallSlack = 0.01,
    max_empty_share: _MaxEmptyShare = 0.1,
    max_cell_share: _MaxCellShare = 0.25,
    min_survived: _MinSurvived = 0.8,
    max_drift: _MaxDrift = 0.1,
    force: _Force = False,
    dry_run: _DryRun = False,
    watch: _Watch = None,
    keep: _Keep = None,
) -> None:
    """Embed a corpus, cluster it, and publish a generation that the server loads.

    Example: python -m indexer build --corpus 'news/*.csv.gz' --store store
    """
    from rich.console import Console

    from coldframe.store import check_keep

    console = Console(highlight=False, markup=False)
    config = configuration(corpus.config(), context.params)
    if keep is not None:
        check_keep(keep)
    if dry_run:
        _estimate(config, console)
    elif watch is None:
        try:
            _build(config, keep, console)
        except (KeyboardInterrupt, SystemExit):  # SIGTERM, by the program's own handler
            typer.echo("stopped; the same command goes on from what is done", err=True)
            raise
    else:
        again_and_again(lambda: _build(config, keep, console), watch, console)


def configuration(corpus: CorpusConfig, flags: Mapping[str, Any]) -> BuildConfig:
    """What a person chose, from flags of the same names."""
    from indexer.gates import Limits
    from indexer.plan import BuildConfig

    limits = Limits(**{field.name: flags[field.name] for field in fields(Limits)})
    own = {field.name: flags[field.name] for field in fields(BuildConfig) if field.name in flags}
    return BuildConfig(**own | {"corpus": corpus}, limits=limits)


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


def _estimate(config: BuildConfig, console: Console) -> None:
    from indexer.estimate import estimate
    from indexer.progress import Reporter

    estimate(config, Reporter(console)).show(console)


def again_and_again(once: Callable[[], None], seconds: float, console: Console) -> None:
    """Does it, waits so many seconds, and does it again, until SIGTERM or SIGINT. What fails is said."""
    if not 0 < seconds <= _YEAR_S:
        raise InvalidArgument(
            f"--watch is {seconds}; give the seconds to wait, more than 0 and at most {_YEAR_S:,}", field="watch"
        )
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

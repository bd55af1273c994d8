"""The flags of `build` that are its configuration: `indexer.plan.BuildConfig` is made of them."""

# ruff: noqa: TC001, TC003  (Typer reads annotations at run time)

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from coldframe.errors import InvalidArgument
from coldframe.flags import read_folder
from coldframe.precision import Device, Precision
from indexer.corpus_flags import PANEL

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


_corpus, _model, _index = (partial(Option, rich_help_panel=panel) for panel in (PANEL, "Model", "Index"))


@dataclass(frozen=True, kw_only=True)
class BuildFlags:
    """What a person chooses of a build, beside the corpus and what is still good enough (`indexer.gates.Limits`)."""

    store: Annotated[
        Path, _corpus(help="The folder of generations; made if it is not there.", parser=read_folder, metavar="DIR")
    ]
    corpus_as_of: Annotated[
        datetime | None,
        _corpus(
            help="When the corpus was written; UTC where no zone is given. Articles added, replaced or removed online "
            "before that yield to it, for every id that it holds; others stand. Without it all that was done online "
            "stands.",
            parser=parse_moment,
            metavar="TIME",
        ),
    ] = None
    rejects: Annotated[
        Path | None, _corpus(help="Where rows that cannot be used are listed; without it STORE/rejects.jsonl.")
    ] = None
    max_reject_share: Annotated[float, _corpus(help="The build stops if more of the rows are rejected.")] = 0.05

    model: Annotated[
        str, _model(help="A hub id, a directory, or minilm, the embedded default, which is for trying.")
    ] = "minilm"
    recipe: Annotated[
        str | None,
        _model(
            help="seed, mean, first, lead, lead-words, and more that `evaluate` compares; without it the model's own."
        ),
    ] = None
    precision: Annotated[Precision, _model(help="In what to compute; auto takes the fastest that is exact enough.")] = (
        "auto"
    )
    device: Annotated[Device, _model(help="On what; auto takes a GPU where there is one.")] = "auto"

    clusters: Annotated[
        int | None, _index(help="How many; without it about the square root of the texts, or as many as before.")
    ] = None
    topics: Annotated[int | None, _index(help="Broad topics over the clusters; 0 for none, without it a few.")] = None
    seed: Annotated[int, _index(help="Of every random draw: the same input and seed build the same.")] = 0
    target_recall: Annotated[
        float, _index(help="Share of the true 10 nearest that a search shall find; decides the lists it visits.")
    ] = 0.99
    memory_budget: Annotated[
        int | None,
        _index(help="What the index may take in memory, such as 2GiB.", parser=parse_size, metavar="SIZE"),
    ] = None
    latency_budget: Annotated[float | None, _index(help="Milliseconds that a search may take.")] = None
    story_similarity: Annotated[
        float | None,
        _index(help="Cosine from which two articles may tell one story; without it learned, as `calibrate` does."),
    ] = None
    story_window_days: Annotated[
        float, _index(help="Days between the first and the last article of one story, at most.")
    ] = 3.0
    min_cluster_similarity: Annotated[
        float, _index(help="Cosine from which a cluster may keep the id of one of the previous generation.")
    ] = 0.8

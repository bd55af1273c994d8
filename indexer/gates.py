"""What a build must measure before it is put in front of readers.

    articles   not too many fewer than in the previous generation
    recall     a balanced search finds the nearest articles it should
    empty      few cells were left without an article
    cell       no cell holds too much of the corpus
    survived   the articles of both generations keep their cluster ids
    drift      the vectors are spread as those of the previous generation

The first and the last two need a previous generation of the same encoder; without one they judge nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from coldframe.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GATES = "Gates: what is still good enough"
_flag = partial(typer.Option, rich_help_panel=GATES)
# A few cells hold much of a few articles by chance: so many times an even share is always allowed.
_EVEN_SHARES = 4.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still good enough, as shares from 0 to 1. Each field is a flag of `build`: --max-article-loss and so on.

    Raises InvalidArgument for anything that is no share.
    """

    max_article_loss: Annotated[float, _flag(help="Share of articles fewer than before.")] = 0.1
    """Articles fewer than in the previous generation. A window of news that moves by a day keeps its size within a
    few hundredths; a feed that was not delivered does not."""
    recall_slack: Annotated[float, _flag(help="What the recall may fall short of its target.")] = 0.01
    """What the measured recall may fall short of the target: two standard errors of some 200 queries."""
    max_empty_share: Annotated[float, _flag(help="Share of clusters that drew no article.")] = 0.1
    """Cells that drew no article: they cost memory and a visit, and tell of centroids that fit the corpus no more."""
    max_cell_share: Annotated[float, _flag(help="Share of articles in the largest cluster.")] = 0.25
    """Articles in the largest cell: a visit to it costs that share of an exact search. Four times an even share is
    always allowed, so that corpora of a few cells pass."""
    min_survived: Annotated[float, _flag(help="Share of articles that keep their cluster's id.")] = 0.8
    """Articles of both generations whose cluster id is still the same: what readers follow should not be renamed."""
    max_drift: Annotated[float, _flag(help="Drift against the previous generation, 0 to 1.")] = 0.1
    """See `indexer.drift`. 1 judges nothing."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, flag = getattr(self, field.name), field.name.replace("_", "-")
            if not 0 <= value <= 1:
                raise InvalidArgument(f"--{flag} is {value}; it must be a share from 0 to 1", field=flag)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured of a build. None is not known, and not judged; what is not a number never passes."""

    articles: int
    recall: float | None
    """At 10, of a balanced search."""
    target_recall: float
    sizes: Sequence[int]
    """Articles of each cell that has any."""
    empty: int = 0
    """Cells that drew no article."""
    previous_articles: int | None = None
    survived: float | None = None
    """Share of the articles of both generations whose cluster id is the same."""
    drift: float | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One gate: what was measured, what is allowed, and a sentence of both and of the flag that allows more."""

    gate: str
    measured: float
    limit: float
    passed: bool
    message: str


def judge(facts: Facts, limits: Limits) -> list[Check]:
    """The gates that do not open; an empty list is a pass."""
    return [check for check in checks(facts, limits) if not check.passed]


def checks(facts: Facts, limits: Limits) -> list[Check]:
    """Every gate that could be judged, in the order of the module's table."""
    return [*_against_the_previous(facts, limits), *_of_the_index(facts, limits)]


def _against_the_previous(facts: Facts, limits: Limits) -> Iterator[Check]:
    if facts.previous_articles:
        loss = 1 - facts.articles / facts.previous_articles
        change = f"{abs(loss):.1%} {'fewer' if loss > 0 else 'more'} than the {facts.previous_articles:,}"
        if not loss:
            change = "as many as those"
        said = f"{facts.articles:,} articles, {change} of the previous generation"
        yield _at_most("articles", loss, limits.max_article_loss, said, "--max-article-loss")
    if facts.survived is not None:
        said = f"{_share(facts.survived)} of the articles of both generations kept their cluster id"
        yield _at_least("survived", facts.survived, limits.min_survived, said, "--min-survived")
    if facts.drift is not None:
        said = f"the drift against the previous generation is {facts.drift:.3f}"
        yield _at_most("drift", facts.drift, limits.max_drift, said, "--max-drift", number="{:.3f}")


def _of_the_index(facts: Facts, limits: Limits) -> Iterator[Check]:
    if facts.recall is not None:
        least = facts.target_recall - limits.recall_slack
        found, target = _share(facts.recall), _share(facts.target_recall)
        said = f"a balanced search finds {found} of the 10 nearest, the target is {target}"
        yield _at_least("recall", facts.recall, least, said, "--recall-slack")
    cells = len(facts.sizes) + facts.empty
    if cells:
        said = f"{facts.empty:,} of {cells:,} clusters drew no article"
        yield _at_most("empty", facts.empty / cells, limits.max_empty_share, said, "--max-empty-share")
    if len(facts.sizes):
        largest, total = max(facts.sizes), sum(facts.sizes)
        most = min(1.0, max(limits.max_cell_share, _EVEN_SHARES / cells))
        said = f"the largest cluster holds {largest:,} of {total:,} articles"
        yield _at_most("cell", largest / max(total, 1), most, said, "--max-cell-share")


def _at_most(gate: str, measured: float, limit: float, said: str, flag: str, *, number: str = "{:.1%}") -> Check:
    passed = measured <= limit  # False for NaN
    allowed = f"at most {number.format(limit)} is allowed ({flag})"
    return Check(gate, measured, limit, passed, _sentence(said, measured, allowed))


def _at_least(gate: str, measured: float, limit: float, said: str, flag: str) -> Check:
    passed = measured >= limit  # False for NaN
    return Check(
        gate, measured, limit, passed, _sentence(said, measured, f"at least {_share(limit)} is asked for ({flag})")
    )


def _sentence(said: str, measured: float, allowed: str) -> str:
    unknown = " (it could not be measured)" if math.isnan(measured) else ""
    return f"{said}{unknown}; {allowed}"


def _share(value: float) -> str:
    return f"{value:.1%}"

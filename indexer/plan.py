"""What is to be built, from what, and whether it can end well."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import coldframe
from coldframe.encoder import Encoder
from coldframe.errors import ColdframeError, FailedPrecondition, InvalidArgument
from coldframe.live import LIVE
from coldframe.store import Store
from indexer.build_flags import BuildFlags
from indexer.cache import CACHE, Space
from indexer.choose import Budgets
from indexer.gates import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe.generation import Generation
    from indexer.corpus import Article, CorpusConfig, Reject, Source
    from indexer.progress import Reporter

_MOST_SEED = 2**31 - 1  # FAISS keeps it in a C int
_CLOCKS_DIFFER = timedelta(minutes=5)  # less than zones do: local time taken for UTC would take all changes for older


@dataclass(frozen=True, kw_only=True)
class BuildConfig(BuildFlags):
    """All that a person chooses of a build."""

    corpus: CorpusConfig
    limits: Limits = field(default_factory=Limits)
    force: bool = False
    """Publish what is worse than the limits too."""

    @property
    def rejects_path(self) -> Path:
        """The file of rejects."""
        return self.rejects or self.store / "rejects.jsonl"

    def budgets(self) -> Budgets:
        """What the index may cost and must find."""
        return Budgets(self.memory_budget, self.latency_budget, self.target_recall)

    def require_enough_texts(self, distinct: int) -> None:
        """Raises InvalidArgument for more clusters than there are distinct texts."""
        if self.clusters is not None and self.clusters > distinct:
            raise InvalidArgument(
                f"--clusters is {self.clusters}, and the corpus has {distinct} distinct texts; ask for at most so many",
                field="clusters",
            )

    def check(self) -> None:
        """Raises InvalidArgument for the first value that makes no sense, with the flag's name."""
        counts = {"clusters": (self.clusters, 1), "topics": (self.topics, 0), "memory-budget": (self.memory_budget, 1)}
        for flag, (count, least) in counts.items():
            if count is not None and count < least:
                raise InvalidArgument(f"--{flag} is {count}; it must be at least {least}", field=flag)
        if not 0 <= self.seed <= _MOST_SEED:
            raise InvalidArgument(f"--seed is {self.seed}; it must be 0 to {_MOST_SEED}", field="seed")
        if self.corpus_as_of is not None and self.corpus_as_of > datetime.now(UTC) + _CLOCKS_DIFFER:
            raise InvalidArgument(
                f"--corpus-as-of is {self.corpus_as_of.isoformat()}, which is still to come; give the date and time at "
                f"which the corpus was written, with its zone, such as +05:30: without one it is UTC",
                field="corpus-as-of",
            )
        shares = {
            "target-recall": self.target_recall,
            "story-similarity": self.story_similarity,
            "min-cluster-similarity": self.min_cluster_similarity,
        }
        for flag, share in shares.items():
            if share is not None and not 0 < share <= 1:
                raise InvalidArgument(f"--{flag} is {share}; it must be over 0 and at most 1", field=flag)
        if not 0 <= self.max_reject_share <= 1:
            raise InvalidArgument(
                f"--max-reject-share is {self.max_reject_share}; it is a share, between 0 and 1",
                field="max-reject-share",
            )
        amounts = {"story-window-days": self.story_window_days, "latency-budget": self.latency_budget}
        for flag, amount in amounts.items():
            if amount is not None and not 0 < amount < math.inf:
                raise InvalidArgument(f"--{flag} is {amount}; it must be over 0", field=flag)


@dataclass(frozen=True)
class Job:
    """What a build is made from."""

    config: BuildConfig
    store: Store
    sources: list[Source]
    encoder: Encoder
    reporter: Reporter

    @property
    def space(self) -> Space:
        """Of the vectors that this job computes."""
        return Space(self.encoder.fingerprint, self.encoder.precision, self.encoder.dim)

    @property
    def cache(self) -> Path:
        """The file of embeddings."""
        return self.store.path / CACHE

    @property
    def live(self) -> Path:
        """The file of live articles."""
        return self.store.path / LIVE

    def read(self) -> Iterator[Article | Reject]:
        """The corpus, from its beginning."""
        return self.config.corpus.read(self.sources)

    def share_read(self, last: Article | Reject) -> float | None:
        """How much of the corpus has been read when this was the last row, by bytes; None where nobody knows."""
        at = [source.name for source in self.sources].index(last.source)
        sizes, here = [source.size for source in self.sources], self.sources[at].position()
        known = [size for size in sizes if size is not None]
        if here is None or len(known) < len(sizes):
            return None
        return min((sum(known[:at]) + here) / sum(known), 1.0)

    def requested(self) -> dict[str, Any]:
        """What decides, beside the corpus and the previous generation, what is built; by the names of the flags."""
        config = self.config
        return {
            "coldframe": coldframe.__version__,
            "model": self.encoder.fingerprint,
            "recipe": self.encoder.recipe.name,
            "precision": self.encoder.precision,
            "clusters": config.clusters,
            "topics": config.topics,
            "seed": config.seed,
            "target-recall": config.target_recall,
            "memory-budget": config.memory_budget,
            "latency-budget": config.latency_budget,
            "story-similarity": config.story_similarity,
            "story-window-days": config.story_window_days,
            "min-cluster-similarity": config.min_cluster_similarity,
        }

    def identity(self, previous: str | None) -> dict[str, Any]:
        """All that must be the same if an unfinished build shall be gone on with."""
        return self.requested() | {
            "corpus": [[source.location, source.address, source.size, source.version] for source in self.sources],
            "columns": asdict(self.config.corpus.columns),
            "clean-html": self.config.corpus.clean_html,
            "corpus-as-of": self.config.corpus_as_of and self.config.corpus_as_of.isoformat(),
            "rejects": self.config.rejects and str(self.config.rejects.absolute()),
            "max-reject-share": self.config.max_reject_share,
            "previous generation": previous,
        }


def plan(config: BuildConfig, reporter: Reporter) -> Job:
    """Refuses early what cannot end well."""
    with reporter.phase("plan") as say:
        config.check()
        _require_drawing()
        corpus = replace(config.corpus, apart_from=[config.store, config.rejects_path])
        sources = corpus.sources(reporter.note)
        encoder = Encoder.load(config.model, config.recipe, config.precision, config.device)
        encoder.tokenize(["a model of weights alone is refused here"])
        say(f"{counted(sources)}, {encoder.name}, recipe {encoder.recipe.name}, {encoder.precision}")
    return Job(config, Store(config.store), sources, encoder, reporter)


def _require_drawing() -> None:
    """Matplotlib, which draws the report in the end, wants to write to a folder when it is imported."""
    try:
        import matplotlib  # noqa: F401
    except OSError as error:
        raise FailedPrecondition(f"the report of the build could not be drawn: {error}") from error


def open_previous(store: Store, reporter: Reporter) -> Generation | None:
    """The current generation, verified; None, with a word about it, where it cannot be built upon.

    Raises FailedPrecondition where it only cannot be opened now: all clusters would have new names for that.
    """
    if store.current() is None:
        return None
    try:
        return store.open()
    except FailedPrecondition:
        raise
    except ColdframeError as error:
        reporter.note(f"the new generation is built as a first one: {error.message}")
        return None


def counted(sources: list[Source]) -> str:
    """What is read, in two words."""
    return "a query" if len(sources) == 1 and sources[0].name == "query" else f"{len(sources):,} file(s)"

"""Which storage the lists of an index use: the best that keeps within the budgets, by measurement."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from coldframe.errors import InvalidArgument
from coldframe.index import ClusterIndex
from coldframe.storage import FAITHFUL, LEAST_PQ_ROWS, storage_bytes
from indexer.measure import measure

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

DEFAULT_MEMORY = 4 * 2**30
"""Bytes for the lists where no budget is given: two and a half million articles of dimension 768 may be fp16."""
MANY_ROWS = 50_000
"""Of fewer a scan of fp16 takes no longer than one of rabitq, which costs a fixed time for each list."""
NOT_NEEDED = "not needed"
"""Why a storage was not even built: a better one keeps within the budgets."""
_COMPONENTS_PER_CODE = (4, 8, 16)


@dataclass(frozen=True)
class Budgets:
    """What an index may cost a server and must find."""

    memory_bytes: int | None = None
    """For the lists; None: `DEFAULT_MEMORY`. The vectors stay on disk, and a search reads a few rows of them."""
    latency_ms: float | None = None
    """The median of a search on one thread; None: however long it takes."""
    target_recall: float = 0.99


@dataclass(frozen=True)
class Tried:
    """A storage, and what a search of it costs and finds."""

    storage: str
    bytes: int
    probes: int | None = None
    """This and the next two are None for fp16 and flat without a latency budget: those reach any recall."""
    recall: float | None = None
    latency_ms: float | None = None
    reason: str = ""
    """Why it will not do."""


@dataclass(frozen=True, kw_only=True)
class Choice(Tried):
    """The storage chosen."""

    considered: list[dict[str, Any]]
    """Every kind, as `Tried` has it; what was not measured is None."""


def storages(rows: int, dim: int, budgets: Budgets) -> list[str]:
    """The kinds that fit the memory budget, the best first. Raises InvalidArgument if none does."""
    memory = DEFAULT_MEMORY if budgets.memory_bytes is None else budgets.memory_bytes
    kinds = _kinds(rows, dim)
    fitting = [kind for kind in kinds if storage_bytes(kind, rows, dim) <= memory]
    if not fitting:
        smallest = min(storage_bytes(kind, rows, dim) for kind in kinds)
        raise InvalidArgument(
            f"--memory-budget is {memory:,} bytes, and the smallest index of {rows:,} vectors of dimension {dim} takes "
            f"{smallest:,}; allow at least that",
            field="memory-budget",
        )
    return fitting


def _kinds(rows: int, dim: int) -> list[str]:
    short = [f"pq{dim // part}" for part in _COMPONENTS_PER_CODE if dim % part == 0]
    fastest = ["rabitq"] if rows >= MANY_ROWS else []
    return [*fastest, *FAITHFUL, "sq8", *(short if rows >= LEAST_PQ_ROWS else [])]


def choose(
    path: Path,
    centroids: NDArray[np.float32],
    vectors: NDArray[np.float32],
    assignment: NDArray[np.int64],
    *,
    budgets: Budgets,
    seed: int,
) -> Choice:
    """Writes the index to `path`, in the first of `storages` that reaches the target recall in the time allowed.

    With a latency budget the choice hangs on the machine's speed; without one it is the same everywhere. Raises
    InvalidArgument, and leaves no file, if no kind will do: it says what each would need.
    """
    rows, dim = vectors.shape
    fitting = storages(rows, dim, budgets)
    tried: list[Tried] = []
    for storage in fitting:
        ClusterIndex.build(centroids, vectors, assignment, storage, seed).write(path)
        index = ClusterIndex.read(path, vectors)  # as a server maps it; what was built is gone from memory
        tried.append(_try(index, budgets, seed))
        if not tried[-1].reason:
            return _choice(tried, rows, dim, fitting)
    path.unlink()
    raise _refusal(tried, budgets)


def _try(index: ClusterIndex, budgets: Budgets, seed: int) -> Tried:
    """What a kind needs."""
    if (
        budgets.latency_ms is None
        and index.storage in FAITHFUL
        and (budgets.target_recall < 1 or index.storage == "flat")
    ):
        return Tried(index.storage, index.bytes)
    found = measure(index, budgets.target_recall, seed)
    tried = Tried(index.storage, index.bytes, found.probes, found.recall, found.latency_ms)
    if found.recall < budgets.target_recall:
        return replace(tried, reason="finds too few")
    if budgets.latency_ms is not None and found.latency_ms > budgets.latency_ms:
        return replace(tried, reason="takes too long")
    return tried


def _choice(tried: list[Tried], rows: int, dim: int, fitting: list[str]) -> Choice:
    measured = {kind.storage: kind for kind in tried}
    considered = []
    for storage in _kinds(rows, dim):
        reason = NOT_NEEDED if storage in fitting else "over the memory budget"
        kind = measured.get(storage) or Tried(storage, storage_bytes(storage, rows, dim), reason=reason)
        considered.append(asdict(kind))
    return Choice(**asdict(tried[-1]), considered=considered)


def _refusal(tried: list[Tried], budgets: Budgets) -> InvalidArgument:
    """Names the flag that is nearest to letting a kind through, and all that was measured."""
    slow = [kind.latency_ms for kind in tried if kind.reason == "takes too long" and kind.latency_ms is not None]
    if slow:
        field, advice = "latency-budget", f"allow --latency-budget {min(slow):.3g}, or lower --target-recall"
    else:
        field, advice = "memory-budget", "allow more with --memory-budget, or lower --target-recall"
    limit = "" if budgets.latency_ms is None else f" in {budgets.latency_ms:g} ms"
    found = "; ".join(
        f"{kind.storage} finds {kind.recall:.1%} with {kind.probes:,} lists in {kind.latency_ms:.3g} ms"
        for kind in tried
    )
    return InvalidArgument(
        f"no storage within the memory budget finds {budgets.target_recall:.1%} of the 10 nearest{limit}: {found}; "
        f"{advice}",
        field=field,
    )
